"""Operators of other domains, and quantised ones, as operators of the standard domain, so that derivatives can pass."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, helper, numpy_helper

from ..graph import Graph, Node
from ..rewrite import Book, Edit, Pen, Stay, edit, scopes
from ..wellformed import default_opset
from . import (
    attention,
    embedding,
    fused,
    grouped,
    learners,
    lowbits,
    nhwc,
    norms,
    plain,
    preview,
    quantised,
    rotary,
    staying,
    types,
)

__all__ = ["EDITS", "standardise", "why_foreign"]

EDITS: dict[tuple[str, str], Edit] = {**learners.EDITS, **fused.EDITS, **quantised.EDITS, **attention.EDITS, **rotary.EDITS,
                                      **grouped.EDITS, **embedding.EDITS, **nhwc.EDITS, **lowbits.EDITS, **plain.EDITS,
                                      **preview.EDITS, **norms.EDITS}
"""(domain, operator) -> rewrite. One that writes nothing leaves the node as it is."""
ORDINARY = {("", op) for op in ("Cast", "Mul", *quantised.ON_LEVELS)}


def standardise(model: ModelProto) -> ModelProto:
    """The same model with foreign nodes rewritten where that is exact; the very object given when there is none.

    Nodes that are not known, or whose types and shapes leave a doubt, stay. Expects opset 17 or above.
    """
    if not any(_calls(n) for nodes, _ in scopes(model) for n in nodes):
        return model
    out = ModelProto()
    out.CopyFrom(model)
    floats: dict[str, str] = {}
    passes = 0
    while _pass(out, floats):       # once more: a rewritten node's output has a type, which the next may have missed
        passes += 1
    if passes:
        _settle(out)
    return out if passes else model


def why_foreign(graph: Graph, node: Node) -> str | None:
    """Why a foreign node of the graph stayed as it is; None where nothing is known of it."""
    return staying.reason(graph, node, EDITS)


def _pass(model: ModelProto, floats: dict[str, str]) -> bool:
    book, changed, opset = Book(model, floats), False, default_opset(model) or 17

    def change(node: NodeProto) -> list[NodeProto]:
        nonlocal changed
        pen = Pen(book, node, opset)
        rewrite = EDITS.get(_key(node))
        if rewrite is not None:
            try:
                rewrite(pen, node)
            except Stay:        # `why_foreign` asks again for the reason, should the node lie on the path
                return [node]
        changed = changed or bool(pen.nodes)
        types.learn(book, pen.nodes or [node], opset)
        return pen.nodes or [node]

    edit(model.graph.node, change)
    return changed


def _settle(model: ModelProto) -> None:
    """A number cast to the type of a tensor that had none yet is a plain number now: `composites` looks for those."""
    book = Book(model)

    def change(node: NodeProto) -> list[NodeProto]:
        held = book.constant(node.input[0]) if node.op_type == "CastLike" and not node.domain else None
        kind = book.dtype(node.input[1]) if held is not None else 0
        if held is None or not kind:
            return [node]
        pen = Pen(book, node, default_opset(model) or 17)
        with np.errstate(over="ignore"):
            value = numpy_helper.from_array(held.astype(helper.tensor_dtype_to_np_dtype(kind)), node.output[0])
        pen("Constant", out=node.output[0], value=value)
        return pen.nodes

    edit(model.graph.node, change)


def _calls(node: NodeProto) -> bool:
    """Is this a reason to begin? Ordinary operators are rewritten only among quantised ones."""
    return node.op_type == "QuantizeLinear" or (_key(node) in EDITS and _key(node) not in ORDINARY)


def _key(node: NodeProto) -> tuple[str, str]:
    return "" if node.domain == "ai.onnx" else node.domain, node.op_type
