"""Resize against central differences, in float32: ONNX Runtime has no other, and ONNX's reference differs from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphattr.errors import UnsupportedOp
from graphattr.graph import Graph
from graphattr.vjp import pullback
from tests.vjp.checking import Case, case, check_case, rows, sampler
from tests.vjp.windows import check_symbolic

draw = sampler(6)


def resized(name: str, x: tuple[int, ...], scales: Any = None, sizes: Any = None, opset: int = 18, **attrs: Any) -> Case:
    more = (np.float32(scales), None) if scales is not None else (None, sizes)
    return case(f"Resize {name}", lambda g, v: g.Resize(v, None, *(m for m in more if m is not None or scales is None), **attrs),
                draw(*x),
                opsets=(opset,), dtype=np.float32)


def cropped(name: str, scales: list[float], run_time: bool = False, axes: list[int] | None = None, **attrs: Any) -> Case:
    """Of the axes some are cropped, and the last reaches out, where the value is extrapolated."""
    roi = np.float32([0.15, 0.2, 1.2, 0.85] if axes else [0, 0, 0.2, 0.15, 1, 1, 0.85, 1.2])
    return case(f"Resize crop {name}", lambda g, x, *r: g.Resize(
        x, *(r or [roi]), np.float32(scales), coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=3.0,
        axes=axes, **attrs), draw(1, 2, 4, 5), *([roi] if run_time else []), wrt=(0,), opsets=(18,), dtype=np.float32)


def kept(name: str, sizes: list[int], policy: str, axes: Any = (2, 3), roi: Any = None, **attrs: Any) -> Case:
    axes = list(axes) if axes else None
    return case(f"Resize kept {name}", lambda g, x: g.Resize(
        x, None if roi is None else np.float32(roi), None, sizes, axes=axes, keep_aspect_ratio_policy=policy, **attrs),
        draw(1, 2, 3, 4), opsets=(18,), dtype=np.float32)


MODES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
CASES = [
    *(resized(f"nearest {m} {r} {s}", (2, 2, 3, 4), scales=[1, 1, *s], mode="nearest", coordinate_transformation_mode=m,
              nearest_mode=r)
      for m in MODES for r in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil") for s in ([2, 3], [1.5, 0.6])),
    *(resized(f"linear {m} {s}", (2, 2, 3, 5), scales=[1, 1, *s], mode="linear", coordinate_transformation_mode=m)
      for m in MODES for s in ([2, 2], [2.4, 0.6], [1, 1.7])),
    *(resized(f"cubic {m} {s}", (1, 2, 4, 5), scales=[1, 1, *s], mode="cubic", coordinate_transformation_mode=m)
      for m in MODES for s in ([2, 1.5], [0.75, 2])),
    resized("cubic coefficient", (1, 1, 4, 5), scales=[1, 1, 2, 2], mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1),
    resized("symmetric", (1, 2, 3, 5), scales=[1, 1, 2.3, 0.7], opset=19, mode="linear",
            coordinate_transformation_mode="half_pixel_symmetric"),
    *(resized(f"antialias {m}", (1, 2, 6, 5), scales=[1, 1, 0.6, 0.5], mode=m, antialias=1) for m in ("linear", "cubic")),
    resized("sizes", (2, 2, 3, 4), sizes=[2, 2, 7, 3], mode="linear"),
    resized("sizes, whole factor", (2, 2, 3, 4), sizes=[2, 2, 6, 12]),
    resized("sizes, to one pixel", (2, 2, 3, 4), sizes=[2, 2, 1, 1], mode="linear",
            coordinate_transformation_mode="pytorch_half_pixel"),
    resized("axes", (2, 2, 3, 4), scales=[2.5, 0.5], mode="linear", axes=[3, 2]),
    resized("axes by size", (2, 2, 3, 4), sizes=[6], axes=[-1]),
    resized("scale that is cut off", (1, 1, 2, 2), scales=[1, 1, 2.25, 1], coordinate_transformation_mode="asymmetric",
            nearest_mode="floor"),
    resized("one axis", (3, 5), scales=[1, 2.5], mode="linear"),
    resized("three axes", (1, 2, 2, 3, 4), scales=[1, 1, 2, 1.5, 2], mode="linear"),
    resized("three axes, nearest", (1, 2, 2, 3, 4), scales=[1, 1, 2, 1.5, 2]),
    resized("channels, nearest", (2, 3, 2, 2), scales=[1, 2, 1.5, 1]),
    resized("nothing", (2, 2, 3, 4), scales=[1, 1, 1, 1]),
    case("Resize scales at run time", lambda g, x, s: g.Resize(x, None, s, mode="linear"), draw(1, 1, 3, 4),
         np.array([1, 1, 1.5, 2.0]), wrt=(0,),
         dtype=np.float32, opsets=(18,)),
    *(cropped(f"{m} {s}", s, mode=m)
      for m in ("linear", "nearest", "cubic") for s in ([1, 1, 1.7, 2], [1, 1, 0.6, 1], [1, 1, 1, 1])),
    cropped("run time", [1, 1, 1.7, 2], run_time=True, mode="linear"),
    cropped("axes", [2, 1.4], axes=[3, 2], mode="linear"),
    *(kept(f"{p} {m} {s}", s, p, **m) for p in ("not_larger", "not_smaller") for s in ([8, 7], [2, 5], [6, 8], [3, 4]) for m in (
        {"mode": "nearest"}, {"mode": "linear"}, {"mode": "cubic", "exclude_outside": 1})),
    *(kept(f"{p} antialias", [2, 5], p, mode="cubic", antialias=1) for p in ("not_larger", "not_smaller")),
    kept("all axes", [1, 2, 6, 9], "not_larger", axes=None),
    kept("cropped", [6, 7], "not_larger", roi=[0.2, 0.1, 0.9, 1.2], mode="linear",
         coordinate_transformation_mode="tf_crop_and_resize"),
    resized("opset 17", (2, 2, 3, 4), scales=[1, 1, 2.5, 2], opset=17, mode="linear"),
]


@pytest.mark.parametrize(("c", "opset"), rows(CASES))
def test_derivatives(c: Case, opset: int) -> None:
    check_case(c, opset)


def to_double(g: Graph, x: Any) -> Any:
    """Twice the size, computed in the graph as exporters do."""
    return g.Resize(x, None, None, g.Concat(g.Shape(x, end=2), g.Shape(x, start=2) * 2, axis=0), mode="linear")


def as_large_as(g: Graph, x: Any, other: Any) -> Any:
    return g.Resize(x, None, None, g.Concat(g.Shape(x, end=2), g.Shape(other, start=2), axis=0), mode="linear") * other


SYMBOLIC = [
    *(resized(f"symbolic {a}", (2, 2, 3, 4), scales=[1, 1, 2, s], **a) for s in (3, 0.5) for a in (
        {"mode": "nearest"}, {"mode": "linear"}, {"mode": "cubic"},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"})),
    resized("fixed size", (2, 2, 3, 4), sizes=[2, 2, 5, 6], mode="linear"),
    case("Resize to double", to_double, draw(2, 2, 3, 4), dtype=np.float32, opsets=(18,)),
]


@pytest.mark.parametrize(("c", "opset"), rows(SYMBOLIC))
def test_symbolic_sizes(c: Case, opset: int) -> None:
    fixed = "fixed" in c.name
    check_symbolic(c, opset, [(2 if fixed else "N", 2, "H", "W")], {"N": 2, "H": 3, "W": 4},
                   {"N": 1 if not fixed else 2, "H": 5, "W": 6})


def test_the_size_of_another_tensor() -> None:
    c = case("Resize to another", as_large_as, draw(2, 2, 3, 4), draw(2, 2, 5, 7), dtype=np.float32)
    check_case(c, 18)
    check_symbolic(c, 18, [("N", 2, "H", "W"), ("N", 2, "P", "Q")], {"N": 2, "H": 3, "W": 4, "P": 5, "Q": 7},
                   {"N": 1, "H": 4, "W": 3, "P": 2, "Q": 6})


def test_whole_factors_need_no_matrix() -> None:
    g = Graph(18)
    x = g.input("x", "float32", ("N", 2, "H", "W"))
    y = g.Resize(x, None, np.float32([1, 1, 2, 3]), coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    pullback(g, {y: g.input("dy", "float32", y.shape)}, [x])
    assert not {"MatMul", "EyeLike"} & {n.op for n in g.nodes}


def test_axes_that_keep_their_size_keep_their_name() -> None:
    g = Graph(18)
    x = g.input("x", "float32", ("N", 2, "H", "W"))
    by_scale = g.Resize(x, None, np.float32([1, 1, 2.5, 1]))
    by_size = g.Resize(x, None, None, g.Concat(g.Shape(x, end=3), [7], axis=0))
    assert (by_scale.shape[:2], by_scale.shape[3]) == (("N", 2), "W")
    assert by_size.shape == ("N", 2, "H", 7)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize("attrs", [{"mode": m} for m in ("nearest", "linear", "cubic")] + [{"mode": "linear", "antialias": 1}],
                         ids=str)
def test_the_axis_that_decides_may_be_known_to_the_run_only(policy: str, attrs: dict[str, Any]) -> None:
    c = kept(f"{policy} {attrs}", [5, 9], policy, **attrs)
    check_symbolic(c, 18, [(1, 2, "H", "W")], {"H": 3, "W": 4}, {"H": 7, "W": 3}, {"H": 4, "W": 13})


def cropping() -> tuple[Graph, Any, Any, Any]:
    g = Graph(18)
    x, given = g.input("x", "float32", (1, 1, 3, 4)), [g.input("roi", "float32", (8,)), g.input("scales", "float32", (4,))]
    return g, x, given, {"coordinate_transformation_mode": "tf_crop_and_resize", "mode": "linear"}


@pytest.mark.parametrize(("i", "reason"), [(0, "roi"), (1, "scales")])
def test_settings_that_are_computed_are_refused(i: int, reason: str) -> None:
    g, x, given, attrs = cropping()
    used = [g.Sigmoid(v) if k == i else v for k, v in enumerate(given)]
    (y,) = g.record("Resize", [x, *used], ["y"], attrs, "resize1")
    with pytest.raises(UnsupportedOp, match=f"Resize node 'resize1': no derivative with respect to its {reason}"):
        pullback(g, {y: y}, [x, given[i]])


def test_settings_that_are_inputs_have_no_cotangent() -> None:
    g, x, given, attrs = cropping()
    y = g.Resize(x, *given, **attrs)
    assert set(pullback(g, {y: y}, [x, *given])) == {x}


def test_a_crop_needs_a_roi() -> None:
    g, x, _, attrs = cropping()
    (y,) = g.record("Resize", [x, None, g.const([1, 1, 2, 2], np.float32)], ["y"], attrs, "resize1")
    with pytest.raises(UnsupportedOp, match=r"Resize node 'resize1': .*'tf_crop_and_resize' needs a roi"):
        pullback(g, {y: g.input("dy", "float32", (1, 1, 6, 8))}, [x])
