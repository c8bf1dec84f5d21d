"""SmoothGrad and VarGrad against float64 host loops over the same noise."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

pytest.importorskip("onnxruntime")
import graphattr
from graphattr.errors import GraphattrError
from graphattr.rule import load_rules
from tests.rules import engine, walks, zoo
from tests.rules.test_methods import inner
from tests.rules.test_noise import drawn
from tests.rules.test_paths import near, smooth, two_inputs
from tests.unit.test_lookups import IDS, lookup
from tests.unit.tiny import array, mlp

load_rules()
METHODS = ["smoothgrad", "vargrad"]


def copies(c, xi, stdevs=0.2, base="gradient", **params):
    """What `base` says of each noisy copy."""
    x = c.x.astype(float)
    axes = tuple(range(1, x.ndim))
    width = stdevs * (x.max(axes, keepdims=True) - x.min(axes, keepdims=True))
    return np.array([walks.explained(c, x + width * e, base, **params) for e in xi])


def of(method, found):
    return found.mean(0) if method == "smoothgrad" else (found**2).mean(0) - found.mean(0) ** 2


def given(c, n=4):
    return np.random.default_rng(5).standard_normal((n, *c.x.shape)).astype(np.float32)


def own(c, n, random_state=0):
    """The noise that is drawn: the same for every sample."""
    size = int(np.prod(c.x.shape[1:]))
    return np.array([drawn(i, size, random_state).reshape(1, *c.x.shape[1:]) for i in range(n)])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("base", ["gradient", "lrp.epsilon_plus", "guided_backprop", "gradient_x_input"])
@pytest.mark.parametrize("name", ["cnn", "gated", "mlp"])
def test_given_noise(name, base, method):
    c, xi = zoo.case(name), given(zoo.case(name))
    session = engine.session(c.model, method, n_samples=4, base=base, noise="input", stdevs=0.1)
    near(engine.run(session, c.x, target=c.target, x_noise=xi)["x"], of(method, copies(c, xi, 0.1, base)), 3e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("state", [0, 7])
def test_drawn_noise(method, state):
    c = zoo.case("cnn")
    got = engine.attribute(c.model, c.x, c.target, method, n_samples=3, random_state=state)["x"]
    near(got, of(method, copies(c, own(c, 3, state))), 3e-4)


def test_times_input_and_parameters_of_the_base():
    c = zoo.case("cnn")
    got = engine.attribute(c.model, c.x, c.target, "smoothgrad", n_samples=3, times_input=True)["x"]
    near(got, c.x * of("smoothgrad", copies(c, own(c, 3))), 3e-4)
    got = engine.attribute(c.model, c.x, c.target, "smoothgrad", n_samples=3, base="lrp.epsilon", eps=0.1, seed="onehot")["x"]
    near(got, of("smoothgrad", copies(c, own(c, 3), base="lrp.epsilon", eps=0.1, seed="onehot")), 3e-4)


def test_no_noise_is_the_base_itself():
    c = zoo.case("residual")
    near(engine.attribute(c.model, c.x, c.target, "smoothgrad", n_samples=2, stdevs=0.0)["x"], walks.explained(c, c.x))
    assert np.abs(engine.attribute(c.model, c.x, c.target, "vargrad", n_samples=2, stdevs=0.0)["x"]).max() == 0.0


def test_integrated_gradients_of_noisy_copies():
    """A Loop inside a Loop."""
    c, xi = zoo.case("cnn"), own(zoo.case("cnn"), 2)
    x = c.x.astype(float)
    width = 0.2 * (x.max((1, 2, 3), keepdims=True) - x.min((1, 2, 3), keepdims=True))
    want = np.mean([walks.integrated(zoo.dataclasses.replace(c, x=x + width * e), [0.3], 3) for e in xi], 0)
    params = {"n_samples": 2, "base": "integrated_gradients", "n_steps": 3, "baselines": 0.3}
    near(engine.attribute(c.model, c.x, c.target, "smoothgrad", **params)["x"], want, 3e-4)
    other = engine.attribute(c.model, c.x, c.target, "integrated_gradients", n_steps=2, base="smoothgrad", n_samples=2)["x"]
    assert np.isfinite(other).all()


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_samples_one_by_one(method):
    """A sample's noise depends neither on its place nor on who is beside it."""
    c = zoo.case("cnn")
    session = engine.session(c.model, method, n_samples=3)
    whole = engine.run(session, c.x, target=c.target)["x"]
    single = [engine.run(session, c.x[i : i + 1], target=c.target[i : i + 1])["x"][0] for i in range(3)]
    near(whole, np.array(single), 1e-6)
    twice = engine.run(session, np.tile(c.x, (3, 1, 1, 1))[::-1], target=np.tile(c.target, 3)[::-1])["x"][::-1]
    near(twice[3:6], whole, 1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_symbolic_sizes(method):
    c = zoo.case("cnn")
    free = onnx.ModelProto.FromString(c.model.SerializeToString())
    for dim, name in zip(free.graph.input[0].type.tensor_type.shape.dim[2:], "HW", strict=True):
        dim.dim_param = name
    session = engine.session(free, method, n_samples=3)
    near(engine.run(session, c.x, target=c.target)["x"], of(method, copies(c, own(c, 3))), 3e-4)
    assert engine.run(session, np.repeat(c.x, 2, 2), target=c.target)["x"].shape[2] == 14


@pytest.mark.parametrize("method", METHODS)
def test_inner_tensors_and_several_inputs(method):
    c = zoo.case("residual")
    name = inner(c)
    both = engine.attribute(c.model, c.x, c.target, method, wrt=["x", name], n_samples=2)
    near(both["x"], engine.attribute(c.model, c.x, c.target, method, n_samples=2)["x"], 1e-5)
    near(both[name], engine.attribute(c.model, c.x, c.target, method, wrt=[name], n_samples=2)[name], 1e-5)
    x = array(3, 6, seed=7)
    explainer = graphattr.Explainer(graphattr.convert(two_inputs(), method, "input", n_samples=2, noise="input", stdevs=0.0))
    feeds = {"a": x[:, :2], "b": x[:, 2:], "a_noise": np.ones((2, 3, 2), "f4"), "b_noise": np.ones((2, 3, 4), "f4")}
    parts = explainer(feeds, target=[0, 2, 1]).scores
    whole = engine.attribute(smooth(), x, [0, 2, 1], method, n_samples=2, stdevs=0.0)["x"]
    near(np.concatenate([parts["a"], parts["b"]], 1).astype(float), whole, 1e-5)


def test_inputs_have_noise_of_their_own():
    """Two inputs of the same values and weights."""
    made = graphattr.convert(two_inputs(), "vargrad", 0, n_samples=50)
    a = graphattr.Explainer(made)({"a": array(1, 2), "b": np.tile(array(1, 2), 2)})
    assert a.scores["a"].min() > 0
    assert not np.allclose(a.scores["b"][0, :2], a.scores["b"][0, 2:])


@pytest.mark.parametrize("precision", ["float32", "model"])
def test_half_precision(precision):
    half = mlp()
    for t in half.graph.initializer:
        t.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(t).astype(np.float16), t.name))
    for v in [*half.graph.input, *half.graph.output]:
        v.type.tensor_type.elem_type = TensorProto.FLOAT16
    x = array(2, 4, seed=6)
    want = engine.attribute(mlp(), x, [1, 2], "smoothgrad", n_samples=5)["x"]
    explainer = graphattr.Explainer(graphattr.convert(half, "smoothgrad", "input", n_samples=5, precision=precision))
    near(explainer({"x": x.astype(np.float16)}, target=[1, 2]).scores["x"].astype(float), want, 2e-2)


