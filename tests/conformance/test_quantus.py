"""Quantus' metrics over an OnnxModel: they agree with ours on the same attributions, and say what is known of linear models."""

from __future__ import annotations

import numpy as np
import pytest

import graphattr
from graphattr import measure
from graphattr.errors import MethodError, RunError
from tests.unit.test_audit import cnn
from tests.unit.test_compare import channels_last
from tests.unit.tiny import array, mlp, model, node

quantus = pytest.importorskip("quantus", reason='needs Quantus: pip install "graphattr[quantus]"')

from graphattr.quantus import OnnxModel, explain_func  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
QUIET = {"disable_warnings": True, "display_progressbar": False}
X = array(6, 1, 12, 12, seed=1)


def asked(metric, net, x, y, method, **options):
    """The metric's answer for explanations of the model."""
    return metric(model=net, x_batch=x.copy(), y_batch=y, explain_func=explain_func,
                  explain_func_kwargs={"method": method, **options}, channel_first=True)


@pytest.fixture(scope="module")
def net():
    return OnnxModel(cnn(2))


@pytest.fixture(scope="module")
def y(net):
    return net.predict(X).argmax(1)


@pytest.fixture(scope="module")
def linear():
    """x [N, 4] -> x w: gradient x input adds up to the score, and the gradient is the same everywhere."""
    return OnnxModel(model([node("MatMul", "x w", "y")], weights={"w": array(4, 3)}))


# -- the same numbers as ours -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["gradient", "lrp.zplus"])
def test_pixel_flipping(net, y, method):
    a = explain_func(net, X, y, method)
    theirs = quantus.PixelFlipping(features_in_step=12, perturb_baseline=0.0, **QUIET)(
        model=net, x_batch=X.copy(), y_batch=y, a_batch=a.copy(), channel_first=True)
    ours = measure.pixel_flipping(measure.Scorer(cnn(2)), X, a, y, steps=12)
    np.testing.assert_allclose(np.array(theirs), ours.details["curve"][:, 1:], rtol=1e-6)


def test_sparseness(net, y):
    a = explain_func(net, X, y, "gradient")
    theirs = quantus.Sparseness(**QUIET)(model=net, x_batch=X.copy(), y_batch=y, a_batch=a.copy(), channel_first=True)
    np.testing.assert_allclose(theirs, measure.sparseness(a).values, rtol=1e-4)


def test_model_parameter_randomisation(net, y):
    metric = quantus.MPRT(seed=3, abs=False, normalise=False, **QUIET)
    theirs = asked(metric, net, X, y, "gradient")
    ours = measure.cascading_randomisation(cnn(2), X, "gradient", target=y, random_state=3, compare=measure.spearman)
    np.testing.assert_allclose(theirs.pop("original"), 1)
    assert list(theirs) == list(ours.layers)
    for name, found in zip(ours.layers, ours.measures, strict=True):
        np.testing.assert_allclose(theirs[name], found.values, rtol=1e-5, err_msg=name)


def test_random_logit_of_two_classes():
    two = OnnxModel(cnn(2, classes=2))
    y = two.predict(X).argmax(1)
    metric = quantus.RandomLogit(num_classes=2, abs=False, normalise=False, **QUIET,
                                 similarity_func=quantus.similarity_func.correlation_spearman)
    ours = measure.random_logit(cnn(2, classes=2), X, "lrp.epsilon", target=y, compare=measure.spearman)
    np.testing.assert_allclose(asked(metric, two, X, y, "lrp.epsilon"), ours.values, rtol=1e-5)


# -- what is known ----------------------------------------------------------------------------------------------------
def test_faithfulness_correlation_of_a_linear_model_is_one():
    nodes = [node("Flatten", "x", "f"), node("MatMul", "f w", "y")]
    linear = OnnxModel(model(nodes, {"x": ["N", 1, 4, 4]}, weights={"w": array(16, 3)}))
    x, y = array(5, 1, 4, 4, seed=3), np.array([0, 1, 2, 0, 1])
    metric = quantus.FaithfulnessCorrelation(nr_runs=20, subset_size=5, perturb_baseline=0.0, abs=False, normalise=False,
                                             return_aggregate=False, **QUIET)
    np.testing.assert_allclose(asked(metric, linear, x, y, "gradient_x_input"), 1, rtol=1e-5)
    assert np.max(asked(metric, linear, x, y, "gradient")) < 0.99


