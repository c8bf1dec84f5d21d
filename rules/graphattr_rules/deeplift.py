"""DeepLIFT: multipliers m of what changes from a reference to the input, sum m (x - x0) = y - y0. Shrikumar et al. 2017.

Here are the rules of layers that are linear in what changes, and of maxima; functions of one element are in
`deeplift_functions.py`, products and what is made of them in `deeplift_products.py`.
"""

from collections.abc import Sequence
from typing import Any, Literal

from graphattr.errors import UnsupportedOp
from graphattr.rule import SIGMA, Baselines, Flow, Flows, Graph, Out, Pair, Site, Value, finish, paired, rule, sides, total

from .deeplift_functions import rescale, rescale_changes
from .deeplift_parts import (
    Parts,
    change,
    changes,
    either,
    images,
    inside,
    is_masked,
    parts,
    pushed,
    signs,
    steady,
    through,
    through_changes,
)


@finish("times_difference")
def times_difference(
    g: Graph, x: Value, maps: tuple[Flow, ...], *, baselines: Baselines | Value = 0.0, sigma: float = SIGMA
) -> Value:
    """m (x - baselines), or m+ max(x - baselines, 0) + m- min(x - baselines, 0).

    `baselines`: a number, one per channel, an array, rows of them (the mean over the rows is taken), "input" for a graph input,
    or "blur" for x under a Gaussian of `sigma` pixels. It arrives here as a Value of the graph.
    """
    assert isinstance(baselines, Value)
    d, (plus, minus) = x - baselines, sides(maps[0])
    return plus * d if plus is minus else plus * g.Relu(d) + minus * g.Min(d, 0.0)


@rule("deeplift.linear", kinds={"linear"}, compares=True, pairs=True)
@inside("linear", pairs=True)
def linear(g: Graph, layer: Site, r: Flow) -> Flows:
    """W^T m; where m+ and m- differ, what rises passes m+ through w > 0 and m- through w < 0, what falls the other way round."""
    if layer.layer.tail:
        return through(g, layer, r)
    steady(layer)
    if isinstance(r, Value):
        return layer.vjp(r, layer.x)
    x, d, (up, down) = layer.x, change(layer, layer.x), signs(g, layer.w)
    rising = layer.vjp(r.plus, x, up) + layer.vjp(r.minus, x, down)
    falling = layer.vjp(r.plus, x, down) + layer.vjp(r.minus, x, up)
    still = layer.vjp((r.plus + r.minus) * 0.5, x)
    return g.Where(d > 0.0, rising, g.Where(d < 0.0, falling, still))


@rule("deeplift.ablation", kinds={"linear"}, compares=True, pairs=True)
def ablation(g: Graph, layer: Site, r: Flow, *, ablation: Literal["code", "text"] = "code") -> Flows:
    """Rescale without the cross terms: what rises or falls passes through w > 0 only; with "text" what falls through w < 0 only.

    Sixt et al. 2020. Not complete, and meant so.
    """
    if layer.layer.tail:
        return through(g, layer, r, linear=lambda g, piece, r: crossless(g, piece, r, ablation))
    return crossless(g, layer, r, ablation)


def crossless(g: Graph, layer: Site, r: Flow, ablation: str) -> Value:
    """m+ through w > 0 where x rises; m- through w > 0 ("code") or w < 0 ("text") where it falls; both through w elsewhere."""
    steady(layer)
    x, d, (up, down), (plus, minus) = layer.x, change(layer, layer.x), signs(g, layer.w), sides(r)
    rising, falling = layer.vjp(plus, x, up), layer.vjp(minus, x, up if ablation == "code" else down)
    still = layer.vjp(plus if plus is minus else (plus + minus) * 0.5, x)
    return g.Where(d > 0.0, rising, g.Where(d < 0.0, falling, still))


@changes(linear, ablation)
def linear_changes(g: Graph, layer: Site, **params: Any) -> Sequence[Parts]:
    """d+ = f(max(d, 0); w+) + f(min(d, 0); w-), d- = f(max(d, 0); w-) + f(min(d, 0); w+), d the whole change of x."""
    if layer.layer.tail:
        return through_changes(g, layer)
    (rise, fall), (up, down) = signs(g, change(layer, layer.x)), signs(g, layer.w)
    return [(layer(rise, up) + layer(fall, down), layer(rise, down) + layer(fall, up))]


