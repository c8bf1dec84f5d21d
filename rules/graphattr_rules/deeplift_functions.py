"""DeepLIFT at functions of one element: Rescale, RevealCancel, and the choice between them."""

from collections.abc import Sequence
from typing import Any

from graphattr.errors import UnsupportedOp
from graphattr.rule import Flow, Flows, Graph, Layer, Pair, Site, Value, rule, sides

from .deeplift_parts import Parts, changes, either, inside, parts

TAU = 1e-7  # a change smaller than this is none
NEAR = 0.1  # from here down two derivatives say the mean slope of an analytic function better than rounded values of it do
GAUSS = 0.5 / 3**0.5
ANALYTIC = {"Sigmoid", "Tanh", "Exp", "Erf", "Softplus", "Gelu", "Swish", "Mish", "Sin", "Cos", "Atan", "Sinh", "Cosh", "Asinh"}
ARITHMETIC = {"Add", "Sub", "Mul", "Div", "Neg", "Cast"}
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
    z0, y0, op = layer.reference(layer.x), layer.reference(layer.y), layer.layer.op
    if is_analytic(layer):
        return secant(g, layer, (z0, y0), (layer.x, layer.y))
    if op == "Sqrt":  # a - b = (sqrt a - sqrt b) (sqrt a + sqrt b), and the like: no difference, no rounding
        whole = layer.y + y0
        return g.Where(whole > 0.0, 1.0 / g.Where(whole > 0.0, whole, 1.0), 0.0)
    if op in ("Reciprocal", "Div"):
        return -layer.y / z0
    slope = layer.slope(z0)
    d, e = (number(g, v, slope) - number(g, v0, slope) for v, v0 in ((layer.x, z0), (layer.y, y0)))
    steep = g.Abs(d) >= TAU
    return g.Where(steep, e / g.Where(steep, d, 1.0), slope)


def number(g: Graph, v: Value, like: Value) -> Value:
    """v; levels of a quantiser as numbers."""
    return v if v.is_float else g.CastLike(v, like)


def is_analytic(layer: Site) -> bool:
    """Whether the function has no kink and no pole, and is curved on a scale of about 1."""
    powers = [n.inputs[1] for n in layer.layer.nodes if n.op == "Pow"]
    exponents = [None if p is None else p.data for p in powers]
    whole = all(k is not None and bool((k == k.round()).all() and (k > 0).all()) for k in exponents)
    ops = {n.op for n in layer.layer.nodes} - {"Pow"}
    return whole and bool(ops & ANALYTIC) and ops <= ANALYTIC | ARITHMETIC


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
    """(z, f(z)) at z0 + d+ + d- (the input, but for maxima that pass the winner's change only), z0, z0 + d+ and z0 + d-."""
    z0, (rise, fall) = layer.reference(layer.x), parts(g, layer, layer.x)
    elsewhere = [(v, layer.at({layer.x: v})) for v in (z0 + (rise + fall), z0 + rise, z0 + fall)]
    return [elsewhere[0], (z0, layer.reference(layer.y)), *elsewhere[1:]]


def secant(g: Graph, layer: Site, p: tuple[Value, Value], q: tuple[Value, Value]) -> Value:
    """The mean slope of f from p to q; where they are one point, or rounding leaves no distance, the slope just right of it."""
    d, size = q[0] - p[0], g.Abs(p[0])
    if is_analytic(layer):
        far, middle = g.Abs(d) >= NEAR, p[0] + d * 0.5
        mean = (layer.slope(middle - d * GAUSS) + layer.slope(middle + d * GAUSS)) * 0.5
        return g.Where(far, (q[1] - p[1]) / g.Where(far, d, 1.0), mean)
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
