"""Elementwise operators."""

from __future__ import annotations

from ..graph import Graph, Node, Value
from .registry import vjp


@vjp("Relu")
def relu(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    (x,) = n.inputs
    return (g.Where(x > 0, dy, 0.0),)


@vjp("Mul")
def mul(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    a, b = n.inputs
    return (dy * b if 0 in n.needs else None, dy * a if 1 in n.needs else None)
