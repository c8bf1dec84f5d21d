"""Surgery before the graph is frozen: one spelling for what exporters spell differently. Each pass is Table -> None.

A tensor that a pass takes away is noted in `table.removed` with its successor, so that asking for it can be answered.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from .errors import TargetError, did_you_mean
from .graph import Array, Graph, Value
from .onnxio import Table, freeze, load
from .source import Source

CONVOLUTIONS = ("Conv", "ConvTranspose")
DENSE = ("Gemm", "MatMul")


@dataclass(frozen=True)
class Canonical:
    """The frozen graph, what it was made from, and the successors of removed tensors."""

    graph: Graph
    source: Source
    model: onnx.ModelProto
    removed: dict[str, str]

    def value(self, name: str) -> Value:
        """The tensor of that name; TargetError names the successor of a removed one, or close names."""
        known = {v.name: v for v in self.graph.inputs} | {v.name: v for n in self.graph.nodes for v in n.outputs}
        if name in known:
            return known[name]
        if name in self.removed:
            successor = self.removed[name]
            while successor in self.removed:
                successor = self.removed[successor]
            raise TargetError(f"tensor {name!r} was folded away when the graph was made canonical; use its successor {successor!r}")
        if any(v.is_const and v.name == name for n in self.graph.nodes for v in n.uses):
            raise TargetError(f"{name!r} is a weight; attributions are of inputs and of tensors that are computed from them")
        raise TargetError(f"the model has no tensor {name!r}{did_you_mean(name, known)}")


def canonicalise(source: Source, fold_bn: bool = True) -> Canonical:
    """Source -> frozen canonical graph. BatchNormalization is folded into its linear neighbour unless `fold_bn=False`."""
    table = load(source)
    constants_from_nodes(table)
    drop_pass_through(table)
    join_stacked_sums(table)
    if fold_bn:
        fold_scales_forward(table)
        fold_scales_backward(table)
    table.surgeon.cleanup(remove_unused_graph_inputs=False, remove_unused_node_outputs=False)
    return Canonical(freeze(table), source, table.model, table.removed)


# -- passes -------------------------------------------------------------------------------------------------------
def constants_from_nodes(table: Table) -> None:
    """Let passes see the value of a Constant node as they see an initialiser."""
    for node in table.surgeon.nodes:
        proto = table.protos[id(node)]
        if node.op == "Constant" and not node.domain and len(proto.attribute) == 1 and proto.attribute[0].name == "value":
            node.outputs[0].constant = proto.attribute[0].t


def drop_pass_through(table: Table) -> None:
    """Remove Identity, and Dropout at inference: they change nothing."""
    for node in table.surgeon.nodes:
        if node.domain or node.op not in ("Identity", "Dropout") or not node.inputs:
            continue
        mode = table_array(table, node.inputs[2]) if node.op == "Dropout" and len(node.inputs) > 2 and node.inputs[2].name else None
        if len(node.inputs) > 2 and node.inputs[2].name and (mode is None or bool(mode)):
            continue
        if any(o.outputs for o in node.outputs[1:]) or any(o.name in table.pinned for o in node.outputs):
            continue
        bypass(table, node)


def join_stacked_sums(table: Table) -> None:
    """ReduceSum(Concat(Unsqueeze(a), Unsqueeze(b) ...)) over the stacked axis is Sum(a, b ...)."""
    for node in table.surgeon.nodes:
        if node.op != "ReduceSum" or node.attrs.get("keepdims", 1) or len(node.inputs) < 2:
            continue
        stack, axes = maker(node.inputs[0]), table_array(table, node.inputs[1])
        if stack is None or stack.op != "Concat" or axes is None or axes.size != 1 or not sole(table, node.inputs[0]):
            continue
        axis = int(axes.reshape(-1)[0])
        parts = [maker(t) for t in stack.inputs]
        if axis != stack.attrs.get("axis") or not all(p is not None and p.op == "Unsqueeze" for p in parts):
            continue
        if all((a := table_array(table, p.inputs[1])) is not None and a.reshape(-1).tolist() == [axis] for p in parts if p is not None):
            table.removed[node.inputs[0].name] = node.outputs[0].name
            node.op, node.inputs, node.attrs = "Sum", [p.inputs[0] for p in parts if p is not None], {}
            table.protos.pop(id(node))


def fold_scales_forward(table: Table) -> None:
    """y = a * (L(x) + b) + c  becomes  L with weight a*W and bias a*b + c, per output channel."""
    for node in list(table.surgeon.nodes):
        linear, bias = linear_before(table, node)
        if linear is None:
            continue
        w = table_array(table, linear.inputs[weight_index(linear, table)])
        channels = channels_of(linear, w)
        if node.op == "BatchNormalization" and linear.op == "MatMul" and len(linear.outputs[0].shape or ()) != 2:
            continue
        affine = affine_of(table, node, channels, channel_axis_from_end(linear, w))
        b = bias_array(table, linear, bias)
        if affine is None or b is None or (linear.op == "MatMul" and bias is None and node.op in ("Add", "Sub")):
            continue
        a, c = affine
        if np.any(a != 1):
            set_constant(table, linear, weight_index(linear, table), scaled(linear, w, a))
        if bias is not None:
            set_constant(table, bias, constant_index(table, bias) or 0, (a * b + c).astype(w.dtype))
        elif linear.op == "MatMul":
            if np.any(c != 0):
                keep_shift(table, node, c.astype(w.dtype))
                continue
        else:
            set_constant(table, linear, 2, (a * b + c).astype(w.dtype))
        absorb(table, bias if bias is not None else linear, node)


def fold_scales_backward(table: Table) -> None:
    """L(a * x + c) + b  becomes  L with weight W*a and bias b + L(c), per input channel; only without zero padding."""
    for node in list(table.surgeon.nodes):
        if node.op != "BatchNormalization" or node.domain or not node.outputs or not sole(table, node.outputs[0]):
            continue
        linear = node.outputs[0].outputs[0]
        if linear.op not in ("Conv", *DENSE) or linear.inputs[0] is not node.outputs[0] or padded(linear) or linear.attrs.get("transA"):
            continue
        at = weight_index(linear, table)
        w = table_array(table, linear.inputs[at]) if at == 1 else None
        affine = affine_of(table, node, None, None)
        if w is None or affine is None or linear.attrs.get("alpha", 1.0) != 1.0 or linear.attrs.get("beta", 1.0) != 1.0:
            continue
        b = bias_array(table, linear, None)
        if b is None or linear.op == "MatMul" or linear.attrs.get("group", 1) != 1:
            continue
        a, c = affine
        rows = np.moveaxis(w, 1 if linear.op == "Conv" or linear.attrs.get("transB") else 0, -1)  # input channel last
        if rows.shape[-1] != a.size:
            continue
        set_constant(table, linear, 2, (b + (rows * c).reshape(rows.shape[0], -1).sum(1) if linear.op == "Conv" or linear.attrs.get("transB")
                                        else b + rows @ c).astype(w.dtype))
        folded = np.moveaxis(rows * a, -1, 1 if linear.op == "Conv" or linear.attrs.get("transB") else 0)
        set_constant(table, linear, at, np.ascontiguousarray(folded.astype(w.dtype)))
        table.removed[node.outputs[0].name] = linear.outputs[0].name
        linear.inputs[0] = node.inputs[0]
        node.outputs.clear()


# -- what a node is -----------------------------------------------------------------------------------------------
def table_array(table: Table, tensor: Any) -> Any:
    """Elements of a constant tensor (initialiser or Constant node), else None."""
    found = table.array(tensor)
    proto = getattr(tensor, "constant", None)
    if found is None and proto is not None:
        from .source import array_of
        found = array_of(proto, table.source.folder)
    return found


def maker(tensor: Any) -> Any:
    return tensor.inputs[0] if len(tensor.inputs) == 1 else None


def sole(table: Table, tensor: Any) -> bool:
    """Read by exactly one node, and by nobody who asks for it by name."""
    return len(tensor.outputs) == 1 and tensor.name not in table.pinned


def linear_before(table: Table, node: Any) -> tuple[Any, Any]:
    """(linear node, its bias Add or None) whose result only `node` reads; (None, None) otherwise."""
    if node.domain or node.op not in ("BatchNormalization", "Mul", "Div", "Add", "Sub") or not node.inputs:
        return None, None
    data = [t for t in node.inputs[:2] if table_array(table, t) is None] if node.op != "BatchNormalization" else node.inputs[:1]
    if len(data) != 1 or not sole(table, data[0]) or (node.op in ("Div", "Sub") and data[0] is not node.inputs[0]):
        return None, None
    before = maker(data[0])
    if before is not None and before.op == "Add" and not before.domain and constant_index(table, before) is not None:
        inner = before.inputs[1 - (constant_index(table, before) or 0)]
        linear = maker(inner)
        if linear is not None and linear.op == "MatMul" and is_linear(table, linear) and sole(table, inner):
            bias = table_array(table, before.inputs[constant_index(table, before) or 0])
            w = table_array(table, linear.inputs[1])
            return (linear, before) if w is not None and bias.size == w.shape[-1] else (None, None)
        return None, None
    return (before, None) if before is not None and is_linear(table, before) else (None, None)


def is_linear(table: Table, node: Any) -> bool:
    if node.domain or node.op not in (*CONVOLUTIONS, *DENSE):
        return False
    at = weight_index(node, table)
    return (at == 1 and table_array(table, node.inputs[1]) is not None and node.attrs.get("alpha", 1.0) == 1.0
            and node.attrs.get("beta", 1.0) == 1.0 and (node.op != "MatMul" or table_array(table, node.inputs[1]).ndim == 2))


def weight_index(node: Any, table: Table) -> int:
    return 0 if node.op in DENSE and table_array(table, node.inputs[0]) is not None else 1


def constant_index(table: Table, node: Any) -> int | None:
    found = [i for i, t in enumerate(node.inputs) if table_array(table, t) is not None]
    return found[0] if len(found) == 1 and len(node.inputs) == 2 else None


def channels_of(linear: Any, w: Array) -> int:
    if linear.op == "ConvTranspose":
        return int(w.shape[1]) * int(linear.attrs.get("group", 1))
    return int(w.shape[0] if linear.op == "Conv" or linear.attrs.get("transB") else w.shape[1])


def channel_axis_from_end(linear: Any, w: Array) -> int:
    """Where the output channel sits, counted from the last axis of the output."""
    return w.ndim - 1 if linear.op in CONVOLUTIONS else 1


def bias_array(table: Table, linear: Any, add: Any) -> Any:
    """The bias per output channel in float64, zeros when there is none, None when it is not a constant vector."""
    if add is not None:
        return table_array(table, add.inputs[constant_index(table, add) or 0]).reshape(-1).astype(np.float64)
    w = table_array(table, linear.inputs[1])
    if len(linear.inputs) < 3 or not linear.inputs[2].name:
        return np.zeros(channels_of(linear, w))
    b = table_array(table, linear.inputs[2])
    if b is None or (b.size not in (1, channels_of(linear, w))):
        return None
    return np.broadcast_to(b.reshape(-1), channels_of(linear, w)).astype(np.float64)


def affine_of(table: Table, node: Any, channels: int | None, axis: int | None) -> tuple[Array, Array] | None:
    """(a, c) per channel in float64 when the node computes a * x + c, else None."""
    if node.op == "BatchNormalization":
        arrays = [table_array(table, t) for t in node.inputs[1:5]]
        if any(v is None for v in arrays) or node.attrs.get("training_mode", 0) or len([o for o in node.outputs if o.name]) > 1:
            return None
        scale, shift, mean, var = (v.astype(np.float64) for v in arrays)
        a = scale / np.sqrt(var + node.attrs.get("epsilon", 1e-5))
        return a, shift - a * mean
    at = constant_index(table, node)
    if at is None or channels is None:
        return None
    k = table_array(table, node.inputs[at])
    shape = (1,) * (axis - k.ndim) + k.shape if axis is not None and k.ndim < axis else k.shape
    if axis is None or k.dtype.kind != "f" or any(d != 1 for i, d in enumerate(shape) if i != len(shape) - axis) or k.size not in (1, channels):
        return None
    v = np.broadcast_to(k.reshape(-1), channels).astype(np.float64)
    one, zero = np.ones(channels), np.zeros(channels)
    if node.op == "Div" and np.any(v == 0):
        return None
    return {"Mul": (v, zero), "Div": (1 / np.where(v == 0, 1, v), zero), "Add": (one, v), "Sub": (one, -v)}[str(node.op)]


def padded(node: Any) -> bool:
    return any(node.attrs.get("pads") or []) or node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")


def scaled(linear: Any, w: Array, a: Array) -> Array:
    """The weight with each output channel multiplied by a."""
    if linear.op == "ConvTranspose":
        groups = linear.attrs.get("group", 1)
        v = w.reshape(groups, w.shape[0] // groups, *w.shape[1:]) * a.reshape(groups, 1, -1, *[1] * (w.ndim - 2))
        return v.reshape(w.shape).astype(w.dtype)
    first = linear.op == "Conv" or linear.attrs.get("transB")
    return (w * (a.reshape(-1, *[1] * (w.ndim - 1)) if first else a)).astype(w.dtype)


# -- cuts and stitches --------------------------------------------------------------------------------------------
def bypass(table: Table, node: Any) -> None:
    """Let the node's readers read its input instead."""
    before, after = node.inputs[0], node.outputs[0]
    for reader in list(after.outputs):
        reader.inputs = [before if t is after else t for t in reader.inputs]
    table.removed[after.name] = before.name
    node.inputs.clear()
    node.outputs.clear()


