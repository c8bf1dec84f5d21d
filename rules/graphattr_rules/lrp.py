"""Layer-wise relevance propagation: every rule shares r over the additive parts of a re-applied layer."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from graphattr.errors import MethodError
from graphattr.rule import Graph, Operand, Out, Site, Value, constant_like, fit, rule, total

Bias = Literal["absorb", "ignore"]
Part = tuple[Value | None, Value]


def share(g: Graph, layer: Site, r: Value, parts: Sequence[Part], bias: Value | None = None, eps: float = 1e-6) -> Value | None:
    """Share r over z = sum_i f(x_i; w_i) + bias:  sum_i x_i * f.vjp(r / stab(z); w_i). A part whose x is None is empty."""
    held = [(x, w) for x, w in parts if x is not None]
    if not held:
        return None
    z = total(g, [layer(x, w, bias if i == 0 else None) for i, (x, w) in enumerate(held)])
    assert z is not None
    s = quotient_of(g, r, z, eps)
    layer.absorbed(bias=lambda: s * bias_at_output(g, layer, bias), stabiliser=lambda: r - s * z)
    return total(g, [x * layer.vjp(s, x, w) for x, w in held])


def quotient_of(g: Graph, r: Value, z: Value, eps: float) -> Value:
    """r / (z + eps sgn(z)) with sgn(0) = 1; with eps = 0: r / z where z is not 0, else 0."""
    if eps < 0:
        raise MethodError(f"eps must not be negative, but is {eps}")
    if eps == 0:
        vanishes = g.Equal(z, 0.0)
        return g.Where(vanishes, 0.0, r / g.Where(vanishes, 1.0, z))
    return r / g.Where(z >= 0.0, z + eps, z - eps)


def bias_at_output(g: Graph, layer: Site, bias: Value | None) -> Value:
    """The bias as it enters the output: the layer at x = 0."""
    return layer(layer.x * 0.0, layer.w, bias)


def positive(g: Graph, layer: Site, v: Value) -> Value:
    return v if layer.nonnegative(v) else g.Relu(v)


def negative(g: Graph, layer: Site, v: Value) -> Value | None:
    """min(v, 0); None when v is known to be nonnegative."""
    return None if layer.nonnegative(v) else g.Min(v, 0.0)


def kept(layer: Site, bias: Bias) -> Value | None:
    return layer.b if bias == "absorb" else None


@rule("lrp.epsilon", kinds={"linear", "mean", "shift", "batchnorm", "sum"})
def epsilon(g: Graph, layer: Site, r: Value, *, eps: float = 1e-6, bias: Bias = "absorb") -> Out:
    """R_x = x * f.vjp(r / stab(z, eps)). Bach et al. 2015. Conserves the sum of r up to bias and eps."""
    if layer.layer.kind == "linear":
        return share(g, layer, r, [(layer.x, layer.w)], kept(layer, bias), eps)  # type: ignore[return-value]
    s = quotient_of(g, r, layer.y, eps)
    layer.absorbed(stabiliser=lambda: r - s * layer.y)
    if layer.layer.kind in ("shift", "batchnorm"):
        layer.absorbed(bias=lambda: s * layer(layer.x * 0.0))
    return tuple(x * back for x, back in zip(layer.xs, layer.vjps(s), strict=True))


@rule("lrp.gamma", kinds={"linear"})
def gamma(g: Graph, layer: Site, r: Value, *, gamma: float = 0.25, eps: float = 1e-6, bias: Bias = "absorb") -> Value:
    """Positive weights weigh 1 + gamma where z > 0, negative ones where z < 0. Montavon et al. 2019; Andeol et al. 2021."""
    x, w, b = layer.x, layer.w, kept(layer, bias)
    xp, xn = positive(g, layer, x), negative(g, layer, x)
    up, down = w + gamma * g.Relu(w), w + gamma * g.Min(w, 0.0)
    bp, bn = (None, None) if b is None else (b + gamma * g.Relu(b), b + gamma * g.Min(b, 0.0))
    z = layer.y  # its sign decides, bias included, even where bias="ignore" keeps the bias out of the denominators
    plus = share(g, layer, g.Where(z > 0.0, r, 0.0), [(xp, up), (xn, down)], bp, eps)
    minus = share(g, layer, g.Where(z < 0.0, r, 0.0), [(xp, down), (xn, up)], bn, eps)
    return plus + minus  # type: ignore[operator]


@rule("lrp.alpha_beta", kinds={"linear"})
def alpha_beta(
    g: Graph, layer: Site, r: Value, *, alpha: float = 2.0, beta: float = 1.0, eps: float = 1e-6, bias: Bias = "absorb"
) -> Value:
    """alpha times the share of positive contributions minus beta times the negative ones', alpha - beta = 1. Bach et al. 2015."""
    if abs(alpha - beta - 1) > 1e-9 or beta < 0:
        raise MethodError(f"lrp.alpha_beta needs alpha - beta = 1 and beta >= 0, not alpha={alpha}, beta={beta}")
    x, w, b = layer.x, layer.w, kept(layer, bias)
    xp, xn, wp, wn = positive(g, layer, x), negative(g, layer, x), g.Relu(w), g.Min(w, 0.0)
    plus = share(g, layer, r if alpha == 1 else alpha * r, [(xp, wp), (xn, wn)], None if b is None else g.Relu(b), eps)
    assert plus is not None
    if beta == 0:
        return plus
    minus = share(g, layer, -beta * r, [(xp, wn), (xn, wp)], None if b is None else g.Min(b, 0.0), eps)
    return plus + minus


