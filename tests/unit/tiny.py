"""Small ONNX models, written by hand."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F, D, H, I, S, B = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.STRING,
                    TensorProto.BOOL)


def node(op, inputs, outputs, name="", **attrs):
    """A node; inputs and outputs as words of one string."""
    return helper.make_node(op, inputs.split(), outputs.split(), name=name, **attrs)


def model(nodes, inputs=None, outputs=None, weights=None, opset=17, domains=(), ir=8, value_info=None):
    """A model; inputs and outputs are {name: shape} or {name: (type, shape)}."""
    def infos(table):
        return [helper.make_tensor_value_info(k, *(v if isinstance(v, tuple) else (F, v))) for k, v in table.items()]

    tensors = [w if isinstance(w, TensorProto) else numpy_helper.from_array(w, k) for k, w in (weights or {}).items()]
    graph = helper.make_graph(nodes, "g", infos(inputs or {"x": ["N", 4]}), infos(outputs or {"y": ["N", 3]}), tensors,
                              value_info=infos(value_info or {}))
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=ir)


def array(*shape, seed=0, dtype=np.float32):
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(dtype)


def mlp(end=None, opset=17, batch="N", **more):
    """x [N, 4] -> Gemm -> Relu -> Gemm [N, 3], and perhaps a last activation."""
    last = "z" if end else "y"
    nodes = [node("Gemm", "x w1 b1", "h", "first"), node("Relu", "h", "a", "relu"), node("Gemm", "a w2 b2", last, "second")]
    nodes += [node(end, "z", "y", "end")] if end else []
    weights = {"w1": array(4, 5), "b1": array(5, seed=1), "w2": array(5, 3, seed=2), "b2": array(3, seed=3)}
    return model(nodes, {"x": [batch, 4]}, {"y": [batch, 3]}, weights, opset, **more)


def saved(proto, folder, name="m.onnx"):
    path = folder / name
    path.write_bytes(proto if isinstance(proto, bytes) else proto.SerializeToString())
    return path


def renamed(proto: onnx.ModelProto, **names):
    """The model with tensors renamed everywhere."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    for n in made.graph.node:
        n.input[:] = [names.get(i, i) for i in n.input]
        n.output[:] = [names.get(o, o) for o in n.output]
    for v in [*made.graph.input, *made.graph.output, *made.graph.initializer]:
        v.name = names.get(v.name, v.name)
    return made
