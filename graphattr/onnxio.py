"""Graph -> ONNX: nodes in order, constants as initialisers (`freeze.py` is the way back)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .graph import Array, Graph, Node, Value
from .infer import make_attribute, schema_of
from .tensors import array_of, embedded, external


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
    """Copy a stored tensor as it came, with external data inside when it is to be embedded; encode a computed one."""
    stored = v.stored
    if isinstance(stored, Tensor):
        proto.CopyFrom(embedded(stored.proto, stored.folder) if embed and external(stored.proto) else stored.proto)
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
