"""The graph at concrete sizes: open axes get a number, and what is computed from sizes alone becomes a constant.

An axis that passes a Reshape can be followed only where sizes are numbers. Data are never computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from ..graph import RANDOM, Array, Graph, Node, Value
from ..infer import Shape, make_attribute, schema_of

LARGEST = 1 << 16  # elements of a tensor that is computed
SELECTS = {"Compress", "NonZero", "Slice"}  # never make more than they are given
BATCH, PICTURE, LENGTH = 2, 224, 16


class Probe:
    """Concrete shapes and constants of a graph's values."""

    def __init__(self, g: Graph) -> None:
        self.twin = Graph(g.opset)
        self.of: dict[Value, Value] = {}
        named: dict[str, int] = {}
        for v in g.inputs:
            self.of[v] = self.twin.input(v.name, v.dtype, _sized(v.shape, named))
        for node in g.nodes:
            self._record(node)

    def shape(self, v: Value) -> tuple[int, ...] | None:
        """The shape with every axis a number; None where sizes depend on data."""
        return static(self.of.get(v, v))

    def array(self, v: Value | None) -> Array | None:
        """The elements of a constant, also of one that is computed from sizes; None for anything else."""
        twin = None if v is None else self.of.get(v, v)
        return twin.data if twin is not None and twin.is_const else None

    def _record(self, node: Node) -> None:
        inputs = [None if v is None else self.of.get(v, v) for v in node.inputs]
        declared = {v.name: (v.dtype, _unnamed(v.shape)) for v in node.outputs}
        names = [v.name for v in node.outputs]
        made = self.twin.record(node.op, inputs, names, node.attrs, node.name, node.domain, declared)
        self.of.update(zip(node.outputs, made, strict=True))
        if len(made) != 1:
            return
        content = made[0].content
        if isinstance(content, int) or (isinstance(content, tuple) and all(isinstance(c, int) for c in content)):
            self.of[node.outputs[0]] = self.twin.const(content, made[0].dtype)
        elif (held := _computed(node, inputs, made[0], self.twin.opset)) is not None:
            self.of[node.outputs[0]] = self.twin.const(held)


def static(v: Value) -> tuple[int, ...] | None:
    """The shape when it has numbers only."""
    dims = tuple(d for d in v.shape or () if isinstance(d, int))
    return dims if v.shape is not None and len(dims) == len(v.shape) else None


def evaluate(nodes: Sequence[Node], feeds: Mapping[str, Array], output: str, opset: int) -> Array | None:
    """What a chain of nodes makes of named arrays, by ONNX's own reference in NumPy; None for operators that it does not have."""
    from onnx.reference import ReferenceEvaluator

    protos = []
    for n in nodes:
        proto = helper.make_node(n.op, [v.name if v is not None else "" for v in n.inputs], [v.name for v in n.outputs])
        schema = schema_of(n.op, "", opset)
        raw = onnx.AttributeProto
        proto.attribute.extend(v if isinstance(v, raw) else make_attribute(k, v, schema) for k, v in n.attrs.items())
        protos.append(proto)
    infos = [helper.make_empty_tensor_value_info(name) for name in feeds]
    body = helper.make_graph(protos, "part", infos, [helper.make_empty_tensor_value_info(output)])
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)])
    try:
        with np.errstate(all="ignore"):
            made = ReferenceEvaluator(model).run([output], dict(feeds))
    except (NotImplementedError, RuntimeError, TypeError, ValueError, IndexError):  # unknown is a fair answer here
        return None
    return np.asarray(made[0]) if isinstance(made, list) else None


def _computed(node: Node, inputs: Sequence[Value | None], made: Value, opset: int) -> Array | None:
    """The node's result where all its inputs are small constants."""
    if node.domain or node.op in RANDOM or node.subgraphs or not any(v is not None for v in inputs):
        return None
    twins: dict[str, Value] = {v.name: t for v, t in zip(node.inputs, inputs, strict=True) if v is not None and t is not None}
    makes = () if static(made) is None and node.op in SELECTS else (made,)
    sizes = [static(t) for t in (*twins.values(), *makes)]
    if any(s is None or math.prod(s) > LARGEST for s in sizes) or not all(t.is_const for t in twins.values()):
        return None
    held = {name: t.data for name, t in twins.items()}
    return evaluate([node], {k: a for k, a in held.items() if a is not None}, made.name, opset)


def _unnamed(shape: Shape | None) -> Shape | None:
    return None if shape is None else tuple(d if isinstance(d, int) else None for d in shape)


def _sized(shape: Shape | None, named: dict[str, int]) -> Shape | None:
    """The batch is 2, a picture 224 x 224, any other open axis 16; axes of one name have one size."""
    sizes: list[int] = []
    for i, d in enumerate(shape or ()):
        usual = BATCH if i == 0 else PICTURE if len(shape or ()) == 4 else LENGTH
        sizes.append(named.setdefault(d, usual) if isinstance(d, str) else usual if d is None else d)
    return None if shape is None else tuple(sizes)
