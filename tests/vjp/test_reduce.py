"""Reductions and running sums against central differences, and exactly at ties and zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphattr.graph import Graph
from tests.vjp.checking import Case, case, check_case, gradient, rows, sampler

draw = sampler(2)
OPS = ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
       "ReduceLogSumExp", "ReduceSumSquare"]


def reduce(op: str, axes: list[int] | None, **attrs: Any) -> Callable[..., Any]:
    """The operator in the spelling of the graph's opset."""
    def build(g: Graph, x: Any) -> Any:
        if axes is None:
            return g.emit(op, x, **attrs)
        if g.opset < 18 and op != "ReduceSum":
            return g.emit(op, x, axes=axes, **attrs)
        return g.emit(op, x, g.const(np.array(axes, np.int64)), **attrs)
    return build


def of_the_run(op: str, **attrs: Any) -> Callable[..., Any]:
    return lambda g, x, axes: g.emit(op, x, axes, **attrs)


def data(op: str, *shape: int) -> np.ndarray[Any, Any]:
    return draw(*shape, low=0.3) if op == "ReduceLogSum" else draw(*shape)


CASES = [
    *(case(f"{op} {axes} keepdims={keep}", reduce(op, axes, keepdims=keep), data(op, 2, 3, 4), opsets=(17, 18))
      for op in OPS for axes, keep in [([1], 1), ([-1, 0], 0)]),
    *(case(f"{op} of all", reduce(op, None), data(op, 3, 4), opsets=(17, 21)) for op in OPS),
    *(case(f"{op} of all, keepdims=0", reduce(op, None, keepdims=0), data(op, 3, 4)) for op in OPS),
    *(case(f"{op} without axes as a no-operation", reduce(op, [], noop_with_empty_axes=1, keepdims=0), data(op, 3, 4),
           opsets=(18, 23)) for op in OPS),
    *(case(f"{op} of a vector", reduce(op, [0], keepdims=0), data(op, 4), opsets=(18,)) for op in OPS),
    *(case(f"{op} of the middle", reduce(op, [1, 2], keepdims=1), data(op, 2, 2, 3, 2), opsets=(18,)) for op in OPS),
    *(case(f"{op} over axes {axes} of the run, keepdims={keep}", of_the_run(op, keepdims=keep), data(op, 3, 4, 2), np.array(axes),
           opsets=(18,)) for op in OPS for axes in ([1], [-1, 0]) for keep in (0, 1)),
    *(case(f"{op} over no axes of the run, noop={noop}", of_the_run(op, noop_with_empty_axes=noop), data(op, 3, 4),
           np.zeros(0, np.int64), opsets=(18,)) for op in OPS for noop in (0, 1)),
    *(case(f"{op} of nothing", reduce(op, [1]), np.zeros((2, 0, 3)), opsets=(18,)) for op in ("ReduceSum", "ReduceProd")),
    case("ReduceMax over an axis that was put in at run time", lambda g, x, a: g.ReduceMax(g.Unsqueeze(x, a), a, keepdims=0),
         draw(3, 4), np.array([1]), opsets=(18,)),
    case("ReduceSum as a no-operation", reduce("ReduceSum", [], noop_with_empty_axes=1), draw(3, 4)),
    case("ReduceProd with a zero", reduce("ReduceProd", [1]), [[1.5, 0.0, -2.0], [0.5, 2.0, 3.0]]),
    case("ReduceProd with zeros", reduce("ReduceProd", [1]), [[1.5, 0.0, 0.0], [0.0, 0.0, 0.0]]),
    *(case(f"CumSum exclusive={e} reverse={r}", lambda g, x, e=e, r=r: g.CumSum(x, g.const(1, "int64"), exclusive=e, reverse=r),
           draw(3, 4), half=False) for e in (0, 1) for r in (0, 1)),
    case("CumSum over an axis of the run", lambda g, x, axis: g.CumSum(x, axis), draw(3, 4), np.int32(0), half=False),
]


@pytest.mark.parametrize(("c", "opset"), rows(CASES))
def test_derivatives(c: Case, opset: int) -> None:
    check_case(c, opset)


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_the_first_of_equal_elements_wins(op: str, opset: int) -> None:
    x = np.zeros((2, 2, 3))
    by_axis = gradient(reduce(op, [-1]), x, opset=opset)[0]
    np.testing.assert_array_equal(by_axis, np.broadcast_to([1, 0, 0], x.shape))
    first_and_last = gradient(reduce(op, [2, 0], keepdims=0), x, opset=opset, dy=np.array([5.0, 7.0]))[0]
    np.testing.assert_array_equal(first_and_last, [[[5, 0, 0], [7, 0, 0]], np.zeros((2, 3))])
    of_all = gradient(reduce(op, None), x, opset=opset)[0]
    np.testing.assert_array_equal(of_all.ravel(), np.eye(12)[0])


def test_row_major_order_decides_between_axes() -> None:
    x = np.array([[0.0, 1], [1, 0]])
    np.testing.assert_array_equal(gradient(reduce("ReduceMax", [1, 0]), x)[0], [[0, 1], [0, 0]])


def test_products_with_zeros() -> None:
    x = np.array([[2.0, 0, 3], [0, 0, 4], [2, 3, 4]])
    np.testing.assert_array_equal(gradient(reduce("ReduceProd", [1]), x)[0], [[0, 6, 0], [0, 0, 0], [12, 8, 6]])


def test_norms_at_zero() -> None:
    for op in ("ReduceL1", "ReduceL2"):
        np.testing.assert_array_equal(gradient(reduce(op, [1]), np.zeros((2, 3)))[0], np.zeros((2, 3)))


def test_ties_over_axes_of_the_run() -> None:
    x, axes = np.zeros((2, 2, 3)), np.array([2, 0])
    dx = gradient(of_the_run("ReduceMax", keepdims=0), x, axes, opset=18, dy=np.array([5.0, 7.0]))[0]
    np.testing.assert_array_equal(dx, [[[5, 0, 0], [7, 0, 0]], np.zeros((2, 3))])
    zeros = np.array([[2.0, 0, 3], [0, 0, 4], [2, 3, 4]])
    dx = gradient(of_the_run("ReduceProd"), zeros, np.array([1]), opset=18)[0]
    np.testing.assert_array_equal(dx, [[0, 6, 0], [0, 0, 0], [12, 8, 6]])
