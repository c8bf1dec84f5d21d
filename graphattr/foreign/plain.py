"""com.microsoft operators that ONNX has by now, or that a few of its operators say."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto

from ..rewrite import Edit, Pen, Stay, attribute
from ..tensors import Array
from .fused import others, trim
from .heads import ints, padded, parts, rank_of, width_of


def same(op: str, pen: Pen, n: NodeProto) -> None:
    """The standard operator of that name."""
    pen(op, *n.input, out=list(n.output), **others(n))


def flat_pad(pen: Pen, n: NodeProto) -> None:
    """Pads may be a row of a matrix."""
    x, pads, value = padded(n.input, 3)
    value = pen("Squeeze", value) if value else ""
    pen("Pad", *trim(x, pen("Reshape", pads, ints(pen, [-1])), value), out=n.output[0], **others(n))


def expand_dims(pen: Pen, n: NodeProto) -> None:
    held = pen.book.constant(n.input[1])
    if held is None:
        raise Stay(f"its axis {n.input[1]!r} is no constant")
    pen("Unsqueeze", n.input[0], ints(pen, [int(held.item())], "axes"), out=n.output[0])


def gather_nd(pen: Pen, n: NodeProto) -> None:
    pen("GatherND", n.input[0], pen("Cast", n.input[1], to=TensorProto.INT64), out=n.output[0])


def embedding(pen: Pen, n: NodeProto) -> None:
    """Rows of a table; the other inputs speak of training."""
    pen("Gather", n.input[0], n.input[1], out=n.output[0], axis=0)


def value_range(pen: Pen, n: NodeProto) -> None:
    start, end, step = padded(n.input, 3)
    one = "" if step else pen("CastLike", ints(pen, 1, "one"), start)
    pen("Range", *(pen("Squeeze", v) if v else one for v in (start, end, step)), out=n.output[0])


def unique(pen: Pen, n: NodeProto) -> None:
    """In the order of first occurrence."""
    y, index, counts = padded(n.output, 3)
    pen("Unique", n.input[0], out=[y or pen.book.fresh(f"{pen.stem}_y"), "", index, counts], sorted=0)


def grid_sample(pen: Pen, n: NodeProto) -> None:
    """Opset 20 gave two of the modes other names."""
    mode = attribute(n, "mode", "bilinear")
    renamed = {"bilinear": "linear", "bicubic": "cubic"}.get(mode, mode) if pen.to >= 20 else mode
    pen("GridSample", *n.input, out=n.output[0], mode=renamed, **others(n, "mode"))


def crop_and_resize(pen: Pen, n: NodeProto) -> None:
    """Bilinear samples of the box of each image, corners on corners; beyond the image the extrapolation value.

    Coordinates are those of GridSample: v = y1 + t (y2 - y1) for t from 0 to 1, twice that less 1.
    """
    x, boxes, images, crop = n.input
    held = pen.book.constant(crop)
    if attribute(n, "mode", "bilinear") != "bilinear" or held is None:
        raise Stay("only bilinear samples in crops of constant size are known")
    height, width = (int(v) for v in held)
    ends = [pen("Reshape", pen("Gather", boxes, ints(pen, [i], "index"), axis=1), ints(pen, [-1, 1, 1])) for i in range(4)]
    rows, columns = (_along(pen, low, high, t) for low, high, t in
                     ((ends[0], ends[2], _steps(height).reshape(1, -1, 1)), (ends[1], ends[3], _steps(width).reshape(1, 1, -1))))
    zero = pen.like(0.0, "zero", boxes)
    grid = [pen("Unsqueeze", pen("Add", v, pen("Mul", w, zero)), ints(pen, [3], "axes"))
            for v, w in ((columns, rows), (rows, columns))]
    one, two = (pen.like(v, k, boxes) for v, k in ((1.0, "one"), (2.0, "two")))
    places = pen("Sub", pen("Mul", pen("Concat", *grid, axis=3), two), one)
    mode = "linear" if pen.to >= 20 else "bilinear"
    y = pen("GridSample", pen("Gather", x, images, axis=0), places, mode=mode, padding_mode="border", align_corners=1)
    inside = pen("And", *(pen("And", pen("GreaterOrEqual", v, zero), pen("LessOrEqual", v, one)) for v in (rows, columns)))
    outer = pen.like(attribute(n, "extrapolation_value", 0.0), "outer", x)
    pen("Where", pen("Unsqueeze", inside, ints(pen, [1], "axes")), y, outer, out=n.output[0])


def _steps(count: int) -> Array:
    return np.linspace(0, 1, count) if count > 1 else np.array([0.5])


def _along(pen: Pen, low: str, high: str, t: Array) -> str:
    steps = pen("CastLike", pen.const(t, "steps", np.float32), low)
    return pen("Add", low, pen("Mul", pen("Sub", high, low), steps))


def conv_transpose(pen: Pen, n: NodeProto) -> None:
    """ConvTranspose, where the pads are a constant."""
    x, w, pads, b = padded(n.input, 4)
    held = pen.book.constant(pads) if pads else np.zeros(0)
    if held is None:
        raise Stay(f"its pads {pads!r} are no constant")
    known: dict[str, Any] = {"pads": [int(p) for p in held.reshape(-1)]} if held.size else {}
    pen("ConvTranspose", *trim(x, w, b), out=n.output[0], **others(n), **known)


def distances(pen: Pen, n: NodeProto) -> None:
    """Sums of squared differences of all rows of a to all of b, and their roots."""
    metric = attribute(n, "metric", "sqeuclidean")
    if metric not in ("sqeuclidean", "euclidean"):
        raise Stay(f"its metric {metric!r} is not known")
    a, b = (pen("Unsqueeze", x, ints(pen, [axis], "axes")) for axis, x in ((1, n.input[0]), (0, n.input[1])))
    difference = pen("Sub", a, b)
    root = metric == "euclidean"
    squares, out = pen("Mul", difference, difference), None if root else n.output[0]
    y = pen("ReduceSum", squares, ints(pen, [-1], "axes"), keepdims=0, out=out)
    if root:
        pen("Sqrt", y, out=n.output[0])


MINORS = ((4, 2, 1, 5, 0, 2, 3, 1, 0), (8, 7, 5, 6, 8, 3, 7, 6, 4), (5, 1, 2, 3, 2, 0, 4, 0, 1), (7, 8, 4, 8, 6, 5, 6, 7, 3))
"""Element i of the adjugate of a 3 x 3 matrix is x[a] x[b] - x[c] x[d], by these rows a, b, c, d."""


def inverse(pen: Pen, n: NodeProto) -> None:
    """The adjugate over the determinant, of matrices up to 3 x 3."""
    x, rank = n.input[0], rank_of(pen, n.input[0], "input")
    side = width_of(pen, x, -1, "input")
    if side > 3:
        raise Stay(f"inverses of matrices up to 3 x 3 are known, its are {side} x {side}")
    if side == 1:
        pen("Reciprocal", x, out=n.output[0])
        return
    shape = pen("Shape", x)
    flat = pen("Reshape", x, ints(pen, [*[0] * (rank - 2), side * side]))

    def pick(of: str, index: tuple[int, ...]) -> str:
        return pen("Gather", of, ints(pen, index, "index"), axis=-1)

    if side == 2:
        signs = pen("CastLike", pen.const([1, -1, -1, 1], "signs", np.float32), x)
        adjugate = pen("Mul", pick(flat, (3, 1, 2, 0)), signs)
    else:
        a, b, c, d = (pick(flat, rows) for rows in MINORS)
        adjugate = pen("Sub", pen("Mul", a, b), pen("Mul", c, d))
    first = pen("Mul", pick(flat, tuple(range(side))), pick(adjugate, tuple(range(0, side * side, side))))
    determinant = pen("ReduceSum", first, ints(pen, [-1], "axes"), keepdims=1)
    pen("Reshape", pen("Div", adjugate, determinant), shape, out=n.output[0])


def complex_product(conjugate: bool, pen: Pen, n: NodeProto) -> None:
    """(a + i b)(c + i d), or (a + i b)(c - i d); the last axis holds the two parts."""
    (a, b), (c, d) = (parts(pen, x, [1, 1]) for x in n.input)
    d = pen("Neg", d) if conjugate else d
    real = pen("Sub", pen("Mul", a, c), pen("Mul", b, d))
    pen("Concat", real, pen("Add", pen("Mul", a, d), pen("Mul", b, c)), out=n.output[0], axis=-1)


def rfft(pen: Pen, n: NodeProto) -> None:
    """Products with cosines and sines: real and imaginary parts, side by side on a new last axis."""
    x = n.input[0]
    _plain_transform(n)
    count = width_of(pen, x, -1, "input")
    angles = 2 * np.pi * np.outer(np.arange(count), np.arange(count // 2 + 1)) / count
    made = [pen("Unsqueeze", pen("MatMul", x, pen("CastLike", pen.const(t, k, np.float32), x)), ints(pen, [-1], "axes"))
            for t, k in ((np.cos(angles), "cosines"), (-np.sin(angles), "sines"))]
    pen("Concat", *made, out=n.output[0], axis=-1)


def irfft(pen: Pen, n: NodeProto) -> None:
    """The signal of even length whose upper half of frequencies mirrors the given ones."""
    x = n.input[0]
    _plain_transform(n)
    half = width_of(pen, x, -2, "input")
    count = 2 * (half - 1)
    angles = 2 * np.pi * np.outer(np.arange(half), np.arange(count)) / count
    share = np.where((np.arange(half) == 0) | (np.arange(half) == half - 1), 1, 2)[:, None] / count
    terms = []
    for i, (table, what) in enumerate(((np.cos(angles) * share, "cosines"), (-np.sin(angles) * share, "sines"))):
        part = pen("Gather", x, ints(pen, i, "index"), axis=-1)
        terms.append(pen("MatMul", part, pen("CastLike", pen.const(table, what, np.float32), x)))
    pen("Add", *terms, out=n.output[0])


def _plain_transform(n: NodeProto) -> None:
    if attribute(n, "signal_ndim", 1) != 1 or attribute(n, "normalized", 0) or not attribute(n, "onesided", 1):
        raise Stay("only transforms along the last axis, one-sided and not normalised, are known")


MICROSOFT: dict[str, Edit] = {
    "CDist": distances,
    "ComplexMul": partial(complex_product, False),
    "ComplexMulConj": partial(complex_product, True),
    "ConvTransposeWithDynamicPads": conv_transpose,
    "CropAndResize": crop_and_resize,
    "ExpandDims": expand_dims,
    "GatherND": gather_nd,
    "GridSample": grid_sample,
    "Inverse": inverse,
    "Irfft": irfft,
    "Pad": flat_pad,
    "Range": value_range,
    "Rfft": rfft,
    "TorchEmbedding": embedding,
    "Trilu": partial(same, "Trilu"),
    "Unique": unique,
}
EDITS: dict[tuple[str, str], Edit] = {("com.microsoft", op): change for op, change in MICROSOFT.items()}
