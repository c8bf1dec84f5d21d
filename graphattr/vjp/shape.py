"""Operators that move elements about: the cotangents are moved back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from ..graph import Graph, Node, Value
from .elementwise import operands
from .geometry import dims, extent
from .index import count, flat, positions, put, reshaped, zeros_like
from .registry import vjp

Cotangents = tuple[Value | None, ...]
Pads = dict[int, Value]


@vjp("Reshape", "Flatten")
def reshape(g: Graph, n: Node, dy: Value) -> Cotangents:
    x = operands(n)[0]
    return (reshaped(g, dy, x),)


@vjp("Squeeze")
def squeeze(g: Graph, n: Node, dy: Value) -> Cotangents:
    x, *axes = operands(n)
    return (g.emit("Unsqueeze", dy, *axes, out_shape=x.shape) if axes else reshaped(g, dy, x),)


@vjp("Unsqueeze")
def unsqueeze(g: Graph, n: Node, dy: Value) -> Cotangents:
    x, axes = operands(n)
    return (g.emit("Squeeze", dy, axes, out_shape=x.shape),)


@vjp("Transpose")
def transpose(g: Graph, n: Node, dy: Value) -> Cotangents:
    perm = n.attrs.get("perm") or list(range(dy.rank))[::-1]
    return (g.Transpose(dy, perm=[int(a) for a in np.argsort(perm)]),)


@vjp("Expand")
def expand(g: Graph, n: Node, dy: Value) -> Cotangents:
    """Broadcasting is undone by `fit`."""
    return (dy,)


@vjp("Tile")
def tile(g: Graph, n: Node, dy: Value) -> Cotangents:
    """The copies are summed: axis a of dy is taken as (repeats[a], size)."""
    x, repeats = operands(n)
    dims = [v for a in range(x.rank) for v in (item(g, repeats, a), extent(g, x, a))]
    copies = g.Reshape(dy, g.Concat(*dims, axis=0))
    return (g.emit("ReduceSum", copies, list(range(0, 2 * x.rank, 2)), keepdims=0, out_shape=x.shape),)


@vjp("Concat")
def concat(g: Graph, n: Node, dy: Value) -> Cotangents:
    axis, start, found = n.attrs["axis"] % dy.rank, g.const([0]), []
    for i, x in enumerate(operands(n)):
        end = start + extent(g, x, axis)
        found.append(g.emit("Slice", dy, start, end, [axis], out_shape=x.shape) if i in n.needs else None)
        start = end
    return tuple(found)


@vjp("Split", many=True)
def split(g: Graph, n: Node, dys: Sequence[Value | None]) -> Cotangents:
    x = operands(n)[0]
    parts = [dy if dy is not None else zeros_like(g, y) for dy, y in zip(dys, n.outputs, strict=True)]
    return (g.emit("Concat", *parts, axis=n.attrs.get("axis", 0), out_shape=x.shape),)


@vjp("Slice")
def slice_(g: Graph, n: Node, dy: Value) -> Cotangents:
    """Axes of step 1 are padded with zeros; on the others dy is put where the same Slice of 0, 1, 2, ... reads."""
    x, starts, ends = operands(n)[:3]
    axes, steps = (*n.inputs[3:], None, None)[:2]
    named = listed(x, axes, starts)
    if named is None:
        return (scattered(g, dy, g.Slice(numbered(g, x), *n.inputs[1:]), x)[0],)
    before, after = [g.const([0])] * x.rank, [g.const([0])] * x.rank
    for i, a in enumerate(named):
        size, step = extent(g, x, a), item(g, steps, i) if steps is not None else g.const([1])
        if step.content != (1,):
            where = g.Slice(positions(g, size), item(g, starts, i), item(g, ends, i), [0], step)
            dy = put(g, dy, where, size, a)
        elif dims(x)[a] != dims(dy)[a]:
            before[a] = clamped(g, item(g, starts, i), size)
            after[a] = size - before[a] - extent(g, dy, a)
    if all(v.content == (0,) for v in (*before, *after)):
        return (dy,)
    return (g.emit("Pad", dy, g.Concat(*before, *after, axis=0), 0.0, out_shape=x.shape),)


def clamped(g: Graph, start: Value, size: Value) -> Value:
    """A Slice's start as a position in 0 .. size."""
    if start.content == (0,):
        return start
    known = isinstance(start.content, tuple) and isinstance(start.content[0], int)
    if not known:
        start = g.Where(start < 0, start + size, start)
    elif start.content[0] < 0:  # type: ignore[index,operator]
        start = start + size
    return g.Max(g.Min(start, size), [0])


