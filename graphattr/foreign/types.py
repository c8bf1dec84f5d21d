"""Types learnt while a model is edited: one pass from front to back then sees through all that it has rewritten."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import NodeProto, TensorProto, helper

from ..rewrite import Book
from ..tensors import elements, external

SMALL = 64
"""Elements up to which a constant counts for the shape of what a node makes."""


def learn(book: Book, nodes: Iterable[NodeProto], opset: int) -> None:
    """Note the types of what the nodes make, where they were not known and follow from those of their inputs."""
    for n in nodes:
        if n.domain not in ("", "ai.onnx"):
            continue
        if n.op_type == "Constant" and n.attribute and n.attribute[0].name == "value":
            book.constants[n.output[0]] = n.attribute[0].t
        if any(o and book.dims(o) is None for o in n.output):
            _note(book, n, opset)


def _note(book: Book, n: NodeProto, opset: int) -> None:
    known = {i: helper.make_tensor_type_proto(book.dtype(i), book.dims(i)) for i in n.input if i and book.dtype(i)}
    held = {i: t for i in known if (t := book.constants.get(i)) is not None and _counts(t)}
    try:
        schema = onnx.defs.get_schema(n.op_type, opset, "")
        found = onnx.shape_inference.infer_node_outputs(schema, n, known, held)
    except Exception:       # what inference cannot follow stays unknown, as in `Book.types`
        return
    for o, made in found.items():
        kind = made.tensor_type
        dims = tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim) if kind.HasField("shape") else None
        if made.HasField("tensor_type") and kind.elem_type and (dims is not None or not book.dtype(o)):
            book.types[o] = (kind.elem_type, dims)


def _counts(t: TensorProto) -> bool:
    return not external(t) and elements(t) <= SMALL
