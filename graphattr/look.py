"""Looking without changing: the layer table of a model, the text of any stage, the checks of an explanation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx

from .blocks import Block, labels, recognise, summary
from .canonical import Canonical
from .errors import GraphattrError, ModelError, TargetError
from .export import Explanation, read_manifest
from .graph import Array, Graph, Value
from .infer import read_type, shape_text
from .kernels import placement
from .layers import Layer, LayerGraph, to_layers
from .lower import lowering_for
from .method import Method
from .plan import Bound, binder, with_bodies
from .rule import Rule
from .runtime import Explainer
from .session import open_session
from .source import Source, read
from .targets import attributed, data_roots, explained_output

FORWARD = Bound(Rule("none", frozenset(), lambda g, layer, r: r, {}, "", __name__), {}, "the method asks for no derivative")


# -- inspect ------------------------------------------------------------------------------------------------------
def look(
    canonical: Canonical, method: Method | None, output: str | None, wrt: str | Sequence[str] | None, strip: bool
) -> dict[str, Any]:
    """The layer table of `graphattr.inspect`; what cannot be done is listed under `problems`, not raised."""
    problems: list[str] = []
    g = canonical.graph
    explained, tensors = None, []
    try:
        explained = explained_output(canonical, output, strip)
        tensors = attributed(canonical, wrt)
    except TargetError as e:
        problems.append(str(e))
    roots = data_roots(canonical, tensors) if tensors else list(g.inputs)
    graph = to_layers(g, roots, [*tensors, *([explained.y] if explained else [])])
    path = graph.between(tensors, [explained.y]) if explained and tensors else []
    if explained and tensors and not path:
        problems.append(f"output {explained.name!r} does not depend on {', '.join(repr(v.name) for v in tensors)}")
    on_path = {layer.name for layer in with_bodies(path)}
    bind = None if method is None else _forward if method.forward_only else binder(graph, method.inner, path)
    rows = [_row(layer, layer.name in on_path, bind, problems) for _, layer in graph.walk()]
    blocks, misses = recognise(graph, canonical)
    in_block = labels(blocks)
    covered = sum(r["on_path"] and r["problem"] is None for r in rows)
    return {
        "inputs": [_tensor(v) for v in g.inputs],
        "outputs": [{**_tensor(v), "name": name} for name, v in g.outputs],
        "opset": g.opset,
        "producer": canonical.model.producer_name,
        "sha256": canonical.source.sha256,
        "explained": explained and {"output": explained.name, "tensor": explained.y.name, "stripped": explained.stripped},
        "wrt": [v.name for v in tensors],
        "method": method and method.name,
        "summary": summary(blocks),
        "blocks": [_block(b) for b in blocks],
        "misses": [{"name": m.name, "at": m.at, "why": m.why} for m in misses],
        "layers": [{**row, "block": in_block.get(row["name"])} for row in rows],
        "removed": dict(canonical.removed),
        "coverage": {"covered": covered, "on_path": len(path), "nodes": len(g.nodes)},
        "problems": problems,
    }


def _forward(layer: Layer, strict: bool) -> Bound:
    return FORWARD


def _tensor(v: Value) -> dict[str, Any]:
    return {"name": v.name, "dtype": str(v.dtype or "?"), "shape": shape_text(v.shape)}


def _block(b: Block) -> dict[str, Any]:
    """A block as plain data."""
    facts, parts = dict(b.facts), dict(b.parts)
    return {"name": b.name, "layers": list(b.layers), "x": b.x, "y": b.y, "facts": facts, "parts": parts, "origin": b.origin}


def _row(layer: Layer, on_path: bool, bind: Callable[[Layer, bool], Bound] | None, problems: list[str]) -> dict[str, Any]:
    """One layer's line; with a method also the rule it would get, or why none."""
    row: dict[str, Any] = {
        "name": layer.name,
        "op": layer.op,
        "kind": layer.kind,
        "shape": shape_text(layer.y.shape),
        "parameters": _parameters(layer),
        "on_path": on_path,
        "rule": None,
        "line": None,
        "problem": None,
    }
    if on_path and layer.kind == "unknown" and bind is None:
        row["problem"] = f"no derivative for operator {layer.op}"
    elif on_path and bind is not None:
        try:
            bound = bind(layer, True)
            row["rule"], row["line"] = bound.rule.name, bound.line
        except GraphattrError as e:
            row["problem"] = str(e)
    if row["problem"]:
        problems.append(f"{layer.name}: {row['problem']}")
    return row


