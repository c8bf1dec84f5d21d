"""Foreign operators before and after: ONNX Runtime must give the same outputs, quantised ones to one step."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphattr.foreign import standardise
from graphattr.source import read
from graphattr.upgrade import upgrade

EXPORTS = Path(__file__).resolve().parents[3] / "shared" / "exports"
F, I32, I64, U8, I8 = np.float32, np.int32, np.int64, np.uint8, np.int8
RNG = np.random.default_rng(0)


def x(*shape, dtype=F):
    return RNG.normal(size=shape).astype(dtype)


def levels(*shape, dtype=U8):
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max + 1, shape).astype(dtype)


def model(nodes, feeds, weights=None, opset=17, outputs=("y",)):
    info = [helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for k, v in feeds.items()]
    graph = helper.make_graph(nodes, "g", info, [onnx.ValueInfoProto(name=o) for o in outputs],
                              [numpy_helper.from_array(np.asarray(w), k) for k, w in (weights or {}).items()])
    imports = [helper.make_opsetid(*o) for o in (("", opset), ("ai.onnx.ml", 1), ("com.microsoft", 1))]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def outcome(m, feeds):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(m.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, feeds)


def same(m, feeds, foreign=(), rtol=2e-6):
    """Equal outputs, and of the foreign operators only those named are left."""
    before = m.SerializeToString()
    new = standardise(m)
    assert m.SerializeToString() == before
    left = [n.op_type for n in new.graph.node if n.domain or n.op_type.startswith("QLinear") or "Integer" in n.op_type]
    assert left == list(foreign)
    for a, b in zip(outcome(m, feeds), outcome(new, feeds), strict=True):
        close(a, b, rtol)
    return new


def close(a, b, rtol):
    if not isinstance(a, np.ndarray):
        assert [list(row) for row in a] == [list(row) for row in b]         # a ZipMap's rows
        assert [list(row.values()) for row in b] == [pytest.approx(list(row.values()), abs=1e-6) for row in a]
        return
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    if a.dtype in (U8, I8):
        assert np.abs(a.astype(int) - b.astype(int)).max() <= 1
    elif a.dtype.kind == "f":
        np.testing.assert_allclose(b, a, rtol=rtol, atol=rtol * np.abs(a[np.isfinite(a)]).max())
    else:
        np.testing.assert_array_equal(a, b)


def ml(op, inputs="x", outputs="y", **attrs):
    return helper.make_node(op, inputs.split(","), outputs.split(","), name=op, domain="ai.onnx.ml", **attrs)


def ms(op, inputs="x", outputs="y", domain="com.microsoft", **attrs):
    return helper.make_node(op, inputs.split(","), outputs.split(","), name="it", domain=domain, **attrs)


# -- ai.onnx.ml ---------------------------------------------------------------------------------------------------
ROWS = np.concatenate([x(4, 3), np.zeros((1, 3), F), -np.abs(x(1, 3))])
HOLES = np.where(ROWS > 0, ROWS, F("nan"))
LEARNERS = [
    ("scaler", ml("Scaler", offset=[1.0, 2.0, 3.0], scale=[2.0, 0.5, 3.0]), ROWS),
    ("scaler one", ml("Scaler", offset=[1.0], scale=[2.0]), ROWS),
    ("scaler double", ml("Scaler", offset=[1.0, 2.0, 3.0], scale=[2.0, 0.5, 0.1]), ROWS.astype(float)),
    ("scaler int", ml("Scaler", offset=[1.0], scale=[0.3]), levels(2, 3).astype(I64)),
    *[(f"normalizer {norm}", ml("Normalizer", norm=norm), ROWS) for norm in ("MAX", "L1", "L2")],
    ("normalizer int", ml("Normalizer", norm="L2"), levels(2, 3).astype(I64)),
    ("regressor", ml("LinearRegressor", coefficients=[1.0, 2.0, 3.0], intercepts=[0.5]), ROWS),
    ("regressor two", ml("LinearRegressor", coefficients=[1.0, 2, 3, 4, 5, 6], intercepts=[0.5, 0.25], targets=2), ROWS),
    ("regressor no intercept", ml("LinearRegressor", coefficients=[1.0, 2, 3, 4, 5, 6], targets=2), ROWS),
    ("imputer", ml("Imputer", imputed_value_floats=[7.0, 8.0, 9.0], replaced_value_float=0.0), ROWS),
    ("imputer nan", ml("Imputer", imputed_value_floats=[7.0], replaced_value_float=float("nan")), HOLES),
]


@pytest.mark.parametrize(("n", "data"), [pytest.param(*case[1:], id=case[0]) for case in LEARNERS])
@pytest.mark.parametrize("opset", [17, 21])
def test_learners(n, data, opset):
    same(model([n], {"x": data}, opset=opset), {"x": data})


@pytest.mark.parametrize("post", ["NONE", "SOFTMAX", "LOGISTIC"])
@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("labels", [{"classlabels_ints": [7, 3, 5]}, {"classlabels_strings": ["no", "yes", "so"]}])
@pytest.mark.parametrize("multi", [0, 1])
@pytest.mark.parametrize("dtype", [F, np.float64, I64])
def test_linear_classifier(post, rows, labels, multi, dtype):
    labels = {k: v[:max(rows, 2)] for k, v in labels.items()}
    n = ml("LinearClassifier", "x", "label,score", coefficients=x(rows * 3).tolist(), intercepts=x(rows).tolist(),
           post_transform=post, multi_class=multi, **labels)
    data = (ROWS * 3).astype(dtype)
    m = model([n], {"x": data}, outputs=("label", "score"))
    new = same(m, {"x": data}, foreign=["LinearClassifier"])
    assert standardise(new) is new
    m = model([n], {"x": data}, outputs=("score",))
    same(m, {"x": data})


@pytest.mark.parametrize("post", ["SOFTMAX_ZERO", "PROBIT"])
def test_other_post_transforms_stay(post):
    n = ml("LinearClassifier", "x", "label,y", coefficients=[1.0, 2, 3], intercepts=[0.5], post_transform=post,
           classlabels_ints=[0, 1])
    m = model([n], {"x": ROWS})
    assert standardise(m) is m


def test_pipeline_with_zipmap():
    """Types become known from front to back; the map at the end stays, and so do the labels."""
    nodes = [ml("FeatureVectorizer", "x,w", "all", inputdimensions=[3, 2]),
             helper.make_node("Identity", ["all"], ["same"]),
             ml("Scaler", "same", "scaled", offset=[0.0] * 5, scale=[2.0] * 5),
             ml("ArrayFeatureExtractor", "scaled,columns", "some"),
             ml("LinearClassifier", "some", "label,score", coefficients=[1.0, -2.0], intercepts=[0.5], post_transform="LOGISTIC",
                classlabels_ints=[0, 1]),
             ml("Normalizer", "score", "normal", norm="L1"),
             ml("ZipMap", "normal", "map", classlabels_int64s=[0, 1])]
    feeds = {"x": ROWS, "w": x(6, 2)}
    m = model(nodes, feeds, {"columns": np.array([[0, 4]], I64)}, outputs=("label", "normal", "map"))
    same(m, feeds, foreign=["LinearClassifier", "ZipMap"])


def test_labels_and_unknown_operators_stay():
    nodes = [ml("ArrayFeatureExtractor", "classes,i", "y"), ml("Binarizer", "x", "z", threshold=0.5)]
    m = model(nodes, {"x": ROWS}, {"classes": np.array([4, 5, 6], I64), "i": np.array([2], I64)}, outputs=("y", "z"))
    same(m, {"x": ROWS}, foreign=["ArrayFeatureExtractor", "Binarizer"])
    foo = helper.make_node("Foo", ["x"], ["y"], domain="mine")
    plain = model([foo, helper.make_node("Cast", ["y"], ["z"], to=1)], {"x": ROWS})
    assert standardise(plain) is plain


# -- com.microsoft ------------------------------------------------------------------------------------------------
IMAGE, SEQ = x(2, 3, 6, 5), x(2, 4, 8)
CONV = {"w": x(4, 3, 3, 3), "b": x(4)}
NORM = {"s": x(2, 4, 8), "g": x(8), "b": x(8), "c": x(8)}
FUSED = [
    ("conv", ms("FusedConv", "x,w"), IMAGE, CONV),
    ("conv relu", ms("FusedConv", "x,w,b", activation="Relu", pads=[1, 1, 1, 1], strides=[2, 1]), IMAGE, CONV),
    ("conv sum", ms("FusedConv", "x,w,b,z", activation="Relu"), IMAGE, {**CONV, "z": x(2, 4, 4, 3)}),
    ("conv leaky", ms("FusedConv", "x,w,b", activation="LeakyRelu", activation_params=[0.3]), IMAGE, CONV),
    ("conv clip", ms("FusedConv", "x,w,b", activation="Clip", activation_params=[-0.5, 2.0]), IMAGE, CONV),
    ("conv hard", ms("FusedConv", "x,w,b", activation="HardSigmoid", activation_params=[0.3, 0.4]), IMAGE, CONV),
    ("gemm", ms("FusedGemm", "x,w,b", activation="Relu", transB=1, alpha=0.5), ROWS, {"w": x(4, 3), "b": x(4)}),
    ("gemm leaky", ms("FusedGemm", "x,w", activation="LeakyRelu", activation_alpha=0.2), ROWS, {"w": x(3, 4)}),
    ("matmul", ms("FusedMatMul", "x,w", alpha=0.25), SEQ, {"w": x(8, 3)}),
    ("matmul turned", ms("FusedMatMul", "x,w", transA=1, transB=1), SEQ, {"w": x(3, 4)}),
    ("bias gelu", ms("BiasGelu", "x,b"), SEQ, NORM),
    ("gelu", ms("Gelu"), SEQ, {}),
    ("fast gelu", ms("FastGelu"), SEQ, {}),
    ("fast gelu bias", ms("FastGelu", "x,b"), SEQ, NORM),
    ("quick gelu", ms("QuickGelu", alpha=1.5), SEQ, {}),
    ("skip", ms("SkipLayerNormalization", "x,s,g,b", epsilon=1e-3), SEQ, NORM),
    ("skip bias", ms("SkipLayerNormalization", "x,s,g,b,c", "y,,,z"), SEQ, NORM),
    ("skip no beta", ms("SkipLayerNormalization", "x,s,g"), SEQ, NORM),
    ("skip simple", ms("SkipSimplifiedLayerNormalization", "x,s,g,c", "y,,,z", epsilon=1e-3), SEQ, NORM),
    ("simple", ms("SimplifiedLayerNormalization", "x,g", domain="", epsilon=1e-3), SEQ, NORM),
    ("simple two axes", ms("SimplifiedLayerNormalization", "x,g", domain="", axis=1), SEQ, {"g": x(4, 8)}),
]


@pytest.mark.parametrize(("n", "data", "weights"), [pytest.param(*case[1:], id=case[0]) for case in FUSED])
@pytest.mark.parametrize("opset", [17, 21])
def test_fused(n, data, weights, opset):
    outputs = [o for o in n.output if o]
    new = same(model([n], {"x": data}, weights, opset, outputs), {"x": data}, rtol=2e-5 if "Fast" in n.op_type else 4e-6)
    assert "it" in [k.name for k in new.graph.node if n.output[0] in k.output]


# -- quantised ----------------------------------------------------------------------------------------------------
def q(value):
    return np.array(value, F)


QA = {"s": q(0.02), "z": U8(120)}
QY = {"ys": q(0.05), "yz": U8(110)}
QX = levels(2, 3, 6, 5)
QW = {**QA, **QY, "w": levels(4, 3, 3, 3, dtype=I8), "ws": q([0.01, 0.02, 0.03, 0.01]), "wz": np.zeros(4, I8),
      "b": np.array([900, -70, 5, 44], I32)}
QM = {**QA, **QY, "w": levels(8, 5), "ws": q(0.01), "wz": U8(131), "c": levels(5).astype(I32)}
QUANTISED = [
    ("conv", ms("QLinearConv", "x,s,z,w,ws,wz,ys,yz,b", domain="", pads=[1, 1, 1, 1]), QX, QW),
    ("conv one scale", ms("QLinearConv", "x,s,z,w,ws,wz,ys,yz", domain=""), QX, {**QW, "ws": q([0.01]), "wz": np.zeros(1, I8)}),
    ("matmul", ms("QLinearMatMul", "x,s,z,w,ws,wz,ys,yz", domain=""), levels(2, 4, 8), QM),
    ("matmul columns", ms("QLinearMatMul", "x,s,z,w,ws,wz,ys,yz", domain=""), levels(4, 8),
     {**QM, "ws": q([0.01, 0.02, 0.03, 0.04, 0.05]), "w": levels(8, 5, dtype=I8), "wz": np.zeros(5, I8)}),
    ("gemm", ms("QGemm", "x,s,z,w,ws,wz,c,ys,yz"), levels(4, 8), QM),
    ("gemm float", ms("QGemm", "x,s,z,w,ws,wz,c", alpha=0.5), levels(4, 8), QM),
    ("gemm columns", ms("QGemm", "x,s,z,w,ws,wz,c", transB=1), levels(4, 8),
     {**QM, "w": levels(5, 8, dtype=I8), "ws": q([0.01, 0.02, 0.03, 0.04, 0.05]), "wz": np.zeros(5, I8)}),
    ("add", ms("QLinearAdd", "x,s,z,w,ws,wz,ys,yz"), levels(4, 5), {**QM, "w": levels(5)}),
    ("add signed", ms("QLinearAdd", "x,s,z,w,ws,z,ys,z"), levels(4, 5, dtype=I8), {**QM, "w": levels(5, dtype=I8), "z": I8(-7)}),
    ("mul", ms("QLinearMul", "x,s,z,w,ws,wz,ys,yz"), levels(4, 5), {**QM, "w": levels(5)}),
    ("concat", ms("QLinearConcat", "ys,yz,x,s,z,w,ws,wz", axis=1), levels(4, 5), {**QM, "w": levels(4, 2)}),
    ("global", ms("QLinearGlobalAveragePool", "x,s,z,ys,yz", channels_last=0), QX, QM),
    ("average", ms("QLinearAveragePool", "x,s,z,ys,yz", kernel_shape=[2, 2], strides=[2, 1]), QX, QM),
    ("leaky", ms("QLinearLeakyRelu", "x,s,z,ys,yz", alpha=0.1), QX, QM),
    ("sigmoid", ms("QLinearSigmoid", "x,s,z,ys,yz"), QX, {**QM, "ys": q(1 / 256), "yz": U8(0)}),
    ("softmax", ms("QLinearSoftmax", "x,s,z,ys,yz", axis=-1, opset=13), levels(4, 8), {**QM, "ys": q(1 / 256), "yz": U8(0)}),
    ("quantize", ms("QuantizeLinear", "x,s,z"), SEQ, QA),
    ("dequantize", ms("DequantizeLinear", "x,s,z"), QX, QA),
    ("matmul integer", ms("MatMulInteger", "x,w,z,wz", domain=""), levels(2, 4, 8), QM),
    ("matmul integer plain", ms("MatMulInteger", "x,w", domain=""), levels(4, 8), QM),
    ("matmul integer columns", ms("MatMulInteger", "x,w,z,wz", domain=""), levels(4, 8), {**QM, "wz": levels(5)}),
    ("conv integer", ms("ConvInteger", "x,w,z", domain="", pads=[1, 0, 0, 1]), QX, {**QW, "w": levels(4, 3, 3, 3)}),
    ("matmul to float", ms("MatMulIntegerToFloat", "x,w,s,ws,z,wz,f"), levels(4, 8), {**QM, "f": x(5)}),
    ("dynamic matmul", ms("DynamicQuantizeMatMul", "x,w,ws,wz,f"), x(4, 8), {**QM, "f": x(5)}),
]


@pytest.mark.parametrize(("n", "data", "weights"), [pytest.param(*case[1:], id=case[0]) for case in QUANTISED])
@pytest.mark.parametrize("opset", [17, 21])
def test_quantised(n, data, weights, opset):
    same(model([n], {"x": data}, weights, opset), {"x": data})


@pytest.mark.parametrize("bits", [17, 21])
def test_sixteen_bits_from_opset_21(bits):
    m = model([ms("QuantizeLinear", "x,s,z")], {"x": SEQ}, {"s": q(0.001), "z": np.uint16(30000)}, bits)
    same(m, {"x": SEQ}, foreign=["QuantizeLinear"] if bits < 21 else [])


def test_integers_do_not_cut_the_path():
    """x -> DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul: from levels to result, floats all the way."""
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["a", "as", "az"]),
             helper.make_node("MatMulInteger", ["a", "w", "az", "wz"], ["i"]),
             helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
             helper.make_node("Mul", ["f", "as"], ["y"])]
    data = x(4, 8)
    new = same(model(nodes, {"x": data}, QM), {"x": data})
    writer = {o: n for n in new.graph.node for o in n.output}
    path, at = [], "y"
    while at in writer:
        path.append(writer[at].op_type)
        at = writer[at].input[0]
    assert path == ["Mul", "Identity", "MatMul", "DequantizeLinear", "DynamicQuantizeLinear"]


@pytest.mark.parametrize(("n", "more"), [
    (ms("MaxPool", "q", domain="", kernel_shape=[2, 2]), {}),
    (ms("Reshape", "q,n", domain=""), {"n": np.array([0, -1], I64)}),
    (ms("Transpose", "q", domain="", perm=[0, 2, 3, 1]), {}),
    (ms("Concat", "q,w,q", domain="", axis=0), {"w": levels(1, 3, 6, 5)}),
    (ms("Pad", "q,n,c", domain=""), {"n": np.array([0, 0, 1, 0, 0, 0, 0, 1], I64), "c": U8(120)}),
    (ms("Resize", "q,,n", domain=""), {"n": np.array([1, 1, 2, 1.5], F)}),
    (ms("Split", "q", "y,v", domain="", axis=2), {}),
    (ms("Gather", "q,n", domain="", axis=1), {"n": np.array([2, 0], I64)}),
    (ms("Clip", "q,c", domain=""), {"c": U8(120)}),
], ids=lambda v: getattr(v, "op_type", ""))
def test_levels_pass_as_floats(n, more):
    """Between quantised operators some work on the levels themselves."""
    quantise = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
    new = same(model([quantise, n], {"x": IMAGE}, {**QA, **more}, outputs=list(n.output)), {"x": IMAGE})
    assert [k.op_type for k in new.graph.node if n.output[0] in k.output] == ["QuantizeLinear"]


def test_bytes_that_are_no_levels_stay():
    data = levels(2, 3, 6, 5)
    nodes = [ms("Transpose", "x", "t", domain="", perm=[0, 2, 3, 1]),
             helper.make_node("DequantizeLinear", ["t", "s", "z"], ["f"]),
             helper.make_node("QuantizeLinear", ["f", "s", "z"], ["y"])]
    m = model(nodes, {"x": data}, QA)
    assert standardise(m) is m


def test_bodies_are_rewritten():
    def body(name):
        return helper.make_graph([ms("Gelu", "x", name)], name + "_body", [], [helper.make_tensor_value_info(name, 1, [2, 4, 8])])
    n = helper.make_node("If", ["c"], ["y"], then_branch=body("t"), else_branch=body("e"))
    new = same(model([n], {"x": SEQ}, {"c": np.array(True)}), {"x": SEQ})
    assert not any(k.domain for a in new.graph.node[0].attribute for k in a.g.node)


@pytest.mark.skipif(not EXPORTS.is_dir(), reason="the shared exports are not here")
@pytest.mark.parametrize("path", sorted(EXPORTS.glob("*.onnx")), ids=lambda p: p.stem)
def test_exports(path):
    m, z = read(path).model, np.load(path.with_suffix(".npz"))
    feeds = {k[3:]: z[k] for k in z.files if k.startswith("in_")}
    for a, b in zip(outcome(m, feeds), outcome(standardise(upgrade(m)), feeds), strict=True):
        close(a, b, 5e-2 if any(k in path.stem for k in ("qoperator", "dynamic")) else 1e-5)
