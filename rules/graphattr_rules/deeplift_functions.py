"""DeepLIFT at functions of one element: Rescale, RevealCancel, and the choice between them."""

from collections.abc import Sequence
from typing import Any

from graphattr.errors import UnsupportedOp
from graphattr.rule import Flow, Flows, Graph, Layer, Pair, Site, Value, rule, sides

from .deeplift_parts import Parts, changes, either, inside, parts

TAU = 1e-7  # a change smaller than this is none
FUNCTIONS = {"relu", "smooth"}
# One part of a change may lead out of where these are defined; levels are no numbers to add parts to.
LIMITED = {"Log", "Sqrt", "Pow", "Reciprocal", "Div", "Asin", "Acos", "Acosh", "Atanh", "Tan", "Mod", "QuantizeLinear",
           "DequantizeLinear", "DynamicQuantizeLinear"}


@rule("deeplift.rescale", kinds=FUNCTIONS, compares=True)
@inside(*FUNCTIONS)
def rescale(g: Graph, layer: Site, r: Value) -> Value:
    """m (f - f0) / (z - z0); m f'(z0) where z does not change. Shrikumar et al. 2017, Eq. 6."""
    return r * ratio(g, layer)


@changes(rescale)
def rescale_changes(g: Graph, layer: Site, **params: Any) -> Sequence[Parts]:
    """Both parts by the same ratio."""
    k, (rise, fall) = ratio(g, layer), parts(g, layer, layer.x)
    return [(k * rise, k * fall)]


def ratio(g: Graph, layer: Site) -> Value:
    """(f - f0) / (z - z0), or f'(z0)."""
    alone(layer)
    (z, y), (z0, y0) = (layer.x, layer.y), (layer.reference(layer.x), layer.reference(layer.y))
    slope = layer.slope(z0)
    d, e = number(g, z, slope) - number(g, z0, slope), number(g, y, slope) - number(g, y0, slope)
    steep = g.Abs(d) >= TAU
    return g.Where(steep, e / g.Where(steep, d, 1.0), slope)


def number(g: Graph, v: Value, like: Value) -> Value:
    """v; levels of a quantiser as numbers."""
    return v if v.is_float else g.CastLike(v, like)


def alone(layer: Site) -> None:
    if len(layer.xs) > 1:
        names = ", ".join(repr(x.name) for x in layer.xs)
        raise UnsupportedOp(f"{layer.layer.op} is a function of {names} together; the rules are of functions of one tensor")


@rule("deeplift.reveal_cancel", kinds=FUNCTIONS, compares=True, pairs=True)
def reveal_cancel(g: Graph, layer: Site, r: Flow) -> Flows:
    """m+ times the mean slope of f along d+, before and behind d-; m- times that along d-. Shrikumar et al. 2017, section 3.5.2.

    Functions that are not defined everywhere, such as Log, pass by Rescale.
    """
    alone(layer)
    if layer.layer.op in LIMITED:
        made: Flows = either(r, lambda m: rescale(g, layer, m))
        return made
    (z, f), (z0, f0), (a, fa), (c, fc) = corners(g, layer)
    plus = secant(g, layer, (z0, f0), (a, fa)) + secant(g, layer, (c, fc), (z, f))
    minus = secant(g, layer, (z0, f0), (c, fc)) + secant(g, layer, (a, fa), (z, f))
    m, n = sides(r)
    return Pair(m * plus * 0.5, n * minus * 0.5)


@changes(reveal_cancel)
def reveal_cancel_changes(g: Graph, layer: Site) -> Sequence[Parts]:
    """What d+ adds to f, the mean of before and behind d-; what d- adds."""
    if layer.layer.op in LIMITED:
        return rescale_changes(g, layer)
    (_, f), (_, f0), (_, fa), (_, fc) = corners(g, layer)
    return [((fa - f0 + (f - fc)) * 0.5, (fc - f0 + (f - fa)) * 0.5)]


def corners(g: Graph, layer: Site) -> list[tuple[Value, Value]]:
    """(z, f(z)) at the input, at the reference, at the reference and d+, at the reference and d-."""
    z, z0 = layer.x, layer.reference(layer.x)
    elsewhere = [z0 + d for d in parts(g, layer, z)]
    return [(z, layer.y), (z0, layer.reference(layer.y)), *((v, layer.at({z: v})) for v in elsewhere)]


def secant(g: Graph, layer: Site, p: tuple[Value, Value], q: tuple[Value, Value]) -> Value:
    """The mean slope of f from p to q; where they are one point, or rounding leaves no distance, the slope just right of it."""
    d, size = q[0] - p[0], g.Abs(p[0])
    steep = g.Abs(d) >= TAU + 1e-6 * size
    return g.Where(steep, (q[1] - p[1]) / g.Where(steep, d, 1.0), layer.slope(p[0] + (TAU + 1e-6 * size)))


@rule("deeplift.genomics", kinds=FUNCTIONS, compares=True, pairs=True)
def genomics(g: Graph, layer: Site, r: Flow) -> Flows:
    """RevealCancel behind dense layers, Rescale behind convolutions."""
    if behind_dense(layer):
        return reveal_cancel(g, layer, r)
    made: Flows = either(r, lambda m: rescale(g, layer, m))
    return made


@changes(genomics)
def genomics_changes(g: Graph, layer: Site) -> Sequence[Parts]:
    return reveal_cancel_changes(g, layer) if behind_dense(layer) else rescale_changes(g, layer)


def behind_dense(layer: Site) -> bool:
    """Whether the nearest linear layers below are all dense, and there is one."""
    found: list[Layer] = []
    stack, seen = list(layer.xs), set[Value]()
    while stack:
        x = stack.pop()
        made = layer.maker(x)
        if made is None or x in seen:
            continue
        seen.add(x)
        if made.layer.kind == "linear":
            found.append(made.layer)
        else:
            stack.extend(made.xs)
    return bool(found) and all(layer.op not in ("Conv", "ConvTranspose") for layer in found)
