"""Quantised operators as DequantizeLinear, the float operator, QuantizeLinear: the form that ONNX Runtime fuses back."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from ..rewrite import Edit, Pen, attribute
from .fused import others, trim

QUANTISED = (TensorProto.UINT8, TensorProto.INT8)
WIDE, NARROW = (TensorProto.UINT16, TensorProto.INT16), (TensorProto.UINT4, TensorProto.INT4)


def dequantised(pen: Pen, x: str, scale: str, zero: str, axis: int | None = None) -> str:
    """(x - zero) * scale; scale and zero may run along `axis`."""
    attrs: dict[str, Any] = {} if axis is None else {"axis": axis}
    return pen("DequantizeLinear", *trim(x, scalar(pen, scale), scalar(pen, zero) if zero else ""), **attrs)


def quantised(pen: Pen, y: str, scale: str, zero: str, kind: int) -> None:
    """The node's output: y / scale + zero, of the element type `kind` where there is no zero point."""
    pen.book.levels.add(pen.node.output[0])
    zero = scalar(pen, zero) if zero else pen.const(0, "zero", helper.tensor_dtype_to_np_dtype(kind))
    pen("QuantizeLinear", y, scalar(pen, scale), zero, out=pen.node.output[0])


def scalar(pen: Pen, name: str) -> str:
    """Exporters write the scale of a whole tensor as [] or [1]; here [1] becomes []."""
    return pen("Reshape", name, pen.const([], "scalar", np.int64)) if pen.book.dims(name) == (1,) else name


def result_type(pen: Pen, zero: str, *operands: str) -> int | None:
    """The element type of a quantised result: that of the zero points and operands, or None when nothing is known."""
    return next((k for k in map(pen.book.dtype, (zero, *operands)) if k), None)


def qlinear_conv(pen: Pen, n: NodeProto) -> None:
    """The bias is int32 with the scale x_scale * w_scale and no zero point."""
    x, xs, xz, w, ws, wz, ys, yz, b = [*n.input, ""][:9]
    bias = [dequantised(pen, b, _product(pen, xs, ws), "", 0)] if b else []
    y = pen("Conv", dequantised(pen, x, xs, xz), dequantised(pen, w, ws, wz, 0), *bias, **others(n))
    quantised(pen, y, ys, yz, TensorProto.UINT8)


def _product(pen: Pen, a: str, b: str) -> str:
    first, second = pen.book.constant(a), pen.book.constant(b)
    if first is None or second is None:
        return pen("Mul", scalar(pen, a), scalar(pen, b))
    product = first * second
    return pen.const(product.reshape(()) if product.size == 1 else product.reshape(-1), "bias_scale")


def qlinear_matmul(pen: Pen, n: NodeProto) -> None:
    a, as_, az, b, bs, bz, ys, yz = n.input
    y = pen("MatMul", dequantised(pen, a, as_, az, -2), dequantised(pen, b, bs, bz, -1))
    quantised(pen, y, ys, yz, TensorProto.UINT8)


def qgemm(pen: Pen, n: NodeProto) -> None:
    """alpha (a b + c), c int32 with the scale a_scale * b_scale; float where there is no y_scale."""
    a, as_, az, b, bs, bz, c, ys, yz = [*n.input, "", "", ""][:9]
    alpha, kind = attribute(n, "alpha", 1.0), result_type(pen, yz, a)
    if ys and kind is None:
        return
    columns = 0 if attribute(n, "transB", 0) else 1
    left, right = dequantised(pen, a, as_, az), dequantised(pen, b, bs, bz, columns)
    bias = [_bias(pen, c, as_, bs)] if c else []
    y = pen("Gemm", left, right, *bias, out=None if ys else n.output[0], **{**others(n), "alpha": alpha, "beta": alpha})
    if ys and kind is not None:
        quantised(pen, y, ys, yz, kind)


def _bias(pen: Pen, c: str, as_: str, bs: str) -> str:
    return pen("Mul", pen("Cast", c, to=TensorProto.FLOAT), _product(pen, as_, bs))


def between(pen: Pen, n: NodeProto, operands: list[tuple[str, str, str]], scale: str, zero: str,
            write: Callable[[list[str]], str]) -> None:
    """Dequantise the operands, write the float operator, quantise what it gives."""
    kind = result_type(pen, zero, *(z or x for x, _, z in operands))
    if kind is not None:
        quantised(pen, write([dequantised(pen, *o) for o in operands]), scale, zero, kind)


def binary(op: str, pen: Pen, n: NodeProto) -> None:
    a, as_, az, b, bs, bz, ys, yz = [*n.input, ""][:8]
    between(pen, n, [(a, as_, az), (b, bs, bz)], ys, yz, lambda xs: pen(op, *xs))


def unary(op: str, pen: Pen, n: NodeProto, attrs: dict[str, Any] | None = None) -> None:
    x, xs, xz, ys, yz = [*n.input, ""][:5]
    known = others(n, "channels_last") if attrs is None else attrs
    if not attribute(n, "channels_last", 0):
        between(pen, n, [(x, xs, xz)], ys, yz, lambda ins: pen(op, *ins, **known))


