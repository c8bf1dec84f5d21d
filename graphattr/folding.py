"""Scales and shifts folded into the linear node beside them: BatchNormalization, and constants per channel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .graph import Array
from .surgery import Table, maker

CONVOLUTIONS = ("Conv", "ConvTranspose")
DENSE = ("Gemm", "MatMul")
AFFINE = ("BatchNormalization", "Mul", "Div", "Add", "Sub")


@dataclass(frozen=True)
class Linear:
    """A linear node with constant weight, and the Add that holds its bias where that is a node of its own."""

    node: Any
    w: Array
    add: Any = None

    @property
    def channels(self) -> int:
        """Number of output channels."""
        if self.node.op == "ConvTranspose":
            return int(self.w.shape[1]) * int(self.node.attrs.get("group", 1))
        return int(self.w.shape[0 if self.rows_first else 1])

    @property
    def rows_first(self) -> bool:
        """Whether the weight's first axis is the output channel."""
        return bool(self.node.op == "Conv" or self.node.attrs.get("transB"))

    @property
    def axis(self) -> int:
        """Where the output channel sits in the output, counted from the last axis."""
        return self.w.ndim - 1 if self.node.op in CONVOLUTIONS else 1

    def scaled(self, a: Array) -> Array:
        """The weight with each output channel multiplied by a."""
        if self.node.op == "ConvTranspose":
            groups = self.node.attrs.get("group", 1)
            blocks = self.w.reshape(groups, -1, *self.w.shape[1:]) * a.reshape(groups, 1, -1, *[1] * (self.w.ndim - 2))
            return blocks.reshape(self.w.shape).astype(self.w.dtype)
        return (self.w * (a.reshape(-1, *[1] * (self.w.ndim - 1)) if self.rows_first else a)).astype(self.w.dtype)


def fold_scales_forward(table: Table) -> None:
    """y = a (L(x) + b) + c  becomes  L with weight a W and bias a b + c, per output channel."""
    for node in table.nodes:
        linear = linear_before(table, node)
        b = None if linear is None else bias_of(table, linear)
        affine = None if linear is None or b is None else affine_of(table, node, linear.channels, linear.axis)
        if linear is None or b is None or affine is None:
            continue
        (a, c), last = affine, linear.add or linear.node
        if linear.node.op == "MatMul" and linear.add is None and node.op in ("Add", "Sub"):
            continue  # a bias already: layers.py sees MatMul + Add as one
        if node.op in ("Mul", "Div") and np.any(a < 0) and not shifted(table, node, linear):
            continue  # a negative factor alone is a layer of its own; before a shift it is a normalisation written out
        if np.any(a != 1):
            table.set_constant(linear.node, 1, linear.scaled(a))
        shift = (a * b + c).astype(linear.w.dtype)
        if linear.add is not None:
            table.set_constant(linear.add, table.constant_operand(linear.add) or 0, shift)
        elif linear.node.op != "MatMul":
            table.set_constant(linear.node, 2, shift)
        elif np.any(shift != 0):
            table.rewrite(node, "Add", [linear.node.outputs[0]])
            table.set_constant(node, 1, shift)
            continue
        table.absorb(last, node)


def fold_scales_backward(table: Table) -> None:
    """L(a x + c) + b  becomes  L with weight W a and bias b + L(c), per input channel; only without zero padding and groups.

    What is folded is a BatchNormalization, or one written out: constant factors and shifts per channel, both of them.
    """
    for reader in table.nodes:
        linear = as_linear(table, reader)
        if linear is None or reader.op not in ("Conv", "Gemm") or padded(reader):
            continue
        b = bias_of(table, linear)
        w = linear.w if linear.rows_first else linear.w.T  # (out, in, ...)
        if b is None or reader.attrs.get("transA") or reader.attrs.get("group", 1) != 1:
            continue
        chain, a, c = affines_before(table, reader.inputs[0], w.shape[1], linear.axis)
        if not chain:
            continue
        inner = (1, -1, *[1] * (w.ndim - 2))
        table.set_constant(reader, 2, (b + (w * c.reshape(inner)).reshape(len(w), -1).sum(1)).astype(w.dtype))
        folded = (w * a.reshape(inner)).astype(w.dtype)
        table.set_constant(reader, 1, folded if linear.rows_first else folded.T)
        reader.inputs[0] = data_of(table, chain[-1])
        for node in chain:
            table.removed[node.outputs[0].name] = reader.outputs[0].name
            table.discard(node)


