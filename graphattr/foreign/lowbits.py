"""com.microsoft: weights held in 2, 4 or 8 bits, unpacked by standard operators, which ONNX Runtime does once, at loading."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto

from ..rewrite import Edit, Pen, Stay, attribute
from ..tensors import Array
from .fused import others, trim
from .heads import ints, padded, rank_of, width_of

BYTES = (TensorProto.UINT8,)
NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
FP4 = [0.0, 5.208333333e-03, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25]


def unpacked(pen: Pen, x: str, bits: int, high_first: bool = False) -> str:
    """Bytes [..., n] as bytes [..., n * 8 / bits] of one level each, low bits first."""
    if bits == 8:
        return x
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    each = pen("BitShift", pen("Unsqueeze", x, ints(pen, [-1], "axes")),
               pen.const(shifts[::-1] if high_first else shifts, "shifts"), direction="RIGHT")
    levels = pen("Mod", each, pen.const(2**bits, "levels", np.uint8))
    shape = pen("Concat", pen("Shape", x, end=-1), ints(pen, [-1], "rest"), axis=0)
    return pen("Reshape", levels, shape)


def matmul_nbits(pen: Pen, n: NodeProto) -> None:
    """A W' + bias with W[n, k] = (level - zero) scale, scale and zero per block of the row, or per group that g_idx names.

    Levels of A that a kernel may round to 8 bits (accuracy_level 4) stay as they are.
    """
    a, b, scales, zeros, groups, bias = padded(n.input, 6)
    rows, width, bits, block = (attribute(n, k, d) for k, d in (("N", 0), ("K", 0), ("bits", 4), ("block_size", 0)))
    if bits not in (2, 4, 8) or attribute(n, "weight_prepacked", 0):
        raise Stay(f"weights of {bits} bits, or packed for one kind of device, are not known")
    if groups and bits != 4:
        raise Stay("groups that are named (g_idx) are known for 4 bits only")
    blocks = -(-width // block)
    levels = pen("Reshape", unpacked(pen, pen("Reshape", b, ints(pen, [rows, -1])), bits), ints(pen, [rows, blocks * block]))
    zero = ""
    if zeros and pen.book.dtype(zeros) in BYTES:
        zero = unpacked(pen, pen("Reshape", zeros, ints(pen, [rows, -1])), bits)
        zero = pen("CastLike", _first(pen, zero, blocks), scales)
    elif zeros:
        zero = pen("Reshape", zeros, ints(pen, [rows, blocks]))
    scale = pen("Reshape", scales, ints(pen, [rows, blocks]))
    of = groups or ints(pen, [k // block for k in range(width)], "blocks")
    centred = pen("CastLike", _first(pen, levels, width), scales)
    middle = pen("Gather", zero, of, axis=1) if zero else pen.like(2 ** (bits - 1), "middle", scales)
    w = pen("Mul", pen("Sub", centred, middle), pen("Gather", scale, of, axis=1))
    y = pen("MatMul", a, pen("Transpose", w, perm=[1, 0]), out=None if bias else n.output[0])
    if bias:
        pen("Add", y, bias, out=n.output[0])


def _first(pen: Pen, x: str, count: int) -> str:
    """The first columns."""
    return pen("Slice", x, ints(pen, [0], "start"), ints(pen, [count], "end"), ints(pen, [1], "axes"))


def matmul_bnb4(pen: Pen, n: NodeProto) -> None:
    """A W' with W[i] = table[level of i] times the largest value of its block, over the weight as one row."""
    a, b, largest = n.input
    rows, width, block = (attribute(n, k) for k in ("N", "K", "block_size"))
    table = NF4 if attribute(n, "quant_type") == 1 else [*FP4, *(-v for v in FP4)]
    levels = pen("Cast", unpacked(pen, b, 4, high_first=True), to=TensorProto.INT32)
    count = rows * width
    values = pen("Gather", pen("CastLike", pen.const(np.array(table, np.float32), "table"), largest), levels, axis=0)
    values = pen("Slice", values, ints(pen, [0], "start"), ints(pen, [count], "end"))
    each = pen("Gather", largest, pen.const(np.arange(count) // block, "blocks", np.int64), axis=0)
    w = pen("Reshape", pen("Mul", values, each), ints(pen, [rows, width]))
    pen("MatMul", a, pen("Transpose", w, perm=[1, 0]) if attribute(n, "transB", 1) else w, out=n.output[0])


def gather_block_quantized(pen: Pen, n: NodeProto) -> None:
    """The levels that the indices name, dequantised: (level - zero) scale, scale and zero per block along `quantize_axis`."""
    data, indices, scales, zeros = padded(n.input, 4)
    rank, kind, bits = rank_of(pen, data, "data"), pen.book.dtype(data), attribute(n, "bits", 4)
    axis, along = attribute(n, "gather_axis", 0) % rank, attribute(n, "quantize_axis", 1) % rank
    packed = kind == TensorProto.UINT8
    if kind not in (TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4) or axis == along or (packed and axis == rank - 1):
        raise Stay("only integers whose blocks do not run along the axis that is gathered are known")
    length = width_of(pen, data, along, "data") * (8 // bits if packed and along == rank - 1 else 1)
    blocks = width_of(pen, scales, along, "scales")
    found = _levels(pen, data, indices, scales, axis, bits if packed else 0)
    scale = pen("Gather", scales, indices, axis=axis)
    behind = along - (rank if along > axis else 0)      # the axis of the blocks, once the indices' axes stand in for one
    of = ints(pen, [i // attribute(n, "block_size", 128) for i in range(length)], "blocks")
    if zeros:
        zero = _levels(pen, zeros, indices, scales, axis, bits if packed else 0)
        if packed and along == rank - 1:
            zero = pen("Slice", zero, ints(pen, [0], "start"), ints(pen, [blocks], "end"), ints(pen, [-1], "axes"))
        found = pen("Sub", found, pen("Gather", zero, of, axis=behind))
    elif packed:
        found = pen("Sub", found, pen.like(2 ** (bits - 1), "middle", scales))
    pen("Mul", found, pen("Gather", scale, of, axis=behind), out=n.output[0])


def _levels(pen: Pen, x: str, indices: str, like: str, axis: int, bits: int) -> str:
    """The levels that the indices name, as floats."""
    if bits:
        return pen("CastLike", unpacked(pen, pen("Gather", x, indices, axis=axis), bits), like)
    return pen("Gather", pen("DequantizeLinear", x, pen.like(1.0, "one", like)), indices, axis=axis)


def dynamic_quantize_lstm(pen: Pen, n: NodeProto) -> None:
    """LSTM of the dequantised weights, which come as [D, I, 4 H]. Inputs and states, which the kernel rounds to 8 bits, stay."""
    x, w, r, b, lengths, h, c, p, ws, wz, rs, rz = padded(n.input, 12)
    weights = [_transposed(pen, *m) for m in ((w, ws, wz, "W"), (r, rs, rz, "R"))]
    pen("LSTM", *trim(x, *weights, b, lengths, h, c, p), out=list(n.output), **others(n))


def _transposed(pen: Pen, levels: str, scale: str, zero: str, what: str) -> str:
    held: list[Array | None] = [pen.book.constant(v) for v in (levels, scale, zero)]
    q, s, z = held
    if q is None or s is None or z is None:
        raise Stay(f"its weights {levels!r} are no constants that lie in the file")
    s, z = (v.reshape(q.shape[0], 1, -1).astype(np.float32) for v in (s, z))
    return pen.const(np.ascontiguousarray(((q.astype(np.float32) - z) * s).transpose(0, 2, 1)), what)


MICROSOFT: dict[str, Edit] = {
    "DynamicQuantizeLSTM": dynamic_quantize_lstm,
    "GatherBlockQuantized": gather_block_quantized,
    "MatMulBnb4": matmul_bnb4,
    "MatMulNBits": matmul_nbits,
}
EDITS: dict[tuple[str, str], Edit] = {("com.microsoft", op): change for op, change in MICROSOFT.items()}
