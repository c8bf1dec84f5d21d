"""A recurrent node as the file holds it: what it says, and the pen that writes its steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from ..graph import Graph, Value

DEFAULTS = {"LSTM": ("Sigmoid", "Tanh", "Tanh"), "GRU": ("Sigmoid", "Tanh"), "RNN": ("Tanh",)}
ACTIVATIONS: Mapping[str, tuple[str, Mapping[str, float]]] = {  # spelling in any case -> operator, defaults of its parameters
    "relu": ("Relu", {}),
    "tanh": ("Tanh", {}),
    "sigmoid": ("Sigmoid", {}),
    "softsign": ("Softsign", {}),
    "softplus": ("Softplus", {}),
    "elu": ("Elu", {"alpha": 1.0}),
    "leakyrelu": ("LeakyRelu", {"alpha": 0.01}),
    "thresholdedrelu": ("ThresholdedRelu", {"alpha": 0.0}),  # as in ONNX Runtime; the operator of that name says 1
    "hardsigmoid": ("HardSigmoid", {"alpha": 0.2, "beta": 0.5}),
    "affine": ("Affine", {"alpha": 0.0, "beta": 0.0}),  # alpha x + beta; the defaults are ONNX Runtime's
    "scaledtanh": ("ScaledTanh", {"alpha": 0.0, "beta": 0.0}),  # alpha tanh(beta x)
}
DIRECTIONS = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
Activation = tuple[str, Mapping[str, float]]


def obstacle(op: str, inputs: Sequence[Value | None], attrs: Mapping[str, Any]) -> str | None:
    """Why a recurrent node cannot be written out, and what to do about it; None when it can, or for any other operator."""
    if op not in DEFAULTS:
        return None
    shapes = [None if v is None else v.shape for v in inputs[:3]]
    if len(shapes) < 3 or any(s is None or len(s) != 3 for s in shapes):
        return "the ranks of its inputs are unknown; run onnx.shape_inference on the model"
    x, w, r = [s for s in shapes if s is not None]
    if not all(isinstance(d, int) for d in (x[2], *w, *r)):
        return "the sizes of its features or weights are unknown; run onnx.shape_inference on the model"
    unknown = [n for n in strings(attrs.get("activations")) if n.lower() not in ACTIVATIONS]
    return f"its activation {unknown[0]!r} is not among {', '.join(op for op, _ in ACTIVATIONS.values())}" if unknown else None


@dataclass(frozen=True)
class Block:
    """Weight rows of some gates for [x, h], for x alone, and their bias."""

    both: Value
    alone: Value
    bias: Value | None


@dataclass(frozen=True)
class Call:
    """A recurrent node. Inputs: X, W, R, B, sequence_lens, initial_h, initial_c, P; None where absent."""

    g: Graph
    op: str
    inputs: Sequence[Value | None]
    attrs: Mapping[str, Any]
    name: str

    # -- what the node says ---------------------------------------------------------------------------------------
    @property
    def x(self) -> Value:
        assert self.inputs[0] is not None
        return self.inputs[0]

    @property
    def hidden(self) -> int:
        """Size of the state."""
        assert self.inputs[2] is not None
        return self.inputs[2].dim(-1)

    @property
    def gates(self) -> int:
        """Number of gates, the candidate included."""
        assert self.inputs[2] is not None
        return self.inputs[2].dim(1) // self.hidden

    @property
    def batch_first(self) -> bool:
        return bool(self.attrs.get("layout", 0))

    @property
    def length(self) -> int | None:
        """The number of steps; None where the file leaves it open."""
        size = (self.x.shape or ())[1 if self.batch_first else 0]
        return size if isinstance(size, int) else None

    @property
    def steps(self) -> int:
        return self.x.dim(1 if self.batch_first else 0)

    @property
    def reversed(self) -> list[bool]:
        """Per direction, whether it runs backwards."""
        return DIRECTIONS[self.attrs.get("direction", "forward")]

    def activations(self, d: int) -> list[Activation]:
        """Operators of direction d with their parameters; the lists of alphas and betas serve those that have one, in order."""
        alphas, betas = (iter(self.attrs.get(f"activation_{k}") or []) for k in ("alpha", "beta"))
        found: list[Activation] = []
        for name in strings(self.attrs.get("activations")) or DEFAULTS[self.op] * len(self.reversed):
            op, defaults = ACTIVATIONS[name.lower()]
            found.append((op, {k: float(next(alphas if k == "alpha" else betas, v)) for k, v in defaults.items()}))
        each = len(DEFAULTS[self.op])
        return found[d * each : (d + 1) * each]

    # -- the pen --------------------------------------------------------------------------------------------------
    def emit(self, name: str, op: str, *inputs: Value | None, **attrs: Any) -> Value:
        """A node named <scope>/<name>, as is its output."""
        out = self.g.fresh(name)
        return self.g.record(op, inputs, [out], attrs, out)[0]

    def split(self, name: str, x: Value, parts: Sequence[str], widths: Sequence[int], axis: int = 1) -> list[Value]:
        """x cut into parts of these widths. Their shapes are told: inference follows short lists of widths only."""
        outs, held = [self.g.fresh(p) for p in parts], x.shape or ()
        types = {o: (x.dtype, (*held[:axis], w, *held[axis + 1 :])) for o, w in zip(outs, widths, strict=True)}
        inputs = [x, self.g.const(widths, "int64")]
        return list(self.g.record("Split", inputs, outs, {"axis": axis}, self.g.fresh(name), types=types))

    def wide(self, name: str, x: Value, axes: Sequence[int]) -> Value:
        return self.emit(name, "Unsqueeze", x, self.g.const(axes, "int64"))

    def number(self, value: float) -> Value:
        return self.g.const(np.asarray(value, self.x.dtype))

    # -- parts of a step ------------------------------------------------------------------------------------------
    def joined(self, name: str, x: Value, h: Value | None) -> Value:
        """[x, h]; x where h is zero."""
        return x if h is None else self.emit(name, "Concat", x, h, axis=1)

    def linear(self, name: str, x: Value, block: Block) -> Value:
        """[x, h] [W, R]^T + b, or x W^T + b, by the width of x."""
        w = block.alone if x.dim(-1) == block.alone.dim(-1) else block.both
        return self.emit(name, "Gemm", x, w, block.bias, transB=1)

    def activate(self, name: str, v: Value, by: Activation, clip: bool = True) -> Value:
        """The activation of v, which is first kept within [-clip, clip] where the node asks for that (not so c)."""
        limit = float(self.attrs.get("clip", 0.0))
        if clip and limit > 0:
            v = self.emit(f"{name}/clip", "Clip", v, self.number(-limit), self.number(limit))
        if by[0] == "Affine":
            scaled = self.emit(f"{name}/scaled", "Mul", v, self.number(by[1]["alpha"]))
            return self.emit(name, "Add", scaled, self.number(by[1]["beta"]))
        if by[0] == "ScaledTanh":
            inner = self.emit(f"{name}/inner", "Mul", v, self.number(by[1]["beta"]))
            return self.emit(name, "Mul", self.emit(f"{name}/tanh", "Tanh", inner), self.number(by[1]["alpha"]))
        return self.emit(name, by[0], v, **by[1])

    def plus(self, name: str, a: Value, b: Value | None) -> Value:
        """a + b; without b: a + 0, which shares relevance as a sum does."""
        return self.emit(name, "Add", a, self.number(0.0) if b is None else b)

    def complement(self, name: str, v: Value) -> Value:
        """1 - v."""
        return self.emit(name, "Sub", self.number(1.0), v)

    # -- weights: arrays where they are constant, else values that nodes compute -----------------------------------
    def block(self, name: str, d: int, gates: Sequence[int]) -> Block:
        """The rows of these gates of [W, R], of W, and of the sum of both biases."""
        w, r = (self.rows(i, d, gates) for i in (1, 2))
        bias = None
        if self.inputs[3] is not None:
            bias = self.rows(3, d, gates) + self.rows(3, d, [k + self.gates for k in gates])
        return self.held(name, self.beside([w, r], 1), w, bias)

    def held(self, name: str, both: Any, alone: Any, bias: Any) -> Block:
        """A Block of named constants."""
        return Block(
            self.constant(f"{name}/weight", both),
            self.constant(f"{name}/weight_x", alone),
            None if bias is None else self.constant(f"{name}/bias", bias),
        )

    def rows(self, i: int, d: int, gates: Sequence[int]) -> Any:
        """The rows of these gates of input i in direction d."""
        v, index = self.inputs[i], np.concatenate([np.arange(k * self.hidden, (k + 1) * self.hidden) for k in gates])
        assert v is not None
        array = v.data
        return self.g.Gather(self.g.Gather(v, d, axis=0), index, axis=0) if array is None else array[d][index]

    def beside(self, parts: Iterable[Any], axis: int) -> Any:
        parts = list(parts)
        if any(isinstance(p, Value) for p in parts):
            return self.g.Concat(*parts, axis=axis)
        return np.concatenate(parts, axis=axis)

    def constant(self, name: str, v: Any) -> Value:
        return v if isinstance(v, Value) else self.g.const(np.ascontiguousarray(v), name=self.g.fresh(name))


def strings(attr: Any) -> list[str]:
    """A list of strings, as the file holds it or decoded."""
    values = attr.strings if isinstance(attr, onnx.AttributeProto) else attr or []
    return [s.decode() if isinstance(s, bytes) else str(s) for s in values]
