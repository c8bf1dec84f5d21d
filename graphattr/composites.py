"""Activations that exporters write as several operators: x sigmoid(x), x (1 + erf(x / sqrt 2)) / 2, tanh-GELU, Softshrink ...

Each is a region of elementwise nodes that leaves one tensor and meets again in one; the whole is a function of that tensor,
element by element, and relevance passes it as it passes any activation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from .graph import Graph, Node, Value

MEETS = {"Mul", "Div", "Where"}
UNARY = {"Neg", "Abs", "Exp", "Log", "Sqrt", "Erf", "Tanh", "Sigmoid", "Softplus", "HardSigmoid", "Relu", "Reciprocal", "Cast"}
ELEMENTWISE = MEETS | UNARY | {"Add", "Sub", "Sum", "Pow", "Clip", "Min", "Max"}
COMPARES = {"Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal", "And", "Or", "Not"}
LARGEST = 16  # nodes of a region


def elementwise_regions(
    g: Graph, data: Collection[Value], kept: Collection[Value], readers: Mapping[Value, Sequence[Node]]
) -> list[list[Node]]:
    """Regions as lists of nodes in order, the last of which makes the region's result; they do not overlap."""
    place = {id(n): i for i, n in enumerate(g.nodes)}
    regions: dict[int, list[Node]] = {}
    for node in g.nodes:
        meets = node.op in MEETS or _adds_pieces(g, node)
        if meets and not node.domain and sum(v in data for v in node.inputs if v is not None) > 1:
            found = _region(g, node, data, kept, readers, place)
            if found is not None:
                for inner in found:
                    regions.pop(id(inner), None)  # a smaller region that this one contains
                regions[id(node)] = found
    return list(regions.values())


def _adds_pieces(g: Graph, node: Node) -> bool:
    """A sum of Where(.., piece, 0): a function written piece by piece. Any other sum is a join of branches."""
    makers = [g.producer(v) if v is not None else None for v in node.inputs]
    return node.op in ("Add", "Sum") and all(
        m is not None and m.op == "Where" and not m.domain and any(_is_zero(v) for v in m.inputs[1:]) for m in makers
    )


def _is_zero(v: Value | None) -> bool:
    return v is not None and v.shape == () and v.data is not None and not v.data.any()


def _region(
    g: Graph,
    end: Node,
    data: Collection[Value],
    kept: Collection[Value],
    readers: Mapping[Value, Sequence[Node]],
    place: Mapping[int, int],
) -> list[Node] | None:
    """The nodes between `end` and the one tensor that all its operands come from; None when there is no such tensor nearby."""
    inside = {id(end): end}
    frontier = {v for v in end.inputs if v is not None and v in data}
    while len(frontier) > 1:
        makers = [(place[id(n)], n, v) for v in frontier if (n := g.producer(v)) is not None and id(n) in place]
        if not makers or len(inside) >= LARGEST:
            return None
        _, node, value = max(makers, key=lambda m: m[0])
        leaves = value in kept or any(id(r) not in inside for r in readers.get(value, ()))
        if node.op not in ELEMENTWISE or node.domain or leaves or len(node.outputs) > 1:
            return None
        inside[id(node)] = node
        frontier = (frontier - {value}) | {v for v in node.inputs if v is not None and v in data}
    (x,) = frontier
    fits = all(n.outputs[0].shape == x.shape and (n.op != "Where" or _chooses_by(g, n, x)) for n in inside.values())
    return sorted(inside.values(), key=lambda n: place[id(n)]) if fits else None


def _chooses_by(g: Graph, where: Node, x: Value) -> bool:
    """Whether a Where's condition comes from x alone, as in x > 0; a mask from elsewhere, or a constant, is no activation's."""
    leaves, stack, steps = set[Value](), list(where.inputs[:1]), 0
    while stack and steps < 2 * LARGEST:
        v, steps = stack.pop(), steps + 1
        node = None if v is None or v is x else g.producer(v)
        if node is not None and node.op in ELEMENTWISE | COMPARES and not node.domain:
            stack.extend(node.inputs)
        elif v is not None and not v.is_const:
            leaves.add(v)
    return leaves == {x} and not stack


def is_complement(node: Node) -> bool:
    """1 - x with the constant 1: as a factor it is a gate where x is one."""
    left = node.inputs[0] if node.op == "Sub" and not node.domain else None
    return left is not None and left.data is not None and bool(np.all(left.data == 1))
