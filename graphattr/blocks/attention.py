"""Attention: softmax over the keys of scale q k^T (+ mask), times v, whatever stands between for the sake of shapes.

The axes of the scores are followed from the first product to the second: softmax must run over exactly the axis that the
second product sums over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..graph import Array, Node, Value
from ..layers import Layer
from .axes import Axis, joined, through, whole
from .block import VIEWS, Block, Miss, View, block

HIDDEN = -100.0  # a score with that much added is masked
REPEATS = {"Expand", "Tile"}  # of keys and values that several queries share


@dataclass(frozen=True)
class Product:
    """A product of two data tensors as an einsum: a letter per axis."""

    layer: Layer
    operands: tuple[Value, Value]
    letters: tuple[str, str]
    out: str

    def free(self, i: int) -> str:
        """Axes of the result that operand i alone has."""
        return "".join(c for c in self.out if c in self.letters[i] and c not in self.letters[1 - i])

    @property
    def contracted(self) -> str:
        return "".join(c for c in self.letters[0] if c in self.letters[1] and c not in self.out)

    @property
    def batch(self) -> str:
        return "".join(c for c in self.out if c in self.letters[0] and c in self.letters[1])


def attentions(view: View) -> Iterator[Block | Miss]:
    """softmax(scale q k^T + mask) v, and the operator of that name."""
    for layer in view.graph.layers:
        if layer.op == "Attention" and len(layer.nodes) == 1:
            yield _operator(view, layer)
        elif layer.kind == "softmax":
            found = _around(view, layer)
            if isinstance(found, Block):
                yield found
            elif found is not None:
                yield Miss("attention", layer.name, found)


def _around(view: View, softmax: Layer) -> Block | str | None:
    """The attention that a softmax is the heart of, why it is none, or None where nothing suggests one."""
    source, before = _scores(view, softmax.x)
    end, after = view.ahead(softmax.y)
    makers = view.made(source), view.sole(end)
    first, second = (_product(view, layer) for layer in makers)
    for layer, product in zip(makers, (first, second), strict=True):
        if layer is not None and layer.kind == "bilinear" and product is None:
            return f"the axes of the operands of {layer.op} {layer.name!r} are not known"
    if first is None and second is None:
        return None
    if second is None:
        return "what the softmax makes is not multiplied with values"
    if first is None:
        made = view.made(source)
        by = f"made by {made.op} {made.name!r}" if made is not None else f"the tensor {source.name!r}"
        return f"the scores are {by}, not a product of two data tensors"
    axes = _follow(view, [*before, softmax, *after], source, end, _axes_of(view, first))
    if isinstance(axes, str):
        return axes
    at_softmax, at_end = axes
    soft = at_softmax[softmax.nodes[0].attrs.get("axis", -1)]
    keys = next((i for i in (1, 0) if soft and soft == _axis_of(view, first, first.free(i))), None)
    if keys is None:
        return "the softmax does not run over the keys: its axis is no whole axis of the scores that comes from one factor"
    side = 0 if second.operands[0] is end else 1
    summed = joined([d for c in second.contracted for d in at_end[second.letters[side].index(c)]])
    if summed != soft:
        return "the product behind the softmax does not sum over the axis that the softmax runs over"
    return _found(view, first, second, softmax, (before, after), keys, second.operands[1 - side])


def _found(
    view: View, first: Product, second: Product, softmax: Layer, between: tuple[list[Layer], list[Layer]], keys: int, v: Value
) -> Block:
    """The block, with what its factors are made of."""
    q, k = first.operands[1 - keys], first.operands[keys]
    made = {role: _projected(view, x) for role, x in (("query", q), ("key", k), ("value", v))}
    scales = [_scale(view, between[0]), *(_scale(view, _unshifted(made[role][1])) for role in ("query", "key"))]
    scale = None if None in scales else float(f"{math.prod(s for s in scales if s is not None):.6g}")
    merged, behind = view.ahead(second.layer.y, (), {"Reshape", "Transpose", "Squeeze", "Flatten", "Unsqueeze"})
    inner = [*between[0], softmax, *between[1]]
    layers = [*(p for _, path, _ in made.values() for p in path), first.layer, *inner, second.layer, *behind]
    projections = {role: layer for role, (_, _, layer) in made.items() if layer is not None}
    layers = sorted({*layers, *projections.values()}, key=lambda layer: view.place(layer.nodes[-1]))
    depth = math.prod(_sizes(view, first).get(c, 1) for c in first.contracted)
    facts: dict[str, Any] = {"heads": _heads(view, first, 1 - keys, made["query"]), "width": depth, "scale": scale}
    facts |= {"key heads": _shared(view, projections, depth, facts["heads"])}
    facts |= {**_masks(view, between[0]), **_written(projections)}
    parts = {role: layer.name for role, layer in projections.items()}
    spelled = "+".join(layer.op for layer in (first.layer, softmax, second.layer))
    return block("attention", layers, made["query"][0], merged, facts, parts, spelled)


def _shared(view: View, projections: Mapping[str, Layer], depth: int, heads: int | None) -> int | None:
    """How many heads the keys have, where several heads of the queries share one."""
    if len(set(projections.values())) < 3 or heads is None:
        return None
    features = (view.probe.shape(projections["key"].y) or (0,))[-1]
    return features // depth if depth and 0 < features < heads * depth and features % depth == 0 else None


def _written(projections: Mapping[str, Layer]) -> dict[str, str]:
    if len(projections) < 3:
        return {}
    return {"projections": "one layer" if len(set(projections.values())) == 1 else "q, k, v"}


# -- the two products ---------------------------------------------------------------------------------------------
def _product(view: View, layer: Layer | None) -> Product | None:
    """A MatMul, Gemm or Einsum of two data tensors."""
    node = layer.nodes[0] if layer is not None and layer.kind == "bilinear" and len(layer.nodes) == 1 else None
    if node is None or layer is None or len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
        return None
    a, b = node.inputs[:2]
    assert a is not None
    assert b is not None
    if node.op == "Einsum":
        letters, out = _equation(node)
        return Product(layer, (a, b), letters, out) if out else None
    ranks = [len(view.probe.shape(v) or v.shape or ()) for v in (a, b)]
    if min(ranks) < 2 or node.op not in ("MatMul", "Gemm"):
        return None
    stack = "abcdefgh"[: max(ranks) - 2]
    left, right = ("ki" if node.attrs.get("transA") else "ik"), ("jk" if node.attrs.get("transB") else "kj")
    own = [stack[len(stack) - (r - 2) :] for r in ranks]
    return Product(layer, (a, b), (own[0] + left, own[1] + right), stack + "ij")


def _equation(node: Node) -> tuple[tuple[str, str], str]:
    """Letters of an Einsum's operands and result; empty where it has not two operands, or an ellipsis or a diagonal."""
    terms, _, out = str(node.attrs["equation"]).replace(" ", "").partition("->")
    first, _, second = terms.partition(",")
    plain = all(t.isalpha() and len(set(t)) == len(t) for t in (first, second, out))
    return ((first, second), out) if plain and len(node.inputs) == 2 else (("", ""), "")