def qlinear_softmax(pen: Pen, n: NodeProto) -> None:
    """`opset` says which Softmax is meant; before 13 all axes from `axis` on are one."""
    axis, dims = attribute(n, "axis", -1), pen.book.dims(n.input[0])
    last = axis == -1 or (dims is not None and axis == len(dims) - 1)
    if last or attribute(n, "opset", 1) >= 13:
        unary("Softmax", pen, n, {"axis": axis})


def qlinear_concat(pen: Pen, n: NodeProto) -> None:
    ys, yz, *rest = n.input
    parts = [(rest[k], rest[k + 1], rest[k + 2]) for k in range(0, len(rest), 3)]
    between(pen, n, parts, ys, yz, lambda xs: pen("Concat", *xs, axis=attribute(n, "axis")))


def qlinear_where(pen: Pen, n: NodeProto) -> None:
    c, x, xs, xz, y, ys, yz, zs, zz = [*n.input, ""][:9]
    between(pen, n, [(x, xs, xz), (y, ys, yz)], zs, zz, lambda both: pen("Where", c, *both))


def matmul_integer(pen: Pen, n: NodeProto) -> None:
    """The MatMul of x - zero points in float32; the integers it gives are exact up to 2^24."""
    a, b, az, bz = [*n.input, "", ""][:4]
    _as_integer(pen, n, pen("MatMul", _centred(pen, a, az, -2), _centred(pen, b, bz, -1)))


def conv_integer(pen: Pen, n: NodeProto) -> None:
    x, w, xz, wz = [*n.input, "", ""][:4]
    _as_integer(pen, n, pen("Conv", _centred(pen, x, xz), _centred(pen, w, wz, 0), **others(n)))


def _centred(pen: Pen, x: str, zero: str, axis: int | None = None) -> str:
    """float(x) - zero, as a DequantizeLinear of scale 1: that has a straight-through derivative, a Cast has not."""
    dims = pen.book.dims(zero) if zero else ()
    width = dims[0] if dims and dims != (1,) else None
    one = pen.const(1.0 if width is None else np.ones(width), "one", np.float32)
    return dequantised(pen, x, one, zero, axis)


def _as_integer(pen: Pen, n: NodeProto, y: str) -> None:
    """int32 for whom it may concern; a Cast back to float is short-circuited by `cast`."""
    pen.book.floats[n.output[0]] = y
    pen("Cast", y, out=n.output[0], to=TensorProto.INT32)


def rescale(pen: Pen, n: NodeProto) -> None:
    """float(integers) (as ws) behind a dynamic quantisation: the float operator between dequantised operands, with its weight."""
    for f, s in (n.input, n.input[::-1]) if len(n.input) == 2 else ():
        to_float, product = pen.book.makers.get(f), pen.book.makers.get(s)
        if to_float is None or to_float.op_type != "Cast" or attribute(to_float, "to") != TensorProto.FLOAT:
            continue
        made = pen.book.makers.get(to_float.input[0])
        if made is None or made.op_type not in INTEGER or product is None or product.op_type != "Mul":
            continue
        a, w, az, wz = [*made.input, "", ""][:4]
        levels = pen.book.makers.get(a)
        if levels is None or levels.op_type != "DynamicQuantizeLinear" or levels.output[1] not in product.input or not az:
            continue
        ws = product.input[1 if product.input[0] == levels.output[1] else 0]
        axis = _along_weights(pen, made.op_type, ws, wz)
        if axis is not None:
            left, right = dequantised(pen, a, levels.output[1], az), dequantised(pen, w, ws, wz, axis)
            pen(INTEGER[made.op_type], left, right, out=n.output[0], **others(made))
            return


def _along_weights(pen: Pen, op: str, ws: str, wz: str) -> int | None:
    """The weight's axis along which its scale may run; None unless that is the whole tensor's or a column's, the zero alike."""
    scale, zero = ((() if (d := pen.book.dims(v)) == (1,) else d) for v in (ws, wz or ws))
    if scale is None or scale != zero or len(scale) > (1 if op == "MatMulInteger" else 0):
        return None
    return -1 if op == "MatMulInteger" else 0


def cast(pen: Pen, n: NodeProto) -> None:
    y = pen.book.floats.get(n.input[0])
    if y is not None and attribute(n, "to") == TensorProto.FLOAT:
        pen("Identity", y, out=n.output[0])


