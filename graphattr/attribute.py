"""Writes the explanation into the graph: seed, walk, finish, and the extras that the caller asked for."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx

from .backward import Entry
from .errors import MethodError, TargetError
from .fitted import Learned
from .graph import Graph, Value
from .layers import Layer, LayerGraph
from .lookups import of_ids
from .method import Method
from .plan import Bound, Plan, plan
from .precision import is_half
from .procedure import Job
from .references import References
from .rule import Found, per_sample_sum
from .targets import NO_RANK, Explained, Target, Wanted, hot_at, indices, several
from .vjp import depends, total

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
    removed: Mapping[str, str] = field(default_factory=dict)  # tensors that are folded away, and their successors

    @property
    def wrt(self) -> list[Value]:
        """The tensors that relevance has to reach."""
        return list(dict.fromkeys(v for one in self.wanted for v in one.tensors))

    def path_in(self, graph: LayerGraph) -> list[Layer]:
        """The layers between the attributed tensors and the explained one."""
        return graph.between(self.wrt, [self.explained.y])


Begin = tuple[list[Value], Value | None]


def start(g: Graph, request: Request) -> Begin:
    """(e_c of each target, their indices [N, k]), or (the `seed` input, None)."""
    y = request.explained.y
    if y.shape is None:
        raise TargetError(f"the rank of output {request.explained.name!r} is unknown; {NO_RANK}")
    if request.target == "seed":
        return [g.input("seed", y.dtype, y.shape)], None
    index, k = indices(g, y, request.target), several(request.target)
    columns = [index] if k is None else [g.Slice(index, [j], [j + 1], [1]) for j in range(k)]
    return [hot_at(g, y, column) for column in columns], index


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
    return {} if method.forward_only else plan(graph, method.inner, request.path_in(graph), request.strict)


def _unaffected(graph: LayerGraph, request: Request) -> list[str]:
    """What is attributed to and does not influence the explained output."""
    y = request.explained.y
    reached = {x for layer in graph.between(request.wrt, [y]) for x in layer.xs} | {y}
    return [one.x.name for one in request.wanted if not any(v in reached for v in one.tensors)]


def attribute(
    graph: LayerGraph, method: Method, rules: Plan, request: Request, begin: Begin, learned: Sequence[Learned]
) -> Written:
    """Append one method's passes to the graph; `learned` for each target.

    Several targets share the forward pass and all that does not depend on the seed; what each gets lies along a new axis 1.
    """
    g, y = graph.graph, request.explained.y
    if request.ledger and method.procedure:
        raise MethodError(f"method {method.name!r} makes many passes; a ledger is of one: pass ledger=False")
    if request.delta and method.expects == "nothing":
        raise MethodError(f"the attributions of method {method.name!r} add up to nothing that is known: pass delta=False")
    job = Job(graph, y, begin[0][0], request.wrt, list(g.nodes), (graph, request.path_in(graph)), request.target == "seed",
              request.strict, removed=request.removed)
    jobs = [dataclasses.replace(job, onehot=hot, fitted=held) for hot, held in zip(begin[0], learned, strict=True)]
    parts = [_of_target(one, method, rules, request) for one in jobs]
    if several(request.target) is None:
        return parts[0]
    return dataclasses.replace(parts[0], attributions=_beside(g, [p.attributions for p in parts]),
                               extras=_beside(g, [p.extras for p in parts]))


def _beside(g: Graph, parts: Sequence[Mapping[str, Value]]) -> dict[str, Value]:
    """What several targets get, under the same names, along a new axis behind the first."""
    found = {}
    for name, first in parts[0].items():
        axis = min(first.rank, 1)
        rows = [g.Unsqueeze(p[name], [axis]) for p in parts]
        found[name] = rows[0] if len(rows) == 1 else g.Concat(*rows, axis=axis)
    return found


def _of_target(job: Job, method: Method, rules: Plan, request: Request) -> Written:
    """One method's passes for one target."""
    g, y = job.g, job.y
    entries: list[Entry] | None = [] if request.ledger else None
    found = job.run(method, entries)
    written = Written(method, {}, rules, unaffected=_unaffected(job.graph, request))
    finished = dict(zip(request.wrt, found.maps, strict=True))
    for one in request.wanted:
        found_x = of_ids(g, one.x, one.lookups, finished, method.forward_only) if one.lookups else finished[one.x]
        written.attributions[one.x.name] = found_x
    written.extras.update(found.extras)
    if request.delta:
        written.extras["delta"] = _delta(job, method, request, written, found)
    if entries is not None:
        written.extras["ledger"] = _ledger(g, y, entries)
        written.ledger_layers = [e.layer for e in entries]
    return written


