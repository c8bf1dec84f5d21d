"""What a recogniser finds, and how it walks the layers."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..graph import Node, Value
from ..kinds import QUANTISERS
from ..layers import Layer, LayerGraph
from .probe import Probe

VIEWS = {
    "Reshape",
    "Flatten",
    "Transpose",
    "Squeeze",
    "Unsqueeze",
    "Slice",
    "Split",
    "Gather",
    "Identity",
    "Dropout",
    "Cast",
}  # one data input, elements only moved or left out
MOST_STEPS = 32  # of a walk inside one block


@dataclass(frozen=True)
class Block:
    """Layers that together have a name. `facts`: numbers and words about them; `parts`: layers or tensors with a role;
    `origin`: the operators that spell it."""

    name: str
    layers: tuple[str, ...]
    x: str
    y: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""


@dataclass(frozen=True)
class Miss:
    """What looks like a block at a layer, and why it is none."""

    name: str
    at: str
    why: str


@dataclass(frozen=True, eq=False)
class View:
    """The layer graph with readers and concrete sizes. `folded`: by the tensor that a layer makes, what was folded into it.

    `written_out`: recurrent nodes of the file by name.
    """

    graph: LayerGraph
    folded: Mapping[str, str] = field(default_factory=dict)
    written_out: Mapping[str, tuple[str, Mapping[str, Any]]] = field(default_factory=dict)
    named: dict[Any, str | None] = field(default_factory=dict)  # functions that have been evaluated

    @functools.cached_property
    def places(self) -> dict[int, int]:
        return {id(n): i for i, n in enumerate(self.graph.graph.nodes)}

    def place(self, node: Node) -> int:
        """When the node is executed."""
        return self.places[id(node)]

    @functools.cached_property
    def readers(self) -> dict[Value, list[Layer]]:
        found: dict[Value, list[Layer]] = {}
        for layer in self.graph.layers:
            for x in layer.xs:
                found.setdefault(x, []).append(layer)
        return found

    @functools.cached_property
    def probe(self) -> Probe:
        return Probe(self.graph.graph)

    def made(self, v: Value | None) -> Layer | None:
        return None if v is None else self.graph.made.get(v)

    def sole(self, v: Value) -> Layer | None:
        """The only layer that reads v."""
        found = self.readers.get(v, [])
        return found[0] if len(found) == 1 else None

    def reduced(self, node: Node) -> tuple[int, ...] | None:
        """The axes that a mean or sum runs over; None where only the run can tell."""
        x = node.inputs[0]
        size = None if x is None else self.probe.shape(x)
        given = node.inputs[1] if len(node.inputs) > 1 else None
        axes = node.attrs.get("axes") if given is None else self.probe.array(given)
        if size is None or (given is not None and axes is None):
            return None
        if node.op == "GlobalAveragePool":
            return tuple(range(2, len(size)))
        return tuple(sorted(int(a) % len(size) for a in axes)) if axes is not None and len(axes) else tuple(range(len(size)))

    def number(self, v: Value | None) -> float | None:
        """A constant of equal elements, also one that is computed from sizes only."""
        held = self.probe.array(v)
        return float(held.reshape(-1)[0]) if held is not None and held.size and (held == held.reshape(-1)[0]).all() else None

    def factor(self, layer: Layer) -> float | None:
        """c of a layer that is x c, or x / c."""
        node = layer.nodes[0]
        if layer.kind != "scale" or len(node.inputs) != 2:
            return None
        c = self.number(node.inputs[1] if node.inputs[0] is layer.x else node.inputs[0])
        return None if not c else 1 / c if node.op == "Div" else c

    def back(self, v: Value, kinds: Collection[str] = (), ops: Collection[str] = VIEWS) -> tuple[Value, list[Layer]]:
        """Up from v through layers with one data input that are of these kinds or operators: where it stops, layers in order."""
        path: list[Layer] = []
        while (layer := self.made(v)) is not None and len(layer.xs) == 1 and len(path) < MOST_STEPS:
            if not _passes(layer, kinds, ops):
                break
            path.insert(0, layer)
            v = layer.x
        return v, path

    def ahead(self, v: Value, kinds: Collection[str] = (), ops: Collection[str] = VIEWS) -> tuple[Value, list[Layer]]:
        """Down from v through sole readers of these kinds or operators: where it stops, layers in order."""
        path: list[Layer] = []
        while (layer := self.sole(v)) is not None and len(layer.xs) == 1 and len(layer.ys) == 1 and len(path) < MOST_STEPS:
            if not _passes(layer, kinds, ops):
                break
            path.append(layer)
            v = layer.y
        return v, path

    def above(self, v: Value) -> Iterator[Value]:
        """v and every value that it is computed from, nearest first."""
        seen, stack = {v}, [v]
        while stack:
            following: list[Value] = []
            for value in stack:
                yield value
                layer = self.made(value)
                following += [x for x in dict.fromkeys(layer.xs if layer is not None else ()) if x not in seen]
                seen.update(following)
            stack = following


def _passes(layer: Layer, kinds: Collection[str], ops: Collection[str]) -> bool:
    return layer.kind in kinds or layer.op in QUANTISERS or (layer.kind == "structure" and layer.op in ops)


def block(
    name: str,
    layers: Collection[Layer],
    x: Value,
    y: Value,
    facts: Mapping[str, Any] | None = None,
    parts: Mapping[str, str] | None = None,
    origin: str = "",
) -> Block:
    """A block of these layers, in their order; facts that are None are left out."""
    spelled = origin or "+".join(layer.op for layer in layers)
    kept = {k: v for k, v in (facts or {}).items() if v is not None}
    return Block(name, tuple(dict.fromkeys(layer.name for layer in layers)), x.name, y.name, kept, parts or {}, spelled)
