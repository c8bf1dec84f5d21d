"""Regions of interest: RoiAlign and MaxRoiPool. Along each axis a bin reads some elements: their sum, or the largest."""

from __future__ import annotations

from collections.abc import Sequence

from ..graph import Graph, Node, Value
from .elementwise import operands, typed_like
from .function import through
from .geometry import extent
from .index import flat
from .reduce import reduction
from .registry import vjp
from .sample import Taps, channels_first, counted, padded, read, taps_at, weighted, whole


@vjp("RoiAlign")
def roi_align(g: Graph, n: Node, dy: Value) -> Sequence[Value | None]:
    return through(g, n, [aligned(g, n)], [dy])


@vjp("MaxRoiPool")
def max_roi_pool(g: Graph, n: Node, dy: Value) -> Sequence[Value | None]:
    """dy goes to the largest element of each bin; the regions are rounded, so they have no cotangent."""
    return through(g, n, [max_pooled(g, n)], [dy])


def aligned(g: Graph, n: Node) -> Value:
    """RoiAlign: each bin's mean over a grid of samples, which are interpolated linearly; both are separable.

    As in ONNX Runtime and ONNX's reference, max is the largest weighted element, not the largest sample.
    """
    x, _, batch = operands(n)
    height, width = n.attrs.get("output_height", 1), n.attrs.get("output_width", 1)
    return pooled(g, x, whole(g, batch), samples(g, n, 1, height), samples(g, n, 0, width), mode(n) == "max")


def mode(n: Node) -> str:
    return str(n.attrs.get("mode", "avg"))


def pooled(g: Graph, x: Value, batch: Value, rows: Taps, columns: Taps, largest: bool) -> Value:
    """(R, C, height, width) from what the bins of each region read: rows (R, height, K), columns (R, width, K)."""
    batch = g.Reshape(batch, [-1, 1, 1])
    taps = [Taps(g.Unsqueeze(t.where, [a]), g.Unsqueeze(t.weight, [a])) for t, a in ((rows, 2), (columns, 1))]
    if largest:
        return channels_first(g, reduction(g, "ReduceMax", weighted(g, x, batch, taps), [3, 4], keepdims=0))
    return channels_first(g, read(g, x, batch, taps))


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
    return pooled(g, x, whole(g, g.Gather(rois, 0, axis=1)), elements(g, n, 1, height), elements(g, n, 0, width), True)


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
