"""Operators of ONNX's preview domain, written out by the function body that ONNX gives them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import AttributeProto, FunctionProto, NodeProto, helper

from ..rewrite import Edit, Pen, Stay, refill

DOMAIN = "ai.onnx.preview"


def written_out(pen: Pen, n: NodeProto) -> None:
    """The body at the node's inputs; graphs that are attributes (score_mod, prob_mod) are in it already."""
    body = body_of(pen, n)
    names = {"": ""} | dict(zip(body.output, n.output, strict=False)) | dict(zip(body.input, n.input, strict=False))
    given = {a.name: a for a in n.attribute}
    for inner in body.node:
        new = NodeProto()
        new.CopyFrom(inner)
        for o in inner.output:
            names[o] = names.get(o) or pen.book.fresh(f"{pen.stem}_{o}")
        refill(new.input, [names[i] for i in inner.input])
        refill(new.output, [names[o] for o in inner.output])
        refill(new.attribute, [held for a in inner.attribute if (held := _bound(a, given)) is not None])
        new.name = pen.node.name if pen.node.output[0] in new.output else ""
        pen.nodes.append(new)


def body_of(pen: Pen, n: NodeProto) -> FunctionProto:
    """ONNX makes it for the types of the inputs."""
    unknown = [i for i in n.input if i and not pen.book.dtype(i)]
    if unknown:
        raise Stay(f"the type of its input {unknown[0]!r} is unknown; run onnx.shape_inference on the model")
    schema: Any = onnx.defs.get_schema(n.op_type, 1, n.domain)
    types = [helper.make_tensor_type_proto(pen.book.dtype(i), pen.book.dims(i)) if i else onnx.TypeProto() for i in n.input]
    version = max(schema.context_dependent_function_opset_versions)
    data = schema.get_context_dependent_function_with_opset_version(
        version, n.SerializeToString(), [t.SerializeToString() for t in types]
    )
    return FunctionProto.FromString(data)  # type: ignore[no-any-return]


def _bound(a: AttributeProto, given: Mapping[str, AttributeProto]) -> AttributeProto | None:
    """An attribute of the body, with the node's value where it refers to one; None where the node has none."""
    if not a.ref_attr_name:
        return a
    if a.ref_attr_name not in given:
        return None
    held = AttributeProto()
    held.CopyFrom(given[a.ref_attr_name])
    held.name = a.name
    return held


SCHEMAS: list[Any] = [s for s in onnx.defs.get_all_schemas() if s.domain == DOMAIN]
EDITS: dict[tuple[str, str], Edit] = {(DOMAIN, s.name): written_out for s in SCHEMAS if s.has_context_dependent_function}
"""FlexAttention, and what future versions of ONNX add."""
