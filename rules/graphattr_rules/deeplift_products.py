"""DeepLIFT at products of data, quotients, softmaxes and normalisations: each is complete, as products and quotients are."""

from graphattr.errors import UnsupportedOp
from graphattr.rule import Flow, Flows, Graph, Out, Site, Value, reduction, rule

from .deeplift_functions import NEAR
from .deeplift_parts import change, changes, inside, steady, through, through_changes


@rule("deeplift.bilinear", kinds={"product", "bilinear", "quotient"}, compares=True)
@inside("product", "bilinear")
def bilinear(g: Graph, layer: Site, r: Value) -> Out:
    """m_a = m (b + b0) / 2, m_b = m (a + a0) / 2: the mean of the derivatives at the input and at the reference."""
    steady(layer)
    node = layer.layer.nodes[0]
    if node.op == "Einsum" and sum(v in layer.xs for v in node.inputs) > 2:
        raise UnsupportedOp(f"{node!r} multiplies more than two data tensors; write it as products of two")
    return tuple((a + b) * 0.5 for a, b in zip(layer.vjps(r), layer.vjps_at_reference(r), strict=True))


@rule("deeplift.quotient", kinds={"quotient"}, compares=True)
@inside("quotient")
def quotient(g: Graph, layer: Site, r: Value) -> Out:
    """a / b as a times q = 1 / b: m_a = m (q + q0) / 2, m_b = -m (a + a0) / 2 q q0."""
    node = layer.layer.nodes[0]
    if node.op != "Div":
        return bilinear(g, layer, r)
    a, b = (v for v in node.inputs if v is not None)
    a0, b0 = layer.reference(a), layer.reference(b)
    shares = [r * (1.0 / b + 1.0 / b0) * 0.5, r * (a + a0) * -0.5 / (b * b0)]
    if len(layer.xs) == 1:  # a / a
        return shares[0] + shares[1]
    return tuple(shares[0] if x is a else shares[1] for x in layer.xs)


@rule("deeplift.softmax", kinds={"softmax"}, compares=True)
@inside("softmax")
def softmax(g: Graph, layer: Site, r: Value) -> Value:
    """e = exp(u) by Rescale, times q = 1 / sum e: m_u = k / 2 (q (m - <s0, m>) + q0 (m - <s, m>)), k the ratio of exp."""
    k, (q, q0), axis = exponentials(g, layer)
    s, s0 = layer.y, layer.reference(layer.y)
    inner, inner0 = (g.ReduceSum(r * v, [axis], keepdims=1) for v in (s, s0))
    return k * 0.5 * (q * (r - inner0) + q0 * (r - inner))


@rule("deeplift.log_softmax", kinds={"other"}, compares=True)
def log_softmax(g: Graph, layer: Site, r: Value) -> Value:
    """u - log sum e, e = exp(u): m_u = m - k sum m times the ratio of the logarithm."""
    k, (q, q0), axis = exponentials(g, layer)
    d, t = 1.0 / q - 1.0 / q0, (q0 - q) / (q0 + q)
    far, series = g.Abs(t) >= NEAR, (t * t * (t * t * 0.2 + 1.0 / 3.0) + 1.0) * 2.0 / (1.0 / q + 1.0 / q0)
    log = g.Where(far, g.Log(q0 / q) / g.Where(far, d, 1.0), series)
    return r - k * log * g.ReduceSum(r, [axis], keepdims=1)


def exponentials(g: Graph, layer: Site) -> tuple[Value, tuple[Value, Value], int]:
    """The ratio of exp, 1 / sum e at the input and at the reference, and the axis; all behind one factor for both."""
    u, u0, axis = layer.x, layer.reference(layer.x), layer.layer.nodes[0].attrs.get("axis", -1)
    top = g.Max(*(reduction(g, "ReduceMax", v, [axis]) for v in (u, u0)))
    e, e0, d = g.Exp(u - top), g.Exp(u0 - top), change(layer, u)
    d = g.Where(g.IsNaN(d), 0.0, d)  # both are -inf
    far, near = g.Abs(d) >= NEAR, g.Exp((u + u0) * 0.5 - top) * (d * d * (1.0 / 24.0) + 1.0)
    k = g.Where(far, (e - e0) / g.Where(far, d, 1.0), near)
    return k, (1.0 / g.ReduceSum(e, [axis], keepdims=1), 1.0 / g.ReduceSum(e0, [axis], keepdims=1)), axis


@rule("deeplift.pieces", kinds={"norm", "mean", "other"}, compares=True, pairs=True)
def pieces(g: Graph, layer: Site, r: Flow) -> Flows:
    """The layer in elementary operators: means, sums, products, quotients by the rules above, roots by Rescale."""
    return through(g, layer, r)


changes(pieces)(through_changes)
