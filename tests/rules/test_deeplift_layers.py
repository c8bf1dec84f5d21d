"""DeepLIFT where layers are products, softmaxes, normalisations and gates; its references; what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

pytest.importorskip("onnxruntime")
import graphattr
from tests.rules import engine, zoo

METHODS = ("deeplift.rescale", "deeplift.reveal_cancel", "deeplift.genomics")


class Wide(zoo.Build):
    """Models whose weights and input are float64 (or float32)."""

    def __init__(self, seed, *shape, out=4, dtype=np.float64, opset=17):
        super().__init__(seed, *shape, out=out)
        self.dtype, self.opset = dtype, opset

    def const(self, value, name=None):
        value = np.asarray(value)
        return super().const(value.astype(self.dtype) if value.dtype.kind == "f" else value, name)

    def done(self, y):
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.dtype))
        ends = [helper.make_tensor_value_info(n, kind, s) for n, s in (("x", ["N", *self.shape]), (y, ["N", self.out]))]
        graph = helper.make_graph(self.nodes, "net", ends[:1], ends[1:], self.init)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)


def pooled_head(b, h, width):
    return b.done(b.matmul(b.op("ReduceMean", h, axes=[1], keepdims=0), width, 4))


def layer_norm(b):
    return b.op("LayerNormalization", b.matmul("x", 6, 8), b.weight(8), b.weight(8), axis=-1)


def rms_norm(b):
    h = b.matmul("x", 6, 8)
    mean = b.op("ReduceMean", b.op("Mul", h, h), axes=[2])
    return b.op("Mul", b.op("Div", h, b.op("Sqrt", b.op("Add", mean, b.const(1e-3)))), b.weight(8))


def instance_norm(b):
    return b.op("InstanceNormalization", b.matmul("x", 6, 8), b.weight(5), b.weight(5))


def mean_variance_norm(b):
    return b.op("Reshape", b.op("MeanVarianceNormalization", b.matmul("x", 6, 8), axes=[1, 2]), b.ints(0, 5, 8))


def lp_norm(b):
    return b.op("LpNormalization", b.matmul("x", 6, 8), axis=2, p=2)


def lengths(b):
    h = b.matmul("x", 6, 8)
    return b.op("Mul", h, b.op("Add", b.op("ReduceL2", h, axes=[2]), b.op("ReduceL1", h, axes=[1])))


def softmax(b):
    return b.op("Softmax", b.matmul("x", 6, 8), axis=-1)


def log_softmax(b):
    return b.op("LogSoftmax", b.matmul("x", 6, 8), axis=1)


def attention(b):
    q, k, v = (b.matmul("x", 6, 8) for _ in range(3))
    scores = b.op("MatMul", q, b.op("Transpose", k, perm=[0, 2, 1]))
    mask = np.triu(np.full((5, 5), -np.inf), 1)
    return b.op("MatMul", b.op("Softmax", b.op("Add", b.op("Mul", scores, b.const(0.4)), b.const(mask)), axis=-1), v)


def einsum(b):
    return b.op("Einsum", b.matmul("x", 6, 8), b.matmul("x", 6, 5), equation="nik,nij->njk")


def spelled_gelu(b):
    h = b.matmul("x", 6, 8)
    erf = b.op("Erf", b.op("Div", h, b.const(2**0.5)))
    return b.op("Mul", b.op("Mul", h, b.op("Add", erf, b.const(1.0))), b.const(0.5))


def minima(b):
    h = b.matmul("x", 6, 8)
    both = b.op("Min", h, b.op("Max", b.matmul("x", 6, 8), b.matmul("x", 6, 8)))
    return b.op("Add", both, b.op("ReduceMin", h, axes=[1]))


def masked(b):
    """x times a mask of x, and a choice by x: functions of one element whose masks are no data."""
    h = b.matmul("x", 6, 8)
    above = b.op("Cast", b.op("Greater", h, b.const(0.1)), to=helper.np_dtype_to_tensor_dtype(np.dtype(b.dtype)))
    h = b.op("Mul", h, above)
    return b.op("Add", h, b.op("Where", b.op("Less", h, b.const(0.5)), h, b.const(0.5)))


def recurrent(op, gates, **attrs):
    def build(b):
        w, r, bias = b.weight(1, gates * 8, 6, spread=0.5), b.weight(1, gates * 8, 8, spread=0.5), b.weight(1, gates * 16)
        name = b.op(op, b.op("Transpose", "x", perm=[1, 0, 2]), w, r, bias, hidden_size=8, **attrs)
        return b.op("Transpose", b.op("Squeeze", name, b.ints(1)), perm=[1, 0, 2])
    return build


LAYERS = {f.__name__: f for f in (layer_norm, rms_norm, instance_norm, mean_variance_norm, lp_norm, lengths, softmax, log_softmax,
                                  attention, einsum, spelled_gelu, minima, masked)}
LAYERS |= {"lstm": recurrent("LSTM", 4), "gru": recurrent("GRU", 3, linear_before_reset=1), "gru, early": recurrent("GRU", 3),
           "rnn": recurrent("RNN", 1)}


def net(name, dtype):
    """The layer between dense layers and functions that what rises and what falls pass apart."""
    b = Wide(40, 5, 6, dtype=dtype)
    h = b.op("Tanh", LAYERS[name](b))
    return pooled_head(b, b.relu(b.matmul(h, 8, 7)), 7)


def deltas(model, x, dtype, **params):
    made = graphattr.convert(model, target=1, delta=True, **params).model
    feeds = {"x": x.astype(dtype)} | {i.name: x[::-1].astype(dtype) for i in made.graph.input if i.name == "x_baseline"}
    options = engine.onnxruntime.SessionOptions()
    options.log_severity_level = 4
    run = engine.onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"]).run
    found = dict(zip([o.name for o in made.graph.output], run(None, feeds)))
    return found["x_attribution"].astype(float), next(v for k, v in found.items() if k.endswith("_delta"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LAYERS)
def test_completeness_in_float32(name, method):
    x = np.random.default_rng(1).standard_normal((3, 5, 6))
    got, delta = deltas(net(name, np.float32), x, np.float32, method=method, baselines="input")
    assert np.isfinite(got).all()
    assert np.abs(got).max() > 1e-3
    assert np.abs(delta).max() <= 3e-6 * np.abs(got).sum()


SINGLE = ("instance_norm", "mean_variance_norm", "spelled_gelu", "lstm", "gru", "gru, early", "rnn")
IN_DOUBLE = [n for n in LAYERS if n not in SINGLE]


@pytest.mark.parametrize("method", METHODS[:2])
@pytest.mark.parametrize("name", IN_DOUBLE)  # ONNX Runtime has no float64 kernel of the others
def test_completeness_in_float64(name, method):
    """What remains in float64 is no matter of rounding; slopes by two derivatives are exact to 1e-7 of changes below 0.1."""
    x = np.random.default_rng(1).standard_normal((3, 5, 6))
    got, delta = deltas(net(name, np.float64), x, np.float64, method=method, baselines="input")
    assert np.abs(delta).max() <= 1e-8 * np.abs(got).sum()


# -- formulas, step by step ---------------------------------------------------------------------------------------
def rescaled(f, z, z0):
    return (f(z) - f(z0)) / (z - z0)


def test_softmax_is_exp_times_the_reciprocal_of_the_sum():
    b = Wide(41, 6)
    model = b.done(b.matmul(b.op("Softmax", "x", axis=-1), 6, 4))
    w = numpy_of(model, "c0")
    u, u0 = np.random.default_rng(2).standard_normal((2, 3, 6))
    m = w[:, 2]
    e, e0 = np.exp(u), np.exp(u0)
    q, q0 = 1 / e.sum(1, keepdims=True), 1 / e0.sum(1, keepdims=True)
    by_sum = (m * (e + e0) / 2).sum(1, keepdims=True) * rescaled(lambda s: 1 / s, 1 / q, 1 / q0)
    want = (u - u0) * rescaled(np.exp, u, u0) * (m * (q + q0) / 2 + by_sum)
    found = engine.session(model, "deeplift.rescale", baselines="input").run(
        ["x_attribution"], {"x": u, "x_baseline": u0, "target": np.array([2, 2, 2])})[0]
    np.testing.assert_allclose(found, want, atol=1e-7)


def test_layer_normalisation_is_its_elementary_operations():
    b = Wide(42, 6)
    model = b.done(b.matmul(b.op("LayerNormalization", "x", b.weight(6), b.weight(6), axis=-1, epsilon=1e-3), 6, 4))
    scale, w = numpy_of(model, "c0"), numpy_of(model, "c2")
    x, x0 = np.random.default_rng(2).standard_normal((2, 3, 6))
    c, c0 = (v - v.mean(1, keepdims=True) for v in (x, x0))
    s, s0 = (np.sqrt((v**2).mean(1, keepdims=True) + 1e-3) for v in (c, c0))
    m = w[:, 1] * scale
    m_q = (m * (c + c0) / 2).sum(1, keepdims=True)
    m_v = m_q * rescaled(lambda v: v**-0.5, s**2, s0**2)
    m_c = m * (1 / s + 1 / s0) / 2 + m_v * (c + c0) / 6
    want = (x - x0) * (m_c - m_c.mean(1, keepdims=True))
    found = engine.session(model, "deeplift.rescale", baselines="input").run(
        ["x_attribution"], {"x": x, "x_baseline": x0, "target": np.array([1, 1, 1])})[0]
    np.testing.assert_allclose(found, want, atol=1e-9)


def numpy_of(model, name):
    return next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == name)


# -- references ---------------------------------------------------------------------------------------------------
def small():
    b = zoo.Build(43, 2, 6, 6)
    h = b.op("MaxPool", b.relu(b.conv("x", 2, 3)), kernel_shape=[2, 2], strides=[2, 2])
    return b.done(b.gemm(b.relu(b.gemm(b.op("Flatten", h), 12, 8)), 8, 4))


X = np.random.default_rng(4).standard_normal((3, 2, 6, 6)).astype(np.float32)
TARGET = np.array([0, 1, 3])


def explained(method="deeplift.rescale", **params):
    return engine.attribute(small(), X, TARGET, method, **params)


def against(there, method="deeplift.rescale"):
    explainer = engine.session(small(), method, baselines="input")
    return engine.run(explainer, X, target=TARGET, x_baseline=np.broadcast_to(there, X.shape).astype(np.float32))["x"]


@pytest.mark.parametrize("method", METHODS)
def test_of_several_references_the_mean_is_taken(method):
    rows = np.random.default_rng(6).standard_normal((4, 2, 6, 6)).astype(np.float32)
    want = np.mean([against(row, method) for row in rows], axis=0)
    found = explained(method, baselines=rows, delta=True)
    np.testing.assert_allclose(found["x"], want, atol=2e-6 * np.abs(want).max())
    assert np.abs(next(v for k, v in found.items() if k.endswith("_delta"))).max() < 2e-6 * np.abs(want).sum()


CONSTANTS = {"number": 0.3, "channels": [0.3, -0.2], "array": np.full((2, 1, 1), 0.1), "one": np.ones((1, 2, 6, 6))}


@pytest.mark.parametrize("given", CONSTANTS.values(), ids=CONSTANTS)
def test_a_constant_reference(given):
    there = np.reshape(given, (2, 1, 1)) if isinstance(given, list) else given
    np.testing.assert_allclose(explained(baselines=given)["x"], against(there), atol=1e-6)


def test_a_blurred_reference():
    sigma, pad = 1.5, 6
    k = np.exp(-0.5 * (np.arange(-pad, pad + 1) / sigma) ** 2)
    wide = np.pad(X.astype(float), [(0, 0), (0, 0), (pad, pad), (pad, pad)], mode="edge")
    for axis in (2, 3):
        wide = np.apply_along_axis(np.convolve, axis, wide, k / k.sum(), "valid")
    np.testing.assert_allclose(explained(baselines="blur", sigma=sigma)["x"], against(wide), atol=1e-5)


def test_two_inputs_and_one_that_is_not_attributed():
    """Both change together where both are attributed; where one is not, it stays what it is."""
    b = Wide(44, 5, dtype=np.float32)
    h = b.relu(b.op("Add", b.gemm("x", 5, 6), b.op("MatMul", "z", b.weight(5, 6))))
    model = b.done(b.gemm(b.op("Mul", h, b.op("Sigmoid", b.op("MatMul", "z", b.weight(5, 6)))), 6, 4))
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 5]))
    x, z = np.random.default_rng(8).standard_normal((2, 3, 5)).astype(np.float32)
    for wrt in (None, ["x"], ["z"]):
        found = engine.run(engine.session(model, "deeplift.reveal_cancel", wrt, delta=True), x, z=z, target=TARGET)
        assert set(wrt or ["x", "z"]) == {k for k in found if k in ("x", "z")}
        assert np.abs(next(v for k, v in found.items() if k.endswith("_delta"))).max() < 2e-6


def test_a_seed_weighs_the_outputs():
    weights = np.random.default_rng(9).standard_normal((3, 4)).astype(np.float32)
    each = [engine.run(engine.session(small(), "deeplift.reveal_cancel"), X, target=np.full(3, i))["x"] for i in range(2)]
    only = np.zeros_like(weights)
    only[:, 1] = 1
    seeded = engine.session(small(), "deeplift.reveal_cancel", target="seed")
    np.testing.assert_allclose(engine.run(seeded, X, seed=only)["x"], each[1], atol=1e-6)


def test_half_precision_is_explained_in_single():
    b = Wide(45, 2, 6, 6, dtype=np.float16)
    model = b.done(b.gemm(b.op("Flatten", b.relu(b.conv("x", 2, 3))), 48, 4))
    found = engine.session(model, "deeplift.reveal_cancel", target=1, delta=True).run(None, {"x": X.astype(np.float16)})
    assert found[1].dtype == np.float32
    assert np.abs(found[2]).max() < 1e-5 * np.abs(found[1]).sum()


# -- what is refused ----------------------------------------------------------------------------------------------
def refused(model, words, **params):
    with pytest.raises(graphattr.GraphattrError) as e:
        graphattr.convert(model, method="deeplift.reveal_cancel", **params)
    assert all(w in str(e.value) for w in words), str(e.value)


def test_several_in_one_share_no_change():
    b = zoo.Build(46, 6)
    top = b.op("TopK", b.gemm("x", 6, 6), b.ints(4))
    b.nodes[-1].output.append("which")
    model = b.done(b.gemm(top, 4, 4))
    refused(model, ["TopK", "maxpool='gradient'"])
    assert graphattr.convert(model, method="deeplift.reveal_cancel", maxpool="gradient").model


def test_positions_that_the_input_decides():
    b = zoo.Build(47, 6)
    h = b.gemm("x", 6, 5)
    model = b.done(b.gemm(b.op("GatherElements", h, b.op("ArgMax", h, axis=1, keepdims=1), axis=1), 1, 4))
    refused(model, ["GatherElements", "differs between the input and its reference"])


def test_bodies():
    b = zoo.Build(48, 6)
    i, go, h, on, t = (helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in (
        ("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("h", TensorProto.FLOAT, ["N", 6]),
        ("on", TensorProto.BOOL, []), ("t", TensorProto.FLOAT, ["N", 6])))
    nodes = [helper.make_node("Tanh", ["h"], ["t"], "tanh"), helper.make_node("Identity", ["go"], ["on"])]
    step = helper.make_graph(nodes, "step", [i, go, h], [on, t])
    limit = b.op("ReduceSum", b.op("Shape", "x"), keepdims=0)
    model = b.done(b.gemm(b.op("Loop", limit, b.const(True), "x", body=step), 6, 4))
    refused(model, ["Loop", "integrated_gradients"])


def test_pairs_have_no_ledger():
    refused(small(), ["ledger=False"], ledger=True)
