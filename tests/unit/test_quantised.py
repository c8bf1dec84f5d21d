"""Models as ONNX Runtime's quantiser leaves them: their explanation is that of the float model with dequantised weights."""

from __future__ import annotations

import logging

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from tiny import F, array, model, node

import graphattr
from graphattr.foreign import standardise
from graphattr.graph import Graph
from graphattr.signs import nonnegative

RULES = ["gradient", "lrp.epsilon", "lrp.zplus", "lrp.epsilon_plus", "lrp.epsilon_plus_flat", "lrp.alpha2_beta1", "deep_taylor"]
X = array(3, 3, 8, 8, seed=11)
ort.set_default_logger_severity(4)


def cnn(opset=17):
    """x [N, 3, 8, 8] -> Conv Relu MaxPool Conv Relu mean Gemm -> y [N, 5]."""
    weights = {"w1": array(4, 3, 3, 3) / 3, "b1": array(4, seed=1), "w2": array(6, 4, 3, 3, seed=2) / 4, "b2": array(6, seed=3),
               "w3": array(6, 5, seed=4), "b3": array(5, seed=5)}
    nodes = [node("Conv", "x w1 b1", "c1", "first", pads=[1, 1, 1, 1]), node("Relu", "c1", "r1", "relu1"),
             node("MaxPool", "r1", "p", "pool", kernel_shape=[2, 2], strides=[2, 2]),
             node("Conv", "p w2 b2", "c2", "second"), node("Relu", "c2", "r2", "relu2"),
             node("GlobalAveragePool", "r2", "m", "mean"), node("Flatten", "m", "f", "flat"),
             node("Gemm", "f w3 b3", "y", "dense")]
    return model(nodes, {"x": (F, ["N", 3, 8, 8])}, {"y": (F, ["N", 5])}, weights, opset)


class Photos(CalibrationDataReader):
    def __init__(self):
        self.left = iter([{"x": array(4, 3, 8, 8, seed=k)} for k in range(10, 14)])

    def get_next(self):
        return next(self.left, None)


def static(folder, **options):
    logging.disable(logging.WARNING)
    onnx.save(cnn(), folder / "float.onnx")
    quantize_static(folder / "float.onnx", folder / "q.onnx", Photos(), **options)
    return onnx.load(folder / "q.onnx")


def dynamic(folder, **options):
    logging.disable(logging.WARNING)
    onnx.save(cnn(), folder / "float.onnx")
    quantize_dynamic(folder / "float.onnx", folder / "q.onnx", **options)
    return onnx.load(folder / "q.onnx")


QDQ, QOP = QuantFormat.QDQ, QuantFormat.QOperator
SORTS = {
    "qdq per channel": lambda d: static(d, quant_format=QDQ, per_channel=True),
    "qdq unsigned": lambda d: static(d, quant_format=QDQ, activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8),
    "qdq symmetric": lambda d: static(d, quant_format=QDQ, extra_options={"ActivationSymmetric": True}),
    "qdq 16 bits": lambda d: static(d, quant_format=QDQ, per_channel=True, activation_type=QuantType.QUInt16),
    "qdq 4 bits": lambda d: static(d, quant_format=QDQ, per_channel=True, weight_type=QuantType.QInt4),
    "qdq 4 bits unsigned": lambda d: static(d, quant_format=QDQ, weight_type=QuantType.QUInt4),
    "qdq float8": lambda d: static(d, quant_format=QDQ, weight_type=QuantType.QFLOAT8E4M3FN,
                                   activation_type=QuantType.QFLOAT8E4M3FN, calibrate_method=CalibrationMethod.Distribution),
    "qoperator": lambda d: static(d, quant_format=QOP, per_channel=True),
    "qoperator unsigned": lambda d: static(d, quant_format=QOP, activation_type=QuantType.QUInt8, weight_type=QuantType.QUInt8),
    "dynamic": lambda d: dynamic(d),
    "dynamic per channel": lambda d: dynamic(d, per_channel=True, weight_type=QuantType.QUInt8),
}


def run(proto, feeds, names=None):
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(names, feeds)


