"""Types and shapes: ONNX's own, and what is certain beyond them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from graphattr.contents import content_of
from graphattr.errors import BuildError
from graphattr.graph import Graph
from graphattr.infer import make_attribute, read_type, schema_of, shape_text


def window(op, size, opset=17, **attrs):
    """Shape of the windowed axes for a symbolic image H x W."""
    g = Graph(opset)
    x = g.input("x", np.float32, ("N", 2, *size))
    weight = [np.zeros((4, 2, *attrs.get("kernel_shape", [3, 3])), np.float32)] if op == "Conv" else []
    return g.emit(op, x, *weight, **attrs).shape[2:]


@pytest.mark.parametrize("op", ["Conv", "MaxPool", "AveragePool"])
def test_windows_that_keep_the_size_keep_the_name(op):
    assert window(op, ("H", "W"), kernel_shape=[3, 3], pads=[1, 1, 1, 1]) == ("H", "W")
    assert window(op, ("H", "W"), kernel_shape=[1, 1]) == ("H", "W")
    assert window(op, ("H", "W"), kernel_shape=[3, 3], auto_pad="SAME_UPPER") == ("H", "W")


@pytest.mark.parametrize("op", ["Conv", "MaxPool"])
def test_windows_that_change_the_size_spell_their_geometry(op):
    two = window(op, ("H", "W"), kernel_shape=[2, 2], strides=[2, 2])
    assert two == window(op, ("H", "W"), kernel_shape=[2, 2], strides=[2, 2]), "equal paths have equal names"
    assert two[0] != "H"
    assert two != window(op, ("H", "W"), kernel_shape=[3, 3], strides=[2, 2])
    assert two != window(op, ("H", "W"), kernel_shape=[2, 2])
    assert two[0] != window(op, ("K", "W"), kernel_shape=[2, 2], strides=[2, 2])[0]


@pytest.mark.parametrize("opset", [17, 21, 22])
@pytest.mark.parametrize("size", range(4, 12))
@pytest.mark.parametrize("ceil", [0, 1])
def test_windows_of_a_static_axis_are_what_onnxruntime_makes(size, ceil, opset):
    onnxruntime = pytest.importorskip("onnxruntime")
    attrs = {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 1, 1], "ceil_mode": ceil}
    made = window("MaxPool", (size, size), opset, **attrs)
    graph = helper.make_graph([helper.make_node("MaxPool", ["x"], ["y"], **attrs)], "g",
                              [helper.make_tensor_value_info("x", 1, [1, 2, size, size])],
                              [helper.make_tensor_value_info("y", 1, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert made == session.run(None, {"x": np.zeros((1, 2, size, size), np.float32)})[0].shape[2:]


@pytest.mark.parametrize(("source", "target", "shape"), [
    (("N", 3, 4), [0, -1], ("N", 12)), (("N", 3, 4), [-1, 12], ("N", 12)), (("N", 3, 4), [0, 0, 2, 2], ("N", 3, 2, 2)),
    ((2, 3, 4), [-1], (24,)), ((2, 3, 4), [4, -1], (4, 6)), (("N", "M"), [0, -1], ("N", "M"))])
def test_reshape(source, target, shape):
    g = Graph(17)
    made = g.Reshape(g.input("x", np.float32, source), target).shape
    assert made == shape


def test_broadcasts():
    g = Graph(17)
    x, one, row = (g.input(n, np.float32, s) for n, s in (("x", ("N", 3)), ("one", (1, 1)), ("row", (3,))))
    assert (x + one).shape == (x + row).shape == ("N", 3)
    assert g.Expand(row, g.shape(x)).shape == ("N", 3)
    assert g.Add(x, g.input("z", np.float32, ("M", 3))).shape[1] == 3


def test_unknown_inputs_give_unknown_outputs():
    g = Graph(17)
    (y,) = g.record("Custom", [g.input("x", np.float32, (2,))], ["y"], {}, "n", "my.ops")
    assert (y.dtype, y.shape) == (None, None)
    (z,) = g.record("Relu", [y], ["z"], {}, "r")
    assert z.dtype is None
    (typed,) = g.record("Custom", [z], ["t"], {}, "n2", "my.ops", {"t": (np.dtype(np.float32), ("N", 4))})
    assert (typed.dtype, typed.shape) == (np.float32, ("N", 4))
    assert g.Relu(typed).shape == ("N", 4)


def test_an_illegal_node_of_the_file_is_unknown_and_one_of_ours_an_error():
    g = Graph(17)
    x = g.input("x", np.float32, (2, 3))
    (y,) = g.record("MatMul", [x, x], ["y"], {}, "n")
    assert y.shape is None
    with pytest.raises(BuildError, match="MatMul"):
        g.MatMul(x, g.const(np.zeros((4, 4), np.float32)))


def test_attributes_have_the_type_of_the_schema():
    schema = schema_of("Gemm", "", 17)
    assert make_attribute("alpha", 2, schema).type == onnx.AttributeProto.FLOAT
    assert make_attribute("transB", 1, schema).i == 1
    assert make_attribute("axes", [], schema_of("Squeeze", "", 11)).type == onnx.AttributeProto.INTS
    with pytest.raises(BuildError, match="beta2"):
        make_attribute("beta2", 1.0, schema)
    assert schema_of("NoSuchOp", "", 17) is None


def test_read_type():
    info = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT16, ["N", None, 3])
    assert read_type(info.type) == (np.float16, ("N", None, 3))
    info.type.tensor_type.shape.dim[0].dim_value = -1
    assert read_type(info.type) == (np.float16, (None, None, 3))
    assert read_type(helper.make_tensor_value_info("x", 1, None).type) == (np.float32, None)
    assert read_type(None) == (None, None)
    assert read_type(helper.make_tensor_sequence_value_info("s", 1, None).type) == (None, None)


@pytest.mark.parametrize(("shape", "text"), [(None, "?"), ((), "()"), (("N",), "(N,)"), (("N", 3, None, "_x_3"), "(N, 3, ?, ?)")])
def test_shape_text(shape, text):
    assert shape_text(shape) == text


def test_content_of():
    assert content_of(np.array([1, 2])) == (1, 2)
    assert content_of(np.array(7)) == 7
    assert content_of(np.array([1.0])) is None
    assert content_of(np.zeros((2, 2), int)) is None
    assert content_of(np.zeros(65, int)) is None


def test_computed_sizes_whose_elements_are_known_count_as_constants():
    g = Graph(18)
    x = g.input("x", np.float32, (2, 8))
    size, rest = g.emit("Shape", x, start=1), g.const([3])
    sizes = g.record("Concat", [rest, g.Sub(size, rest)], ["sizes"], {"axis": 0}, "sizes")[0]
    left, right = g.emit("Split", x, sizes, axis=-1, n_outputs=2)
    assert (left.shape, right.shape) == ((2, 3), (2, 5))


def test_axes_known_by_their_number_only():
    g = Graph(19)
    x, axes, sizes = g.input("x", np.float32, ("N", 2, 1)), g.input("axes", np.int64, (1,)), g.input("sizes", np.int64, (2,))
    assert (g.Unsqueeze(x, axes).rank, g.Squeeze(x, axes).rank) == (4, 2)
    assert (g.ReduceMax(x, axes).rank, g.ReduceSum(x, axes, keepdims=0).rank) == (3, 2)
    assert (g.Pad(x, sizes, None, axes).rank, g.CenterCropPad(x, sizes, axes=[1, 2]).rank) == (3, 3)
    assert [v.rank for v in g.Split(x, sizes, axis=1, n_outputs=2)] == [3, 3]


def test_fourier_transforms():
    g = Graph(20)
    x, length = g.input("x", np.float32, ("N", 8, 1)), g.input("length", np.int64, ())
    assert g.DFT(x, None, 1, onesided=1).shape == ("N", 5, 2)
    assert isinstance(g.DFT(x, length, 1).shape[1], str)
    assert g.STFT(x, 2, None, 4).shape[3] == 2
    assert g.STFT(x, 2, None, 4, onesided=1).shape == ("N", 3, 3, 2)


def test_the_number_of_elements_is_known_where_the_shape_is():
    g = Graph(18)
    assert g.Size(g.input("x", np.float32, (2, 3))).content == 6
    assert g.Size(g.input("y", np.float32, ("N", 3))).content is None
