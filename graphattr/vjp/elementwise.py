"""Elementwise operators. At a kink: Relu and Clip have derivative 0, LeakyRelu and PRelu their slope, Abs 0."""

from __future__ import annotations

import math
from collections.abc import Callable

from onnx.helper import np_dtype_to_tensor_dtype

from ..errors import UnsupportedOp
from ..graph import Graph, Node, Operand, Value
from .registry import vjp

Derivative = Callable[[Graph, Value, Value], Operand]


def operands(n: Node) -> tuple[Value, ...]:
    """The inputs that are present."""
    return tuple(x for x in n.inputs if x is not None)


def typed_like(g: Graph, v: Value, x: Value) -> Value:
    """v in the dtype of x."""
    assert x.dtype is not None
    return v if v.dtype == x.dtype else g.Cast(v, to=np_dtype_to_tensor_dtype(x.dtype))


# -- functions of one input without parameters: dx = dy * f'(x), written in x and y = f(x) ------------------------
SLOPES: dict[str, Derivative] = {
    "Abs": lambda g, x, y: g.Sign(x),
    "Acos": lambda g, x, y: -1.0 / g.Sqrt(1.0 - x * x),
    "Acosh": lambda g, x, y: 1.0 / g.Sqrt((x - 1.0) * (x + 1.0)),
    "Asin": lambda g, x, y: 1.0 / g.Sqrt(1.0 - x * x),
    "Asinh": lambda g, x, y: 1.0 / g.Cosh(y),
    "Atan": lambda g, x, y: 1.0 / (1.0 + x * x),
    "Atanh": lambda g, x, y: 1.0 / (1.0 - x * x),
    "Cos": lambda g, x, y: -g.Sin(x),
    "Cosh": lambda g, x, y: g.Sinh(x),
    "Erf": lambda g, x, y: 2 / math.sqrt(math.pi) * g.Exp(-(x * x)),
    "Exp": lambda g, x, y: y,
    "Log": lambda g, x, y: g.Reciprocal(x),
    "Reciprocal": lambda g, x, y: -(y * y),
    "Sigmoid": lambda g, x, y: y * (1.0 - y),
    "Sin": lambda g, x, y: g.Cos(x),
    "Sinh": lambda g, x, y: g.Cosh(x),
    "Softplus": lambda g, x, y: g.Sigmoid(x),
    "Sqrt": lambda g, x, y: 0.5 / y,
    "Tan": lambda g, x, y: 1.0 + y * y,
    "Tanh": lambda g, x, y: 1.0 - y * y,
}


