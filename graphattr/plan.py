"""Which rule each layer gets: (LayerGraph, Method) -> Plan. First matching line wins."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx

from . import sequences
from .errors import MethodError, UnsupportedOp
from .foreign import why_foreign
from .layers import Layer, LayerGraph
from .method import Assign, Method, listed
from .recurrent import obstacle
from .rule import REGISTRY, Rule, describe
from .vjp.why import WHY


@dataclass(frozen=True)
class Bound:
    """What one layer got: the rule, its parameters, and the table line that matched. `fallback`: by strict=False."""

    rule: Rule
    params: Mapping[str, Any]
    line: str
    fallback: bool = False


Plan = Mapping[str, Bound]

BODY = Rule("body", frozenset({"control"}), lambda g, layer, r: layer.vjps(r), {}, "An If, Loop or Scan: rules inside.", __name__)


def plan(graph: LayerGraph, method: Method, path: Sequence[Layer], strict: bool = True) -> dict[str, Bound]:
    """The rule of each layer on the path. What has none raises, unless strict=False falls back to the gradient and says so."""
    bind = binder(graph, method, path)
    return {layer.name: bind(layer, strict) for layer in with_bodies(path)}


def with_bodies(path: Iterable[Layer]) -> Iterator[Layer]:
    """The layers of a path, each before those on the path through its bodies."""
    for layer in path:
        yield layer
        for body in layer.bodies.values():
            yield from with_bodies(body.path)


def binder(graph: LayerGraph, method: Method, path: Sequence[Layer]) -> Callable[[Layer, bool], Bound]:
    """A function that finds the rule of one layer of the path (or raises); positions count up to the path's end."""
    below = {*(p.name for p in path), *(nx.ancestors(graph.topology, path[-1].name) if path else ())}
    layers = [pair for layer in graph.layers if layer.name in below for pair in graph.inside(layer)]
    matched = [(line, _matching(layers, line, method.params)) for line in method.assign]
    owners = {layer.name: (owner, path if owner is graph else owner.path) for owner, layer in layers}

    def bind(layer: Layer, strict: bool) -> Bound:
        if layer.bodies:
            inside = {inner.name for inner in with_bodies([layer])}
            if any(REGISTRY.rules[a.rule].compares and names & inside for a, names in matched):
                raise UnsupportedOp(
                    f"method {method.name!r} compares every tensor with its reference, and layer {layer.name!r} (operator "
                    f"{layer.op}) has a body, whose tensors have none: export the model with a fixed number of steps, up to 32 "
                    f"of which are written out in time, attribute to a tensor behind it (such as wrt=[{layer.y.name!r}]), or use "
                    "integrated_gradients"
                )
            return Bound(BODY, {}, "its bodies' layers have rules of their own")
        if layer.kind == "unknown":
            raise UnsupportedOp(_unsupported(*owners.get(layer.name, (graph, path)), layer))
        line = next((a for a, names in matched if layer.name in names and layer.kind in REGISTRY.rules[a.rule].kinds), None)
        if line is not None:
            rule = REGISTRY.rules[line.rule]
            for p in rule.params.values():
                if p.required and p.name not in line.params:
                    raise MethodError(
                        f"method {method.name!r} needs a value for {p.name!r} ({describe(p.type)}): rule {rule.name!r} "
                        f"at layer {layer.name!r} ({line.line}) has no default; pass {p.name}=..., or --set {p.name}=..."
                    )
            return Bound(rule, dict(line.params), line.line)
        if strict:
            trail = _trail(*owners.get(layer.name, (graph, path)), layer)
            raise UnsupportedOp(
                f"method {method.name!r} has no rule for layer {layer.name!r} (operator {layer.op}, kind {layer.kind}) "
                f"on the path {trail}. Add a line for it in a table of your own (base = {method.name!r}), "
                "or pass strict=False (--no-strict) to let the plain gradient pass there; the manifest will list it"
            )
        return Bound(REGISTRY.rules["gradient"], {}, "no line matched; strict=False", True)

    return bind


def _matching(layers: Sequence[tuple[LayerGraph, Layer]], line: Assign, params: Mapping[str, Any]) -> set[str]:
    """Names of those layers that a line speaks of."""
    where = line.where
    if any(params.get(name) is None for name in listed(where.get("given", []))):
        return set()
    found = [
        (graph, layer)
        for graph, layer in layers
        if ("kind" not in where or layer.kind in listed(where["kind"]))
        and ("op" not in where or layer.op in listed(where["op"]))
        and ("name" not in where or any(fnmatch.fnmatchcase(layer.name, p) for p in listed(where["name"])))
    ]
    position = where.get("position")
    if position == "input":
        found = [(graph, layer) for graph, layer in found if graph.at_input(layer)]
    elif position is not None:
        found = found[:1] if position == "first" else found[-1:]
    return {layer.name for _, layer in found}


def _unsupported(graph: LayerGraph, path: Sequence[Layer], layer: Layer) -> str:
    node = layer.nodes[0]
    domain = f"{node.domain}:" if node.domain not in ("", "ai.onnx") else ""
    reason = None if domain else obstacle(node.op, node.inputs, node.attrs) or sequences.obstacle(node.op)
    reason = why_foreign(graph.graph, node) if domain else reason
    known = WHY.get(f"{domain}{node.op}")
    reason = reason or (f"it {known}" if known else None)
    reason = f": {reason}" if reason else ""
    return (
        f"no derivative for operator {domain}{node.op} (node {layer.name!r}, opset {graph.graph.opset}), which lies on the path "
        f"{_trail(graph, path, layer)}{reason}. Explain another output (output=..., --output), attribute to a tensor behind it "
        f"(such as wrt=[{layer.y.name!r}], --wrt {layer.y.name}), or add a derivative in graphattr/vjp"
    )


def _trail(graph: LayerGraph, path: Iterable[Layer], layer: Layer, around: int = 2) -> str:
    """Some layers before and after this one, along one way from the attributed tensors to the output."""
    on = {p.name for p in path}

    def walk(step: Callable[[str], Iterable[str]]) -> list[str]:
        names = [layer.name]
        while len(names) < around + 2 and (after := next((n for n in step(names[-1]) if n in on), None)) is not None:
            names.append(after)
        return [repr(n) for n in names[1 : around + 1]] + ["..."] * (len(names) > around + 1)

    return " -> ".join([*walk(graph.topology.predecessors)[::-1], repr(layer.name), *walk(graph.topology.successors)])
