"""What several cotangents of a convolution give its weight, as matrix products: one column per tap of the kernel and channel.

    dw[m, c, k] = sum over n and o of small[n, m, o] big[n, c, o s + k d - begin]

The derivative in `linear.py` writes this as a convolution whose kernel is the image; that is one node and slow.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..graph import Graph, Node, Value
from .geometry import Window, dims, extent, padded, window
from .linear import kernel_of, ranked, transposed_window

COLUMNS = 128  # per product: taps are gathered until there are so many


def weight_cotangents(g: Graph, n: Node, dys: Sequence[Value]) -> list[Value] | None:
    """The weight's cotangent for each dy; None where the kernel, or a transposed one's pads, are known at run time only."""
    x, w = ranked(n)
    group, transposed = n.attrs.get("group", 1), n.op == "ConvTranspose"
    win = transposed_window(n, x, w) if transposed else window(n, kernel_of(n, w), dims(x)[2:])
    shape = [d for d in dims(w) if isinstance(d, int)]
    if len(shape) < w.rank or (transposed and None in win.begin):
        return None
    if None in win.begin:
        x, win = padded(g, x, w, dys[0], win), replace(win, begin=(0,) * len(win.end), end=(0,) * len(win.end))
    rows, columns = (shape[0] // group, shape[1])
    if transposed:
        small, big = [_grouped(g, x, group, rows)], [_grouped(g, dy, group, columns) for dy in dys]
    else:
        small, big = [_grouped(g, dy, group, rows) for dy in dys], [_grouped(g, x, group, columns)]
    made = _products(g, _joined(g, small), _joined(g, big), win, columns * len(big))  # (group, rows, taps, columns)
    axis, size = (3, columns) if transposed else (1, rows)
    parts = [g.Slice(made, [i * size], [(i + 1) * size], [axis]) for i in range(len(dys))] if len(dys) > 1 else [made]
    return [g.Reshape(g.Transpose(p, perm=[0, 1, 3, 2]), shape) for p in parts]


def _grouped(g: Graph, v: Value, group: int, channels: int) -> Value:
    """(N, C, ...) as (N, 1, C, ...), and (N, G C, ...) as (1, G, C, N, ...): few long rows are faster than many short ones."""
    if group == 1:
        return g.Unsqueeze(v, [1])
    split = g.Reshape(v, g.Concat(extent(g, v, 0), [group, channels], g.emit("Shape", v, start=2), axis=0))
    return g.Unsqueeze(g.Transpose(split, perm=[1, 2, 0, *range(3, split.rank)]), [0])


def _joined(g: Graph, values: Sequence[Value]) -> Value:
    return values[0] if len(values) == 1 else g.Concat(*values, axis=2)


def _products(g: Graph, small: Value, big: Value, win: Window, width: int) -> Value:
    """Rows of small times what each tap reads of big, summed over samples and places: (group, rows, taps, channels of big)."""
    flat, per = g.Reshape(small, [0, 0, 0, -1]), max(1, COLUMNS // width)
    read, parts = list(_readings(g, small, big, win)), []
    for at in range(0, len(read), per):
        several = _joined(g, read[at : at + per])
        parts.append(g.ReduceSum(g.MatMul(flat, g.Transpose(several, perm=[0, 1, 3, 2])), [0], keepdims=0))
    whole = parts[0] if len(parts) == 1 else g.Concat(*parts, axis=2)
    return g.Reshape(whole, [0, 0, len(read), width])


def _readings(g: Graph, small: Value, big: Value, win: Window) -> Iterator[Value]:
    """For each tap of the kernel: what it reads at the places of small, these in one axis."""
    begin, first = [b or 0 for b in win.begin], big.rank - len(win.kernel)
    axes, before = list(range(first, big.rank)), [0] * first
    if any(begin) or any(win.end):
        big = g.Pad(big, [*before, *begin, *before, *win.end], 0.0)
    kernel = [k for k in win.kernel if isinstance(k, int)]
    whole = set(kernel) == set(win.strides) == {1}
    span = (g.emit("Shape", small, start=first) - 1) * g.const(list(win.strides), "int64") + 1
    for tap in itertools.product(*map(range, kernel)):
        start = g.const([k * d for k, d in zip(tap, win.dilations, strict=True)], "int64")
        part = big if whole else g.Slice(big, start, span + start, axes, list(win.strides))
        yield g.Reshape(part, [0, 0, 0, -1])
