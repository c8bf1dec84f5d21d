"""Range and AffineGrid against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.vjp.checking import Case, case, check_case, rows, sampler

draw = sampler(21)


def grid(size: tuple[int, ...], corners: int, batch: int = 2) -> Case:
    axes = len(size) - 2
    return case(f"AffineGrid {size} {corners}", lambda g, theta: g.AffineGrid(theta, g.const(size), align_corners=corners),
                draw(batch, axes, axes + 1), opsets=(20, 22), dynamic=())


CASES = [
    case("Range", lambda g, start, delta: g.Range(start, 5.0, delta), np.array(0.3), np.array(1.1), dynamic=(), half=False),
    case("Range down", lambda g, start, delta: g.Range(start, -5.0, delta), np.array(0.3), np.array(-0.7), dynamic=(),
         half=False),
    *(grid(size, corners) for size in ((2, 3, 4, 5), (2, 1, 3, 4, 2)) for corners in (0, 1)),
]


@pytest.mark.parametrize(("c", "opset"), rows(CASES))
def test_derivatives(c: Any, opset: int) -> None:
    check_case(c, opset)
