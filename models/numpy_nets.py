"""Small networks in plain NumPy: layers, cross entropy, Adam, and the ONNX file that holds them.

Pictures are (N, H, W, C) in here, where a convolution is one product of matrices, and (N, C, H, W) in files, as exporters
write them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Array = NDArray[np.float32]
KERNEL = 3


@dataclass(frozen=True, eq=False)
class Layer:
    """kind: conv (3x3, size kept; w (3, 3, in, out)), dense (w (in, out)), relu, pool (maxima of 2x2), flatten.

    shape: of what the layer makes, without the batch.
    """

    kind: str
    name: str
    shape: tuple[int, ...]
    w: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    b: Array = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def is_linear(self) -> bool:
        return self.kind in ("conv", "dense")


def network(text: str, shape: tuple[int, ...], seed: int = 0) -> list[Layer]:
    """The layers of "conv 32 relu pool flatten dense 10" for inputs of a shape, with He-normal weights and no biases.

    Linear layers are counted: conv1, relu1, pool1, fc2, ...
    """
    random, words, layers, count = np.random.default_rng(seed), iter(text.split()), [], 0
    for kind in words:
        if kind in ("conv", "dense"):
            count, wide = count + 1, int(next(words))
            fan = (KERNEL, KERNEL, shape[-1]) if kind == "conv" else shape
            w = random.normal(0, np.sqrt(2 / np.prod(fan)), (*fan, wide)).astype(np.float32)
            shape = (*shape[:-1], wide)
            layers.append(Layer(kind, f"{'conv' if kind == 'conv' else 'fc'}{count}", shape, w, np.zeros(wide, np.float32)))
        else:
            pooled = (shape[0] // 2, shape[1] // 2, shape[2]) if kind == "pool" else shape
            shape = (int(np.prod(shape)),) if kind == "flatten" else pooled
            layers.append(Layer(kind, f"{kind}{count}", shape))
    return layers


# -- forward and backward -----------------------------------------------------------------------------------------
def patches(x: Array) -> Array:
    """(N, H, W, C) -> (N H W, 9 C): what a kernel sees at each place, zeros around."""
    wide = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    seen = sliding_window_view(wide, (KERNEL, KERNEL), axis=(1, 2)).transpose(0, 1, 2, 4, 5, 3)
    return seen.reshape(-1, KERNEL * KERNEL * x.shape[-1])


def linear(x: Array, w: Array) -> Array:
    if w.ndim == 2:
        return x @ w
    flat = w.reshape(-1, w.shape[-1])
    return np.concatenate([patches(part) @ flat for part in parts(x)]).reshape(*x.shape[:-1], -1)


def product(x: Array, d: Array) -> Array:
    """Derivative of `linear` by its kernel, where d arrives: (9 in, out)."""
    found = np.zeros((KERNEL * KERNEL * x.shape[-1], d.shape[-1]), x.dtype)
    for a, b in zip(parts(x), parts(d), strict=True):
        found += patches(a).T @ b.reshape(-1, d.shape[-1])
    return found


def parts(x: Array, rows: int = 8) -> Iterator[Array]:
    """A few samples at a time, whose patches stay in the cache."""
    return (x[i : i + rows] for i in range(0, len(x), rows))


def windows(x: Array) -> Array:
    """(N, H, W, C) -> (N, H/2, 2, W/2, 2, C)."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c)


def apply(layer: Layer, x: Array) -> Array:
    if layer.is_linear:
        return linear(x, layer.w) + layer.b
    if layer.kind == "relu":
        return np.maximum(x, 0)
    return windows(x).max((2, 4)) if layer.kind == "pool" else x.reshape(len(x), -1)


def pull(layer: Layer, x: Array, y: Array, d: Array) -> Array:
    """What arrives at x when d arrives at y = layer(x).

    Of equal maxima each gets d: they are zeros of a rectifier, which lets none of it pass.
    """
    if layer.kind == "dense":
        return d @ layer.w.T
    if layer.kind == "conv":
        return linear(d, layer.w[::-1, ::-1].swapaxes(2, 3))
    if layer.kind == "relu":
        return d * (y > 0)
    if layer.kind == "pool":
        return ((windows(x) == y[:, :, None, :, None]) * d[:, :, None, :, None]).reshape(x.shape)
    return d.reshape(x.shape)


def forward(layers: Sequence[Layer], x: Array) -> list[Array]:
    """The input of each layer, and the output of the last."""
    values = [x]
    for layer in layers:
        values.append(apply(layer, values[-1]))
    return values


