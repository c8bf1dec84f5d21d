"""One direction of a recurrent node: the steps in order, the initial state, sequences that end early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from ..graph import Graph, Value
from .call import Call
from .cells import CELLS, State

# what makes a tensor of zeros out of one
MOVES = {"ConstantOfShape", "Expand", "Slice", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "Identity", "Cast", "Gather"}


@dataclass(frozen=True)
class Run:
    """One direction's result: h after each step as Y shows it, in the sequence's order (in parts, each with a time axis), and the
    last state."""

    shown: Sequence[Value]
    last: Sequence[Value]

    def sequence(self, call: Call, axis: int) -> Value:
        """h of all steps along the time axis, with an axis for the direction behind it."""
        whole = self.shown[0] if len(self.shown) == 1 else call.emit("sequence", "Concat", *self.shown, axis=axis)
        return call.wide("sequence/wide", whole, [axis + 1])


def place_of(call: Call, d: int) -> str:
    """The scope of a direction's nodes."""
    return call.name if len(call.reversed) == 1 else f"{call.name}/{'reverse' if call.reversed[d] else 'forward'}"


def run(call: Call, d: int) -> Run:
    """All steps of direction d, one by one. Behind a sequence's own end the state stays as it is, and Y shows 0."""
    backwards, place = call.reversed[d], place_of(call, d)
    shown: dict[int, Value] = {}
    with call.g.scope(place):
        xs, running, cell = slices(call), masks(call), CELLS[call.op](call, d)
        order = range(call.steps)[::-1] if backwards else range(call.steps)
        state = start(call, d, xs[order[0]])
    for t in order:
        with call.g.scope(f"{place}/t{t}"):
            h, *rest = cell.step(xs[t], state)
            new, shown[t] = (h, *rest), h
            if running is not None:
                zero = call.number(0.0)
                shown[t] = call.emit("shown", "Where", running[t], h, zero)
                old = [zero if s is None else s for s in state]
                new = tuple(call.emit("kept", "Where", running[t], a, b) for a, b in zip(new, old, strict=True))
            state = new
    axis = 1 if call.batch_first else 0
    with call.g.scope(place):
        parts = [call.wide("shown", shown[t], [axis]) for t in range(call.steps)]
    return Run(parts, [s for s in state if s is not None])


def slices(call: Call) -> list[Value]:
    """x_t per step, (N, I)."""
    axis, steps = (1 if call.batch_first else 0), range(call.steps)
    parts = [call.x] if call.steps == 1 else call.split("steps", call.x, [f"t{t}/slice" for t in steps], [1] * call.steps, axis)
    return [call.emit(f"t{t}/x", "Squeeze", p, call.g.const([axis], "int64")) for t, p in zip(steps, parts, strict=True)]


def masks(call: Call) -> list[Value] | None:
    """Per step, which samples' sequences are still running, (N, 1); None when all run to the end."""
    lengths = call.inputs[4]
    if lengths is None or (lengths.data is not None and bool(np.all(lengths.data >= call.steps))):
        return None
    column = call.wide("lengths", lengths, [1])
    return [call.emit(f"t{t}/running", "Greater", column, call.g.const(t, lengths.dtype)) for t in range(call.steps)]


def start(call: Call, d: int, x: Value) -> State:
    """The initial state, None where it is zero. It passes a Concat with x: so it is data, and no gate gets its share."""
    state = call.inputs[5 : 7 if call.op == "LSTM" else 6]
    given = [None if v is None or is_zero(call.g, v) else _of_direction(call, v, d) for v in state]
    held = [v for v in given if v is not None]
    if held:
        joined = call.emit("start", "Concat", x, *held, axis=1)
        widths = [x.dim(-1), *[call.hidden] * len(held)]
        _, *held = call.split("start/split", joined, ["start/x", *["start/state"] * len(held)], widths)
    rest = iter(held)
    return tuple(None if v is None else next(rest) for v in given)


def _of_direction(call: Call, state: Value, d: int) -> Value:
    axis = 1 if call.batch_first else 0
    if len(call.reversed) == 1:
        return call.emit("initial", "Squeeze", state, call.g.const([axis], "int64"))
    return call.emit("initial", "Gather", state, call.g.const(d, "int64"), axis=axis)


def is_zero(g: Graph, v: Value) -> bool:
    """Whether all elements are known to be zero: constants, and what only reshapes or repeats them."""
    while not v.is_const:
        node = g.producer(v)
        if node is None or node.domain or node.op not in MOVES or node.inputs[0] is None:
            return False
        if node.op == "ConstantOfShape":
            value = node.attrs.get("value")
            array = onnx.numpy_helper.to_array(value.t) if isinstance(value, onnx.AttributeProto) else value
            return array is None or not np.any(array)
        v = node.inputs[0]
    return v.data is not None and not np.any(v.data)
