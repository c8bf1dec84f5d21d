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
LARGEST = 16  # nodes of a region


def elementwise_regions(
    g: Graph, data: Collection[Value], kept: Collection[Value], readers: Mapping[Value, Sequence[Node]]
) -> list[list[Node]]:
    """Regions as lists of nodes in order, the last of which makes the region's result; they do not overlap."""
    place = {id(n): i for i, n in enumerate(g.nodes)}
    regions: dict[int, list[Node]] = {}
    for node in g.nodes:
        if node.op in MEETS and not node.domain and sum(v in data for v in node.inputs if v is not None) > 1:
            found = _region(g, node, data, kept, readers, place)
            if found is not None:
                for inner in found:
                    regions.pop(id(inner), None)  # a smaller region that this one contains
                regions[id(node)] = found
    return list(regions.values())


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
    same_shape = all(n.outputs[0].shape == next(iter(frontier)).shape for n in inside.values())
    return sorted(inside.values(), key=lambda n: place[id(n)]) if same_shape else None


def is_complement(node: Node) -> bool:
    """1 - x with the constant 1: as a factor it is a gate where x is one."""
    left = node.inputs[0] if node.op == "Sub" and not node.domain else None
    return left is not None and left.data is not None and bool(np.all(left.data == 1))
