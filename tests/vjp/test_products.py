"""Determinants and running products against central differences, and where factors are zero or matrices singular."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.vjp.checking import Case, case, check_case, gradient, rows, sampler
from tests.vjp.windows import check_symbolic

draw = sampler(13)


def running(name: str, x: Any, axis: int = 1, **attrs: int) -> Case:
    return case(f"CumProd {name}", lambda g, v: g.CumProd(v, g.const(axis), **attrs), x, opsets=(26,), half=False)


SINGULAR = np.array([[1.0, 2, 3], [2, 4, 6], [0, 1, -1]])  # rank 2
DETERMINANTS = [
    *(case(f"Det {n}", lambda g, x: g.Det(x), draw(n, n), opsets=(17, 22), dynamic=()) for n in (1, 2, 3, 4)),
    case("Det batch", lambda g, x: g.Det(x), draw(2, 3, 3)),
    case("Det batches", lambda g, x: g.Det(x), draw(2, 3, 2, 2)),
    case("Det of a singular matrix", lambda g, x: g.Det(x), SINGULAR, dynamic=()),
    case("Det of zeros", lambda g, x: g.Det(x), np.zeros((2, 2, 2))),
]
RUNNING = [
    *(running(f"exclusive={e} reverse={r}", draw(2, 4), exclusive=e, reverse=r) for e in (0, 1) for r in (0, 1)),
    *(running(f"axis {axis}", draw(2, 3, 2), axis) for axis in (0, 1, -1, -3)),
    running("with a zero", [[1.5, 0.0, -2.0, 0.5], [0.0, 2.0, 0.0, 3.0]]),
    running("with zeros, exclusive", [[0.0, 0.0, 0.0]], exclusive=1),
    running("with zeros, reverse", [[1.5, 0.0, 0.5, 0.0]], reverse=1),
    *(case(f"CumProd over an axis of the run, {axis}", lambda g, x, a: g.CumProd(x, a, reverse=1), draw(2, 3, 2), np.int32(axis),
           opsets=(26,), half=False) for axis in (1, -1)),
]
CASES = [*DETERMINANTS, *RUNNING]


@pytest.mark.parametrize(("c", "opset"), rows(CASES))
def test_derivatives(c: Case, opset: int) -> None:
    check_case(c, opset)


def test_symbolic_sizes() -> None:
    sizes = {"N": 2, "K": 3}, {"N": 1, "K": 4}
    check_symbolic(case("Det", lambda g, x: g.Det(x), draw(2, 3, 3)), 17, [("N", "K", "K")], *sizes)
    check_symbolic(case("CumProd", lambda g, x: g.CumProd(x, g.const(1)), draw(2, 3)), 26, [("N", "K")], *sizes)


def test_cofactors_of_a_singular_matrix() -> None:
    """The adjugate, transposed, by hand; of a matrix of rank 1 it is 0."""
    dx = gradient(lambda g, x: g.Det(x), np.stack([SINGULAR, np.ones((3, 3))]))[0]
    np.testing.assert_allclose(dx, [[[-10, 2, 2], [5, -1, -1], [0, 0, 0]], np.zeros((3, 3))], atol=1e-12)


def test_running_products_with_zeros() -> None:
    """As torch.cumprod."""
    dx = gradient(lambda g, x: g.CumProd(x, g.const(1)), np.array([[2.0, 0, 3, 4], [0, 5, 0, 2]]), opset=26)[0]
    np.testing.assert_array_equal(dx, [[1, 32, 0, 0], [6, 0, 0, 0]])
