"""A tiny float64 interpreter of small ONNX models: forward, and backward for a named method.

Net(model, x) evaluates the model at x and turns it into a list of layers; `net.explain(method, target)` walks them backwards and
returns the attribution of every tensor. The methods are a table of this file, the rules are those of oracles.py.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tests.rules import oracles as o

PASS = {"Identity", "Dropout", "Cast"}
INDEX = {"Flatten", "Reshape", "Transpose", "Concat", "Squeeze", "Unsqueeze", "Slice", "Pad", "Gather", "Expand"}
TERMINAL = {"Softmax", "LogSoftmax", "Sigmoid"}
GATES = {"Sigmoid", "HardSigmoid", "Softmax"}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


# op: value and derivative, given the node's attributes and constant inputs
ACTIVATIONS = {
    "Relu": (lambda x, a, k: o.pos(x), lambda x, a, k: 1.0 * (x > 0)),
    "LeakyRelu": (lambda x, a, k: np.where(x > 0, x, a["alpha"] * x), lambda x, a, k: np.where(x > 0, 1.0, a["alpha"])),
    "Clip": (lambda x, a, k: np.clip(x, *k), lambda x, a, k: 1.0 * ((x > k[0]) & (x < k[1]))),
    "Sigmoid": (lambda x, a, k: sigmoid(x), lambda x, a, k: sigmoid(x) * (1 - sigmoid(x))),
    "Tanh": (lambda x, a, k: np.tanh(x), lambda x, a, k: 1 - np.tanh(x) ** 2),
    "Softplus": (lambda x, a, k: np.logaddexp(x, 0), lambda x, a, k: sigmoid(x)),
    "Neg": (lambda x, a, k: -x, lambda x, a, k: -np.ones_like(x)),
    "Softmax": (lambda x, a, k: np.exp(x) / np.exp(x).sum(-1, keepdims=True), None),  # as the last node, stripped
    "Exp": (lambda x, a, k: np.exp(x), lambda x, a, k: np.exp(x)),
}
RECTIFIERS = {"Relu", "LeakyRelu", "Clip"}


@dataclasses.dataclass
class Layer:
    """One step of the net: kind says which fields matter (w, support, b: dense matrices; scale, shift: constants)."""

    kind: str
    op: str
    name: str
    inputs: list[str]
    output: str
    attrs: dict[str, Any] = dataclasses.field(default_factory=dict)
    const: list[Any] = dataclasses.field(default_factory=list)
    w: Any = None
    support: Any = None
    b: Any = None
    shape: tuple[int, ...] = ()
    scale: Any = 1.0
    shift: Any = 0.0
    ids: Any = None
    padded: bool = False
    channel: int = 0  # the axis of shape along which a bias varies

    @property
    def conv(self):
        return self.op in ("Conv", "ConvTranspose")


def unbroadcast(r, shape):
    """Sum r over the axes along which a tensor of that shape was broadcast."""
    r = r.sum(axis=tuple(range(r.ndim - len(shape))))
    return r.sum(axis=tuple(i for i, n in enumerate(shape) if n == 1 and r.shape[i] != 1), keepdims=True)


class Net:
    """The layers of a model and the value of every tensor at x."""

    def __init__(self, model, x, fold=True):
        graph = model.graph
        self.const = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
        self.const = {k: v.astype(float) if v.dtype.kind == "f" else v for k, v in self.const.items()}
        self.input = next(i.name for i in graph.input if i.name not in self.const)
        self.output, self.alias, self.layers = graph.output[0].name, {}, []
        self.values = {self.input: np.asarray(x, float)}
        for node in graph.node:
            self._read(node)
        while self.layers[-1].op in TERMINAL:
            self.output = self.layers.pop().inputs[0]
        self._join_pads()
        if fold:
            self._fold()
        for layer in self.layers:
            self._run(layer)

    # --- reading the model ---

    def _read(self, node):
        attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "Constant":
            self.const[node.output[0]] = numpy_helper.to_array(attrs["value"]).astype(float)
            return
        names = [self.alias.get(i, i) for i in node.input]
        if node.op_type in PASS:
            self.alias[node.output[0]] = names[0]
            self.output = names[0] if self.output == node.output[0] else self.output
            return
        data = [i for i in names if i in self.values]
        layer = Layer("", node.op_type, node.name, data, node.output[0], attrs)
        layer.const = [self.const[i] if i else None for i in names if i not in self.values]
        self._classify(layer, names)
        self.layers.append(layer)
        self._run(layer)

    def _classify(self, layer, names):
        op, x = layer.op, self.values[layer.inputs[0]]
        if op in ("Conv", "ConvTranspose", "Gemm") or (op == "MatMul" and len(layer.inputs) == 1):
            layer.kind = "linear"
            self._linear(layer, x, names)
        elif op in ("AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"):
            layer.kind = "mean"
            self._mean(layer, x)
        elif op in ACTIVATIONS:
            layer.kind = "act"
        elif op in ("MaxPool", "GlobalMaxPool"):
            layer.kind = "max"
        elif op in INDEX:
            layer.kind = "index"
        elif op in ("Add", "Sub", "Sum"):
            layer.kind = "sum" if len(layer.inputs) > 1 else "affine"
            if layer.kind == "affine":
                sign = -1.0 if op == "Sub" else 1.0
                layer.scale, layer.shift = (1.0, sign * layer.const[0]) if names[0] in self.values else (sign, layer.const[0])
        elif op in ("Mul", "Div"):
            layer.kind = "mul" if len(layer.inputs) == 2 else "scale"
            if layer.kind == "scale":
                layer.scale = layer.const[0] if op == "Mul" else 1 / layer.const[0]
        elif op == "BatchNormalization":
            layer.kind = "affine"
            gamma, beta, mean, var = layer.const
            a = gamma / np.sqrt(var + layer.attrs.get("epsilon", 1e-5))
            wide = (-1, *[1] * (x.ndim - 2))
            layer.scale, layer.shift = a.reshape(wide), (beta - a * mean).reshape(wide)
        else:
            raise NotImplementedError(op)

    def _linear(self, layer, x, names):
        a, shape, w = layer.attrs, x.shape[1:], layer.const[0]
        dims = len(shape) - 1
        if layer.conv:
            args = list(self._window(layer, shape[1:], w.shape[2:])[1:])
            if layer.op == "ConvTranspose":
                args.append(a.get("output_padding", [0] * dims))
            build = o.conv_matrix if layer.op == "Conv" else o.conv_transpose_matrix
            args.append(a.get("group", 1))
            layer.padded = any(args[1])
        else:
            left = names[1] in self.values
            layer.channel = -2 if left else -1
            build, args = (o.left_matrix if left else o.gemm_matrix), []
            w = w.T if a.get("transB") else w
            w = w * a.get("alpha", 1.0)
        layer.w, layer.shape = build(w, shape, *args)
        layer.support = build(np.ones_like(w), shape, *args)[0]
        bias = a.get("beta", 1.0) * layer.const[1] if len(layer.const) > 1 else np.zeros(1)
        bias = bias.reshape(-1, *[1] * dims) if layer.conv else bias
        layer.b = np.broadcast_to(bias, layer.shape).ravel()

    def _mean(self, layer, x):
        a, space = layer.attrs, x.shape[2:]
        dims = len(space)
        if layer.op.startswith("Reduce"):
            axes = layer.const[0] if layer.const else a["axes"]
            axes, keep = tuple(int(i) % x.ndim for i in axes), a.get("keepdims", 1)
            unit = np.eye(x[0].size).reshape(-1, *x.shape[1:])
            found = (unit.mean if layer.op == "ReduceMean" else unit.sum)(axis=axes, keepdims=bool(keep))
            layer.w, layer.shape = found.reshape(len(unit), -1).T, found.shape[1:]
        elif layer.op == "GlobalAveragePool":
            layer.w, layer.shape = o.pool_matrix(x.shape[1:], space, [1] * dims, [0] * 2 * dims, [1] * dims)
        else:
            layer.w, layer.shape = o.pool_matrix(x.shape[1:], *self._window(layer, space), bool(a.get("ceil_mode", 0)),
                                                 bool(a.get("count_include_pad", 0)))
        layer.b = np.zeros(len(layer.w))

    @staticmethod
    def _window(layer, space, kernel=None):
        """Kernel, strides, pads, dilations; automatic padding makes ceil(n / stride) outputs."""
        a, dims = layer.attrs, len(space)
        kernel, strides, dilations = kernel or a["kernel_shape"], a.get("strides", [1] * dims), a.get("dilations", [1] * dims)
        pads, auto = a.get("pads", [0] * 2 * dims), a.get("auto_pad", b"NOTSET").decode()
        if auto.startswith("SAME"):
            more = [max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0) for n, k, s, d in zip(space, kernel, strides, dilations)]
            less, rest = [m // 2 for m in more], [m - m // 2 for m in more]
            pads = less + rest if auto == "SAME_UPPER" else rest + less
        return kernel, strides, pads, dilations

    # --- folding ---

    def users(self, name):
        return [l for l in self.layers for i in l.inputs if i == name] + [None] * (name == self.output)

    def _join_pads(self):
        """Zeros around a convolution's input are its padding."""
        for layer in [l for l in self.layers if l.op == "Pad"]:
            after = self.users(layer.output)
            if len(after) == 1 and after[0] and after[0].op == "Conv":
                shape = self.values[layer.inputs[0]].shape[1:]
                widths = np.array(layer.const[0], int).reshape(2, -1).T[1:]
                place = np.pad(np.arange(np.prod(shape)).reshape(shape), widths, constant_values=-1).ravel()
                rows = np.vstack([np.eye(np.prod(shape)), np.zeros((1, np.prod(shape)))])[place]
                after[0].w, after[0].support = after[0].w @ rows, after[0].support @ rows
                after[0].inputs, after[0].padded = list(layer.inputs), True
                self.layers.remove(layer)

    def _fold(self):
        """Biases written as Add, then BN into the linear layer before it, then BN into the unpadded linear layer after it."""
        for layer in list(self.layers):
            before = next((l for l in self.layers if l.kind == "linear" and l.output in layer.inputs), None)
            along = layer.op == "BatchNormalization" or (layer.op == "Add" and self._is_bias(layer, before))
            if layer.kind == "affine" and before and along and len(self.users(before.output)) == 1:
                scale = np.broadcast_to(layer.scale, before.shape).ravel()
                before.w, before.b = scale[:, None] * before.w, scale * before.b
                before.b = before.b + np.broadcast_to(layer.shift, (1, *before.shape)).ravel()
                before.output = layer.output
                self.layers.remove(layer)
        for layer in [l for l in self.layers if l.op == "BatchNormalization"]:
            after = self.users(layer.output)
            if len(after) == 1 and after[0] and after[0].kind == "linear" and not after[0].padded:
                shape = self.values[layer.inputs[0]].shape[1:]
                after[0].b = after[0].b + after[0].w @ np.broadcast_to(layer.shift, shape).ravel()
                after[0].w = after[0].w * np.broadcast_to(layer.scale, shape).ravel()
                after[0].inputs = list(layer.inputs)
                self.layers.remove(layer)

    @staticmethod
    def _is_bias(layer, before):
        """Does the constant vary along the output channel only?"""
        if before is None or layer.kind != "affine":
            return False
        shift = np.broadcast_to(layer.shift, (1, *before.shape))[0]
        moved = np.moveaxis(shift, before.channel, 0)
        return bool((moved == moved.reshape(len(moved), -1)[:, 0].reshape(-1, *[1] * (moved.ndim - 1))).all())

    # --- forward ---

    def _run(self, layer):
        xs = [self.values[i] for i in layer.inputs]
        x, n = xs[0], len(xs[0])
        if layer.kind in ("linear", "mean"):
            y = (x.reshape(n, -1) @ layer.w.T + layer.b).reshape(n, *layer.shape)
        elif layer.kind == "act":
            y = ACTIVATIONS[layer.op][0](x, layer.attrs, layer.const)
        elif layer.kind == "max":
            dims = x.ndim - 2
            whole = (x.shape[2:], [1] * dims, [0] * 2 * dims, [1] * dims)
            window = whole if layer.op == "GlobalMaxPool" else self._window(layer, x.shape[2:])
            layer.ids, layer.scale = o.pool_winners(x, *window, bool(layer.attrs.get("ceil_mode", 0)))
            y = x.ravel()[layer.ids]
        elif layer.kind == "index":
            sizes = np.cumsum([0, *[v.size for v in xs]])
            layer.ids = index_map(layer, [np.arange(v.size).reshape(v.shape) + s for v, s in zip(xs, sizes)])
            y = np.append(np.concatenate([v.ravel() for v in xs]), 0.0)[layer.ids]
        elif layer.kind == "sum":
            y = xs[0] - xs[1] if layer.op == "Sub" else sum(xs)
        elif layer.kind == "mul":
            y = xs[0] * xs[1] if layer.op == "Mul" else xs[0] / xs[1]
        else:
            y = layer.scale * x + layer.shift
        self.values[layer.output] = y

    @property
    def logits(self):
        return self.values[self.output]

    def producer(self, name):
        return next((l for l in self.layers if l.output == name), None)

    # --- backward ---

    def backward(self, seed, pull, start=None):
        """Relevance of every tensor when the explained output (or `start`) receives seed; pull(net, layer, r) shares r out."""
        found: dict[str, Any] = defaultdict(float)
        found[start or self.output] = seed
        for layer in reversed(self.layers):
            if layer.output in found:
                for name, r in zip(layer.inputs, pull(self, layer, found[layer.output]), strict=True):
                    found[name] = found[name] + r
        return dict(found)


