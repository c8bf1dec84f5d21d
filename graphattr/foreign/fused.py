"""com.microsoft: what ONNX Runtime's optimiser fuses, taken apart again."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper

from ..rewrite import Edit, Pen, attribute

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
    """alpha * a' b', each transposed in its last two axes where asked for."""
    if attribute(n, "transBatchA", 0) or attribute(n, "transBatchB", 0):
        return
    sides, alpha = list(n.input), attribute(n, "alpha", 1.0)
    turned = [k for k, name in enumerate(("transA", "transB")) if attribute(n, name, 0)]
    ranks = {k: len(dims) for k in turned if (dims := pen.book.dims(sides[k])) is not None}
    if len(ranks) != len(turned) or any(r < 2 for r in ranks.values()):
        return
    for k, r in ranks.items():
        sides[k] = pen("Transpose", sides[k], perm=[*range(r - 2), r - 1, r - 2])
    y = pen("MatMul", *sides, out=None if alpha != 1 else n.output[0])
    if alpha != 1:
        pen("Mul", y, pen.like(alpha, "alpha", n.input[0]), out=n.output[0])


def gelu(pen: Pen, n: NodeProto) -> None:
    """x (1 + erf(x / sqrt 2)) / 2, of x + bias where there is one."""
    x = pen("Add", *n.input) if len(n.input) > 1 and n.input[1] else n.input[0]
    c = [pen.like(v, k, n.input[0]) for k, v in (("root", math.sqrt(2)), ("one", 1.0), ("half", 0.5))]
    pen("Mul", pen("Mul", x, pen("Add", pen("Erf", pen("Div", x, c[0])), c[1])), c[2], out=n.output[0])


def fast_gelu(pen: Pen, n: NodeProto) -> None:
    """x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2, of x + bias where there is one."""
    x = pen("Add", *n.input) if len(n.input) > 1 and n.input[1] else n.input[0]
    root = math.sqrt(2 / math.pi)
    c = [pen.like(v, k, n.input[0]) for k, v in (("cubic", 0.044715 * root), ("linear", root), ("one", 1.0), ("half", 0.5))]
    inner = pen("Mul", x, pen("Add", pen("Mul", pen("Mul", x, x), c[0]), c[1]))
    pen("Mul", pen("Mul", x, pen("Add", pen("Tanh", inner), c[2])), c[3], out=n.output[0])


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
    total = n.output[3] if len(n.output) > 3 and n.output[3] else None
    if not bias:
        return pen("Add", n.input[0], n.input[1], out=total)
    return pen("Add", pen("Add", n.input[0], n.input[1]), bias, out=total)


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
    "BiasGelu": gelu,
    "FastGelu": fast_gelu,
    "FusedConv": fused_conv,
    "FusedGemm": fused_gemm,
    "FusedMatMul": fused_matmul,
    "Gelu": gelu,
    "QuickGelu": quick_gelu,
    "SimplifiedLayerNormalization": simplified_layer_norm,
    "SkipLayerNormalization": skip_layer_norm,
    "SkipSimplifiedLayerNormalization": skip_simplified_layer_norm,
    "TransposeMatMul": fused_matmul,
}
EDITS: dict[tuple[str, str], Edit] = {("com.microsoft", op): change for op, change in MICROSOFT.items()}
EDITS["", "SimplifiedLayerNormalization"] = simplified_layer_norm
"""ONNX Runtime puts this one into the default domain."""
