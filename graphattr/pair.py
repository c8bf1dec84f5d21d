"""What passes a graph backwards: one value per tensor, or two side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from .graph import Graph, Value
from .vjp import fit, total


@dataclass(frozen=True, eq=False)
class Pair:
    """Two values that arrive at one tensor, such as the multipliers of what rises and of what falls."""

    plus: Value
    minus: Value


Flow: TypeAlias = Value | Pair


def sides(r: Flow) -> tuple[Value, Value]:
    """Both values; a single one counts for both."""
    return (r.plus, r.minus) if isinstance(r, Pair) else (r, r)


def paired(plus: Value, minus: Value) -> Flow:
    """A Pair, or the value itself where both are one."""
    return plus if plus is minus else Pair(plus, minus)


def added(g: Graph, flows: Sequence[Flow]) -> Flow | None:
    """The sum of what arrives at one tensor, side by side; None when nothing does."""
    if not flows:
        return None
    plus, minus = (total(g, side) for side in zip(*map(sides, flows), strict=True))
    assert plus is not None
    assert minus is not None
    return paired(plus, minus)


def fitted(g: Graph, r: Flow, x: Value) -> Flow:
    """r in the shape of x (see `vjp.fit`)."""
    plus, minus = sides(r)
    made = fit(g, plus, x)
    return paired(made, made if plus is minus else fit(g, minus, x))
