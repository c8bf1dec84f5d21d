"""Each operator in its old spelling: ONNX Runtime must say the same before and after."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphattr.errors import ModelError
from graphattr.upgrade import MAX_OPSET, upgrade

F = np.float32
RNG = np.random.default_rng(0)


def x(*shape, dtype=F):
    return RNG.normal(size=shape).astype(dtype)


def model(nodes, feeds, weights=None, opset=11, outputs=("y",), ranks_only=False, ir_version=6):
    kind = helper.np_dtype_to_tensor_dtype
    info = [helper.make_tensor_value_info(k, kind(v.dtype), [None] * v.ndim if ranks_only else v.shape) for k, v in feeds.items()]
    graph = helper.make_graph(nodes, "g", info, [onnx.ValueInfoProto(name=o) for o in outputs],
                              [numpy_helper.from_array(w, k) for k, w in (weights or {}).items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def outcome(m, feeds):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def same(m, feeds, rtol=1e-6):
    before = m.SerializeToString()
    new = upgrade(m)
    assert m.SerializeToString() == before
    assert [o.version for o in new.opset_import if not o.domain] == [17]
    onnx.shape_inference.infer_shapes(new, check_type=True, strict_mode=True)
    for a, b in zip(outcome(m, feeds), outcome(new, feeds), strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_allclose(b, a, rtol=rtol, atol=1e-7)
    return new


def node(op, inputs="x", outputs="y", **attrs):
    return helper.make_node(op, inputs.split(","), outputs.split(","), name="it", doc_string="kept", **attrs)


X234, X45, IMAGE = x(2, 3, 4), x(4, 5), x(2, 3, 6, 8)
STATS = {"s": x(3) + 2, "b": x(3), "m": x(3), "v": x(3) ** 2 + F(0.1)}
I64 = np.int64

CASES = [
    ("clip", node("Clip", min=-0.5, max=0.25), X234, {}, [7, 8, 10]),
    ("clip one side", node("Clip", min=0.0), X234, {}, [7, 10]),
    ("clip no side", node("Clip"), X234, {}, [10]),
    ("pad", node("Pad", pads=[0, 1, 2, 1, 0, 0]), X234, {}, [7, 10]),
    ("pad value", node("Pad", pads=[0, 0, 2, -1, 0, 1], value=1.5), X234, {}, [7, 10]),
    ("pad reflect", node("Pad", pads=[0, 0, 2, 0, 0, 1], mode="reflect"), X234, {}, [10]),
    ("slice", node("Slice", starts=[1, -3], ends=[2, 9999999999], axes=[0, 2]), X234, {}, [7, 9]),
    ("slice without axes", node("Slice", starts=[0, 1], ends=[1, -1]), X234, {}, [7, 9]),
    ("squeeze", node("Squeeze", axes=[1]), x(2, 1, 3, 1), {}, [7, 11, 12]),
    ("squeeze all", node("Squeeze"), x(2, 1, 3, 1), {}, [7, 12]),
    ("unsqueeze", node("Unsqueeze", axes=[0, 3]), X234, {}, [7, 11, 12]),
    ("sum", node("ReduceSum", axes=[1, 2], keepdims=0), X234, {}, [7, 11, 12]),
    ("sum all", node("ReduceSum"), X234, {}, [7, 12]),
    ("mean", node("ReduceMean", axes=[1]), X234, {}, [7, 12]),
    ("split", node("Split", "x", "y,z", axis=2, split=[1, 3]), X234, {}, [7, 11, 12]),
    ("split evenly", node("Split", "x", "y,z", axis=2), X234, {}, [7, 12]),
    ("dropout", node("Dropout", ratio=0.9), X234, {}, [7, 9, 10]),
    ("dropout default", node("Dropout"), X234, {}, [7, 10, 12]),
    ("topk", node("TopK", "x", "y,z", k=2, axis=1), X234, {}, [7, 9]),
    ("topk input", node("TopK", "x,k", "y,z", axis=1), X234, {"k": np.array([2], I64)}, [10, 11]),
    ("upsample nearest", node("Upsample", scales=[1.0, 1.0, 2.0, 3.0]), IMAGE, {}, [7, 8]),
    ("upsample linear", node("Upsample", scales=[1.0, 1.0, 2.0, 3.0], mode="linear"), IMAGE, {}, [7, 8]),
    ("upsample 9", node("Upsample", "x,s"), IMAGE, {"s": np.array([1, 1, 2.5, 2], F)}, [9]),
    ("upsample 9 linear", node("Upsample", "x,s", mode="linear"), IMAGE, {"s": np.array([1, 1, 2.5, 2], F)}, [9]),
    ("resize up", node("Resize", "x,s"), IMAGE, {"s": np.array([1, 1, 2.3, 2], F)}, [10]),
    ("resize down", node("Resize", "x,s"), IMAGE, {"s": np.array([1, 1, 0.6, 0.45], F)}, [10]),
    ("resize both", node("Resize", "x,s"), IMAGE, {"s": np.array([1, 1, 0.6, 1.7], F)}, [10]),
    ("resize linear", node("Resize", "x,s", mode="linear"), IMAGE, {"s": np.array([1, 1, 0.6, 1.7], F)}, [10]),
    ("resize sizes", node("Resize", "x,r,s,n", mode="linear"), IMAGE,
     {"s": np.array([], F), "r": np.array([], F), "n": np.array([2, 3, 9, 5], I64)}, [11, 12]),
    ("resize tf", node("Resize", "x,r,s", coordinate_transformation_mode="tf_half_pixel_for_nn", nearest_mode="floor"), IMAGE,
     {"s": np.array([1, 1, 2, 0.7], F), "r": np.array([], F)}, [11, 12]),
    ("resize cubic", node("Resize", "x,r,s", mode="cubic", coordinate_transformation_mode="align_corners"), IMAGE,
     {"s": np.array([1, 1, 2, 2], F), "r": np.array([], F)}, [11]),
    ("scatter", node("Scatter", "x,i,u", axis=1), X45, {"i": np.array([[1, 0], [2, 4]], I64), "u": x(2, 2)}, [9, 10]),
    ("batchnorm", node("BatchNormalization", "x,s,b,m,v", epsilon=0.01), IMAGE, STATS, [7, 8, 9, 13, 14]),
    ("batchnorm momentum", node("BatchNormalization", "x,s,b,m,v", momentum=0.7), IMAGE, STATS, [9, 13]),
    ("batchnorm per element", node("BatchNormalization", "x,s,b,m,v", spatial=0), X234,
     {"s": x(3, 4) + 2, "b": x(3, 4), "m": x(3, 4), "v": x(3, 4) ** 2 + F(0.1)}, [7, 8]),
    *[(f"{op} axis {axis}", node(op, **({} if axis is None else {"axis": axis})), X234, {}, [7, 11, 12])
      for op in ("Softmax", "LogSoftmax", "Hardmax") for axis in (None, 0, 1, 2)],
    ("softmax last", node("Softmax", axis=-1), X234, {}, [11, 12]),
    ("softmax negative", node("Softmax", axis=-2), X234, {}, [11, 12]),
    ("softmax ones", node("Softmax"), x(2, 3, 1, 1), {}, [9, 12]),
    ("roi", node("RoiAlign", "x,r,i", output_height=2, output_width=2, spatial_scale=0.5), IMAGE,
     {"r": np.array([[0, 0, 9, 7], [2, 1, 8, 8]], F), "i": np.array([0, 1], I64)}, [10, 15]),
    ("prelu", node("PRelu", "x,s"), IMAGE, {"s": x(3, 1, 1)}, [7, 9, 15]),
    ("gemm", node("Gemm", "x,w,b", transB=1, alpha=0.5), X45, {"w": x(3, 5), "b": x(3)}, [7, 9, 11]),
    ("add", node("Add", "x,b"), X234, {"b": x(3, 1)}, [7, 13]),
    ("maxpool", node("MaxPool", kernel_shape=[2, 3], strides=[2, 1], auto_pad="SAME_UPPER"), IMAGE, {}, [7, 8, 10, 11]),
    ("averagepool", node("AveragePool", kernel_shape=[2, 3], pads=[1, 1, 0, 1]), IMAGE, {}, [7, 10, 11]),
    ("convtranspose", node("ConvTranspose", "x,w", strides=[2, 2], output_padding=[1, 0]), IMAGE, {"w": x(3, 2, 3, 3)}, [7, 11]),
    ("lrn", node("LRN", size=3), IMAGE, {}, [7, 12]),
    ("flatten", node("Flatten", axis=2), X234, {}, [7, 9, 11]),
    ("leaky", node("LeakyRelu", alpha=0.2), X234, {}, [7, 15]),
    ("cast", node("Cast", to=TensorProto.DOUBLE), X234, {}, [7, 9, 12]),
    ("mod", node("Mod", "x,b", fmod=1), X234, {"b": np.array(0.7, F)}, [10, 12]),
    ("argmax", node("ArgMax", axis=1), X234, {}, [7, 11, 12]),
    ("onehot", node("OneHot", "i,d,x", axis=-1), x(2), {"i": np.array([1, 0, 2], I64), "d": np.array(3, I64)}, [9, 11]),
    ("gathernd", node("GatherND", "x,i"), X234, {"i": np.array([[0, 1], [1, 2]], I64)}, [11, 12]),
    ("depth to space", node("DepthToSpace", blocksize=2), x(1, 8, 2, 3), {}, [7, 11]),
    ("quantize", node("QuantizeLinear", "x,s,z"), X234, {"s": np.array(0.02, F), "z": np.array(128, np.uint8)}, [10, 12]),
    ("where", node("Where", "c,x,x"), X234, {"c": np.array([True, False, True, True])}, [9, 15]),
    ("lstm", node("LSTM", "x,w,r", "y", hidden_size=2), X234, {"w": x(1, 8, 4), "r": x(1, 8, 2)}, [7, 13]),
]
TABLE = [pytest.param(n, data, weights, v, id=f"{name}-{v}") for name, n, data, weights, versions in CASES for v in versions]


@pytest.mark.parametrize(("n", "data", "weights", "version"), TABLE)
@pytest.mark.parametrize("ranks_only", [False, True], ids=["shapes", "ranks"])
def test_same_outputs(n, data, weights, version, ranks_only):
    m = model([n], {"x": data}, weights, version, n.output, ranks_only)
    new = same(m, {"x": data})
    last = next(k for k in new.graph.node if n.output[0] in k.output)
    assert (last.name, last.doc_string) == ("it", "kept")
    assert [o.name for o in new.graph.output] == list(n.output)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_clip_of_other_types(dtype):
    """ONNX Runtime has no Clip-6 for float64, so there is nothing to compare with but numpy."""
    data = x(3, 4, dtype=dtype)
    new = upgrade(model([node("Clip", min=-0.5, max=3.4e38)], {"x": data}, opset=10))
    np.testing.assert_array_equal(outcome(new, {"x": data})[0], np.maximum(data, dtype(-0.5)))


def test_unknown_type_is_taken_from_the_data():
    """Where shape inference does not reach, CastLike gives the bound its type."""
    m = model([helper.make_node("Foo", ["x"], ["h"], domain="custom"), node("Clip", "h", min=0.0)], {"x": X45}, opset=7)
    new = upgrade(m)
    assert [n.op_type for n in new.graph.node] == ["Foo", "Constant", "CastLike", "Clip"]


def test_dropout_mask_keeps_its_type():
    new = upgrade(model([node("Dropout", "x", "y,z")], {"x": X45}, opset=9, outputs=("y", "z")))
    assert [n.op_type for n in new.graph.node] == ["Dropout", "CastLike"]
    ort_y, ort_mask = outcome(new, {"x": X45})
    assert ort_mask.dtype == F
    assert (ort_y == X45).all()


def test_names_do_not_clash():
    m = model([node("Clip", "x", "it_min", min=0.0), helper.make_node("Neg", ["it_min"], ["y"])], {"x": X45}, opset=9)
    same(m, {"x": X45})


def test_bodies_are_upgraded():
    def body(name, **attrs):
        return helper.make_graph([helper.make_node("Squeeze", ["x"], [name], axes=[1])], name + "_body", [],
                                 [helper.make_tensor_value_info(name, 1, [2, 3])])
    data = x(2, 1, 3)
    n = helper.make_node("If", ["c"], ["y"], then_branch=body("t"), else_branch=body("e"))
    same(model([n], {"x": data}, {"c": np.array(True)}, 11), {"x": data})


def test_functions_are_upgraded():
    f = helper.make_function("local", "f", ["a"], ["b"], [helper.make_node("Squeeze", ["a"], ["b"], axes=[1])],
                             [helper.make_opsetid("", 12)])
    m = model([helper.make_node("f", ["x"], ["y"], domain="local")], {"x": x(2, 1)}, opset=17, ir_version=8)
    m.functions.append(f)
    new = upgrade(m)
    assert [n.op_type for n in new.functions[0].node] == ["Constant", "Squeeze"]
    assert new.functions[0].opset_import[0].version == 17


def test_ir_3_weights_are_no_inputs():
    w = x(4, 5)
    m = model([node("Add", "x,w")], {"x": X45, "w": w}, {"w": w}, 7, ir_version=3)
    new = same(m, {"x": X45})
    assert [v.name for v in new.graph.input] == ["x"]
    assert new.ir_version == 8


def test_recent_models_pass_untouched():
    m = model([node("Relu")], {"x": X45}, opset=20)
    assert upgrade(m) is m


@pytest.mark.parametrize(("imports", "version"), [
    ([("", 17), ("", 17)], 17), ([("ai.onnx", 18)], 18),
    ([("", 13), ("ai.onnx.ml", 1), ("", 12)], 17), ([("ai.onnx.ml", 1)], MAX_OPSET)])
def test_imports_are_made_unique(imports, version):
    m = model([node("Softmax")], {"x": X234})
    del m.opset_import[:]
    m.opset_import.extend(helper.make_opsetid(d, v) for d, v in imports)
    new = upgrade(m)
    assert new.opset_import[0] == helper.make_opsetid("", version)
    assert len({o.domain for o in new.opset_import}) == len(new.opset_import)
    np.testing.assert_allclose(outcome(m, {"x": X234})[0], outcome(new, {"x": X234})[0], rtol=1e-6)


@pytest.mark.parametrize(("m", "words"), [
    (model([node("Relu")], {"x": X45}, opset=6), ["opset 6", "7 to 26"]),
    (model([node("Relu")], {"x": X45}, opset=27), ["opset 27"]),
    (model([node("Pad")], {"x": X45}, opset=8), ["Pad 'it'", "do not fit"]),
    (model([node("Scan")], {"x": X45}, opset=8), ["Scan 'it'", "opset 9"]),
    (model([node("BatchNormalization", "x,s,b,m,v", "y,a,c,d,e")], {"x": IMAGE}, STATS, 7, ("y", "a")),
     ["'it'", "evaluation mode"]),
    (model([node("Resize", "x,s,s", coordinate_transformation_mode="tf_half_pixel_for_nn")], {"x": X45}),
     ["'it'", "tf_half_pixel"]),
])
def test_refuses(m, words):
    with pytest.raises(ModelError) as e:
        upgrade(m)
    assert all(w in str(e.value) for w in words)
