"""What kind of layer an operator is.

A kind says how relevance may be shared, so that rules never learn operator names:

linear      weights: Conv, ConvTranspose, Gemm, MatMul (+ Add of a bias), Einsum with a constant
sum         Add, Sub, Sum, Mean of several data tensors
mean        linear without weights: average pooling, ReduceMean, ReduceSum, linear Resize; lengths (x times the slope adds up)
shift       data plus a constant that is no bias           scale      data times a constant
batchnorm   a BatchNormalization that could not be folded  norm       LayerNormalization and its relatives
product     data times data                                quotient   data over data
bilinear    MatMul, Gemm, Einsum of two data tensors       softmax    Softmax inside the network
relu        rectifiers: Relu, LeakyRelu, PRelu, Clip ...   smooth     any other function of one element
maxpool     one input wins: MaxPool, ReduceMax, Max ...    structure  moves elements: Reshape, Concat, Slice, Gather ...
other       has a derivative, and no reading as one of the above
control     If, Loop, Scan: their bodies hold layers
unknown     no derivative
"""

from __future__ import annotations

from collections.abc import Callable

from .graph import Graph, Node, Value
from .vjp import has_vjp, is_control

CONVOLUTIONS = {"Conv", "ConvTranspose"}
RECTIFIERS = {"Relu", "LeakyRelu", "PRelu", "Clip", "ThresholdedRelu"}
QUANTISERS = {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
SMOOTH = {
    *QUANTISERS,
    "Elu",
    "Selu",
    "Celu",
    "HardSigmoid",
    "HardSwish",
    "Sigmoid",
    "Tanh",
    "Softplus",
    "Softsign",
    "Mish",
    "Gelu",
    "Swish",
    "Erf",
    "Exp",
    "Log",
    "Sqrt",
    "Pow",
    "Abs",
    "Neg",
    "Reciprocal",
    "Sin",
    "Cos",
    "Tan",
    "Asin",
    "Acos",
    "Atan",
    "Sinh",
    "Cosh",
    "Asinh",
    "Acosh",
    "Atanh",
    "Mod",
}
MEANS = {"AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum", "CumSum", "ReduceL1", "ReduceL2"}
WINNERS = {"MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "TopK"}
NORMS = {
    "LayerNormalization",
    "InstanceNormalization",
    "GroupNormalization",
    "RMSNormalization",
    "LRN",
    "LpNormalization",
    "MeanVarianceNormalization",
}
STRUCTURE = {
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Split",
    "Concat",
    "Pad",
    "Gather",
    "GatherElements",
    "GatherND",
    "Expand",
    "Tile",
    "Where",
    "Cast",
    "CastLike",
    "Identity",
    "Dropout",
    "DepthToSpace",
    "SpaceToDepth",
    "ScatterElements",
    "ScatterND",
    "Trilu",
    "ReverseSequence",
    "Compress",
}
GATES = {"Sigmoid", "HardSigmoid", "Softmax"}


def kind_of(g: Graph, node: Node, data: set[Value]) -> str:
    """The kind of a layer that is a single node and not linear."""
    if is_control(node):
        return "control"
    op, n_data = node.op, sum(v is not None and v in data for v in node.inputs)
    if op == "Mul" and n_data == 2 and divisor(g, node) is not None:
        return "quotient"
    if op in _BY_OPERANDS:
        return _BY_OPERANDS[op](node, n_data, node.inputs[0] is not None and node.inputs[0] in data)
    for kind, ops in (
        ("relu", RECTIFIERS),
        ("smooth", SMOOTH),
        ("mean", MEANS),
        ("maxpool", WINNERS),
        ("norm", NORMS),
        ("structure", STRUCTURE),
    ):
        if op in ops:
            return kind
    if op == "Resize":
        return "structure" if node.attrs.get("mode", "nearest") == "nearest" else "mean"
    if op == "BatchNormalization":
        return "batchnorm"
    return "other" if has_vjp(g, node) else "unknown"


def divisor(g: Graph, node: Node) -> Value | None:
    """What a Div divides by; of a Mul the only operand that is one over something, as in x Reciprocal(Sqrt(mean of x x))."""
    if node.op == "Div":
        return node.inputs[1]
    found = [v for v in node.inputs if v is not None and _is_inverse(g.producer(v))]
    return found[0] if len(found) == 1 else None


def _is_inverse(node: Node | None) -> bool:
    if node is None or node.domain or node.op not in ("Reciprocal", "Div"):
        return False
    return node.op == "Reciprocal" or (node.inputs[0] is not None and node.inputs[0].is_const)


def _several(one: str, many: str) -> Callable[[Node, int, bool], str]:
    return lambda node, n, first: one if n == 1 else many


_BY_OPERANDS: dict[str, Callable[[Node, int, bool], str]] = {
    "Add": _several("shift", "sum"),
    "Sub": _several("shift", "sum"),
    "Sum": _several("shift", "sum"),
    "Mean": _several("shift", "sum"),
    "Mul": _several("scale", "product"),
    "Max": _several("relu", "maxpool"),
    "Min": _several("relu", "maxpool"),
    "Div": lambda node, n, first: "quotient" if n == 2 else "scale" if first else "smooth",
    "MatMul": lambda node, n, first: "bilinear",
    "Gemm": lambda node, n, first: "bilinear",
    "Einsum": lambda node, n, first: "bilinear",
    "Conv": lambda node, n, first: "bilinear",
    "ConvTranspose": lambda node, n, first: "bilinear",
    "GridSample": lambda node, n, first: "mean" if n == 1 and first else "other",
    "RoiAlign": lambda node, n, first: ("mean" if node.attrs.get("mode", "avg") == "avg" else "maxpool") if n == 1 else "other",
    "MaxRoiPool": _several("maxpool", "other"),
    "Softmax": lambda node, n, first: "softmax",
    "LogSoftmax": lambda node, n, first: "other",
}
