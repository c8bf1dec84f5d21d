"""The walk: relevance from the seed to the tensors asked for, layer by layer, by the rules of the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import BuildError, GraphattrError, MethodError
from .fn import Context, Site
from .graph import Graph, Value
from .infer import Shape, shape_text
from .layers import Layer, LayerGraph, to_layers
from .pair import Flow, Pair, added, fitted, paired, sides
from .plan import Bound, Plan
from .vjp import pull_control


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
) -> dict[Value, Any]:
    """Relevance (or gradient) at each wrt tensor that any reaches: a Value, or a Pair where the rules make pairs.

    Where a tensor has several readers, their shares add up.
    """
    g, context = graph.graph, context or Context()
    arriving: dict[Value, list[Flow]] = {v: [r] for v, r in seeds.items()}
    wanted = frozenset(v for layer in path for v in layer.ys) | frozenset(wrt)
    for layer in reversed(path):
        rs = [added(g, arriving.get(y, [])) for y in layer.ys]
        if all(r is None for r in rs):
            continue
        for y, r in zip(layer.ys, rs, strict=True):
            if r is not None:
                arriving[y] = [r]
        bound = plan[layer.name]
        if (ledger is not None or layer.bodies) and any(isinstance(r, Pair) for r in rs):
            raise MethodError(f"at layer {layer.name!r} ({layer.op}) pairs of values arrive, which "
                              + ("pass no body of a node; unroll it" if layer.bodies else "have no ledger; pass ledger=False"))
        entry = Entry(layer.name, [r for r in rs if isinstance(r, Value)])
        site = Site(g, layer, graph, wanted, entry.absorbed if ledger is not None else None, context, plan)
        shares: Sequence[tuple[Value, Flow]]
        with g.scope(f"{layer.name}/{bound.rule.name}"):
            if layer.bodies:
                dys = [r if isinstance(r, Value) else None for r in rs]
                shares = pull_control(g, layer.nodes[0], dys, wanted, _walk(layer, plan, context))
            else:
                shares = [(x, r) for x, r in zip(layer.xs, _apply(g, site, bound, rs), strict=True) if r is not None]
        for x, share in shares:
            if x in wanted:
                arriving.setdefault(x, []).append(share)
                entry.sent.extend([share] if isinstance(share, Value) else [])
        if ledger is not None:
            ledger.append(entry)
    return {v: r for v in wrt if (r := added(g, arriving.get(v, []))) is not None}


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


def _apply(g: Graph, site: Site, bound: Bound, rs: Sequence[Flow | None]) -> list[Flow | None]:
    """The rule's result as one share per data input, each of its input's shape; None where nothing is sent.

    A rule that knows no pairs is applied to either value of one.
    """
    if bound.rule.pairs or not any(isinstance(r, Pair) for r in rs):
        return _shares(g, site, bound, rs)
    either = [[None if r is None else sides(r)[i] for r in rs] for i in (0, 1)]
    plus, minus = (_shares(g, site, bound, side) for side in either)
    return [a if a is None or b is None else paired(*sides(a)[:1], *sides(b)[1:]) for a, b in zip(plus, minus, strict=True)]


def _shares(g: Graph, site: Site, bound: Bound, rs: Sequence[Flow | None]) -> list[Flow | None]:
    where = f"rule {bound.rule.name!r} at layer {site.layer.name!r} ({site.layer.op}; {bound.line})"
    try:
        out = bound.rule.apply(g, site, rs[0] if len(rs) == 1 else tuple(rs), **bound.params)
        shares = list(out) if isinstance(out, (tuple, list)) else [out]
        several = isinstance(out, (tuple, list))
        if site.layer.tail and not several:  # a rule of linear layers: coefficients count as constants
            shares, several = shares + [None] * (len(site.xs) - 1), True
        if len(shares) != len(site.xs) or not all(isinstance(r, Value | Pair) or (r is None and several) for r in shares):
            raise BuildError(_wrong(shares, site))
        for r, x in zip(shares, site.xs, strict=True):
            for v in sides(r) if r is not None else ():
                if not _fits(v.shape, x.shape):
                    raise BuildError(f"it returned shape {shape_text(v.shape)} for {x.name!r} of shape {shape_text(x.shape)}")
        return [None if r is None else fitted(g, r, x) for r, x in zip(shares, site.xs, strict=True)]
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
