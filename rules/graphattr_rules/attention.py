"""Relevance through what transformers are made of: normalisations, softmax, products of two data tensors."""

from typing import Literal

from graphattr.rule import Graph, Out, Site, Value, rule

from .lrp import quotient_of


@rule("lrp.norm", kinds={"norm"})
def norm(g: Graph, layer: Site, r: Value, *, layernorm: Literal["frozen", "identity"] = "frozen", eps: float = 1e-6) -> Value:
    """layernorm="frozen": epsilon rule, the deviation s constant: x (u - mean u), u = scale r / (s stab y); "identity": R_x = R.

    Ali et al. 2022 (frozen deviation); Achtibat et al. 2024 (identity).
    """
    if layernorm == "identity":
        return r
    s = quotient_of(g, r, layer.y, eps)
    layer.absorbed(stabiliser=lambda: r - s * layer.y)
    return layer.x * layer.frozen(s)


@rule("lrp.softmax", kinds={"softmax"})
def softmax(g: Graph, layer: Site, r: Value) -> Value:
    """R_u = u (R - s sum R) for s = softmax(u); 0 where u is -inf. Not conserving. Achtibat et al. 2024, Eq. 8."""
    (slope,) = layer.vjps(quotient_of(g, r, layer.y, 0.0))
    return g.Where(g.IsInf(layer.x), 0.0, g.Where(g.IsInf(layer.x), 0.0, layer.x) * slope)


@rule("lrp.bilinear", kinds={"bilinear"})
def bilinear(g: Graph, layer: Site, r: Value, *, eps: float = 1e-6) -> Out:
    """R_A = A (q B^T), R_B = B (A^T q) with q = r / stab(2 A B): half to each operand. Achtibat et al. 2024, Prop. 3.3."""
    s = quotient_of(g, r, 2.0 * layer.y, eps)
    layer.absorbed(stabiliser=lambda: r - 2.0 * s * layer.y)
    return tuple(x * back for x, back in zip(layer.xs, layer.vjps(s), strict=True))


@rule("lrp.bilinear_cp", kinds={"bilinear"})
def bilinear_cp(g: Graph, layer: Site, r: Value, *, eps: float = 1e-6) -> Out:
    """Attention probabilities count as constants: all relevance goes to the values, none to queries and keys. Ali et al. 2022."""
    gate = layer.gate
    if gate is None:
        return bilinear(g, layer, r, eps=eps)
    s = quotient_of(g, r, layer.y, eps)
    layer.absorbed(stabiliser=lambda: r - s * layer.y)
    return tuple(None if i == gate else x * back for i, (x, back) in enumerate(zip(layer.xs, layer.vjps(s), strict=True)))
