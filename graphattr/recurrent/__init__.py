"""LSTM, GRU and RNN written out in time: each step as standard operators, so that derivatives and rules need nothing new.

A step reads x_t and the state. Its pre-activations are one linear product of [x_t, h] with the joined weights [W, R] and the sum
of both biases, so that a rule has one denominator for both; gates, candidate, products and sums are nodes of their own. GRU's
candidate with linear_before_reset=1, q = W x + b + r (R h + b'), is a linear product, too, in which r counts as a constant: its
nodes are noted in `graph.tails`. Steps of an initial state that is zero leave it out: it gets and loses nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..graph import Graph, Value
from ..infer import Shape
from .call import Call, obstacle
from .cells import DEFAULTS
from .direction import Run, run
from .scanned import scanned

__all__ = ["DEFAULTS", "obstacle", "write_out"]

LONGEST = 32  # steps; ONNX Runtime opens a model with 100 unrolled steps in seconds, one with a Scan at once
Types = Mapping[str, tuple[Any, Shape | None]]


def write_out(
    g: Graph, op: str, inputs: Sequence[Value | None], outputs: Sequence[str], attrs: Mapping[str, Any], name: str, types: Types
) -> list[Value] | None:
    """The node's outputs, computed step by step: each step's nodes on their own in a short sequence, in the body of a Scan in one
    that is longer than LONGEST or whose length is open. None when it is no recurrent node, or one that cannot be written out."""
    if op not in DEFAULTS or obstacle(op, inputs, attrs):
        return None
    call = Call(g, op, (*inputs, *[None] * (8 - len(inputs))), attrs, name)
    with g.scope(name):
        written = scanned if call.length is None or call.length > LONGEST else run
        runs = [written(call, d) for d in range(len(call.reversed))]
        return [_output(call, i, runs, out, types) for i, out in enumerate(outputs) if out]


def _output(call: Call, i: int, runs: Sequence[Run], output: str, types: Types) -> Value:
    """Y (i = 0): h of all steps; Y_h, Y_c: the last state. Directions side by side, under the name the file gives."""
    axis = 1 if call.batch_first else 0
    parts = [r.sequence(call, axis) if i == 0 else call.wide(f"last{i}", r.last[i - 1], [axis]) for r in runs]
    op, attrs = ("Identity", {}) if len(parts) == 1 else ("Concat", {"axis": axis + 1 if i == 0 else axis})
    return call.g.record(op, parts, [output], attrs, call.g.fresh("Y" if i == 0 else f"Y{i}"), types=types)[0]