def _parameters(layer: Layer) -> int:
    """Number of weights and biases of the layer."""
    constants = {v for n in layer.nodes for v in n.inputs if v is not None and v.is_const and v.is_float}
    return sum(int(np.prod([d for d in v.shape or () if isinstance(d, int)], dtype=np.int64)) for v in constants)


# -- text of a stage ----------------------------------------------------------------------------------------------
def text_of(value: Any) -> str:
    """Any stage's value as text: graphs one node per line, layers and plans one layer per line."""
    if isinstance(value, Canonical):
        return text_of(value.graph)
    if isinstance(value, Graph):
        lines = [f"{g_in.name}: {g_in.dtype}{shape_text(g_in.shape)}" for g_in in value.inputs]
        lines += [
            f"{_names(n.outputs)} = {n.op}{_attributes(n.attrs)}({_names(n.inputs)})  # {shape_text(n.outputs[0].shape)}"
            for n in value.nodes
        ]
        return "\n".join([*lines, *(f"-> {name} = {v.name}" for name, v in value.outputs)])
    if isinstance(value, LayerGraph):
        return "\n".join(
            f"{x.name}  {x.op}  {x.kind}  {', '.join(v.name for v in x.xs)} -> {', '.join(v.name for v in x.ys)}"
            for _, x in value.walk()
        )
    if isinstance(value, list):  # one plan per method
        return "\n\n".join(map(text_of, value))
    if isinstance(value, Mapping):
        return "\n".join(f"{name}  {b.rule.name}  {dict(b.params)}  ({b.line})" for name, b in value.items())
    if isinstance(value, Source):
        return f"{value.path or 'model in memory'}  sha256 {value.sha256}  {len(value.model.graph.node)} nodes"
    return repr(value)


def _names(values: Sequence[Value | None]) -> str:
    return ", ".join(v.name if v is not None else "" for v in values)


def _attributes(attrs: Mapping[str, Any]) -> str:
    shown = ", ".join(f"{k}={v}" for k, v in attrs.items() if isinstance(v, (int, float, str, list)))
    return f"<{shown}>" if shown else ""


# -- verify -------------------------------------------------------------------------------------------------------
def check(explanation: Any, model: Any, data: Any, providers: Any) -> dict[str, Any]:
    """The checks of `graphattr.verify`. A failed check is a line, not an exception; an unreadable file raises ModelError."""
    source = (
        Source(explanation.model, explanation.folder, "", None) if isinstance(explanation, Explanation) else read(explanation)
    )
    manifest = read_manifest(source.model)
    if manifest is None:
        raise ModelError("this model is not an explanation made by graphattr (its metadata has no 'graphattr.manifest')")
    checks: list[dict[str, Any]] = []

    def note(name: str, ok: bool | None, detail: str) -> None:
        checks.append({"name": name, "ok": ok, "detail": detail})

    domains = sorted({n.domain for n in source.model.graph.node} - {"", "ai.onnx"})
    note(
        "operators",
        True,
        "standard operators only" if not domains else f"custom operators of the source's forward pass: {', '.join(domains)}",
    )
    note(
        "fallbacks",
        not manifest["fallbacks"],
        ", ".join(manifest["fallbacks"]) or "every layer has the rule of its table",
    )
    original = None
    if model is not None:
        original = read(model)
        digest = original.sha256
        note(
            "provenance",
            digest == manifest["source_sha256"],
            f"source sha256 {manifest['source_sha256'][:16]}..., given model {digest[:16]}...",
        )
    else:
        note("provenance", None, f"source sha256 {manifest['source_sha256'][:16]}... (give --model to compare)")
    if "cuda" in (manifest.get("lowering"), lowering_for(providers)):
        note("cuda", None, on_cuda(source.model))
    explainer = Explainer(Explanation(source.model, manifest, source.folder), providers)
    feeds = _feeds(source.model, data)
    result: dict[str, Any] = {
        "method": manifest["method"],
        "target": manifest["target"],
        "checks": checks,
        "ledger": None,
    }
    try:
        a = explainer(feeds)
    except GraphattrError as e:
        note("run", False, str(e))
        return {**result, "ok": False}
    note("finite", True, "all attributions are finite")
    if original is not None:
        _compare_outputs(original, feeds, a.outputs, note)
    for tensor, score in a.scores.items():
        rows = score.shape[: 1 if manifest.get("targets") is None else 2]
        sums = score.reshape(*rows, -1).sum(-1, dtype=np.float64) if score.ndim else score
        note(f"sum of {tensor}", None, np.array2string(np.asarray(sums), precision=6, threshold=8))
    if a.delta is not None:
        scale = max(float(np.abs(s).sum()) / max(len(s), 1) for s in a.scores.values())
        note(
            "completeness",
            None,
            f"delta per sample {np.array2string(a.delta, precision=3, threshold=8)} (mean absolute attribution {scale:.3g})",
        )
    if a.ledger is not None:
        result["ledger"] = _ledger_rows(manifest, a.ledger)
    return {**result, "ok": all(c["ok"] is not False for c in checks)}


