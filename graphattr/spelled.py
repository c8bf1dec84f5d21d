"""Normalisations and lengths that are one operator, spelled out in elementary ones."""

from __future__ import annotations

from collections.abc import Callable

from .errors import UnsupportedOp
from .graph import Graph, Node, Value
from .infer import schema_of
from .vjp.elementwise import typed_like
from .vjp.function import inline
from .vjp.norm import mean, per_channel, standardised, wide, window_sum
from .vjp.reduce import is_noop, known_axes

Spelling = Callable[[Graph, Node], Value]


def spelled_out(g: Graph, node: Node) -> Value:
    """What the node makes, emitted as sums, means, products, quotients and functions of one element."""
    if node.op in SPELLINGS:
        return SPELLINGS[node.op](g, node)
    schema = schema_of(node.op, "", g.opset)
    body = schema is not None and (schema.has_function or schema.has_context_dependent_function)
    made = inline(g, node)[0] if body else None
    if made is None:
        raise UnsupportedOp(f"no spelling of operator {node.op} (node {node.name!r}) in elementary ones is known")
    return made


def _inputs(node: Node) -> list[Value]:
    return [v for v in node.inputs if v is not None]


def layer_normalization(g: Graph, n: Node) -> Value:
    x, scale, *bias = _inputs(n)
    axes = list(range(n.attrs.get("axis", -1) % x.rank, x.rank))
    z = typed_like(g, standardised(g, wide(g, x), axes, n.attrs.get("epsilon", 1e-5))[0], x) * scale
    return z + bias[0] if bias else z


def rms_normalization(g: Graph, n: Node) -> Value:
    x, scale = _inputs(n)
    axes, w = list(range(n.attrs.get("axis", -1) % x.rank, x.rank)), wide(g, x)
    z = w / g.Sqrt(mean(g, w * w, axes) + n.attrs.get("epsilon", 1e-5))
    return typed_like(g, z, x) * scale


def instance_normalization(g: Graph, n: Node) -> Value:
    x, scale, bias = _inputs(n)
    z = typed_like(g, standardised(g, wide(g, x), list(range(2, x.rank)), n.attrs.get("epsilon", 1e-5))[0], x)
    return z * per_channel(g, scale, x) + per_channel(g, bias, x)


def group_normalization(g: Graph, n: Node) -> Value:
    """Before opset 21 there is one scale and one bias per group."""
    (x, scale, bias), groups = _inputs(n), n.attrs["num_groups"]
    grouped = g.Reshape(x, [0, groups, -1])
    z = typed_like(g, standardised(g, wide(g, grouped), [2], n.attrs.get("epsilon", 1e-5))[0], x)
    if scale.dim(0) == groups and g.opset < 21:
        return g.Reshape(z * per_channel(g, scale, grouped) + per_channel(g, bias, grouped), g.shape(x))
    return g.Reshape(z, g.shape(x)) * per_channel(g, scale, x) + per_channel(g, bias, x)


def mean_variance_normalization(g: Graph, n: Node) -> Value:
    (x,), axes = _inputs(n), list(n.attrs.get("axes", [0, 2, 3]))
    centred = x - mean(g, x, axes)
    return centred / (g.Sqrt(mean(g, centred * centred, axes)) + 1e-9)


def lp_normalization(g: Graph, n: Node) -> Value:
    """x / |x|_p; a norm of 0 counts as 1."""
    (x,), axis = _inputs(n), n.attrs.get("axis", -1)
    norm = g.ReduceSum(x * x, [axis], keepdims=1) if n.attrs.get("p", 2) == 2 else g.ReduceSum(g.Abs(x), [axis], keepdims=1)
    norm = norm + g.Where(g.Equal(norm, 0.0), g.const(1.0, x.dtype), 0.0)
    return x / (g.Sqrt(norm) if n.attrs.get("p", 2) == 2 else norm)


def length(g: Graph, n: Node) -> Value:
    """|x|_1 or |x|_2 over axes."""
    x, keep = _inputs(n)[0], n.attrs.get("keepdims", 1)
    if is_noop(n):
        return g.Abs(x)
    if n.op == "ReduceL1":
        return g.ReduceSum(g.Abs(x), known_axes(n), keepdims=keep)
    return g.Sqrt(g.ReduceSum(x * x, known_axes(n), keepdims=keep))


def lrn(g: Graph, n: Node) -> Value:
    """x (bias + alpha / size S x^2)^-beta, where S sums over a window of channels."""
    (x,), size = _inputs(n), n.attrs["size"]
    alpha, beta, bias = n.attrs.get("alpha", 1e-4), n.attrs.get("beta", 0.75), n.attrs.get("bias", 1.0)
    return x * g.Pow(bias + alpha / size * window_sum(g, x * x, size), -beta)


SPELLINGS: dict[str, Spelling] = {
    "LayerNormalization": layer_normalization,
    "RMSNormalization": rms_normalization,
    "InstanceNormalization": instance_normalization,
    "GroupNormalization": group_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "LpNormalization": lp_normalization,
    "LRN": lrn,
    "ReduceL1": length,
    "ReduceL2": length,
}
