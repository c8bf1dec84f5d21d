"""Fourier transforms. As real linear maps they are, but for a factor, the adjoints of their inverses."""

from __future__ import annotations

import numpy as np

from ..graph import Graph, Node, Value
from .elementwise import typed_like
from .function import through
from .geometry import dims, extent
from .index import Cotangents
from .registry import vjp

Axis = int | Value  # an axis that is known (not negative), or one that only the run knows


def transform(g: Graph, x: Value, axis: Axis, length: Value | None = None, inverse: int = 0, onesided: int = 0) -> Value:
    """DFT in the spelling of the graph's opset: the axis is an attribute before 20, an input since."""
    if g.opset < 20 and isinstance(axis, int):
        return g.DFT(x, length, axis=axis, inverse=inverse, onesided=onesided)
    return g.DFT(x, length, axis, inverse=inverse, onesided=onesided)


def axis_of(g: Graph, n: Node, x: Value) -> Axis:
    """The axis of a DFT; its default has changed."""
    if g.opset < 20:
        return int(n.attrs.get("axis", 1)) % x.rank
    axis = n.inputs[2] if len(n.inputs) > 2 else None
    if axis is None:
        return x.rank - 2
    return axis.content % x.rank if isinstance(axis.content, int) else axis


def unit(g: Graph, axis: Axis, rank: int) -> Value:
    """The vector of `rank` zeros with a one at the axis."""
    if isinstance(axis, int):
        return g.const(np.eye(rank, dtype=np.int64)[axis])
    return g.Cast(g.Equal(np.arange(rank), g.Mod(axis, g.const(rank))), to=7)


def size_of(g: Graph, x: Value, axis: Axis) -> Value:
    """The size of an axis, as an int64 tensor of one element."""
    return extent(g, x, axis) if isinstance(axis, int) else g.Reshape(g.Gather(g.shape(x), axis), [1])


def cut_or_padded(g: Graph, v: Value, like: Value, axis: Axis) -> Value:
    """v with `like`'s size along an axis: what is too much is cut off, what is missing is zero."""
    if isinstance(axis, int) and dims(v)[axis] == dims(like)[axis]:
        return v
    size, rank = size_of(g, like, axis), v.rank
    at = g.const([axis]) if isinstance(axis, int) else g.Reshape(axis, [1])
    v = g.emit("Slice", v, [0], size, at, out_shape=(None,) * rank)
    missing = unit(g, axis, rank) * (size - size_of(g, v, axis))
    return g.emit("Pad", v, g.Concat(g.const([0] * rank), missing, axis=0), 0.0, out_shape=(*dims(like)[:-1], dims(v)[-1]))


def number(g: Graph, size: Value, like: Value) -> float | Value:
    """A size as a factor for `like`: a number where it is known."""
    known = size.content[0] if isinstance(size.content, tuple) else None
    return float(known) if isinstance(known, int) else typed_like(g, size, like)


@vjp("DFT")
def dft(g: Graph, n: Node, dy: Value) -> Cotangents:
    """y = F x: dx = L F^-1 dy with L frequencies.  y = F^-1 x: dx = F dy / L.  What onesided leaves out of dy is zero;
    as the input of an inverse it counts twice, but for the frequencies 0 and L/2.  A real x has the real part of it."""
    x, length = (*n.inputs, None)[:2]
    assert x is not None
    axis, inverse, onesided = axis_of(g, n, x), n.attrs.get("inverse", 0), n.attrs.get("onesided", 0)
    if inverse:
        size = size_of(g, dy, axis)
        dx = transform(g, dy, axis, onesided=onesided) / number(g, size, dy)
        if onesided:
            shape = 1 - 2 * unit(g, axis, x.rank)  # -1 along the axis
            k = g.Reshape(g.Range(0, g.Squeeze(size_of(g, dx, axis), [0]), 1), shape)
            once = g.Or(g.Equal(k, 0), g.Equal(2 * k, size))
            dx = dx * g.Where(once, 1.0, g.const(np.array(2, dx.dtype)))
    else:
        size = size_of(g, x if length is None else dy, axis) if length is None or not onesided else g.Reshape(length, [1])
        size = g.Cast(size, to=7)
        dx = transform(g, dy, axis, g.Squeeze(size, [0]) if onesided else None, inverse=1) * number(g, size, dy)
    if length is not None:
        dx = cut_or_padded(g, dx, x, axis)
    return (cut_or_padded(g, dx, x, x.rank - 1),)


@vjp("STFT")
def stft(g: Graph, n: Node, dy: Value) -> list[Value | None]:
    """y = DFT of the windowed pieces x[step f + k], which are gathered: each of the three is pulled back."""
    x, step, window, length = (*n.inputs, None, None)[:4]
    assert x is not None
    assert step is not None
    size = extent(g, x, 1) if window is None else extent(g, window, 0)
    size = size if length is None else g.Cast(g.Reshape(length, [1]), to=7)
    frames = g.Range(0, g.Squeeze(extent(g, dy, 1), [0]), 1) * g.Cast(g.Reshape(step, [1]), to=7)
    where = g.Unsqueeze(frames, [1]) + g.Range(0, g.Squeeze(size, [0]), 1)
    pieces = g.Gather(x, where, axis=1)
    if window is not None:
        pieces = pieces * g.Unsqueeze(window, [1])
    return through(g, n, [transform(g, pieces, 2, onesided=n.attrs.get("onesided", 1))], [dy])
