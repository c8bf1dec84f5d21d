"""A direction of any length: its steps in the body of a Scan.

The first step stands before the Scan: it leaves out an initial state that is zero, and is the first layer to whoever asks for
that, as among the steps that `run` writes one by one. A Scan takes at least one step, so a sequence that may have a single one is
padded; what the Scan makes of it is not used.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ..graph import Value
from .call import Call
from .cells import CELLS, State
from .direction import Run, place_of, start


def scanned(call: Call, d: int) -> Run:
    """All steps of direction d. Behind a sequence's own end the state stays as it is, and Y shows 0."""
    g, place, axis = call.g, place_of(call, d), 1 if call.batch_first else 0
    with g.scope(place):
        cell, sequences = CELLS[call.op](call, d), [call.x, *_times(call)]
        axes = [axis, *[0] * (len(sequences) - 1)]
        first, rest = zip(*(_cut(call, v, a, call.reversed[d]) for v, a in zip(sequences, axes, strict=True)), strict=True)
    with g.scope(f"{place}/first"):
        shown, begun = _step(call, cell, first, start(call, d, first[0]))
    with g.scope(place):
        run = _scan(call, d, cell, list(begun), list(rest), axes)
        return _joined(call, d, call.wide("first/shown", shown, [axis]), begun, run)


def _scan(call: Call, d: int, cell: Any, state: list[Value], sequences: list[Value], axes: list[int]) -> Run:
    """The Scan over these sequences from this state; it is named after the recurrent node."""
    g, place = call.g, place_of(call, d)
    body = g.subgraph(f"{place}/step")
    inner = dataclasses.replace(call, g=body)
    with body.scope(f"{place}/step"):
        held = tuple(body.input(body.fresh("state"), s.dtype, s.shape) for s in state)
        read = [body.input(body.fresh("x"), v.dtype, _without(v, a)) for v, a in zip(sequences, axes, strict=True)]
        cell.call = inner
        shown, new = _step(inner, cell, read, held)
    cell.call = call
    body.outputs = [(body.fresh(f"{place}/out"), v) for v in (*new, shown)]
    way = int(call.reversed[d])
    attrs = {"body": body, "num_scan_inputs": len(sequences), "scan_input_axes": axes, "scan_output_axes": axes[:1]}
    attrs |= {"scan_input_directions": [way] * len(sequences), "scan_output_directions": [way]}
    outputs = [g.fresh(name) for name in ("h", "c")[: len(state)]] + [g.fresh("hs")]
    made = g.record("Scan", [*state, *sequences], outputs, attrs, place)
    return Run(made[len(state) :], made[: len(state)])


def _step(call: Call, cell: Any, read: Any, state: State) -> tuple[Value, tuple[Value, ...]]:
    """(h as Y shows it, the new state); `read`: x_t, and t where sequences end on their own."""
    h, *rest = cell.step(read[0], state)
    if len(read) == 1:
        return h, (h, *rest)
    running, zero = call.emit("running", "Greater", call.inputs[4], read[1]), call.number(0.0)
    running = call.wide("running/wide", running, [1])
    old = [zero if s is None else s for s in state]
    kept = tuple(call.emit("kept", "Where", running, a, b) for a, b in zip((h, *rest), old, strict=True))
    return call.emit("shown", "Where", running, h, zero), kept


def _times(call: Call) -> list[Value]:
    """0, 1 ... of the steps, where sequences end on their own."""
    lengths = call.inputs[4]
    if lengths is None:
        return []
    return [call.g.CastLike(call.g.Range(0, _length(call), 1), lengths)]


def _cut(call: Call, v: Value, axis: int, backwards: bool) -> tuple[Value, Value]:
    """(the first step's slice, the rest): the rest has a row that does not count where there may be no other."""
    g, length = call.g, _length(call)
    first = g.Gather(v, -1 if backwards else 0, axis=axis)
    if length.is_const:
        starts, ends = ([0], [-1]) if backwards else ([1], [np.iinfo(np.int64).max])
        return first, g.Slice(v, starts, ends, [axis])
    pads = np.zeros((2, v.rank), np.int64)
    pads[0 if backwards else 1, axis] = 1
    padded, end = g.Pad(v, pads.reshape(-1)), g.Unsqueeze(length, [0])
    begin, stop = (g.Min(end - 1, 1), end) if backwards else (g.const([1]), g.Max(end, 2))
    shape = None if v.shape is None else tuple(None if i == axis else size for i, size in enumerate(v.shape))
    return first, g.emit("Slice", padded, begin, stop, [axis], out_shape=shape)


def _joined(call: Call, d: int, first: Value, begun: tuple[Value, ...], run: Run) -> Run:
    """The first step and the others; where the sequence has no other, what the padded one made is dropped."""
    g, length, axis = call.g, _length(call), 1 if call.batch_first else 0
    parts = [*run.shown, first] if call.reversed[d] else [first, *run.shown]
    if length.is_const:
        return Run(parts, run.last)
    end = g.Unsqueeze(length, [0])
    starts, ends = (-end, g.const([np.iinfo(np.int64).max])) if call.reversed[d] else (g.const([0]), end)
    out = (*first.shape[:axis], call.x.shape[axis], *first.shape[axis + 1 :]) if first.shape and call.x.shape else None
    whole = g.emit("Slice", g.Concat(*parts, axis=axis), starts, ends, [axis], out_shape=out)
    several = g.Greater(length, 1)
    return Run([whole], [g.Where(several, a, b) for a, b in zip(run.last, begun, strict=True)])


def _length(call: Call) -> Value:
    """The number of steps."""
    return call.g.Gather(call.g.shape(call.x), 1 if call.batch_first else 0, axis=0)


def _without(v: Value, axis: int) -> tuple[Any, ...] | None:
    return None if v.shape is None else tuple(s for i, s in enumerate(v.shape) if i != axis)