def with_float_weights(proto):
    """The model with each DequantizeLinear of a constant evaluated: what quantises activations stays."""
    made = onnx.ModelProto()
    made.CopyFrom(standardise(proto))
    held = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    kept = []
    for n in made.graph.node:
        if n.op_type == "Constant":
            held[n.output[0]] = numpy_helper.to_array(n.attribute[0].t)
        if n.op_type in ("DequantizeLinear", "Mul", "Reshape") and all(i in held for i in n.input):
            bare = helper.make_graph([n], "one", [], [helper.make_tensor_value_info(n.output[0], F, None)],
                                     [numpy_helper.from_array(held[i], i) for i in n.input])
            one = helper.make_model(bare, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
            held[n.output[0]] = run(one, {})[0]
            made.graph.initializer.append(numpy_helper.from_array(held[n.output[0]], n.output[0]))
        else:
            kept.append(n)
    del made.graph.node[:]
    made.graph.node.extend(kept)
    return made


def without_levels(proto):
    """The model without any quantisation of activations."""
    made = with_float_weights(proto)
    stands, kept = {}, []
    for n in made.graph.node:
        n.input[:] = [stands.get(i, i) for i in n.input]
        if n.op_type in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
            stands[n.output[0]] = n.input[0]
        else:
            kept.append(n)
    end = made.graph.output[0].name
    kept.append(helper.make_node("Identity", [stands[end]], [end])) if end in stands else None
    del made.graph.node[:]
    made.graph.node.extend(kept)
    return made


def as_written(proto, method):
    """Scores without ONNX Runtime's optimisations, which move the quantisation of activations where weights are floats."""
    ex = graphattr.convert(proto, method=method, target=3)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    made = ort.InferenceSession(ex.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return made.run(["x_attribution"], {"x": X})[0]


def close(got, want, tolerance):
    assert np.abs(want).max() > 0
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


@pytest.fixture(scope="module")
def quantised(tmp_path_factory):
    return {name: make(tmp_path_factory.mktemp("q")) for name, make in SORTS.items()}


@pytest.mark.parametrize("sort", [s for s in SORTS if "float8" not in s])  # which ONNX Runtime runs without optimisations only
def test_outputs_are_the_models_own(quantised, sort):
    proto = quantised[sort]
    ex = graphattr.convert(proto, method="lrp.epsilon")
    onnx.checker.check_model(ex.model, full_check=True)
    assert not {o.domain for o in ex.model.opset_import} - {""}
    (want,) = run(proto, {"x": X})
    step = np.abs(want).max() / 100        # ONNX Runtime's integer kernels may round one level otherwise
    assert np.abs(graphattr.Explainer(ex)({"x": X}).outputs["y"] - want).max() <= (1e-4 if "dynamic" in sort else step)


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("sort", SORTS)
def test_a_dequantised_weight_is_a_layers_weight(quantised, sort, method):
    got, want = (as_written(p, method) for p in (quantised[sort], with_float_weights(quantised[sort])))
    close(got, want, 1e-5)


@pytest.mark.parametrize("method", RULES)
def test_fine_levels_are_nearly_the_float_model(quantised, method):
    """With 16 bits for activations what is left of quantisation is Relu in the guise of saturation."""
    proto = quantised["qdq 16 bits"]
    flat = without_levels(proto)
    for n in list(flat.graph.node):
        if n.op_type == "Conv":            # the quantiser took Relu into the range of what follows
            later = next(k for k in flat.graph.node if n.output[0] in k.input)
            later.input[:] = [f"{i}/relu" if i == n.output[0] else i for i in later.input]
            flat.graph.node.insert(list(flat.graph.node).index(n) + 1, node("Relu", n.output[0], f"{n.output[0]}/relu"))
    got, want = (graphattr.explain(p, {"x": X}, method, target=3).scores["x"] for p in (proto, flat))
    close(got, want, 1e-2)


@pytest.mark.parametrize("sort", ["qdq per channel", "qoperator", "dynamic per channel"])
def test_layers_have_their_kinds(quantised, sort):
    """Three linear layers with weight and bias; the first still stands at the input."""
    rows = graphattr.inspect(quantised[sort])["layers"]
    assert [r["op"] for r in rows if r["kind"] == "linear"] == ["Conv", "Conv", "MatMul" if "dyn" in sort else "Gemm"]
    ex = graphattr.convert(quantised[sort], method="deep_taylor")
    rules = [e["rule"] for e in ex.manifest["layers"]["deep_taylor"]]
    assert "lrp.wsquare" in rules


@pytest.mark.parametrize("lowering", ["cpu", "cuda", "portable"])
def test_signed_levels_from_opset_21_on(quantised, lowering):
    """ONNX Runtime refuses a Reshape of dequantised int8 there, such as the one behind the explained output."""
    proto = onnx.ModelProto()
    proto.CopyFrom(quantised["qdq per channel"])
    proto.opset_import[0].version, proto.ir_version = 21, 10
    got, want = (graphattr.explain(p, {"x": X}, "lrp.epsilon_plus", lowering=lowering).scores["x"]
                 for p in (proto, quantised["qdq per channel"]))
    close(got, want, 1e-5)


@pytest.mark.parametrize("precision", ["float32", "model"])
@pytest.mark.parametrize("target", ["argmax", 3])
def test_half_precision_between_levels(quantised, target, precision):
    """float16 scales, which ONNX has from opset 19 on."""
    proto = onnx.ModelProto()
    proto.CopyFrom(quantised["qdq per channel"])
    proto.opset_import[0].version, proto.ir_version = 21, 10
    for t in proto.graph.initializer:
        if t.data_type == F:
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name))
    for v in [*proto.graph.input, *proto.graph.output]:
        v.type.tensor_type.elem_type = TensorProto.FLOAT16
    del proto.graph.value_info[:]
    x = X.astype(np.float16)
    a = graphattr.explain(proto, {"x": x}, "lrp.epsilon_plus", target=target, precision=precision)
    want = graphattr.explain(quantised["qdq per channel"], {"x": x.astype(np.float32)}, "lrp.epsilon_plus", target=target)
    assert target != "argmax" or np.array_equal(a.target, want.target)
    close(a.scores["x"], want.scores["x"], 5e-2)        # single values of x lie between two levels


