"""RoiAlign and MaxRoiPool: the written-out form against ONNX Runtime, the derivatives against central differences."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphattr.graph import Graph
from graphattr.vjp import pullback
from graphattr.vjp.roi import aligned, max_pooled
from tests.vjp.checking import Case, Part, Runner, case, check_case, rows, sampler, session
from tests.vjp.windows import check_symbolic

draw = sampler(12)
ROIS = np.array([[0.31, 0.72, 4.13, 5.24], [1.17, 0.23, 2.94, 1.81], [-0.63, 2.09, 6.47, 3.33]])
BATCH = np.array([1, 0, 1])
MODES = ("half_pixel", "output_half_pixel")


def align(name: str, opset: int = 17, **attrs: Any) -> Case:
    attrs = {"output_height": 2, "output_width": 3} | attrs
    return case(f"RoiAlign {name}", lambda g, x, r, b: g.RoiAlign(x, r, b, **attrs), draw(2, 2, 6, 7), ROIS, BATCH,
                opsets=(opset,), tolerance=1e-5)


def distinct(*shape: int) -> np.ndarray:
    """No two elements are close: a maximum stays one."""
    return np.random.default_rng(4).permutation(np.arange(np.prod(shape))).reshape(shape) / 7 - 6.0


BOXES = np.array([[0, 0, 0, 4, 4], [1, 2, 1, 5, 5], [1, 3, 3, 3, 3.0]])
CASES = [
    *(align(f"{m} {t} {r}", mode=m, coordinate_transformation_mode=t, sampling_ratio=r)
      for m in ("avg", "max") for t in MODES for r in (0, 2)),
    align("scale", spatial_scale=0.5, sampling_ratio=1),
    align("one bin", output_height=1, output_width=1, opset=18),
    case("MaxRoiPool", lambda g, x, r: g.MaxRoiPool(x, r, pooled_shape=[2, 3], spatial_scale=0.9), distinct(2, 2, 6, 6), BOXES,
         wrt=(0,), dtype=np.float32),
]


@pytest.mark.parametrize(("c", "opset"), rows(CASES))
def test_derivatives(c: Case, opset: int) -> None:
    check_case(c, opset)


def boxes(count: int, rng: np.random.Generator) -> np.ndarray:
    """Of all kinds: inside, across the border, outside, turned inside out, on integers and halves."""
    corners = rng.integers(-12, 24, (count, 4)) / 2
    return np.where(rng.random((count, 1)) < 0.5, corners, rng.uniform(-4, 10, (count, 4))).astype(np.float32)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("transformation", MODES)
@pytest.mark.parametrize("ratio", [0, 1, 3])
@pytest.mark.parametrize("count", [40, 0])
def test_the_written_out_align_is_the_operator(count: int, ratio: int, transformation: str, mode: str) -> None:
    g, rng = Graph(17), np.random.default_rng(1)
    x, rois, batch = g.input("x", "float32", (2, 3, 5, 6)), g.input("rois", "float32", ("R", 4)), g.input("b", "int64", ("R",))
    y = g.RoiAlign(x, rois, batch, mode=mode, coordinate_transformation_mode=transformation, sampling_ratio=ratio,
                   output_height=3, output_width=2, spatial_scale=0.75)
    given = boxes(count, rng)
    if not ratio and transformation == "half_pixel":  # ONNX Runtime fails where just one side is negative
        inside_out = (given[:, 2:] < given[:, :2]).sum(1) == 1
        given[inside_out] = np.sort(given[inside_out].reshape(-1, 2, 2), axis=1).reshape(-1, 4)
    feeds = {"x": rng.uniform(-2, 2, x.shape).astype(np.float32), "rois": given, "b": rng.integers(0, 2, count)}
    want, got = Runner(Part(g, [y, aligned(g, g.producer(y))], ["x", "x"]), only_ort=True)(feeds)  # type: ignore[arg-type]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 0.5, 0.3])
@pytest.mark.parametrize("count", [40, 0])
def test_the_written_out_pool_is_the_operator(count: int, scale: float) -> None:
    g, rng = Graph(17), np.random.default_rng(2)
    x, rois = g.input("x", "float32", (2, 3, 5, 6)), g.input("rois", "float32", ("R", 5))
    y = g.MaxRoiPool(x, rois, pooled_shape=[3, 2], spatial_scale=scale)
    feeds = {"x": rng.uniform(-2, 2, x.shape).astype(np.float32),
             "rois": np.concatenate([rng.integers(0, 2, (count, 1)).astype(np.float32), boxes(count, rng)], 1)}
    want, got = Runner(Part(g, [y, max_pooled(g, g.producer(y))], ["x", "x"]), only_ort=True)(feeds)  # type: ignore[arg-type]
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("c", [align("adaptive"), align("max", mode="max", sampling_ratio=2)], ids=str)
def test_symbolic_sizes(c: Case) -> None:
    wide = case(c.name, lambda g, x, r: c.build(g, x, r, g.const([0])), draw(1, 2, 6, 7), ROIS[:1] * 1.0)
    check_symbolic(wide, 17, [(1, 2, "H", "W"), (1, 4)], {"H": 6, "W": 7}, {"H": 4, "W": 5})


def test_no_region_no_cotangent() -> None:
    g = Graph(17)
    x, rois, batch = g.input("x", "float32", (1, 2, 5, 6)), g.input("rois", "float32", ("R", 4)), g.input("b", "int64", ("R",))
    y = g.RoiAlign(x, rois, batch, output_height=2, output_width=2)
    dx = pullback(g, {y: g.input("dy", "float32", y.shape)}, [x])[x]
    feeds = {"x": np.ones((1, 2, 5, 6), np.float32), "rois": np.zeros((0, 4), np.float32), "b": np.zeros(0, np.int64),
             "dy": np.zeros((0, 2, 2, 2), np.float32)}
    file = session(Part(g, [dx], ["x"]))
    assert not file.run(None, {i.name: feeds[i.name] for i in file.get_inputs()})[0].any()
