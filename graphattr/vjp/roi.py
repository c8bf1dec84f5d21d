"""Regions of interest: RoiAlign and MaxRoiPool. Along each axis a bin reads some elements: their sum counts, or the largest."""

from __future__ import annotations

from collections.abc import Sequence

from ..graph import Graph, Node, Value
from .elementwise import operands, typed_like
from .function import through
from .geometry import extent
from .index import add_at, flat, zeros
from .reduce import reduction
from .registry import vjp
from .sample import Taps, channels_first, counted, padded, taps_at, weighted, whole


@vjp("RoiAlign")
def roi_align(g: Graph, n: Node, dy: Value) -> Sequence[Value | None]:
    return through(g, n, [aligned(g, n)], [dy])


@vjp("MaxRoiPool")
def max_roi_pool(g: Graph, n: Node, dy: Value) -> Sequence[Value | None]:
    """dy goes to the largest element of each bin; the regions are rounded, so they have no cotangent."""
    return through(g, n, [max_pooled(g, n)], [dy])


def aligned(g: Graph, n: Node) -> Value:
    """RoiAlign: the mean, or for max the largest, over a grid of samples in each bin, which are interpolated linearly.

    As in ONNX Runtime and ONNX's reference, max is the largest weighted element, not the largest sample.
    """
    x, _, batch = operands(n)
    height, width = n.attrs.get("output_height", 1), n.attrs.get("output_width", 1)
    pool = largest_of if mode(n) == "max" else sum_of
    return pool(g, x, g.Reshape(whole(g, batch), [-1, 1, 1]), samples(g, n, 1, height), samples(g, n, 0, width))


def mode(n: Node) -> str:
    return str(n.attrs.get("mode", "avg"))


def sum_of(g: Graph, x: Value, batch: Value, rows: Taps, columns: Taps) -> Value:
    """(R, C, height, width): rows (R, height, H) x[batch] columns^T (R, W, width), as products of dense matrices.

    The columns of all images stand side by side, so that no region copies its image: two products are faster than reading
    each sample, and very much faster back, where scattered samples would have to be added up one by one.
    """
    size, sides = extent(g, x, 3), [extent(g, x, a) for a in range(4)]
    wide = matrix(g, Taps(columns.where + batch * size, columns.weight), sides[0] * size)
    tall = matrix(g, rows, sides[2])
    lines = g.Reshape(g.Transpose(x, perm=[0, 3, 2, 1]), g.Concat(sides[0] * size, sides[2] * sides[1], axis=0))
    regions, bins = extent(g, wide, 0), extent(g, wide, 1)
    flat_wide = g.Reshape(wide, g.Concat(regions * bins, sides[0] * size, axis=0))
    crossed = g.Reshape(g.MatMul(flat_wide, lines), g.Concat(regions, bins, sides[2], sides[1], axis=0))
    return g.Transpose(g.MatMul(g.Unsqueeze(tall, [1]), crossed), perm=[0, 3, 2, 1])


def matrix(g: Graph, taps: Taps, size: Value) -> Value:
    """(R, bins, size): the taps' weights where they belong, elsewhere 0."""
    shape = g.Concat(g.emit("Shape", taps.weight, end=2), size, axis=0)
    return add_at(g, zeros(g, shape, taps.weight), taps.where, taps.weight, 2)


def largest_of(g: Graph, x: Value, batch: Value, rows: Taps, columns: Taps) -> Value:
    """(R, C, height, width): the largest weighted element of rows (R, height, K) and columns (R, width, K)."""
    taps = [Taps(g.Unsqueeze(t.where, [a]), g.Unsqueeze(t.weight, [a])) for t, a in ((rows, 2), (columns, 1))]
    return channels_first(g, reduction(g, "ReduceMax", weighted(g, x, batch, taps), [3, 4], keepdims=0))


