"""Pooling."""

from __future__ import annotations

import dataclasses

import numpy as np
from onnx import helper

from ..errors import UnsupportedOp
from ..graph import Graph, Node, Value
from .elementwise import operands
from .geometry import Window, dims, slide, spread, window
from .index import add_at, count, flat, reshaped, zeros, zeros_like
from .registry import vjp


@vjp("MaxPool")
def max_pool(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """dy goes to the winners: MaxPool's Indices are flat over the whole tensor; overlapping windows add up."""
    (x,) = operands(n)
    where = n.outputs[1] if len(n.outputs) > 1 and not n.attrs.get("storage_order", 0) else None
    if where is None:
        _, where = g.MaxPool(x, n_outputs=2, **{k: v for k, v in n.attrs.items() if k != "storage_order"})
    dx = add_at(g, zeros(g, count(g, x), x), flat(g, where), flat(g, dy), 0)
    return (reshaped(g, dx, x),)


@vjp("MaxUnpool")
def max_unpool(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """x was written to y at its flat indices, so its cotangent is read there."""
    x, where = operands(n)[:2]
    return (reshaped(g, g.GatherElements(flat(g, dy), flat(g, where), axis=0), x),)


@vjp("AveragePool")
def average_pool(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """dx = adjoint of the window sum, of dy / (number of elements the window divides by)."""
    (x,) = operands(n)
    win, ones = pool_window(g, n, x)
    include, ceil = n.attrs.get("count_include_pad", 0), n.attrs.get("ceil_mode", 0)
    if not ceil and (include or not any(p != 0 for p in (*win.begin, *win.end))):
        return (window_adjoint(g, dy / float(np.prod(n.attrs["kernel_shape"])), ones, x, win),)
    plane = g.Expand(g.const(1.0, x.dtype), g.Concat([1, 1], g.emit("Shape", x, start=2), axis=0))
    count = g.Max(slide(g, plane, ones, dy, win, 1, (1, 1, *dims(dy)[2:])), 1.0)
    if include:  # an overhanging window divides by less than its size: by what, says the operator itself on a plane of ones
        return (window_adjoint(g, dy * (g.AveragePool(plane, **n.attrs) / count), ones, x, win),)
    return (window_adjoint(g, dy / count, ones, x, win),)


def pool_window(g: Graph, n: Node, x: Value) -> tuple[Window, Value]:
    """The window of a pooling node and its kernel of ones, (1, 1, *kernel)."""
    if x.shape is None:
        raise UnsupportedOp(f"{n!r} needs the rank of its input; run shape inference on the model")
    kernel, ceil = tuple(n.attrs["kernel_shape"]), bool(n.attrs.get("ceil_mode", 0))
    win = window(n, kernel, x.shape[2:], loose=ceil)
    if ceil and None not in win.begin:  # the last window may hang over by less than a stride
        win = dataclasses.replace(win, end=tuple(e + s - 1 for e, s in zip(win.end, win.strides, strict=True)))
    return win, g.const(np.ones((1, 1, *kernel)), x.dtype)


def window_adjoint(g: Graph, dy: Value, ones: Value, x: Value, win: Window) -> Value:
    """The adjoint of the sum over each window, channel by channel: (N, C, ...) is taken as (N C, 1, ...)."""
    planes = g.Reshape(dy, g.Concat([-1, 1], g.emit("Shape", dy, start=2), axis=0))
    return reshaped(g, spread(g, planes, ones, x, win, 1, (None, 1, *dims(x)[2:])), x)


@vjp("LpPool")
def lp_pool(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """y^p = sum |x|^p:  dx = sign(x) |x|^(p-1) adjoint of the window sum of dy y^(1-p)."""
    (x,), (y,), p = operands(n), n.outputs, n.attrs.get("p", 2)
    win, ones = pool_window(g, n, x)
    return (lp_slope(g, x, p) * window_adjoint(g, lp_scaled(g, dy, y, p), ones, x, win),)


@vjp("GlobalLpPool")
def global_lp_pool(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """As LpPool over one window; the factor sign(x) |x|^(p-1) has x's shape."""
    (x,), (y,), p = operands(n), n.outputs, n.attrs.get("p", 2)
    return (lp_slope(g, x, p) * lp_scaled(g, dy, y, p),)


def lp_slope(g: Graph, x: Value, p: int) -> Value:
    """sign(x) |x|^(p-1)."""
    return x if p == 2 else g.Sign(x) * g.Pow(g.Abs(x), float(p - 1)) if p > 1 else g.Sign(x)


def lp_scaled(g: Graph, dy: Value, y: Value, p: int) -> Value:
    """dy y^(1-p), 0 where y = 0."""
    safe = g.Where(y > 0, y, 1.0)
    return g.Where(y > 0, dy / (safe if p == 2 else g.Pow(safe, float(p - 1))), 0.0) if p > 1 else dy


@vjp("GlobalAveragePool")
def global_average_pool(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """dx = dy / (number of positions), everywhere."""
    (x,) = operands(n)
    size = g.ReduceProd(g.emit("Shape", x, start=2), keepdims=0)
    divisor = g.const(size.data, x.dtype) if size.is_const else g.Cast(size, to=helper.np_dtype_to_tensor_dtype(dy.dtype))
    return (g.Expand(dy / divisor, g.shape(x)),)


@vjp("GlobalMaxPool")
def global_max_pool(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """dy goes to the first maximum of each channel."""
    (x,) = operands(n)
    planes = g.Flatten(x, axis=2)
    where = g.ArgMax(planes, axis=1, keepdims=1)
    return (reshaped(g, add_at(g, zeros_like(g, planes), where, g.Flatten(dy, axis=2), 1), x),)
