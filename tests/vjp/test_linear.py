"""Convolutions and products against central differences, and symbolic sizes against static ones."""

from __future__ import annotations

from typing import Any

import pytest

from graphattr.errors import UnsupportedOp
from graphattr.graph import Graph
from graphattr.vjp import pullback
from tests.vjp.checking import Case, case, check_case, rows, sampler
from tests.vjp.windows import check_forward, check_symbolic, numpy_windows

__all__ = ["numpy_windows"]
draw = sampler(2)


def conv(name: str, x: tuple[int, ...], w: tuple[int, ...], bias: bool = False, **attrs: Any) -> Case:
    arrays = [draw(*x), draw(*w), *([draw(w[0])] if bias else [])]
    return case(f"Conv {name}", lambda g, *v: g.Conv(*v, **attrs), *arrays)


def turned(name: str, x: tuple[int, ...], w: tuple[int, ...], bias: bool = False, **attrs: Any) -> Case:
    arrays = [draw(*x), draw(*w), *([draw(w[1] * attrs.get("group", 1))] if bias else [])]
    return case(f"ConvTranspose {name}", lambda g, *v: g.ConvTranspose(*v, **attrs), *arrays)


def gemm(name: str, *shapes: tuple[int, ...], **attrs: Any) -> Case:
    return case(f"Gemm {name}", lambda g, *v: g.Gemm(*v, **attrs), *(draw(*s) for s in shapes), dynamic=())


def matmul(a: tuple[int, ...], b: tuple[int, ...]) -> Case:
    return case(f"MatMul {a} {b}", lambda g, *v: g.MatMul(*v), draw(*a), draw(*b),
                dynamic=(0,) if len(a) > 2 and len(b) == 2 else ())


def einsum(equation: str, *shapes: tuple[int, ...]) -> Case:
    return case(f"Einsum {equation}", lambda g, *v: g.Einsum(*v, equation=equation), *(draw(*s) for s in shapes), dynamic=())


