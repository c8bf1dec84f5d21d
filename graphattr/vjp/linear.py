"""Convolutions and matrix products: linear in each operand, so each cotangent is such an operator again."""

from __future__ import annotations

from collections.abc import Sequence

from ..contents import Dim
from ..errors import UnsupportedOp
from ..graph import Graph, Node, Value
from .elementwise import operands
from .geometry import Window, dims, extent, slide, spread, window
from .reduce import along, steps
from .registry import vjp

Cotangents = tuple[Value | None, ...]


@vjp("Conv")
def conv(g: Graph, n: Node, dy: Value) -> Cotangents:
    """dx = ConvTranspose(dy, w);  dw = Conv(x, dy) with strides and dilations exchanged;  db = sum of dy per channel."""
    x, w = ranked(n)
    win, group = window(n, kernel_of(n, w), dims(x)[2:]), n.attrs.get("group", 1)
    dx = spread(g, dy, w, x, win, group, dims(x)) if 0 in n.needs else None
    dw = filter_gradient(g, x, dy, w, win.turned(dims(dy)[2:], max(win.strides) > 1), group) if 1 in n.needs else None
    return dx, dw, bias_gradient(g, n, dy)


@vjp("ConvTranspose")
def conv_transpose(g: Graph, n: Node, dy: Value) -> Cotangents:
    """dx = Conv(dy, w);  dw = Conv(dy, x) with strides and dilations exchanged."""
    x, w = ranked(n)
    win, group = transposed_window(n, x, w), n.attrs.get("group", 1)
    dx = slide(g, dy, w, x, win, group, dims(x)) if 0 in n.needs else None
    dw = filter_gradient(g, dy, x, w, win.turned(dims(x)[2:], True), group) if 1 in n.needs else None
    return dx, dw, bias_gradient(g, n, dy)


def ranked(n: Node) -> tuple[Value, Value]:
    """The first two inputs, whose ranks must be known."""
    x, w = operands(n)[:2]
    if x.shape is None or w.shape is None:
        raise UnsupportedOp(f"{n!r} needs the ranks of its inputs ({x!r}, {w!r}); run shape inference on the model")
    return x, w


def kernel_of(n: Node, w: Value) -> Sequence[Dim]:
    kernel = n.attrs.get("kernel_shape")
    return kernel if kernel else dims(w)[2:]


