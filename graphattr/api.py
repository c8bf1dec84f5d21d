"""The Python surface: every command of the command line has its twin here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx

from .attribute import LEDGER_COLUMNS, Request, Written, attribute, plan_of, start
from .canonical import Canonical, canonicalise
from .errors import MethodError, TargetError
from .export import Explanation, export, name_outputs
from .graph import Graph, Value
from .infer import schema_of
from .layers import LayerGraph, to_layers
from .lower import lower
from .method import Bound, Method, load_method, method_names
from .rule import REGISTRY, describe, load_rules
from .runtime import Attribution, Explainer
from .simplify import simplify
from .source import read
from .targets import Target, attributed, check_target, data_roots, entries, explained_output
from .version import __version__
from .vjp import CONSTANT, VJPS

Model = str | os.PathLike[str] | bytes | onnx.ModelProto
MethodLike = str | os.PathLike[str] | Method


def convert(
    model: Model,
    method: MethodLike | Sequence[MethodLike] = "lrp.epsilon_plus_flat",
    target: Any = "argmax",
    output: str | None = None,
    wrt: str | Sequence[str] | None = None,
    fitted: Any = None,
    strict: bool = True,
    delta: bool = False,
    ledger: bool = False,
    strip: bool = True,
    rules: Sequence[str | os.PathLike[str]] = (),
    lowering: str = "cpu",
    **params: Any,
) -> Explanation:
    """The model, with `<tensor>_attribution` outputs behind its own: what each element of a tensor contributed to the explained score.

    model: a path, bytes, or an onnx.ModelProto (left unchanged). method: a registered name, the path of a .toml, a Method, or
    a list of these (outputs then end in `_<method>`). target: "argmax" (of each sample, of the explained output), an index or tuple of
    indices into its axes after the batch, "input" (adds an int64 [N] input `target`) or "seed" (adds a float input `seed` of
    the explained output's shape). output: the output to explain (default: the first float one); a terminal Softmax, LogSoftmax or
    Sigmoid is stripped from it unless strip=False. wrt: names of the tensors to attribute to (default: all float inputs).
    delta adds `<output>_delta` [N], what the attributions should add up to minus what they do; ledger adds
    `<output>_ledger` [N, layers, 4], relevance arrived, sent on, absorbed by bias and by stabiliser. rules: Python files
    with rules of your own. lowering: "cpu" or "cuda" write the same values in the form that runs fastest there (and runs
    everywhere), "portable" as the rules say them. params: the method's parameters (see `methods()`).

    Raises ModelError, UnsupportedOp, MethodError, TargetError; all are GraphattrError.
    """
    *_, (_, explanation) = street(model, method, target, output, wrt, fitted, strict, delta, ledger, strip, rules, lowering, **params)
    assert isinstance(explanation, Explanation)
    return explanation


def street(
    model: Model,
    method: MethodLike | Sequence[MethodLike] = "lrp.epsilon_plus_flat",
    target: Any = "argmax",
    output: str | None = None,
    wrt: str | Sequence[str] | None = None,
    fitted: Any = None,
    strict: bool = True,
    delta: bool = False,
    ledger: bool = False,
    strip: bool = True,
    rules: Sequence[str | os.PathLike[str]] = (),
    lowering: str = "cpu",
    **params: Any,
) -> Iterator[tuple[str, Any]]:
    """`convert`, stage by stage: yields (stage, value) from "load" to "export"."""
    _load_rules(rules)
    if fitted is not None:
        raise MethodError("fitted= was given, but no installed method has learned parameters")
    chosen = _methods(method, params)
    source = read(model)
    yield "load", source
    canonical = canonicalise(source, fold_bn=params.get("bn", "affine") != "pass")
    yield "canonicalise", canonical
    explained = explained_output(canonical, output, strip)
    tensors = attributed(canonical, wrt)
    aim = check_target(target, explained.y)
    if aim == "seed" and "seed" in params:
        raise MethodError('target="seed" brings the seed at run time; it cannot be combined with the parameter seed=')
    _check_input_names(canonical.graph, aim, tensors, params)
    request = Request(explained, tensors, aim, strict, delta, ledger, wrt is not None)
    graph = to_layers(canonical.graph, data_roots(canonical, tensors), [*tensors, explained.y])
    yield "layers", graph
    plans = [plan_of(graph, m, request) for m in chosen]
    yield (
        "plan",
        {
            f"{m.name}: {layer}" if len(chosen) > 1 else layer: b
            for m, p in zip(chosen, plans, strict=True)
            for layer, b in p.items()
        },
    )
    begin = start(graph.graph, request)
    written = [attribute(graph, m, p, request, begin) for m, p in zip(chosen, plans, strict=True)]
    added = _outputs(written, request)
    name_outputs(canonical.graph, added)
    yield "backward", canonical.graph
    slim = simplify(canonical.graph)
    yield "simplify", slim
    fast = lower(slim, lowering)
    yield "lower", fast
    yield (
        "export",
        export(fast, source, canonical.model, _manifest(canonical, graph, request, written, begin[1], params) | {"lowering": lowering}),
    )


def explain(
    model: Model | Explanation,
    inputs: Any,
    method: MethodLike = "lrp.epsilon_plus_flat",
    target: Any = "argmax",
    providers: Any = None,
    **options: Any,
) -> Attribution:
    """Convert and run in one call. inputs: one array, or arrays by input name; target may be an int64 array, one class per sample.

    options: as for `convert`. Raises what `convert` and `Explainer` raise.
    """
    import numpy as np

    per_sample = isinstance(target, (np.ndarray, list)) and np.ndim(target) == 1
    explanation = (
        model if isinstance(model, Explanation) else convert(model, method, "input" if per_sample else target, **options)
    )
    return Explainer(explanation, providers)(inputs, np.asarray(target, np.int64) if per_sample else None)


def _load_rules(files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> None:
    load_rules([os.fspath(f) for f in ([files] if isinstance(files, (str, os.PathLike)) else files)])


def _methods(method: MethodLike | Sequence[MethodLike], params: Mapping[str, Any]) -> list[Method]:
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
    ours = [str(target)] if target in ("input", "seed") else []
    ours = ["target" if n == "input" else n for n in ours] + (
        [f"{v.name}_baseline" for v in wrt] if isinstance(params.get("baselines"), str) else []
    )
    for name in ours:
        if name in g.names:
            raise TargetError(
                f"the model already has a tensor named {name!r}, which graphattr needs for its own input; rename it in the model"
            )


def _outputs(written: Sequence[Written], request: Request) -> list[tuple[str, Value]]:
    """(name, value) of everything that was added."""
    added: list[tuple[str, Value]] = []
    for w in written:
        end = f"_{w.method.name.replace('.', '_')}" if len(written) > 1 else ""
        for tensor, value in w.attributions.items():
            if value.dtype is not None and (value.dtype.itemsize < 4):
                value = value.graph.Cast(value, to=onnx.TensorProto.FLOAT)
            added.append((f"{tensor}_attribution{end}", value))
        added += [(f"{request.explained.name}_{extra}{end}", value) for extra, value in w.extras.items()]
    return added


def _manifest(
    canonical: Canonical,
    graph: LayerGraph,
    request: Request,
    written: Sequence[Written],
    index: Value | None,
    params: Mapping[str, Any],
) -> dict[str, Any]:
    """What was done: enough to know, without graphattr, what each added output means and which rule each layer got."""
    several = len(written) > 1
    end = {w.method.name: f"_{w.method.name.replace('.', '_')}" if several else "" for w in written}
    name = request.explained.name
    source_outputs = [o.name for o in canonical.model.graph.output]
    return {
        "version": __version__,
        "source_sha256": canonical.source.sha256,
        "method": ",".join(w.method.name for w in written),
        "params": dict(params),
        "target": request.target if isinstance(request.target, (str, int)) else list(request.target),
        "target_tensor": _index_name(index),
        "entries": entries(request.explained.y),
        "output": name,
        "stripped": request.explained.stripped,
        "wrt": [v.name for v in request.wrt],
        "outputs": source_outputs,
        "attributions": {
            (t if not several else f"{t}/{w.method.name}"): f"{t}_attribution{end[w.method.name]}"
            for w in written
            for t in w.attributions
        },
        "extras": {
            (e if not several else f"{e}/{w.method.name}"): f"{name}_{e}{end[w.method.name]}" for w in written for e in w.extras
        },
        "ledger": {"columns": LEDGER_COLUMNS, "layers": {w.method.name: w.ledger_layers for w in written}}
        if request.ledger
        else None,
        "unaffected": sorted({n for w in written for n in w.unaffected}),
        "seed": {w.method.name: "input" if request.target == "seed" else w.method.seed for w in written},
        "expects": {w.method.name: w.method.expects for w in written},
        "layers": {w.method.name: [_layer_entry(graph, n, b) for n, b in w.plan.items()] for w in written},
        "fallbacks": sorted({n for w in written for n, b in w.plan.items() if b.fallback}),
    }


def _index_name(index: Value | None) -> str | None:
    return None if index is None or index.is_const else index.name


def _layer_entry(graph: LayerGraph, name: str, bound: Bound) -> dict[str, Any]:
    layer = graph[name]
    return {
        "layer": name,
        "op": layer.op,
        "kind": layer.kind,
        "rule": bound.rule.name,
        "line": bound.line,
        "params": dict(bound.params),
    }


# -- looking ------------------------------------------------------------------------------------------------------
def inspect(
    model: Model,
    method: MethodLike | None = None,
    output: str | None = None,
    wrt: str | Sequence[str] | None = None,
    strip: bool = True,
    rules: Sequence[str | os.PathLike[str]] = (),
    **params: Any,
) -> dict[str, Any]:
    """What is in the file, which rule each layer would get, what would fail and why, as plain data.

    Keys: inputs, outputs, opset, explained, layers (name, op, kind, shape, parameters, on_path, rule, line, problem), coverage
    (layers on the path that have a rule, over all on the path), problems.
    """
    from .look import look

    _load_rules(rules)
    chosen = None if method is None else _methods(method, params)[0]
    return look(canonicalise(read(model), fold_bn=params.get("bn", "affine") != "pass"), chosen, output, wrt, strip)


def verify(
    explanation: Explanation | Model, model: Model | None = None, data: Any = None, providers: Any = None
) -> dict[str, Any]:
    """Check an explanation: provenance, outputs equal to the source's, finite attributions, completeness, the ledger; as plain data.

    data: inputs as for `Explainer` (default: seeded noise of the inputs' shapes). Keys: ok, checks (name, ok, detail), ledger.
    """
    from .look import check

    return check(explanation, model, data, providers)


def methods() -> list[dict[str, Any]]:
    """Every registered method: name, summary, source, seed, and its parameters with type and default."""
    found = []
    for name in method_names():
        m = load_method(name)
        found.append(
            {
                "name": name,
                "summary": m.summary,
                "source": m.source,
                "seed": m.seed,
                "parameters": {k: {"type": t, "default": d} for k, (t, d) in m.parameters().items()},
            }
        )
    return found


def rules() -> list[dict[str, Any]]:
    """Every registered rule: name, summary, the kinds of layers it takes, its parameters, where it was registered."""
    load_rules()
    return [
        {
            "name": r.name,
            "summary": r.summary,
            "kinds": sorted(r.kinds),
            "origin": r.source,
            "parameters": {
                p.name: {"type": describe(p.type), "default": None if p.required else p.default, "required": p.required}
                for p in r.params.values()
            },
        }
        for r in sorted(REGISTRY.rules.values(), key=lambda r: r.name)
    ]


def operators(opset: int = 22) -> list[dict[str, Any]]:
    """Every standard operator: "derivative" (ours), "body" (by its ONNX function body), "zero" or "none"."""
    found = []
    for name in sorted({s.name for s in onnx.defs.get_all_schemas() if not s.domain}):
        schema = schema_of(name, "", opset) or schema_of(name, "", onnx.defs.onnx_opset_version())
        status = (
            "derivative"
            if name in VJPS
            else "zero"
            if name in CONSTANT
            else "body"
            if schema is not None and (schema.has_function or schema.has_context_dependent_function)
            else "none"
        )
        found.append({"name": name, "derivative": status, "since": schema.since_version if schema is not None else None})
    return found
