"""What DeepLIFT's rules share: what changes from the reference to the input, in which parts; layers made of several operators.

A tensor's change d = t - t0 is the sum of a part d+ and a part d-, and each has a multiplier. Both multipliers are one value as
long as no rule tells the parts apart, as RevealCancel does; until then no parts are written. `parts` finds them layer by layer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from graphattr.errors import UnsupportedOp
from graphattr.rule import Flow, Graph, Pair, Site, Value, added, fit, fitted, paired, pullback, sides, total

Parts = tuple[Value, Value]
Inside = Callable[..., Any]
CHANGES: dict[Inside, Callable[..., Sequence[Parts]]] = {}  # by rule: the parts at a layer's outputs, from those at its inputs
INSIDE: dict[str, tuple[Inside, bool]] = {}  # by kind: the rule of an operator inside a layer, and whether it takes pairs
F = TypeVar("F", bound=Callable[..., Any])


# -- what changes -------------------------------------------------------------------------------------------------
def change(layer: Site, v: Value) -> Value:
    """v - v0."""
    return v - layer.reference(v)


def signs(g: Graph, v: Value) -> Parts:
    """max(v, 0) and min(v, 0)."""
    return g.Relu(v), g.Min(v, 0.0)


def changes(*rules: Inside) -> Callable[[F], F]:
    """Register `f(g, layer, *, parameters) -> [(d+, d-) of each output]` for these rules; others count as linear in the parts."""

    def register(f: F) -> F:
        CHANGES.update(dict.fromkeys(rules, f))
        return f

    return register


def parts(g: Graph, layer: Site, v: Value) -> Parts:
    """(d+, d-) of a tensor that the layer reads, found from the attributed tensors on: theirs are max(d, 0) and min(d, 0)."""
    held: dict[Value, Parts] = layer.context.notes.setdefault("deeplift.parts", {})
    stack = [v]
    while stack:
        x = stack[-1]
        made = None if x in held else layer.maker(x)
        missing = [] if made is None else [u for u in made.xs if u not in held]
        stack.extend(missing)
        if not missing:
            stack.pop()
        if made is None and x not in held:
            held[x] = signs(g, change(layer, x))
        elif made is not None and not missing:
            held.update(zip(made.layer.ys, after(g, made, made.bound.rule.apply, made.bound.params), strict=True))
    return held[v]


def after(g: Graph, layer: Site, f: Inside, params: Mapping[str, Any]) -> Sequence[Parts]:
    """The parts at the outputs of a layer whose rule is f."""
    return CHANGES[f](g, layer, **params) if f in CHANGES else pushed(g, layer, f, **params)


def pushed(g: Graph, layer: Site, f: Inside, **params: Any) -> Sequence[Parts]:
    """The parts through the linear map whose adjoint the rule f is."""
    found = [parts(g, layer, x) for x in layer.xs]
    rise, fall = images(g, layer, lambda m: f(g, layer, m, **params), [[p[side] for p in found] for side in (0, 1)])
    return list(zip(rise, fall, strict=True))


def images(g: Graph, layer: Site, adjoint: Inside, changes: Sequence[Sequence[Value]]) -> list[list[Value]]:
    """Each of `changes` (one value per data input) through the map whose adjoint is given: d/dm of <m_x, d_x>, m what arrives."""
    ms = [g.Identity(y) for y in layer.layer.ys]
    out = adjoint(ms[0] if len(ms) == 1 else tuple(ms))
    shares = [m if m is None else fit(g, m, x) for x, m in zip(layer.xs, out if isinstance(out, tuple) else (out,), strict=True)]
    start = next(i for i in reversed(range(len(g.nodes))) if ms[0] in g.nodes[i].outputs)
    made = []
    for ds in changes:
        seeds: dict[Value, list[Value]] = {}
        for m, d in zip(shares, ds, strict=True):
            if m is not None:
                seeds.setdefault(m, []).append(d)
        found = pullback(g, {m: s for m, each in seeds.items() if (s := total(g, each)) is not None}, ms, g.nodes[start:])
        made.append([found[m] if m in found else y * 0.0 for m, y in zip(ms, layer.layer.ys, strict=True)])
    return made


# -- layers that are another function at the reference ------------------------------------------------------------
def steered(layer: Site) -> Value | None:
    """What the layer reads besides its data and differs at the reference: a mask or a position computed from the input."""
    made = {v for node in layer.layer.nodes for v in node.outputs}
    read = (v for node in layer.layer.nodes for v in node.uses if not (v.is_const or v in made or v in layer.xs))
    return next((v for v in read if layer.reference(v) is not v), None)


def is_masked(layer: Site) -> bool:
    """Whether the layer is a function of one element all the same: x times a mask of x, or chosen by one."""
    return len(layer.xs) == 1 and layer.x.shape == layer.y.shape and steered(layer) is not None


def steady(layer: Site) -> None:
    """UnsupportedOp where the layer is another function at the reference."""
    v = steered(layer)
    if v is not None:
        raise UnsupportedOp(
            f"{v.name!r} decides what {layer.layer.op} does, and differs between the input and its reference, so that the change "
            f"of {layer.y.name!r} has no shares; attribute to a tensor behind it (such as wrt=[{layer.y.name!r}])"
        )


# -- layers in several operators ----------------------------------------------------------------------------------
def inside(*kinds: str, pairs: bool = False) -> Callable[[F], F]:
    """Register a rule for operators of these kinds inside a layer."""

    def register(f: F) -> F:
        INSIDE.update(dict.fromkeys(kinds, (f, pairs)))
        return f

    return register


def through(g: Graph, layer: Site, r: Flow, **instead: Inside) -> tuple[Flow | None, ...]:
    """r through the layer in elementary operators, by the rules of their kinds; `instead`: other rules for some kinds."""
    y, sites = layer.pieces()
    arriving: dict[Value, list[Flow]] = {y: [r]}
    for site in reversed(sites):
        rs = [added(g, arriving.get(v, [])) for v in site.layer.ys]
        if any(r is not None for r in rs):
            for x, share in zip(site.xs, shares(g, site, rs, instead), strict=True):
                if share is not None:
                    arriving.setdefault(x, []).append(fitted(g, share, x))
    return tuple(added(g, arriving.get(x, [])) for x in layer.xs)


def through_changes(g: Graph, layer: Site, **params: Any) -> Sequence[Parts]:
    """The parts behind the layer, operator by operator."""
    held: dict[Value, Parts] = layer.context.notes["deeplift.parts"]
    y, sites = layer.pieces()
    for site in sites:
        held.update(zip(site.layer.ys, after(g, site, known(site), {}), strict=True))
    return [held[y]]


def known(site: Site) -> Inside:
    """The rule of an operator inside a layer."""
    if site.layer.kind not in INSIDE:
        raise UnsupportedOp(f"no rule for {site.layer.op} (kind {site.layer.kind}) inside layer {site.layer.name!r}")
    return INSIDE[site.layer.kind][0]


def shares(g: Graph, site: Site, rs: Sequence[Flow | None], instead: dict[str, Inside]) -> Sequence[Flow | None]:
    """What an operator inside a layer sends to its inputs."""
    f = instead.get(site.layer.kind, known(site))
    pairs = INSIDE[site.layer.kind][1]

    def applied(rs: Sequence[Flow | None]) -> Sequence[Flow | None]:
        out = f(g, site, rs[0] if len(rs) == 1 else tuple(rs))
        return out if isinstance(out, tuple) else (out,)

    if pairs or not any(isinstance(r, Pair) for r in rs):
        return applied(rs)
    return both([applied([None if r is None else sides(r)[i] for r in rs]) for i in (0, 1)])


def either(r: Flow, f: Callable[[Value], Any]) -> Any:
    """A rule that knows no pairs, applied to either value of one."""
    if isinstance(r, Value):
        return f(r)
    outs = [f(m) for m in sides(r)]
    return both(outs) if isinstance(outs[0], tuple) else paired(*outs)


def both(outs: Sequence[Sequence[Flow | None]]) -> tuple[Flow | None, ...]:
    pairs = zip(*outs, strict=True)
    return tuple(None if a is None or b is None else paired(sides(a)[0], sides(b)[1]) for a, b in pairs)