def listed(x: Value, axes: Value | None, counted: Value, per_axis: int = 1) -> list[int] | None:
    """The axes a node names by an input (all the leading ones by default), counted from 0; None where only the run can tell."""
    count = (counted.shape or (None,))[0]
    known = axes.content if axes is not None else tuple(range(count // per_axis)) if isinstance(count, int) else None
    if x.shape is None or not isinstance(known, tuple) or not all(isinstance(a, int) for a in known):
        return None
    return [a % x.rank for a in known if isinstance(a, int)]


def numbered(g: Graph, x: Value) -> Value:
    """0, 1, 2, ... in the shape of x: whatever moves elements about tells by these where each came from."""
    return reshaped(g, positions(g, count(g, x)), x)


def scattered(g: Graph, dy: Value, origin: Value, x: Value) -> tuple[Value, Value]:
    """dy added where `origin` says that it came from; and the sum of what came from nowhere, numbered one beyond x."""
    size = count(g, x)
    sums = put(g, flat(g, dy), flat(g, origin), size + 1, 0)
    return reshaped(g, g.Slice(sums, [0], size), x), g.Slice(sums, size, size + 1)


def item(g: Graph, v: Value, i: int) -> Value:
    """Element i of a vector, as an int64 tensor of one element (a constant when known)."""
    return g.Slice(v if v.dtype == np.int64 else g.Cast(v, to=TensorProto.INT64), [i], [i + 1])


@vjp("Pad")
def pad(g: Graph, n: Node, dy: Value) -> Cotangents:
    """Constant: what was added is cut off. Other modes: dy is added where the same Pad of 0, 1, 2, ... reads."""
    x, pads = operands(n)[:2]
    value, axes = (*n.inputs[2:], None, None)[:2]
    named, constant = listed(x, axes, pads, 2), n.attrs.get("mode", "constant") == "constant"
    if named is None:
        fill = g.Squeeze(count(g, x), [0]) if constant else None
        dx, rest = scattered(g, dy, g.Pad(numbered(g, x), pads, fill, *n.inputs[3:], **n.attrs), x)
        return dx, None, reshaped(g, rest, value) if value is not None else None
    before = {a: item(g, pads, i) for i, a in enumerate(named)}
    after = {a: item(g, pads, i + len(named)) for i, a in enumerate(named)}
    if constant:
        return _unpad(g, n, dy, x, value, before, after)
    for a in named:
        if (before[a].content, after[a].content) != ((0,), (0,)):
            size = extent(g, x, a)
            where = g.Pad(positions(g, size), g.Concat(before[a], after[a], axis=0), mode=n.attrs["mode"])
            dy = put(g, dy, where, size, a)
    return (dy,)


def _unpad(g: Graph, n: Node, dy: Value, x: Value, value: Value | None, before: Pads, after: Pads) -> Cotangents:
    """dx = dy without the pads (negative pads had cut: zeros there);  d value = the sum of dy over the pads."""
    axes = [a for a in before if (before[a].content, after[a].content) != ((0,), (0,))]
    if not axes:
        return (dy,)
    starts = [g.Max(before[a], [0]) for a in axes]
    ends = [extent(g, dy, a) - after[a] for a in axes]  # a Slice stops at the end anyway
    signs = [v.content[0] if isinstance(v.content, tuple) else None for a in axes for v in (before[a], after[a])]
    cuts = any(not isinstance(s, int) or s < 0 for s in signs)
    inside = g.emit("Slice", dy, g.Concat(*starts, axis=0), g.Concat(*ends, axis=0), axes, out_shape=None if cuts else x.shape)
    dvalue = None
    if value is not None and 2 in n.needs:
        dvalue = reshaped(g, g.ReduceSum(dy, keepdims=0) - g.ReduceSum(inside, keepdims=0), value)
    if cuts:
        back = [g.Max(-v[a], [0]) if a in axes else g.const([0]) for v in (before, after) for a in range(x.rank)]
        inside = g.emit("Pad", inside, g.Concat(*back, axis=0), 0.0, out_shape=x.shape)
    return inside, None, dvalue


@vjp("DepthToSpace")
def depth_to_space(g: Graph, n: Node, dy: Value) -> Cotangents:
    """DCR is the inverse of SpaceToDepth; CRD has the channel first: (N, C, H, b, W, b) -> (N, C, b, b, H, W)."""
    (x,), b = operands(n), n.attrs["blocksize"]
    if n.attrs.get("mode", "DCR") == "DCR":
        return (g.emit("SpaceToDepth", dy, blocksize=b, out_shape=x.shape),)
    batch, channels, height, width = (extent(g, v, a) for v, a in ((dy, 0), (dy, 1), (x, 2), (x, 3)))
    blocks = g.Reshape(dy, g.Concat(batch, channels, height, [b], width, [b], axis=0))
    return (reshaped(g, g.Transpose(blocks, perm=[0, 1, 3, 5, 2, 4]), x),)


@vjp("SpaceToDepth")
def space_to_depth(g: Graph, n: Node, dy: Value) -> Cotangents:
    (x,) = operands(n)
    return (g.emit("DepthToSpace", dy, blocksize=n.attrs["blocksize"], out_shape=x.shape),)


@vjp("Trilu")
def trilu(g: Graph, n: Node, dy: Value) -> Cotangents:
    return (g.Trilu(dy, *n.inputs[1:], upper=n.attrs.get("upper", 1)),)


@vjp("ReverseSequence")
def reverse_sequence(g: Graph, n: Node, dy: Value) -> Cotangents:
    """Reversing twice is doing nothing."""
    return (g.ReverseSequence(dy, n.inputs[1], **n.attrs),)
