"""Products of which one factor at a time is left out: exact where factors are zero, at the price of a further axis."""

from __future__ import annotations

from ..graph import Graph, Node, Value
from .elementwise import operands
from .geometry import extent
from .index import Cotangents, ones_like
from .reduce import along, steps
from .registry import vjp


@vjp("CumProd")
def cumprod(g: Graph, n: Node, dy: Value) -> Cotangents:
    """dx_k = sum over t of dy_t times the product at t without x_k: exact at zeros, quadratic in the size of the axis."""
    (x, axis), a = operands(n), n.attrs
    if isinstance(axis.content, int):
        position, size = along(g, steps(g, x, axis.content), axis.content % x.rank, x.rank), extent(g, x, axis.content % x.rank)
        axis = g.const(axis.content % x.rank + 1)
    else:
        position, size = g.CumSum(g.Cast(ones_like(g, x), to=7), axis, exclusive=1), g.Gather(g.shape(x), g.Unsqueeze(axis, [0]))
        axis = g.Where(axis < 0, axis, axis + 1)
    k = along(g, g.Range(0, g.Squeeze(size, [0]), 1), 0, x.rank + 1)
    own = g.Equal(position, k)
    without = g.CumProd(g.Where(own, 1.0, x), axis, exclusive=a.get("exclusive"), reverse=a.get("reverse"))
    later = g.Sub(k, position) if a.get("reverse") else g.Sub(position, k)
    terms = g.Where(later > 0 if a.get("exclusive") else later >= 0, dy * without, 0.0)
    sums = g.emit("ReduceSum", terms, g.Cast(g.Unsqueeze(axis, [0]), to=7), keepdims=1, out_shape=(None,) * (x.rank + 1))
    return (g.emit("ReduceSum", g.Where(own, sums, 0.0), [0], keepdims=0, out_shape=x.shape),)


@vjp("Det")
def det(g: Graph, n: Node, dy: Value) -> Cotangents:
    """dx = dy times the cofactors of x, formed as determinants of its minors: exact for singular x; costs size^5."""
    (x,) = operands(n)
    size, last = extent(g, x, x.rank - 1), x.rank - 1
    if size.content == (1,):
        return (g.Unsqueeze(dy, [-2, -1]),)
    k, m = steps(g, x, last), g.Range(0, g.Squeeze(size - 1, [0]), 1)
    others = m + g.Cast(g.Unsqueeze(k, [1]) <= m, to=7)  # row i: 0, 1, ... without i
    minors = g.Gather(g.Gather(x, others, axis=last - 1), others, axis=last + 1)  # (.., i, rows, j, columns)
    minors = g.Transpose(minors, perm=[*range(last), last + 1, last, last + 2])
    sign = g.Cast(1 - 2 * g.Mod(g.Unsqueeze(k, [1]) + k, 2), to=1)
    return (g.Unsqueeze(dy, [-2, -1]) * g.Det(minors) * g.CastLike(sign, x),)
