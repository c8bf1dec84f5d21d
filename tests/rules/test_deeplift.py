"""DeepLIFT against its float64 replica, on every net of the zoo and on nets whose parts pass what the zoo's do not."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest

from tests.rules import zoo
from tests.rules.deeplift_oracle import DeepLift

pytest.importorskip("onnxruntime")
from graphattr.rule import REGISTRY, load_rules
from tests.rules import engine

load_rules()
TOLERANCE = 3e-5
CASES = {  # name: (method, its parameters, the replica's)
    "rescale": ("deeplift.rescale", {}, {"mode": "rescale"}),
    "rescale, winners only": ("deeplift.rescale", {"maxpool": "gradient"}, {"mode": "rescale", "maxpool": "gradient"}),
    "reveal_cancel": ("deeplift.reveal_cancel", {}, {"mode": "reveal_cancel"}),
    "reveal_cancel, winners only": (
        "deeplift.reveal_cancel", {"maxpool": "gradient"}, {"mode": "reveal_cancel", "maxpool": "gradient"}),
    "genomics": ("deeplift.genomics", {}, {"mode": "genomics"}),
    "ablation": ("deeplift.ablation", {}, {"ablation": "code"}),
    "ablation of the text": ("deeplift.ablation", {"ablation": "text"}, {"ablation": "text"}),
}


def pooled():
    """Maxima of overlapping windows go into rectifiers, so that what rises and what falls arrives at them apart."""
    b = zoo.Build(31, 2, 6, 6)
    window = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 0, 1]}
    h = b.relu(b.op("MaxPool", b.conv("x", 2, 5, pads=[1] * 4), **window))
    h = b.op("Tanh", b.op("GlobalMaxPool", b.op("Neg", b.conv(h, 5, 6, (2, 2)))))
    return b.done(b.gemm(b.op("LeakyRelu", b.gemm(b.relu(b.gemm(b.op("Flatten", h), 6, 9)), 9, 7), alpha=0.1), 7, 4))


def mixed():
    """Averages, differences, factors of either sign, products and quotients; dense layers behind convolutions."""
    b = zoo.Build(32, 2, 5, 5)
    h = b.op("AveragePool", b.conv("x", 2, 4), kernel_shape=[2, 2], strides=[1, 1])
    h = b.op("Tanh", b.op("Mul", h, b.const(np.float32([[[1.5]], [[-0.7]], [[0.4]], [[-2.0]]]))))
    h = b.op("Sub", b.op("Sigmoid", b.conv(h, 4, 4, (1, 1))), h)
    h = b.op("Softplus", b.op("Sub", b.const(np.float32(0.3)), b.op("Mul", h, b.conv(h, 4, 4, (1, 1)))))
    h = b.op("Div", b.conv(h, 4, 4, (1, 1)), b.op("Exp", h))
    h = b.relu(b.gemm(b.op("Flatten", h), 16, 8))
    h = b.op("Tanh", b.gemm(h, 8, 6))
    return b.done(b.gemm(b.relu(b.op("Concat", h, b.op("Neg", h), axis=1)), 12, 4))


OWN = {"pooled": pooled, "mixed": mixed}


@functools.cache
def case(name):
    if name in zoo.ZOO:
        return zoo.case(name)
    model, rng = OWN[name](), np.random.default_rng(5)
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    return zoo.Case(name, model, rng.standard_normal((3, *shape)).astype(np.float32), np.array([1, 3, 0]))


@functools.cache
def reference(name):
    """Somewhere else, but for a third of the entries, which do not change."""
    c, rng = case(name), np.random.default_rng(7)
    there = (zoo.SCALE.get(name, 1.0) * rng.standard_normal(c.x.shape)).astype(np.float32)
    return np.where(rng.random(c.x.shape) < 0.3, c.x, there)


@functools.cache
def expected(name, which, zero=False):
    c = case(name)
    oracle = DeepLift(c.model, c.x, np.zeros_like(c.x) if zero else reference(name), **CASES[which][2])
    return oracle, oracle.contributions(c.target)


def found(name, which, zero=False, wrt=None, **more):
    c, (method, params, _) = case(name), CASES[which]
    explainer = engine.session(c.model, method, wrt, baselines=0.0 if zero else "input", **params, **more)
    return engine.run(explainer, c.x, target=c.target, x_baseline=reference(name))


def close(got, want, tolerance=TOLERANCE):
    assert got.shape == want.shape
    return bool(np.abs(got - want).max() <= tolerance * np.abs(want).max() + 1e-12)


@pytest.mark.parametrize("which", CASES)
@pytest.mark.parametrize("name", [*zoo.ZOO, *OWN])
def test_replica(name, which):
    assert close(found(name, which)["x"], expected(name, which)[1]["x"])


# With a reference of zeros whole maps are constant, up to rounding: which of them wins in `automatic` is not defined.
@pytest.mark.parametrize("which", CASES)
@pytest.mark.parametrize("name", [n for n in (*zoo.ZOO, *OWN) if n != "automatic"])
def test_replica_at_zero(name, which):
    assert close(found(name, which, zero=True)["x"], expected(name, which, zero=True)[1]["x"])


@pytest.mark.parametrize("which", ["rescale", "reveal_cancel", "genomics"])
@pytest.mark.parametrize("name", [*zoo.ZOO, *OWN])
def test_completeness(name, which):
    """The replica's contributions add up to the change of the score in float64, and the graph's in float32."""
    c = case(name)
    oracle = DeepLift(c.model, c.x, reference(name), **CASES[which][2], tau=1e-13)
    want = oracle.contributions(c.target)["x"]
    change = oracle.change(oracle.net.output)[np.arange(3), c.target]
    np.testing.assert_allclose(want.reshape(3, -1).sum(1), change, rtol=0, atol=1e-9)
    made = found(name, which, delta=True)
    delta = next(v for k, v in made.items() if k.endswith("_delta"))
    assert np.abs(delta).max() <= 1e-6 * (np.abs(want).sum() + np.abs(oracle.net.logits).max())


@pytest.mark.parametrize(("name", "which"), [("pooled", "rescale, winners only"), ("pooled", "reveal_cancel, winners only"),
                                             ("cnn", "ablation"), ("mixed", "ablation of the text")])
def test_delta_says_what_is_lacking(name, which):
    c, (oracle, want) = case(name), expected(name, which)
    lacking = oracle.change(oracle.net.output)[np.arange(3), c.target] - want["x"].reshape(3, -1).sum(1)
    assert np.abs(lacking).max() > 1e-3
    made = found(name, which, delta=True)
    delta = next(v for k, v in made.items() if k.endswith("_delta"))
    np.testing.assert_allclose(delta, lacking, atol=1e-4 * np.abs(want["x"]).sum())


def test_the_cases_differ():
    """Genomics is neither of what it mixes, switches move, and both parts matter."""
    maps = {which: expected("mixed", which)[1]["x"] for which in CASES}
    for a, b in (("rescale", "genomics"), ("genomics", "reveal_cancel"), ("ablation", "ablation of the text")):
        assert not close(maps[a], maps[b], 1e-2)
    pairs = [("rescale", "rescale, winners only"), ("reveal_cancel", "reveal_cancel, winners only"), ("rescale", "reveal_cancel")]
    for a, b in pairs:
        assert not close(expected("pooled", a)[1]["x"], expected("pooled", b)[1]["x"], 1e-2)


# -- the mutation guard -------------------------------------------------------------------------------------------
WATCHED = {
    "deeplift.linear": ("mixed", "reveal_cancel"),
    "deeplift.affine": ("mixed", "reveal_cancel"),
    "deeplift.bilinear": ("mixed", "rescale"),
    "deeplift.quotient": ("mixed", "rescale"),
    "deeplift.maxpool": ("pooled", "reveal_cancel"),
    "deeplift.rescale": ("mixed", "rescale"),
    "deeplift.reveal_cancel": ("pooled", "reveal_cancel"),
    "deeplift.genomics": ("mixed", "genomics"),
    "deeplift.ablation": ("mixed", "ablation"),
}


@pytest.mark.parametrize("rule", WATCHED)
def test_a_rule_that_becomes_the_gradient_is_noticed(rule, monkeypatch):
    held = REGISTRY.rules[rule]
    neutral = dataclasses.replace(held, apply=lambda g, layer, r, **_: layer.vjps(r), pairs=False)
    monkeypatch.setitem(REGISTRY.rules, rule, neutral)
    name, which = WATCHED[rule]
    assert not close(found(name, which)["x"], expected(name, which)[1]["x"], 1e-3)


# -- what is attributed to ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("which", ["rescale", "reveal_cancel", "genomics"])
def test_a_tensor_gets_what_it_gets_alone(which):
    """An inner tensor has a reference of its own, and asking for it changes nothing for x."""
    inner = "relu2"
    alone, both = found("pooled", which, zero=True)["x"], found("pooled", which, zero=True, wrt=["x", inner])
    assert close(both["x"], alone, 1e-6)
    assert close(both[inner], found("pooled", which, zero=True, wrt=[inner])[inner], 1e-6)
    c = case("pooled")
    value, score = zoo.Net(c.model, c.x).values[inner], zoo.Net(c.model, c.x).logits[np.arange(3), c.target]
    without = engine.run(engine.session(tail_of("pooled", inner), "gradient"), 0 * value, target=c.target)
    change = score - next(v for k, v in without.items() if k.startswith("gemm"))[np.arange(3), c.target]
    np.testing.assert_allclose(both[inner].reshape(3, -1).sum(1), change, atol=1e-5 * np.abs(both[inner]).sum())


def tail_of(name, start):
    """The model behind one of its tensors, which becomes its input x."""
    model = zoo.onnx.ModelProto.FromString(case(name).model.SerializeToString())
    shape = zoo.Net(model, case(name).x).values[start].shape
    nodes, known = [], {start}
    for node in model.graph.node:
        if any(i in known for i in node.input):
            node.input[:] = ["x" if i == start else i for i in node.input]
            nodes.append(node)
            known.update(node.output)
    dims = ["N", *shape[1:]]
    graph = zoo.helper.make_graph(nodes, "tail", [zoo.helper.make_tensor_value_info("x", 1, dims)], model.graph.output,
                                  model.graph.initializer)
    return zoo.helper.make_model(graph, opset_imports=model.opset_import, ir_version=8)


@pytest.mark.parametrize("which", ["rescale", "reveal_cancel"])
def test_symbolic_height_and_width(which):
    model = zoo.onnx.ModelProto.FromString(case("cnn").model.SerializeToString())
    for dim, free in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "HW", strict=True):
        dim.dim_param = free
    del model.graph.value_info[:]
    c, (method, params, _) = case("cnn"), CASES[which]
    explainer = engine.session(model, method, baselines="input", **params)
    got = engine.run(explainer, c.x, target=c.target, x_baseline=reference("cnn"))
    assert close(got["x"], expected("cnn", which)[1]["x"])


@pytest.mark.parametrize("which", ["rescale", "reveal_cancel"])
def test_samples_are_explained_one_by_one(which):
    c, (method, params, _), whole = case("mixed"), CASES[which], found("mixed", which)["x"]
    explainer = engine.session(c.model, method, baselines="input", **params)
    for i in range(3):
        one = engine.run(explainer, c.x[i : i + 1], target=c.target[i : i + 1], x_baseline=reference("mixed")[i : i + 1])["x"]
        assert close(one, whole[i : i + 1], 2e-6)


def test_on_a_linear_net_all_are_gradient_times_input():
    b = zoo.Build(33, 2, 5, 5)
    h = b.op("Sub", b.conv("x", 2, 3), b.op("Mul", b.conv("x", 2, 3), b.const(np.float32(-1.5))))
    model = b.head(b.op("AveragePool", h, kernel_shape=[2, 2]), 12)
    x = np.random.default_rng(0).standard_normal((2, 2, 5, 5)).astype(np.float32)
    want = engine.attribute(model, x, [0, 1], "gradient_x_input")["x"]
    for method in ("rescale", "reveal_cancel", "genomics"):
        assert close(engine.attribute(model, x, [0, 1], f"deeplift.{method}")["x"], want, 1e-5)