def on_levels(pen: Pen, n: NodeProto) -> None:
    """What moves, selects or compares levels does so as floats of equal value, for integers have no derivative."""
    linear = n.op_type == "Resize" and attribute(n, "mode", "nearest") != "nearest"
    if linear or not any(i in pen.book.levels for i in n.input):
        return
    kind = pen.book.dtype(n.input[0])
    if kind not in QUANTISED:
        return
    held = [o for o in n.output if o] if n.op_type == "Split" else [n.output[0]]
    floats = {o: pen.book.fresh(f"{o}_float") for o in held}
    one, zero = pen.const(1, "one", np.float32), pen.const(0, "zero", helper.tensor_dtype_to_np_dtype(kind))
    inputs = [pen("DequantizeLinear", i, one, zero) if i and pen.book.dtype(i) == kind else i for i in n.input]
    pen(n.op_type, *inputs, out=[floats.get(o, o) for o in n.output], **others(n))
    for o, y in floats.items():
        pen("QuantizeLinear", y, one, zero, out=o)
    pen.book.levels.update(held)


def matmul_integer_to_float(pen: Pen, n: NodeProto) -> None:
    """(a - az) as (b - bz) bs + bias."""
    a, b, as_, bs, az, bz, bias = [*n.input, "", "", ""][:7]
    _scaled_matmul(pen, n, (a, as_, az), (b, bs, bz), bias)


def dynamic_quantize_matmul(pen: Pen, n: NodeProto) -> None:
    a, b, bs, bz, bias = [*n.input, "", ""][:5]
    names = [pen.book.fresh(f"{pen.stem}_{k}") for k in ("levels", "scale", "zero")]
    pen("DynamicQuantizeLinear", a, out=names)
    _scaled_matmul(pen, n, (names[0], names[1], names[2]), (b, bs, bz), bias)


def _scaled_matmul(pen: Pen, n: NodeProto, a: tuple[str, str, str], b: tuple[str, str, str], bias: str) -> None:
    y = pen("MatMul", dequantised(pen, *a, -2), dequantised(pen, *b, -1), out=None if bias else n.output[0])
    if bias:
        pen("Add", y, bias, out=n.output[0])


def standard(pen: Pen, n: NodeProto) -> None:
    """Microsoft's (De)QuantizeLinear is the standard's, which learned 16 bits in opset 21."""
    values, zero = (n.input[0], n.input[2] if len(n.input) > 2 else "")
    kind = pen.book.dtype(zero) if zero else pen.book.dtype(values)
    if narrow(pen, n) or (attribute(n, "block_size", 0) and pen.to < 21):
        return
    known = QUANTISED + (WIDE + NARROW if pen.to >= 21 else ())
    known += (TensorProto.INT32,) if n.op_type == "DequantizeLinear" else ()
    if kind in known and pen.book.dtype(n.input[1]) == TensorProto.FLOAT:
        pen(n.op_type, *n.input, out=n.output[0], **others(n))


def narrow(pen: Pen, n: NodeProto) -> bool:
    """Before opset 21 the standard has no 4 bits: a constant of them is written out in 8."""
    known = [pen.book.constant(i) for i in (n.input[0], *n.input[2:3])]
    fits = n.op_type == "DequantizeLinear" and pen.to < 21 and not attribute(n, "block_size", 0)
    if not fits or any(c is None or c.dtype.name not in FOUR_BITS for c in known):
        return False
    names = [pen.const(c.astype(FOUR_BITS[c.dtype.name]), "bytes") for c in known if c is not None]
    pen(n.op_type, names[0], n.input[1], *names[1:], out=n.output[0], **others(n))
    return True


FOUR_BITS = {"int4": np.int8, "uint4": np.uint8}
INTEGER = {"ConvInteger": "Conv", "MatMulInteger": "MatMul"}
ON_LEVELS = ("Clip", "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Max",
             "MaxPool", "Min", "Pad", "Relu", "Reshape", "Resize", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile",
             "Transpose", "Unsqueeze")
STANDARD: dict[str, Edit] = {
    "Cast": cast,
    "ConvInteger": conv_integer,
    "MatMulInteger": matmul_integer,
    "Mul": rescale,
    "QLinearConv": qlinear_conv,
    "QLinearMatMul": qlinear_matmul,
}
MICROSOFT: dict[str, Edit] = {
    "DequantizeLinear": standard,
    "DynamicQuantizeMatMul": dynamic_quantize_matmul,
    "MatMulIntegerToFloat": matmul_integer_to_float,
    "QGemm": qgemm,
    "QLinearAdd": partial(binary, "Add"),
    "QLinearAveragePool": partial(unary, "AveragePool"),
    "QLinearConcat": qlinear_concat,
    "QLinearGlobalAveragePool": partial(unary, "GlobalAveragePool"),
    "QLinearLeakyRelu": partial(unary, "LeakyRelu"),
    "QLinearMul": partial(binary, "Mul"),
    "QLinearSigmoid": partial(unary, "Sigmoid"),
    "QLinearSoftmax": qlinear_softmax,
    "QLinearWhere": qlinear_where,
    "QuantizeLinear": standard,
}
EDITS: dict[tuple[str, str], Edit] = {**{("", op): on_levels for op in ON_LEVELS}, **{("", op): f for op, f in STANDARD.items()},
                                      **{("com.microsoft", op): f for op, f in MICROSOFT.items()}}
