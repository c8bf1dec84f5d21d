"""The derivative of an operator that ONNX defines by a function body: differentiate the body."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from ..errors import UnsupportedOp
from ..graph import Graph, Node, Value, needed
from ..infer import make_attribute, schema_of
from .registry import pullback, total


def through_body(g: Graph, n: Node, dys: tuple[Value | None, ...]) -> list[Value | None]:
    """Emit the body at the node's inputs and pull the cotangents back through it."""
    return through(g, n, inline(g, n), dys)


def through(g: Graph, n: Node, ys: Sequence[Value | None], dys: Sequence[Value | None]) -> list[Value | None]:
    """Pull the cotangents of the node's outputs, written as ys in other operators, back to its inputs."""
    arriving: dict[Value, list[Value]] = {}
    for y, dy in zip(ys, dys, strict=False):
        if y is not None and dy is not None:
            arriving.setdefault(y, []).append(dy)
    seeds = {y: dy for y, found in arriving.items() if (dy := total(g, found)) is not None}
    inputs = [x for x in n.inputs if x is not None]
    wrt = [x for i, x in enumerate(n.inputs) if i in n.needs and x is not None]
    dxs = pullback(g, seeds, wrt, needed(g.nodes, seeds, inputs))
    return [dxs.pop(x, None) if x is not None else None for x in n.inputs]  # an input that is named twice has one cotangent


def inline(g: Graph, n: Node) -> tuple[Value | None, ...]:
    """The outputs of the node's function body, emitted at its inputs; None for one that the body leaves out."""
    body = _body(g, n)
    env: dict[str, Value | None] = dict(zip(body.input, n.inputs, strict=False))
    _emit(g, n, body.node, env)
    return tuple(env.get(o) for o in body.output)


def _emit(g: Graph, n: Node, nodes: Iterable[onnx.NodeProto], env: dict[str, Value | None]) -> None:
    """Emit nodes of the body of n, reading `env` by name; it learns their outputs."""
    defaults = {a.name: a.default_value for a in schema_of(n.op, "", g.opset).attributes.values() if a.default_value.name}
    for node in nodes:
        attrs: dict[str, Any] = {}
        for a in node.attribute:
            if a.ref_attr_name:
                value = n.attrs.get(a.ref_attr_name, _value(defaults.get(a.ref_attr_name)))
                if value is not None:
                    attrs[a.name] = value
            else:
                attrs[a.name] = _step(g, n, node, a.g, env) if a.HasField("g") else _value(a)
        if node.domain not in ("", "ai.onnx"):
            raise UnsupportedOp(
                f"the function body of {n.op} (node {n.name!r}) uses {node.domain}:{node.op_type}, which has no derivative"
            )
        if node.op_type == "Constant":
            env[node.output[0]] = g.const(_constant(attrs))
            continue
        made = g.emit(node.op_type, *(env[i] if i else None for i in node.input), n_outputs=len(node.output), **attrs)
        env.update(zip(node.output, made if isinstance(made, tuple) else (made,), strict=True))


def _step(g: Graph, n: Node, scan: onnx.NodeProto, proto: onnx.GraphProto, env: Mapping[str, Value | None]) -> Graph:
    """The step of a Scan over leading axes. It has no types: a state has those of its start, a scanned tensor an axis less."""
    if scan.op_type != "Scan":
        raise UnsupportedOp(f"the function body of {n.op} (node {n.name!r}) holds a {scan.op_type}, not a Scan")
    step, count = g.subgraph(proto.name), len(scan.input) - next(a.i for a in scan.attribute if a.name == "num_scan_inputs")
    inner = dict(env)
    for i, (name, x) in enumerate(zip((v.name for v in proto.input), (env[v] for v in scan.input), strict=True)):
        assert x is not None
        shape = x.shape if i < count or x.shape is None else x.shape[1:]
        inner[name] = step.input(step.fresh(name), x.dtype, shape)
    _emit(step, n, proto.node, inner)
    step.outputs = [(o.name, v) for o in proto.output if (v := inner[o.name]) is not None]
    return step


def _body(g: Graph, n: Node) -> onnx.FunctionProto:
    schema = schema_of(n.op, "", g.opset)
    if schema.has_function:
        data = schema.get_function_with_opset_version(_nearest(schema.function_opset_versions, g.opset))
    else:
        node = helper.make_node(n.op, [v.name if v is not None else "" for v in n.inputs], [v.name for v in n.outputs])
        node.attribute.extend(make_attribute(k, v, schema) for k, v in n.attrs.items())
        types = [
            helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
            if v is not None and v.dtype is not None
            else onnx.TypeProto()
            for v in n.inputs
        ]
        data = schema.get_context_dependent_function_with_opset_version(
            _nearest(schema.context_dependent_function_opset_versions, g.opset),
            node.SerializeToString(),
            [t.SerializeToString() for t in types],
        )
    return onnx.FunctionProto.FromString(data)  # type: ignore[no-any-return]


def _nearest(versions: Sequence[int], opset: int) -> int:
    """The newest body that the opset admits, else the oldest there is."""
    return max((v for v in versions if v <= opset), default=min(versions))


def _value(attribute: onnx.AttributeProto | None) -> Any:
    if attribute is None:
        return None
    value = helper.get_attribute_value(attribute)
    if isinstance(value, onnx.TensorProto):
        return onnx.numpy_helper.to_array(value)
    return value.decode() if isinstance(value, bytes) else value


def _constant(attrs: Mapping[str, Any]) -> Any:
    key, value = next(iter(attrs.items()))
    if key == "value":
        return value
    return np.asarray(value, dtype="int64" if key.startswith("value_int") else "float32")
