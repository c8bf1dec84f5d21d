"""Which values cannot be negative, and which cannot be positive, by the operators that made them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..graph import Graph, Node, Value

SMALL = 1 << 16  # constants up to this many elements are looked at
POSITIVE = {"Relu", "Sigmoid", "HardSigmoid", "Softplus", "Exp", "Softmax", "Abs", "Sqrt", "ReduceSumSquare", "ReduceL2"}
KEEPS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "Add", "Sum", "Mean",
         "Max", "Min", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Expand", "Identity", "Gather", "Tile"}
BILINEAR = {"Mul", "Div", "Conv", "ConvTranspose", "MatMul"}  # sums of products; a third operand is added


def signs(g: Graph) -> dict[Value, int]:
    """1 for values >= 0 everywhere, -1 for values <= 0 everywhere; nothing for the others."""
    found: dict[Value, int] = {}

    def sign(v: Value | None) -> int:
        if v is None:
            return 0
        if v not in found and v.is_const:
            found[v] = _sign_of_constant(v)
        return found.get(v, 0)

    for node in g.nodes:
        s = _sign(node, sign)
        if s and not node.domain:
            found.update((v, s) for v in node.outputs[:1])
    return {v: s for v, s in found.items() if s}


def _sign(node: Node, sign: Callable[[Value | None], int]) -> int:
    op, inputs = node.op, [v for v in node.inputs if v is not None]
    if op in POSITIVE:
        return 1
    if op in KEEPS:
        data = [sign(v) for v in inputs if v.is_float]
        if op in ("Max", "Min") and (1 if op == "Max" else -1) in data:
            return 1 if op == "Max" else -1
        return data[0] if data and len(set(data)) == 1 else 0
    if op in BILINEAR:
        s = sign(inputs[0]) * sign(inputs[1])
        return s if len(inputs) < 3 or sign(inputs[2]) == s else 0
    if op == "Clip":
        return 1 if len(node.inputs) > 1 and sign(node.inputs[1]) == 1 else 0
    if op == "Neg":
        return -sign(inputs[0])
    if op == "ConstantOfShape":
        value = node.attrs.get("value")
        return 1 if isinstance(value, np.ndarray) and bool((value >= 0).all()) else 0
    return 0


def _sign_of_constant(v: Value) -> int:
    if v.shape is None or not all(isinstance(d, int) for d in v.shape) or int(np.prod([v.dim(i) for i in range(v.rank)], dtype=np.int64)) > SMALL:
        return 0
    data = v.data
    if data is None or data.dtype.kind not in "fiu":
        return 0
    return 1 if (data >= 0).all() else -1 if (data <= 0).all() else 0