@rule("deeplift.mapped", kinds={"structure", "mean"}, compares=True)
@inside("structure", "mean")
def mapped(g: Graph, layer: Site, r: Out) -> Out:
    """A^T m, for what moves elements or averages them."""
    node = layer.layer.nodes[0]
    if node.op == "Where" and is_masked(layer):
        assert isinstance(r, Value)
        return rescale(g, layer, r)
    steady(layer)
    if node.attrs.get("reduction", "none") not in ("none", "add"):
        raise UnsupportedOp(f"{node!r} with reduction={node.attrs['reduction']!r} is not linear in what it joins")
    return layer.vjps(r)


@rule("deeplift.affine", kinds={"sum", "shift", "scale", "batchnorm", "smooth"}, compares=True, pairs=True)
@inside("sum", "shift", "scale", "batchnorm", pairs=True)
def affine(g: Graph, layer: Site, r: Flow) -> Flows:
    """k m; where m+ and m- differ, they change places for k < 0: what rises before falls behind. Of functions only Neg is so."""
    if is_masked(layer):
        made: Flows = either(r, lambda m: rescale(g, layer, m))
        return made
    steady(layer)
    if isinstance(r, Value):
        return layer.vjps(r)
    sent = []
    for i, k in enumerate(factors(g, layer)):
        plus, minus = g.Where(k >= 0.0, r.plus, r.minus), g.Where(k >= 0.0, r.minus, r.plus)
        sent.append(Pair(layer.vjps(plus)[i], layer.vjps(minus)[i]))
    return tuple(sent)


@changes(affine)
def affine_changes(g: Graph, layer: Site) -> Sequence[Parts]:
    """k d+ and k d-, which change places where k < 0; those of summands add up."""
    if is_masked(layer):
        return rescale_changes(g, layer)
    plus, minus = [], []
    for k, x in zip(factors(g, layer), layer.xs, strict=True):
        rise, fall = parts(g, layer, x)
        plus.append(k * g.Where(k >= 0.0, rise, fall))
        minus.append(k * g.Where(k >= 0.0, fall, rise))
    return [(total(g, plus), total(g, minus))]  # type: ignore[list-item]


def factors(g: Graph, layer: Site) -> list[Value]:
    """What each data input of an affine layer is multiplied by, in the output's shape."""
    held: dict[Value, list[Value]] = layer.context.notes.setdefault("deeplift.factors", {})
    if layer.y not in held:
        units = [[v * 0.0 + float(v is x) for v in layer.xs] for x in layer.xs]
        held[layer.y] = [k for (k,) in images(g, layer, layer.vjps, units)]
    return held[layer.y]


@rule("deeplift.maxpool", kinds={"maxpool"}, compares=True, pairs=True)
@inside("maxpool", pairs=True)
def maxpool(g: Graph, layer: Site, r: Flow, *, maxpool: Literal["completeness", "gradient"] = "completeness") -> Flows:
    """With "completeness" a rise goes to the winner at the input, a fall to the winner at the reference: m max(y - y0, 0) and
    m min(y - y0, 0), divided by what changes there. With "gradient" m goes to the winner at the input, and sums may differ.
    """
    if maxpool == "gradient":
        made: Flows = either(r, lambda m: winner(g, layer, m))
        return made
    node, (plus, minus) = layer.layer.nodes[0], sides(r)
    if node.op in ("TopK", "RoiAlign"):
        raise UnsupportedOp(f"{node!r}: several of its inputs share a change, in no known way; pass maxpool='gradient', "
                            "with which attributions need not add up")
    steady(layer)
    rise, fall = signs(g, change(layer, layer.y))
    here, there = (plus * rise, minus * fall) if node.op not in ("ReduceMin", "Min") else (minus * fall, plus * rise)
    sent = []
    for i, (x, a, b) in enumerate(zip(layer.xs, layer.vjps(here), layer.vjps_at_reference(there), strict=True)):
        d = change(layer, x)
        moves = g.Abs(d) >= 1e-10
        m = (a + b) / g.Where(moves, d, 1.0)
        still = [layer.vjps(side)[i] for side in (plus, minus)]
        sent.append(paired(g.Where(moves, m, still[0]), g.Where(moves, m, still[1])))
    return tuple(sent)


def winner(g: Graph, layer: Site, r: Out) -> Out:
    """r to the winner at the input."""
    return layer.vjps(r)


@changes(maxpool)
def maxpool_changes(g: Graph, layer: Site, *, maxpool: str = "completeness") -> Sequence[Parts]:
    """The parts of the winner; with "completeness" those of the sign of the change."""
    return pushed(g, layer, winner) if maxpool == "gradient" else [signs(g, change(layer, layer.y))]