@rule("lrp.zplus", kinds={"linear"})
def zplus(g: Graph, layer: Site, r: Value, *, eps: float = 1e-6, bias: Bias = "absorb") -> Value:
    """The share of positive contributions x_i w_ij: alpha_beta with alpha 1, beta 0. Montavon et al. 2017."""
    return alpha_beta(g, layer, r, alpha=1.0, beta=0.0, eps=eps, bias=bias)


@rule("lrp.wsquare", kinds={"linear"})
def wsquare(g: Graph, layer: Site, r: Value, *, eps: float = 1e-6, bias: Bias = "ignore") -> Value:
    """Shares by w^2, whatever x is; bias="absorb" adds b^2 to the denominator. Montavon et al. 2017."""
    b = None if bias == "ignore" or layer.b is None else layer.b * layer.b
    return by_weight(g, layer, r, layer.w * layer.w, b, eps)


@rule("lrp.flat", kinds={"linear"})
def flat(g: Graph, layer: Site, r: Value, *, eps: float = 1e-6) -> Value:
    """Shares equally over the inputs of each neuron. Lapuschkin et al. 2019."""
    return by_weight(g, layer, r, ones(g, layer.w), None, eps)


def by_weight(g: Graph, layer: Site, r: Value, w: Value, b: Value | None, eps: float) -> Value:
    """f.vjp(r / stab(f(1; w) + b); w): the input counts as ones."""
    one = ones(g, layer.x)
    z = layer(one, w, b)
    s = quotient_of(g, r, z, eps)
    layer.absorbed(bias=lambda: s * layer(layer.x * 0.0, w, b), stabiliser=lambda: r - s * z)
    return layer.vjp(s, one, w)


def ones(g: Graph, v: Value) -> Value:
    return g.ConstantOfShape(g.shape(v), value=np.ones(1, v.dtype))


@rule("lrp.zbox", kinds={"linear"})
def zbox(g: Graph, layer: Site, r: Value, *, low: Operand, high: Operand, eps: float = 1e-6) -> Value:
    """z^B: x w - low w+ - high w-, for inputs in [low, high] (the model's own units). Montavon et al. 2017."""
    x, w = layer.x, layer.w
    if np.any(np.asarray(low) > np.asarray(high)):
        raise MethodError(f"low must not exceed high, but low={low} and high={high}")
    lo, hi = (x * 0.0 + constant_like(g, x, v) for v in (low, high))
    return share(g, layer, r, [(x, w), (-lo, g.Relu(w)), (-hi, g.Min(w, 0.0))], None, eps)  # type: ignore[return-value]


@rule("lrp.pass", kinds={"relu", "smooth", "batchnorm", "norm", "scale", "shift", "structure"})
def pass_(g: Graph, layer: Site, r: Value) -> Value:
    """R_x = R."""
    return fit(g, r, layer.x)


@rule("lrp.batchnorm", kinds={"batchnorm"})
def batchnorm(g: Graph, layer: Site, r: Value, *, bn: Literal["affine", "pass"] = "affine", eps: float = 1e-6) -> Out:
    """bn="affine": the epsilon rule, the offset absorbed; "pass": R_x = R."""
    return r if bn == "pass" else epsilon(g, layer, r, eps=eps)


@rule("lrp.sum", kinds={"sum"})
def sum_(g: Graph, layer: Site, r: Value, *, add: Literal["z", "gradient", "half"] = "z", eps: float = 1e-6) -> Out:
    """Shares r over the summands: add="z" in proportion (epsilon rule), "half" equally, "gradient" r to each (not conserving)."""
    if add == "z":
        return epsilon(g, layer, r, eps=eps)
    share_of_each = 1.0 if add == "gradient" else 1.0 / len(layer.layer.nodes[0].inputs)
    back = tuple(fit(g, r * share_of_each, x) for x in layer.xs)
    return back if len(back) > 1 else back[0] * float(len(layer.layer.nodes[0].inputs))


@rule("lrp.scale", kinds={"scale"})
def scale(g: Graph, layer: Site, r: Value) -> Value:
    """R_x = R where the constant factor is not 0, else 0."""
    factor = layer(ones(g, layer.x))
    return fit(g, g.Where(g.Equal(factor, 0.0), 0.0, r), layer.x)


@rule("lrp.product", kinds={"product"})
def product(g: Graph, layer: Site, r: Value, *, mul: Literal["uniform", "gate"] = "uniform") -> Out:
    """mul="uniform": half to each operand; "gate": all to the signal, none to its gate.

    Achtibat et al. 2024, Prop. 3.2; Arras et al. 2017.
    """
    gate = layer.gate if mul == "gate" else None
    if gate is None or len(layer.xs) == 1:
        return tuple(r * (1.0 / len(layer.xs)) if len(layer.xs) > 1 else r for _ in layer.xs)
    return tuple(None if i == gate else r for i in range(len(layer.xs)))


@rule("lrp.quotient", kinds={"quotient"})
def quotient(g: Graph, layer: Site, r: Value) -> Out:
    """R_a = R, R_b = 0 for a / b, also where it is written a (1 / b): the divisor counts as a constant."""
    below = layer.graph.divisor(layer.layer)
    return tuple(None if x is below and len(layer.xs) > 1 else r for x in layer.xs)
