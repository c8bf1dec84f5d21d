"""ONNX <-> Graph: freeze what lies on the operating table; write a graph as ONNX."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .branches import decided, taken
from .errors import ModelError
from .graph import Array, Graph, Node, Value
from .infer import Shape, make_attribute, read_type, schema_of
from .source import array_of
from .surgery import Table, captured

# (g, op, inputs, output names, attrs, node name, declared types) -> outputs, or None to leave the node as it is
Instead = Callable[..., Sequence[Value] | None]


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file, decoded when somebody looks at it."""

    proto: onnx.TensorProto
    folder: Path | None

    def array(self) -> Array:
        return array_of(self.proto, self.folder)

    @property
    def stored_bytes(self) -> int:
        """Size of the elements."""
        dtype = helper.tensor_dtype_to_np_dtype(self.proto.data_type)
        return int(np.prod(self.proto.dims, dtype=np.int64)) * dtype.itemsize


# -- table -> graph -----------------------------------------------------------------------------------------------
def freeze(table: Table, instead: Instead | None = None) -> Graph:
    """The table's content as a Graph, with ONNX's own types; names are the file's. `instead` may write a node otherwise."""
    proto = table.model.graph
    g = Graph(table.opset, proto.name or "graph")
    g.reserve([t.name for t in proto.initializer] + [name for n in _with_inner(proto) for name in (n.name, *n.output)])
    types = {v.name: _declared(v) for v in [*proto.input, *proto.value_info, *proto.output]}
    held = {t.name: t for t in proto.initializer}
    env: dict[str, Value] = {}
    for t in table.surgeon.inputs:
        env[t.name] = g.input(t.name, *types[t.name])
    for node in _in_order(table):
        for t in node.inputs:
            if t.name and t.name not in env and getattr(t, "_values", None) is not None:
                env[t.name] = _constant(g, t, table)
        node_proto = table.protos.get(id(node))
        for name in captured(node_proto) if node_proto is not None else ():
            if name in held and name not in env:
                env[name] = _stored(g, held[name], table.source.folder)
        _record(g, node, node_proto, env, types, table, instead)
    for info in proto.output:
        if info.name not in env:
            if info.name not in held:
                raise ModelError(f"no node, input or initialiser makes the graph output {info.name!r}")
            env[info.name] = _stored(g, held[info.name], table.source.folder)
        g.outputs.append((info.name, env[info.name]))
    return g


