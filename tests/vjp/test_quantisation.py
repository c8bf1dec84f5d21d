"""Straight-through derivatives of quantisation, against a replica in NumPy and against the differences of what it stands for."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx.helper import np_dtype_to_tensor_dtype

from graphattr.errors import UnsupportedOp
from graphattr.graph import Graph, Value
from graphattr.vjp import pullback
from tests.vjp.checking import Array, evaluate, sampler

draw = sampler(23)
SINCE = {"int8": 19, "uint8": 19, "float8_e4m3fn": 19, "float8_e5m2": 19, "int4": 21, "uint4": 21, "int16": 21, "uint16": 21,
         "float4_e2m1fn": 23, "int2": 25, "uint2": 25}
LAYOUTS: dict[str, tuple[dict[str, int], tuple[int, ...]]] = {
    "tensor": ({}, ()), "tensor of one": ({}, (1,)), "channel": ({"axis": 1}, (5,)), "channel from the end": ({"axis": -2}, (5,)),
    "last": ({"axis": 2}, (6,)), "blocks": ({"axis": 2, "block_size": 3}, (4, 5, 2)),
    "ragged blocks": ({"axis": -1, "block_size": 4}, (4, 5, 2)), "blocks of the first": ({"axis": 0, "block_size": 2}, (2, 5, 6)),
}


def spread(v: Array, axis: int = 1, block_size: int = 0) -> Array:
    """A scale or zero point at every element of (4, 5, 6)."""
    if block_size:
        return np.repeat(v, block_size, axis)[:4, :5, :6]
    return np.broadcast_to(v.reshape([-1 if a == axis % 3 else 1 for a in range(3)]) if v.size > 1 else v.reshape(()), (4, 5, 6))


def limits(dtype: Any) -> tuple[float, float]:
    if "int" in dtype.name:
        return float(ml_dtypes.iinfo(dtype).min), float(ml_dtypes.iinfo(dtype).max)
    high = {"float8_e4m3fn": 464.0, "float8_e5m2": 61440.0, "float4_e2m1fn": 7.0}[dtype.name]
    return -high, high


def levels_of(g: Graph, x: Value, scale: Value, zero: Any, dtype: Any, attrs: Any) -> Value:
    if zero is not None:
        return g.QuantizeLinear(x, scale, g.const(zero.astype(dtype)), **attrs)
    return g.QuantizeLinear(x, scale, output_dtype=np_dtype_to_tensor_dtype(dtype), **attrs)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", SINCE)
def test_quantise_is_straight_through(kind: str, layout: str) -> None:
    """dx = dy where the rounded value is inside the range, dscale = dy (level - x / scale), dy level outside."""
    dtype, (attrs, shape) = np.dtype(getattr(ml_dtypes, kind, None) or kind), LAYOUTS[layout]
    low, high = limits(dtype)
    zero = np.round(draw(*shape, low=max(low, -1), high=1)) if "int" in kind else None
    scale = draw(*shape, low=0.5, high=1.5).astype(np.float32)
    x = (draw(4, 5, 6, low=-1.6, high=1.6) * high).astype(np.float32)
    dy = draw(4, 5, 6).astype(np.float32)
    g = Graph(max(SINCE[kind], 21))
    vx, vs, vdy = g.input("x", "float32", ("N", 5, "L")), g.input("s", "float32", shape), g.input("dy", "float32", (4, 5, 6))
    q = levels_of(g, vx, vs, zero, dtype, attrs)
    y = g.DequantizeLinear(q, vs, *([] if zero is None else [g.const(zero.astype(dtype))]), **attrs)
    found = pullback(g, {y: vdy}, [vx, vs])
    wide, offset = spread(scale, **attrs), spread(zero, **attrs) if zero is not None else 0.0
    level = np.round(x / wide) + offset if "int" in kind else x / wide
    inside = (level >= low) & (level <= high)
    assert inside.any()
    assert not inside.all()
    np.testing.assert_allclose(evaluate(g, found[vx], x=x, s=scale, dy=dy), np.where(inside, dy, 0), rtol=1e-6)
    kept = evaluate(g, y, x=x, s=scale) / wide
    dscale = dy * np.where(inside, kept - x / wide, kept)
    got = evaluate(g, found[vs], x=x, s=scale, dy=dy)
    assert got.shape == shape
    want = [dscale[spread(np.arange(scale.size).reshape(shape), **attrs) == i].sum() for i in range(scale.size)]
    np.testing.assert_allclose(got.ravel(), want, rtol=1e-4, atol=1e-3 * np.abs(dscale).max())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["int8", "uint4", "int32"])
def test_dequantised_weights(kind: str, layout: str) -> None:
    """The derivative of (q - zero) scale with respect to scale, by differences, exact for what is linear."""
    attrs, shape = LAYOUTS[layout]
    dtype = np.dtype(getattr(ml_dtypes, kind, None) or kind)
    q = np.round(draw(4, 5, 6, low=0, high=7)).astype(dtype)
    scale, step, dy = (a.astype(np.float32) for a in (draw(*shape), draw(*shape), draw(4, 5, 6)))
    zero = None if kind == "int32" else np.round(draw(*shape, low=0, high=5)).astype(dtype)
    g = Graph(21)
    vs, vdy = g.input("s", "float32", shape), g.input("dy", "float32", (4, 5, 6))
    y = g.DequantizeLinear(g.const(q), vs, *([] if zero is None else [g.const(zero)]), **attrs)
    got = evaluate(g, pullback(g, {y: vdy}, [vs])[vs], s=scale, dy=dy)
    change = evaluate(g, y, s=scale + step) - evaluate(g, y, s=scale - step)
    np.testing.assert_allclose(np.sum(got * step), np.sum(dy * change) / 2, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("opset", [19, 23])
def test_half_precision_scales(opset: int) -> None:
    g = Graph(opset)
    x, dy = g.input("x", "float16", (2, 2)), g.input("dy", "float16", (2, 2))
    scale, zero = g.const(np.float16([0.5, 1.0])), g.const(np.array([1, -1], np.int8))
    y = g.DequantizeLinear(g.QuantizeLinear(x, scale, zero, axis=0), scale, zero, axis=0)
    feeds = {"x": np.float16([[0.1, 200], [-0.3, -200]]), "dy": np.float16([[1, 2], [3, 4]])}
    np.testing.assert_array_equal(evaluate(g, pullback(g, {y: dy}, [x])[x], **feeds), [[1, 0], [3, 0]])


def test_levels_of_unknown_type() -> None:
    g = Graph(21)
    x, zero = g.input("x", "float32", (2,)), g.input("zero", None, ())
    (y,) = g.record("QuantizeLinear", [x, g.const(0.5, "float32"), zero], ["y"], {}, "it")
    with pytest.raises(UnsupportedOp, match=r"'it'.*output_dtype"):
        pullback(g, {y: x}, [x])


def test_dynamic_quantisation_is_the_identity() -> None:
    """x -> levels, scale, zero -> (levels - zero) scale: the range counts as a constant."""
    g = Graph(17)
    x, dy = g.input("x", "float32", (3, 4)), g.input("dy", "float32", (3, 4))
    levels, scale, zero = g.emit("DynamicQuantizeLinear", x, n_outputs=3)
    found = pullback(g, {g.DequantizeLinear(levels, scale, zero): dy}, [x])[x]
    feeds = {"x": draw(3, 4).astype(np.float32), "dy": draw(3, 4).astype(np.float32)}
    np.testing.assert_allclose(evaluate(g, found, **feeds), feeds["dy"], rtol=1e-6)