def test_completeness_of_a_linear_model(linear):
    x, y = array(5, 4, seed=3), np.array([0, 1, 2, 0, 1])
    metric = quantus.Completeness(abs=False, normalise=False, perturb_baseline=0.0, **QUIET)
    deltas = {m: explain_func(linear, x, y, m).sum(1) for m in ("gradient_x_input", "gradient")}
    np.testing.assert_allclose(deltas["gradient_x_input"], linear.predict(x)[np.arange(5), y], rtol=1e-5)
    assert not any(asked(metric, linear, x, y, "gradient"))


def test_max_sensitivity_of_a_constant_gradient_is_zero(linear):
    x, y = array(5, 4, seed=3), np.array([0, 1, 2, 0, 1])
    metric = quantus.MaxSensitivity(nr_samples=3, abs=False, normalise=False, **QUIET)
    np.testing.assert_array_equal(asked(metric, linear, x, y, "gradient"), 0)
    assert (np.array(asked(metric, linear, x, y, "gradient_x_input")) > 0).all()


def test_layers_are_drawn_in_every_order(net, y):
    order = {name: list(asked(quantus.MPRT(layer_order=name, **QUIET), net, X, y, "gradient"))
             for name in ("top_down", "bottom_up", "independent")}
    assert order["top_down"] == ["original", "dense", "conv1", "conv0"]
    assert order["bottom_up"] == order["independent"] == ["original", "conv0", "conv1", "dense"]
    before, alone = net.state_dict(), dict(net.get_random_layer_generator("independent", 1))
    assert net.random_layer_generator_length == len(alone) == 3
    for name, weight in (("conv0", "w0"), ("conv1", "w1"), ("dense", "wd")):
        changed = {k for k, v in alone[name].state_dict().items() if k in before and (v != before[k]).any()}
        assert weight in changed
        assert changed <= {weight, weight.replace("w", "b")}
    with pytest.raises(MethodError, match="'sideways'"):
        next(net.get_random_layer_generator("sideways"))


# -- the model --------------------------------------------------------------------------------------------------------
def test_predictions_are_scores_or_probabilities():
    ends = OnnxModel(mlp("Softmax"))
    x = array(5, 4)
    scores, wrapped = ends.predict(x), ends.wrapped(True, True)
    np.testing.assert_allclose(scores, OnnxModel(mlp()).predict(x))
    np.testing.assert_allclose(wrapped.predict(x), np.exp(scores) / np.exp(scores).sum(1, keepdims=True))
    assert ends.softmax is False, "the model itself stays as it is"


