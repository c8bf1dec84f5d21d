"""Why a foreign node was left as it is: what its rewrite misses, or why it has none."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ..graph import Graph, Node, Value
from ..infer import make_attribute
from ..rewrite import Book, Edit, Pen, Stay

READABLE = 4096
"""Elements up to which a constant is read again for the answer."""
EXPERTS = "each token chooses its experts, and their weights lie in layouts of their own; export the model without this fusion"
ORDERED = "its levels lie in layouts that only one kind of device knows; optimise the model for another device"
PACKED = "its tokens are packed without padding, so where a sequence ends is known to the run only; keep the padding"
REFUSED = {
    "BeamSearch": "it is a whole search, with models inside", "GreedySearch": "it is a whole search, with models inside",
    "DecoderAttention": "whether it works on a cache is known to the run only", "GemmFloat8": "its operands are 8-bit floats",
    "DecoderMaskedSelfAttention": "it works on buffers that past and present share",
    "LongformerAttention": "its windows and global tokens are not written out; export the model without this fusion",
    "MoE": EXPERTS, "QMoE": EXPERTS, "NGramRepeatBlock": "it bans tokens, which has no derivative",
    "PackedAttention": PACKED, "PackedMultiHeadAttention": PACKED,
    "PagedAttention": "its cache lies in pages that only the run knows",
    "QOrderedAttention": ORDERED, "QOrderedGelu": ORDERED, "QOrderedLayerNormalization": ORDERED,
    "QOrderedLongformerAttention": ORDERED, "QOrderedMatMul": ORDERED,
    "SparseAttention": "which blocks it sees is known to the run only",
    "SparseToDenseMatMul": "it takes a sparse tensor; write it out as a dense one",
}
"""Operators of com.microsoft without a rewrite -> why."""


def reason(graph: Graph, node: Node, edits: Mapping[tuple[str, str], Edit]) -> str | None:
    """What the node's rewrite says when it is asked again, by types as they are known now."""
    edit = edits.get((node.domain, node.op))
    if edit is None:
        return REFUSED.get(node.op) if node.domain == "com.microsoft" else None
    inputs = ["" if v is None else v.name for v in node.inputs]
    proto = helper.make_node(node.op, inputs, [v.name for v in node.outputs], node.name, domain=node.domain)
    proto.attribute.extend(a if isinstance(a, onnx.AttributeProto) else make_attribute(k, a) for k, a in node.attrs.items())
    read = {v.name for n in graph.nodes for v in n.uses} | {v.name for _, v in graph.outputs}
    pen = Pen(Book(_alone(proto, node, graph.opset, read)), proto, graph.opset)
    try:
        edit(pen, proto)
    except Stay as stay:
        return str(stay)
    return None if pen.nodes else "its rewrite does not know this combination of inputs, attributes, types and shapes"


def _alone(proto: onnx.NodeProto, node: Node, opset: int, read: Collection[str]) -> onnx.ModelProto:
    """A model of this node, its inputs as far as their types are known."""
    held = {v.name: v for v in node.uses}
    tensors = [numpy_helper.from_array(np.asarray(v.data), v.name) for v in held.values() if v.is_const and _small(v)]
    infos = [_info(v) for v in held.values() if v.dtype is not None]
    outputs = [onnx.ValueInfoProto(name=v.name) for v in node.outputs if v.name in read]
    graph = helper.make_graph([proto], "one", list(infos), outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(node.domain, 1)])


def _small(v: Value) -> bool:
    return v.shape is not None and int(np.prod(_sizes(v.shape), dtype=np.int64)) <= READABLE


def _sizes(shape: Iterable[int | str | None]) -> list[int]:
    return [d if isinstance(d, int) else READABLE + 1 for d in shape]


def _info(v: Value) -> onnx.ValueInfoProto:
    dims = None if v.shape is None else [d if isinstance(d, int) else None for d in v.shape]
    return helper.make_tensor_value_info(v.name, helper.np_dtype_to_tensor_dtype(np.dtype(v.dtype)), dims)
