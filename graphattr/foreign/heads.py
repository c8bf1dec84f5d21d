"""What all kinds of attention share: heads split, scores scaled and masked, Softmax, values summed, heads merged.

Masks are added, as ONNX Runtime does it: a masked score gets a large negative number, so a row without any free key stays finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from onnx import NodeProto, TensorProto

from ..rewrite import Pen, Stay, attribute

FLOOR = float(np.finfo(np.float32).min)
LOWEST: dict[int, float] = {TensorProto.FLOAT: FLOOR, TensorProto.DOUBLE: FLOOR, TensorProto.FLOAT16: -65504.0,
                            TensorProto.BFLOAT16: -3e38}


def padded(names: Sequence[str], count: int) -> list[str]:
    """Exactly so many names, absent ones empty."""
    return [*names, *[""] * count][:count]


def ints(pen: Pen, values: object, what: str = "shape") -> str:
    return pen.const(values, what, np.int64)


def size(pen: Pen, x: str, axis: int) -> str:
    """The length of an axis, as a tensor of one element."""
    return pen("Shape", x, start=axis, end=axis + 1)


def index_range(pen: Pen, start: str, end: str) -> str:
    """start, start + 1 ... end - 1, of tensors of one element."""
    return pen("Range", *(pen("Squeeze", v) for v in (start, end)), ints(pen, 1, "one"))


def parts(pen: Pen, x: str, sizes: Sequence[int], axis: int = -1) -> list[str]:
    names = [pen.book.fresh(f"{pen.stem}_part") for _ in sizes]
    pen("Split", x, ints(pen, list(sizes), "sizes"), out=names, axis=axis)
    return names


def taken(pen: Pen, x: str, index: int | Sequence[int], axis: int = 0) -> str:
    """x[index] along an axis, which a single index drops."""
    return pen("Gather", x, ints(pen, index, "index"), axis=axis)


def rank_of(pen: Pen, x: str, what: str) -> int:
    dims = pen.book.dims(x)
    if dims is None:
        raise Stay(f"the number of axes of its {what} {x!r} is not known")
    return len(dims)


def width_of(pen: Pen, x: str, axis: int, what: str) -> int:
    dims = pen.book.dims(x)
    width = dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None
    if width is None:
        raise Stay(f"axis {axis} of its {what} {x!r} has no known length")
    return width


def float_type(pen: Pen, x: str) -> int:
    kind = pen.book.dtype(x)
    if kind not in LOWEST:
        raise Stay(f"the element type of its input {x!r} is not known")
    return kind


def split_heads(pen: Pen, x: str, heads: int) -> str:
    """[B, S, N H] -> [B, N, S, H]."""
    return pen("Transpose", pen("Reshape", x, ints(pen, [0, 0, heads, -1])), perm=[0, 2, 1, 3])


def merge_heads(pen: Pen, x: str, out: str) -> str:
    """[B, N, S, H] -> [B, S, N H]."""
    return pen("Reshape", pen("Transpose", x, perm=[0, 2, 1, 3]), ints(pen, [0, 0, -1]), out=out)


# -- masks: bool tensors that broadcast to [B, N, S, T], true where a key may be seen ---------------------------------
def earlier(pen: Pen, q: str, k: str, past: str) -> str:
    """Key t may be seen by query s when t <= s + the length of the past."""
    before = size(pen, past, 2) if past else ints(pen, [0], "zero")
    rows = index_range(pen, before, pen("Add", before, size(pen, q, 2)))
    keys = index_range(pen, ints(pen, [0], "zero"), size(pen, k, 2))
    return pen("LessOrEqual", keys, pen("Unsqueeze", rows, ints(pen, [1], "axes")))


def unpadded(pen: Pen, mask: str, rank: int, q: str, k: str) -> str:
    """The mask of padding in all its spellings, by their number of axes.

    1: ends [B], or ends and starts [2 B]; 2: [B, T]; 3: [B, S, T]; 4: [B, 1, M, M] for queries and keys up to M > T.
    """
    if rank == 1:
        return _between(pen, mask, q, k)
    if rank == 4:
        t = size(pen, k, 2)
        starts, ends = pen("Concat", pen("Sub", t, size(pen, q, 2)), ints(pen, [0], "zero"), axis=0), pen("Concat", t, t, axis=0)
        mask = pen("Slice", mask, starts, ends, ints(pen, [2, 3], "axes"))
    elif rank in (2, 3):
        mask = pen("Unsqueeze", mask, ints(pen, [1, 2] if rank == 2 else [1], "axes"))
    else:
        raise Stay(f"a mask of {rank} axes is not known")
    return pen("Greater", mask, pen.const(0, "zero", np.int32))


def _between(pen: Pen, mask: str, q: str, k: str) -> str:
    batch, width = (pen.book.dims(pen.node.input[0]) or (None,))[0], (pen.book.dims(mask) or (None,))[0]
    if batch is not None and width is not None and width not in (batch, 2 * batch):
        raise Stay(f"its mask {mask!r} has {width} elements, which is neither the batch size {batch} nor twice that")
    b = size(pen, q, 0)
    rows = pen("Reshape", mask, pen("Concat", ints(pen, [-1], "rest"), b, axis=0))
    zeros = pen("Expand", pen.const(0, "zero", np.int32), pen("Concat", ints(pen, [1], "one"), b, axis=0))
    rows = pen("Unsqueeze", pen("Concat", rows, zeros, axis=0), ints(pen, [2, 3, 4], "axes"))
    keys = pen("Cast", index_range(pen, ints(pen, [0], "zero"), size(pen, k, 2)), to=TensorProto.INT32)
    return pen("And", pen("Less", keys, taken(pen, rows, 0)), pen("GreaterOrEqual", keys, taken(pen, rows, 1)))


def penalty(pen: Pen, free: str, causal: str, filtered: float, x: str) -> str:
    """What is added to the scores: 0, `filtered` where padded, the lowest number where later; "" for nothing at all."""
    kind = float_type(pen, x)
    zero, y = pen.like(0.0, "zero", x), ""
    if free:
        y = pen("Where", free, zero, pen.like(max(filtered, LOWEST[kind]), "filter", x))
    return pen("Where", causal, y or zero, pen.like(LOWEST[kind], "lowest", x)) if causal else y


def scale_of(n: NodeProto, head: int) -> float:
    return float(attribute(n, "scale", 0.0) or 1 / math.sqrt(head))


def head_size(n: NodeProto, width: int, heads: int) -> int:
    if width % heads:
        raise Stay(f"its width {width} is no multiple of its {heads} heads")
    return width // heads


def attend(pen: Pen, q: str, k: str, v: str, scale: float, typed: str, added: Sequence[str], out: str, scores: str = "") -> None:
    """Softmax(scale q k' + what is added) v, heads merged, of [B, N, S, H] each.

    `typed` is a tensor of their type; `scores` names what the Softmax reads.
    """
    total = pen("MatMul", q, pen("Transpose", k, perm=[0, 1, 3, 2]))
    extra = ""
    for term in added:
        extra = (pen("Add", extra, term) if extra else term) if term else extra
    total = pen("Mul", total, pen.like(scale, "scale", typed), out=None if extra else scores or None)
    if extra:
        total = pen("Add", total, extra, out=scores or None)
    merge_heads(pen, pen("MatMul", pen("Softmax", total, axis=-1), v), out)
