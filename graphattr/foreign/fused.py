"""com.microsoft: what ONNX Runtime's optimiser fuses, taken apart again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from ..rewrite import Edit, Pen, Stay, attribute

HALF = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Elu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "HardSwish": (), "LeakyRelu": ("alpha",), "Relu": (),
    "Selu": ("alpha", "gamma"), "Sigmoid": (), "Softplus": (), "Softsign": (), "Tanh": (), "ThresholdedRelu": ("alpha",)}


def fused_conv(pen: Pen, n: NodeProto) -> None:
    """activation(Conv(x, w, b) + z)."""
    x, w, b, z = [*n.input, "", ""][:4]
    kind, values = attribute(n, "activation", ""), attribute(n, "activation_params", [])
    if kind not in ("", "Clip", *ACTIVATIONS):
        return
    out = n.output[0]
    y = pen("Conv", *trim(x, w, b), out=None if z or kind else out, **others(n, "activation", "activation_params"))
    if z:
        y = pen("Add", y, z, out=None if kind else out)
    activate(pen, kind, list(values), y, out)


def fused_gemm(pen: Pen, n: NodeProto) -> None:
    """activation(Gemm(a, b, c))."""
    kind = attribute(n, "activation", "")
    if kind not in ("", *ACTIVATIONS):
        return
    mine = ["activation", *(f"activation_{k}" for k in ("alpha", "beta", "gamma"))]
    values = [attribute(n, f"activation_{k}") for k in ACTIVATIONS.get(kind, ())]
    y = pen("Gemm", *n.input, out=None if kind else n.output[0], **others(n, *mine))
    activate(pen, kind, values, y, n.output[0])


def activate(pen: Pen, kind: str, values: list[float | None], y: str, out: str) -> None:
    if kind == "Clip":
        pen("Clip", y, *(pen.like(v, k, pen.node.input[0]) for k, v in zip(("min", "max"), values) if v is not None), out=out)
    elif kind:
        attrs: dict[str, Any] = {k: v for k, v in zip(ACTIVATIONS[kind], values) if v is not None}
        pen(kind, y, out=out, **attrs)


def fused_matmul(pen: Pen, n: NodeProto) -> None:
    """activation(alpha a' b'). Asked for, the last two axes of a side change places, after the first moved behind the other
    axes of the batch (transBatch)."""
    sides, alpha, kind = list(n.input), attribute(n, "alpha", 1.0), attribute(n, "activation", "")
    if kind not in ("", *ACTIVATIONS):
        raise Stay(f"its activation {kind!r} is not known")
    out = None if kind else n.output[0]
    for k, letter in enumerate("AB"):
        turned, moved = attribute(n, f"trans{letter}", 0), attribute(n, f"transBatch{letter}", 0)
        dims = pen.book.dims(sides[k])
        if (turned or moved) and (dims is None or len(dims) < 2):
            raise Stay(f"the axes of its input {sides[k]!r} are not known, or a single one")
        axes = list(range(len(dims or ())))
        if moved:
            axes = [*axes[1:-1], axes[0], axes[-1]]
        if turned:
            axes = [*axes[:-2], axes[-1], axes[-2]]
        sides[k] = pen("Transpose", sides[k], perm=axes) if turned or moved else sides[k]
    y = pen("MatMul", *sides, out=None if alpha != 1 else out)
    if alpha != 1:
        y = pen("Mul", y, pen.like(alpha, "alpha", n.input[0]), out=out)
    values = [attribute(n, f"activation_{k}") for k in ACTIVATIONS.get(kind, ())]
    activate(pen, kind, values, y, n.output[0])


def gelu(pen: Pen, n: NodeProto) -> None:
    """x (1 + erf(x / sqrt 2)) / 2, of x + bias where there is one."""
    x = pen("Add", *n.input) if len(n.input) > 1 and n.input[1] else n.input[0]
    _erf_gelu(pen, x, n.input[0], n.output[0])


def fast_gelu(pen: Pen, n: NodeProto) -> None:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, of x + bias where there is one."""
    x = pen("Add", *n.input) if len(n.input) > 1 and n.input[1] else n.input[0]
    _tanh_gelu(pen, x, n.input[0], n.output[0])


def _erf_gelu(pen: Pen, x: str, typed: str, out: str) -> None:
    c = [pen.like(v, k, typed) for k, v in (("root", math.sqrt(2)), ("one", 1.0), ("half", 0.5))]
    pen("Mul", pen("Mul", x, pen("Add", pen("Erf", pen("Div", x, c[0])), c[1])), c[2], out=out)