def on_cuda(model: onnx.ModelProto) -> str:
    """One line of `graphattr.placement`."""
    found = placement(model)
    left = "; ".join(f"{row['count']} {row['op']} ({row['why']})" for row in found["cpu"])
    return (
        f"{found['cuda']} nodes have kernels in ONNX Runtime {found['onnxruntime']}, {found['shapes']} compute shapes, "
        f"{'none is' if not left else left + (' is' if len(found['cpu']) == 1 else ' are')} left to the CPU"
    )


def _compare_outputs(original: Source, feeds: Mapping[str, Array], outputs: Mapping[str, Array], note: Any) -> None:
    session = open_session(original.model, original.folder)
    own = {i.name for i in session.get_inputs()}
    for info, want in zip(session.get_outputs(), session.run(None, {k: v for k, v in feeds.items() if k in own}), strict=True):
        got = outputs[info.name]
        if not isinstance(want, np.ndarray) or want.dtype.kind != "f":
            same = (
                np.array_equal(np.asarray(got, object), np.asarray(want, object)) if isinstance(want, np.ndarray) else got == want
            )
            note(f"output {info.name}", bool(same), "equal" if same else "differs")
            continue
        worst, scale = float(np.abs(got.astype(np.float64) - want).max(initial=0)), float(np.abs(want).max(initial=0))
        tolerance = (1e-5 if want.dtype.itemsize >= 4 else 5e-3) * max(scale, 1e-12)
        note(f"output {info.name}", worst <= tolerance, f"largest difference {worst:.3g} of {scale:.3g}")


def _feeds(model: onnx.ModelProto, data: Any) -> dict[str, Array]:
    """The data given, or seeded noise of the inputs' shapes (2 samples; other open axes 32)."""
    infos = {i.name: read_type(i.type) for i in model.graph.input}
    if data is not None:
        feeds = dict(data) if isinstance(data, Mapping) else {next(iter(infos)): np.asarray(data)}
        rows = next((np.shape(v)[0] for v in feeds.values() if np.ndim(v)), 1)
        if "target" in infos and "target" not in feeds:
            feeds["target"] = np.zeros(rows, np.int64)
        return feeds
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(hashlib.sha256(b"verify").digest()[:4], "big")))
    feeds = {}
    for name, (dtype, shape) in infos.items():
        sizes = [d if isinstance(d, int) else 2 if i == 0 else 32 for i, d in enumerate(shape or (2,))]
        integer = dtype is not None and dtype.kind in "iub"
        feeds[name] = np.zeros(sizes, dtype) if integer else generator.standard_normal(sizes).astype(dtype or np.float32)
    return feeds


def _ledger_rows(manifest: Mapping[str, Any], ledger: Array) -> list[dict[str, Any]]:
    """Per layer, summed over the samples (and targets): arrived, sent, bias, stabiliser, and what none of these explains."""
    names = next(iter(manifest["ledger"]["layers"].values()))
    rows = []
    for name, line in zip(names, ledger.astype(np.float64).sum(tuple(range(ledger.ndim - 2))), strict=True):
        entry = {"layer": name, **{c: float(v) for c, v in zip(manifest["ledger"]["columns"], line, strict=True)}}
        entry["unexplained"] = entry["arrived"] - entry["sent"] - entry["bias"] - entry["stabiliser"]
        rows.append(entry)
    return rows
