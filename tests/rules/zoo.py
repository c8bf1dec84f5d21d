"""Small seeded random models, one per thing a backward pass can get wrong, with inputs that are away from kinks and ties."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.rules.nets import Net


class Build:
    """Writes an ONNX model node by node; a method returns the name of the tensor that it made."""

    def __init__(self, seed, *shape, out=4):
        self.rng, self.nodes, self.init, self.shape, self.out = np.random.default_rng(seed), [], [], shape, out

    def const(self, value, name=None):
        name = name or f"c{len(self.init)}"
        self.init.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def weight(self, *shape, spread=1.0, at=0.0):
        return self.const((at + spread * self.rng.standard_normal(shape)).astype(np.float32))

    def op(self, kind, *inputs, **attrs):
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attrs))
        return name

    def conv(self, x, cin, cout, kernel=(3, 3), group=1, bias=True, **attrs):
        w = self.weight(cout, cin // group, *kernel, spread=(2 * group / cin / np.prod(kernel)) ** 0.5)
        return self.op("Conv", x, w, *[self.weight(cout, spread=0.2) for _ in range(bias)],
                       kernel_shape=kernel, group=group, **attrs)

    def deconv(self, x, cin, cout, kernel=(3, 3), group=1, **attrs):
        w = self.weight(cin, cout // group, *kernel, spread=(3 * group / cin / np.prod(kernel)) ** 0.5)
        return self.op("ConvTranspose", x, w, self.weight(cout, spread=0.2), kernel_shape=kernel, group=group, **attrs)

    def norm(self, x, n, at=0.7):
        scale, rest = self.weight(n, spread=0.5, at=at), [self.weight(n, spread=0.2) for _ in range(2)]
        return self.op("BatchNormalization", x, scale, *rest, self.const(self.rng.uniform(0.5, 2, n).astype(np.float32)))

    def gemm(self, x, cin, cout, **attrs):
        w, bias = self.weight(cout, cin, spread=(2 / cin) ** 0.5), self.weight(cout, spread=0.2)
        return self.op("Gemm", x, w, bias, transB=1, **attrs)

    def matmul(self, x, cin, cout):
        product = self.op("MatMul", x, self.weight(cin, cout, spread=(2 / cin) ** 0.5))
        return self.op("Add", product, self.weight(cout, spread=0.2))

    def relu(self, x):
        return self.op("Relu", x)

    def ints(self, *values):
        return self.const(np.array(values, np.int64))

    def head(self, x, cin):
        return self.done(self.gemm(self.op("Flatten", x), cin, self.out))

    def done(self, y):
        ends = (("x", ["N", *self.shape]), (y, ["N", self.out]))
        info = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in ends]
        graph = helper.make_graph(self.nodes, "net", info[:1], info[1:], self.init)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return onnx.shape_inference.infer_shapes(model)


def cnn():
    """Conv, BN, MaxPool, GlobalAveragePool: the everyday net."""
    b = Build(1, 3, 7, 7)
    h = b.op("MaxPool", b.relu(b.norm(b.conv("x", 3, 5, pads=[1] * 4), 5)), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    return b.head(b.op("GlobalAveragePool", b.relu(b.conv(h, 5, 6))), 6)


def residual():
    """Identity and projected shortcuts; one BN that nothing can absorb behind an Add."""
    b = Build(2, 3, 6, 6)
    h = b.relu(b.norm(b.conv("x", 3, 4, pads=[1] * 4), 4))
    h = b.relu(b.op("Add", b.norm(b.conv(h, 4, 4, pads=[1] * 4), 4), h))
    two = b.op("Add", b.conv(h, 4, 6, pads=[1] * 4, strides=[2, 2]), b.conv(h, 4, 6, (1, 1), strides=[2, 2], bias=False))
    return b.head(b.op("GlobalAveragePool", b.relu(b.norm(two, 6))), 6)


def branches():
    """Two branches from the input, concatenated; average pooling with and without padding in the count."""
    b = Build(3, 3, 6, 6)
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}
    one = b.op("AveragePool", b.relu(b.conv("x", 3, 4, pads=[1] * 4)), **window)
    two = b.op("AveragePool", b.relu(b.conv("x", 3, 3, (1, 1))), count_include_pad=1, **window)
    return b.head(b.op("Concat", one, two, axis=1), 7 * 9)


def gated():
    """A sigmoid gate on a 1-D signal, and a product of two signals."""
    b = Build(4, 2, 9)
    h = b.relu(b.conv("x", 2, 5, (3,), strides=[2], pads=[1, 1]))
    gate = b.op("Sigmoid", b.conv(h, 5, 5, (1,)))
    h = b.op("Mul", h, gate)
    return b.head(b.op("Mul", b.relu(b.conv(h, 5, 4, (2,))), b.relu(b.conv(h, 5, 4, (2,)))), 16)


def squeeze_excite():
    """A gate broadcast over space, listed first."""
    b = Build(5, 3, 5, 5)
    h = b.relu(b.conv("x", 3, 6, pads=[1] * 4))
    gate = b.op("Sigmoid", b.conv(b.relu(b.conv(b.op("GlobalAveragePool", h), 6, 3, (1, 1))), 3, 6, (1, 1)))
    return b.head(b.op("GlobalAveragePool", b.relu(b.conv(b.op("Mul", gate, h), 6, 6))), 6)


def mobile():
    """Depthwise, grouped and pointwise convolutions with ReLU6."""
    b = Build(6, 4, 6, 6)
    six = [b.const(np.float32(0)), b.const(np.float32(6))]
    h = b.op("Clip", b.norm(b.conv("x", 4, 8, (3, 3), pads=[0, 0, 1, 1], strides=[2, 2], group=2), 8, at=5), *six)
    h = b.op("Clip", b.norm(b.conv(h, 8, 8, group=8, pads=[1] * 4), 8), *six)
    h = b.op("Add", b.norm(b.conv(h, 8, 8, (1, 1)), 8), h)
    return b.head(b.op("GlobalAveragePool", b.op("Clip", b.conv(h, 8, 6, (1, 1)), *six)), 6)


def dilated():
    """Dilation, stride, asymmetric padding and a kernel that is not square."""
    b = Build(7, 2, 9, 8)
    h = b.relu(b.conv("x", 2, 4, (3, 2), dilations=[2, 1], strides=[1, 2], pads=[2, 0, 1, 1]))
    h = b.relu(b.conv(h, 4, 5, (2, 3), strides=[3, 2], pads=[0, 2, 1, 0]))
    return b.head(h, 5 * 3 * 2)


def upsampled():
    """Grouped and strided transposed convolutions with output padding."""
    b = Build(8, 4, 3, 4)
    h = b.relu(b.deconv("x", 4, 6, (3, 3), group=2, strides=[2, 2], pads=[1, 0, 0, 1], output_padding=[1, 0]))
    h = b.relu(b.norm(b.deconv(h, 6, 3, (2, 3), dilations=[2, 1], pads=[1, 1, 0, 1]), 3))
    return b.head(b.op("AveragePool", h, kernel_shape=[2, 2], strides=[2, 2]), 3 * 4 * 4)


def mlp():
    """MatMul and Add as dense layers, LeakyRelu, BN on vectors, a terminal softmax."""
    b = Build(9, 10)
    h = b.op("LeakyRelu", b.matmul("x", 10, 12), alpha=0.2)
    h = b.op("LeakyRelu", b.norm(b.matmul(h, 12, 9), 9), alpha=0.1)
    return b.done(b.op("Softmax", b.gemm(h, 9, 4, alpha=0.5, beta=2.0), axis=1))


def shared():
    """One tensor with four readers, one of which lists it twice; a difference."""
    b = Build(10, 3, 5, 5)
    h = b.relu(b.conv("x", 3, 4, pads=[1] * 4))
    one, two = b.relu(b.conv(h, 4, 4, pads=[1] * 4)), b.op("Add", h, h)
    h = b.op("Sub", b.op("Concat", one, two, axis=1), b.op("Concat", h, b.op("Identity", one), axis=1))
    return b.head(b.relu(b.conv(h, 8, 3)), 27)


def tokens():
    """Dense layers on sequences, transposes, a mean over time: an MLP-mixer."""
    b = Build(11, 5, 6)
    h = b.op("Tanh", b.matmul("x", 6, 8))
    t = b.op("Transpose", b.matmul(b.op("Transpose", h, perm=[0, 2, 1]), 5, 5), perm=[0, 2, 1])
    h = b.relu(b.op("Add", h, t))
    return b.done(b.matmul(b.op("ReduceMean", h, axes=[1], keepdims=0), 8, 4))


def scaled():
    """Normalisation written as constant Mul, Sub and Div; Pad, Slice and Reshape; BN before a convolution with padding."""
    b = Build(12, 3, 6, 6)
    h = b.op("Sub", b.op("Mul", "x", b.const(np.float32(1.7))), b.weight(3, 1, 1, spread=0.3))
    h = b.op("Pad", b.op("Div", h, b.const(np.float32([[[0.5]], [[0.8]], [[1.3]]]))), b.ints(0, 0, 1, 0, 0, 0, 0, 1))
    h = b.conv(b.norm(b.relu(b.conv(h, 3, 4, (2, 2))), 4), 4, 5, pads=[1] * 4)
    h = b.op("Slice", b.relu(h), b.ints(1, 0), b.ints(6, 4), b.ints(2, 3))
    return b.done(b.gemm(b.op("Reshape", h, b.ints(0, -1)), 5 * 5 * 4, 4))


def prenorm():
    """BN on the raw input, which folds into the unpadded convolution behind it."""
    b = Build(13, 3, 5, 5)
    h = b.relu(b.conv(b.norm("x", 3), 3, 5))
    return b.head(b.op("GlobalMaxPool", b.relu(b.conv(h, 5, 6, (2, 2)))), 6)


def volume():
    """A 3-D convolution."""
    b = Build(14, 2, 3, 4, 3)
    h = b.relu(b.conv("x", 2, 4, (2, 2, 2), pads=[0, 1, 0, 1, 0, 0]))
    return b.head(b.op("AveragePool", h, kernel_shape=[2, 2, 1], strides=[1, 2, 1]), 4 * 2 * 2 * 2)


def automatic():
    """Padding that the operator works out itself, and windows that stick out."""
    b = Build(16, 2, 8, 7)
    h = b.relu(b.conv("x", 2, 4, (3, 2), strides=[2, 1], auto_pad="SAME_LOWER"))
    h = b.op("AveragePool", h, kernel_shape=[2, 3], strides=[1, 2], auto_pad="SAME_UPPER")
    h = b.relu(b.conv(h, 4, 5, (2, 2), auto_pad="VALID"))
    h = b.op("MaxPool", h, kernel_shape=[2, 2], strides=[2, 2], ceil_mode=1)
    return b.head(b.op("AveragePool", h, kernel_shape=[2, 2], strides=[1, 1], pads=[1, 0, 1, 0], ceil_mode=1), 5 * 3)


def sums():
    """A sum of three, one that broadcasts, a square, a tensor twice in Concat; the file lists the deeper branch first."""
    b = Build(17, 3, 5, 5)
    late = b.relu(b.conv(b.op("LeakyRelu", "x", alpha=0.3), 3, 4))
    h = b.relu(b.op("Sum", late, b.conv("x", 3, 4), b.conv("x", 3, 4)))
    h = b.op("Add", b.op("GlobalAveragePool", h), b.op("Concat", h, h, axis=2))
    h = b.op("Add", h, b.op("Mul", h, h))
    return b.done(b.gemm(b.op("ReduceSum", h, b.ints(2, 3), keepdims=0), 4, 4))


def biased():
    """Biases written as Add behind a convolution, a Gemm and a weight on the left; constants that are no bias."""
    b = Build(18, 2, 4, 5)
    h = b.relu(b.op("Add", b.weight(3, 1, 1), b.conv("x", 2, 3, (2, 2), bias=False)))
    h = b.op("Add", b.conv(h, 3, 4, (1, 1)), b.weight(1, 1, 3, 4, spread=0.3))
    h = b.op("Reshape", b.relu(h), b.ints(0, 4, 12))
    h = b.relu(b.op("Add", b.op("MatMul", b.weight(6, 4, spread=0.7), h), b.weight(6, 1)))
    h = b.op("Gemm", b.op("Flatten", h), b.weight(72, 7, spread=0.15))
    return b.done(b.gemm(b.op("Sub", b.const(np.float32(2)), b.relu(h)), 7, 4))


def ratio():
    """Data divided by data; smooth functions."""
    b = Build(19, 2, 6)
    h = b.conv("x", 2, 4, (3,), pads=[1, 1])
    h = b.op("Div", b.relu(h), b.op("Softplus", b.conv("x", 2, 4, (1,))))
    return b.head(b.op("Exp", b.op("Neg", b.relu(b.conv(h, 4, 3, (2,))))), 15)


def deep():
    """Dense, ReLU and MaxPool only, without biases: what conserves relevance exactly."""
    b = Build(15, 3, 6, 6)
    h = b.op("MaxPool", b.relu(b.conv("x", 3, 6, bias=False)), kernel_shape=[2, 2], strides=[2, 2])
    h = b.relu(b.op("MatMul", b.op("Flatten", h), b.weight(24, 20, spread=0.3)))
    return b.done(b.op("MatMul", h, b.weight(20, 4, spread=0.3)))


def faint():
    """The same at inputs so small that every stabiliser shows."""
    return deep()


ZOO = {f.__name__: f for f in (cnn, residual, branches, gated, squeeze_excite, mobile, dilated, upsampled, mlp, shared, tokens,
                               scaled, prenorm, volume, automatic, sums, biased, ratio, deep, faint)}
SCALE = {"faint": 1e-5}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model, three inputs, one target for each."""

    name: str
    model: onnx.ModelProto
    x: np.ndarray
    target: np.ndarray

    @functools.cached_property
    def net(self):
        return Net(self.model, self.x)

    @functools.cached_property
    def unfolded(self):
        return Net(self.model, self.x, fold=False)


