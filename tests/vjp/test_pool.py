"""Pooling against central differences; winners at ties; one file at several sizes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from graphattr.errors import UnsupportedOp
from graphattr.graph import Graph
from graphattr.onnxio import write_model
from graphattr.vjp import pullback
from tests.vjp.checking import Case, case, check_case, gradient, rows, sampler
from tests.vjp.windows import check_forward, check_symbolic, numpy_windows

__all__ = ["numpy_windows"]
draw = sampler(3)
GEOMETRIES: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("plain", (2, 3, 4, 6), {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("overlap", (1, 2, 5, 6), {"kernel_shape": [3, 2]}),
    ("1-D pads", (2, 2, 7), {"kernel_shape": [3], "strides": [2], "pads": [2, 1]}),
    ("3-D", (1, 2, 4, 5, 4), {"kernel_shape": [2, 3, 2], "strides": [2, 1, 2], "pads": [0, 1, 1, 0, 1, 0]}),
    ("uneven pads", (1, 2, 5, 6), {"kernel_shape": [3, 3], "strides": [2, 3], "pads": [2, 0, 1, 2]}),
    ("stride beyond kernel", (1, 2, 7, 8), {"kernel_shape": [2, 1], "strides": [3, 3]}),
    ("ceil", (1, 2, 6, 5), {"kernel_shape": [3, 2], "strides": [2, 2], "ceil_mode": 1}),
    ("ceil and pads", (1, 1, 6, 7), {"kernel_shape": [3, 3], "strides": [2, 3], "pads": [1, 1, 1, 0], "ceil_mode": 1}),
    ("ceil, window beyond the end", (1, 2, 5), {"kernel_shape": [2], "strides": [3], "pads": [1, 1], "ceil_mode": 1}),
    ("VALID", (1, 2, 7, 6), {"kernel_shape": [3, 2], "strides": [2, 3], "auto_pad": "VALID"}),
    *((f"{mode} {x[2:]} {k} {s}", x, {"kernel_shape": k, "strides": s, "auto_pad": mode}) for mode in ("SAME_UPPER", "SAME_LOWER")
      for x, k, s in [((1, 2, 7, 6), [3, 2], [2, 2]), ((1, 1, 6, 5), [2, 4], [1, 3]), ((1, 2, 7), [1], [3])]),
]
DILATED: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("dilations", (1, 2, 7, 8), {"kernel_shape": [2, 3], "dilations": [3, 2], "strides": [1, 2], "pads": [1, 2, 0, 1]}),
    ("dilations ceil", (1, 2, 8), {"kernel_shape": [2], "dilations": [2], "strides": [2], "pads": [0, 1], "ceil_mode": 1}),
]


def pool(op: str, name: str, x: tuple[int, ...], **attrs: Any) -> Case:
    # before 22, ONNX Runtime's loader counts one window too many
    newest = name.startswith("ceil, window beyond") and op != "MaxPool"
    since = 22 if newest else 19 if op == "AveragePool" and "dilations" in attrs else 18 if op == "LpPool" else 17
    array = np.linspace(-2, 2, int(np.prod(x)))[np.random.default_rng(1).permutation(int(np.prod(x)))].reshape(x)  # no near ties
    return case(f"{op} {name}", lambda g, v: g.emit(op, v, **attrs), array, opsets=(since,))


MAX = [*(pool("MaxPool", name, x, **a) for name, x, a in [*GEOMETRIES, *DILATED]),
       pool("MaxPool", "column-major indices", (1, 2, 4, 6), kernel_shape=[3, 2], storage_order=1),
       case("MaxPool whose Indices are given", lambda g, x: g.MaxPool(x, n_outputs=2, kernel_shape=[2], strides=[1])[0],
            draw(2, 2, 5)),
       case("MaxPool whose Indices are column-major",
            lambda g, x: g.MaxPool(x, n_outputs=2, kernel_shape=[2, 2], storage_order=1)[0], draw(2, 2, 4, 3))]
AVERAGE = [pool("AveragePool", f"{name} pad{include}", x, **a, count_include_pad=include)
           for include in (0, 1) for name, x, a in [*GEOMETRIES, *DILATED]]
LP = [*(pool("LpPool", name, x, **a) for name, x, a in [*GEOMETRIES, *DILATED]),
      pool("LpPool", "p=1", (1, 2, 7), kernel_shape=[3], strides=[2], p=1),
      pool("LpPool", "p=3", (1, 2, 5, 6), kernel_shape=[3, 2], strides=[2, 1], p=3)]
GLOBAL = [pool(op, str(x), x) for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
          for x in ((2, 3, 4, 5), (2, 3, 4), (2, 1, 2, 3, 2))]
GLOBAL += [pool("GlobalLpPool", f"p={p}", (2, 2, 3, 4), p=p) for p in (1, 3)]


def unpooled(g: Graph, x: Any) -> Any:
    return g.MaxUnpool(g.Sin(x), g.const(np.array([[[[1, 6], [8, 15]]]])), kernel_shape=[2, 2], strides=[2, 2])


UNPOOL = [case("MaxUnpool", unpooled, draw(1, 1, 2, 2), dynamic=())]
CASES = [*MAX, *AVERAGE, *LP, *GLOBAL, *UNPOOL]


@pytest.mark.usefixtures("numpy_windows")
@pytest.mark.parametrize(("c", "opset"), rows(CASES))
def test_derivatives(c: Case, opset: int) -> None:
    check_case(c, opset)


@pytest.mark.usefixtures("numpy_windows")
@pytest.mark.parametrize(("c", "opset"), rows([*AVERAGE, *LP]))
def test_forward(c: Case, opset: int) -> None:
    check_forward(c, opset)


SYMBOLIC = [pool(op, f"symbolic {name}", (2, 2, 7, 6), **a) for op in ("MaxPool", "AveragePool", "LpPool") for name, a in [
    ("plain", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ("overlap, pads", {"kernel_shape": [3, 3], "strides": [2, 1], "pads": [1, 0, 1, 1]}),
    ("stride beyond kernel", {"kernel_shape": [2, 1], "strides": [3, 4]}),
    ("ceil", {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 1, 1, 0], "ceil_mode": 1}),
    ("SAME_UPPER", {"kernel_shape": [3, 2], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    ("SAME_LOWER", {"kernel_shape": [2, 4], "strides": [1, 3], "auto_pad": "SAME_LOWER"}),
    *([("count_include_pad", {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 1, 1, 0], "ceil_mode": 1,
                              "count_include_pad": 1}),
       ("SAME, count_include_pad", {"kernel_shape": [3, 4], "strides": [2, 3], "auto_pad": "SAME_UPPER", "count_include_pad": 1})]
      if op == "AveragePool" else []),
]]
SYMBOLIC += [pool(op, "symbolic", (2, 2, 7, 6)) for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")]


@pytest.mark.usefixtures("numpy_windows")
@pytest.mark.parametrize(("c", "opset"), rows(SYMBOLIC))
def test_symbolic_sizes(c: Case, opset: int) -> None:
    check_symbolic(c, opset, [("N", 2, "H", "W")], {"N": 2, "H": 7, "W": 6}, {"N": 1, "H": 10, "W": 9}, {"N": 3, "H": 4, "W": 5})


@pytest.mark.usefixtures("numpy_windows")
def test_the_first_maximum_wins() -> None:
    x = np.array([[[1.0, 3.0, 3.0, 0.0, 3.0]]])
    np.testing.assert_array_equal(gradient(lambda g, v: g.MaxPool(v, kernel_shape=[3]), x)[0], [[[0, 2, 1, 0, 0]]])
    np.testing.assert_array_equal(gradient(lambda g, v: g.GlobalMaxPool(v), x)[0], [[[0, 1, 0, 0, 0]]])


@pytest.mark.usefixtures("numpy_windows")
def test_a_window_of_zeros_has_no_slope() -> None:
    for p in (1, 2, 3):
        (dx,) = gradient(lambda g, v, p=p: g.GlobalLpPool(v, p=p), np.zeros((1, 1, 3)))
        np.testing.assert_array_equal(dx, np.zeros((1, 1, 3)))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool"])
def test_an_empty_batch_passes(op: str) -> None:
    g = Graph(17)
    x = g.input("x", "float32", ("N", 3, 6, 6))
    y = g.emit(op, x, **({} if op.startswith("Global") else {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}))
    dy = g.input("dy", "float32", y.shape)
    g.outputs = [("dx", pullback(g, {y: dy}, [x])[x])]
    session = ort.InferenceSession(write_model(g).SerializeToString(), providers=["CPUExecutionProvider"])
    shape = (0, 3, *(d for d in (y.shape or ())[2:]))
    (dx,) = session.run(None, {"x": np.zeros((0, 3, 6, 6), np.float32), "dy": np.zeros(shape, np.float32)})
    assert dx.shape == (0, 3, 6, 6)


@pytest.mark.parametrize("opset", [17, 22])
def test_no_window_starts_behind_the_end(opset: int) -> None:
    g = Graph(opset)
    attrs: dict[str, Any] = {"kernel_shape": [2], "strides": [3], "pads": [1, 1], "ceil_mode": 1}
    y, where = g.MaxPool(g.input("x", "float32", (1, 1, 5)), n_outputs=2, **attrs)
    assert y.shape == where.shape == (1, 1, 2)
    assert g.AveragePool(g.input("z", "float32", (1, 1, 6)), **attrs).shape == (1, 1, 3)


def test_negative_pads_are_refused() -> None:
    g = Graph(17)
    x = g.input("x", "float32", (1, 1, 5))
    (y,) = g.record("AveragePool", [x], ["y"], {"kernel_shape": [3], "pads": [-1, 0]}, "pool1")
    with pytest.raises(UnsupportedOp, match="AveragePool node 'pool1' has negative pads"):
        pullback(g, {y: g.input("dy", "float32", (1, 1, 2))}, [x])