def test_a_quantised_gate_is_a_gate(tmp_path):
    """u sigmoid(v): relevance goes to u, also where the gate is quantised."""
    weights = {"w": array(8, 3, 3, 3) / 3, "two": np.array([4, 4]), "w3": array(4, 5, seed=4)}
    nodes = [node("Conv", "x w", "c", "first"), node("Split", "c two", "u v", "split", axis=1), node("Sigmoid", "v", "g", "gate"),
             node("Mul", "u g", "p", "product"), node("GlobalAveragePool", "p", "m", "mean"), node("Flatten", "m", "f", "flat"),
             node("MatMul", "f w3", "y", "dense")]
    proto = model(nodes, {"x": (F, ["N", 3, 8, 8])}, {"y": (F, ["N", 5])}, weights)
    onnx.save(proto, tmp_path / "float.onnx")
    quantize_static(tmp_path / "float.onnx", tmp_path / "q.onnx", Photos(), quant_format=QDQ, activation_type=QuantType.QUInt16,
                    weight_type=QuantType.QInt16)
    got, want = (graphattr.explain(p, {"x": X}, "lrp.epsilon", target=1, mul="gate").scores["x"]
                 for p in (onnx.load(tmp_path / "q.onnx"), proto))
    close(got, want, 2e-2)


@pytest.mark.parametrize(("dtype", "zero", "certain"), [("uint8", 0, True), ("uint8", 3, False), ("int8", -128, True),
                                                        ("int8", 0, False), ("uint8", None, True), ("int8", None, False)])
def test_levels_from_the_lowest_are_not_negative(dtype, zero, certain):
    g = Graph(17)
    q, scale = g.input("q", dtype, (2, 3)), g.const(np.float32(0.5))
    y = g.DequantizeLinear(q, scale) if zero is None else g.DequantizeLinear(q, scale, g.const(np.array(zero, dtype)))
    assert (y in nonnegative(g)) == certain


