"""Sampling between the elements of a tensor: GridSample, and what RoiAlign and DeformConv share with it.

The operator is written once more, as elements gathered and weighted along each axis, and that is pulled back: the
cotangents of values and of positions, and all higher derivatives, follow. At a kink (a position on an element, or on
the border) the derivative is the one from above.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from ..errors import UnsupportedOp
from ..graph import Graph, Node, Value
from .elementwise import operands, typed_like
from .function import through
from .geometry import extent
from .index import positions
from .registry import vjp

SPELLINGS = {"bilinear": "linear", "bicubic": "cubic"}  # before opset 20
CUBIC = -0.75


@dataclasses.dataclass(frozen=True)
class Taps:
    """Along one axis: the K elements that a position reads (int64), and their weights; both (..., K)."""

    where: Value
    weight: Value


@vjp("GridSample")
def grid_sample(g: Graph, n: Node, dy: Value) -> Sequence[Value | None]:
    return through(g, n, [sampled(g, n)], [dy])


def sampled(g: Graph, n: Node) -> Value:
    """GridSample: x (N, C, ...) read at grid (N, ..., axes), whose last coordinate belongs to x's first spatial axis.

    As in ONNX Runtime, positions are not clamped or reflected, the elements they read are: this differs from ONNX's
    reference for cubic.
    """
    (x, grid), taps = operands(n), []
    grid, mode, pad = typed_like(g, grid, x), str(n.attrs.get("mode", "linear")), n.attrs.get("padding_mode", "zeros")
    corners, axes = bool(n.attrs.get("align_corners", 0)), x.rank - 2
    for a in range(axes):
        size = extent(g, x, 2 + a)
        at, length = g.Gather(grid, axes - 1 - a, axis=-1), typed_like(g, size, x)
        at = (at + 1.0) / 2.0 * (length - 1.0) if corners else ((at + 1.0) * length - 1.0) / 2.0
        taps.append(padded(g, taps_at(g, n, at, SPELLINGS.get(mode, mode)), size, pad, corners))
    batch = g.Reshape(positions(g, extent(g, x, 0)), [-1] + [1] * axes)
    return channels_first(g, read(g, x, batch, taps))


def taps_at(g: Graph, n: Node, at: Value, mode: str) -> Taps:
    """The elements around each position: one (rounded half to even), two, or four."""
    if mode == "nearest":
        return Taps(whole(g, g.Unsqueeze(g.Round(at), [-1])), g.const([1.0], at.dtype))
    low = g.Floor(at)
    t, first = g.Unsqueeze(at - low, [-1]), whole(g, g.Unsqueeze(low, [-1]))
    if mode == "linear":
        return Taps(g.Add(first, [0, 1]), g.Concat(1.0 - t, t, axis=-1))
    if mode == "cubic":
        return Taps(g.Add(first, [-1, 0, 1, 2]), g.Concat(far(1.0 + t), near(t), near(1.0 - t), far(2.0 - t), axis=-1))
    raise UnsupportedOp(f"{n!r}: no derivative for mode {mode!r}; nearest, linear and cubic have one")


def near(t: Value) -> Value:
    """Keys' kernel at a distance of 0 to 1."""
    return ((CUBIC + 2) * t - (CUBIC + 3)) * t * t + 1.0


def far(t: Value) -> Value:
    """Keys' kernel at a distance of 1 to 2."""
    return ((CUBIC * t - 5 * CUBIC) * t + 8 * CUBIC) * t - 4 * CUBIC


def padded(g: Graph, taps: Taps, size: Value, mode: str, corners: bool) -> Taps:
    """Taps outside 0 .. size - 1: without weight (zeros), at the border, or reflected at it (at its elements' outer edge)."""
    where = taps.where
    inside = g.Max(g.Min(where, size - 1), 0)
    if mode == "zeros":
        return Taps(inside, g.Where(g.Equal(where, inside), taps.weight, 0.0))
    if mode == "border":
        return Taps(inside, taps.weight)
    period = g.Max(2 * size - 2, [1]) if corners else 2 * size
    phase = g.Mod(where, period)
    return Taps(g.Min(phase, period - phase if corners else period - 1 - phase), taps.weight)


def read(g: Graph, x: Value, batch: Value, taps: Sequence[Taps]) -> Value:
    """(..., C): the sum over all k1, k2, ... of weight1[k1] weight2[k2] ... x[batch, :, where1[k1], where2[k2], ...]."""
    products = weighted(g, x, batch, taps)
    last = products.rank - 1  # ONNX Runtime ignores negative axes where there is nothing to sum (no region, say)
    return g.ReduceSum(products, list(range(last - len(taps), last)), keepdims=0)


def weighted(g: Graph, x: Value, batch: Value, taps: Sequence[Taps]) -> Value:
    """(..., K1, K2, ..., C): what `read` sums."""
    axes, last = range(-len(taps), 0), len(taps)
    where, weights = g.Unsqueeze(batch, list(axes)), []
    for i, tap in enumerate(taps):
        others = [a for a in axes if a != i - last]
        there, weight = (g.Unsqueeze(v, others) if others else v for v in (tap.where, tap.weight))
        where = where * extent(g, x, 2 + i) + there
        weights.append(weight)
    weight = weights[0]
    for w in weights[1:]:
        weight = weight * w
    rows = g.Reshape(g.Transpose(x, perm=[0, *range(2, x.rank), 1]), g.Concat([-1], extent(g, x, 1), axis=0))
    return g.Gather(rows, where, axis=0) * g.Unsqueeze(weight, [-1])


def channels_first(g: Graph, y: Value) -> Value:
    """(N, ..., C) -> (N, C, ...)."""
    return g.Transpose(y, perm=[0, y.rank - 1, *range(1, y.rank - 1)])


def whole(g: Graph, v: Value) -> Value:
    return g.Cast(v, to=TensorProto.INT64)


def counted(g: Graph, size: int | Value, like: Value) -> Value:
    """0, 1, ... as floats; a constant when the size is known."""
    if isinstance(size, int):
        return g.const(np.arange(size), like.dtype)
    return typed_like(g, positions(g, size), like)
