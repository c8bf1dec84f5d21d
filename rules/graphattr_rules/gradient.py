"""The gradient family: plain derivatives, and what is made of them at the input."""

from graphattr.rule import SIGMA, Baselines, Graph, Out, Site, Value, finish, rule


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
    g: Graph, x: Value, maps: tuple[Value, ...], *, baselines: Baselines | Value | None = None, sigma: float = SIGMA
) -> Value:
    """(x - baselines) * gradient. `baselines`: a number, one per channel, an array, rows of them (their mean counts), "input"
    for a graph input, or "blur" for x under a Gaussian of `sigma` pixels.

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