def _with_inner(proto: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of bodies too."""
    for node in proto.node:
        yield node
        for a in node.attribute:
            yield from _with_inner(a.g)


def _in_order(table: Table) -> list[Any]:
    """Nodes so that each comes after those it reads; in the file's order where that is so already."""
    made = {t.name: n for n in table.surgeon.nodes for t in n.outputs if t.name}  # graphsurgeon's own sort recurses
    done: set[int] = set()
    order: list[Any] = []
    for first in table.surgeon.nodes:
        stack = [first]
        while stack:
            node = stack[-1]
            proto = table.protos.get(id(node))
            reads = [t.name for t in node.inputs] + (list(captured(proto)) if proto is not None else [])
            before = [made[name] for name in reads if name in made and id(made[name]) not in done and made[name] is not node]
            if id(node) in done or not before:
                stack.pop()
                if id(node) not in done:
                    done.add(id(node))
                    order.append(node)
            else:
                stack.extend(before)
    return order


def _declared(info: onnx.ValueInfoProto) -> tuple[Any, Shape | None]:
    dtype, shape = read_type(info.type)
    return dtype, None if shape is None else tuple(None if isinstance(d, str) and d.startswith("?") else d for d in shape)


def _constant(g: Graph, tensor: Any, table: Table) -> Value:
    values = tensor._values
    if isinstance(values, np.ndarray):
        return g.const(values, name=tensor.name)
    return _stored(g, values.tensor, table.source.folder, tensor.name)


def _stored(g: Graph, proto: onnx.TensorProto, folder: Path | None, name: str | None = None) -> Value:
    dtype = helper.tensor_dtype_to_np_dtype(proto.data_type)
    return g.stored(name or proto.name, dtype, tuple(proto.dims), Tensor(proto, folder))


def _record(
    g: Graph,
    node: Any,
    proto: onnx.NodeProto | None,
    env: dict[str, Value],
    types: Mapping[str, Any],
    table: Table,
    instead: Instead | None,
) -> None:
    outputs = [t.name for t in node.outputs]
    inputs = [env[t.name] if t.name else None for t in node.inputs]
    while inputs and inputs[-1] is None:
        inputs.pop()
    attrs = _attributes(g, proto.attribute, env, table, inputs) if proto is not None else dict(node.attrs)
    if node.op == "Constant" and not node.domain:
        env[outputs[0]] = _constant_node(g, outputs[0], attrs, table)
        return
    way = decided(inputs[0]) if node.op == "If" and inputs else None
    if way is not None:
        env.update(zip(outputs, taken(g, attrs["then_branch" if way else "else_branch"], outputs), strict=False))
        return
    name = node.name or next((o for o in outputs if o), node.op)
    made: Sequence[Value] | None = None
    if instead is not None and node.domain in (None, "", "ai.onnx"):
        made = instead(g, node.op, inputs, outputs, attrs, name, types)
    if made is None:
        made = g.record(node.op, inputs, outputs, attrs, name, node.domain or "", types)
    env.update((v.name, v) for v in made if v.name)


def _attributes(
    g: Graph, attributes: Any, env: Mapping[str, Value], table: Table, inputs: Sequence[Value | None] = ()
) -> dict[str, Any]:
    decoded: dict[str, Any] = {}
    for a in attributes:
        if a.type == onnx.AttributeProto.GRAPH:
            decoded[a.name] = _body(g, a.g, env, table, _received(attributes, inputs))
        elif a.type in (
            onnx.AttributeProto.FLOAT,
            onnx.AttributeProto.INT,
            onnx.AttributeProto.FLOATS,
            onnx.AttributeProto.INTS,
        ):
            value = helper.get_attribute_value(a)
            decoded[a.name] = list(value) if a.type in (onnx.AttributeProto.FLOATS, onnx.AttributeProto.INTS) else value
        elif a.type == onnx.AttributeProto.STRING:
            try:
                decoded[a.name] = a.s.decode()
            except UnicodeDecodeError:
                decoded[a.name] = a
        else:
            decoded[a.name] = a
    return decoded


def _constant_node(g: Graph, name: str, attrs: Mapping[str, Any], table: Table) -> Value:
    key, value = next(iter(attrs.items()))
    if key == "value":
        return _stored(g, value.t, table.source.folder, name)
    if isinstance(value, onnx.AttributeProto):
        value = helper.get_attribute_value(value)
    return g.const(
        np.asarray(value, dtype=np.int64 if key.startswith("value_int") else np.float32 if key.startswith("value_f") else None),
        name=name,
    )


Typed: TypeAlias = "tuple[Any, Shape | None]"


def _received(attributes: Any, inputs: Sequence[Value | None]) -> list[Typed]:
    """What a node gives its body: a Scan slices, and a state of constant shape; a Loop values whose shape may change."""
    held = {a.name: a for a in attributes}
    if "num_scan_inputs" not in held:
        return [(None, None) if x is None else (x.dtype, None) for x in inputs]
    count = held["num_scan_inputs"].i
    axes = list(held["scan_input_axes"].ints) if "scan_input_axes" in held else [0] * count
    axis_of = dict(zip(range(len(inputs) - count, len(inputs)), axes, strict=False))
    return [(None, None) if x is None else (x.dtype, _slice_of(x.shape, axis_of.get(i))) for i, x in enumerate(inputs)]


def _slice_of(shape: Shape | None, axis: int | None) -> Shape | None:
    if not shape or axis is None:
        return shape
    return tuple(d for i, d in enumerate(shape) if i != axis % len(shape))


def _body(g: Graph, proto: onnx.GraphProto, outer: Mapping[str, Value], table: Table, received: Sequence[Typed]) -> Graph:
    """A Loop, If or Scan body: its own tape, reading the outer one. Its constants belong to the outermost graph."""
    body, root = Graph(g.opset, proto.name, g), g
    while root.parent is not None:
        root = root.parent
    types = {v.name: _declared(v) for v in [*proto.input, *proto.value_info, *proto.output]}
    for v, (dtype, shape) in zip(proto.input, received, strict=False):  # a body may leave it to the node what it is given
        said = types[v.name]
        types[v.name] = (said[0] or dtype, shape if said[1] is None else said[1])
    env = dict(outer)
    env.update((t.name, _stored(root, t, table.source.folder, root.fresh(t.name))) for t in proto.initializer)
    env.update((v.name, body.input(v.name, *types[v.name])) for v in proto.input)
    for node in proto.node:
        read = [env[i] if i else None for i in node.input]
        attrs = _attributes(body, node.attribute, env, table, read)
        if node.op_type == "Constant" and not node.domain:
            env[node.output[0]] = _constant_node(root, root.fresh(node.output[0]), attrs, table)
            continue
        made = body.record(
            node.op_type,
            read,
            list(node.output),
            attrs,
            node.name or node.output[0],
            node.domain,
            types,
        )
        env.update((v.name, v) for v in made if v.name)
    body.outputs.extend((o.name, env[o.name]) for o in proto.output)
    return body


# -- graph -> file ------------------------------------------------------------------------------------------------
def write_graph(g: Graph, proto: onnx.GraphProto | None = None, embed: bool = True) -> onnx.GraphProto:
    """The graph as ONNX: nodes in order, constants as initialisers. `embed=False` leaves external tensors outside."""
    proto = onnx.GraphProto() if proto is None else proto
    proto.name = g.name
    written: set[str] = set()
    rename = _output_names(g)

    def initialise(v: Value) -> None:
        here = v.graph is g or (v.graph.parent is None and g.parent is None)  # a simplified graph shares its tape's values
        if v.is_const and here and v.name not in written:
            written.add(v.name)
            _write_tensor(proto.initializer.add(), v, embed)

    def visit(node: Node) -> None:
        for v in node.uses:
            initialise(v)
        for sub in node.subgraphs:
            for inner in sub.nodes:
                visit(inner)

    for node in g.nodes:
        visit(node)
        proto.node.append(write_node(g, node, rename))
    proto.input.extend(value_info(v, v.name) for v in g.inputs)
    for name, v in g.outputs:
        initialise(v)
        if name != rename.get(v, v.name):
            proto.node.append(helper.make_node("Identity", [rename.get(v, v.name)], [name], name=name))
        proto.output.append(value_info(v, name))
    _name_apart(proto)
    return proto


def _name_apart(proto: onnx.GraphProto) -> None:
    """ONNX Runtime refuses two nodes of one name; those that come later (ours) step aside."""
    taken = {""}
    for node in proto.node:
        if node.name in taken and node.name:
            node.name = next(n for i in itertools.count(1) if (n := f"{node.name}_{i}") not in taken)
        taken.add(node.name)


def _output_names(g: Graph) -> dict[Value, str]:
    """A value made by a node of this graph takes the name of the first output that shows it, unless it has that name already."""
    own = {name for name, v in g.outputs if v.name == name}
    rename: dict[Value, str] = {}
    for name, v in g.outputs:
        if v.name != name and v.name not in own and v not in rename and g._producer.get(v) is not None and g.is_ours(v):
            rename[v] = name
    return rename


def stored_tensors(g: Graph) -> list[Tensor]:
    """Every tensor of the file that the graph reads."""
    found = {v: v.stored for n in g.nodes for v in n.uses if isinstance(v.stored, Tensor)}
    return [t for t in found.values() if isinstance(t, Tensor)]


def _write_tensor(proto: onnx.TensorProto, v: Value, embed: bool) -> None:
    """Copy a stored tensor as it came; encode a computed one, and an external one when it is to be embedded."""
    stored = v.stored
    if isinstance(stored, Tensor) and not (embed and stored.proto.data_location == onnx.TensorProto.EXTERNAL):
        proto.CopyFrom(stored.proto)
        proto.name = v.name
    else:
        proto.CopyFrom(numpy_helper.from_array(np.asarray(v.data), v.name))


def write_node(g: Graph, node: Node, rename: Mapping[Value, str]) -> onnx.NodeProto:
    proto = helper.make_node(
        node.op,
        [rename.get(v, v.name) if v is not None else "" for v in node.inputs],
        [rename.get(v, v.name) for v in node.outputs],
        name=node.name,
        domain=node.domain,
    )
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
    """Type of an output or input; axes without a name in the source stay open."""
    if v.dtype is None:
        return onnx.ValueInfoProto(name=name)
    shape = None if v.shape is None else [d if isinstance(d, int) or (d and not d.startswith("_")) else None for d in v.shape]
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(v.dtype), shape)


def named_axes(g: Graph) -> list[onnx.ValueInfoProto]:
    """Types of the images inside the graph that have a symbolic axis: ONNX Runtime fuses sums and products only of tensors whose
    axes it knows to be equal, and it loses their names at the seed (EfficientNet-Lite0: 105 copies between layouts, then 13)."""
    shown = {v for _, v in g.outputs} | set(g.inputs)
    floats = (v for n in g.nodes for v in n.outputs if v.is_float and v not in shown)
    images = (v for v in floats if v.shape is not None and len(v.shape) == 4)
    return [value_info(v, v.name) for v in images if any(isinstance(d, str) for d in v.shape or ())]


def write_model(g: Graph, ir_version: int = 10) -> onnx.ModelProto:
    """A bare model of the graph (tests and constant evaluation; `export.py` writes explanations)."""
    return helper.make_model(write_graph(g), opset_imports=[helper.make_opsetid("", g.opset)], ir_version=ir_version)
