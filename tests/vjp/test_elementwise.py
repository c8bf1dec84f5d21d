"""Elementwise operators against central differences, and exactly at their kinks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphattr.errors import UnsupportedOp
from graphattr.graph import Graph
from graphattr.vjp import pullback
from tests.vjp.checking import Case, case, check_case, gradient, rows, sampler

draw = sampler(1)


def unary(op: str, low: float = -2.0, high: float = 2.0, **attrs: Any) -> Case:
    name = op + "".join(f" {k}={v}" for k, v in attrs.items())
    return case(name, lambda g, x: g.emit(op, x, **attrs), draw(3, 4, low=low, high=high))


CASES = [
    *(unary(op) for op in ["Relu", "LeakyRelu", "Elu", "Selu", "HardSigmoid", "Sigmoid", "Tanh", "Softplus", "Softsign", "Erf",
                           "Exp", "Abs", "Neg", "Sin", "Cos", "Atan", "Sinh", "Cosh", "Asinh", "Identity"]),
    *(unary(op, -0.9, 0.9) for op in ["Asin", "Acos", "Atanh", "Tan"]),
    *(unary(op, 0.3, 2) for op in ["Log", "Sqrt", "Reciprocal"]),
    unary("Acosh", 1.2, 3),
    unary("LeakyRelu", alpha=0.25), unary("Elu", alpha=1.5), unary("Selu", alpha=1.5, gamma=0.75),
    unary("ThresholdedRelu"), unary("ThresholdedRelu", alpha=0.25),
    unary("HardSigmoid", alpha=0.5, beta=0.25), unary("HardSwish", -5, 5),
    case("Mish", lambda g, x: g.Mish(x), draw(3, 4, low=-5, high=5), opsets=(18, 22)),
    case("Gelu", lambda g, x: g.Gelu(x), draw(3, 4, low=-4, high=4), opsets=(20,)),
    case("Gelu tanh", lambda g, x: g.Gelu(x, approximate="tanh"), draw(3, 4, low=-4, high=4), opsets=(20,)),
    case("Swish", lambda g, x: g.Swish(x), draw(3, 4, low=-4, high=4), opsets=(24,)),
    case("Swish alpha", lambda g, x: g.Swish(x, alpha=1.5), draw(3, 4, low=-4, high=4), opsets=(24,)),
    case("Celu", lambda g, x: g.Celu(x, alpha=1.5), draw(3, 4), dtype=np.float32),
    case("Shrink, by its body", lambda g, x: g.Shrink(x, lambd=0.5, bias=0.25), [[-2.0, -1.0, -0.2], [0.1, 0.3, 1.5]],
         opsets=(17, 18), dtype=np.float32),
    case("PRelu", lambda g, x, slope: g.PRelu(x, slope), draw(2, 3, 4), draw(3, 1)),
    case("PRelu full", lambda g, x, slope: g.PRelu(x, slope), draw(2, 3), draw(2, 3)),
    case("Clip", lambda g, x: g.Clip(x, -0.5, 0.75), draw(3, 4)),
    case("Clip below", lambda g, x: g.Clip(x, 0.25), draw(3, 4)),
    case("Clip above", lambda g, x: g.Clip(x, None, 0.25), draw(3, 4)),
    case("Clip bounds", lambda g, x, low, high: g.Clip(x, low, high), draw(3, 4), np.float64(-0.6), np.float64(0.9)),
    case("Clip crossed bounds", lambda g, x, low, high: g.Clip(x, low, high), draw(3, 4), np.float64(0.6), np.float64(-0.2)),
    case("Add", lambda g, x, y: g.Add(x, y), draw(2, 3, 4), draw(3, 1)),
    case("Sub", lambda g, x, y: g.Sub(x, y), draw(2, 3, 4), draw(3, 1)),
    case("Mul", lambda g, x, y: g.Mul(x, y), draw(2, 3, 4), draw(3, 1)),
    case("Div", lambda g, x, y: g.Div(x, y), draw(2, 3, 4), draw(3, 1, low=0.5)),
    case("Mul, both broadcast", lambda g, x, y: g.Mul(x, y), draw(3, 1), draw(1, 4)),
    case("Mul, by itself", lambda g, x: g.Mul(x, x), draw(3, 4)),
    case("Mul, both symbolic", lambda g, x, y: g.Mul(x, y), draw(3, 4), draw(3, 4), dynamic=(0, 1)),
    case("Sum", lambda g, *x: g.Sum(*x), draw(2, 3), draw(3), draw(2, 1)),
    case("Mean", lambda g, *x: g.Mean(*x), draw(2, 3), draw(3), draw(2, 1)),
    case("Max", lambda g, *x: g.Max(*x), draw(4, 3), draw(3), draw(4, 1)),
    case("Min", lambda g, *x: g.Min(*x), draw(4, 3), draw(3), draw(4, 1)),
    case("Max of one", lambda g, x: g.Max(x), draw(4, 3)),
    case("Mod", lambda g, x, y: g.Mod(x, y, fmod=1), draw(3, 4, low=-5, high=5), draw(4, low=0.7, high=1.5)),
    case("Pow", lambda g, x, p: g.Pow(x, p), draw(3, 4, low=0.3), draw(4)),
    *(case(f"Pow {p}", lambda g, x, p=p: g.Pow(x, p), draw(3, 4, low=0.3)) for p in (-1.0, 0.0, 0.5, 1.0, 2.0, 2.5, 3.0)),
    case("Pow of integers", lambda g, x, p: g.Pow(x, p), draw(3, 4), np.array([0, 1, 2, 3])),
    case("Pow of an integer", lambda g, x: g.Pow(x, g.const(3, "int64")), draw(3, 4)),
    case("Where", lambda g, c, a, b: g.Where(c, a, b), draw(3, 4) > 0, draw(3, 1), draw(4)),
    case("Cast", lambda g, x: g.Mul(g.Cast(x, to=11), 3.0), draw(3, 4), half=False),
    case("CastLike", lambda g, x, y: g.CastLike(x, y), draw(3, 4), draw(2), wrt=(0,)),
    case("Dropout", lambda g, x: g.Dropout(x, 0.5), draw(3, 4)),
    case("Dropout with mask", lambda g, x: g.emit("Dropout", x, 0.5, g.const(False), n_outputs=2), draw(3, 4)),
]
ARITY = {"Elu": 1, "HardSwish": 1, "Identity": 1, "Softplus": 1, "Atanh": 1, "Dropout": 1, "PRelu": 2, "Pow": 2, "Clip": 1,
         "Max": 2, "Mean": 3}
CASES += [case(f"{op} at a new opset", lambda g, *x, op=op: g.emit(op, *x), *(draw(2, 3, low=0.3, high=0.9) for _ in range(k)),
               opsets=(21, 23)) for op, k in ARITY.items()]


@pytest.mark.parametrize(("c", "opset"), rows(CASES))
def test_derivatives(c: Case, opset: int) -> None:
    check_case(c, opset)


KINKS = [
    ("Relu", {}, [0, -0.0, 1], [0, 0, 1]),
    ("LeakyRelu", {"alpha": 0.25}, [0, 1], [0.25, 1]),
    ("Elu", {"alpha": 0.5}, [0, 900], [0.5, 1]),
    ("Abs", {}, [-1, 0, 1], [-1, 0, 1]),
    ("ThresholdedRelu", {"alpha": 0.5}, [0.5, 0.75], [0, 1]),
    ("HardSigmoid", {"alpha": 0.5, "beta": 0.5}, [-1, 0, 1], [0, 0.5, 0]),
    ("HardSwish", {}, [-3, 0, 3, 9], [0, 0.5, 1, 1]),
    ("Softsign", {}, [0], [1]),
    ("Sigmoid", {}, [-900, 900], [0, 0]),
    ("Softplus", {}, [-900, 900], [0, 1]),
    ("Tanh", {}, [-900, 900], [0, 0]),
    ("Atan", {}, [1e200], [0]),
    ("Asinh", {}, [0.0], [1]),
]


@pytest.mark.filterwarnings("ignore:overflow")  # in the reference
@pytest.mark.parametrize(("op", "attrs", "x", "slope"), KINKS, ids=[k[0] for k in KINKS])
def test_kinks_and_extremes(op: str, attrs: dict[str, Any], x: list[float], slope: list[float]) -> None:
    np.testing.assert_allclose(gradient(lambda g, x: g.emit(op, x, **attrs), np.array(x, float))[0], slope, atol=1e-7)


@pytest.mark.parametrize(("op", "opset", "attrs"), [
    ("Gelu", 20, {}), ("Gelu", 20, {"approximate": "tanh"}), ("Mish", 18, {}), ("Swish", 24, {})])
def test_activations_far_out(op: str, opset: int, attrs: dict[str, Any]) -> None:
    x = np.array([-60000.0, -100, 100, 60000])
    np.testing.assert_allclose(gradient(lambda g, x: g.emit(op, x, **attrs), x, opset=opset)[0], [0, 0, 1, 1], atol=1e-7)


def test_clip_is_flat_at_both_ends() -> None:
    np.testing.assert_array_equal(gradient(lambda g, x: g.Clip(x, -1.0, 1.0), np.array([-1.0, 0, 1]))[0], [0, 1, 0])


def test_prelu_takes_the_slope_at_zero() -> None:
    np.testing.assert_array_equal(gradient(lambda g, x, a: g.PRelu(x, a), np.zeros(2), np.array([0.5, 2]))[0], [0.5, 2])


@pytest.mark.parametrize("op", ["Max", "Min"])
def test_the_first_of_equal_operands_wins(op: str) -> None:
    x = np.ones(2)
    found = gradient(lambda g, a, b, c: g.emit(op, a, b, c), x, x, x, dy=np.array([2.0, 3.0]))
    np.testing.assert_array_equal(found, [[2, 3], [0, 0], [0, 0]])


def test_powers_at_zero() -> None:
    x = np.zeros(4)
    dx, dp = gradient(lambda g, x, p: g.Pow(x, p), x, np.array([0.0, 1, 2, 3]))
    np.testing.assert_array_equal(dx, [0, 1, 0, 0])
    np.testing.assert_array_equal(dp, [0, 0, 0, 0])


def test_where_the_log_of_a_negative_base_would_be_nan() -> None:
    dx, dp = gradient(lambda g, x, p: g.Pow(x, p), np.array([-2.0]), np.array([2.0]))
    assert (dx, dp) == (-4, 0)


def test_dropout_of_nothing() -> None:
    build = lambda g, x: g.Dropout(x, 0.0, g.const(True))  # noqa: E731
    np.testing.assert_array_equal(gradient(build, np.ones(3), dy=np.array([1.0, 2, 3]))[0], [1, 2, 3])


def test_dropout_in_training_is_refused() -> None:
    g = Graph(17)
    x = g.input("x", "float32", (3,))
    y = g.Dropout(x, 0.5, g.const(True))
    with pytest.raises(UnsupportedOp, match="inference"):
        pullback(g, {y: y}, [x])
