"""Col2Im against central differences; in float64 by ONNX's reference, in float32 by ONNX Runtime."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.vjp.checking import Case, case, check_case, gradient, rows, sampler
from tests.vjp.windows import check_symbolic

draw = sampler(14)


def columns(name: str, image: tuple[int, ...], block: tuple[int, ...], channels: int = 2, run_time: bool = False,
            **attrs: Any) -> Case:
    rank = len(image)
    strides, dilations, pads = (attrs.get(k, [d] * n) for k, d, n in (("strides", 1, rank), ("dilations", 1, rank),
                                                                     ("pads", 0, 2 * rank)))
    count = [(image[i] + pads[i] + pads[i + rank] - dilations[i] * (block[i] - 1) - 1) // strides[i] + 1 for i in range(rank)]
    x = draw(2, channels * int(np.prod(block)), int(np.prod(count)))
    if run_time:
        return case(f"Col2Im {name}", lambda g, v, i, b: g.Col2Im(v, i, b, **attrs), x, np.array(image), np.array(block),
                    opsets=(18,))
    return case(f"Col2Im {name}", lambda g, v: g.Col2Im(v, list(image), list(block), **attrs), x, opsets=(18,))


CASES = [
    columns("plain", (4, 5), (2, 3)),
    columns("strides", (5, 6), (2, 2), strides=[2, 3]),
    columns("pads", (3, 4), (2, 2), pads=[1, 0, 2, 1]),
    columns("dilations", (5, 6), (2, 3), dilations=[3, 2]),
    columns("all", (6, 5), (3, 2), strides=[2, 1], dilations=[1, 2], pads=[1, 2, 0, 1]),
    columns("one axis", (7,), (3,), strides=[2]),
    columns("three axes", (3, 4, 3), (2, 2, 1), strides=[1, 2, 1], pads=[0, 1, 0, 1, 1, 1]),
    columns("sizes at run time", (4, 5), (2, 2), run_time=True, pads=[1, 1, 1, 1]),
]


@pytest.mark.parametrize(("c", "opset"), rows(CASES))
def test_derivatives(c: Case, opset: int) -> None:
    check_case(c, opset)


def test_dilated_volumes_follow_the_definition() -> None:
    """ONNX Runtime's kernel differs from it."""
    c = columns("dilated volume", (4, 5, 4), (2, 2, 2), channels=1, dilations=[2, 1, 3])
    got, = gradient(c.build, c.arrays[0][:1], dy=np.arange(80.0).reshape(1, 1, 4, 5, 4), opset=18)
    image = np.arange(80.0).reshape(4, 5, 4)
    want = [image[a:a + 2, b:b + 4, d:d + 1].ravel() for a in (0, 2) for b in (0, 1) for d in (0, 3)]
    np.testing.assert_array_equal(got[0], want)


def test_symbolic_sizes() -> None:
    c = columns("symbolic", (4, 5), (2, 3), channels=2)
    check_symbolic(c, 18, [("N", "C", 9)], {"N": 2, "C": 12}, {"N": 1, "C": 6})