def affines_before(table: Table, tensor: Any, channels: int, axis: int) -> tuple[list[Any], Array, Array]:
    """The nodes that make a x + c of some x, last first, and what (a, c) they amount to; none unless that is a normalisation."""
    chain: list[Any] = []
    a, c = np.ones(channels), np.zeros(channels)
    while table.sole(tensor) and (node := maker(tensor)) is not None:
        at = data_of(table, node)
        found = affine_of(table, node, channels, axis) if at is not None else None
        if found is None or found[0].size != channels:
            break
        chain, a, c, tensor = [*chain, node], a * found[0], a * found[1] + c, at
    ops = {"shift" if n.op in ("Add", "Sub") else "norm" if n.op == "BatchNormalization" else "scale" for n in chain}
    if not ("norm" in ops or len(ops) == 2) or _normalised(table, tensor):
        return [], a, c
    return chain, a, c


def _normalised(table: Table, tensor: Any) -> bool:
    """Whether the tensor is what a normalisation over data gives, whose factor and shift per channel belong to that."""
    node = maker(tensor)
    while node is not None and node.op in ("Reshape", "Transpose"):
        node = maker(node.inputs[0])
    if node is None or node.op not in ("Div", "Mul"):
        return node is not None and node.op.endswith("Normalization") and node.op != "BatchNormalization"
    return table.constant_operand(node) is None


def join_pads(table: Table) -> None:
    """Zeros around the input of a convolution are its padding: rules then know that they are no data."""
    for reader in table.nodes:
        pad = maker(reader.inputs[0]) if reader.op == "Conv" and not reader.domain else None
        if pad is None or pad.op != "Pad" or pad.domain or not table.sole(reader.inputs[0]):
            continue
        widths = _zero_widths(table, pad)
        if widths is None or reader.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            continue
        half = len(widths) // 2
        outer = [*widths[:2], *widths[half : half + 2]]
        if min(widths) < 0 or any(outer):
            continue
        inner = [*widths[2:half], *widths[half + 2 :]]
        own = reader.attrs.get("pads") or [0] * len(inner)
        table.set_attributes(reader, auto_pad=None, pads=[p + q for p, q in zip(own, inner, strict=True)])
        table.removed[reader.inputs[0].name] = reader.outputs[0].name
        reader.inputs[0] = pad.inputs[0]
        table.discard(pad)


def _zero_widths(table: Table, pad: Any) -> list[int] | None:
    """How many zeros a Pad writes at the start of each axis, then at the end of each; None where it does anything else."""
    given = [table.array(t) if t.name else None for t in pad.inputs[1:]]
    named = [bool(t.name) for t in pad.inputs[1:]]
    if pad.attrs.get("mode", "constant") != "constant" or any(n and v is None for n, v in zip(named, given, strict=True)):
        return None
    widths, value, axes = [*given, None, None, None][:3]
    if widths is None or (value is not None and np.any(value != 0)):
        return None
    if axes is None:
        return [int(v) for v in widths]
    rank = table.rank(pad.inputs[0])
    if rank is None:
        return None
    full = np.zeros((2, rank), np.int64)
    full[:, axes.reshape(-1) % rank] = widths.reshape(2, -1)
    return [int(v) for v in full.reshape(-1)]


# -- what a node is -----------------------------------------------------------------------------------------------
def as_linear(table: Table, node: Any) -> Linear | None:
    """The node as a linear one: constant weight on the right, no scale factors."""
    if node is None or node.domain or node.op not in (*CONVOLUTIONS, *DENSE) or table.array(node.inputs[0]) is not None:
        return None
    w = table.array(node.inputs[1])
    plain = node.attrs.get("alpha", 1.0) == 1.0 and node.attrs.get("beta", 1.0) == 1.0
    return Linear(node, w) if w is not None and plain and (node.op != "MatMul" or w.ndim == 2) else None