def _sizes(view: View, product: Product) -> dict[str, int]:
    """How large each letter's axis is."""
    found: dict[str, int] = {}
    for v, letters in zip(product.operands, product.letters, strict=True):
        for c, size in zip(letters, view.probe.shape(v) or (), strict=False):
            found[c] = max(size, found.get(c, 1))
    return found


def _axes_of(view: View, product: Product) -> list[Axis]:
    sizes = _sizes(view, product)
    return [whole(c, sizes.get(c, 1)) for c in product.out]


def _axis_of(view: View, product: Product, letters: str) -> Axis:
    sizes = _sizes(view, product)
    return joined([d for c in letters for d in whole(c, sizes.get(c, 1))])


# -- what stands between ------------------------------------------------------------------------------------------
def _scores(view: View, v: Value) -> tuple[Value, list[Layer]]:
    """From the softmax up to the product: past what moves elements, scales them, or masks them."""
    source, path = view.back(v, ("scale", "shift"), {*VIEWS, "Where"})
    layer = view.made(source)
    if layer is not None and layer.nodes[0].op in ("Add", "Where") and len(layer.xs) > 1:  # the mask depends on data, too
        for x in layer.xs:
            start, more = _scores(view, x)
            if _product(view, view.made(start)) is not None:
                return start, [*more, layer, *path]
    return source, path


def _follow(view: View, path: Sequence[Layer], x: Value, end: Value, axes: list[Axis]) -> tuple[list[Axis], list[Axis]] | str:
    """The axes that the softmax sees, and those at the end of the path."""
    at_softmax: list[Axis] = []
    for layer in path:
        y = layer.y
        moved = through(layer.nodes[0], x, y, axes, view.probe) if len(layer.ys) == 1 else None
        if moved is None:
            return f"the axes of the scores cannot be followed through {layer.op} {layer.name!r}"
        if layer.kind == "softmax":
            at_softmax = axes
        x, axes = y, moved
    return at_softmax, axes


