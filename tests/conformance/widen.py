"""A float32, float16 or bfloat16 model as a float64 one, so that difference quotients are exact to ten digits.

Types that an operator's schema fixes (the scales of Resize, the boxes of NonMaxSuppression) stay as they are. Whether the
result is a model at all is for the one who runs it to find out: not every operator takes float64.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnx.reference.op_run import OpRun

NARROW = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
ELEMENT_TYPES = ("to", "dtype", "output_datatype", "softmax_precision")
FLOAT_BY_DEFAULT = ("RandomNormal", "RandomUniform", "HannWindow", "HammingWindow", "BlackmanWindow", "MelWeightMatrix")


def in_float64(model: ModelProto) -> ModelProto:
    """The same model computing in float64."""
    wide = ModelProto()
    wide.CopyFrom(model)
    _graph(wide.graph, {o.domain: o.version for o in model.opset_import})
    return wide


def _graph(g: GraphProto, opsets: dict[str, int]) -> None:
    fixed = {name for node in g.node for name in _fixed(node, opsets)}
    del g.value_info[:]
    for info in [*g.input, *g.output]:
        if info.type.tensor_type.elem_type in NARROW and info.name not in fixed:
            info.type.tensor_type.elem_type = TensorProto.DOUBLE
    for t in g.initializer:
        if t.name not in fixed:
            t.CopyFrom(_tensor(t))
    for node in g.node:
        if node.op_type != "Constant" or node.output[0] not in fixed:
            _node(node, opsets)


def _fixed(node: NodeProto, opsets: dict[str, int]) -> list[str]:
    """The tensors that the schema wants as float32, whatever the others are."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        schema = onnx.defs.get_schema(node.op_type, opsets.get(domain, 1), domain)
    except onnx.defs.SchemaError:
        return []
    pairs = [(names, formals) for names, formals in ((node.input, schema.inputs), (node.output, schema.outputs)) if formals]
    return [n for names, formals in pairs for i, n in enumerate(names)
            if n and formals[min(i, len(formals) - 1)].type_str == "tensor(float)"]


def _node(node: NodeProto, opsets: dict[str, int]) -> None:
    for a in list(node.attribute):
        if a.type == AttributeProto.GRAPH:
            _graph(a.g, opsets)
        elif a.type == AttributeProto.TENSOR:
            a.t.CopyFrom(_tensor(a.t))
        elif a.name in ELEMENT_TYPES and a.i in NARROW:
            a.i = TensorProto.DOUBLE
        elif node.op_type == "Constant" and a.name in ("value_float", "value_floats"):
            value = np.asarray(helper.get_attribute_value(a), np.float64)
            node.attribute.remove(a)
            node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(value)))
    given = {a.name for a in node.attribute}
    if node.op_type == "ConstantOfShape" and "value" not in given:
        node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(np.zeros(1))))
    if node.op_type in FLOAT_BY_DEFAULT and not given & set(ELEMENT_TYPES):
        kind = "dtype" if node.op_type.startswith("Random") else "output_datatype"
        node.attribute.append(helper.make_attribute(kind, TensorProto.DOUBLE))


def _tensor(t: TensorProto) -> TensorProto:
    if t.data_type not in NARROW:
        return t
    return numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float64), t.name)


class Erf(OpRun):  # type: ignore[misc]
    """In double precision; the reference takes float32 for it and for Gelu."""

    op_domain = ""

    def _run(self, x: np.ndarray) -> tuple[np.ndarray]:
        return (np.vectorize(math.erf, otypes=[float])(x).astype(x.dtype),)


class Gelu(Erf):
    def _run(self, x: np.ndarray, approximate: str | None = None) -> tuple[np.ndarray]:
        t = np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)) if approximate == "tanh" else super()._run(x / np.sqrt(2))[0]
        return ((0.5 * x * (1 + t)).astype(x.dtype),)
