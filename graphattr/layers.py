"""The graph seen as layers: which nodes belong together, of what kind (see `kinds.py`), and how layers follow each other."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import networkx as nx

from .composites import elementwise_regions, is_complement
from .graph import Graph, Node, Value
from .kinds import CONVOLUTIONS, GATES, QUANTISERS, divisor, kind_of
from .normalisations import Norm, norm_regions
from .signs import nonnegative
from .vjp import data_inside, data_outputs, depends, has_vjp, is_constant, is_control, scanned_inside


@dataclass(frozen=True, eq=False)
class Layer:
    """One step of the network. `xs`: its data inputs, `ys`: its outputs; w and b: a linear layer's effective weight and bias.

    `norm`: what a normalisation written as several nodes computes. `tail`: nodes behind a linear operator that belong to it,
    linear in its result, with the other data inputs as coefficients. `bodies`: the layers of an If, Loop or Scan inside.
    """

    name: str
    kind: str
    nodes: tuple[Node, ...]
    xs: tuple[Value, ...]
    ys: tuple[Value, ...]
    w: Value | None = None
    b: Value | None = None
    norm: Norm | None = None
    tail: tuple[Node, ...] = ()
    bodies: Mapping[str, LayerGraph] = field(default_factory=dict)

    @property
    def op(self) -> str:
        """The layer's operator; all of them for an activation written as several, the one spelled out for a normalisation."""
        if self.norm is not None:
            return self.norm.op
        return self.nodes[0].op if self.kind == "linear" else "+".join(n.op for n in self.nodes)

    @property
    def x(self) -> Value:
        return self.xs[0]

    @property
    def y(self) -> Value:
        return self.ys[0]

    @property
    def channels(self) -> int:
        """The axis of x over which a linear layer sums, counted from the end."""
        return _channel_axis(self.nodes[0], self.nodes[0].inputs.index(self.x))


@dataclass(frozen=True, eq=False)
class LayerGraph:
    """Layers in execution order, and a frozen networkx graph of their names. `nonnegative`: values known to be
    >= 0. `prefix` begins all their names. `refused`: roots that look like a normalisation's, and why they are none."""

    graph: Graph
    layers: tuple[Layer, ...]
    topology: nx.MultiDiGraph
    roots: tuple[Value, ...]
    nonnegative: frozenset[Value]
    plain: frozenset[Value]
    prefix: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Layer:
        return self._named[name]

    @functools.cached_property
    def _named(self) -> dict[str, Layer]:
        return {layer.name: layer for _, layer in self.walk()}

    def walk(self) -> Iterator[tuple[LayerGraph, Layer]]:
        """Every layer in execution order with the graph that it belongs to; what is inside a layer comes before it."""
        for layer in self.layers:
            yield from self.inside(layer)

    def inside(self, layer: Layer) -> Iterator[tuple[LayerGraph, Layer]]:
        """The layers of a layer's bodies, and the layer itself."""
        for body in layer.bodies.values():
            yield from body.walk()
        yield self, layer

    @functools.cached_property
    def path(self) -> list[Layer]:
        """Layers between the roots and the graph's outputs."""
        return self.between(self.roots, [v for _, v in self.graph.outputs if v.is_float])

    @functools.cached_property
    def made(self) -> dict[Value, Layer]:
        """Which layer makes a value."""
        return {y: layer for layer in self.layers for y in layer.ys}

    def between(self, wrt: Iterable[Value], outputs: Iterable[Value]) -> list[Layer]:
        """Layers on a path from wrt to the outputs, in execution order."""
        forward, back = set(wrt), set(outputs)
        ahead = []
        for layer in self.layers:
            if any(x in forward for x in layer.xs):
                forward.update(layer.ys)
                ahead.append(layer)
        path = []
        for layer in reversed(ahead):
            if any(y in back for y in layer.ys):
                back.update(x for x in layer.xs if x in forward)
                path.append(layer)
        return path[::-1]

    def at_input(self, layer: Layer) -> bool:
        """Whether the layer's data comes from the roots through reshape-like and quantising layers only."""
        return all(x in self.plain for x in layer.xs)

    def gate(self, layer: Layer, ops: Collection[str] = GATES) -> int | None:
        """Which operand of a product is the gate: the only one that one of `ops`, or 1 minus it, makes; else None."""
        found = [i for i, x in enumerate(layer.xs) if self._comes_from(x, ops)]
        return found[0] if len(found) == 1 else None

    def _comes_from(self, x: Value, ops: Collection[str]) -> bool:
        made = self.made
        while x in made and (
            (made[x].kind == "structure" and len(made[x].xs) == 1)
            or made[x].op in QUANTISERS
            or is_complement(made[x].nodes[0])
        ):
            x = made[x].x
        return x in made and made[x].op in ops

    def divisor(self, layer: Layer) -> Value | None:
        """What a quotient divides by."""
        return divisor(self.graph, layer.nodes[0])


