"""Fourier transforms against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphattr.graph import Graph
from tests.vjp.checking import Case, case, check_case, gradient, rows, sampler
from tests.vjp.windows import check_symbolic

draw = sampler(11)


def dft(name: str, *x: int, axis: int = 1, length: int | None = None, **attrs: int) -> list[Case]:
    """One transform in both spellings of its axis."""
    more = [length] if length else [None]
    return [case(f"DFT {name}", lambda g, v: g.DFT(v, *more[: bool(length)], axis=axis, **attrs), draw(*x), half=False),
            case(f"DFT {name}, axis as input", lambda g, v: g.DFT(v, *more, axis, **attrs), draw(*x), opsets=(20,), half=False)]


TRANSFORMS = [
    *dft("real", 2, 5, 1),
    *dft("complex", 2, 5, 2),
    *dft("real, longer", 2, 5, 1, length=8),
    *dft("complex, shorter", 2, 5, 2, length=3),
    *dft("negative axis", 2, 4, 3, 2, axis=-3),
    *dft("first axis", 4, 3, 2, axis=0),
    *dft("one-sided", 2, 5, 1, onesided=1),
    *dft("one-sided, even", 2, 6, 1, onesided=1),
    *dft("one-sided, longer", 2, 5, 1, length=8, onesided=1),
    *dft("one-sided, shorter", 2, 5, 1, length=4, onesided=1),
    *dft("inverse", 2, 5, 2, inverse=1),
    *dft("inverse of real numbers", 2, 5, 1, inverse=1),
    *dft("inverse, longer", 2, 5, 2, inverse=1, length=7),
    *dft("inverse, shorter", 2, 5, 2, inverse=1, length=3),
    *dft("inverse, one-sided", 2, 5, 2, inverse=1, onesided=1),
    *dft("inverse, one-sided, odd", 2, 5, 2, inverse=1, onesided=1, length=9),
    case("DFT over the last axis by default", lambda g, x: g.DFT(x), draw(2, 3, 4, 2), opsets=(20,), half=False),
    case("DFT and back", lambda g, x: g.DFT(g.Tanh(g.DFT(x, None, 1)), None, 1, inverse=1), draw(2, 6, 1), opsets=(20,),
         half=False),
    case("DFT over an axis of the run", lambda g, x, a: g.DFT(x, 7, a), draw(2, 5, 3, 2), np.array(1), opsets=(20,), half=False),
    case("DFT inverse, one-sided, over an axis of the run", lambda g, x, a: g.DFT(x, 7, a, inverse=1, onesided=1),
         draw(2, 4, 3, 2), np.array(-3), opsets=(20,), half=False),
    case("DFT of a length of the run", lambda g, x, k: g.DFT(x, k, 1, onesided=1), draw(2, 5, 1), np.array(8), opsets=(20,),
         half=False),
]
PIECES = [
    case("STFT", lambda g, x: g.STFT(x, 2, None, 4), draw(2, 9, 1), half=False),
    case("STFT of overlapping pieces, with a window", lambda g, x, w: g.STFT(x, 1, w), draw(2, 6, 1), draw(4), half=False),
    case("STFT with gaps, two-sided", lambda g, x, w: g.STFT(x, 4, w, 3, onesided=0), draw(2, 12, 1), draw(3), half=False),
    case("STFT complex", lambda g, x, w: g.STFT(x, 2, w, onesided=0), draw(2, 7, 2), draw(4), half=False),
    case("STFT of a step of the run", lambda g, x, w, s: g.STFT(x, s, w), draw(2, 9, 1), draw(4), np.array(3), half=False),
]
CASES = [*TRANSFORMS, *PIECES]


@pytest.mark.parametrize(("c", "opset"), rows(CASES))
def test_derivatives(c: Case, opset: int) -> None:
    check_case(c, opset)


def window(g: Graph, x: Any) -> Any:
    return g.STFT(x, 2, g.const(np.array([0.5, 1, 0.25, 2], x.dtype)))


SYMBOLIC = [
    *(case(f"DFT {attrs}", lambda g, x, a=attrs: g.DFT(x, None, 1, **a), draw(2, 6, 2 - one), opsets=(20,))
      for one, attrs in [(0, {}), (0, {"inverse": 1}), (1, {"onesided": 1}), (0, {"onesided": 1, "inverse": 1})]),
    case("DFT of a length", lambda g, x: g.DFT(x, 7, axis=1), draw(2, 6, 2)),
    case("DFT of half the length", lambda g, x: g.DFT(x, g.Squeeze(g.Shape(x, start=1, end=2), [0]) / 2, axis=1, onesided=1),
         draw(2, 6, 1)),
    case("STFT", window, draw(2, 6, 1)),
]


@pytest.mark.parametrize(("c", "opset"), rows(SYMBOLIC))
def test_symbolic_sizes(c: Case, opset: int) -> None:
    check_symbolic(c, opset, [("N", "T", c.arrays[0].shape[2])], {"N": 2, "T": 6}, {"N": 1, "T": 9})


@pytest.mark.parametrize(("frequencies", "length"), [(3, 8), (5, 5), (5, 4), (4, 12)])
def test_an_inverse_of_too_few_or_too_many_frequencies(frequencies: int, length: int) -> None:
    """Against NumPy, as ONNX defines it: ONNX Runtime mirrors the frequencies before it cuts or pads them."""
    dy = draw(1, length, 1)
    dx = gradient(lambda g, x: g.DFT(x, length, 1, inverse=1, onesided=1), draw(1, frequencies, 2), dy=dy, opset=20)[0]
    unit = np.eye(frequencies)
    want = [[(np.fft.irfft(unit[k] * i, length) * dy[0, :, 0]).sum() for i in (1, 1j)] for k in range(frequencies)]
    np.testing.assert_allclose(dx[0], want, atol=1e-12)
