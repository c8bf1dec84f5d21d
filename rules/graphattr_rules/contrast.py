"""Contrastive readings: what speaks for this class and not for the others."""

from typing import Literal

from graphattr.rule import Graph, Site, Value, finish, per_sample_sum, rule

from .lrp import negative, positive, share


@finish("contrast")
def contrast(g: Graph, x: Value, maps: tuple[Value, ...], *, rectify: Literal["first", "difference", "none"] = "first") -> Value:
    """With n(r) = r / sum r per sample: "first" max(0, n(r1)) - n(r2), "difference" max(0, n(r1) - n(r2)), "none" n(r1) - n(r2).

    Gu et al. 2018; Sixt et al. 2020, Eq. 15 ("first").
    """
    one, two = (normalised(g, r) for r in maps)
    if rectify == "difference":
        return g.Relu(one - two)
    return (g.Relu(one) if rectify == "first" else one) - two


def normalised(g: Graph, r: Value) -> Value:
    whole = per_sample_sum(g, r, keepdims=True)
    vanishes = g.Equal(whole, 0.0)
    return g.Where(vanishes, 0.0, r / g.Where(vanishes, 1.0, whole))


@rule("excitation.contrastive", kinds={"linear"})
def excitation_contrastive(g: Graph, layer: Site, r: Value, *, eps: float = 1e-6) -> Value:
    """Excitation with the weights minus excitation with the negated weights, biases ignored. Zhang et al. 2018; sums to 0."""
    x, w = layer.x, layer.w
    xp, xn = positive(g, layer, x), negative(g, layer, x)
    wp, wn = g.Relu(w), g.Min(w, 0.0)
    return share(g, layer, r, [(xp, wp), (xn, wn)], None, eps) + share(g, layer, -r, [(xp, -wn), (xn, -wp)], None, eps)  # type: ignore[operator]
