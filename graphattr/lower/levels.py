"""Quantised values that graphattr reads, kept apart from how ONNX Runtime moves quantisation."""

from __future__ import annotations

from ..graph import Graph, Node, Value
from .walk import Pass

MOVES = {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Gather", "Expand", "Tile"}
SINCE = 21


def needed(g: Graph) -> bool:
    """Whether the graph holds such values at all."""
    return g.opset >= SINCE and any(n.op == "DequantizeLinear" and signed(n) for n in g.nodes)


def signed(node: Node) -> bool:
    levels = node.inputs[0]
    return levels is not None and levels.dtype == "int8"


def apart(p: Pass, node: Node) -> Value | None:
    """Reshape(DequantizeLinear(q)) reads the sum of that one tensor: the same values, through which nothing is moved.

    ONNX Runtime quantises again behind what moves elements; from opset 21 on it takes those levels for bytes without sign and
    refuses the model where they are int8 (1.31, QDQPropagationTransformer).
    """
    made = p.made(node.inputs[0], "DequantizeLinear") if node.op in MOVES and node.inputs else None
    if made is None or not signed(made) or p.is_static(made.outputs[0]):
        return None
    x = p.g.emit("Sum", p.now(made.outputs[0]), out_shape=made.outputs[0].shape)
    others = [None if v is None else p.now(v) for v in node.inputs[1:]]
    return p.g.emit(node.op, x, *others, out_shape=node.outputs[0].shape, **node.attrs)