CONV = [
    conv("plain", (2, 3, 5, 4), (4, 3, 3, 2), True),
    conv("kernel_shape", (1, 2, 4, 4), (2, 2, 3, 3), kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    conv("1-D pads stride", (2, 2, 9), (3, 2, 3), True, pads=[2, 1], strides=[2]),
    conv("3-D", (1, 2, 4, 5, 3), (2, 2, 2, 3, 2), True, strides=[2, 1, 2], pads=[1, 0, 0, 0, 2, 1]),
    conv("uneven pads, strides, dilations", (2, 2, 8, 9), (3, 2, 3, 2), pads=[2, 0, 1, 3], strides=[2, 3], dilations=[1, 2]),
    conv("stride beyond kernel", (2, 2, 10, 11), (3, 2, 2, 1), strides=[4, 3]),
    conv("remainder beyond dilation", (1, 1, 11), (1, 1, 2), strides=[4]),
    conv("remainder and dilation", (1, 2, 12), (2, 2, 3), strides=[5], dilations=[2], pads=[0, 1]),
    conv("unused end pad", (1, 1, 6), (1, 1, 3), strides=[3], pads=[0, 2]),
    conv("pads beyond kernel", (1, 1, 3, 3), (1, 1, 2, 2), pads=[3, 2, 4, 3], strides=[2, 3]),
    conv("groups", (2, 4, 5, 6), (6, 2, 3, 2), True, group=2, pads=[1, 0, 0, 1], strides=[1, 2]),
    conv("depthwise", (2, 3, 6, 5), (3, 1, 3, 3), True, group=3, pads=[1, 1, 1, 1], strides=[2, 2]),
    conv("depthwise multiplier, dilation", (1, 2, 9), (6, 1, 3), group=2, dilations=[3], pads=[1, 2]),
    conv("3-D groups", (1, 4, 3, 3, 4), (4, 2, 2, 2, 2), group=2, strides=[1, 2, 1]),
    *(conv(f"{mode} {x[2:]} {k} s{s} d{d}", x, (2, 2, *k), auto_pad=mode, strides=s, dilations=d)
      for mode in ("SAME_UPPER", "SAME_LOWER")
      for x, k, s, d in [((1, 2, 7, 6), (3, 2), [2, 2], [1, 1]), ((1, 2, 6, 5), (2, 4), [1, 3], [1, 1]),
                         ((1, 2, 7), (1,), [3], [1]),
                         ((1, 2, 8), (4,), [2], [1])]),
    conv("VALID", (1, 2, 7, 6), (2, 2, 3, 2), auto_pad="VALID", strides=[2, 1]),
]
TRANSPOSED = [
    turned("plain", (2, 3, 4, 3), (3, 2, 3, 2), True),
    turned("1-D stride pads", (2, 2, 4), (2, 3, 3), True, strides=[2], pads=[1, 0]),
    turned("3-D", (1, 2, 2, 3, 2), (2, 1, 2, 2, 3), strides=[2, 1, 2]),
    turned("output_padding", (1, 2, 3, 4), (2, 2, 3, 3), strides=[2, 3], pads=[1, 1, 1, 0], output_padding=[1, 2]),
    turned("dilations", (1, 2, 4, 3), (2, 1, 2, 3), dilations=[2, 1], strides=[1, 2], pads=[0, 1, 1, 0]),
    turned("groups", (2, 4, 3, 4), (4, 3, 2, 3), True, group=2, strides=[2, 2], pads=[1, 0, 0, 1]),
    turned("depthwise", (1, 3, 4), (3, 1, 4), group=3, strides=[2], pads=[1, 1]),
    turned("stride beyond kernel", (1, 2, 3), (2, 2, 2), strides=[4], output_padding=[1]),
    turned("output_shape", (1, 2, 3, 4), (2, 2, 3, 3), strides=[2, 2], output_shape=[6, 7]),
    turned("output_shape upper", (1, 2, 3, 4), (2, 2, 3, 4), strides=[2, 2], output_shape=[6, 7], auto_pad="SAME_UPPER"),
    turned("SAME_UPPER", (1, 2, 3, 4), (2, 2, 3, 4), strides=[2, 1], auto_pad="SAME_UPPER"),
    turned("SAME_LOWER", (1, 2, 3, 4), (2, 2, 3, 4), strides=[2, 1], auto_pad="SAME_LOWER"),
    turned("SAME, stride beyond kernel", (1, 2, 3), (2, 2, 2), strides=[3], auto_pad="SAME_UPPER"),
]
BEYOND_ORT = [  # legal ONNX that ONNX Runtime refuses
    conv("SAME_UPPER dilated", (1, 2, 7), (2, 2, 3), auto_pad="SAME_UPPER", dilations=[2]),
    conv("SAME_LOWER dilated, strides", (1, 2, 8), (2, 2, 3), auto_pad="SAME_LOWER", dilations=[2], strides=[3]),
    turned("output_padding within dilation", (1, 2, 4), (2, 2, 2), dilations=[3], output_padding=[2]),
]
PRODUCTS = [
    *(gemm(f"{ta}{tb}", (4, 3) if ta else (3, 4), (2, 4) if tb else (4, 2), (3, 2), transA=ta, transB=tb, alpha=0.5, beta=-1.5)
      for ta in (0, 1) for tb in (0, 1)),
    gemm("no C", (3, 4), (4, 2)),
    *(gemm(f"C {c}", (3, 4), (4, 2), c) for c in [(2,), (1,), (), (3, 1), (1, 2)]),
    case("Gemm batch", lambda g, *v: g.Gemm(*v, transB=1), draw(3, 4), draw(2, 4), draw(2)),
    *(matmul(a, b) for a, b in [((3, 4), (4, 2)), ((2, 3, 4), (4, 2)), ((2, 3, 4), (2, 4, 2)), ((3, 4), (2, 4, 2)),
                                ((2, 1, 3, 4), (5, 4, 2)),
                                ((4,), (4, 2)), ((3, 4), (4,)), ((4,), (4,)), ((4,), (2, 4, 3)), ((2, 3, 4), (4,)),
                                ((5, 2, 3, 4), (4,))]),
]
EINSUM = [
    einsum("ij,jk->ik", (3, 4), (4, 2)), einsum("ij,jk", (3, 4), (4, 2)), einsum("ba,ca", (3, 4), (2, 4)),
    einsum("bij,bjk->bik", (2, 3, 4), (2, 4, 2)),
    einsum("ij->ji", (3, 4)), einsum("ij->i", (3, 4)), einsum("ij->", (3, 4)), einsum("ij,kl->il", (3, 4), (2, 3)),
    einsum("i,i->", (3,), (3,)),
    einsum("i,j,k->kij", (3,), (2,), (4,)), einsum("bhqd, bhkd -> bhqk", (2, 2, 3, 4), (2, 2, 2, 4)),
    einsum("a,abc,c->b", (2,), (2, 3, 4), (4,)),
    einsum("...ij,...jk->...ik", (2, 3, 4), (2, 4, 2)), einsum("...ij,jk->...ik", (2, 3, 4), (4, 2)),
    einsum("...ij,...jk", (5, 1, 3, 4), (1, 2, 4, 2)),
    einsum("ii->i", (3, 3)), einsum("ii->", (3, 3)), einsum("ii", (3, 3)), einsum("iji->j", (3, 2, 3)),
    einsum("iii->i", (2, 2, 2)),
    einsum("ii,ij->j", (3, 3), (3, 4)), einsum("bii,bjj->bij", (2, 3, 3), (2, 4, 4)), einsum("...ii->...i", (2, 4, 3, 3)),
    einsum("a...b->b...a", (2, 4, 5, 3)),
    einsum("...,ij...->...j", (2,), (3, 4, 2)), einsum("i...->...", (3, 2, 4)),
]
CASES = [*CONV, *TRANSPOSED, *BEYOND_ORT, *PRODUCTS, *EINSUM]
BATCH_LAST = case("Einsum batch", lambda g, *v: g.Einsum(*v, equation="nij,jk->nik"), draw(2, 3, 4), draw(4, 2))
CASES.append(BATCH_LAST)


@pytest.mark.usefixtures("numpy_windows")
@pytest.mark.parametrize(("c", "opset"), rows(CASES))
def test_derivatives(c: Case, opset: int) -> None:
    check_case(c, opset)


@pytest.mark.usefixtures("numpy_windows")
@pytest.mark.parametrize(("c", "opset"), rows([*CONV, *TRANSPOSED]))
def test_forward(c: Case, opset: int) -> None:
    check_forward(c, opset)


SIZES = {"N": 2, "H": 7, "W": 6}, {"N": 1, "H": 10, "W": 9}
SYMBOLIC = [
    *(conv(f"symbolic {name}", (2, 2, 7, 6), w, **attrs) for name, w, attrs in [
        ("plain", (3, 2, 3, 2), {}),
        ("pads", (3, 2, 3, 3), {"pads": [1, 0, 2, 1], "group": 1}),
        ("strides", (3, 2, 3, 2), {"pads": [1, 0, 2, 1], "strides": [2, 3]}),
        ("stride beyond kernel", (3, 2, 2, 1), {"strides": [3, 4]}),
        ("dilations", (3, 2, 2, 3), {"dilations": [3, 2], "strides": [2, 1], "pads": [1, 1, 1, 1]}),
        ("groups", (4, 1, 3, 2), {"group": 2, "strides": [2, 1], "pads": [1, 1, 1, 1]}),
        ("SAME_UPPER", (2, 2, 3, 4), {"auto_pad": "SAME_UPPER", "strides": [2, 1]}),
        ("SAME_LOWER", (2, 1, 4, 3), {"auto_pad": "SAME_LOWER", "strides": [3, 2], "group": 2}),
        ("VALID", (2, 2, 3, 2), {"auto_pad": "VALID", "strides": [2, 2]}),
    ]),
    *(turned(f"symbolic {name}", (2, 2, 7, 6), w, **attrs) for name, w, attrs in [
        ("plain", (2, 3, 3, 2), {}),
        ("strides", (2, 3, 3, 2), {"strides": [2, 3], "pads": [1, 0, 1, 1], "output_padding": [1, 2]}),
        ("groups", (2, 2, 3, 2), {"group": 2, "strides": [2, 1]}),
        ("SAME_LOWER", (2, 1, 3, 4), {"strides": [2, 1], "auto_pad": "SAME_LOWER"}),
        ("dilations", (2, 1, 2, 2), {"dilations": [3, 2], "strides": [2, 1], "output_padding": [1, 0]}),
        ("output_shape", (2, 3, 3, 2), {"strides": [2, 3], "output_shape": [11, 17]}),
        ("output_shape upper, groups", (2, 1, 4, 3), {"strides": [2, 1], "output_shape": [21, 9], "auto_pad": "SAME_UPPER",
                                                      "group": 2}),
        ("output_shape and output_padding", (2, 3, 3, 2), {"strides": [2, 3], "output_shape": [12, 15],
                                                          "output_padding": [1, 2]}),
        ("a larger output_shape", (2, 3, 3, 2), {"strides": [1, 1], "output_shape": [12, 14]}),
    ]),
]


@pytest.mark.usefixtures("numpy_windows")
@pytest.mark.parametrize("c", SYMBOLIC, ids=str)
@pytest.mark.parametrize("shape", [("N", 2, "H", "W"), ("N", 2, 7, "W")], ids=str)
def test_symbolic_sizes(c: Case, shape: tuple[Any, ...]) -> None:
    check_symbolic(c, 17, [shape, c.arrays[1].shape], *({**s, "H": 7} if 7 in shape else s for s in SIZES))


def test_symbolic_matrix_sizes() -> None:
    sizes = {"N": 2, "T": 3, "S": 4}, {"N": 1, "T": 5, "S": 2}
    check_symbolic(case("attention", lambda g, q, k: g.MatMul(q, g.Transpose(k, perm=[0, 2, 1])), draw(2, 3, 4), draw(2, 3, 4)),
                   17,
                   [("N", "T", 4), ("N", "S", 4)], *sizes)
    check_symbolic(case("einsum", lambda g, q, k: g.Einsum(q, k, equation="ntd,nsd->nt"), draw(2, 3, 4), draw(2, 3, 4)), 17,
                   [("N", "T", 4), ("N", "S", 4)], *sizes)


@pytest.mark.parametrize(("op", "shapes", "attrs", "reason"), [
    ("Einsum", [(3,)], {"equation": "i->ii"}, "repeats an index in its result 'ii'"),
    ("Conv", [(1, 1, 5), (1, 1, 3)], {"pads": [-1, 0]}, "negative pads"),
    ("Conv", [(1, 1, 5), None], {}, "needs the rank"),
])
def test_refusals(op: str, shapes: list[Any], attrs: dict[str, Any], reason: str) -> None:
    g = Graph(17)
    xs = [g.input(f"x{i}", "float32", s) for i, s in enumerate(shapes)]
    (y,) = g.record(op, xs, ["y"], attrs, "node7")
    dy = g.input("dy", "float32", (1,) * 3)
    with pytest.raises(UnsupportedOp, match=f"{op} node 'node7'.*{reason}"):
        pullback(g, {y: dy}, xs)
