"""Writing at indices against central differences, and exactly at ties and zeros."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphattr.graph import Graph
from tests.vjp.checking import Case, case, check_case, gradient, rows, sampler
from tests.vjp.windows import check_symbolic

draw = sampler(12)
Array = np.ndarray
REDUCTIONS = ("mul", "max", "min")


def at(op: str, where: Any, **attrs: Any) -> Callable[..., Any]:
    return lambda g, x, u: g.emit(op, x, g.const(np.array(where, np.int64)), u, **attrs)


def cache(**attrs: Any) -> Callable[..., Any]:
    return lambda g, x, u, *at: g.TensorScatter(x, u, *at, **attrs)


REDUCED = [
    *(case(f"ScatterElements {r}", at("ScatterElements", [[0, 2, 1, 0], [0, 2, -1, 0]], reduction=r), draw(3, 4), draw(2, 4),
           opsets=(18,), dynamic=()) for r in REDUCTIONS),
    *(case(f"ScatterElements {r}, axis 1", at("ScatterElements", [[[3], [0], [3]]], reduction=r, axis=1), draw(2, 4, 3),
           draw(1, 3, 1), opsets=(18,)) for r in REDUCTIONS),
    *(case(f"ScatterND {r}", at("ScatterND", [[[0, 1], [2, 3]], [[0, 1], [0, 1]]], reduction=r), draw(3, 4), draw(2, 2),
           opsets=(18,), dynamic=()) for r in REDUCTIONS),
    *(case(f"ScatterND {r}, rows", at("ScatterND", [[1], [1], [0]], reduction=r), draw(3, 2, 2), draw(3, 2, 2), opsets=(18,),
           dynamic=()) for r in REDUCTIONS),
    case("ScatterElements mul with a zero", at("ScatterElements", [[0, 0, 1]], reduction="mul", axis=1), draw(1, 3),
         [[0.0, 1.5, -0.5]], opsets=(18,)),
    case("ScatterElements mul into a zero", at("ScatterElements", [[0, 0, 1]], reduction="mul", axis=1), [[0.0, 1.0, 2.0]],
         draw(1, 3), opsets=(18,)),
    *(case(f"ScatterElements {r} of x alone", lambda g, x, r=r: g.ScatterElements(x, [[2], [0]], np.full((2, 1), 0.5, x.dtype),
                                                                                  axis=1, reduction=r), draw(2, 4), opsets=(18,))
      for r in REDUCTIONS),
]
CACHES = [
    case("TensorScatter", cache(), draw(2, 3, 5, 4), draw(2, 3, 2, 4), np.array([3, 1]), opsets=(24,), half=False, dynamic=()),
    case("TensorScatter from the beginning", cache(), draw(2, 5, 4), draw(2, 2, 4), opsets=(24,), half=False, dynamic=(0, 1)),
    case("TensorScatter circular", cache(mode="circular", axis=1), draw(2, 5, 3), draw(2, 4, 3), np.array([3, 1]), opsets=(24,),
         half=False, dynamic=()),
]
CASES = [*REDUCED, *CACHES]


@pytest.mark.parametrize(("c", "opset"), rows(CASES))
def test_derivatives(c: Case, opset: int) -> None:
    check_case(c, opset)


@pytest.mark.parametrize("reduction", ["none", "add", *REDUCTIONS])
def test_symbolic_sizes(reduction: str) -> None:
    def build(g: Graph, x: Any, u: Any) -> Any:
        where = g.Expand(g.const([[1], [0]]) if reduction == "none" else g.const([[1], [1]]), g.Shape(u))
        return g.ScatterElements(x, where, u, reduction=reduction)
    c = case(f"ScatterElements {reduction}", build, draw(3, 4), draw(2, 4))
    check_symbolic(c, 18, [("H", "W"), (2, "W")], {"H": 3, "W": 4}, {"H": 5, "W": 2})


def test_symbolic_cache() -> None:
    c = case("TensorScatter", lambda g, x, u: g.TensorScatter(x, u, g.Expand(1, g.Shape(x, end=1))), draw(2, 5, 4), draw(2, 3, 4))
    check_symbolic(c, 24, [("N", "L", 4), ("N", "T", 4)], {"N": 2, "L": 5, "T": 3}, {"N": 1, "L": 7, "T": 2})


def reduced(reduction: str, x: list[float], u: list[float], where: list[int]) -> list[list[float]]:
    """The gradient of the sum of a one-dimensional ScatterElements; and ScatterND gives the same."""
    arrays = np.array(x, float), np.array(u, float)
    dx = gradient(at("ScatterElements", where, reduction=reduction), *arrays, opset=18)
    tuples = gradient(at("ScatterND", [[i] for i in where], reduction=reduction), *arrays, opset=18)
    np.testing.assert_array_equal(np.concatenate(dx), np.concatenate(tuples))
    return [a.tolist() for a in dx]


def test_ties_share_evenly() -> None:
    """As torch.scatter_reduce (amax, amin) does."""
    assert reduced("max", [3, 0, 5], [3, 3, 1, 4], [0, 0, 1, 2]) == [[1 / 3, 0, 1], [1 / 3, 1 / 3, 1, 0]]
    assert reduced("min", [3, 0, 5], [3, 3, 1, 4], [0, 0, 1, 2]) == [[1 / 3, 1, 0], [1 / 3, 1 / 3, 0, 1]]


def test_products_with_zeros() -> None:
    """As torch.scatter_reduce (prod) does."""
    assert reduced("mul", [2, 3, 0], [0, 5, 7, 0, 0, 4], [0, 0, 0, 1, 1, 2]) == [[0, 0, 4], [70, 0, 0, 0, 0, 0]]
    assert reduced("mul", [0, 2], [0, 5, 7], [0, 0, 1]) == [[0, 7], [0, 0, 2]]
