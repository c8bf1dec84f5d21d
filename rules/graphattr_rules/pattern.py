"""PatternNet and PatternAttribution: the backward pass of the gradient, with learned patterns in place of weights."""

from graphattr.rule import Graph, Site, Value, per_sample, rule


@rule("pattern.net", kinds={"linear"})
def net(g: Graph, layer: Site, r: Value, *, project: bool = False) -> Value:
    """R_x = f.vjp(R; a): what of x made the unit respond. Kindermans et al. 2018, Eq. 10. project: R / max |R| comes in."""
    return layer.vjp(projected(g, r) if project else r, layer.x, layer.learned("pattern"))


@rule("pattern.attribution", kinds={"linear"})
def attribution(g: Graph, layer: Site, r: Value, *, project: bool = False) -> Value:
    """R_x = f.vjp(R; w a): the sum of r is kept, since w a = 1. Kindermans et al. 2018, Eq. 11. project: R / max |R| comes in."""
    return layer.vjp(projected(g, r) if project else r, layer.x, layer.w * layer.learned("pattern"))


def projected(g: Graph, r: Value) -> Value:
    """R / max |R| per sample; zeros stay."""
    most = per_sample(g, "ReduceMax", g.Abs(r))
    return r / g.Where(g.Equal(most, 0.0), 1.0, most)