def transposed_window(n: Node, x: Value, w: Value) -> Window:
    """The window of a ConvTranspose, read from its output to its input; `output_shape` and SAME_* resolved."""
    kernel, a = kernel_of(n, w), n.attrs
    extra, wanted = a.get("output_padding") or [0] * len(kernel), a.get("output_shape")
    plain = window(n, kernel, dims(x)[2:]) if a.get("auto_pad", "NOTSET") in ("NOTSET", "VALID") else None
    strides, dilations = a.get("strides") or [1] * len(kernel), a.get("dilations") or [1] * len(kernel)
    if plain is not None and not wanted:
        loose = any(e >= s for e, s in zip(extra, strides, strict=True))
        return Window(tuple(kernel), plain.strides, plain.dilations, plain.begin, plain.end, loose=loose)
    begin, end, upper = list[int | None](), list[int](), a.get("auto_pad") == "SAME_UPPER"
    for i, (k, s, d, e) in enumerate(zip(kernel, strides, dilations, extra, strict=True)):
        size = dims(x)[2 + i]
        if not isinstance(k, int) or (wanted and not isinstance(size, int)):
            begin, end = [*begin, None], [*end, 0]
            continue
        natural = e + (k - 1) * d + 1 - s  # the output's extent minus stride * size
        total = max(0, natural + (size * s - wanted[i] if wanted else 0))
        begin.append((total + (not upper)) // 2)
        end.append(total - (total + (not upper)) // 2)
    return Window(tuple(kernel), tuple(strides), tuple(dilations), tuple(begin), tuple(end), not upper, True, tuple(extra))


def filter_gradient(g: Graph, big: Value, small: Value, w: Value, win: Window, group: int) -> Value:
    """dw[m, c, k] = sum over n and o of small[n, m, o] big[n, c, o s + k d - begin]; the batch becomes the channels."""
    spatial = list(range(2, big.rank))
    if group > 1:  # (N, G C, ...) -> (C, G N, ...)
        batch, c, rest = extent(g, big, 0), extent(g, w, 1), g.emit("Shape", big, start=2)
        big = g.Reshape(big, g.Concat(batch, [group], c, rest, axis=0))
        big = g.Reshape(g.Transpose(big, perm=[2, 1, 0, *(a + 1 for a in spatial)]), g.Concat(c, batch * group, rest, axis=0))
    else:
        big = g.Transpose(big, perm=[1, 0, *spatial])
    turn = [1, 0, *spatial]
    made = slide(g, big, g.Transpose(small, perm=turn), w, win, group, tuple(dims(w)[a] for a in turn))
    return g.emit("Transpose", made, perm=turn, out_shape=w.shape)


def bias_gradient(g: Graph, n: Node, dy: Value) -> Value | None:
    return g.ReduceSum(dy, [a for a in range(dy.rank) if a != 1], keepdims=0) if 2 in n.needs else None


@vjp("Gemm")
def gemm(g: Graph, n: Node, dy: Value) -> Cotangents:
    """Y = alpha A' B' + beta C:  dA' = alpha dY B'^T,  dB' = alpha A'^T dY,  dC = beta dY."""
    a, b = ranked(n)
    ta, tb = n.attrs.get("transA", 0), n.attrs.get("transB", 0)

    def product(left: Value, right: Value, t_left: int, t_right: int, like: Value) -> Value:
        return g.emit("Gemm", left, right, transA=t_left, transB=t_right, alpha=n.attrs.get("alpha"), out_shape=like.shape)

    da = product(b, dy, tb, 1, a) if ta else product(dy, b, 0, 1 - tb, a)
    db = product(dy, a, 1, ta, b) if tb else product(a, dy, 1 - ta, 0, b)
    dc = scaled(dy, n.attrs.get("beta", 1.0)) if 2 in n.needs else None
    return da if 0 in n.needs else None, db if 1 in n.needs else None, dc


def scaled(v: Value, factor: float) -> Value:
    return v if factor == 1 else v * float(factor)


@vjp("MatMul")
def matmul(g: Graph, n: Node, dy: Value) -> Cotangents:
    """dA = dY B^T,  dB = A^T dY;  a one-dimensional operand is a row (left) or a column (right)."""
    a, b = ranked(n)
    row, column = a.rank == 1, b.rank == 1
    dy = g.Unsqueeze(dy, [-1]) if column else dy
    dy = g.Unsqueeze(dy, [-2]) if row else dy
    da = g.MatMul(dy, flipped(g, g.Unsqueeze(b, [1]) if column else b)) if 0 in n.needs else None
    if b.rank == 2 and a.rank > 2:  # one product over all rows, instead of one per batch and then their sum
        a, dy = g.Flatten(a, axis=a.rank - 1), g.Flatten(dy, axis=dy.rank - 1)
    db = g.MatMul(flipped(g, g.Unsqueeze(a, [0]) if row else a), dy) if 1 in n.needs else None
    return (g.Squeeze(da, [-2]) if row and da is not None else da, g.Squeeze(db, [-1]) if column and db is not None else db)


def flipped(g: Graph, m: Value) -> Value:
    """The last two axes exchanged."""
    rank = m.rank
    return g.Transpose(m, perm=[*range(rank - 2), rank - 1, rank - 2])


@vjp("Einsum")
def einsum(g: Graph, n: Node, dy: Value) -> Cotangents:
    """The cotangent of one operand: Einsum of dy and the other operands onto its own indices."""
    terms, out = subscripts(n)
    return tuple(_einsum_operand(g, n, dy, terms, out, i) if i in n.needs else None for i in range(len(terms)))


def _einsum_operand(g: Graph, n: Node, dy: Value, terms: Sequence[str], out: str, i: int) -> Value:
    """An index that appears nowhere else is spread out again; one that the operand repeats reads its diagonal only."""
    x, term, others = operands(n)[i], terms[i], [j for j in range(len(terms)) if j != i]
    present = {c for t in (out, *(terms[j] for j in others)) for c in t}
    kept = "".join(c for c in dict.fromkeys(term) if c in present)
    dx = dy
    if others or kept != out:
        equation = ",".join([out, *(terms[j] for j in others)]) + "->" + kept
        dx = g.Einsum(dy, *(n.inputs[j] for j in others), equation=equation)
    missing = [a for a, c in enumerate(term) if c not in present or c in term[:a]]
    dx = g.Unsqueeze(dx, missing) if missing else dx
    dx = dx if dx.shape == x.shape else g.Expand(dx, g.shape(x))  # an index of size 1 elsewhere, or summed here only
    for a, b in ((term.index(c), b) for b, c in enumerate(term) if c in term[:b]):
        one, other = (along(g, steps(g, x, k), k, x.rank) for k in (a, b))
        dx = g.Where(g.Equal(one, other), dx, 0.0)
    return dx


def subscripts(n: Node) -> tuple[list[str], str]:
    """Index letters of each operand and of the result, with '...' spelt out."""
    xs, equation = operands(n), str(n.attrs["equation"])
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    ranks = [x.rank - len(t.replace("...", "")) if "..." in t else 0 for x, t in zip(xs, terms, strict=True)]
    spare = [c for c in "zyxwvutsrqponmlkjihgfedcbaZYXWVUTSRQPONMLKJIHGFEDCBA" if c not in left][:max(ranks)]
    if not arrow:
        letters = left.replace("...", "").replace(",", "")
        out = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    terms = [t.replace("...", "".join(spare[len(spare) - r:])) for t, r in zip(terms, ranks, strict=True)]
    out = out.replace("...", "".join(spare))
    if len(set(out)) < len(out):
        raise UnsupportedOp(f"{n!r}: equation {equation!r} repeats an index in its result {out!r}, which is no legal Einsum")
    return terms, out