def samples(g: Graph, n: Node, axis: int, bins: int) -> Taps:
    """Along x (axis 0) or y (1): the elements around the samples of each bin, (R, bins, 2 * samples).

    The number of samples may differ between regions. A surplus one has no weight; for max it repeats the last.
    """
    (x, rois, _), ratio = operands(n), n.attrs.get("sampling_ratio", 0)
    size, (start, length) = extent(g, x, 3 - axis), span(g, n, axis)
    step = length / float(bins)
    number = g.const(float(ratio), x.dtype) if ratio > 0 else g.Ceil(step)
    some, most = g.Max(number, 1.0), g.const([ratio]) if ratio > 0 else largest(g, number)
    k = counted(g, ratio or most, x)
    at = start + step * g.Unsqueeze(counted(g, bins, x), [1]) + (g.Min(k, some - 1.0) + 0.5) * (step / some)
    used = g.And(g.And(at >= -1.0, at <= typed_like(g, size, x)), (number if mode(n) == "max" else number - k) > 0.0)
    inner = g.Max(g.Min(at, typed_like(g, size, x) - 1.0), 0.0)
    taps = padded(g, taps_at(g, n, inner, "linear"), size, "border", False)
    weight = g.Where(g.Unsqueeze(used, [-1]), taps.weight if mode(n) == "max" else taps.weight / g.Unsqueeze(some, [-1]), 0.0)
    shape = g.Concat(extent(g, rois, 0), [bins], 2 * most, axis=0)
    return Taps(g.Reshape(taps.where, shape), g.Reshape(weight, shape))


def span(g: Graph, n: Node, axis: int) -> tuple[Value, Value]:
    """Start and length of the regions along x (axis 0) or y (1), each (R, 1, 1); before opset 16 they were not shifted."""
    rois, scale = operands(n)[1], n.attrs.get("spatial_scale", 1.0)
    start, end = (g.Unsqueeze(g.Gather(rois, i, axis=1), [1, 2]) * scale for i in (axis, 2 + axis))
    if n.attrs.get("coordinate_transformation_mode", "half_pixel") == "half_pixel":
        return start - 0.5, end - start
    return start, g.Max(end - start, 1.0)


def largest(g: Graph, v: Value) -> Value:
    """The largest element as an int64 tensor of one element; at least 1, also where there is none."""
    return whole(g, g.Reshape(g.ReduceMax(g.Concat(flat(g, v), g.const([1.0], v.dtype), axis=0)), [1]))


def max_pooled(g: Graph, n: Node) -> Value:
    """MaxRoiPool: the largest element of each bin, 0 for an empty one."""
    x, rois = operands(n)
    height, width = n.attrs["pooled_shape"]
    batch = g.Reshape(whole(g, g.Gather(rois, 0, axis=1)), [-1, 1, 1])
    return largest_of(g, x, batch, elements(g, n, 1, height), elements(g, n, 0, width))


def elements(g: Graph, n: Node, axis: int, bins: int) -> Taps:
    """Along x (axis 0) or y (1): the elements of each bin, (R, bins, K); a smaller bin repeats its last."""
    (x, rois), scale = operands(n), n.attrs.get("spatial_scale", 1.0)
    start, end = (rounded(g, g.Unsqueeze(g.Gather(rois, i, axis=1), [1]) * scale) for i in (1 + axis, 3 + axis))
    step, size = g.Max(end - start + 1.0, 1.0) / float(bins), typed_like(g, extent(g, x, 3 - axis), x)
    bin_ = counted(g, bins, x)
    low, high = (g.Max(g.Min(v + start, size), 0.0) for v in (g.Floor(bin_ * step), g.Ceil((bin_ + 1.0) * step)))
    k = counted(g, largest(g, high - low), x)
    low, high = g.Unsqueeze(low, [2]), g.Unsqueeze(high, [2])
    where = whole(g, g.Max(g.Min(low + k, high - 1.0), 0.0))
    return Taps(where, typed_like(g, high > low, x))


def rounded(g: Graph, v: Value) -> Value:
    """To the nearest integer, halves away from zero."""
    return g.Sign(v) * g.Floor(g.Abs(v) + 0.5)
