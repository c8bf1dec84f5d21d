"""Softmax and normalisations against central differences, registered or by way of their function bodies."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphattr.errors import UnsupportedOp
from graphattr.graph import Graph, Value
from graphattr.vjp import VJPS, pullback
from tests.vjp.checking import Case, case, check_case, evaluate, gradient, rows, sampler

draw = sampler(3)
BY_BODY = ["GroupNormalization", "Shrink"]


def layer(n: int, *, bias: bool = True, **attrs: Any) -> Any:
    """LayerNormalization with its first n outputs used."""
    def build(g: Graph, x: Any, scale: Any, b: Any = None) -> Any:
        inputs = (x, scale, b) if bias else (x, scale)
        return g.emit("LayerNormalization", *inputs, n_outputs=n, **attrs)
    return build


def batch(g: Graph, x: Any, scale: Any, b: Any, mean: Any, variance: Any) -> Any:
    return g.BatchNormalization(x, scale, b, mean, variance, epsilon=1e-3)


def group_18(g: Graph, x: Any, scale: Any, b: Any) -> Any:
    """Scale and bias per group; ONNX withdrew this version, so only a file can bring it in."""
    return g.record("GroupNormalization", (x, scale, b), ("y",), {"num_groups": 2, "epsilon": 0.1}, "group",
                    types={"y": (x.dtype, x.shape)})[0]


def channels(n: int = 3) -> np.ndarray[Any, Any]:
    return draw(n, low=0.5, high=1.5)


CASES = [
    *(case(op, lambda g, x, op=op: g.emit(op, x), draw(2, 3, 4)) for op in ("Softmax", "LogSoftmax")),
    *(case(f"{op} axis={axis}", lambda g, x, op=op, axis=axis: g.emit(op, x, axis=axis), draw(2, 3, 4))
      for op in ("Softmax", "LogSoftmax") for axis in (0, 1, -2)),
    *(case(f"LpNormalization p={p} axis={axis}", lambda g, x, p=p, axis=axis: g.LpNormalization(x, p=p, axis=axis), draw(2, 3, 4),
           opsets=(17, 22), half=False) for p in (1, 2) for axis in (-1, 1)),
    *(case(f"LRN size={size}", lambda g, x, size=size: g.LRN(x, size=size, alpha=0.5, beta=0.6, bias=1.5), draw(2, 5, 2, 3),
           dtype=np.float32) for size in (1, 3, 9)),
    case("LRN defaults", lambda g, x: g.LRN(x, size=3), draw(2, 4, 3, 1), dtype=np.float32),
    case("LayerNormalization", layer(1), draw(2, 3, 4), draw(4), draw(4), opsets=(17, 18, 23)),
    case("LayerNormalization axis=1", layer(1, axis=1, epsilon=0.1), draw(2, 3, 4), draw(3, 4), draw(3, 4)),
    case("LayerNormalization axis=-2, scale of one axis", layer(1, axis=-2, epsilon=0.1), draw(2, 3, 4), draw(4), draw(4)),
    case("LayerNormalization without bias", layer(1, bias=False), draw(2, 3, 4), draw(4)),
    case("LayerNormalization of x alone", lambda g, x: g.LayerNormalization(x, np.ones(4, x.dtype)), draw(2, 3, 4)),
    case("LayerNormalization and its statistics", layer(3), draw(2, 3, 4), draw(4), draw(4), dtype=np.float32),
    case("InstanceNormalization", lambda g, *x: g.InstanceNormalization(*x, epsilon=0.1), draw(2, 3, 2, 4),
         channels(), channels(), opsets=(17, 22)),
    case("InstanceNormalization of sequences", lambda g, *x: g.InstanceNormalization(*x), draw(2, 3, 5), channels(), channels()),
    case("GroupNormalization", group_18, draw(2, 4, 3, 2), channels(2), channels(2), opsets=(18,)),
    case("GroupNormalization by channel", lambda g, *x: g.GroupNormalization(*x, num_groups=2, stash_type=11), draw(2, 4, 3, 2),
         channels(4), channels(4), opsets=(21, 23)),
    case("RMSNormalization", lambda g, *x: g.RMSNormalization(*x, stash_type=11), draw(2, 3, 4), draw(4), opsets=(23, 24)),
    case("RMSNormalization axis=1", lambda g, *x: g.RMSNormalization(*x, axis=1, stash_type=11), draw(2, 3, 4), draw(3, 4),
         opsets=(23,)),
    case("MeanVarianceNormalization", lambda g, x: g.MeanVarianceNormalization(x), draw(2, 3, 2, 4), opsets=(17, 18),
         dtype=np.float32),
    case("MeanVarianceNormalization axes", lambda g, x: g.MeanVarianceNormalization(x, axes=[2]), draw(2, 3, 4), opsets=(17, 18),
         dtype=np.float32),
    case("BatchNormalization", batch, draw(2, 3, 2, 4), channels(), channels(), channels(), channels(), opsets=(17, 21)),
    case("BatchNormalization of features", batch, draw(5, 3), channels(), channels(), channels(), channels()),
    case("BatchNormalization of x alone", batch, draw(2, 3, 4), channels(), channels(), channels(), channels(), wrt=(0,)),
]


@pytest.mark.parametrize(("c", "opset"), rows(CASES))
def test_derivatives(c: Case, opset: int) -> None:
    check_case(c, opset)


def test_some_are_differentiated_by_their_bodies() -> None:
    assert not set(BY_BODY) & set(VJPS)  # Shrink: see test_elementwise.py


def test_softmax_of_distant_logits() -> None:
    x = np.array([[-np.inf, 0, 1000]])
    np.testing.assert_array_equal(gradient(lambda g, x: g.Softmax(x), x, dy=np.array([[1.0, 2, 3]]))[0], [[0, 0, 0]])
    np.testing.assert_array_equal(gradient(lambda g, x: g.LogSoftmax(x), x, dy=np.array([[0.0, 2, 3]]))[0], [[0, 2, -2]])


@pytest.mark.parametrize("p", [1, 2])
def test_lp_normalization_of_zeros(p: int) -> None:
    x = np.array([[0.0, 0], [3, 4]])
    dx = gradient(lambda g, x: g.LpNormalization(x, p=p), x, dy=np.array([[1.0, 1], [1, 1]]))[0]
    np.testing.assert_array_equal(dx[0], [0, 0])
    assert np.isfinite(dx).all()


@pytest.mark.parametrize("size", [2, 3, 4])
def test_lrn_windows(size: int) -> None:
    """Against the formula itself: ONNX Runtime takes odd sizes only, the reference leaves most channels out."""
    def lrn(x: np.ndarray[Any, Any]) -> Any:
        d = [1.5 + 0.5 / size * (x[:, max(0, c - (size - 1) // 2):c + size // 2 + 1]**2).sum(1) for c in range(x.shape[1])]
        return x / np.stack(d, 1)**0.75
    g = Graph(17)
    x, dy = draw(2, 5, 2, 3), draw(2, 5, 2, 3)
    v, seed = g.input("x", "float64", x.shape), g.input("dy", "float64", x.shape)
    dx = evaluate(g, pullback(g, {g.LRN(v, size=size, alpha=0.5, bias=1.5): seed}, [v])[v], x=x, dy=dy)
    u = draw(2, 5, 2, 3)
    np.testing.assert_allclose((dx * u).sum(), (dy * (lrn(x + 1e-5 * u) - lrn(x - 1e-5 * u))).sum() / 2e-5, rtol=1e-7)


def test_batch_normalization_in_mixed_precision() -> None:
    g = Graph(17)
    x = g.input("x", "float16", ("N", 3, 4))
    scale, b, mean, variance = (g.input(v, "float32" if v in "mv" else "float16", (3,)) for v in "sbmv")
    y = g.BatchNormalization(x, scale, b, mean, variance)
    found = pullback(g, {y: y}, g.inputs)
    assert {v.name: str(dv.dtype) for v, dv in found.items()} == {
        "x": "float16", "s": "float16", "b": "float16", "m": "float32", "v": "float32"}


def test_batch_normalization_in_training_is_refused() -> None:
    g = Graph(17)
    x, *rest = g.input("x", "float32", (2, 3)), *(g.input(v, "float32", (3,)) for v in "sbmv")
    y, *_ = g.emit("BatchNormalization", x, *rest, n_outputs=3, training_mode=1)
    with pytest.raises(UnsupportedOp, match="inference"):
        pullback(g, {y: y}, [x])


def test_rows_of_softmax_that_a_where_replaces_have_no_part_in_the_derivative() -> None:
    """A row that is masked out gives NaN, which models replace; 0 times NaN must not come back."""
    x = draw(2, 3)
    x[1] = -np.inf

    def masked(g: Graph, v: Value) -> Value:
        p = g.Softmax(v, axis=-1)
        return g.Where(g.IsNaN(p), 0.0, p)

    dy = draw(2, 3)
    (dx,) = gradient(masked, x, dy=dy)
    p = np.exp(x[0]) / np.exp(x[0]).sum()
    np.testing.assert_allclose(dx, [p * (dy[0] - (p * dy[0]).sum()), [0, 0, 0]], atol=1e-12)


def test_a_cotangent_of_another_output_than_the_first_is_not_dropped() -> None:
    def statistics(g: Graph, x: Value) -> Value:
        ones = [g.const(np.ones(2)) for _ in range(4)]
        return g.emit("BatchNormalization", x, *ones, n_outputs=3, training_mode=1)[1]

    with pytest.raises(UnsupportedOp, match="only of the first"):
        gradient(statistics, draw(3, 2))
