"""Quantisation, straight through: levels count as real numbers, rounding as the identity, saturation as Clip."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from ..errors import UnsupportedOp
from ..graph import Graph, Node, Value
from .elementwise import typed_like
from .geometry import extent
from .registry import fit, pullback, vjp


@vjp("DequantizeLinear")
def dequantize(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """y = (x - zero) scale, with x taken for a real number: dx = dy scale, dscale = dy (x - zero)."""
    x, scale, zero = _operands(n)
    dscale = None
    if 1 in n.needs:
        level = typed_like(g, x, dy)
        if zero is not None:
            level = level - spread(g, n, typed_like(g, zero, dy))
        dscale = gathered(g, n, dy * level, typed_like(g, scale, dy))
    return (dy * spread(g, n, typed_like(g, scale, dy)), dscale)


@vjp("QuantizeLinear")
def quantize(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """y = saturate(round(x / scale) + zero): dx = dy / scale where y is not saturated, else 0; dscale = -dx x / scale."""
    x, scale, zero = _operands(n)
    scale = typed_like(g, scale, x)
    step = spread(g, n, scale)
    low, high, whole = limits(n)
    level = g.Round(x / step) if whole else x / step
    if whole and zero is not None:
        level = level + spread(g, n, typed_like(g, zero, x))
    dx = g.Where(g.And(level >= low, level <= high), dy / step, 0.0)
    return (dx, gathered(g, n, -(dx * (x / step)), scale) if 1 in n.needs else None)


@vjp("DynamicQuantizeLinear")
def dynamic_quantize(g: Graph, n: Node, dy: Value) -> tuple[Value, ...]:
    """Nothing saturates, and the range counts as a constant (CONSTANT_OUTPUTS): dx = dy / scale."""
    return (dy / n.outputs[1],)


def limits(n: Node) -> tuple[float, float, bool]:
    """(lowest, highest level that is not saturated, whether levels are whole): half a step beyond the largest of a float type."""
    y = n.outputs[0].dtype
    if y is None:
        raise UnsupportedOp(f"{n!r}: the type of its levels is unknown; give it a zero point, or set output_dtype (opset 21)")
    if "int" in y.name:
        info: Any = ml_dtypes.iinfo(y)  # type: ignore[no-untyped-call]
        return float(info.min), float(info.max), True
    largest = ml_dtypes.finfo(y).max  # type: ignore[no-untyped-call]
    high = 1.5 * float(largest) - 0.5 * float(np.nextafter(largest, y.type(0)))
    return -high, high, False


def spread(g: Graph, n: Node, v: Value) -> Value:
    """A scale or zero point, shaped to be broadcast to x: for the whole tensor, along the node's axis, or in blocks of it."""
    x, axis, block = _operands(n)[0], n.attrs.get("axis", 1), n.attrs.get("block_size", 0)
    if not block:
        return v if v.rank == 0 or v.shape == (1,) else g.Reshape(v, [-1] + [1] * (x.rank - 1 - axis % x.rank))
    size = x.shape[axis] if x.shape is not None else None
    steps = np.arange(size) if isinstance(size, int) else g.Range(0, g.Squeeze(extent(g, x, axis % x.rank), [0]), 1)
    where = g.const(steps // block) if isinstance(steps, np.ndarray) else g.Div(steps, block)
    return g.emit("Gather", v, where, axis=axis % x.rank, out_shape=x.shape)


def gathered(g: Graph, n: Node, dv: Value, v: Value) -> Value:
    """The adjoint of `spread`."""
    wide = spread(g, n, v)
    made = g.producer(wide)
    if wide is v or made is None:
        return dv
    return pullback(g, {wide: fit(g, dv, wide)}, [v], [made])[v]


def _operands(n: Node) -> tuple[Value, Value, Value | None]:
    x, scale, zero = (*n.inputs, None)[:3]
    assert x is not None
    assert scale is not None
    return x, scale, zero