def _tanh_gelu(pen: Pen, x: str, typed: str, out: str) -> None:
    root = math.sqrt(2 / math.pi)
    c = [pen.like(v, k, typed) for k, v in (("cubic", 0.044715 * root), ("linear", root), ("one", 1.0), ("half", 0.5))]
    inner = pen("Mul", x, pen("Add", pen("Mul", pen("Mul", x, x), c[0]), c[1]))
    pen("Mul", pen("Mul", x, pen("Add", pen("Tanh", inner), c[2])), c[3], out=out)


def gemm_fast_gelu(pen: Pen, n: NodeProto) -> None:
    """FastGelu of x w + bias."""
    x, w, bias = [*n.input, ""][:3]
    y = pen("MatMul", x, w)
    _tanh_gelu(pen, pen("Add", y, bias) if bias else y, x, n.output[0])


def bias_split_gelu(pen: Pen, n: NodeProto) -> None:
    """The left half of x + bias times the Gelu of the right half."""
    total = pen("Add", *n.input)
    dims = pen.book.dims(n.input[1])
    if not dims or dims[0] is None or dims[0] % 2:
        raise Stay(f"the length of its bias {n.input[1]!r} is not known, or odd")
    halves = [pen.book.fresh(f"{pen.stem}_{k}") for k in ("left", "right")]
    pen("Split", total, pen.const([dims[0] // 2] * 2, "sizes", np.int64), out=halves, axis=-1)
    right = pen.book.fresh(f"{pen.stem}_gelu")
    _erf_gelu(pen, halves[1], n.input[0], right)
    pen("Mul", halves[0], right, out=n.output[0])


def bias_add(pen: Pen, n: NodeProto) -> None:
    """x + bias + skip."""
    pen("Add", pen("Add", n.input[0], n.input[1]), n.input[2], out=n.output[0])


def bias_dropout(pen: Pen, n: NodeProto) -> None:
    """x + bias + residual: at inference nothing is dropped."""
    x, bias, residual, _, training = [*n.input, "", "", ""][:5]
    if training or _reads(pen, n, 1):
        raise Stay("it may be in training mode, or its mask is read")
    y = pen("Add", x, bias, out=None if residual else n.output[0])
    if residual:
        pen("Add", y, residual, out=n.output[0])


def bias_softmax(pen: Pen, n: NodeProto) -> None:
    """Softmax of x + bias over all axes from `axis` on, which count as one."""
    axis, dims = attribute(n, "axis", 1), pen.book.dims(n.input[0])
    if dims is None:
        raise Stay(f"the number of axes of its input {n.input[0]!r} is not known")
    y, axis = pen("Add", *n.input), axis % len(dims)
    if axis == len(dims) - 1:
        pen("Softmax", y, out=n.output[0], axis=-1)
        return
    rows = pen("Reshape", y, pen.const([*[0] * axis, -1], "shape", np.int64))
    pen("Reshape", pen("Softmax", rows, axis=-1), pen("Shape", y), out=n.output[0])


def scaled_silu(pen: Pen, n: NodeProto) -> None:
    """z sigmoid(z) of z = scale x."""
    x, scale = [*n.input, ""][:2]
    scale = pen("CastLike", scale, x) if scale else pen.like(attribute(n, "alpha", 1.0), "alpha", x)
    z = pen("Mul", x, scale)
    pen("Mul", z, pen("Sigmoid", z), out=n.output[0])


def gated_add(pen: Pen, n: NodeProto) -> None:
    """x + y gate."""
    pen("Add", n.input[0], pen("Mul", n.input[1], n.input[2]), out=n.output[0])


def quick_gelu(pen: Pen, n: NodeProto) -> None:
    """x sigmoid(alpha x)."""
    x, alpha = n.input[0], attribute(n, "alpha", 1.702)
    pen("Mul", x, pen("Sigmoid", pen("Mul", x, pen.like(alpha, "alpha", x))), out=n.output[0])


def skip_layer_norm(pen: Pen, n: NodeProto) -> None:
    """LayerNormalization of input + skip + bias; the fourth output is that sum."""
    _, _, gamma, beta, bias = [*n.input, "", ""][:5]
    if not _reads(pen, n, 1, 2):
        total = _skip_sum(pen, n, bias)
        pen("LayerNormalization", *trim(total, gamma, beta), out=n.output[0], axis=-1, epsilon=attribute(n, "epsilon", 1e-12))


def skip_simplified_layer_norm(pen: Pen, n: NodeProto) -> None:
    _, _, gamma, bias = [*n.input, ""][:4]
    if not _reads(pen, n, 1, 2):
        total = _skip_sum(pen, n, bias)
        _root_mean_square(pen, total, gamma, [-1], attribute(n, "epsilon", 1e-12), pen.book.dtype(n.input[0]))


def simplified_layer_norm(pen: Pen, n: NodeProto) -> None:
    """x / sqrt(mean x^2 + epsilon) * scale over the axes from `axis` on."""
    x, scale = n.input
    axis, dims = attribute(n, "axis", -1), pen.book.dims(x)
    if _reads(pen, n, 1) or (axis >= 0 and dims is None):
        return
    first = axis - len(dims) if axis >= 0 and dims is not None else axis
    _root_mean_square(pen, x, scale, list(range(first, 0)), attribute(n, "epsilon", 1e-5), pen.book.dtype(x))


def _root_mean_square(pen: Pen, x: str, scale: str, axes: list[int], epsilon: float, kind: int) -> None:
    wide = pen("Cast", x, to=TensorProto.FLOAT) if kind in HALF else x
    eps = pen.const(epsilon, "epsilon", np.float32) if kind in HALF else pen.like(epsilon, "epsilon", scale)
    size = pen("Sqrt", pen("Add", pen.reduce("ReduceMean", pen("Mul", wide, wide), axes), eps))
    y = pen("Div", wide, size)
    pen("Mul", pen("Cast", y, to=kind) if kind in HALF else y, scale, out=pen.node.output[0])


def _skip_sum(pen: Pen, n: NodeProto, bias: str) -> str:
    """The bias belongs to the side that a MatMul makes, where one does: there it was before it was fused."""
    total = n.output[3] if len(n.output) > 3 and n.output[3] else None
    sides = list(n.input[:2])
    if not bias:
        return pen("Add", *sides, out=total)
    made = [i for i in (0, 1) if _is_product(pen, sides[i])]
    if len(made) != 1:
        return pen("Add", pen("Add", *sides), bias, out=total)
    sides[made[0]] = pen("Add", sides[made[0]], bias)
    return pen("Add", *sides, out=total)


def _is_product(pen: Pen, x: str) -> bool:
    return any(x in node.output for node in pen.book.model.graph.node if "MatMul" in node.op_type)


def _reads(pen: Pen, n: NodeProto, *outputs: int) -> bool:
    """Does anybody read one of these outputs, which are not written here?"""
    return any(k < len(n.output) and n.output[k] and n.output[k] in pen.book.read for k in outputs)


def trim(*names: str) -> list[str]:
    """Names without the empty ones at the end."""
    kept = list(names)
    while kept and not kept[-1]:
        kept.pop()
    return kept


def others(n: NodeProto, *but: str) -> dict[str, Any]:
    """The node's attributes without these."""
    return {a.name: helper.get_attribute_value(a) for a in n.attribute if a.name not in but}


MICROSOFT: dict[str, Edit] = {
    "BiasAdd": bias_add,
    "BiasDropout": bias_dropout,
    "BiasGelu": gelu,
    "BiasSoftmax": bias_softmax,
    "BiasSplitGelu": bias_split_gelu,
    "BitmaskBiasDropout": bias_dropout,
    "FastGelu": fast_gelu,
    "FusedConv": fused_conv,
    "FusedGemm": fused_gemm,
    "FusedMatMul": fused_matmul,
    "FusedMatMulActivation": fused_matmul,
    "GatedAdd": gated_add,
    "Gelu": gelu,
    "GemmFastGelu": gemm_fast_gelu,
    "QuickGelu": quick_gelu,
    "ScaledSiLU": scaled_silu,
    "SimplifiedLayerNormalization": simplified_layer_norm,
    "SkipLayerNormalization": skip_layer_norm,
    "SkipSimplifiedLayerNormalization": skip_simplified_layer_norm,
    "TransposeMatMul": fused_matmul,
}
EDITS: dict[tuple[str, str], Edit] = {("com.microsoft", op): change for op, change in MICROSOFT.items()}
EDITS["", "SimplifiedLayerNormalization"] = simplified_layer_norm
"""ONNX Runtime puts this one into the default domain."""
