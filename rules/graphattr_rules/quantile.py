"""A percentile over the entries of each sample, with the index computed in whole numbers."""

import math
from fractions import Fraction
from typing import Literal

from graphattr.errors import MethodError
from graphattr.rule import Graph, Value


def quantile(g: Graph, t: Value, q: float, interpolation: Literal["linear", "nearest"] = "linear") -> Value:
    """The q-th percentile of each sample of t, shape [N, 1, ...]; linear: v[lo] + frac (v[lo+1] - v[lo]) on the sorted entries.

    The virtual index q (n - 1) / 100 is exact: at build time when n is static, else by int64 nodes in the graph.
    """
    if not 0 <= q <= 100:
        raise MethodError(f"q is a percentile from 0 to 100, not {q}")
    share = Fraction(repr(float(q))) / 100
    flat = g.Reshape(t, [0, -1])
    size = flat.shape[1] if flat.shape is not None else None
    entries = g.Slice(g.shape(flat), [1], [2])
    if isinstance(size, int):
        index = share * (size - 1)
        low = math.floor(index)
        low, frac = (round(index), Fraction(0)) if interpolation == "nearest" else (low, index - low)
        keep, fraction = g.const([size - low], "int64"), g.const(float(frac), t.dtype)
        whole = frac == 0
    else:
        top, bottom = g.const([share.numerator], "int64"), g.const([share.denominator], "int64")
        product = (entries - 1) * top
        start = product / bottom if interpolation == "linear" else _rounded(g, product, bottom)
        keep = entries - start
        fraction = g.CastLike(g.Cast(product - start * bottom, to=11), t) / float(share.denominator)
        whole = interpolation == "nearest"
    largest, _ = g.TopK(flat, keep, axis=1, largest=1, sorted=1, n_outputs=2)  # v[lo:] in descending order
    at_low = g.Slice(largest, [-1], [2**62], [1])
    result = at_low
    if not whole:
        above = g.Slice(largest, g.Max(keep - 2, g.const([0], "int64")), g.Max(keep - 1, g.const([1], "int64")), [1])
        result = at_low + fraction * (above - at_low)
    return g.Reshape(result, [0] + [1] * (t.rank - 1))


def _rounded(g: Graph, p: Value, q: Value) -> Value:
    """p / q to the nearest whole number, halves to the even one (as NumPy and TensorFlow round)."""
    twice = p * 2 + q
    up = twice / (q * 2)
    half = g.Equal(up * (q * 2), twice)
    return g.Where(half, up - g.Mod(up, 2), up)


def order_statistics(g: Graph, rows: Value, low: Value) -> tuple[Value, Value]:
    """(v[low], v[low + 1]) of each row sorted, [N, 1] each; low: int64 [1]. v[low + 1] is v[low] where it is the last.

    Nothing is sorted whole: they are the two smallest of the largest, which TopK selects without an order.
    """
    keep = g.Slice(g.shape(rows), [1], [2]) - low
    largest, _ = g.TopK(rows, keep, axis=1, largest=1, sorted=0, n_outputs=2)
    two, _ = g.TopK(largest, g.Min(keep, 2), axis=1, largest=0, sorted=1, n_outputs=2)
    return g.Slice(two, [0], [1], [1]), g.Slice(two, [-1], [2**62], [1])