def test_tokens_get_noisy_rows():
    explainer = graphattr.Explainer(graphattr.convert(lookup(), "smoothgrad", n_samples=3))
    a = explainer({"ids": IDS})
    assert a.scores["ids"].shape == IDS.shape
    assert np.abs(a.scores["ids"]).max() > 0


def test_two_methods_share_the_given_noise():
    c, xi = zoo.case("cnn"), given(zoo.case("cnn"), 3)
    made = graphattr.convert(c.model, METHODS, "input", n_samples=3, noise="input")
    assert made.inputs == ["x", "target", "x_noise"]
    a = graphattr.Explainer(made)({"x": c.x, "x_noise": xi}, target=c.target)
    for method in METHODS:
        near(a.scores[f"x/{method}"].astype(float), of(method, copies(c, xi)), 3e-4)


@pytest.mark.parametrize(("params", "words"), [
    ({"n_samples": 0}, "n_samples must be at least 1"),
    ({"stdevs": -0.1}, "stdevs at least 0"),
    ({"noise": "gaussian"}, "one of 'drawn', 'input'"),
    ({"random_state": 0.5}, "'random_state' must be an integer"),
    ({"base": "smoothgrab"}, "unknown method"),
    ({"base": "lrp.epsilon", "gamma": 1.0}, "no parameter 'gamma'"),
    ({"n_steps": 3}, "no parameter 'n_steps'"),
    ({"ledger": True}, "a ledger is of one"),
])
def test_refused(params, words):
    with pytest.raises(GraphattrError, match=words):
        graphattr.convert(mlp(), "smoothgrad", **params)