def data_of(table: Table, node: Any) -> Any:
    """What a node scales or shifts by constants; None for a node that does something else."""
    if node.domain or node.op not in AFFINE or len(node.inputs) < 2:
        return None
    at = 1 if node.op == "BatchNormalization" else table.constant_operand(node)
    return None if at is None or (at == 0 and node.op in ("Div", "Sub")) else node.inputs[1 - at]


def linear_before(table: Table, node: Any) -> Linear | None:
    """The linear node (with its bias Add) whose result only this scale or shift reads."""
    data = data_of(table, node)
    if data is None or not table.sole(data):
        return None
    before = maker(data)
    linear = as_linear(table, before)
    if linear is None and before is not None and before.op == "Add" and not before.domain:
        linear = _with_bias(table, before)
    if linear is not None and linear.node.op == "MatMul" and node.op == "BatchNormalization":
        # BatchNormalization's channel is axis 1: the last one only of a matrix
        return linear if table.rank((linear.add or linear.node).outputs[0]) == 2 else None
    return linear


def _with_bias(table: Table, add: Any) -> Linear | None:
    at = table.constant_operand(add)
    inner = add.inputs[1 - at] if at is not None else None
    linear = as_linear(table, maker(inner)) if inner is not None and table.sole(inner) else None
    if linear is None or linear.node.op != "MatMul":
        return None
    bias = table.array(add.inputs[at])
    fits = bias is not None and bias.size == linear.channels == bias.shape[-1]
    return Linear(linear.node, linear.w, add) if fits else None


def bias_of(table: Table, linear: Linear) -> Array | None:
    """The bias per output channel in float64: zeros when there is none, None when it is no constant vector."""
    if linear.add is not None:
        held = table.array(linear.add.inputs[table.constant_operand(linear.add) or 0])
    elif len(linear.node.inputs) < 3 or not linear.node.inputs[2].name:
        return np.zeros(linear.channels)
    else:
        held = table.array(linear.node.inputs[2])
    if held is None or held.size not in (1, linear.channels) or any(d != 1 for d in held.shape[:-1]):
        return None
    return np.broadcast_to(held.reshape(-1), linear.channels).astype(np.float64)


def affine_of(table: Table, node: Any, channels: int, axis: int) -> tuple[Array, Array] | None:
    """(a, c) per channel in float64 when the node computes a x + c there, else None. `axis` counts from the last one."""
    if node.op == "BatchNormalization":
        return normalisation(table, node)
    k = table.array(node.inputs[table.constant_operand(node) or 0])
    if k is None or k.dtype.kind != "f" or k.size not in (1, channels):
        return None
    if any(d != 1 for i, d in enumerate(k.shape) if i != k.ndim - axis):
        return None  # varies along another axis than the channel
    v = np.broadcast_to(k.reshape(-1), channels).astype(np.float64)
    one, zero = np.ones_like(v), np.zeros_like(v)
    if node.op == "Div":
        return None if np.any(v == 0) else (1 / v, zero)
    return {"Mul": (v, zero), "Add": (one, v), "Sub": (one, -v)}[str(node.op)]


def shifted(table: Table, node: Any, linear: Linear) -> bool:
    """Whether only an Add or Sub of a constant per channel reads the node."""
    reader = node.outputs[0].outputs[0] if table.sole(node.outputs[0]) else None
    if reader is None or reader.op not in ("Add", "Sub") or table.constant_operand(reader) is None:
        return False
    known = affine_of(table, reader, linear.channels, linear.axis) is not None
    return known and not (reader.op == "Sub" and table.constant_operand(reader) == 0)


def normalisation(table: Table, node: Any) -> tuple[Array, Array] | None:
    """(a, c) of a BatchNormalization at inference: a = scale / sqrt(var + epsilon), c = bias - a mean."""
    arrays = [table.array(t) for t in node.inputs[1:5]]
    if len(arrays) < 4 or node.attrs.get("training_mode", 0) or sum(bool(o.name) for o in node.outputs) > 1:
        return None
    found = [v.astype(np.float64) for v in arrays if v is not None]
    if len(found) < 4:
        return None
    scale, shift, mean, var = found
    a = scale / np.sqrt(var + node.attrs.get("epsilon", 1e-5))
    return a, shift - a * mean


def padded(node: Any) -> bool:
    return any(node.attrs.get("pads") or []) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