def margin(net):
    """Per sample, how far the nearest kink, tie or vanishing denominator is, in units of the layer's largest value."""
    found = np.full(len(net.logits), np.inf)
    for layer in net.layers:
        if layer.kind in ("linear", "sum", "affine", "mean"):
            y = np.abs(net.values[layer.output]).reshape(len(found), -1)
            near = np.where(y == 0, np.inf, y)
        elif layer.op == "Clip":
            y = net.values[layer.inputs[0]].reshape(len(found), -1)
            near = np.abs(y - layer.const[1])
        elif layer.kind == "max":
            gap, y = layer.scale.reshape(len(found), -1), net.values[layer.output].reshape(len(found), -1)
            near = np.where(gap == 0, np.inf, gap)
        else:
            continue
        found = np.minimum(found, near.min(1) / np.abs(y).max())
    return found


@functools.cache
def case(name, sign=1):
    """The case of that name at the 3 of 200 random inputs that are farthest from trouble; sign=0 takes their absolute values."""
    model = ZOO[name]()
    rng = np.random.default_rng(list(ZOO).index(name))
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = (SCALE.get(name, 1.0) * rng.standard_normal((200, *shape))).astype(np.float32)
    x = x if sign else np.abs(x)
    net = Net(model, x)
    best = np.argsort(margin(net))[-3:]
    top = net.logits[best].argmax(1)
    return Case(name, model, x[best], np.array([top[0], top[1], (top[2] + 1) % net.logits.shape[1]]))