def to_layers(
    g: Graph, roots: Sequence[Value], keep: Iterable[Value] = (), prefix: str = "", plain: Collection[Value] | None = None
) -> LayerGraph:
    """See the graph as layers. What depends on `roots` is data; tensors in `keep` stay visible between layers.

    `prefix` begins the names of all layers: it is put before those that do not begin so. `plain`: what comes straight from the
    model's input; by default the roots that depend on no other root.
    """
    data = depends(g.nodes, roots)
    kept = set(keep) | {v for _, v in g.outputs}
    readers: dict[Value, list[Node]] = {}
    for node in g.nodes:
        for v in node.uses:
            readers.setdefault(v, []).append(node)
    written_out, refused = norm_regions(g, data, kept, readers)
    norms = {id(norm.nodes[-1]): norm for norm in written_out}
    taken = {id(n) for norm in norms.values() for n in norm.nodes} - set(norms)
    regions = {id(nodes[-1]): nodes for nodes in elementwise_regions(g, data, kept, readers)}
    taken |= {id(n) for nodes in regions.values() for n in nodes[:-1]} - set(norms)
    layers: list[Layer] = []
    names: set[str] = set()
    reached = set(plain) if plain is not None else {v for v in roots if not _follows(g.producer(v), data)}
    for node in g.nodes:
        if id(node) in taken or is_constant(node) or not any(v in data for v in node.uses):
            continue
        if id(node) in norms:
            norm = norms[id(node)]
            layer = Layer(node.name, "norm", norm.nodes, (norm.x,), node.outputs, norm=norm)
        else:
            layer = _activation(regions[id(node)], data) if id(node) in regions else _layer(g, node, data, kept, readers)
        taken.update(id(n) for n in layer.nodes)
        if prefix or is_control(node):
            name = layer.name if layer.name.startswith(prefix) else prefix + layer.name
            layer = dataclasses.replace(layer, name=name, bodies=_bodies(node, data, prefix, reached))
        if layer.name in names:  # nodes of a file may share a name, or have none; tensors may not
            layer = dataclasses.replace(layer, name=next(n for n in _candidates(layer) if n not in names))
        names.add(layer.name)
        layers.append(layer)
        if (layer.kind == "structure" or layer.op in QUANTISERS) and all(x in reached for x in layer.xs):
            reached.update(layer.ys)
    return LayerGraph(g, tuple(layers), _topology(layers), tuple(roots), nonnegative(g), frozenset(reached), prefix, refused)


def single(g: Graph, nodes: Sequence[Node], xs: Sequence[Value]) -> list[Layer]:
    """Nodes as layers of their own, where xs are data."""
    data, kept = depends(nodes, xs), {v for node in nodes for v in node.outputs}
    return [_layer(g, n, data, kept, {}) for n in nodes if not is_constant(n) and any(v in data for v in n.uses)]


def _follows(node: Node | None, data: set[Value]) -> bool:
    return node is not None and any(v in data for v in node.uses)


def _bodies(node: Node, data: set[Value], prefix: str, plain: set[Value]) -> dict[str, LayerGraph]:
    """The layers inside an If, Loop or Scan: named <node>/<layer>, in branches <node>/then/<layer> and <node>/else/<layer>."""
    if not is_control(node):
        return {}
    bodies = {k: a for k, a in node.attrs.items() if isinstance(a, Graph)}
    found: dict[str, LayerGraph] = {}
    for attr, body in bodies.items():
        way = "" if len(bodies) == 1 else f"{attr.removesuffix('_branch')}/"
        here = plain | {v for v, x in scanned_inside(node, body) if x in plain}
        found[attr] = to_layers(body, data_inside(node, body, data), (), f"{prefix}{node.name}/{way}", here)
    return found