def index_map(layer, ids):
    """Which flat element of the inputs each element of the output is; -1 is a constant zero."""
    a, k, x = layer.attrs, layer.const, ids[0]
    if layer.op == "Flatten":
        return x.reshape(int(np.prod(x.shape[: a.get("axis", 1)])), -1)
    if layer.op == "Reshape":
        return x.reshape([x.shape[i] if n == 0 else int(n) for i, n in enumerate(k[0])])
    if layer.op == "Transpose":
        return x.transpose(a["perm"])
    if layer.op == "Concat":
        return np.concatenate(ids, a["axis"])
    if layer.op == "Squeeze":
        return x.squeeze(tuple(int(i) for i in k[0]))
    if layer.op == "Unsqueeze":
        return np.expand_dims(x, tuple(int(i) for i in k[0]))
    if layer.op == "Slice":
        cut = [slice(None)] * x.ndim
        for i, axis in enumerate(k[2]):
            cut[int(axis)] = slice(int(k[0][i]), int(k[1][i]), int(k[3][i]) if len(k) > 3 else 1)
        return x[tuple(cut)]
    if layer.op == "Pad":
        return np.pad(x, np.array(k[0], int).reshape(2, -1).T, constant_values=-1)
    if layer.op == "Gather":
        return np.take(x, np.array(k[0], int), a.get("axis", 0))
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, tuple(int(i) for i in k[0])))
