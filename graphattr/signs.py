"""Which values cannot be negative, and which cannot be positive, by the operators that made them."""

from __future__ import annotations

import enum

import ml_dtypes
import numpy as np

from .graph import Graph, Node, Value

SMALL = 1 << 16  # constants up to this many elements are looked at


class Sign(enum.Flag):
    """What is known of every element; ZERO is both."""

    ANY = 0
    NONNEGATIVE = 1
    NONPOSITIVE = 2
    ZERO = 3

    def __neg__(self) -> Sign:
        return (Sign.NONPOSITIVE if Sign.NONNEGATIVE in self else Sign.ANY) | (
            Sign.NONNEGATIVE if Sign.NONPOSITIVE in self else Sign.ANY
        )

    def __mul__(self, other: Sign) -> Sign:
        if Sign.ZERO in (self, other):
            return Sign.ZERO
        return Sign.ANY if Sign.ANY in (self, other) else Sign.NONNEGATIVE if self == other else Sign.NONPOSITIVE


NONNEGATIVE = {"Relu", "Sigmoid", "HardSigmoid", "Softplus", "Exp", "Softmax", "Abs", "Sqrt", "ReduceSumSquare", "ReduceL2"}
POOLS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
MOVES = {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split", "Concat", "Expand", "Tile"}
MOVES |= {"Identity", "Dropout", "Cast", "CastLike", "Gather", "DepthToSpace", "SpaceToDepth"}
SUMS = {"Add", "Sum", "Mean", "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"}
PRODUCTS = {"Mul", "Div", "Conv", "ConvTranspose", "MatMul", "Gemm"}  # sums of products; a third operand is added


def signs(g: Graph) -> dict[Value, Sign]:
    """The sign of each value of the graph."""
    found: dict[Value, Sign] = {}
    for node in g.nodes:
        operands = [v for v in node.inputs if v is not None and v.is_float]
        for v in operands:
            if v.is_const and v not in found:
                found[v] = _sign_of_constant(v)
        sign = _sign(node, [found.get(v, Sign.ANY) for v in operands]) if not node.domain else Sign.ANY
        found.update((v, sign) for v in (node.outputs if node.op == "Split" else node.outputs[:1]))
    return found


def nonnegative(g: Graph) -> frozenset[Value]:
    """Values that cannot be negative."""
    return frozenset(v for v, sign in signs(g).items() if Sign.NONNEGATIVE in sign)


def _sign(node: Node, data: list[Sign]) -> Sign:
    if node.op in NONNEGATIVE:
        return Sign.NONNEGATIVE
    if node.op == "ConstantOfShape":
        value = node.attrs.get("value")
        return _sign_of(value) if isinstance(value, np.ndarray) else Sign.ZERO
    if not data:
        return Sign.ANY
    common = data[0]
    for s in data[1:]:
        common &= s
    if node.op in POOLS or node.op in MOVES or node.op in SUMS:
        return common
    if node.op in ("Max", "Min"):
        enough = Sign.NONNEGATIVE if node.op == "Max" else Sign.NONPOSITIVE
        return common | (enough if any(enough in s for s in data) else Sign.ANY)
    if node.op in PRODUCTS and len(data) > 1 and node.attrs.get("alpha", 1) > 0 and node.attrs.get("beta", 1) > 0:
        product = data[0] * data[1]
        return product & data[2] if len(data) > 2 else product
    if node.op == "DequantizeLinear":
        return data[0] if _from_lowest(node) else Sign.ANY
    if node.op == "Clip":
        bounded = len(data) > 1 and node.inputs[1] is not None and Sign.NONNEGATIVE in data[1]
        return Sign.NONNEGATIVE if bounded else Sign.ANY
    return -data[0] if node.op == "Neg" else Sign.ANY


def _from_lowest(node: Node) -> bool:
    """Whether no level is below the zero point."""
    levels, _, zero = (*node.inputs, None)[:3]
    dtype = levels.dtype if levels is not None else None
    if dtype is None or "int" not in dtype.name:
        return False
    lowest: int = ml_dtypes.iinfo(dtype).min  # type: ignore[no-untyped-call]
    held = None if zero is None else zero.data
    return bool(lowest == 0 if zero is None else held is not None and (held.astype(np.int64) == lowest).all())


def _sign_of_constant(v: Value) -> Sign:
    sizes = [d for d in v.shape or () if isinstance(d, int)]
    small = v.shape is not None and len(sizes) == len(v.shape) and np.prod(sizes, dtype=np.int64) <= SMALL
    data = v.data if small else None
    return Sign.ANY if data is None else _sign_of(data)


def _sign_of(data: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> Sign:
    if data.dtype.kind not in "fiu":
        return Sign.ANY
    return (Sign.NONNEGATIVE if (data >= 0).all() else Sign.ANY) | (Sign.NONPOSITIVE if (data <= 0).all() else Sign.ANY)