def _scale(view: View, path: Sequence[Layer]) -> float | None:
    """The number by which the path multiplies; None where it is no number."""
    factors = [view.factor(layer) for layer in path if layer.kind == "scale"]
    return None if None in factors else math.prod(f for f in factors if f is not None)


def _unshifted(path: Sequence[Layer]) -> Sequence[Layer]:
    """The path behind its last shift: what is in front of a bias scales the factor, not the scores."""
    last = max((i for i, layer in enumerate(path) if layer.kind == "shift"), default=-1)
    return path[last + 1 :]


def _masks(view: View, path: Sequence[Layer]) -> dict[str, bool]:
    """Whether scores are hidden, whether those of later keys are, and whether anything else is added to them."""
    found: dict[str, bool] = {}
    for layer in path:
        node = layer.nodes[0]
        if node.op == "Where":
            condition = view.probe.array(node.inputs[0])
            scores = next((i for i in (1, 2) if node.inputs[i] in layer.xs), 1)
            kept = None if condition is None else condition.astype(bool) == (scores == 1)
            found |= {"mask": True, **_causal(kept)}
        elif layer.kind in ("shift", "sum"):
            other = next((v for v in node.inputs if v is not layer.x and v not in {p.y for p in path}), None)
            added = view.probe.array(other)
            added = -added if added is not None and node.op == "Sub" else added
            if added is not None and (added > HIDDEN).all():
                found["bias"] = True
            else:
                found |= {"mask": True, **_causal(None if added is None else added > HIDDEN)}
    return found


def _causal(kept: Array | None) -> dict[str, bool]:
    if kept is None or kept.ndim < 2 or kept.shape[-1] < 2 or kept.shape[-1] != kept.shape[-2]:
        return {}
    return {"causal": True} if (kept == np.tri(kept.shape[-1], dtype=bool)).all() else {}


# -- what the factors are made of ---------------------------------------------------------------------------------
def _projected(view: View, v: Value) -> tuple[Value, list[Layer], Layer | None]:
    """(what is projected, the layers behind the projection, the projection); without one, where moving elements starts."""
    start, path = view.back(v, ("scale", "shift"), {*VIEWS, *REPEATS})
    layer = view.made(start)
    if layer is not None and layer.kind == "linear":
        return layer.x, path, layer
    start, path = view.back(v, ("scale",))
    return start, path, None


def _heads(view: View, first: Product, query: int, made: tuple[Value, list[Layer], Layer | None]) -> int | None:
    """Stacked products that are made of one feature axis; without a projection, the axis in front of queries and keys."""
    _, path, projection = made
    shape = view.probe.shape(projection.y) if projection is not None else None
    if projection is not None and shape is not None:
        channel = 1 if projection.nodes[0].op == "Conv" else len(shape) - 1
        axes: list[Axis] | None = [whole("feature" if i == channel else f"{i}", s) for i, s in enumerate(shape)]
        x = projection.y
        for i, layer in enumerate(path):
            y = first.operands[query] if i == len(path) - 1 else path[i + 1].x
            axes = None if axes is None else through(layer.nodes[0], x, y, axes, view.probe)
            x = y
        if axes is not None:
            stacked = [axes[first.letters[query].index(c)] for c in first.batch]
            return math.prod(d.size for a in stacked for d in a if d.origin[0] == "feature")
    scores = view.probe.shape(first.layer.y)
    return scores[-3] if scores is not None and len(scores) == 4 else None


def _operator(view: View, layer: Layer) -> Block:
    """The operator Attention."""
    node = layer.nodes[0]
    q = node.inputs[0]
    shape = view.probe.shape(q) if q is not None else None
    heads = node.attrs.get("q_num_heads") or (shape[1] if shape is not None and len(shape) == 4 else None)
    depth = None if shape is None or not heads else shape[-1] if len(shape) == 4 else shape[-1] // heads
    scale = node.attrs.get("scale") or (None if depth is None else 1 / math.sqrt(depth))
    masked = (len(node.inputs) > 3 and node.inputs[3] is not None) or None
    causal = bool(node.attrs.get("is_causal")) or None
    number = None if scale is None else float(f"{scale:.6g}")
    facts = {"heads": heads, "width": depth, "scale": number, "mask": masked or causal, "causal": causal}
    return block("attention", [layer], layer.x, layer.y, facts)
