"""Writes the explanation into the graph: seed, walk, finish, and the extras that the caller asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from .backward import Entry, backward
from .errors import MethodError, TargetError
from .fn import reapply
from .graph import Graph, Value
from .layers import LayerGraph
from .lookups import of_ids
from .method import Bound, Method, Plan, plan
from .precision import is_half
from .rule import REGISTRY, constant_like, per_sample_sum
from .targets import NO_RANK, Explained, Target, Wanted, one_hot
from .vjp import total
from .vjp.index import zeros_like

LEDGER_COLUMNS = ("arrived", "sent", "bias", "stabiliser")


@dataclass
class Written:
    """What one method added: attribution per tensor name, extras by output suffix, its plan and ledger lines."""

    method: Method
    attributions: dict[str, Value]
    plan: Mapping[str, Bound]
    extras: dict[str, Value] = field(default_factory=dict)
    ledger_layers: list[str] = field(default_factory=list)
    unaffected: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Request:
    """What is asked of every method alike."""

    explained: Explained
    wanted: Sequence[Wanted]
    target: Target
    strict: bool = True
    delta: bool = False
    ledger: bool = False

    @property
    def wrt(self) -> list[Value]:
        """The tensors that relevance has to reach."""
        return list(dict.fromkeys(v for one in self.wanted for v in one.tensors))


def start(g: Graph, request: Request) -> tuple[Value, Value | None]:
    """(e_c, target index), or (the `seed` input, None)."""
    y = request.explained.y
    if y.shape is None:
        raise TargetError(f"the rank of output {request.explained.name!r} is unknown; {NO_RANK}")
    if request.target == "seed":
        return g.input("seed", y.dtype, y.shape), None
    return one_hot(g, y, request.target)


def plan_of(graph: LayerGraph, method: Method, request: Request) -> Plan:
    """The rule of each layer between the attributed tensors and the explained one; TargetError when there is no such layer."""
    missing = _unaffected(graph, request)
    if request.explained.stripped and request.explained.name in missing:
        raise TargetError(
            f"cannot attribute to {request.explained.name!r}: its {request.explained.stripped} is stripped, so "
            f"{request.explained.y.name!r} before it is explained; pass strip=False (--no-strip) to explain it itself"
        )
    if len(missing) == len(request.wanted) or any(one.named and one.x.name in missing for one in request.wanted):
        raise TargetError(
            f"the explained output {request.explained.name!r} does not depend on {', '.join(map(repr, missing))} through any "
            "operator with a derivative, so there is nothing to attribute; choose another output or wrt"
        )
    return plan(graph, method, graph.between(request.wrt, [request.explained.y]), request.strict)


def _unaffected(graph: LayerGraph, request: Request) -> list[str]:
    """What is attributed to and does not influence the explained output."""
    y = request.explained.y
    reached = {x for layer in graph.between(request.wrt, [y]) for x in layer.xs} | {y}
    return [one.x.name for one in request.wanted if not any(v in reached for v in one.tensors)]


def attribute(graph: LayerGraph, method: Method, rules: Plan, request: Request, begin: tuple[Value, Value | None]) -> Written:
    """Append one method's backward pass to the graph."""
    g, y = graph.graph, request.explained.y
    path = graph.between(request.wrt, [y])
    entries: list[Entry] | None = [] if request.ledger else None
    seeds = _seeds(g, method, y, begin, request.target)
    passes = [backward(graph, rules, path, {y: r}, request.wrt, entries) for r in seeds]
    written = Written(method, {}, rules, unaffected=_unaffected(graph, request))
    references: dict[Value, Value] = {}
    finished = {}
    for x in request.wrt:
        maps = tuple(p[x] if x in p else zeros_like(g, x) for p in passes)
        finished[x] = _finish(g, method, x, maps, references)
    for one in request.wanted:
        written.attributions[one.x.name] = of_ids(g, one.x, one.lookups, finished) if one.lookups else finished[one.x]
    if request.delta:
        written.extras["delta"] = _delta(graph, method, request, seeds, begin, written, references)
    if entries is not None:
        written.extras["ledger"] = _ledger(g, y, entries)
        written.ledger_layers = [e.layer for e in entries]
    return written