def test_channels_last_gives_the_same_as_channels_first():
    first, last = OnnxModel(cnn(1, channels=3)), OnnxModel(channels_last(), channel_first=False)
    x, y = array(4, 3, 12, 12), np.arange(4)
    moved = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    maps = [explain_func(net, data, y, "gradient") for net, data in ((first, x), (last, moved))]
    np.testing.assert_allclose(*maps, rtol=1e-4, atol=1e-6)
    assert explain_func(last, moved, y, "gradient", channels="keep").shape == moved.shape
    metric = quantus.PixelFlipping(features_in_step=36, **QUIET)
    kwargs = {"y_batch": y, "explain_func": explain_func, "explain_func_kwargs": {"method": "gradient"}}
    a = metric(model=first, x_batch=x.copy(), channel_first=True, **kwargs)
    b = metric(model=last, x_batch=moved, channel_first=False, **kwargs)
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_fixed_batch_is_run_as_it_is():
    fixed, x, y = OnnxModel(cnn(1, batch=2)), X[:4], np.arange(4)
    free = OnnxModel(cnn(1))
    np.testing.assert_allclose(fixed.predict(x), free.predict(x), rtol=1e-6)
    np.testing.assert_allclose(explain_func(fixed, x, y, "gradient"), explain_func(free, x, y, "gradient"), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(fixed.get_hidden_representations(x), free.get_hidden_representations(x), rtol=1e-5, atol=1e-6)


def test_a_shift_is_taken_off_behind_the_first_layer(net, y):
    """Kindermans et al. 2017: the gradient does not see it, gradient x input does; padding included."""
    shifted = net.add_mean_shift_to_first_layer(0.7, (1, 1, 12, 12))
    np.testing.assert_allclose(shifted.predict(X + 0.7), net.predict(X), atol=1e-5)
    for method, low, high in (("gradient", 0, 1e-5), ("gradient_x_input", 0.1, np.inf)):
        gap = explain_func(shifted, X + 0.7, y, method) - explain_func(net, X, y, method)
        assert low <= np.abs(gap).max() < high, method
    squared = OnnxModel(model([node("Mul", "x x", "s"), node("MatMul", "s w", "y")], weights={"w": array(4, 3)}))
    with pytest.raises(MethodError, match="not all are linear"):
        squared.add_mean_shift_to_first_layer(0.7, (1, 4))


def test_hidden_representations(net):
    """A convolution's output is what its weights give."""
    both = net.get_hidden_representations(X, layer_names=["dense", "conv0"])
    np.testing.assert_allclose(both[:, :10], net.predict(X), rtol=1e-6)
    np.testing.assert_array_equal(both[:, 10:], net.get_hidden_representations(X, layer_indices=[0]))
    assert net.get_hidden_representations(X).shape == (6, 2 * 8 * 144 + 10)
    with pytest.raises(MethodError, match="no layer with weights is called 'conv9'"):
        net.get_hidden_representations(X, layer_names=["conv9"])


def test_explanations_are_made_once(net):
    options = {"eps": 1e-3}
    made = net.explainer("lrp.epsilon", options)
    assert net.wrapped(True, True).explainer("lrp.epsilon", dict(options)) is made
    assert net.explainer("lrp.epsilon", {"eps": 1e-2}) is not made


def test_explanations_are_those_of_explain(net, y):
    alone = graphattr.explain(cnn(2), X, "lrp.epsilon", target=y, eps=1e-3).scores["x"]
    np.testing.assert_array_equal(explain_func(net, X, y, "lrp.epsilon", eps=1e-3), alone)
    np.testing.assert_array_equal(explain_func(cnn(2), X, 3, "gradient"), graphattr.explain(cnn(2), X, "gradient", 3).scores["x"])


def test_quantus_evaluate(net, y):
    """Its table of methods: keys are the names of methods."""
    metric = quantus.Sparseness(**QUIET)
    methods = dict.fromkeys(("gradient", "lrp.zplus"), explain_func)
    found = quantus.evaluate({"sparse": metric}, methods, net, X.copy(), y, explain_func_kwargs={})
    for method in methods:
        ours = measure.sparseness(explain_func(net, X, y, method)).values
        np.testing.assert_allclose(found[method]["sparse"], ours, rtol=1e-4)


def test_what_does_not_fit_is_said(net, y):
    two = model([node("Add", "a b", "s"), node("MatMul", "s w", "y")], {"a": ["N", 4], "b": ["N", 4]}, weights={"w": array(4, 3)})
    with pytest.raises(RunError, match="one float input"):
        OnnxModel(two)
    with pytest.raises(MethodError, match='"sum" or "keep"'):
        explain_func(net, X, y, channels="mean")
    with pytest.raises(MethodError, match="unknown method 'nothing'"):
        explain_func(net, X, y, "nothing")
    with pytest.raises(ValueError, match="torch"):
        quantus.Sparseness(**QUIET)(model=object(), x_batch=X, y_batch=y, a_batch=X, channel_first=True)
