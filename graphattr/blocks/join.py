"""Residual joins: x + f(x), where x may pass a projection of its own."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from ..graph import Value
from ..layers import Layer
from .block import Block, Miss, View, block

ADDS = {"Add", "Sum"}
PROJECTS = {"linear", "scale", "shift", "batchnorm", "mean", "structure"}
MOST_SHORTCUT = 4  # layers on the shorter way round
FURTHEST = 512  # values looked back at


def residuals(view: View) -> Iterator[Block | Miss]:
    """Sums of which one term is computed from another, or from what another is a projection of."""
    for layer in view.graph.layers:
        terms, layers = _terms(view, layer)
        if len(terms) < 2:
            continue
        found = _skip(view, terms)
        if found is None:
            if layer.kind == "mean":
                yield Miss("residual join", layer.name, "no part that is stacked and summed is computed from another")
            continue
        skip, shortcut = found
        parts = {"skip": skip.name, **({"shortcut": ", ".join(s.name for s in shortcut)} if shortcut else {})}
        yield block("residual join", layers, skip, layers[-1].y, {"projected": bool(shortcut) or None}, parts)


def _terms(view: View, layer: Layer) -> tuple[list[Value], list[Layer]]:
    """What a layer adds up: the operands of Add and Sum, or the parts of a stack whose axis is summed."""
    if layer.kind == "sum" and layer.op in ADDS:
        return list(layer.xs), [layer]
    stack = view.made(layer.x) if layer.kind == "mean" and layer.op == "ReduceSum" else None
    if stack is None or stack.op != "Concat":
        return [], []
    node, axes = stack.nodes[0], view.reduced(layer.nodes[0])
    whole, shapes = view.probe.shape(stack.y), [view.probe.shape(v) for v in stack.xs]
    if whole is None or axes != (int(node.attrs["axis"]) % len(whole),) or len(stack.xs) != len(node.inputs):
        return [], []
    if any(s is None or s[axes[0]] != 1 for s in shapes):
        return [], []
    parts = [view.back(v, (), {"Unsqueeze", "Reshape"}) for v in stack.xs]
    return [v for v, _ in parts], [*(p for _, path in parts for p in path), stack, layer]


def _skip(view: View, terms: Sequence[Value]) -> tuple[Value, list[Layer]] | None:
    """The value that goes round, and the layers of its own that it passes."""
    above = {v: set(itertools.islice(view.above(v), FURTHEST)) for v in terms}
    for i, term in enumerate(terms):
        if any(term in above[other] for j, other in enumerate(terms) if j != i and other is not term):
            return term, []
    for i, term in enumerate(terms):
        _, path = view.back(term, PROJECTS, ())
        for n in range(min(len(path), MOST_SHORTCUT), 0, -1):
            way = path[-n:]
            others = [o for j, o in enumerate(terms) if j != i]
            if any(s.kind == "linear" for s in way) and any(_longer(view, o, way[0].x, above[o], n) for o in others):
                return way[0].x, way
    return None


def _longer(view: View, v: Value, x: Value, above: set[Value], least: int) -> bool:
    """Whether v is computed from x by more layers than the shortcut has."""
    if x not in above:
        return False
    steps, here = 0, {v}
    while here and x not in here:
        steps += 1
        here = {w for h in here for layer in [view.made(h)] if layer is not None for w in layer.xs if w in above}
    return steps > least
