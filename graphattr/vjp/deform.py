"""DeformConv: its input is sampled where the offsets say, weighted by the mask, and multiplied by the filters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import UnsupportedOp
from ..graph import Graph, Node, Value
from .elementwise import operands
from .function import through
from .geometry import extent
from .index import positions
from .registry import vjp
from .sample import Taps, counted, padded, read, taps_at


@vjp("DeformConv")
def deform_conv(g: Graph, n: Node, dy: Value) -> Sequence[Value | None]:
    return through(g, n, [convolved(g, n)], [dy])


def convolved(g: Graph, n: Node) -> Value:
    """y (N, M, ...) = w (M, C / group, kh, kw) times the columns of x, group by group, plus the bias."""
    x, w, offset, bias = *operands(n)[:3], n.inputs[3] if len(n.inputs) > 3 else None
    if x.shape is None or x.rank != 4:
        raise UnsupportedOp(f"{n!r} needs an input of rank 4, as ONNX Runtime does; it is {x!r}")
    group, inner = n.attrs.get("group", 1), g.ReduceProd(g.emit("Shape", w, start=1), keepdims=1)
    batch, place = extent(g, x, 0), g.emit("Shape", offset, start=2)
    columns = g.Reshape(sampled_columns(g, n), g.Concat(batch, [group], inner, g.ReduceProd(place, keepdims=1), axis=0))
    filters = g.Reshape(w, g.Concat([group, -1], inner, axis=0))
    y = g.Reshape(g.MatMul(filters, columns), g.Concat(batch, extent(g, w, 0), place, axis=0))
    return y if bias is None else y + g.Reshape(bias, [-1, 1, 1])


def sampled_columns(g: Graph, n: Node) -> Value:
    """(N, C, kh kw, oh, ow): what each kernel element sees; each of the offset groups moves its own share of the channels."""
    x, w, offset, mask = *operands(n)[:3], n.inputs[4] if len(n.inputs) > 4 else None
    groups, kernel = n.attrs.get("offset_group", 1), [w.dim(2), w.dim(3)]
    batch, place = extent(g, x, 0), g.emit("Shape", offset, start=2)
    moved = g.Reshape(offset, g.Concat(batch, [groups, int(np.prod(kernel)), 2], place, axis=0))
    shares = g.Reshape(x, g.Concat(batch * groups, [-1], g.emit("Shape", x, start=2), axis=0))
    which = g.Reshape(positions(g, batch * groups), g.Concat(batch, [groups, 1, 1, 1], axis=0))
    seen = read(g, shares, which, [bent(g, n, g.Gather(moved, a, axis=3), kernel, a, extent(g, x, 2 + a)) for a in (0, 1)])
    if mask is not None:
        seen = seen * g.Reshape(mask, g.Concat(batch, [groups, int(np.prod(kernel))], place, [1], axis=0))
    return g.Transpose(seen, perm=[0, 1, 5, 2, 3, 4])


def bent(g: Graph, n: Node, offset: Value, kernel: Sequence[int], axis: int, size: Value) -> Taps:
    """Along one axis: the elements at o * stride - pad + k * dilation + offset (N, groups, kh kw, oh, ow), outside zero."""
    strides, dilations, pads = (n.attrs.get(k) or [default] * 2 for k, default in (("strides", 1), ("dilations", 1), ("pads", 0)))
    k = np.indices(kernel)[axis].reshape(-1, 1, 1) * dilations[axis] - pads[axis]
    o = counted(g, extent(g, offset, 3 + axis), offset) * float(strides[axis])
    at = offset + g.const(k, offset.dtype) + g.Unsqueeze(o, [1 - axis])
    return padded(g, taps_at(g, n, at, "linear"), size, "zeros", False)
