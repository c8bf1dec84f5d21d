"""DeformConv: the written-out form against ONNX Runtime, the derivatives against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphattr.errors import UnsupportedOp
from graphattr.graph import Graph
from graphattr.vjp import pullback
from graphattr.vjp.deform import convolved
from tests.vjp.checking import Case, Part, Runner, case, check_case, rows, sampler
from tests.vjp.windows import check_symbolic

draw = sampler(13)


def deform(name: str, x: tuple[int, ...], m: int, kernel: tuple[int, int], bias: bool = False, mask: bool = False,
           **attrs: Any) -> Case:
    """The offsets keep away from whole numbers, where the derivative jumps."""
    group, moved = attrs.get("group", 1), attrs.get("offset_group", 1)
    strides, dilations, pads = attrs.get("strides", [1, 1]), attrs.get("dilations", [1, 1]), attrs.get("pads", [0] * 4)
    out = [(x[2 + i] + pads[i] + pads[i + 2] - dilations[i] * (kernel[i] - 1) - 1) // strides[i] + 1 for i in (0, 1)]
    size = kernel[0] * kernel[1]
    rng = np.random.default_rng(len(name))
    offset = rng.integers(-3, 3, (x[0], moved * 2 * size, *out)) + rng.choice([0.2, 0.4, 0.7], (x[0], moved * 2 * size, *out))
    arrays = [draw(*x), draw(m, x[1] // group, *kernel), offset]
    arrays += [draw(m)] if bias else []
    arrays += [draw(x[0], moved * size, *out)] if mask else []

    def build(g: Graph, *vs: Any) -> Any:
        given = [*vs[:3], vs[3] if bias else None, vs[-1] if mask else None]
        return g.DeformConv(*(given if mask else given[:4] if bias else given[:3]), **attrs)

    return case(f"DeformConv {name}", build, *arrays, opsets=(19,), dynamic=(0, 2, *([len(arrays) - 1] if mask else [])),
                tolerance=1e-5)


CASES = [
    deform("plain", (2, 2, 4, 5), 3, (2, 2)),
    deform("bias", (1, 2, 4, 4), 2, (3, 2), bias=True, pads=[1, 0, 2, 1]),
    deform("mask", (2, 2, 4, 4), 2, (2, 2), mask=True, kernel_shape=[2, 2]),
    deform("bias, mask, strides, dilations", (2, 2, 6, 7), 2, (2, 3), bias=True, mask=True, strides=[2, 1], dilations=[1, 2],
           pads=[1, 2, 0, 1]),
    deform("groups", (2, 4, 4, 4), 6, (2, 2), group=2),
    deform("offset groups", (2, 4, 4, 4), 2, (2, 2), offset_group=2, mask=True),
    deform("both groups", (2, 4, 3, 4), 4, (2, 1), group=2, offset_group=4, mask=True, bias=True),
]


@pytest.mark.parametrize(("c", "opset"), rows(CASES))
def test_derivatives(c: Case, opset: int) -> None:
    check_case(c, opset)


@pytest.mark.parametrize("c", CASES, ids=str)
def test_the_written_out_form_is_the_operator(c: Case) -> None:
    """With offsets on elements, halfway between them, and outside."""
    g, rng = Graph(22), np.random.default_rng(9)
    vs = [g.input(f"x{i}", "float32", a.shape) for i, a in enumerate(c.arrays)]
    y = c.build(g, *vs)
    feeds = {v.name: a.astype(np.float32) for v, a in zip(vs, c.arrays, strict=True)}
    feeds["x2"] = (rng.integers(-12, 13, vs[2].shape) / 2).astype(np.float32)
    want, got = Runner(Part(g, [y, convolved(g, g.producer(y))], ["x0", "x0"]), only_ort=True)(feeds)  # type: ignore[arg-type]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_symbolic_sizes() -> None:
    c = deform("both groups", (2, 4, 3, 4), 4, (2, 1), group=2, offset_group=4)
    check_symbolic(c, 19, [("N", 4, "H", "W"), (4, 2, 2, 1), ("N", 16, "P", "W")], {"N": 2, "H": 3, "W": 4, "P": 2},
                   {"N": 1, "H": 5, "W": 2, "P": 4})


def test_volumes_are_refused() -> None:
    g = Graph(19)
    x, offset = g.input("x", "float32", (1, 1, 3, 3, 3)), g.input("offset", "float32", None)
    (y,) = g.record("DeformConv", [x, g.input("w", "float32", (1, 1, 2, 2, 2)), offset], ["y"], {}, "deform1")
    with pytest.raises(UnsupportedOp, match="DeformConv node 'deform1' needs an input of rank 4"):
        pullback(g, {y: y}, [x])
