"""Relevance through what transformers are made of: normalisations, softmax, products of two data tensors."""

from typing import Literal

import numpy as np

from graphattr.rule import Graph, Out, Site, Value, rule

from .lrp import quotient_of


@rule("lrp.norm", kinds={"norm"})
def norm(g: Graph, layer: Site, r: Value, *, layernorm: Literal["frozen", "identity"] = "frozen", eps: float = 1e-6) -> Out:
    """layernorm="frozen": epsilon rule, the deviation s constant: x (u - mean u), u = scale r / (s stab y); "identity": R_x = R.

    Ali et al. 2022 (frozen deviation); Achtibat et al. 2024 (identity).
    """
    x, back = layer.layer.nodes[0].inputs[0], r
    if layernorm == "frozen" and x in layer.xs:
        s = quotient_of(g, r, layer.y, eps)
        layer.absorbed(bias=lambda: s * shift(g, layer), stabiliser=lambda: r - s * layer.y)
        back = x * layer.frozen(s)
    return tuple(back if v is x else None for v in layer.xs)  # a scale or bias that is data counts as a constant too


def shift(g: Graph, layer: Site) -> Value:
    """What a normalisation adds: its value where x is the same everywhere."""
    norm = layer.layer.norm
    if norm is not None:
        return g.const(norm.shift.astype(layer.y.dtype))
    return layer(layer.x * 0.0) if len(layer.layer.nodes[0].inputs) > 2 else layer.y * 0.0


@rule("lrp.softmax", kinds={"softmax"})
def softmax(g: Graph, layer: Site, r: Value) -> Value:
    """R_u = u (R - s sum R) for s = softmax(u); 0 where u is -inf. Not conserving. Achtibat et al. 2024, Eq. 8."""
    axis = layer.layer.nodes[0].attrs.get("axis", -1)
    known = g.Where(g.Equal(g.Abs(layer.x), np.inf), 0.0, layer.x)  # IsInf takes no half precision before opset 20
    return known * (r - layer.y * g.ReduceSum(r, [axis], keepdims=1))


@rule("lrp.bilinear", kinds={"bilinear"})
def bilinear(g: Graph, layer: Site, r: Value, *, eps: float = 1e-6) -> Out:
    """R_A = A (q B^T), R_B = B (A^T q) with q = r / stab(2 A B): half to each operand. Achtibat et al. 2024, Prop. 3.3."""
    return shared(g, layer, r, None, eps)


@rule("lrp.bilinear_cp", kinds={"bilinear"})
def bilinear_cp(g: Graph, layer: Site, r: Value, *, eps: float = 1e-6) -> Out:
    """Attention probabilities count as constants: all relevance goes to the values, none to queries and keys. Ali et al. 2022."""
    return shared(g, layer, r, layer.graph.gate(layer.layer, {"Softmax"}), eps)


def shared(g: Graph, layer: Site, r: Value, constant: int | None, eps: float) -> Out:
    """r in equal parts to the factors of a product (an Einsum may have any number), one of which may count as a constant."""
    node = layer.layer.nodes[0]
    factors = node.inputs if node.op == "Einsum" else node.inputs[:2]
    parts = float(sum(v in layer.xs for v in factors) - (constant is not None)) or 1.0
    s = quotient_of(g, r, layer.y if parts == 1 else parts * layer.y, eps)
    layer.absorbed(stabiliser=lambda: r - parts * s * layer.y)
    return tuple(None if i == constant else x * back for i, (x, back) in enumerate(zip(layer.xs, layer.vjps(s), strict=True)))
