"""The street: from a file to an explanation, stage by stage."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx

from .abreast import abreast
from .attribute import Request, Written, attribute, plan_of, start
from .canonical import Canonical, canonicalise
from .errors import MethodError, TargetError
from .export import Explanation, export, name_outputs
from .fitted import Fitted, learned_for
from .graph import Graph, Value
from .layers import to_layers
from .lower import lower
from .manifest import manifest_of, suffix
from .method import Method, load_method
from .precision import check_precision, computes_in_half, twin_of
from .simplify import simplify
from .source import read
from .targets import Target, check_target, data_roots, explained_output, several, singly, wanted

Model = str | os.PathLike[str] | bytes | onnx.ModelProto
MethodLike = str | os.PathLike[str] | Method


@dataclass(frozen=True)
class Order:
    """What is wanted of a model: `graphattr.convert` describes each field."""

    method: MethodLike | Sequence[MethodLike] = "lrp.epsilon_plus_flat"
    target: Any = "argmax"
    output: str | None = None
    wrt: str | Sequence[str] | None = None
    strict: bool = True
    delta: bool = False
    ledger: bool = False
    strip: bool = True
    lowering: str = "cpu"
    precision: str = "float32"
    size: str = "fast"
    params: Mapping[str, Any] = field(default_factory=dict)
    fitted: Sequence[Fitted] = ()

    @property
    def fold_bn(self) -> bool:
        return bool(self.params.get("bn", "affine") != "pass")


def street(model: Model, order: Order) -> Iterator[tuple[str, Any]]:
    """Yields (stage, value) from "load" to "export"; the last value is the Explanation."""
    chosen = methods_of(order.method, order.params)
    check_precision(order.precision)
    source = read(model)
    yield "load", source
    canonical = canonicalise(source, order.fold_bn)
    yield "canonicalise", canonical
    request = request_of(canonical, order)
    half = computes_in_half(canonical, request.explained, request.wrt)
    twin = twin_of(canonical, request.explained, request.wrt, order.precision) if half else None
    if twin is not None:
        canonical = twin.wide
        request = request_of(canonical, order)
    graph = to_layers(canonical.graph, data_roots(canonical, request.wrt), [*request.wrt, request.explained.y])
    yield "layers", graph
    learned = [learned_for(chosen, order.fitted, source, aim) for aim in singly(request.target)]
    plans = [plan_of(graph, m, request) for m in chosen]
    yield "plan", plans
    begin = start(graph.graph, request)
    of_method = zip(chosen, plans, zip(*learned, strict=True), strict=True)
    written = [attribute(graph, m, p, request, begin, held) for m, p, held in of_method]
    name_outputs(canonical.graph, added_outputs(written, request))
    yield "backward", canonical.graph
    slim = simplify(canonical.graph if twin is None else twin.added())
    slim = slim if several(request.target) is None else abreast(slim)
    yield "simplify", slim
    fast = lower(slim, order.lowering, order.size)
    yield "lower", fast
    index = begin[1] if any(begin[1] in n.outputs for n in fast.nodes) else None  # nothing may have needed it
    if twin is not None:
        fast, index = twin.join(fast, request.wrt, index, request.target)
    manifest = manifest_of(canonical, graph, request, written, index, order.params, order.lowering)
    manifest["size"] = order.size
    if half:
        manifest["precision"] = order.precision
    if order.fitted:
        manifest["fitted"] = [{k: v for k, v in one.manifest.items() if k != "layers"} for one in order.fitted]
    yield "export", export(fast, source, canonical.model, manifest)


def explanation_of(model: Model, order: Order) -> Explanation:
    """What stands at the end of the street."""
    *_, (_, made) = street(model, order)
    assert isinstance(made, Explanation)
    return made


def request_of(canonical: Canonical, order: Order) -> Request:
    """The order's output, tensors and target, found in the model."""
    explained = explained_output(canonical, order.output, order.strip)
    asked = wanted(canonical, order.wrt)
    aim = check_target(order.target, explained.y)
    if aim == "seed" and "seed" in order.params:
        raise MethodError('target="seed" brings the seed at run time; it cannot be combined with the parameter seed=')
    request = Request(explained, asked, aim, order.strict, order.delta, order.ledger, canonical.removed)
    _check_input_names(canonical.graph, aim, request.wrt, order.params)
    return request


def methods_of(method: MethodLike | Sequence[MethodLike], params: Mapping[str, Any]) -> list[Method]:
    """The methods with their parameters; with several, a parameter goes to those that know it and must be known to one."""
    several: list[Any] = list(method) if isinstance(method, (list, tuple)) else [method]
    if not several:
        raise MethodError("no method was given")
    loaded = [load_method(m) for m in several]
    if len(loaded) == 1:
        return [loaded[0].with_params(params)]
    for name in params:
        if not any(name in m.parameters() for m in loaded):
            loaded[0].with_params({name: params[name]})
    if len({m.name for m in loaded}) < len(loaded):
        raise MethodError("the same method was given twice")
    return [m.with_params({k: v for k, v in params.items() if k in m.parameters()}) for m in loaded]


def _check_input_names(g: Graph, target: Target, wrt: Sequence[Value], params: Mapping[str, Any]) -> None:
    ours = {"input": ["target"], "seed": ["seed"]}.get(str(target), [])
    for parameter, what in (("baselines", "baseline"), ("noise", "noise")):
        if isinstance(params.get(parameter), str) and params[parameter] == "input":
            ours = [*ours, *(f"{v.name}_{what}" for v in wrt)]
    for name in ours:
        if name in g.names:
            raise TargetError(
                f"the model already has a tensor named {name!r}, which graphattr needs for its own input; rename it in the model"
            )


def added_outputs(written: Sequence[Written], request: Request) -> list[tuple[str, Value]]:
    """(name, value) of everything that was added."""
    added: list[tuple[str, Value]] = []
    for w in written:
        end = suffix(w, written)
        for tensor, value in w.attributions.items():
            if value.dtype is not None and (value.dtype.itemsize < 4):
                value = value.graph.Cast(value, to=onnx.TensorProto.FLOAT)
            added.append((f"{tensor}_attribution{end}", value))
        added += [(f"{request.explained.name}_{extra}{end}", value) for extra, value in w.extras.items()]
    return added