def _activation(nodes: Sequence[Node], data: set[Value]) -> Layer:
    """An activation written as several nodes; it takes the last one's name."""
    inner = {v for n in nodes for v in n.outputs}
    xs = dict.fromkeys(v for n in nodes for v in n.inputs if v is not None and v in data and v not in inner)
    return Layer(nodes[-1].name, "smooth", tuple(nodes), tuple(xs), nodes[-1].outputs)


def _candidates(layer: Layer) -> Iterator[str]:
    yield f"{layer.name}/{layer.y.name}"
    yield from (f"{layer.name}/{layer.y.name}_{i}" for i in itertools.count(1))


def _topology(layers: Sequence[Layer]) -> nx.MultiDiGraph:
    topology = nx.MultiDiGraph()
    made: dict[Value, str] = {}
    for layer in layers:
        topology.add_node(layer.name, layer=layer)
        for x in layer.xs:
            if x in made:
                topology.add_edge(made[x], layer.name, key=x.name)
        made.update((y, layer.name) for y in layer.ys)
    return nx.freeze(topology)


def _layer(g: Graph, node: Node, data: set[Value], kept: set[Value], readers: dict[Value, list[Node]]) -> Layer:
    if node.domain in ("", "ai.onnx"):
        if node.op in CONVOLUTIONS or node.op in ("Gemm", "MatMul", "Einsum"):
            linear = _linear(g, node, data, kept, readers)
            if linear is not None:
                return _with_tail(linear, g.tails.get(node.outputs[0], ()), data, kept)
        kind = kind_of(g, node, data)
    else:
        kind = "unknown"
    if kind not in ("other", "unknown") and not has_vjp(g, node):
        kind = "unknown"
    return Layer(node.name, kind, (node,), tuple(dict.fromkeys(v for v in node.uses if v in data)), data_outputs(node))


def _linear(g: Graph, node: Node, data: set[Value], kept: set[Value], readers: dict[Value, list[Node]]) -> Layer | None:
    """A linear layer: one data operand, a constant weight, and the bias that follows a MatMul or a bias-free convolution."""
    operands = [i for i, v in enumerate(node.inputs) if v is not None and v in data]
    weights = [i for i, v in enumerate(node.inputs[:2]) if v is not None and v not in data]
    if (
        len(operands) != 1
        or operands[0] > 1
        or not weights
        or len(node.inputs) < 2
        or (node.op == "Einsum" and len(node.inputs) != 2)
    ):
        return None
    x, w = node.inputs[operands[0]], node.inputs[weights[0]]
    b = node.inputs[2] if len(node.inputs) > 2 else None
    assert x is not None
    assert w is not None
    if node.op == "Gemm":
        alpha, beta = node.attrs.get("alpha", 1.0), node.attrs.get("beta", 1.0)
        w = w if alpha == 1.0 else w * alpha
        b = b if b is None or beta == 1.0 else b * beta
    y = node.outputs[0]
    after = readers.get(y, [])
    if b is None and node.op != "Einsum" and y not in kept and len(after) == 1 and after[0].op == "Add" and not after[0].domain:
        other = next((v for v in after[0].inputs if v is not y), None)
        if other is not None and other not in data and _per_channel(other, y, _channel_axis(node, operands[0])):
            return Layer(node.name, "linear", (node, after[0]), (x,), after[0].outputs, w, other)
    return Layer(node.name, "linear", (node,), (x,), node.outputs, w, b)


def _with_tail(layer: Layer, tail: tuple[Node, ...], data: set[Value], kept: set[Value]) -> Layer:
    """The layer and the nodes noted as its tail, unless somebody asks for a tensor between them."""
    inner = {*layer.ys, *(v for n in tail[:-1] for v in n.outputs)}
    if not tail or inner & kept:
        return layer
    others = dict.fromkeys(v for n in tail for v in n.inputs if v in data and v not in inner and v is not None)
    xs, nodes = (layer.x, *others), (*layer.nodes, *tail)
    return dataclasses.replace(layer, nodes=nodes, xs=xs, ys=tail[-1].outputs, tail=tail)


def _channel_axis(node: Node, operand: int) -> int:
    """The axis of the channels, of the data and of the output, from the end."""
    if node.op in CONVOLUTIONS:
        return -(node.outputs[0].rank - 1)
    return -1 if operand == 0 else -2


def _per_channel(bias: Value, y: Value, axis: int) -> bool:
    if bias.shape is None or y.shape is None or len(bias.shape) > len(y.shape):
        return False
    return all(d == 1 for i, d in enumerate(bias.shape) if i - len(bias.shape) != axis)
