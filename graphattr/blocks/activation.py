"""Activations, named by what they compute: the function is evaluated on a grid and compared with those that have a name."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from ..composites import COMPARES
from ..graph import Array, Node, Value
from ..kinds import QUANTISERS
from ..layers import Layer
from .block import Block, Miss, View, block
from .probe import evaluate

FAR = np.array([10.0, 12.0, 16.0, 20.0, 30.0, 50.0, 100.0, 300.0])  # a bound may lie far out
GRID = np.concatenate([-FAR[::-1], np.linspace(-8.0, 8.0, 257), FAR])
TOLERANCE = 1e-4 * np.maximum(1, np.abs(GRID) / 8)
MOST_CONSTANTS = 3  # scales and shifts by one number behind an activation that may belong to it
MOST_NODES = 40

_erf = np.vectorize(math.erf)


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def _softplus(x: Array) -> Array:
    return np.logaddexp(0, x)


KNOWN: dict[str, Callable[[Array], Array]] = {
    "ReLU": lambda x: np.maximum(x, 0),
    "ReLU6": lambda x: np.clip(x, 0, 6),
    "GELU (erf)": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "GELU (tanh)": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "GELU (quick)": lambda x: x * _sigmoid(1.702 * x),
    "SiLU": lambda x: x * _sigmoid(x),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "HardSwish (slope 0.2)": lambda x: x * np.clip(0.2 * x + 0.5, 0, 1),
    "Mish": lambda x: x * np.tanh(_softplus(x)),
    "sigmoid": _sigmoid,
    "HardSigmoid": lambda x: np.clip(x / 6 + 0.5, 0, 1),
    "HardSigmoid (slope 0.2)": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "tanh": np.tanh,
    "scaled tanh": lambda x: 1.7159 * np.tanh(2 * x / 3),
    "hard tanh": lambda x: np.clip(x, -1, 1),
    "softplus": _softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "softshrink (0.5)": lambda x: np.sign(x) * np.maximum(np.abs(x) - 0.5, 0),
    "ELU": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "SELU": lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(np.minimum(x, 0))),
    "square": np.square,
    "absolute value": np.abs,
}
GATES = {"sigmoid", "HardSigmoid", "HardSigmoid (slope 0.2)"}


@functools.cache
def _table() -> dict[str, Array]:
    return {name: f(GRID) for name, f in KNOWN.items()}


def activations(view: View) -> Iterator[Block | Miss]:
    """Every layer that is a function of one element, with the constant factors and shifts beside it that belong to its name."""
    for layer in view.graph.layers:
        if layer.kind not in ("relu", "smooth") or layer.op in QUANTISERS:
            continue
        if len(layer.xs) == 1:
            named = ((chain, name_of(chain, view)) for chain in _chains(layer, view))
            chain, name = next(((c, n) for c, n in named if n is not None), ([layer], None))
        else:
            chain, name = [layer], None
        plain = f"elementwise: {layer.op}" if len(layer.nodes) > 1 else layer.op
        yield block(name or plain, chain, chain[0].x, chain[-1].y)


def _chains(layer: Layer, view: View) -> Iterator[list[Layer]]:
    """The layer with numbers in front of it and behind it, the longest first."""
    front = _by_numbers(view.made(layer.x), view)
    front = front[:1] if front and view.sole(layer.x) is layer else []
    _, behind = view.ahead(layer.y, ("scale", "shift"), ())
    back = list(itertools.takewhile(lambda other: _by_numbers(other, view), behind[:MOST_CONSTANTS]))
    for n in range(len(front) + len(back), -1, -1):
        for before in (front, []):
            if len(before) <= n <= len(before) + len(back) and (before or not front or n <= len(back)):
                yield [*before, layer, *back[: n - len(before)]]


def _by_numbers(layer: Layer | None, view: View) -> list[Layer]:
    """[layer] when it adds a number, or multiplies by one."""
    if layer is None or layer.kind not in ("scale", "shift") or len(layer.nodes) != 1 or len(layer.xs) != 1:
        return []
    others = [v for v in layer.nodes[0].inputs if v is not layer.x]
    return [layer] if all(view.number(v) is not None for v in others) else []


def name_of(layers: Sequence[Layer], view: View) -> str | None:
    """The name of the function that elementwise layers make of their first input; None where it has none."""
    inputs, nodes = _closed(layers, view)
    if inputs is None:
        return None
    place = {v: i for i, v in enumerate([layers[0].x, *(v for n in nodes for v in n.outputs)])}
    key = tuple((n.op, repr(sorted(n.attrs.items())), tuple(_role(v, place, inputs) for v in n.inputs)) for n in nodes)
    if key not in view.named:
        values = _on_grid(layers, nodes, inputs, view)
        close = (n for n, known in _table().items() if values is not None and (np.abs(values - known) <= TOLERANCE).all())
        view.named[key] = next(close, None)
    return view.named[key]


def _role(v: Value | None, place: Mapping[Value, int], numbers: Mapping[Value, Array]) -> int | float | None:
    return None if v is None else float(numbers[v]) if v in numbers else place[v]


def _closed(layers: Sequence[Layer], view: View) -> tuple[dict[Value, Array] | None, list[Node]]:
    """The numbers that the layers' nodes read, and the nodes, conditions like x > 0 included; None where they read more."""
    g, x = view.graph.graph, layers[0].x
    chosen = {id(n): n for layer in layers for n in layer.nodes}
    made = {v for n in chosen.values() for v in n.outputs}
    stack, numbers = list(chosen.values()), dict[Value, Array]()
    while stack:
        for v in stack.pop().inputs:
            if v is None or v is x or v in made or v in numbers:
                continue
            c, producer = view.number(v), g.producer(v)
            if c is not None:
                numbers[v] = np.asarray(c, np.float64 if v.is_float else v.dtype)
            elif producer is None or producer.op not in COMPARES or len(chosen) > MOST_NODES:
                return None, []
            else:
                chosen[id(producer)] = producer
                made.update(producer.outputs)
                stack.append(producer)
    return numbers, sorted(chosen.values(), key=view.place)


def _on_grid(layers: Sequence[Layer], nodes: Sequence[Node], numbers: dict[Value, Array], view: View) -> Array | None:
    """The function's values; None for an operator that cannot be evaluated, and where it is not elementwise or not finite."""
    feeds = {layers[0].x.name: GRID, **{v.name: c for v, c in numbers.items()}}
    values = evaluate(nodes, feeds, layers[-1].y.name, view.graph.graph.opset)
    return values if values is not None and values.shape == GRID.shape and np.isfinite(values).all() else None
