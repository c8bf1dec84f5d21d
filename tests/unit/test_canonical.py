"""Passes before the graph is frozen: what they join, what they leave alone, and that the values stay."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from graphattr.canonical import canonicalise
from graphattr.errors import TargetError
from graphattr.onnxio import write_graph
from graphattr.source import read
from tests.unit.tiny import array, model, node

ort = pytest.importorskip("onnxruntime")
I64 = np.int64
X = {"x": ["N", 2, 5, 6]}
CONV = {"w": array(3, 2, 2, 2), "b": array(3, seed=1)}


def ops(nodes, weights, outputs="y", opset=17):
    """Operators left after canonicalising; the outputs must be what they were."""
    before = model(nodes, X, dict.fromkeys(outputs.split()), weights, opset)
    found = canonicalise(read(before)).graph
    after = onnx.ModelProto()
    after.CopyFrom(before)
    after.graph.CopyFrom(write_graph(found))
    for want, got in zip(run(before), run(after), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5 * np.abs(want).max())
    return [n.op for n in found.nodes]


def run(m):
    x = array(2, 2, 5, 6, seed=7)
    return ort.InferenceSession(m.SerializeToString()).run(None, {"x": x})


def pad(*widths, more="", out="p", **attrs):
    return node("Pad", f"x n {more}", out, "pad", **attrs), {"n": np.array(widths, I64)}


AROUND = (0, 0, 1, 0, 0, 0, 2, 1)
KEPT = ["Pad", "Conv"]


@pytest.mark.parametrize("attrs", [{}, {"pads": [1, 1, 0, 2]}, {"auto_pad": "VALID"}], ids=str)
def test_zeros_around_a_convolution_are_its_padding(attrs):
    first, weights = pad(*AROUND)
    assert ops([first, node("Conv", "p w b", "y", **attrs)], weights | CONV) == ["Conv"]


def test_padding_of_some_axes():
    first, weights = pad(1, 2, 0, 1, more="zero axes")
    weights |= {"zero": np.float32(0), "axes": np.array([-1, 2], I64)} | CONV
    assert ops([first, node("Conv", "p w b", "y")], weights, opset=18) == ["Conv"]


def test_widths_that_torch_works_out():
    """[1, 0, 2, 1] from the last axis on, zeros for the axes before it, in pairs, turned round: 0 0 2 1, 0 0 1 0."""
    nodes = [node("ConstantOfShape", "missing", "zeros", value=numpy_helper.from_array(np.zeros(1, I64))),
             node("Concat", "own zeros", "all", axis=0), node("Reshape", "all pairs", "table"),
             node("Slice", "table last first axis back", "reversed"), node("Transpose", "reversed", "turned", perm=[1, 0]),
             node("Reshape", "turned flat", "row"), node("Cast", "row", "n", to=7), node("Pad", "x n", "p"),
             node("Conv", "p w b", "y")]
    held = {"missing": [4], "own": [1, 0, 2, 1], "pairs": [-1, 2], "last": [-1], "first": [-(2**63) + 1], "axis": [0],
            "back": [-1], "flat": [-1]}
    assert ops(nodes, {k: np.array(v, I64) for k, v in held.items()} | CONV) == ["Conv"]


def test_numbers_without_axes_keep_none():
    nodes = [node("Gather", "held at", "two"), node("Unsqueeze", "two axis", "end"), node("Concat", "front end", "n", axis=0),
             node("Pad", "x n", "p"), node("Conv", "p w b", "y")]
    held = {"held": [5, 2], "at": 1, "axis": [0], "front": [0, 0, 1, 0, 0, 0, 0]}
    assert ops(nodes, {k: np.array(v, I64) for k, v in held.items()} | CONV) == ["Conv"]


def test_every_reader_of_a_number_gets_it():
    nodes = [node("Add", "half half", "n"), node("Cast", "n", "z", to=1), node("Pad", "x n", "p"), node("Conv", "p w b", "y")]
    assert ops(nodes, {"half": np.array([0, 0, 1, 0, 0, 0, 0, 2], I64)} | CONV, "y z") == ["Cast", "Conv"]


@pytest.mark.parametrize(("widths", "more", "attrs", "conv"), [
    (AROUND, "one", {}, {}),
    (AROUND, "", {"mode": "edge"}, {}),
    ((0, 0, -1, 0, 0, 0, 1, 1), "", {}, {}),
    ((1, 0, 1, 1, 0, 0, 1, 1), "", {}, {}),
    (AROUND, "", {}, {"auto_pad": "SAME_UPPER"}),
], ids=["ones", "edge", "cut", "batch", "automatic"])
def test_other_padding_stays(widths, more, attrs, conv):
    first, weights = pad(*widths, more=more, **attrs)
    assert ops([first, node("Conv", "p w b", "y", **conv)], {"one": np.float32(1)} | weights | CONV) == KEPT


def test_padding_with_another_reader_stays():
    first, weights = pad(*AROUND)
    assert ops([first, node("Conv", "p w b", "y"), node("Relu", "p", "z")], weights | CONV, "y z") == [*KEPT, "Relu"]


def test_a_joined_pad_names_its_successor():
    first, weights = pad(*AROUND)
    m = model([first, node("Conv", "p w b", "y")], X, {"y": ["N", 3, 7, 6]}, weights | CONV)
    with pytest.raises(TargetError, match=r"'p' was folded away.*'y'"):
        canonicalise(read(m)).value("p")


CHANNEL = {"a": array(2, 1, 1, seed=3), "c": array(2, 1, 1, seed=4), "d": np.abs(array(2, 1, 1, seed=5)) + 0.5, "e": array(6)}


@pytest.mark.parametrize(("spelled", "left"), [
    ("Mul a,Add c", []),
    ("Sub c,Div d", []),
    ("Sub c,Div d,Mul a,Add c", []),
    ("Mul a", ["Mul"]),
    ("Add c", ["Add"]),
    ("Mul a,Div d", ["Mul", "Div"]),
    ("Mul a,Add e", ["Mul", "Add"]),
    ("Mul a,Relu,Add c", ["Mul", "Relu", "Add"]),
])
def test_a_normalisation_written_out_folds_into_the_convolution_behind_it(spelled, left):
    nodes, x = [], "x"
    for i, word in enumerate(spelled.split(",")):
        op, *constant = word.split()
        nodes.append(node(op, " ".join([x, *constant]), f"t{i}", f"n{i}"))
        x = f"t{i}"
    conv = node("Conv", f"{x} w b", "y")
    assert ops([*nodes, conv], CHANNEL | CONV) == [*left, "Conv"]
    padded = node("Conv", f"{x} w b", "y", pads=[1, 0, 0, 0])
    assert ops([*nodes, padded], CHANNEL | CONV) == [n.op_type for n in nodes] + ["Conv"]


def test_factor_and_shift_of_a_normalisation_over_data_are_its_own():
    nodes = [node("ReduceMean", "x", "m", axes=[1, 2, 3]), node("Sub", "x m", "d0"), node("Mul", "d0 d0", "d1"),
             node("ReduceMean", "d1", "v", axes=[1, 2, 3]), node("Sqrt", "v", "s"), node("Div", "d0 s", "n"),
             node("Mul", "n a", "na"), node("Add", "na c", "nc"), node("Conv", "nc w b", "y")]
    assert ops(nodes, CHANNEL | CONV) == [n.op_type for n in nodes]


def test_transposes_that_undo_each_other():
    there, back = {"perm": [0, 2, 3, 1]}, {"perm": [0, 3, 1, 2]}
    nodes = [node("Transpose", "x", "t", **there), node("Transpose", "t", "u", **back), node("Conv", "u w b", "y")]
    assert ops(nodes, CONV) == ["Conv"]
    assert ops([*nodes, node("Relu", "t", "z")], CONV, "y z") == ["Transpose", "Conv", "Relu"]
    nodes[1] = node("Transpose", "t", "u", **there)
    assert ops([*nodes[:2], node("Relu", "u", "y")], {}) == ["Transpose", "Transpose", "Relu"]
    assert ops([node("Transpose", "x", "t"), node("Transpose", "t", "y")], {}) == ["Transpose", "Transpose"]  # y is asked for
    assert ops([node("Transpose", "x", "t"), node("Transpose", "t", "u"), node("Relu", "u", "y")], {}) == ["Relu"]


def test_a_sum_of_two_is_an_addition():
    assert ops([node("Sum", "x c", "y")], CHANNEL) == ["Add"]
    assert ops([node("Sum", "x c x", "y")], CHANNEL) == ["Sum"]
