"""Moving elements about, against central differences; one file at several sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from graphattr.graph import Graph, Value
from tests.vjp.checking import Case, case, check_case, gradient, rows, sampler
from tests.vjp.windows import check_symbolic

draw = sampler(4)


def moved(name: str, build: Callable[[Graph, Value], Any], *x: int, **options: Any) -> Case:
    return case(name, build, draw(*x), **options)


def unranked(g: Graph, x: Value, shape: Value) -> Value:
    """x in a shape of which only the run knows how many axes it has."""
    made = g.Reshape(x, g.Compress(shape, shape > 0))
    assert made.shape is None
    return made


def cut(name: str, x: tuple[int, ...], *lists: Any, **options: Any) -> Case:
    """Slice with starts, ends, axes, steps."""
    return moved(f"Slice {name}", lambda g, v: g.Slice(v, *lists), *x, **options)


def padded(name: str, x: tuple[int, ...], pads: list[int], mode: str = "constant", axes: Any = None, value: Any = 1.5,
           **options: Any) -> Case:
    if axes is not None:
        options = {"opsets": (18,)} | options
    more = [None, axes] if axes is not None else [value] if mode == "constant" and value is not None else []
    return moved(f"Pad {mode} {name}", lambda g, v: g.Pad(v, pads, *more, mode=mode), *x, **options)


MOVES = [
    moved("Reshape", lambda g, x: g.Reshape(x, [0, 2, -1]), 3, 4, 2),
    moved("Reshape scalar", lambda g, x: g.Reshape(x, g.const([], np.int64)), 1, 1, dynamic=()),
    moved("Reshape of nothing", lambda g, x: g.Reshape(x, [3, 4, 0], allowzero=1), 0, 3, 4, dynamic=()),
    moved("Flatten", lambda g, x: g.Flatten(x, axis=2), 2, 3, 4),
    moved("Flatten 0", lambda g, x: g.Flatten(x, axis=0), 2, 3),
    moved("Squeeze", lambda g, x: g.Squeeze(x, [-1, 1]), 3, 1, 4, 1),
    moved("Squeeze all", lambda g, x: g.Squeeze(x), 3, 1, 4, 1, dynamic=()),
    moved("Unsqueeze", lambda g, x: g.Unsqueeze(x, [-1, 0, 2]), 3, 4),
    moved("Transpose", lambda g, x: g.Transpose(x, perm=[2, 0, 3, 1]), 2, 3, 4, 2),
    moved("Transpose reversed", lambda g, x: g.Transpose(x), 2, 3, 4),
    moved("Expand", lambda g, x: g.Expand(x, [2, 1, 3, 4]), 3, 1, dynamic=()),
    moved("Expand batch", lambda g, x: g.Expand(x, [1, 3, 4]), 2, 1, 4),
    moved("Tile", lambda g, x: g.Tile(x, [2, 1, 3]), 2, 3, 2),
    case("Tile at run time", lambda g, x, r: g.Tile(x, r), draw(2, 3), np.array([3, 2])),
    case("Concat", lambda g, *x: g.Concat(*x, axis=1), draw(2, 1, 3), draw(2, 4, 3), draw(2, 2, 3), dynamic=(0, 1, 2)),
    case("Concat batches", lambda g, *x: g.Concat(*x, axis=-2), draw(2, 3), draw(1, 3)),
    case("Concat one", lambda g, x: g.Concat(x, axis=0), draw(2, 3)),
    case("Concat twice the same", lambda g, x: g.Concat(x, x * x, x, axis=-1), draw(2, 3)),
    moved("Split", lambda g, x: g.Split(x, [1, 3, 2], axis=1, n_outputs=3), 2, 6, 2),
    moved("Split, one unused", lambda g, x: g.Split(x, [1, 3, 2], axis=-2, n_outputs=3)[::2], 2, 6, 2),
    moved("Split equal", lambda g, x: g.Split(x, axis=1, n_outputs=3), 2, 6),
    moved("Split num_outputs", lambda g, x: g.Split(x, axis=1, num_outputs=3, n_outputs=3), 2, 7, opsets=(18,)),
    moved("DepthToSpace DCR", lambda g, x: g.DepthToSpace(x, blocksize=2), 2, 8, 2, 3),
    moved("DepthToSpace CRD", lambda g, x: g.DepthToSpace(x, blocksize=2, mode="CRD"), 2, 8, 2, 3),
    moved("SpaceToDepth", lambda g, x: g.SpaceToDepth(x, blocksize=2), 2, 2, 4, 6),
    *(moved(f"Trilu {upper} {k}", lambda g, x, u=upper, k=k: g.Trilu(x, *([k] if k is not None else []), upper=u), 2, 3, 4)
      for upper in (0, 1) for k in (None, -1, 1)),
    moved("ReverseSequence", lambda g, x: g.ReverseSequence(x, g.const([2, 3, 1]), batch_axis=1, time_axis=0), 4, 3, 2,
          dynamic=()),
    moved("CenterCropPad", lambda g, x: g.CenterCropPad(x, [3, 6], axes=[1, 2]), 2, 5, 4, opsets=(18,)),
]
SLICES = [
    cut("plain", (3, 6), [1], [4], [1]),
    cut("leading axes by default", (5, 6), [1, 2], [4, 5], dynamic=()),
    cut("beyond the ends", (3, 6), [-100], [100], [1]),
    cut("from before the beginning", (3, 6), [-100], [4], [1]),
    cut("from behind the end", (3, 6), [8], [9], [1]),
    cut("negative", (3, 6, 4), [-5, -3], [-1, 4], [1, -1]),
    cut("steps", (2, 7, 5), [1, 0], [7, 5], [1, 2], [2, 3]),
    cut("backwards", (2, 7), [5], [0], [1], [-2]),
    cut("all backwards", (2, 7), [-1], [-100], [1], [-1]),
    cut("one of each", (2, 7, 5), [5, 1], [-8, 4], [1, 2], [-3, 1]),
    cut("batch", (5, 3), [1], [4], [0], dynamic=()),
    cut("nothing", (2, 4), [3], [3], [1]),
    case("Slice int32", lambda g, x: g.Slice(x, *(g.const(v, np.int32) for v in ([1, -1], [3, 0], [1, 2], [1, -1]))),
         draw(2, 4, 3)),
    case("Slice at run time", lambda g, x, s, e: g.Slice(x, s, e, [1, 2]), draw(2, 7, 5), np.array([-6, 2]), np.array([4, 100])),
    case("Slice steps at run time", lambda g, x, s, e, d: g.Slice(x, s, e, [1, 2], d), draw(2, 7, 5), np.array([-1, 0]),
         np.array([1, 5]),
         np.array([-2, 1])),
]
PADS = [
    padded("plain", (2, 3), [1, 0, 2, 3], dynamic=()),
    padded("default value", (2, 3, 2), [0, 2, 1, 0, 0, 1], value=None),
    padded("nothing", (2, 3), [0, 0, 0, 0]),
    padded("negative", (2, 5, 4), [0, -2, 1, 0, 1, -2]),
    padded("axes", (2, 3, 4), [1, 0, 2, 3], axes=[-1, 1]),
    padded("axes", (2, 4, 4), [1, 2, 0, 3], "reflect", axes=[2, 1]),
    *(padded("pads", (2, 3, 4), [0, 1, 2, 0, 2, 3], mode) for mode in ("reflect", "edge")),
    padded("pads", (2, 3, 4), [0, 1, 2, 0, 2, 5], "wrap", opsets=(19,)),
    padded("negative", (2, 5), [0, -2, 0, 3], "edge"),
    padded("negative", (2, 5), [0, 2, 0, -2], "reflect"),
    padded("negative", (2, 5), [0, -2, 0, 3], "wrap", opsets=(19,)),
    padded("negative on both sides", (2, 6, 5), [0, -1, -2, 0, -2, 1], "edge"),
    case("Pad value", lambda g, x, v: g.Pad(x, [0, 1, 2, 0, 1, 3], v), draw(2, 3, 2), np.array(0.5)),
    case("Pad value, cutting", lambda g, x, v: g.Pad(x, [0, -1, 0, 2], v), draw(2, 3), np.array(0.5)),
    case("Pad at run time", lambda g, x, p: g.Pad(x, p, 0.0), draw(2, 3), np.array([0, 2, 0, -1])),
    case("Pad edge at run time", lambda g, x, p: g.Pad(x, p, mode="edge"), draw(2, 3), np.array([0, 2, 0, 1])),
]
AXES = np.array([2, -2])
OF_THE_RUN = [
    case("Slice axes at run time", lambda g, x, a: g.Slice(x, [1, -1], [4, -100], a, [1, -2]), draw(2, 5, 4), AXES),
    case("Slice everything at run time", lambda g, x, a, s, e, d: g.Slice(x, s, e, a, d), draw(2, 5, 4), AXES, np.array([1, 4]),
         np.array([9, 0]), np.array([2, -1])),
    case("Pad axes at run time", lambda g, x, a: g.Pad(x, [1, -1, 2, 0], 0.5, a), draw(2, 3, 4), AXES, opsets=(18,)),
    case("Pad value and axes at run time", lambda g, x, v, a: g.Pad(x, [1, -1, 2, 0], v, a), draw(2, 3, 4), np.array(0.5), AXES,
         opsets=(18,)),
    *(case(f"Pad {mode} axes at run time", lambda g, x, a, m=mode: g.Pad(x, [1, 2, 2, 0], None, a, mode=m), draw(2, 4, 4), AXES,
           opsets=(19,)) for mode in ("reflect", "edge", "wrap")),
    case("Squeeze axes at run time", lambda g, x, a: g.Squeeze(x, a), draw(2, 1, 3, 1), np.array([1, -1])),
    case("Unsqueeze axes at run time", lambda g, x, a: g.Unsqueeze(x, a), draw(2, 3), np.array([1, -1])),
    case("Expand at run time", lambda g, x, s: g.Expand(x, s), draw(3, 1), np.array([2, 1, 4]), dynamic=()),
    case("Tile at run time, three axes", lambda g, x, r: g.Tile(x, r), draw(2, 1, 3), np.array([1, 3, 2])),
    case("Trilu at run time", lambda g, x, k: g.Trilu(x, k, upper=0), draw(2, 3, 4), np.array(1)),
    case("Split at run time", lambda g, x, s: g.Split(x, s, axis=1, n_outputs=3), draw(2, 6), np.array([1, 3, 2])),
    case("ReverseSequence at run time", lambda g, x, k: g.ReverseSequence(x, k, batch_axis=0, time_axis=1), draw(3, 4, 2),
         np.array([2, 4, 1]), dynamic=()),
    case("Slice of unknown rank", lambda g, x, s: g.Slice(unranked(g, x, s), [1], [3], [-2]), draw(2, 3, 4), np.array([2, 6, 2])),
    case("Pad of unknown rank", lambda g, x, s: g.Pad(unranked(g, x, s), [1, 0, -1, 2], 0.5), draw(2, 3, 4), np.array([6, 4])),
    case("Reshape at run time", lambda g, x, s: g.Reshape(x, s), draw(2, 3, 4), np.array([0, -1, 2])),
]
CASES = [*MOVES, *SLICES, *PADS, *OF_THE_RUN]


@pytest.mark.parametrize(("c", "opset"), rows(CASES))
def test_derivatives(c: Case, opset: int) -> None:
    check_case(c, opset)


SIZES = {"N": 2, "H": 7, "W": 6}, {"N": 1, "H": 9, "W": 8}
SYMBOLIC = [
    moved("Reshape", lambda g, x: g.Reshape(x, [0, -1]), 2, 2, 7, 6),
    moved("Flatten", lambda g, x: g.Flatten(x, axis=2), 2, 2, 7, 6),
    moved("Squeeze", lambda g, x: g.Squeeze(g.Unsqueeze(x, [2])), 2, 2, 7, 6),
    moved("Tile", lambda g, x: g.Tile(x, [1, 2, 1, 3]), 2, 2, 7, 6),
    moved("Expand", lambda g, x: g.Expand(g.Slice(x, [0], [1], [2]), g.Shape(x)), 2, 2, 7, 6),
    moved("Concat", lambda g, x: g.Concat(x, g.Slice(x, [2], [100], [2]), g.Tile(x, [1, 1, 2, 1]), axis=2), 2, 2, 7, 6),
    moved("Split", lambda g, x: g.Split(x, g.Concat([2], g.Shape(x, start=2, end=3) - 2, axis=0), axis=2, n_outputs=2)[1], 2, 2,
          7, 6),
    moved("Slice", lambda g, x: g.Slice(x, [2, -3], [-1, 100], [2, 3]), 2, 2, 7, 6),
    moved("Slice steps", lambda g, x: g.Slice(x, [1, -2], [100, -100], [2, 3], [2, -3]), 2, 2, 7, 6),
    moved("Slice, the last eight", lambda g, x: g.Slice(x, [-8, -8], [-1, -1], [2, 3]), 2, 2, 7, 6),
    moved("Slice half", lambda g, x: g.Slice(x, [0], g.Shape(x, start=2, end=3) / 2, [2]), 2, 2, 7, 6),
    moved("Pad", lambda g, x: g.Pad(x, [0, 0, 1, -2, 0, 1, 2, 3], 2.0), 2, 2, 7, 6),
    moved("Pad reflect", lambda g, x: g.Pad(x, [0, 0, 1, 2, 0, 1, 2, 3], mode="reflect"), 2, 2, 7, 6),
    moved("Pad to even", lambda g, x: g.Pad(x, g.Concat([0] * 6, g.Mod(g.Shape(x, start=2), 2), axis=0), 0.0), 2, 2, 7, 6),
    moved("DepthToSpace", lambda g, x: g.DepthToSpace(g.Concat(x, x * x, axis=1), blocksize=2, mode="CRD"), 2, 2, 7, 6),
    moved("CenterCropPad", lambda g, x: g.CenterCropPad(x, [8, 7], axes=[2, 3]), 2, 2, 7, 6, opsets=(18,)),
]


@pytest.mark.parametrize(("c", "opset"), rows(SYMBOLIC))
def test_symbolic_sizes(c: Case, opset: int) -> None:
    check_symbolic(c, opset, [("N", 2, "H", "W")], *SIZES)


def test_a_value_without_elements_has_a_cotangent_without_elements() -> None:
    x = np.zeros((0, 3, 4))
    for build in (lambda g, v: g.Reshape(v, [3, 4, 0], allowzero=1), lambda g, v: g.ReduceProd(v, [0], keepdims=0)):
        (dx,) = gradient(build, x, opset=18)
        assert dx.shape == x.shape
