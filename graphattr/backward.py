"""The walk: relevance from the seed to the tensors asked for, layer by layer, by the rules of the plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .errors import BuildError, GraphattrError
from .fn import Site
from .graph import Graph, Value
from .layers import Layer, LayerGraph
from .method import Plan
from .vjp import fit, total


@dataclass
class Entry:
    """A layer's line in the conservation ledger: relevance at its outputs and inputs, and what its rule kept back."""

    layer: str
    arrived: list[Value]
    sent: list[Value] = field(default_factory=list)
    absorbed: dict[str, list[Value]] = field(default_factory=dict)


def backward(
    graph: LayerGraph,
    plan: Plan,
    path: Sequence[Layer],
    seeds: Mapping[Value, Value],
    wrt: Sequence[Value],
    ledger: list[Entry] | None = None,
) -> dict[Value, Value]:
    """Relevance (or gradient) at each wrt tensor that any reaches. Where a tensor has several readers, their shares add up."""
    g = graph.graph
    arriving: dict[Value, list[Value]] = {v: [r] for v, r in seeds.items()}
    wanted = frozenset(v for layer in path for v in layer.ys) | frozenset(wrt)
    for layer in reversed(path):
        rs = [total(g, arriving.get(y, [])) for y in layer.ys]
        if all(r is None for r in rs):
            continue
        for y, r in zip(layer.ys, rs, strict=True):
            if r is not None:
                arriving[y] = [r]
        bound = plan[layer.name]
        entry = Entry(layer.name, [r for r in rs if r is not None])
        site = Site(g, layer, graph, wanted, entry.absorbed if ledger is not None else None)
        with g.scope(f"{layer.name}/{bound.rule.name}"):
            shares = _apply(g, site, bound.rule.name, plan, rs)
        for x, share in zip(layer.xs, shares, strict=True):
            if x in wanted and share is not None:
                arriving.setdefault(x, []).append(share)
                entry.sent.append(share)
        if ledger is not None:
            ledger.append(entry)
    return {v: r for v in wrt if (r := total(g, arriving.get(v, []))) is not None}


def _apply(g: Graph, site: Site, rule: str, plan: Plan, rs: Sequence[Value | None]) -> list[Value | None]:
    """The rule's result as one share per data input, each of its input's shape; None where nothing is sent."""
    bound = plan[site.layer.name]
    try:
        out = bound.rule.apply(g, site, rs[0] if len(rs) == 1 else tuple(rs), **bound.params)
    except GraphattrError as e:
        raise type(e)(f"rule {rule!r} at layer {site.layer.name!r} ({site.layer.op}; {bound.line}): {e}") from e
    shares: list[Value | None] = [out] if isinstance(out, Value) else list(out)
    if site.layer.tail and len(shares) == 1:  # a rule of linear layers: coefficients count as constants
        shares += [None] * (len(site.xs) - 1)
    if len(shares) != len(site.xs):
        raise BuildError(
            f"rule {rule!r} at layer {site.layer.name!r} returned {len(shares)} relevances for {len(site.xs)} data inputs "
            f"({', '.join(x.name for x in site.xs)}); return one per entry of layer.xs"
        )
    return [None if r is None else fit(g, r, x) for r, x in zip(shares, site.xs, strict=True)]
