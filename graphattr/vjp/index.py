"""Reading at indices; the cotangent is written there. Writing itself is differentiated in `scatter`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..graph import Graph, Node, Value
from .elementwise import operands
from .geometry import extent
from .registry import vjp

Cotangents = tuple[Value | None, ...]


def zeros(g: Graph, shape: Value, like: Value) -> Value:
    """A tensor of zeros of the given shape, with the dtype of `like`."""
    return g.ConstantOfShape(shape, value=np.zeros(1, like.dtype))


def zeros_like(g: Graph, x: Value) -> Value:
    return g.emit("ConstantOfShape", g.shape(x), value=np.zeros(1, x.dtype), out_shape=x.shape)


def ones_like(g: Graph, x: Value) -> Value:
    return g.emit("ConstantOfShape", g.shape(x), value=np.ones(1, x.dtype), out_shape=x.shape)


def reshaped(g: Graph, v: Value, like: Value) -> Value:
    """v in the shape of `like`."""
    return g.emit("Reshape", v, g.shape(like), allowzero=1 if is_empty(like) else None, out_shape=like.shape)


def is_empty(x: Value) -> bool:
    """Whether x has no elements, as far as is known."""
    return x.shape is not None and 0 in x.shape


def count(g: Graph, x: Value) -> Value:
    """The number of x's elements, as an int64 tensor of one element."""
    return g.Unsqueeze(g.ReduceProd(g.shape(x), keepdims=0), [0])


def flat(g: Graph, x: Value) -> Value:
    return g.Reshape(x, [-1])


def positions(g: Graph, size: Value) -> Value:
    """0, 1, ..., size - 1."""
    return g.Range(0, g.Squeeze(size, [0]), 1)


def add_at(g: Graph, base: Value, where: Value, dy: Value, axis: int) -> Value:
    """base with dy added at `where`; half precision is summed in float32 (ONNX Runtime's CPU has no half kernel for it)."""
    if dy.dtype is None or dy.dtype.itemsize >= 4:
        return g.ScatterElements(base, where, dy, axis=axis, reduction="add")
    wide = g.ScatterElements(g.Cast(base, to=1), where, g.Cast(dy, to=1), axis=axis, reduction="add")
    return g.CastLike(wide, dy)


def put(g: Graph, dy: Value, where: Value, size: Value, axis: int) -> Value:
    """The adjoint of Gather along an axis: zeros of `size` there, to which dy[.., j, ..] is added at where[j] (1-D)."""
    shape = g.Concat(*(size if a == axis else extent(g, dy, a) for a in range(dy.rank)), axis=0)
    if dy.rank > 1:
        where = g.Reshape(where, [-1 if a == axis else 1 for a in range(dy.rank)])
    return add_at(g, zeros(g, shape, dy), g.Expand(where, g.shape(dy)), dy, axis)


@vjp("Gather")
def gather(g: Graph, n: Node, dy: Value) -> Cotangents:
    """dx = dy added at the gathered positions, the index taken as a vector; around a single known one there are zeros."""
    x, where = operands(n)
    axis = n.attrs.get("axis", 0) % x.rank
    if isinstance(where.content, int):
        before, after, size, zero = g.const([where.content]), g.const([-1 - where.content]), extent(g, x, axis), g.const([0])
        before, after = (before, size + after) if where.content >= 0 else (size + before, after)
        pads = [v if a == axis else zero for v in (before, after) for a in range(x.rank)]
        return (g.emit("Pad", g.Unsqueeze(dy, [axis]), g.Concat(*pads, axis=0), 0.0, out_shape=x.shape),)
    shape = [count(g, where) if a == axis else extent(g, x, a) for a in range(x.rank)]
    return (put(g, g.Reshape(dy, g.Concat(*shape, axis=0)), flat(g, where), extent(g, x, axis), axis),)


@vjp("GatherElements")
def gather_elements(g: Graph, n: Node, dy: Value) -> Cotangents:
    x, where = operands(n)
    return (add_at(g, zeros_like(g, x), where, dy, n.attrs.get("axis", 0)),)


@vjp("GatherND")
def gather_nd(g: Graph, n: Node, dy: Value) -> Cotangents:
    """dx = dy added at the gathered tuples, each taken as one number; batch axes become leading members of the tuple.

    A ScatterND that adds would be shorter, but where updates meet ONNX Runtime's threads lose some.
    """
    x, where = operands(n)
    for axis in reversed(range(n.attrs.get("batch_dims", 0))):
        where = g.Concat(_along(g, where, axis), where, axis=-1)
    depth, line = where.dim(where.rank - 1), g.const([0])
    for a in range(depth):
        size, i = extent(g, x, a), g.Gather(where, a, axis=-1)
        line = line * size + g.Where(i < 0, i + size, i)
    shapes = (g.emit("Shape", x, end=depth), g.emit("Shape", x, start=depth))
    cells, row = (g.Unsqueeze(g.ReduceProd(v, keepdims=0), [0]) for v in shapes)
    rows = g.Reshape(dy, g.Concat(count(g, line), row, axis=0))
    return (reshaped(g, put(g, rows, flat(g, line), cells, 0), x),)


def _along(g: Graph, where: Value, axis: int) -> Value:
    """The own position along an axis of every index tuple: (..., 1)."""
    rank = where.rank
    own = g.Reshape(g.Range(0, g.Squeeze(extent(g, where, axis), [0]), 1), [-1 if a == axis else 1 for a in range(rank)])
    return g.Expand(own, g.Concat(g.emit("Shape", where, end=rank - 1), [1], axis=0))


@vjp("Compress")
def compress(g: Graph, n: Node, dy: Value) -> Cotangents:
    """A Gather at the true positions."""
    x, condition = operands(n)
    where, axis = flat(g, g.NonZero(condition)), n.attrs.get("axis")
    if axis is None:
        return (reshaped(g, put(g, dy, where, count(g, x), 0), x),)
    return (put(g, dy, where, extent(g, x, axis % x.rank), axis % x.rank),)


@vjp("TopK", many=True)
def top_k(g: Graph, n: Node, dys: Sequence[Value | None]) -> Cotangents:
    """The values' cotangent goes to where they stood."""
    x, dy = operands(n)[0], dys[0]
    if dy is None:
        return (None,)
    return (add_at(g, zeros_like(g, x), n.outputs[1], dy, n.attrs.get("axis", -1)),)


@vjp("Unique", many=True)
def unique(g: Graph, n: Node, dys: Sequence[Value | None]) -> Cotangents:
    """y = x at the first occurrences: the cotangent goes there."""
    (x,), dy, axis = operands(n), dys[0], n.attrs.get("axis")
    if dy is None:
        return (None,)
    where = g.emit("Unique", x, n_outputs=2, **n.attrs)[1]
    if axis is None:
        return (reshaped(g, put(g, dy, where, count(g, x), 0), x),)
    return (put(g, dy, where, extent(g, x, axis % x.rank), axis % x.rank),)


@vjp("OneHot")
def one_hot(g: Graph, n: Node, dy: Value) -> Cotangents:
    """y is values[1] at the index and values[0] elsewhere: each takes the sum of dy over its places."""
    where, depth, values = operands(n)
    if 2 not in n.needs:
        return (None, None, None)
    hot = g.OneHot(where, depth, g.const(np.array([0, 1], values.dtype)), axis=n.attrs.get("axis", -1))
    on = g.ReduceSum(dy * hot, keepdims=0)
    return None, None, g.Concat(*(g.Unsqueeze(v, [0]) for v in (g.ReduceSum(dy, keepdims=0) - on, on)), axis=0)