@vjp(*SLOPES)
def unary(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """dx = dy f'(x)."""
    (x,) = operands(n)
    return (dy * SLOPES[n.op](g, x, n.outputs[0]),)


@vjp("Softsign")
def softsign(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """dx = dy / (1 + |x|)^2."""
    (x,) = operands(n)
    size = 1.0 + g.Abs(x)
    return (dy / size / size,)


# -- rectifiers ---------------------------------------------------------------------------------------------------
@vjp("Relu")
def relu(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """dx = dy 1[x > 0]."""
    (x,) = operands(n)
    return (g.Where(x > 0.0, dy, 0.0),)


@vjp("LeakyRelu")
def leaky_relu(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """dx = dy where x > 0, else alpha dy."""
    (x,) = operands(n)
    return (g.Where(x > 0.0, dy, n.attrs.get("alpha", 0.01) * dy),)


@vjp("PRelu")
def prelu(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """dx = dy where x > 0, else slope dy; dslope = dy min(x, 0)."""
    x, slope = operands(n)
    return (g.Where(x > 0.0, dy, slope * dy), g.Where(x > 0.0, 0.0, x * dy) if 1 in n.needs else None)


@vjp("Elu", "Selu", "Celu")
def elu(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """dx = gamma dy where x > 0, else gamma alpha e^x dy; for Celu e^(x / alpha) dy."""
    (x,) = operands(n)
    alpha = n.attrs.get("alpha", 1.67326319217681884765625 if n.op == "Selu" else 1.0)
    gamma = n.attrs.get("gamma", 1.05070102214813232421875) if n.op == "Selu" else 1.0
    low = g.Min(x, 0.0)
    slope = g.Exp(low / alpha) if n.op == "Celu" else alpha * g.Exp(low)
    dx = g.Where(x > 0.0, dy, slope * dy)
    return (gamma * dx if gamma != 1.0 else dx,)


@vjp("ThresholdedRelu")
def thresholded_relu(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """dx = dy 1[x > alpha]."""
    (x,) = operands(n)
    return (g.Where(x > n.attrs.get("alpha", 1.0), dy, 0.0),)


@vjp("Clip")
def clip(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """y = min(max(x, low), high): dx = dy 1[low < x < high], dlow = dy 1[x < low < high], dhigh = dy 1[max(x, low) > high]."""
    x, low, high = (*n.inputs, None, None)[:3]
    assert x is not None
    dx, dlow, dhigh = dy, dy, None
    if low is not None:
        dx, dlow = g.Where(x > low, dx, 0.0), g.Where(x < low, dy, 0.0)
    if high is not None:
        dx, dlow = g.Where(x < high, dx, 0.0), dlow if low is None else g.Where(low < high, dlow, 0.0)
        dhigh = g.Where((x if low is None else g.Max(x, low)) > high, dy, 0.0)
    return (dx, dlow, dhigh)[:len(n.inputs)]


@vjp("HardSigmoid")
def hard_sigmoid(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """dx = alpha dy 1[0 < y < 1]."""
    (y,) = n.outputs
    return (g.Where(g.And(y > 0.0, y < 1.0), n.attrs.get("alpha", 0.2) * dy, 0.0),)


@vjp("HardSwish")
def hard_swish(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """y = x s, s = clip(x / 6 + 1/2, 0, 1): dx = dy (s + x / 6 1[0 < s < 1])."""
    (x,) = operands(n)
    s = g.HardSigmoid(x, alpha=1 / 6, beta=0.5)
    return (dy * (s + g.Where(g.And(s > 0.0, s < 1.0), x / 6.0, 0.0)),)


# -- smooth activations -------------------------------------------------------------------------------------------
@vjp("Mish")
def mish(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """y = x t, t = tanh(softplus(x)): dx = dy (t + x (1 - t^2) sigmoid(x))."""
    (x,) = operands(n)
    t = g.Tanh(g.Softplus(x))
    return (dy * (t + x * (1.0 - t * t) * g.Sigmoid(x)),)


@vjp("Gelu")
def gelu(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """y = x Phi(x): dx = dy (Phi(x) + x Phi'(x)). Both are flat beyond 30, where the powers of x might overflow."""
    z = g.Clip(operands(n)[0], -30.0, 30.0)
    if n.attrs.get("approximate", "none") == "tanh":
        c = math.sqrt(2 / math.pi)
        t = g.Tanh(c * (z + 0.044715 * (z * z * z)))
        return (dy * (0.5 * (1.0 + t) + 0.5 * z * (1.0 - t * t) * (c + 3 * 0.044715 * c * (z * z))),)
    return (dy * (0.5 * (1.0 + g.Erf(z / math.sqrt(2))) + z * g.Exp(-0.5 * (z * z)) / math.sqrt(2 * math.pi)),)


@vjp("Swish")
def swish(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """y = x s, s = sigmoid(alpha x): dx = dy (s + alpha y (1 - s))."""
    (x,), (y,), alpha = operands(n), n.outputs, n.attrs.get("alpha", 1.0)
    s = g.Sigmoid(alpha * x)
    return (dy * (s + alpha * (y * (1.0 - s))),)


# -- arithmetic ---------------------------------------------------------------------------------------------------
@vjp("Neg")
def neg(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    return (-dy,)


@vjp("Add", "Sum")
def add(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    return (dy,) * len(n.inputs)


@vjp("Sub")
def sub(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    return (dy, -dy if 1 in n.needs else None)


@vjp("Mul")
def mul(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    a, b = operands(n)
    return (dy * b if 0 in n.needs else None, dy * a if 1 in n.needs else None)


@vjp("Div")
def div(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """y = a / b: da = dy / b, db = -y da."""
    _, b = operands(n)
    da = dy / b
    return (da, -(da * n.outputs[0]) if 1 in n.needs else None)


@vjp("Mean")
def mean(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    return (dy / float(len(n.inputs)),) * len(n.inputs)


@vjp("Mod")
def mod(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """y = a - k b with an integer k, constant almost everywhere: da = dy, db = -k dy."""
    a, b = operands(n)
    return (dy, -(dy * g.Round((a - n.outputs[0]) / b)) if 1 in n.needs else None)


@vjp("Pow")
def power(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """y = x^p: dx = dy p x^(p-1), 0 for p = 0; dp = dy y log x, 0 where x <= 0."""
    x, p = operands(n)
    dx = dp = None
    if 0 in n.needs and p.data is not None and p.data.ndim == 0:
        exponent = float(p.data)
        dx = dy * exponent * (g.Pow(x, exponent - 1) if exponent not in (0, 1, 2) else x if exponent == 2 else 1.0)
    elif 0 in n.needs:
        real = typed_like(g, p, x)
        dx = dy * real * g.Pow(x, g.Where(g.Equal(real, 0.0), 0.0, real - 1.0))
    if 1 in n.needs:
        positive = x > 0.0
        dp = g.Where(positive, dy * n.outputs[0] * g.Log(g.Where(positive, x, 1.0)), 0.0)
    return (dx, dp)


@vjp("Max", "Min")
def extremum(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """The first operand equal to y takes dy, element by element."""
    dxs = []
    for x in operands(n)[:-1]:
        wins = g.Equal(x, n.outputs[0])
        dxs.append(g.Where(wins, dy, 0.0))
        dy = g.Where(wins, 0.0, dy)
    return (*dxs, dy)


@vjp("Where")
def where(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    condition, *_ = operands(n)
    return (None, g.Where(condition, dy, 0.0), g.Where(condition, 0.0, dy))


# -- types --------------------------------------------------------------------------------------------------------
@vjp("Cast", "CastLike", "Identity")
def cast(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """dx = dy; `fit` gives it the dtype of x."""
    return (dy,)


@vjp("Dropout")
def dropout(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """The identity, as in inference, or where nothing is dropped."""
    _, ratio, training = (*n.inputs, None, None)[:3]
    if ratio is not None and ratio.data is not None and not ratio.data.any():
        return (dy,)
    if training is not None and (training.data is None or training.data.any()):
        raise UnsupportedOp(f"Dropout node {n.name!r} may be in training mode; export the model for inference")
    return (dy,)
