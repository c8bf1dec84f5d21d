"""ONNX Runtime's blocked layout (NCHWc): a sum or product with one plain operand throws all that follows out of it.

An identity (a depthwise 1x1 convolution with weight 1, exact) on the plain operand keeps the rest blocked. Sums and
products with a number leave it too, and are such convolutions as well: the slope of SiLU, s + y (1 - s), stays blocked.
"""

from __future__ import annotations

import math

from ..graph import Graph, Node, Value
from ..simplify import replay
from .walk import Pass, is_image, number, per_channel

JOINS = {"Add", "Mul", "Sum"}
FOLLOWS = {"Relu", "Sigmoid", "Tanh", "BatchNormalization", "Resize"}
FUSED = {"HardSigmoid", "LeakyRelu", "Clip"}  # only right behind a convolution, or one and a sum
POOLS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
BLOCK = 16


def stay_blocked(g: Graph) -> Graph:
    """Identities on the plain operands of sums and products of ours that also have a blocked one and feed such work."""
    p = Pass(g)
    held: set[Value] = set()

    def at(new: Graph, node: Node, stands: dict[Value, Value]) -> list[Value] | None:
        operands = [v for v in node.inputs if v is not None]
        if node.op in JOINS and _mixed(p, node, operands, held):
            with new.scope(node.outputs[0].name.rpartition("/")[0]):
                entered = [stands.get(v, v) if v in held else per_channel(new, stands.get(v, v), 1.0) for v in operands]
                held.add(node.outputs[0])
                return [new.emit(node.op, *entered, out_shape=node.outputs[0].shape)]
        line = _line(p, node, held)
        if line is not None:
            with new.scope(node.outputs[0].name.rpartition("/")[0]):
                held.add(node.outputs[0])
                return [per_channel(new, stands.get(line[0], line[0]), *line[1:])]
        if _is_blocked(p, node, operands, held):
            held.update(node.outputs)
        return None

    return replay(g, at)


def _mixed(p: Pass, node: Node, operands: list[Value], held: set[Value]) -> bool:
    y = node.outputs[0]
    if (
        not p.old.is_ours(y)
        or not is_image(y)
        or any(v.shape != y.shape for v in operands)
        or all(v in held for v in operands)
    ):
        return False
    return any(v in held for v in operands) and _feeds(p, y)


def _feeds(p: Pass, y: Value) -> bool:
    """Whether somebody reads y who may work on blocks."""
    return any(n.op in JOINS | FOLLOWS | {"Conv", "Sub"} for n in p.users.get(y, ()))


def _line(p: Pass, node: Node, held: set[Value]) -> tuple[Value, float, float | None] | None:
    """(x, weight, bias) when a node of ours is weight x + bias, exactly, of a blocked x."""
    y = node.outputs[0] if len(node.outputs) == 1 else None
    if y is None or node.domain or not p.old.is_ours(y) or not is_image(y) or not _feeds(p, y):
        return None
    x, other = (*node.inputs, None)[:2]
    if node.op in ("Add", "Mul", "Sub") and number(x) is not None:
        x, other, first = other, x, -1.0
    else:
        first = 1.0
    c = number(other)
    if x is None or x not in held or x.shape != y.shape or (c is None and node.op != "Neg"):
        return None
    if node.op == "Neg":
        return x, -1.0, None
    assert c is not None
    if node.op == "Add":
        return x, 1.0, c
    if node.op == "Sub":
        return x, first, -first * c
    if node.op == "Mul":
        return x, c, None
    exact = node.op == "Div" and c != 0 and abs(math.frexp(c)[0]) == 0.5
    return (x, 1 / c, None) if exact else None


def _is_blocked(p: Pass, node: Node, operands: list[Value], held: set[Value]) -> bool:
    """Whether ONNX Runtime keeps the node's result blocked (its nchwc_transformer.cc)."""
    if node.domain or len(node.outputs) != 1 or not operands:
        return False
    x, y = operands[0], node.outputs[0]
    if node.op == "Conv":
        return _blocked_conv(p, node, x)
    if y.shape is None or len(y.shape) != 4 or not isinstance(y.shape[1], int) or y.dtype != x.dtype:
        return False
    if node.op in POOLS:
        return is_image(y) and y.dim(1) % BLOCK == 0
    if node.op == "Concat":
        return node.attrs.get("axis") == 1 and all(v in held and v.dim(1) % BLOCK == 0 for v in operands)
    if node.op in JOINS:
        return all(v in held and v.shape == y.shape for v in operands)
    behind = p.made(x, "Conv", "Add") is not None and len(p.users[x]) == 1
    return x in held and (node.op in FOLLOWS or (node.op in FUSED and behind))


def _blocked_conv(p: Pass, node: Node, x: Value) -> bool:
    w, channels = node.inputs[1], (x.shape or (None, None))[1]
    few = isinstance(channels, int) and channels < BLOCK
    if w is None or not p.is_static(w) or w.rank != 4 or not (few or is_image(x)):
        return False
    group, outs, ins = node.attrs.get("group", 1), w.dim(0), w.dim(1)
    if group == 1:
        return ins < BLOCK or ins % 4 == 0
    return outs % 4 == 0 if ins == 1 and outs == group else ins % BLOCK == 0 and outs // group % BLOCK == 0