def set_constant(table: Table, node: Any, index: int, array: Array) -> None:
    """Give the node a new constant input; the old one may have other readers and stays as it is."""
    import onnx_graphsurgeon as gs
    old = node.inputs[index].name if index < len(node.inputs) and node.inputs[index].name else f"{node.name or node.outputs[0].name}.bias"
    name = base = old if old.endswith("/folded") else f"{old}/folded"
    for n in itertools.count(1):
        if name not in table.names:
            break
        name = f"{base}_{n}"
    table.names.add(name)
    tensor = gs.Constant(name, array)
    while len(node.inputs) <= index:
        node.inputs.append(tensor)
    node.inputs[index] = tensor


def absorb(table: Table, linear: Any, node: Any) -> None:
    """The linear node takes over the name and the output of the node folded into it."""
    before, after = linear.outputs[0], node.outputs[0]
    table.removed[before.name] = after.name
    node.inputs.clear()
    node.outputs.clear()
    linear.outputs = [after]
    linear.name = node.name or linear.name


def keep_shift(table: Table, node: Any, shift: Array) -> None:
    """What remains of a scale and shift whose scale went into a MatMul: an Add."""
    node.op, node.attrs = "Add", {}
    table.protos.pop(id(node), None)
    node.inputs = [node.inputs[0]]
    set_constant(table, node, 1, shift)
