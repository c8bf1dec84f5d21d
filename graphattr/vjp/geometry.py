"""The geometry of sliding windows, and the two ways to slide: shared by convolution and pooling.

Per spatial axis: output o reads input o * stride + k * dilation - begin, for k in 0 .. kernel - 1. Reading is `slide`
(a Conv of a wanted extent), writing is its adjoint `spread` (a ConvTranspose of a wanted extent).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ..contents import Dim
from ..errors import UnsupportedOp
from ..graph import Graph, Node, Value
from ..infer import Shape


@dataclasses.dataclass(frozen=True)
class Window:
    """Per spatial axis. `begin` is None where only the run knows it (SAME_* or output_shape with a symbolic size)."""

    kernel: tuple[Dim, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int | None, ...]
    end: tuple[int, ...]
    lower: bool = False  # SAME_LOWER: an odd pad goes to the beginning
    loose: bool = False  # with a symbolic size, `slide` may yield more outputs than wanted
    extra: tuple[int, ...] = ()  # output_padding, where the run forms the pads of an output_shape

    def turned(self, kernel: Sequence[Dim], loose: bool) -> Window:
        """Outputs and kernel exchanged: the window that sums over outputs, one result per kernel element."""
        return dataclasses.replace(self, kernel=tuple(kernel), strides=self.dilations, dilations=self.strides, loose=loose)


def window(n: Node, kernel: Sequence[Dim], sizes: Sequence[Dim], loose: bool = False) -> Window:
    """The node's window, auto_pad resolved to explicit pads as far as the sizes of its input are static."""
    a, rank = n.attrs, len(kernel)
    strides, dilations = tuple(a.get("strides") or [1] * rank), tuple(a.get("dilations") or [1] * rank)
    mode, pads = a.get("auto_pad", "NOTSET"), tuple(a.get("pads") or [0] * (2 * rank))
    if mode != "NOTSET":
        pads = (0,) * (2 * rank)
    if any(p < 0 for p in pads):
        raise UnsupportedOp(f"{n!r} has negative pads {list(pads)}; crop its input by a Slice instead")
    plain = Window(tuple(kernel), strides, dilations, pads[:rank], pads[rank:], mode == "SAME_LOWER", loose)
    if not mode.startswith("SAME"):
        return plain
    totals = [_same(size, k, s, d) for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True)]
    begin = tuple(t if t is None else (t + plain.lower) // 2 for t in totals)
    return dataclasses.replace(plain, begin=begin, end=tuple((t or 0) - (b or 0) for t, b in zip(totals, begin, strict=True)))


def _same(size: Dim, k: Dim, s: int, d: int) -> int | None:
    """The total padding of a SAME_* axis; it depends on the size unless the stride is 1."""
    if s == 1 and isinstance(k, int):
        return (k - 1) * d
    if not isinstance(size, int) or not isinstance(k, int):
        return None
    return max(0, (-(-size // s) - 1) * s + (k - 1) * d + 1 - size)


def spread(g: Graph, dy: Value, w: Value, x: Value, win: Window, group: int, shape: Shape) -> Value:
    """ConvTranspose(dy, w) of x's spatial extent exactly: the adjoint of y = Conv(x, w) in x."""
    pads, extra, crop = [], [], {}
    for i, (size, out) in enumerate(zip(_spatial(x), _spatial(dy), strict=True)):
        over, begin = _over(win, i, size, out), win.begin[i]
        if over is None and (win.strides[i] > 1 or begin is None or win.loose):
            crop[i] = g.const([0]) if begin is not None else _begin(g, win, i, x, dy, w)
            over = 1 - win.strides[i]
        over = win.end[i] if over is None else over
        pads.append((begin or 0, max(over, 0)))
        extra.append(max(-over, 0))
    y = g.emit("ConvTranspose", dy, w, strides=list(win.strides), dilations=list(win.dilations), group=group,
               pads=[p[0] for p in pads] + [p[1] for p in pads], output_padding=extra if any(extra) else None,
               out_shape=_open(x) if crop else shape)
    return _crop(g, y, x, crop, shape)


def slide(g: Graph, x: Value, w: Value, y: Value, win: Window, group: int, shape: Shape) -> Value:
    """Conv(x, w) of y's spatial extent exactly."""
    if None in win.begin:
        x, win = padded(g, x, w, y, win), dataclasses.replace(win, begin=(0,) * len(win.end), end=(0,) * len(win.end))
    end, crop = [], {}
    for i, (size, out) in enumerate(zip(_spatial(x), _spatial(y), strict=True)):
        over = _over(win, i, size, out)
        end.append(win.end[i] if over is None else max(over, 0))
        if win.loose if over is None else -over >= win.strides[i]:
            crop[i] = g.const([0])
    made = g.emit("Conv", x, w, strides=list(win.strides), dilations=list(win.dilations), group=group,
                  pads=[*win.begin, *end], out_shape=_open(x) if crop else shape)
    return _crop(g, made, y, crop, shape)


def dims(x: Value) -> Shape:
    """The shape of a value whose rank is known; BuildError if it is not."""
    return x.shape if x.shape is not None else (None,) * x.rank


def _spatial(x: Value) -> Shape:
    return dims(x)[2:]


def _open(x: Value) -> Shape:
    """A shape of x's rank of which nothing else is known."""
    return (None,) * x.rank


def _over(win: Window, i: int, size: Dim, out: Dim) -> int | None:
    """By how much the last window passes the end of the input; None unless everything is static."""
    k, s, d, begin = win.kernel[i], win.strides[i], win.dilations[i], win.begin[i]
    if isinstance(size, int) and isinstance(out, int) and isinstance(k, int) and begin is not None:
        return (out - 1) * s + (k - 1) * d + 1 - begin - size
    return None


def extent(g: Graph, x: Value, axis: int) -> Value:
    """The size of one axis as an int64 tensor of one element (a constant when static)."""
    return g.emit("Shape", x, start=axis, end=axis + 1)


def _total(g: Graph, win: Window, i: int, x: Value, y: Value, w: Value) -> Value:
    """The total padding of an axis, at run time."""
    size, out, k = (extent(g, v, 2 + i) for v in (x, y, w))
    extra = win.extra[i] if win.extra else 0
    return g.Max((out - 1) * win.strides[i] + (k - 1) * win.dilations[i] + 1 + extra - size, [0])


def _begin(g: Graph, win: Window, i: int, x: Value, y: Value, w: Value) -> Value:
    return g.Div(_total(g, win, i, x, y, w) + int(win.lower), 2)


def padded(g: Graph, x: Value, w: Value, y: Value, win: Window) -> Value:
    """x with its pads, computed at run time where the window needs it."""
    known = [b is not None for b in win.begin]
    begin = [g.const([b]) if b is not None else _begin(g, win, i, x, y, w) for i, b in enumerate(win.begin)]
    end = [g.const([e]) if known[i] else _total(g, win, i, x, y, w) - begin[i] for i, e in enumerate(win.end)]
    zeros = g.const([0, 0])
    return g.emit("Pad", x, g.Concat(zeros, *begin, zeros, *end, axis=0), 0.0, out_shape=_open(x))


def _crop(g: Graph, y: Value, like: Value, starts: dict[int, Value], shape: Shape) -> Value:
    """Spatial axes i of y cut to starts[i] .. starts[i] + like's size."""
    if not starts:
        return y
    ends = [start + extent(g, like, 2 + i) for i, start in starts.items()]
    return g.emit("Slice", y, g.Concat(*starts.values(), axis=0), g.Concat(*ends, axis=0),
                  [2 + i for i in starts], out_shape=shape)
