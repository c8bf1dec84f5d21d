"""Softmax and normalisations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import UnsupportedOp
from ..graph import Graph, Node, Value
from .elementwise import operands, typed_like
from .function import through_body
from .reduce import extent_of
from .registry import vjp


@vjp("Softmax")
def softmax(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """dx = y (dy - sum dy y). A row of -inf alone gives NaN: where the model replaces that, it has no part in y."""
    (y,), axis = n.outputs, n.attrs.get("axis", -1)
    y = g.Where(g.IsNaN(y), 0.0, y) if _is_replaced(g, y) else y
    return (y * (dy - g.ReduceSum(dy * y, [axis], keepdims=1)),)


def _is_replaced(g: Graph, y: Value) -> bool:
    """Whether a Where chooses between y and something else, as models do against rows that are masked out."""
    same = {y}
    for node in g.nodes:
        if any(v in same for v in node.inputs):
            if node.op == "Where":
                return True
            same.update(node.outputs if node.op in ("Cast", "Identity") else ())
    return False


@vjp("LogSoftmax")
def log_softmax(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """dx = dy - e^y sum dy."""
    (y,), axis = n.outputs, n.attrs.get("axis", -1)
    return (dy - g.Exp(y) * g.ReduceSum(dy, [axis], keepdims=1),)


# -- x / norm -----------------------------------------------------------------------------------------------------
@vjp("LpNormalization")
def lp_normalization(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """y = x / s, s = |x|_p: dx = (dy - s' sum dy y) / s with s' = y for p = 2, sign(x) for p = 1; 0 where s = 0."""
    (x,), (y,), axis = operands(n), n.outputs, n.attrs.get("axis", -1)
    square = n.attrs.get("p", 2) == 2
    norm = g.ReduceSum(x * x if square else g.Abs(x), [axis], keepdims=1)
    zero = g.Equal(norm, 0.0)
    norm = g.Where(zero, 1.0, norm)
    dx = dy - (y if square else g.Sign(x)) * g.ReduceSum(dy * y, [axis], keepdims=1)
    return (g.Where(zero, 0.0, dx / (g.Sqrt(norm) if square else norm)),)


@vjp("LRN")
def lrn(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """y = x d^-beta, d = bias + alpha/size S x^2, where S sums over a window of channels:
    dx = u - 2 alpha beta/size x S'(u x / d) with u = dy d^-beta."""
    (x,), size = operands(n), n.attrs["size"]
    alpha, beta, bias = n.attrs.get("alpha", 1e-4), n.attrs.get("beta", 0.75), n.attrs.get("bias", 1.0)
    d = bias + alpha / size * window_sum(g, x * x, size)
    u = dy * g.Pow(d, -beta)
    return (u - 2 * alpha * beta / size * x * window_sum(g, u * x / d, size, transposed=True),)


def window_sum(g: Graph, v: Value, size: int, transposed: bool = False) -> Value:
    """The sum over a window of channels around each; or its adjoint."""
    lag = np.subtract.outer(np.arange(v.dim(1)), np.arange(v.dim(1)))
    window = (-((size - 1) // 2) <= -lag) & (-lag <= size // 2)
    matrix = (window.T if transposed else window).astype(v.dtype)
    return g.Reshape(g.MatMul(g.const(matrix), g.Reshape(v, [0, 0, -1])), g.shape(v))


# -- with the statistics held constant ----------------------------------------------------------------------------
FROZEN: dict[str, Callable[[Graph, Node, Value], Value]] = {}


def frozen(op: str) -> Callable[[Callable[[Graph, Node, Value], Value]], Callable[[Graph, Node, Value], Value]]:
    """Register f(g, n, dy) -> dx of a normalisation whose deviation counts as a constant (its mean does not)."""
    def register(f: Callable[[Graph, Node, Value], Value]) -> Callable[[Graph, Node, Value], Value]:
        FROZEN[op] = f
        return f
    return register


@frozen("LayerNormalization")
def frozen_layer(g: Graph, n: Node, dy: Value) -> Value:
    x, scale = operands(n)[:2]
    return _centred(g, x, dy * scale, list(range(n.attrs.get("axis", -1) % x.rank, x.rank)), n.attrs.get("epsilon", 1e-5))


@frozen("InstanceNormalization")
def frozen_instance(g: Graph, n: Node, dy: Value) -> Value:
    x, scale = operands(n)[:2]
    return _centred(g, x, dy * per_channel(g, scale, x), list(range(2, x.rank)), n.attrs.get("epsilon", 1e-5))


@frozen("GroupNormalization")
def frozen_group(g: Graph, n: Node, dy: Value) -> Value:
    """The channels of a group are one channel; before opset 21 there is one scale per group."""
    (x, scale), groups = operands(n)[:2], n.attrs["num_groups"]
    grouped, u = g.Reshape(x, [0, groups, -1]), dy
    if scale.dim(0) != groups or g.opset >= 21:
        u = g.Reshape(dy * per_channel(g, scale, x), [0, groups, -1])
    else:
        u = g.Reshape(dy, [0, groups, -1]) * per_channel(g, scale, grouped)
    return g.Reshape(_centred(g, grouped, u, [2], n.attrs.get("epsilon", 1e-5)), g.shape(x))


@frozen("RMSNormalization")
def frozen_rms(g: Graph, n: Node, dy: Value) -> Value:
    x, scale = operands(n)
    axes = list(range(n.attrs.get("axis", -1) % x.rank, x.rank))
    w = wide(g, x)
    return dy * scale * typed_like(g, 1.0 / g.Sqrt(mean(g, w * w, axes) + n.attrs.get("epsilon", 1e-5)), dy)


@frozen("MeanVarianceNormalization")
def frozen_mean_variance(g: Graph, n: Node, dy: Value) -> Value:
    (x,), axes = operands(n), list(n.attrs.get("axes", [0, 2, 3]))
    centred = x - mean(g, x, axes)
    return (dy - mean(g, dy, axes)) / (g.Sqrt(mean(g, centred * centred, axes)) + 1e-9)


@frozen("LRN")
@frozen("LpNormalization")
def frozen_factor(g: Graph, n: Node, dy: Value) -> Value:
    """y = x times a factor that counts as a constant."""
    (x,), (y,) = operands(n), n.outputs
    zero = g.Equal(x, 0.0)
    return dy * g.Where(zero, 0.0, y / g.Where(zero, 1.0, x))


def _centred(g: Graph, x: Value, u: Value, axes: list[int], epsilon: float) -> Value:
    """(u - mean u) / s."""
    w = wide(g, u)
    return typed_like(g, (w - mean(g, w, axes)) * standardised(g, wide(g, x), axes, epsilon)[1], u)


# -- (x - mean) / deviation ---------------------------------------------------------------------------------------
def wide(g: Graph, v: Value) -> Value:
    """A half-precision value in float32, as statistics are formed; others as they are."""
    return g.Cast(v, to=1) if v.dtype is not None and v.dtype.itemsize == 2 else v


def mean(g: Graph, v: Value, axes: list[int]) -> Value:
    """The mean over axes, which stay as axes of size 1."""
    return g.ReduceSum(v, axes, keepdims=1) / extent_of(g, v, axes)


def standardised(g: Graph, x: Value, axes: list[int], epsilon: float) -> tuple[Value, Value]:
    """(x - mean) / s and 1 / s, with s^2 = variance + epsilon over the axes."""
    centred = x - mean(g, x, axes)
    inverse = 1.0 / g.Sqrt(mean(g, centred * centred, axes) + epsilon)
    return centred * inverse, inverse


def through_statistics(g: Graph, dz: Value, z: Value, inverse: Value, axes: list[int]) -> Value:
    """dx of z = (x - mean) / s: dx = (dz - mean dz - z mean dz z) / s."""
    return inverse * (dz - mean(g, dz, axes) - z * mean(g, dz * z, axes))


@vjp("LayerNormalization", many=True)
def layer_normalization(g: Graph, n: Node, dys: tuple[Value | None, ...]) -> list[Value | None]:
    """y = scale z + bias, z = (x - mean) / s over the last axes: dscale = sum dy z, dbias = sum dy."""
    if dys[0] is None or any(d is not None for d in dys[1:]):
        return through_body(g, n, dys)
    x, scale, dy = (wide(g, v) for v in (*operands(n)[:2], dys[0]))
    axes = list(range(n.attrs.get("axis", -1) % x.rank, x.rank))
    z, inverse = standardised(g, x, axes, n.attrs.get("epsilon", 1e-5))
    dx = through_statistics(g, dy * scale, z, inverse, axes) if 0 in n.needs else None
    return [dx, dy * z if 1 in n.needs else None, dy][:len(n.inputs)]


@vjp("RMSNormalization")
def rms_normalization(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """y = scale z, z = x / s with s^2 = mean x^2 + epsilon: dx = (dy scale - z mean dy scale z) / s."""
    x, scale, dy = (wide(g, v) for v in (*operands(n), dy))
    axes = list(range(n.attrs.get("axis", -1) % x.rank, x.rank))
    inverse = 1.0 / g.Sqrt(mean(g, x * x, axes) + n.attrs.get("epsilon", 1e-5))
    z, dz = x * inverse, dy * scale
    return (inverse * (dz - z * mean(g, dz * z, axes)), dy * z if 1 in n.needs else None)


@vjp("MeanVarianceNormalization")
def mean_variance_normalization(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """y = (x - mean) / (s + 1e-9): dx = (dy - mean dy - (x - mean) / s mean dy y) / (s + 1e-9)."""
    (x,), axes = operands(n), list(n.attrs.get("axes", [0, 2, 3]))
    centred = x - mean(g, x, axes)
    s = g.Sqrt(mean(g, centred * centred, axes))
    z = centred / g.Where(g.Equal(s, 0.0), 1.0, s)
    return ((dy - mean(g, dy, axes) - z * mean(g, dy * n.outputs[0], axes)) / (s + 1e-9),)


@vjp("InstanceNormalization")
def instance_normalization(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """As LayerNormalization, over the axes behind the channel."""
    x, scale, dy = (wide(g, v) for v in (*operands(n)[:2], dy))
    axes = list(range(2, x.rank))
    z, inverse = standardised(g, x, axes, n.attrs.get("epsilon", 1e-5))
    dz = dy * per_channel(g, scale, x)
    return (through_statistics(g, dz, z, inverse, axes), *(over_channels(g, v) for v in (dy * z, dy)))


@vjp("BatchNormalization")
def batch_normalization(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """Inference: y = scale (x - mean) / s + bias with given mean and s^2 = variance + epsilon."""
    x, scale, _, centre, variance = operands(n)
    if n.attrs.get("training_mode"):
        raise UnsupportedOp(f"BatchNormalization node {n.name!r} is in training mode; export the model for inference")
    inverse = 1.0 / g.Sqrt(variance + n.attrs.get("epsilon", 1e-5))
    slope = typed_like(g, inverse, scale) * scale
    dx = dy * per_channel(g, typed_like(g, slope, dy), x)
    if not n.needs - {0}:
        return (dx,)
    shifted = typed_like(g, x, centre) - per_channel(g, centre, x)
    dbias, dslope = over_channels(g, dy), over_channels(g, typed_like(g, dy, centre) * shifted)
    dmean = -(typed_like(g, dbias, centre) * typed_like(g, slope, centre))
    return (dx, dslope * inverse, dbias, dmean, -0.5 * dslope * typed_like(g, slope, centre) * inverse * inverse)


def per_channel(g: Graph, v: Value, x: Value) -> Value:
    """v (C,) shaped to be broadcast over x (N, C, ...)."""
    return v if x.rank == 2 else g.Reshape(v, [-1] + [1] * (x.rank - 2))


def over_channels(g: Graph, v: Value) -> Value:
    """v (N, C, ...) summed to (C,)."""
    return g.ReduceSum(v, [a for a in range(v.rank) if a != 1], keepdims=0)
