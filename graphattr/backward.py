"""The walk: relevance from the seed to the tensors asked for, layer by layer, by the rules of the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import BuildError, GraphattrError
from .fn import Context, Site
from .graph import Graph, Value
from .infer import Shape, shape_text
from .layers import Layer, LayerGraph, to_layers
from .plan import Bound, Plan
from .vjp import fit, pull_control, total


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
    context: Context | None = None,
) -> dict[Value, Value]:
    """Relevance (or gradient) at each wrt tensor that any reaches. Where a tensor has several readers, their shares add up."""
    g, context = graph.graph, context or Context()
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
        site = Site(g, layer, graph, wanted, entry.absorbed if ledger is not None else None, context)
        with g.scope(f"{layer.name}/{bound.rule.name}"):
            if layer.bodies:
                shares = pull_control(g, layer.nodes[0], rs, wanted, _walk(layer, plan, context))
            else:
                shares = [(x, r) for x, r in zip(layer.xs, _apply(g, site, bound, rs), strict=True) if r is not None]
        for x, share in shares:
            if x in wanted:
                arriving.setdefault(x, []).append(share)
                entry.sent.append(share)
        if ledger is not None:
            ledger.append(entry)
    return {v: r for v in wrt if (r := total(g, arriving.get(v, []))) is not None}


def _walk(layer: Layer, plan: Plan, context: Context) -> Callable[..., Mapping[Value, Value]]:
    """How relevance passes a body: as it passes the graph, by the rules of the plan."""

    def through(
        attr: str, step: Graph, stands: Mapping[Value, Value], seeds: Mapping[Value, Value], wrt: Sequence[Value]
    ) -> Mapping[Value, Value]:
        body = layer.bodies[attr]
        shown = [stands.get(v, v) for _, v in body.graph.outputs]
        inner = to_layers(step, [stands.get(v, v) for v in body.roots], shown, body.prefix)
        return backward(inner, plan, inner.between(wrt, seeds), seeds, wrt, None, context)

    return through


def _apply(g: Graph, site: Site, bound: Bound, rs: Sequence[Value | None]) -> list[Value | None]:
    """The rule's result as one share per data input, each of its input's shape; None where nothing is sent."""
    where = f"rule {bound.rule.name!r} at layer {site.layer.name!r} ({site.layer.op}; {bound.line})"
    try:
        out = bound.rule.apply(g, site, rs[0] if len(rs) == 1 else tuple(rs), **bound.params)
        shares = list(out) if isinstance(out, (tuple, list)) else [out]
        several = isinstance(out, (tuple, list))
        if site.layer.tail and not several:  # a rule of linear layers: coefficients count as constants
            shares, several = shares + [None] * (len(site.xs) - 1), True
        if len(shares) != len(site.xs) or not all(isinstance(r, Value) or (r is None and several) for r in shares):
            raise BuildError(_wrong(shares, site))
        for r, x in zip(shares, site.xs, strict=True):
            if r is not None and not _fits(r.shape, x.shape):
                raise BuildError(f"it returned shape {shape_text(r.shape)} for {x.name!r} of shape {shape_text(x.shape)}")
        return [None if r is None else fit(g, r, x) for r, x in zip(shares, site.xs, strict=True)]
    except GraphattrError as e:
        raise type(e)(f"{where}: {e}") from e
    except Exception as e:  # a rule is anybody's code
        raise BuildError(f"{where} raised {type(e).__name__}: {e}") from e


def _fits(have: Shape | None, want: Shape | None) -> bool:
    """Whether relevance of one shape can be summed to the other, as far as both are known."""
    if have is None or want is None:
        return True
    pairs = zip(have[::-1], want[::-1], strict=False)
    return len(have) >= len(want) and all(w in (1, h) for h, w in pairs if isinstance(h, int) and isinstance(w, int))


def _wrong(shares: Sequence[Any], site: Site) -> str:
    names = ", ".join(x.name for x in site.xs)
    if len(shares) != len(site.xs):
        return f"it returned {len(shares)} relevances for {len(site.xs)} data inputs ({names}); return one per entry of layer.xs"
    types = ", ".join(type(r).__name__ for r in shares)
    return f"it returned {types}; return a Value, or a tuple of one per data input ({names})"
