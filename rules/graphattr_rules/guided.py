"""Modified gradients at rectifiers: Guided Backprop, Deconvnet, RectGrad."""

from typing import Literal

from graphattr.rule import Graph, Out, Site, Value, rule

from .quantile import quantile


@rule("guided", kinds={"relu"})
def guided(g: Graph, layer: Site, r: Value) -> Out:
    """R_z = f'(z) max(R, 0). Springenberg et al. 2015."""
    return layer.vjps(g.Relu(r))


@rule("deconvnet", kinds={"relu"})
def deconvnet(g: Graph, layer: Site, r: Value) -> Value:
    """R_z = max(R, 0), whatever the forward pass did. Zeiler and Fergus 2014."""
    return g.Relu(r)


@rule("rectgrad", kinds={"relu"})
def rectgrad(g: Graph, layer: Site, r: Value, *, q: float = 98.0, interpolation: Literal["linear", "nearest"] = "linear") -> Out:
    """R_z = f'(z) R where a R exceeds its q-th percentile over the sample's entries, else 0. Kim et al. 2019."""
    t = layer.y * r
    return layer.vjps(g.Where(t > quantile(g, t, q, interpolation), r, 0.0))
