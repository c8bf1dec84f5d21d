"""ONNX -> Graph: freeze what lies on the operating table, bodies of If, Loop and Scan included."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import helper

from .branches import decided, taken
from .errors import ModelError
from .graph import Graph, Value
from .infer import Shape, read_type
from .onnxio import Tensor
from .surgery import Table, captured

# (g, op, inputs, output names, attrs, node name, declared types) -> outputs, or None to leave the node as it is
Instead = Callable[..., Sequence[Value] | None]
Typed: TypeAlias = "tuple[Any, Shape | None]"
Env = dict[str, Value]
LISTS = {onnx.AttributeProto.FLOATS, onnx.AttributeProto.INTS}
NUMBERS = {onnx.AttributeProto.FLOAT, onnx.AttributeProto.INT, *LISTS}


def freeze(table: Table, instead: Instead | None = None) -> Graph:
    """The table's content as a Graph, with ONNX's own types; names are the file's. `instead` may write a node otherwise."""
    proto = table.model.graph
    g = Graph(table.opset, proto.name or "graph")
    g.reserve([t.name for t in proto.initializer] + [name for n in _with_inner(proto) for name in (n.name, *n.output)])
    types = {v.name: _declared(v) for v in [*proto.input, *proto.value_info, *proto.output]}
    held = {t.name: t for t in proto.initializer}
    reader, env = _Reader(table, instead, g), Env()
    for t in table.surgeon.inputs:
        env[t.name] = g.input(t.name, *types[t.name])
    for node in _in_order(table):
        for t in node.inputs:
            if t.name and t.name not in env and getattr(t, "_values", None) is not None:
                env[t.name] = reader.constant(t)
        written = table.protos.get(id(node))
        for name in captured(written) if written is not None else ():
            if name in held and name not in env:
                env[name] = reader.stored(held[name], name)
        attributes = written.attribute if written is not None else node.attrs
        inputs, outputs = [t.name for t in node.inputs], [t.name for t in node.outputs]
        reader.node(g, node.op, node.domain or "", node.name, inputs, outputs, attributes, env, types)
    for info in proto.output:
        if info.name not in env:
            if info.name not in held:
                raise ModelError(f"no node, input or initialiser makes the graph output {info.name!r}")
            env[info.name] = reader.stored(held[info.name], info.name)
        g.outputs.append((info.name, env[info.name]))
    return g