def _seeds(g: Graph, method: Method, y: Value, begin: tuple[Value, Value | None], target: Target) -> tuple[Value, ...]:
    with g.scope(f"seed/{method.seed}"):
        seeds = tuple(REGISTRY.seeds[method.seed].apply(g, y, begin[0]))
    if target != "seed":
        return seeds
    if len(seeds) > 1:
        raise MethodError(f"method {method.name!r} makes its own {len(seeds)} seeds; it cannot take target='seed'")
    return (begin[0],)


def _finish(g: Graph, method: Method, x: Value, maps: tuple[Value, ...], references: dict[Value, Value]) -> Value:
    step = REGISTRY.finishes[method.finish]
    params: dict[str, Any] = {k: v for k, v in method.params.items() if k in step.params}
    if isinstance(params.get("baselines"), str):
        params["baselines"] = references[x] = baseline_input(g, x)
    elif params.get("baselines") is not None:
        try:
            params["baselines"] = references[x] = constant_like(g, x, params["baselines"])
        except MethodError as e:
            raise MethodError(f"method {method.name!r}, parameter 'baselines': {e}") from e
    with g.scope(f"finish/{method.finish}"):
        result: Value = step.apply(g, x, maps, **params)
    return result


def baseline_input(g: Graph, x: Value) -> Value:
    """The graph input `<x>_baseline`, shared by all methods of the file."""
    name = f"{x.name}_baseline"
    held = [v for v in g.inputs if v.name == name]
    return held[0] if held else g.input(name, x.dtype, x.shape)


def _delta(
    graph: LayerGraph,
    method: Method,
    request: Request,
    seeds: Sequence[Value],
    begin: tuple[Value, Value | None],
    written: Written,
    references: Mapping[Value, Value],
) -> Value:
    """[N]: what the attributions should add up to, minus what they do."""
    g, y = graph.graph, request.explained.y
    wanted, maps = seeds[0], list(written.attributions.values())
    if method.expects not in ("zero", "seed"):
        changed = reapply(g, y, {x: _filled(g, x, references.get(x)) for x in request.wrt})
        wanted = (y - changed) * begin[0]
    wanted, *maps = of_one_type(g, [wanted, *maps])
    found = total(g, [per_sample_sum(g, a) for a in maps])
    assert found is not None
    return -found if method.expects == "zero" else per_sample_sum(g, wanted) - found


def of_one_type(g: Graph, values: Sequence[Value]) -> list[Value]:
    """The values as they are when they share a type that sums may have; else in float32, which half precision overflows into."""
    kinds = {v.dtype for v in values}
    if len(kinds) == 1 and not any(map(is_half, values)):
        return list(values)
    return [v if v.dtype == np.float32 else g.Cast(v, to=onnx.TensorProto.FLOAT) for v in values]


def _filled(g: Graph, x: Value, reference: Value | None) -> Value:
    return x * 0.0 if reference is None else x * 0.0 + reference


def _ledger(g: Graph, y: Value, entries: Sequence[Entry]) -> Value:
    """(N, layers, 4): relevance arrived, sent on, absorbed by the bias, absorbed by the stabiliser."""
    rows = g.Slice(g.shape(y), [0], [1]) if y.rank else g.const([1], "int64")
    lines = []
    for e in entries:
        columns = [e.arrived, e.sent, e.absorbed.get("bias", []), e.absorbed.get("stabiliser", [])]
        alike = iter(of_one_type(g, [v for column in columns for v in column]))
        columns = [[next(alike) for _ in column] for column in columns]
        sums = [
            total(g, [g.ReduceSum(g.Reshape(v, g.Concat(rows, [-1], axis=0)), [1], keepdims=1) for v in column])
            for column in columns
        ]
        zero = sums[0] * 0.0 if sums[0] is not None else None
        lines.append(g.Unsqueeze(g.Concat(*[s if s is not None else zero for s in sums], axis=1), [1]))
    return g.Concat(*(line if line.dtype == np.float32 else g.Cast(line, to=1) for line in lines), axis=1)