def _delta(job: Job, method: Method, request: Request, written: Written, found: Found) -> Value:
    """[N]: what the attributions should add up to, minus what they do; a tensor above another attributed one does not count."""
    g, y, lowest = job.g, job.y, _lowest(job, request)
    maps = [samples_first(g, written.attributions[one.x.name], y) for one in lowest]
    if method.expects == "difference":
        below = dataclasses.replace(job, xs=list(dict.fromkeys(v for one in lowest for v in one.tensors)))
        references = References({x: found.references.get(x, g.const(0.0, x.dtype)) for x in below.xs})
        wanted = (y - below.output_at(references)) * job.onehot
    elif method.expects == "score":
        wanted = y * job.onehot
    else:
        wanted = job.onehot if method.procedure else job.seeds(method)[0]
    wanted, *maps = of_one_type(g, [wanted, *maps])
    summed = total(g, [per_sample_sum(g, a) for a in maps])
    assert summed is not None
    return -summed if method.expects == "zero" else per_sample_sum(g, wanted) - summed


def _lowest(job: Job, request: Request) -> list[Wanted]:
    """What is attributed to and depends on nothing else that is."""

    def above(one: Wanted) -> bool:
        others = [v for other in request.wanted if other is not one for v in other.tensors if v not in one.tensors]
        reached = depends(job.forward, others) - set(others)
        return any(v in reached for v in one.tensors)

    return [one for one in request.wanted if not above(one)]


def samples_first(g: Graph, v: Value, y: Value) -> Value:
    """v with the axis first that is named as y's first axis is: a sequence may come time first."""
    name = y.shape[0] if y.shape else None
    if not isinstance(name, str) or not v.shape or name not in v.shape[1:] or v.shape[0] == name:
        return v
    axis = v.shape.index(name)
    return g.Transpose(v, perm=[axis, *(i for i in range(v.rank) if i != axis)])


def of_one_type(g: Graph, values: Sequence[Value]) -> list[Value]:
    """The values as they are when they share a type that sums may have; else in float32, which half precision overflows into."""
    kinds = {v.dtype for v in values}
    if len(kinds) == 1 and not any(map(is_half, values)):
        return list(values)
    return [v if v.dtype == np.float32 else g.Cast(v, to=onnx.TensorProto.FLOAT) for v in values]


def _ledger(g: Graph, y: Value, entries: Sequence[Entry]) -> Value:
    """(N, layers, 4): relevance arrived, sent on, absorbed by the bias, absorbed by the stabiliser."""
    rows = g.Slice(g.shape(y), [0], [1]) if y.rank else g.const([1], "int64")
    lines = []
    for e in entries:
        kinds = [e.arrived, e.sent, e.absorbed.get("bias", []), e.absorbed.get("stabiliser", [])]
        columns = [[samples_first(g, v, y) for v in kind] for kind in kinds]
        alike = iter(of_one_type(g, [v for column in columns for v in column]))
        columns = [[next(alike) for _ in column] for column in columns]
        sums = [
            total(g, [g.ReduceSum(g.Reshape(v, g.Concat(rows, [-1], axis=0)), [1], keepdims=1) for v in column])
            for column in columns
        ]
        zero = sums[0] * 0.0 if sums[0] is not None else None
        lines.append(g.Unsqueeze(g.Concat(*[s if s is not None else zero for s in sums], axis=1), [1]))
    return g.Concat(*(line if line.dtype == np.float32 else g.Cast(line, to=1) for line in lines), axis=1)
