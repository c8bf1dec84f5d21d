"""GridSample: its gather-and-weight form against ONNX Runtime, its derivatives against central differences."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from graphattr.errors import UnsupportedOp
from graphattr.graph import Graph
from graphattr.vjp import pullback
from graphattr.vjp.sample import sampled
from tests.vjp.checking import Case, Part, Runner, case, check_case, evaluate, rows, sampler
from tests.vjp.windows import check_symbolic

draw = sampler(11)
PADDINGS = ("zeros", "border", "reflection")


def off_kinks(sizes: tuple[int, ...], *shape: int, corners: int = 0, reach: float = 1.6) -> np.ndarray:
    """A grid of normalised positions, in and outside the image, that lie well between elements and half elements."""
    rng, grid = np.random.default_rng(sum(shape)), np.empty((*shape, len(sizes)))
    for i, size in enumerate(reversed(sizes)):
        low, high = int(-reach * size / 2), int((1 + reach / 2) * size)
        at = rng.integers(low, high, shape) + rng.choice([0.2, 0.3, 0.7, 0.8], shape)
        grid[..., i] = 2 * at / (size - 1) - 1 if corners else (2 * at + 1) / size - 1
    return grid


def sample(x: tuple[int, ...], out: tuple[int, ...], opset: int = 20, **attrs: Any) -> Case:
    grid = off_kinks(x[2:], x[0], *out, corners=attrs.get("align_corners", 0))
    options: dict[str, Any] = {"dtype": np.float32} if opset < 20 else {}
    return case(f"GridSample {x} {attrs}", lambda g, v, w: g.GridSample(v, w, **attrs), draw(*x), grid, opsets=(opset,),
                dynamic=(0, 1), **options)


CASES = [
    *(sample((2, 2, 4, 5), (3, 2), mode=m, padding_mode=p, align_corners=a)
      for m in ("linear", "nearest", "cubic") for p in PADDINGS for a in (0, 1)),
    *(sample((2, 2, 3, 4, 2), (2, 1, 3), mode=m, padding_mode=p, align_corners=a)
      for m in ("linear", "nearest") for p in PADDINGS for a in (0, 1)),
    sample((1, 1, 3, 3), (2, 2)),
    *(sample((2, 1, 4, 3), (2, 3), opset=17, mode=m, padding_mode="border") for m in ("bilinear", "bicubic", "nearest")),
]


@pytest.mark.parametrize(("c", "opset"), rows(CASES))
def test_derivatives(c: Case, opset: int) -> None:
    check_case(c, opset)


def spellings() -> Iterator[tuple[tuple[int, ...], int, str, str]]:
    """Sizes, align_corners, padding, mode; without cubic volumes, which ONNX Runtime has not, and without reflection at the
    corners of a single element, where it divides by zero and reads outside the image."""
    for sizes in ((4, 5), (1, 3), (3, 2, 4), (2, 1, 1)):
        for corners, padding, mode in itertools.product((0, 1), PADDINGS, ("linear", "nearest", "cubic")):
            if not (mode == "cubic" and len(sizes) == 3) and not (corners and padding == "reflection" and 1 in sizes):
                yield sizes, corners, padding, mode


@pytest.mark.parametrize("opset", [17, 20, 22])
@pytest.mark.parametrize(("sizes", "corners", "padding", "mode"), list(spellings()))
def test_the_written_out_form_is_the_operator(sizes: tuple[int, ...], corners: int, padding: str, mode: str, opset: int) -> None:
    """On elements, half elements, borders and far outside too."""
    spelt = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode) if opset < 20 else mode
    g, rng = Graph(opset), np.random.default_rng(3)
    x = g.input("x", "float32", (2, 3, *sizes))
    grid = g.input("grid", "float32", (2, *[5] * len(sizes), len(sizes)))
    y = g.GridSample(x, grid, mode=spelt, padding_mode=padding, align_corners=corners)
    node = g.producer(y)
    assert node is not None
    feeds = {"x": rng.uniform(-2, 2, x.shape).astype(np.float32),
             "grid": (rng.integers(-16, 17, grid.shape) / 8).astype(np.float32)}
    want, got = Runner(Part(g, [y, sampled(g, node)], ["x", "x"]), only_ort=True)(feeds)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_symbolic_sizes(mode: str) -> None:
    c = sample((2, 2, 4, 5), (3, 2), mode=mode)
    check_symbolic(c, 20, [("N", 2, "H", "W"), ("N", "P", "Q", 2)], {"N": 2, "H": 4, "W": 5, "P": 3, "Q": 2},
                   {"N": 1, "H": 3, "W": 2, "P": 1, "Q": 4})


def test_nearest_has_no_derivative_in_the_grid() -> None:
    g = Graph(20)
    x, grid = g.input("x", "float32", (1, 1, 3, 3)), g.input("grid", "float32", (1, 2, 2, 2))
    y = g.GridSample(x, grid, mode="nearest")
    assert grid not in pullback(g, {y: y}, [x, grid])


def test_an_image_of_one_element_reflects_onto_itself() -> None:
    g = Graph(20)
    x, grid = g.input("x", "float32", (1, 1, 1, 1)), g.input("grid", "float32", (1, 1, 1, 2))
    y = sampled(g, g.producer(g.GridSample(x, grid, padding_mode="reflection", align_corners=1)))  # type: ignore[arg-type]
    got = evaluate(g, y, x=np.full((1, 1, 1, 1), 3, np.float32), grid=np.full((1, 1, 1, 2), 1.7, np.float32))
    assert got.item() == 3


def test_an_unknown_mode_is_refused() -> None:
    g = Graph(20)
    x, grid = g.input("x", "float32", (1, 1, 3, 3)), g.input("grid", "float32", (1, 2, 2, 2))
    (y,) = g.record("GridSample", [x, grid], ["y"], {"mode": "lanczos"}, "sample1")
    with pytest.raises(UnsupportedOp, match="GridSample node 'sample1': no derivative for mode 'lanczos'"):
        pullback(g, {y: y}, [x])
