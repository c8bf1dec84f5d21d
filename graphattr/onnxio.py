"""ONNX file <-> Graph."""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from onnx import helper, numpy_helper

from .graph import Graph, Node, Value
from .infer import make_attribute, schema_of


def write_graph(g: Graph, keep: Iterable[Value] = ()) -> onnx.GraphProto:
    """The graph as ONNX: its nodes in order, constants as initialisers, named outputs."""
    proto = onnx.GraphProto(name=g.name)
    written: set[str] = set()
    outputs = {v: name for name, v in g.outputs}

    def initialiser(v: Value) -> None:
        if v.is_const and v.name not in written:
            written.add(v.name)
            proto.initializer.append(numpy_helper.from_array(v.data, v.name))

    for node in g.nodes:
        for v in node.uses:
            if v.graph is g or g.parent is None:
                initialiser(v)
        proto.node.append(write_node(g, node))
    for v in g.inputs:
        proto.input.append(value_info(v, v.name))
    for name, v in g.outputs:
        initialiser(v)
        if name != v.name:
            proto.node.append(helper.make_node("Identity", [v.name], [name], name=name))
        proto.output.append(value_info(v, name))
    assert outputs is not None
    return proto


def write_node(g: Graph, node: Node) -> onnx.NodeProto:
    proto = helper.make_node(node.op, [v.name if v is not None else "" for v in node.inputs], [v.name for v in node.outputs],
                             name=node.name, domain=node.domain)
    schema = schema_of(node.op, "", g.opset) if node.domain in ("", "ai.onnx") else None
    for key, value in node.attrs.items():
        if isinstance(value, onnx.AttributeProto):
            proto.attribute.append(value)
        elif isinstance(value, Graph):
            proto.attribute.append(helper.make_attribute(key, write_graph(value)))
        else:
            proto.attribute.append(make_attribute(key, value, schema))
    return proto


def value_info(v: Value, name: str) -> onnx.ValueInfoProto:
    if v.dtype is None:
        return onnx.ValueInfoProto(name=name)
    shape = None if v.shape is None else [d if isinstance(d, int) or (d and not d.startswith("_")) else None for d in v.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), shape)


def write_model(g: Graph, ir_version: int = 8) -> onnx.ModelProto:
    return helper.make_model(write_graph(g), opset_imports=[helper.make_opsetid("", g.opset)], ir_version=ir_version)
