"""What must hold for every method, model and input: sums, linearity, and indifference to what carries no meaning."""

from __future__ import annotations

import functools

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from tests.rules import methods, zoo
from tests.rules.nets import Net

pytest.importorskip("onnxruntime")
from tests.rules import engine

BOX = {"low": -4.0, "high": 4.0}
NETS = ("cnn", "residual", "gated", "mobile", "mlp", "shared", "deep")
METHODS = [m for m in methods.METHODS if m != "lrp.zero"]  # without a stabiliser any input may be ill-conditioned
few = settings(max_examples=12, deadline=None, derandomize=True)
seeds = st.integers(0, 2**16)


@functools.cache
def session(name, method, target="input", **params):
    return engine.session(zoo.case(name).model, method, target=target, **(BOX if method in methods.BOXED else {}) | params)


def near(got, want, tol=1e-4):
    np.testing.assert_allclose(got, want, rtol=0, atol=tol * np.abs(want).max() + 1e-7)


def batch(name, seed, n):
    """Random inputs, those near a kink or a tie left out."""
    rng, c = np.random.default_rng(seed), zoo.case(name)
    x = rng.standard_normal((6 * n, *c.x.shape[1:])).astype(np.float32)
    x = x[np.argsort(zoo.margin(Net(c.model, x)))[-n:]]
    return x, rng.integers(0, 4, n)


@few
@given(st.sampled_from(NETS), st.sampled_from(METHODS), seeds)
def test_a_batch_is_its_samples_one_by_one(name, method, seed):
    x, target = batch(name, seed, 4)
    whole = engine.run(session(name, method), x, target=target)["x"]
    singles = [engine.run(session(name, method), x[i:i + 1], target=target[i:i + 1])["x"] for i in range(4)]
    near(whole, np.concatenate(singles), 1e-5)
    order = np.random.default_rng(seed).permutation(4)
    near(engine.run(session(name, method), x[order], target=target[order])["x"], whole[order], 1e-5)


@few
@given(st.sampled_from(NETS), st.sampled_from([m for m in METHODS if m != "lrp.contrastive"]), seeds)
def test_scaling_the_seed_scales_the_attribution(name, method, seed):
    x, _ = batch(name, seed, 2)
    rng = np.random.default_rng(seed)
    one, two = (rng.standard_normal((2, 4)).astype(np.float32) for _ in range(2))
    explain = functools.partial(engine.run, session(name, method, "seed"), x)
    near(explain(seed=4 * one)["x"], 4 * explain(seed=one)["x"], 1e-5)
    if method not in methods.RECTIFIED:
        near(explain(seed=one - 2 * two)["x"], explain(seed=one)["x"] - 2 * explain(seed=two)["x"], 3e-4)


@few
@given(st.sampled_from([("excitation_backprop", lambda y: 1 + 0 * y), ("deep_taylor", lambda y: np.maximum(y, 0)),
                        ("deep_taylor.bounded", lambda y: np.maximum(y, 0)),
                        ("lrp.epsilon", lambda y: y), ("lrp.zplus", lambda y: y),
                        ("lrp.gamma", lambda y: y), ("lrp.cmp_alpha1_beta0", lambda y: y)]), seeds)
def test_relevance_is_conserved_in_a_net_without_biases(case, seed):
    method, want = case
    x, target = batch("deep", seed, 3)
    found = engine.run(session("deep", method), x, target=target)
    y = Net(zoo.case("deep").model, x).logits[np.arange(3), target]
    np.testing.assert_allclose(found["x"].sum((1, 2, 3)), want(y), atol=2e-4)


@few
@given(st.sampled_from(["deep_taylor", "excitation_backprop"]), st.sampled_from(["cnn", "deep", "dilated"]), seeds)
def test_maps_that_cannot_be_negative(method, name, seed):
    x, target = batch(name, seed, 2)
    assert engine.run(session(name, method), x, target=target)["x"].min() >= -1e-7


