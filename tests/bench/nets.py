"""Networks to measure, as ONNX with a static batch; weights are seeded random numbers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "models"))

LIGHT = ("resnet50", "vgg19", "densenet121", "squeezenet")
VITS = {"vit_s16": (384, 12, 6), "vit_b16": (768, 12, 12)}  # width, depth, heads
NAMES = (*LIGHT, "vgg16", *VITS, "mobilenet_v2", "efficientnet_lite0")
# MobileNetV2: expansion, channels, blocks, stride of the first one (Sandler et al. 2018, table 2).
BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def network(name: str, batch: int | None = 1) -> onnx.ModelProto:
    """The network called `name`, for (batch, 3, 224, 224); None leaves the batch open."""
    if name in LIGHT:
        from light_random import randomised

        proto = randomised(name)
    elif name == "mobilenet_v2":
        proto = mobilenet_v2()
    elif name == "vgg16":
        proto = vgg16()
    elif name in VITS:
        proto = vit(*VITS[name])
    elif name == "efficientnet_lite0":
        from graphattr.demo.efficientnet import build

        proto = build()
    else:
        raise ValueError(f"no network {name!r}: choose from {', '.join(NAMES)}")
    return with_batch(proto, batch)


def with_batch(proto: onnx.ModelProto, batch: int | None) -> onnx.ModelProto:
    """Weights are no inputs, the batch is fixed (or None: open), and no Reshape says 1 for it."""
    graph = proto.graph
    constants = {t.name: t for t in graph.initializer}
    for info in [i for i in graph.input if i.name in constants]:
        graph.input.remove(info)
    for info, sizes in ((graph.input[0], (batch, 3, 224, 224)), (graph.output[0], (batch,))):
        for d, size in zip(info.type.tensor_type.shape.dim, sizes, strict=False):
            if size is None:
                d.dim_param = "N"
            else:
                d.dim_value = size
    for node in graph.node:
        if node.op_type == "Reshape" and node.input[1] in constants:
            held = constants[node.input[1]]
            shape = numpy_helper.to_array(held).copy()
            if shape.size and shape[0] == 1 and not np.isin(shape[1:], (0, -1)).any():  # 0 and -1 follow the batch already
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


def vgg16(size: int = 224) -> onnx.ModelProto:
    """VGG-16 (Simonyan and Zisserman 2015, configuration D)."""
    net, x, ins = Writer(), "image", 3
    for width, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            x, ins = net.node("Relu", net.conv(x, ins, width, 3, rectify=False)), width
        x = net.node("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
    x, ins = net.node("Flatten", x), 512 * (size // 32) ** 2
    for outs in (4096, 4096, 1000):
        w, b = net.weight(outs, ins), net.weight(outs)
        x, ins = net.node("Gemm", x, w, b, transB=1), outs
        x = net.node("Relu", x) if outs == 4096 else x
    return net.model(x, size)


class Writer:
    """Writes convolutions with seeded weights, Relu6 behind them."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors = [numpy_helper.from_array(np.float32(v), k) for k, v in (("low", 0), ("high", 6))]
        self.random = np.random.default_rng(0)

    def weight(self, *shape: int) -> str:
        values = self.random.standard_normal(shape, np.float32) * (np.sqrt(2 / np.prod(shape[1:])) if len(shape) > 1 else 0.1)
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

    def model(self, y: str, size: int = 224, classes: int = 1000, opset: int = 17) -> onnx.ModelProto:
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, size, size])
        out = helper.make_tensor_value_info(y, TensorProto.FLOAT, ["N", classes])
        graph = helper.make_graph(self.nodes, "net", [image], [out], self.tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8 if opset < 20 else 10)


def vit(width: int = 768, depth: int = 12, heads: int = 12, patch: int = 16, size: int = 224, classes: int = 1000,
        opset: int = 17) -> onnx.ModelProto:
    """A vision transformer (Dosovitskiy et al. 2021; ViT-B/16 by default) for (N, 3, size, size), weights seeded.

    Opset 17: LayerNormalization is one node, GELU is written out with Erf, as torch exports them.
    """
    net, tokens, part = Writer(), (size // patch) ** 2 + 1, width // heads
    shapes = {"flat": (0, width, -1), "split": (0, tokens, heads, part), "joined": (0, tokens, width)}
    shapes |= {"row": (1, width), "first": (0,), "at": 0}
    scalars = {"root": part**-0.5, "sqrt2": 2**0.5, "one": 1.0, "half": 0.5}
    net.tensors += [numpy_helper.from_array(np.int64(v), k) for k, v in shapes.items()]
    net.tensors += [numpy_helper.from_array(np.float32(v), k) for k, v in scalars.items()]

    def small(*shape: int) -> str:
        net.tensors.append(numpy_helper.from_array(net.random.normal(0, 0.02, shape).astype(np.float32), f"w{len(net.tensors)}"))
        return net.tensors[-1].name

    def ones(n: int) -> str:
        net.tensors.append(numpy_helper.from_array(np.ones(n, np.float32), f"w{len(net.tensors)}"))
        return net.tensors[-1].name

    def dense(x: str, ins: int, outs: int) -> str:
        return net.node("Add", net.node("MatMul", x, small(ins, outs)), small(outs))

    def norm(x: str) -> str:
        return net.node("LayerNormalization", x, ones(width), small(width), axis=-1, epsilon=1e-6)

    def heads_of(x: str, perm: tuple[int, ...]) -> str:
        return net.node("Transpose", net.node("Reshape", dense(x, width, width), "split"), perm=list(perm))

    pieces = net.node("Conv", "image", small(width, 3, patch, patch), small(width), strides=[patch] * 2)
    x = net.node("Transpose", net.node("Reshape", pieces, "flat"), perm=[0, 2, 1])
    rows = net.node("Concat", net.node("Gather", net.node("Shape", x), "first"), "row", axis=0)
    x = net.node("Concat", net.node("Expand", small(1, 1, width), rows), x, axis=1)
    x = net.node("Add", x, small(1, tokens, width))
    for _ in range(depth):
        h = norm(x)
        q, k, v = heads_of(h, (0, 2, 1, 3)), heads_of(h, (0, 2, 3, 1)), heads_of(h, (0, 2, 1, 3))
        a = net.node("Softmax", net.node("MatMul", net.node("Mul", q, "root"), k), axis=-1)
        o = net.node("Reshape", net.node("Transpose", net.node("MatMul", a, v), perm=[0, 2, 1, 3]), "joined")
        x = net.node("Add", x, dense(o, width, width))
        h = dense(norm(x), width, 4 * width)
        gelu = net.node("Mul", net.node("Mul", h, net.node("Add", net.node("Erf", net.node("Div", h, "sqrt2")), "one")), "half")
        x = net.node("Add", x, dense(gelu, 4 * width, width))
    return net.model(dense(net.node("Gather", norm(x), "at", axis=1), width, classes), size, classes, opset)
