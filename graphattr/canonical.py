"""Surgery before the graph is frozen: one spelling for what exporters spell differently. Each pass is Table -> None.

A tensor that a pass takes away is noted in `table.removed` with its successor, so that asking for it can be answered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from .errors import TargetError, did_you_mean
from .folding import fold_scales_backward, fold_scales_forward, join_pads
from .freeze import freeze
from .graph import Graph, Value
from .recurrent import write_out
from .source import Source
from .surgery import Table, load, maker

FEW = 64
NUMERIC = ("Add", "Cast", "Concat", "ConstantOfShape", "Gather", "Mul", "Reshape", "Shape", "Slice", "Squeeze", "Sub",
           "Transpose", "Unsqueeze")


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
            raise TargetError(
                f"tensor {name!r} was folded away when the graph was made canonical; use its successor {successor!r}"
            )
        if any(v.is_const and v.name == name for n in self.graph.nodes for v in n.uses):
            raise TargetError(f"{name!r} is a weight; attributions are of inputs and of tensors that are computed from them")
        raise TargetError(f"the model has no tensor {name!r}{did_you_mean(name, known)}")


def canonicalise(source: Source, fold_bn: bool = True) -> Canonical:
    """Source -> frozen canonical graph. BatchNormalization is folded into its linear neighbour unless `fold_bn=False`.

    LSTM, GRU and RNN are written out in time.
    """
    table = load(source)
    drop_pass_through(table)
    work_out_numbers(table)
    turn_weights(table)
    cancel_turns(table)
    join_stacked_sums(table)
    sums_of_two(table)
    join_pads(table)
    if fold_bn:
        fold_scales_forward(table)
        fold_scales_backward(table)
    table.surgeon.cleanup(remove_unused_graph_inputs=False, remove_unused_node_outputs=False)
    return Canonical(freeze(table, write_out), source, table.model, table.removed)


# -- passes -------------------------------------------------------------------------------------------------------
def drop_pass_through(table: Table) -> None:
    """Remove Identity, and Dropout at inference: they change nothing."""
    for node in table.nodes:
        if node.domain or node.op not in ("Identity", "Dropout") or not node.inputs or _trains(table, node):
            continue
        if any(o.outputs for o in node.outputs[1:]) or any(o.name in table.pinned for o in node.outputs):
            continue
        table.bypass(node)


def _trains(table: Table, node: Any) -> bool:
    """Whether a Dropout is, or may be, in training mode."""
    if len(node.inputs) < 3 or not node.inputs[2].name:
        return False
    mode = table.array(node.inputs[2])
    return mode is None or bool(mode)


def work_out_numbers(table: Table) -> None:
    """A few whole numbers that constants alone determine are a constant: torch writes the widths of a Pad as eight nodes."""
    for node in table.nodes:
        proto = table.protos.get(id(node))
        if node.domain or node.op not in NUMERIC or proto is None or node.outputs[0].name in table.pinned:
            continue
        given = {name: _numbers(table, t) for name, t in zip(proto.input, node.inputs, strict=True) if name}
        if any(v is None for v in given.values()):
            continue
        found = np.asarray(next(iter(ReferenceEvaluator(proto, opsets={"": table.opset}).run(None, given))))
        if found.dtype.kind != "i" or found.size > FEW:
            continue
        for reader in list(node.outputs[0].outputs):
            for i, tensor in enumerate(reader.inputs):
                if tensor is node.outputs[0]:
                    table.set_constant(reader, i, found)
        table.discard(node)


def _numbers(table: Table, tensor: Any) -> Any:
    """The elements of a small constant of whole numbers; None of anything else."""
    if isinstance(tensor.shape, list | tuple) and any(not isinstance(d, int) or d > FEW for d in tensor.shape):
        return None
    held = table.array(tensor)
    return held if held is not None and held.dtype.kind == "i" and held.size <= FEW else None


def turn_weights(table: Table) -> None:
    """Transpose of a constant is a constant: exporters write the weight of a bias-free dense layer so."""
    for node in table.nodes:
        if node.op != "Transpose" or node.domain or node.outputs[0].name in table.pinned:
            continue
        held = table.array(node.inputs[0])
        if held is None:
            continue
        turned = np.transpose(held, node.attrs.get("perm"))
        for reader in list(node.outputs[0].outputs):
            for i, tensor in enumerate(reader.inputs):
                if tensor is node.outputs[0]:
                    table.set_constant(reader, i, turned)
        table.discard(node)


def cancel_turns(table: Table) -> None:
    """A Transpose that undoes the one before it: readers read what the first one turned."""
    for node in table.nodes:
        first = maker(node.inputs[0]) if node.op == "Transpose" and not node.domain else None
        if first is None or first.op != "Transpose" or first.domain or node.outputs[0].name in table.pinned:
            continue
        one, two = first.attrs.get("perm"), node.attrs.get("perm")
        if (one is None) != (two is None) or (one is not None and [one[i] for i in two] != sorted(one)):
            continue
        turned, node.inputs = node.inputs[0], [first.inputs[0]]
        table.bypass(node)
        if not turned.outputs and turned.name not in table.pinned:
            table.bypass(first)


def sums_of_two(table: Table) -> None:
    """Sum(a, b) is a + b, which may be a bias."""
    for node in table.nodes:
        if node.op == "Sum" and not node.domain and len(node.inputs) == 2:
            table.rewrite(node, "Add", list(node.inputs))


def join_stacked_sums(table: Table) -> None:
    """ReduceSum(Concat(Unsqueeze(a), Unsqueeze(b) ...)) over the stacked axis is Sum(a, b ...)."""
    for node in table.nodes:
        if node.op != "ReduceSum" or node.domain or node.attrs.get("keepdims", 1) or len(node.inputs) < 2:
            continue
        stack = maker(node.inputs[0])
        if stack is None or stack.op != "Concat" or not table.sole(node.inputs[0]):
            continue
        axis, parts = stack.attrs.get("axis"), [maker(t) for t in stack.inputs]
        if _axes(table, node) == [axis] and all(
            p is not None and p.op == "Unsqueeze" and _axes(table, p) == [axis] for p in parts
        ):
            table.removed[node.inputs[0].name] = node.outputs[0].name
            table.rewrite(node, "Sum", [p.inputs[0] for p in parts])


def _axes(table: Table, node: Any) -> list[int] | None:
    """The constant axes input of a node."""
    found = table.array(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if found is None else [int(a) for a in found.reshape(-1)]