# -- weights in blocks --------------------------------------------------------------------------------------------
def blocks(dtype, opset=21, inner=64, size=8, symmetric=False):
    """x [N, inner] -> MatMul of a weight quantised in blocks, bias, Relu, MatMul of another -> y.

    From blocks of 16 on ONNX Runtime computes with activations of 8 bits where nobody else reads the weight.
    """
    rng = np.random.default_rng(5)
    high = 15 if dtype == TensorProto.UINT4 else 7
    weights, count = {"b": array(12, seed=1), "w2": array(12, 4, seed=2)}, -(-inner // size)
    weights["q"] = helper.make_tensor("q", dtype, [inner, 12], rng.integers(high - 15, high + 1, inner * 12))
    weights["s"] = rng.uniform(0.01, 0.05, (count, 12)).astype(np.float32)
    zeros = [] if symmetric else ["z"]
    if zeros:
        weights["z"] = helper.make_tensor("z", dtype, [count, 12], rng.integers(high - 9, high - 5, count * 12))
    nodes = [helper.make_node("DequantizeLinear", ["q", "s", *zeros], ["w1"], name="weight", axis=0, block_size=size),
             node("MatMul", "x w1", "h", "first"), node("Add", "h b", "a", "bias"), node("Relu", "a", "r", "relu"),
             node("MatMul", "r w2", "y", "second")]
    return model(nodes, {"x": (F, ["N", inner])}, {"y": (F, ["N", 4])}, weights, opset, ir=10)


@pytest.mark.parametrize("method", [*RULES, "gradient_x_input"])
@pytest.mark.parametrize(("dtype", "inner"), [(TensorProto.INT4, 64), (TensorProto.UINT4, 64), (TensorProto.INT8, 40)])
def test_blocks(dtype, inner, method):
    proto, x = blocks(dtype, inner=inner), array(3, inner, seed=7)
    a = graphattr.explain(proto, {"x": x}, method, target=1)
    close(a.scores["x"], graphattr.explain(with_float_weights(proto), {"x": x}, method, target=1).scores["x"], 1e-6)
    close(a.outputs["y"], run(proto, {"x": x})[0], 1e-6)


@pytest.mark.parametrize("size", [16, 32])
def test_large_blocks(size):
    proto, x = blocks(TensorProto.INT4, size=size), array(3, 64, seed=7)
    a, b = (graphattr.explain(p, {"x": x}, "lrp.epsilon_plus_flat", target=1) for p in (proto, with_float_weights(proto)))
    close(a.scores["x"], b.scores["x"], 5e-2)
    close(a.outputs["y"], run(proto, {"x": x})[0], 5e-2)


def test_gradient_against_differences():
    proto, x, u = blocks(TensorProto.INT4), array(3, 64, seed=7), array(3, 64, seed=8)
    got = np.sum(graphattr.explain(proto, {"x": x}, "gradient", target=1).scores["x"] * u)
    w1, b, w2 = ({t.name: numpy_helper.to_array(t).astype(float) for t in with_float_weights(proto).graph.initializer}[k]
                 for k in ("w1", "b", "w2"))
    ahead, back = ((np.maximum((x.astype(float) + h * u) @ w1 + b, 0) @ w2)[:, 1].sum() for h in (1e-6, -1e-6))
    np.testing.assert_allclose(got, (ahead - back) / 2e-6, rtol=1e-5)


# -- ONNX Runtime's packed weights --------------------------------------------------------------------------------
def packed(bits, inner=64, size=32, zeros=True, bias=True, opset=17, scale=np.float32, kind=F):
    """x -> MatMulNBits with a weight (N = 12, K = inner) of packed bytes."""
    rng, count = np.random.default_rng(5), -(-inner // size)
    weights = {"q": rng.integers(0, 256, (12, count, size * bits // 8)).astype(np.uint8),
               "s": rng.uniform(0.01, 0.05, 12 * count).astype(scale), "w2": array(12, 4, seed=2).astype(scale)}
    names = ["x", "q", "s"]
    if zeros:
        weights["z"] = rng.integers(0, 256, 12 * -(-count * bits // 8)).astype(np.uint8)
    if bias:
        weights["b"] = array(12, seed=1).astype(scale)
    names += ["z" if zeros else "", "", "b" if bias else ""]
    while not names[-1]:
        names.pop()
    nodes = [helper.make_node("MatMulNBits", names, ["h"], name="packed", domain="com.microsoft", bits=bits, block_size=size,
                              N=12, K=inner), node("Relu", "h", "r", "relu"), node("MatMul", "r w2", "y", "second")]
    return model(nodes, {"x": (kind, ["N", inner])}, {"y": (kind, ["N", 4])}, weights, opset, domains=["com.microsoft"], ir=10)


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize(("bits", "inner", "size"), [(4, 64, 32), (4, 96, 32), (4, 80, 32), (8, 64, 32), (4, 48, 16)])
def test_packed(bits, inner, size, zeros, bias, opset):
    proto, x = packed(bits, inner, size, zeros, bias, opset), array(3, inner, seed=7)
    a = graphattr.explain(proto, {"x": x}, "lrp.epsilon", target=1)
    close(a.outputs["y"], run(proto, {"x": x})[0], 1e-5)
    ahead, back = (run(proto, {"x": (x + h * np.sign(x)).astype(np.float32)})[0][:, 1].sum() for h in (1e-3, -1e-3))
    slope = np.sum(graphattr.explain(proto, {"x": x}, "gradient", target=1).scores["x"] * np.sign(x))
    np.testing.assert_allclose(slope, (ahead - back) / 2e-3, rtol=5e-3, atol=1e-3)
    layers = graphattr.inspect(proto)["layers"]
    assert [r["kind"] for r in layers if r["kind"] != "structure"] == ["linear", "relu", "linear"]
