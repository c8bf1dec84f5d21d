"""com.microsoft normalisations by the root mean square of a part of the last axis: GatedRMSNorm, BranchwiseRMSNorm."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto

from ..rewrite import Edit, Pen, Stay, attribute
from .heads import float_type, ints, padded, rank_of, width_of


def gated(pen: Pen, n: NodeProto) -> None:
    """x / sqrt(mean x^2 + epsilon) scale f(gate) over groups of as many elements as the scale has, in float32."""
    x, scale, gate = n.input
    kind, name = float_type(pen, x), attribute(n, "activation", "silu")
    if name not in ("silu", "swish", "sigmoid"):
        raise Stay(f"its activation {name!r} is not known")
    y = _normalised(pen, n, x, rank_of(pen, x, "input"), width_of(pen, scale, 0, "scale"))
    y = pen("Reshape", pen("Mul", y, _wide(pen, scale)), pen("Shape", x))
    g = _wide(pen, gate)
    opened = pen("Sigmoid", g) if name == "sigmoid" else pen("Mul", g, pen("Sigmoid", g))
    _narrow(pen, n, pen("Mul", y, opened), kind)


def branchwise(pen: Pen, n: NodeProto) -> None:
    """x / sqrt(mean x^2 + epsilon) scale over the last axis [C, H], or over each of its C parts of H elements."""
    x, scale = padded(n.input, 2)
    kind, rank, branches = float_type(pen, x), rank_of(pen, x, "input"), attribute(n, "num_branches", 0)
    width = width_of(pen, x, -1, "input")
    head = width // (branches or 1)
    count = branches or width_of(pen, x, -2, "input")
    y = _normalised(pen, n, x, rank if branches else rank - 1, head, flat=bool(branches))
    if scale:
        whole = rank_of(pen, scale, "scale") == 2 or width_of(pen, scale, 0, "scale") == count * head
        factor = _wide(pen, scale)
        y = pen("Mul", y, pen("Reshape", factor, ints(pen, [count, head])) if whole else factor)
    _narrow(pen, n, pen("Reshape", y, pen("Shape", x)), kind)


def _normalised(pen: Pen, n: NodeProto, x: str, rank: int, width: int, flat: bool = True) -> str:
    """x in float32, its last axis in groups of `width` when flat, each group by its root mean square."""
    wide = _wide(pen, x)
    if flat:
        wide = pen("Reshape", wide, ints(pen, [*[0] * (rank - 1), -1, width]))
    mean = pen.reduce("ReduceMean", pen("Mul", wide, wide), [-1])
    return pen("Div", wide, pen("Sqrt", pen("Add", mean, pen.const(attribute(n, "epsilon", 1e-5), "epsilon", np.float32))))


def _wide(pen: Pen, x: str) -> str:
    return x if pen.book.dtype(x) == TensorProto.FLOAT else pen("Cast", x, to=TensorProto.FLOAT)


def _narrow(pen: Pen, n: NodeProto, y: str, kind: int) -> None:
    if kind == TensorProto.FLOAT:
        pen("Identity", y, out=n.output[0])
    else:
        pen("Cast", y, out=n.output[0], to=kind)


MICROSOFT: dict[str, Edit] = {"BranchwiseRMSNorm": branchwise, "GatedRMSNorm": gated}
EDITS: dict[tuple[str, str], Edit] = {("com.microsoft", op): change for op, change in MICROSOFT.items()}