@pytest.mark.parametrize("method", ["lrp.contrastive", "excitation_backprop.contrastive"])
def test_contrasts_sum_to_zero(method):
    c = zoo.case("deep")
    params = {"rectify": "none"} if method == "lrp.contrastive" else {}
    assert np.abs(engine.run(session("deep", method, **params), c.x, target=c.target)["x"].sum((1, 2, 3))).max() < 1e-4


def same_maps(name, model, method, tol=1e-5):
    c = zoo.case(name)
    target = c.target.astype(np.int64)
    explainer = engine.session(model, method, **(BOX if method in methods.BOXED else {}))
    near(engine.run(explainer, c.x, target=target)["x"], engine.run(session(name, method), c.x, target=target)["x"], tol)


def with_identities(model):
    """An Identity behind every node, and a Dropout behind all but the last."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    nodes = []
    for node in model.graph.node:
        name = node.output[0]
        inner = onnx.NodeProto.FromString(node.SerializeToString())
        inner.output[0] = f"{name}_inner"
        nodes += [inner, helper.make_node("Identity", [f"{name}_inner"], [f"{name}_same"], name=f"{name}_identity"),
                  helper.make_node("Dropout", [f"{name}_same"], [name], name=f"{name}_dropout")]
    nodes[-1].op_type = "Identity"
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return onnx.shape_inference.infer_shapes(model)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["cnn", "shared", "mlp"])
def test_identities_change_nothing(name, method):
    same_maps(name, with_identities(zoo.case(name).model), method)


def with_folded_norms(model):
    """Every BN directly behind a Conv or a ConvTranspose, multiplied into its weights by hand."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    held = {t.name: t for t in model.graph.initializer}
    made = {n.output[0]: n for n in model.graph.node}
    read = [i for n in model.graph.node for i in n.input]
    for norm in [n for n in model.graph.node if n.op_type == "BatchNormalization"]:
        conv = made.get(norm.input[0])
        if conv is None or conv.op_type not in ("Conv", "ConvTranspose") or read.count(norm.input[0]) > 1:
            continue
        scale, shift, mean, var = (numpy_helper.to_array(held[i]).astype(float) for i in norm.input[1:])
        w, b = (numpy_helper.to_array(held[i]).astype(float) for i in conv.input[1:])
        a = scale / np.sqrt(var + 1e-5)
        along = a.reshape(*[1] * (conv.op_type != "Conv"), -1, *[1] * (w.ndim - 1 - (conv.op_type != "Conv")))
        for i, value in ((1, w * along), (2, a * (b - mean) + shift)):
            held[conv.input[i]].CopyFrom(numpy_helper.from_array(value.astype(np.float32), conv.input[i]))
        conv.output[0] = norm.output[0]
        model.graph.node.remove(norm)
    return model


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["cnn", "residual", "upsampled"])
def test_norms_folded_by_hand_change_nothing(name, method):
    folded = with_folded_norms(zoo.case(name).model)
    assert len(folded.graph.node) < len(zoo.case(name).model.graph.node)
    same_maps(name, folded, method, 5e-5)


@pytest.mark.parametrize("ending", ["Softmax", "LogSoftmax", "Sigmoid", "Identity"])
@pytest.mark.parametrize("method", ["gradient", "lrp.epsilon_plus", "deep_taylor", "lrp.contrastive"])
def test_a_terminal_softmax_changes_nothing(method, ending):
    model = onnx.ModelProto.FromString(zoo.case("cnn").model.SerializeToString())
    y = model.graph.output[0].name
    model.graph.node.append(helper.make_node(ending, [y], ["probability"], name="ending"))
    model.graph.output[0].name = "probability"
    same_maps("cnn", model, method)


@pytest.mark.parametrize("method", METHODS)
def test_conversion_and_run_are_deterministic(method):
    c = zoo.case("residual")
    params = BOX if method in methods.BOXED else {}
    one, two = (engine.graphattr.convert(c.model, method=method, target="input", **params).model for _ in range(2))
    assert one.SerializeToString(deterministic=True) == two.SerializeToString(deterministic=True)
    target = c.target.astype(np.int64)
    first, second = (engine.run(session("residual", method), c.x, target=target)["x"] for _ in range(2))
    assert (first == second).all()