def gradients(layers: Sequence[Layer], values: Sequence[Array], d: Array) -> Iterator[tuple[Array, Array]]:
    """(dw, db) of each linear layer, from the last to the first."""
    for layer, x, y in reversed(list(zip(layers, values, values[1:]))):
        if layer.is_linear:
            dw = product(x, d) if layer.kind == "conv" else x.T @ d
            yield dw.reshape(layer.w.shape), d.reshape(-1, d.shape[-1]).sum(0)
        if layer is not layers[0]:
            d = pull(layer, x, y, d)


# -- training -----------------------------------------------------------------------------------------------------
def slope(logits: Array, labels: NDArray[np.int64]) -> Array:
    """Derivative of the mean cross entropy: of the softmax, or of a sigmoid where there is one logit."""
    if logits.shape[1] == 1:
        return (1 / (1 + np.exp(-logits)) - labels[:, None]).astype(np.float32) / len(logits)
    p = np.exp(logits - logits.max(1, keepdims=True))
    return (p / p.sum(1, keepdims=True) - np.eye(logits.shape[1], dtype=np.float32)[labels]) / len(logits)


def train(
    layers: Sequence[Layer], x: Array, labels: NDArray[np.int64], *, epochs: int, batch: int, lr: float, seed: int = 0
) -> list[Layer]:
    """The layers after Adam (Kingma and Ba 2015, its constants) on seeded batches."""
    layers = [replace(layer, w=layer.w.copy(), b=layer.b.copy()) for layer in layers]
    weights = [v for layer in reversed(layers) if layer.is_linear for v in (layer.w, layer.b)]
    first, second = ([np.zeros_like(v) for v in weights] for _ in range(2))
    random, step = np.random.default_rng(seed), 0
    for _ in range(epochs):
        order = random.permutation(len(x))
        for start in range(0, len(x), batch):
            chosen, step = order[start : start + batch], step + 1
            values = forward(layers, x[chosen])
            found = [v for pair in gradients(layers, values, slope(values[-1], labels[chosen])) for v in pair]
            rate = np.float32(lr * np.sqrt(1 - 0.999**step) / (1 - 0.9**step))
            for v, g, m, s in zip(weights, found, first, second, strict=True):
                m += np.float32(0.1) * (g - m)
                s += np.float32(0.001) * (g * g - s)
                v -= rate * m / (np.sqrt(s) + np.float32(1e-8))
    return layers


def predict(layers: Sequence[Layer], x: Array, batch: int = 250) -> NDArray[np.int64]:
    logits = np.concatenate([forward(layers, x[i : i + batch])[-1] for i in range(0, len(x), batch)])
    return (logits[:, 0] > 0).astype(np.int64) if logits.shape[1] == 1 else logits.argmax(1)


# -- files --------------------------------------------------------------------------------------------------------
def channels_first(x: Array) -> Array:
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if x.ndim == 4 else x


def file_weight(layer: Layer, seen: tuple[int, ...]) -> Array:
    """A weight as in files: (out, in, 3, 3) or (out, in). seen: the shape that reached a dense layer, before any flattening."""
    if layer.kind == "conv":
        w = layer.w.transpose(3, 2, 0, 1)
    else:
        w = np.moveaxis(layer.w.reshape(*seen, -1), len(seen) - 1, 0).reshape(layer.w.shape).T
    return np.ascontiguousarray(w)


def to_onnx(layers: Sequence[Layer], shape: tuple[int, ...], name: str) -> onnx.ModelProto:
    """Opset 17, input `x` with any batch, output `logits`; every other tensor has the name of the layer that makes it."""
    operators = {"conv": "Conv", "dense": "Gemm", "relu": "Relu", "pool": "MaxPool", "flatten": "Flatten"}
    attributes = {"conv": {"pads": [1] * 4}, "dense": {"transB": 1}, "pool": {"kernel_shape": [2, 2], "strides": [2, 2]}}
    nodes, weights, x, seen = [], [], "x", shape
    for layer in layers:
        inputs, y = [x], "logits" if layer is layers[-1] else layer.name
        if layer.is_linear:
            inputs += [f"{layer.name}.w", f"{layer.name}.b"]
            weights += map(numpy_helper.from_array, (file_weight(layer, seen), layer.b), inputs[1:])
        nodes.append(helper.make_node(operators[layer.kind], inputs, [y], layer.name, **attributes.get(layer.kind, {})))
        x, seen = y, seen if layer.kind == "flatten" else layer.shape
    ends = {"x": (shape[-1], *shape[:-1]), "logits": layers[-1].shape}
    first, last = (helper.make_tensor_value_info(end, TensorProto.FLOAT, ["N", *sizes]) for end, sizes in ends.items())
    graph = helper.make_graph(nodes, name, [first], [last], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="graphattr models")
    onnx.checker.check_model(model, full_check=True)
    return model