@dataclass(frozen=True)
class _Reader:
    """Writes nodes and bodies of the file into the tape. `root`: the outermost graph, to which all constants belong."""

    table: Table
    instead: Instead | None
    root: Graph

    def node(
        self,
        g: Graph,
        op: str,
        domain: str,
        name: str,
        read: Sequence[str],
        outputs: list[str],
        attributes: Any,
        env: Env,
        types: Mapping[str, Typed],
    ) -> None:
        inputs = [env[n] if n else None for n in read]
        while inputs and inputs[-1] is None:
            inputs.pop()
        attrs = dict(attributes) if isinstance(attributes, Mapping) else self.attributes(g, attributes, env, inputs)
        standard = domain in ("", "ai.onnx")
        if op == "Constant" and standard:
            env[outputs[0]] = self.constant_node(outputs[0] if g is self.root else self.root.fresh(outputs[0]), attrs)
            return
        way = decided(inputs[0]) if op == "If" and standard and inputs else None
        if way is not None:
            env.update(zip(outputs, taken(g, attrs["then_branch" if way else "else_branch"], outputs), strict=False))
            return
        name = name or next((o for o in outputs if o), op)
        made: Sequence[Value] | None = None
        if self.instead is not None and standard:
            made = self.instead(g, op, inputs, outputs, attrs, name, types)
        if made is None:
            made = g.record(op, inputs, outputs, attrs, name, domain, types)
        env.update((v.name, v) for v in made if v.name)

    def attributes(self, g: Graph, attributes: Any, env: Env, inputs: Sequence[Value | None]) -> dict[str, Any]:
        decoded: dict[str, Any] = {}
        for a in attributes:
            decoded[a.name] = a
            if a.type == onnx.AttributeProto.GRAPH:
                received = _received(attributes, inputs)
                body = self.body(g, a.g, env, received)
                if "num_scan_inputs" not in [b.name for b in attributes] and not _stays(a.g, body):
                    body = self.body(g, a.g, env, [(dtype, None) for dtype, _ in received])
                decoded[a.name] = body
            elif a.type in NUMBERS:
                value = helper.get_attribute_value(a)
                decoded[a.name] = list(value) if a.type in LISTS else value
            elif a.type == onnx.AttributeProto.STRING:
                try:
                    decoded[a.name] = a.s.decode()
                except UnicodeDecodeError:
                    continue
        return decoded

    def body(self, g: Graph, proto: onnx.GraphProto, outer: Env, received: Sequence[Typed]) -> Graph:
        """A Loop, If or Scan body: its own tape, reading the outer one."""
        body = Graph(g.opset, proto.name, g)
        types = {v.name: _declared(v) for v in [*proto.input, *proto.value_info, *proto.output]}
        for v, (dtype, shape) in zip(proto.input, received, strict=False):  # a body may leave it to the node what it is given
            said = types[v.name]
            types[v.name] = (said[0] or dtype, shape if said[1] is None else said[1])
        env = dict(outer)
        env.update((t.name, self.stored(t, self.root.fresh(t.name))) for t in proto.initializer)
        env.update((v.name, body.input(v.name, *types[v.name])) for v in proto.input)
        for n in proto.node:
            self.node(body, n.op_type, n.domain, n.name, list(n.input), list(n.output), n.attribute, env, types)
        body.outputs.extend((o.name, env[o.name]) for o in proto.output)
        return body

    def constant(self, tensor: Any) -> Value:
        """An initialiser as the table has it: replaced by an array, or still the file's."""
        values = tensor._values
        if isinstance(values, np.ndarray):
            return self.root.const(values, name=tensor.name)
        return self.stored(values.tensor, tensor.name)

    def stored(self, proto: onnx.TensorProto, name: str) -> Value:
        dtype = helper.tensor_dtype_to_np_dtype(proto.data_type)
        return self.root.stored(name, dtype, tuple(proto.dims), Tensor(proto, self.table.source.folder))

    def constant_node(self, name: str, attrs: Mapping[str, Any]) -> Value:
        key, value = next(iter(attrs.items()))
        if key == "value":
            return self.stored(value.t, name)
        if isinstance(value, onnx.AttributeProto):
            value = helper.get_attribute_value(value)
        dtype = np.int64 if key.startswith("value_int") else np.float32 if key.startswith("value_f") else None
        return self.root.const(np.asarray(value, dtype=dtype), name=name)


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


def _received(attributes: Any, inputs: Sequence[Value | None]) -> list[Typed]:
    """What a node gives its body: a Scan slices, and a state of constant shape; a Loop a state that may change: see `_stays`."""
    held = {a.name: a for a in attributes}
    if "num_scan_inputs" not in held:
        return [(None, None) if x is None else (x.dtype, x.shape) for x in inputs]
    count = held["num_scan_inputs"].i
    axes = list(held["scan_input_axes"].ints) if "scan_input_axes" in held else [0] * count
    axis_of = dict(zip(range(len(inputs) - count, len(inputs)), axes, strict=False))
    return [(None, None) if x is None else (x.dtype, _slice_of(x.shape, axis_of.get(i))) for i, x in enumerate(inputs)]


def _stays(proto: onnx.GraphProto, body: Graph) -> bool:
    """Whether a Loop's states whose shapes its body does not declare leave a step in the shape they enter it."""
    open_ = {v.name for v in proto.input[2:] if _declared(v)[1] is None}
    pairs = zip(body.inputs[2:], body.outputs[1:], strict=False)
    return all(entering.shape == leaving.shape for entering, (_, leaving) in pairs if entering.name in open_)


def _slice_of(shape: Shape | None, axis: int | None) -> Shape | None:
    if not shape or axis is None:
        return shape
    return tuple(d for i, d in enumerate(shape) if i != axis % len(shape))
