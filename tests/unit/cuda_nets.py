"""Small nets of the kinds that run on GPUs, at any opset; their operators are those of the large ones."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.bench.nets import Writer, vit


def resnet(opset):
    """Stem with overlapping MaxPool, two bottlenecks (one strided), GlobalAveragePool."""
    net = Writer()
    x = net.node("Relu", net.conv("image", 3, 8, 7, 2, rectify=False))
    x = net.node("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for ins, outs, stride in ((8, 16, 1), (16, 16, 2)):
        h = net.node("Relu", net.conv(x, ins, 4, 1, rectify=False))
        h = net.node("Relu", net.conv(h, 4, 4, 3, stride, rectify=False))
        shortcut = net.conv(x, ins, outs, 1, stride, rectify=False)
        x = net.node("Relu", net.node("Add", net.conv(h, 4, outs, 1, rectify=False), shortcut))
    x = net.node("Flatten", net.node("GlobalAveragePool", x))
    return net.model(net.node("Gemm", x, net.weight(16, 10), net.weight(10)), 32, 10, opset)


def mobilenet(opset):
    """Depthwise convolutions, Relu6, a gate of squeeze and excitation, AveragePool."""
    net = Writer()
    x = net.conv("image", 3, 8, 3, 2)
    h = net.conv(net.conv(x, 8, 16, 1), 16, 16, 3, 1, group=16)
    gate = net.node("HardSigmoid", net.conv(net.node("GlobalAveragePool", h), 16, 16, 1, rectify=False))
    x = net.node("Add", x, net.conv(net.node("Mul", h, gate), 16, 8, 1, rectify=False))
    x = net.node("AveragePool", net.node("HardSwish", x), kernel_shape=[16, 16])
    return net.model(net.node("Gemm", net.node("Flatten", x), net.weight(8, 10), net.weight(10)), 32, 10, opset)


def transformer(opset):
    return vit(16, 2, 2, 16, 32, 10, opset)


def lstm(opset, steps=6):
    """A bidirectional LSTM and a dense layer; beyond 32 steps it becomes a Scan."""
    def weight(name, *shape):
        return numpy_helper.from_array(np.random.default_rng(len(name)).normal(0, 0.3, shape).astype(np.float32), name)

    nodes = [helper.make_node("LSTM", ["x", "w", "r", "b"], ["", "h"], hidden_size=5, direction="bidirectional"),
             helper.make_node("Transpose", ["h"], ["t"], perm=[1, 0, 2]), helper.make_node("Flatten", ["t"], ["f"]),
             helper.make_node("Gemm", ["f", "wo"], ["y"])]
    tensors = [weight("w", 2, 20, 4), weight("r", 2, 20, 5), weight("b", 2, 40), weight("wo", 10, 3)]
    graph = helper.make_graph(nodes, "lstm", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [steps, "N", 4])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 20 else 10)


def long_lstm(opset):
    return lstm(opset, 40)


def half(proto):
    """The same net in float16."""
    graph = proto.graph
    for t in graph.initializer:
        if t.data_type == TensorProto.FLOAT:
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name))
    for info in (*graph.input, *graph.output):
        info.type.tensor_type.elem_type = TensorProto.FLOAT16
    return proto


NETS = {f.__name__: f for f in (resnet, mobilenet, transformer, lstm, long_lstm)}
