"""What one step of RNN, LSTM and GRU computes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..graph import Value
from .call import DEFAULTS, Block, Call

__all__ = ["CELLS", "DEFAULTS", "State"]

State = tuple[Value | None, ...]  # h, and an LSTM's c; None where it is zero


class Plain:
    """RNN: h' = f(W x + R h + b)."""

    def __init__(self, call: Call, d: int) -> None:
        self.call, (self.f,) = call, call.activations(d)
        self.all = call.block("all", d, [0])

    def step(self, x: Value, state: State) -> tuple[Value, ...]:
        call = self.call
        return (call.activate("h", call.linear("linear", call.joined("in", x, state[0]), self.all), self.f),)


class Lstm:
    """c' = f c + i g, h' = o tanh(c')  with  i, o, f = sigmoid(W x + R h + b + P c),  g = tanh(W x + R h + b)."""

    def __init__(self, call: Call, d: int) -> None:
        self.call, (self.f, self.g, self.h) = call, call.activations(d)
        self.gates, self.candidate = call.block("gates", d, [0, 1, 2]), call.block("candidate", d, [3])
        absent = call.inputs[7] is None
        self.peepholes = None if absent else [call.constant(f"peephole_{n}", call.rows(7, d, [k])) for k, n in enumerate("iof")]

    def step(self, x: Value, state: State) -> tuple[Value, ...]:
        call, (h, c) = self.call, state
        x = call.joined("in", x, h)
        i, o, f = self.open(call.linear("gates", x, self.gates), c)
        g = call.activate("g", call.linear("candidate", x, self.candidate), self.g)
        if call.attrs.get("input_forget", 0):
            f = call.complement("1-i", i)
        new = call.emit("ig", "Mul", i, g)
        c = call.plus("c", new, None if c is None else call.emit("fc", "Mul", f, c))
        if self.peepholes is not None:
            o = self.look("o", o, 1, c)
        return call.emit("h", "Mul", o, call.activate("cell", c, self.h, clip=False)), c

    def open(self, a: Value, c: Value | None) -> list[Value]:
        """Gates i, o, f; with peepholes o waits for the new cell."""
        call, widths = self.call, [self.call.hidden] * 3
        if self.peepholes is None:
            return call.split("split", call.activate("sigma", a, self.f), ["i", "o", "f"], widths)
        i, o, f = call.split("split", a, ["i/linear", "o/linear", "f/linear"], widths)
        return [self.look("i", i, 0, c), o, self.look("f", f, 2, c)]

    def look(self, name: str, a: Value, k: int, c: Value | None) -> Value:
        """f(a + P c)."""
        assert self.peepholes is not None
        if c is not None:
            a = self.call.plus(f"{name}/sum", a, self.call.emit(f"{name}/peephole", "Mul", c, self.peepholes[k]))
        return self.call.activate(name, a, self.f)


class Gru:
    """h' = (1 - z) n + z h,  z, r = sigmoid(W x + R h + b),  n = tanh(W x + R (r h) + b)  or  tanh(W x + b + r (R h + b'))."""

    def __init__(self, call: Call, d: int) -> None:
        self.call, (self.f, self.g) = call, call.activations(d)
        self.gates = call.block("gates", d, [0, 1])
        self.late = bool(call.attrs.get("linear_before_reset", 0))
        self.candidate = self.halves(d) if self.late else call.block("candidate", d, [2])

    def halves(self, d: int) -> Block:
        """Weights of [W x + b, R h + b'], the products apart."""
        call, dtype = self.call, self.call.x.dtype
        w, r = call.rows(1, d, [2]), call.rows(2, d, [2])
        right, below = np.zeros((call.hidden, call.hidden), dtype), np.zeros((call.hidden, call.x.dim(-1)), dtype)
        both = call.beside([call.beside([w, right], 1), call.beside([below, r], 1)], 0)
        bias = None if call.inputs[3] is None else call.rows(3, d, [2, 5])
        return call.held("candidate", both, call.beside([w, below], 0), bias)

    def step(self, x: Value, state: State) -> tuple[Value, ...]:
        call, h = self.call, state[0]
        joined = call.joined("in", x, h)
        sigma = call.activate("sigma", call.linear("gates", joined, self.gates), self.f)
        z, r = call.split("split", sigma, ["z", "r"], [call.hidden] * 2)
        n = call.activate("n", self.late_reset(joined, r) if self.late else self.early_reset(x, h, r), self.g)
        new = call.emit("new", "Mul", call.complement("1-z", z), n)
        return (call.plus("h", new, None if h is None else call.emit("old", "Mul", z, h)),)

    def early_reset(self, x: Value, h: Value | None, r: Value) -> Value:
        """W x + R (r h) + b."""
        call = self.call
        reset = None if h is None else call.emit("rh", "Mul", r, h)
        return call.linear("candidate", call.joined("candidate/in", x, reset), self.candidate)

    def late_reset(self, joined: Value, r: Value) -> Value:
        """W x + b + r (R h + b'), noted as one linear layer in which r is a coefficient."""
        call, g = self.call, self.call.g
        a = call.linear("candidate", joined, self.candidate)
        direct, held = call.split("candidate/split", a, ["candidate/x", "candidate/h"], [call.hidden] * 2)
        scaled = call.emit("candidate/rh", "Mul", r, held)
        q = call.plus("candidate/sum", direct, scaled)
        g.tails[a] = tuple(n for n in map(g.producer, (direct, scaled, q)) if n is not None)
        return q


CELLS: Mapping[str, type[Plain] | type[Lstm] | type[Gru]] = {"RNN": Plain, "LSTM": Lstm, "GRU": Gru}
