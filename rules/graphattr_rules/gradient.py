"""The gradient family: plain derivatives, and what is made of them at the input."""

from typing import Literal

from graphattr.rule import Graph, Operand, Out, Site, Value, finish, rule


@rule("gradient")
def gradient(g: Graph, layer: Site, r: Out) -> Out:
    """The plain vector-Jacobian product of the layer."""
    return layer.vjps(r)


@finish("raw")
def raw(g: Graph, x: Value, maps: tuple[Value, ...]) -> Value:
    """What arrived at x, unchanged."""
    return maps[0]


@finish("times_input")
def times_input(
    g: Graph, x: Value, maps: tuple[Value, ...], *, baselines: Operand | Literal["input"] | Value | None = None
) -> Value:
    """(x - baselines) * gradient. `baselines`: a number, one per channel, an array, or "input" for a graph input.

    Whatever the caller gave arrives here as a Value of the graph.
    """
    if baselines is None:
        return x * maps[0]
    assert isinstance(baselines, Value)
    return (x - baselines) * maps[0]


@finish("maybe_times_input")
def maybe_times_input(g: Graph, x: Value, maps: tuple[Value, ...], *, times_input: bool = False) -> Value:
    """What arrived at x, or x times that."""
    return x * maps[0] if times_input else maps[0]
