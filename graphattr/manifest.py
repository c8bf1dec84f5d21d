"""What was done, as plain data: it travels in the explanation's metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .attribute import LEDGER_COLUMNS, Request, Written
from .canonical import Canonical
from .graph import Value
from .layers import LayerGraph
from .plan import Bound
from .targets import Target, entries, several
from .version import __version__


def suffix(one: Written, written: Sequence[Written]) -> str:
    """What a method's outputs end in: nothing when it is alone in the file."""
    return f"_{one.method.name.replace('.', '_')}" if len(written) > 1 else ""


def manifest_of(
    canonical: Canonical,
    graph: LayerGraph,
    request: Request,
    written: Sequence[Written],
    index: Value | None,
    params: Mapping[str, Any],
    lowering: str,
) -> dict[str, Any]:
    """What was done: enough to know, without graphattr, what each added output means and which rule each layer got."""
    many = len(written) > 1
    end = {w.method.name: suffix(w, written) for w in written}
    name = request.explained.name
    source_outputs = [o.name for o in canonical.model.graph.output]
    return {
        "version": __version__,
        "source_sha256": canonical.source.sha256,
        "method": ",".join(w.method.name for w in written),
        "params": dict(params),
        "parameters": {w.method.name: {k: held for k, (_, held) in w.method.parameters().items()} for w in written},
        "target": _plain(request.target),
        "targets": several(request.target),
        "target_tensor": _index_name(index),
        "entries": entries(request.explained.y),
        "output": name,
        "stripped": request.explained.stripped,
        "wrt": [v.name for v in request.wrt],
        "tokens": {one.x.name: [v.name for v in one.tensors] for one in request.wanted if one.lookups},
        "outputs": source_outputs,
        "attributions": {
            (t if not many else f"{t}/{w.method.name}"): f"{t}_attribution{end[w.method.name]}"
            for w in written
            for t in w.attributions
        },
        "extras": {
            (e if not many else f"{e}/{w.method.name}"): f"{name}_{e}{end[w.method.name]}" for w in written for e in w.extras
        },
        "ledger": {"columns": LEDGER_COLUMNS, "layers": {w.method.name: w.ledger_layers for w in written}}
        if request.ledger
        else None,
        "unaffected": sorted({n for w in written for n in w.unaffected}),
        "seed": {w.method.name: "input" if request.target == "seed" else w.method.seed for w in written},
        "expects": {w.method.name: w.method.expects for w in written},
        "layers": {w.method.name: [_layer_entry(graph, n, b) for n, b in w.plan.items()] for w in written},
        "lowering": lowering,
        "fallbacks": sorted({n for w in written for n, b in w.plan.items() if b.fallback}),
    }


def _plain(target: Target) -> Any:
    """As JSON has it: tuples are lists, and `targets` tells the indices of one target from several targets."""
    return [_plain(t) for t in target] if isinstance(target, (list, tuple)) else target


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
