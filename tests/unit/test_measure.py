"""Measures on models small enough to know the answer; golden metrics where ../shared lies beside."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest

import graphattr
from graphattr import measure
from tests.conformance import check_metrics

VECTORS = Path(__file__).resolve().parents[3] / "shared" / "vectors"
W = np.array([[3.0, -1.0], [2.0, 0.5], [-1.0, 2.0], [0.5, 0.0]], np.float32)
X = np.array([[1.0, 2.0, 1.0, 4.0], [0.5, 1.0, 2.0, 1.0]], np.float32)
C = np.array([0, 0])


def linear():
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,2] y) { y = MatMul (x, W) }'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(W, "W"))
    return model


def softmaxed():
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,2] p) { y = MatMul (x, W) p = Softmax (y) }'
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(onnx.numpy_helper.from_array(W, "W"))
    return model


EXACT = X * W[:, 0]  # gradient x input, which is right for a linear model


def test_the_score_is_the_one_that_is_explained():
    np.testing.assert_allclose(measure.Scorer(softmaxed())(X), X @ W, rtol=1e-6)
    assert measure.Scorer(linear()).target(X).tolist() == (X @ W).argmax(1).tolist()


def test_batches_do_not_matter():
    whole = measure.pixel_flipping(measure.Scorer(linear()), X, EXACT, C, steps=4)
    single = measure.pixel_flipping(measure.Scorer(linear(), batch_size=1), X, EXACT, C, steps=4)
    np.testing.assert_array_equal(whole.details["curve"], single.details["curve"])


def test_flipping_removes_what_counts_first():
    scorer = measure.Scorer(linear())
    first, last = (measure.pixel_flipping(scorer, X, EXACT, C, order=o, steps=4).details["curve"] for o in ("morf", "lerf"))
    y = X[0].copy()
    y[1] = 0  # the largest contribution of the first sample: 2 * 2
    want = np.exp(y @ W) / np.exp(y @ W).sum()
    np.testing.assert_allclose(first[0, 1], want[0], rtol=1e-5)
    assert (first <= last + 1e-12).all()
    np.testing.assert_allclose(first[:, -1], 0.5, rtol=1e-6)


def test_exact_attributions_are_faithful():
    scorer = measure.Scorer(linear())
    assert measure.completeness_gap(scorer, X, EXACT, C).value < 1e-5
    np.testing.assert_allclose(measure.sensitivity_n(scorer, X, EXACT, C, n=2).values, 1.0, atol=1e-5)
    weights = np.broadcast_to(W[:, 0], X.shape)  # <I, gradient> is what a linear model loses
    assert measure.infidelity(scorer, X, weights, C).value < 1e-8
    assert measure.infidelity(scorer, X, EXACT, C).value > 1e-3
    for kind in "ns":
        assert measure.ordering(scorer, X, EXACT, C, kind=kind).value == pytest.approx(
            measure.ordering(scorer, X, EXACT, C, kind=kind, name="x").value)


def test_proportionality_of_equal_scores_is_zero():
    model, x = linear(), (1 / W[:3, 0])[None].astype(np.float32)
    x = np.append(x, [[0.0]], 1).astype(np.float32)  # contributions 1, 1, 1, 0
    scorer = measure.Scorer(model)
    assert measure.proportionality(scorer, x, x * W[:, 0], 0, kind="n").value == pytest.approx(0, abs=1e-6)
    assert measure.proportionality(scorer, x, x * W[:, 0] * [1, 2, 3, 1], 0, kind="n").value == pytest.approx(0, abs=1.0)


def test_similarity_of_a_map_with_itself_and_with_its_negative():
    m = np.random.default_rng(0).standard_normal((2, 1, 16, 16))
    np.testing.assert_allclose(measure.ssim_flip(m, m).values, 1.0)
    np.testing.assert_allclose(measure.ssim_flip(m, -m).values, 1.0, atol=1e-6)
    other = np.random.default_rng(1).standard_normal((2, 1, 16, 16))
    assert measure.ssim_flip(m, other).value < 0.5


def test_pointing_boxes_and_sparseness():
    m, box = np.zeros((1, 1, 4, 4)), np.zeros((4, 4), bool)
    m[0, 0, 1, 1], m[0, 0, 3, 3], box[1, 1:3] = 5.0, 4.0, True
    assert measure.pointing(m, box).value == 1.0
    assert measure.bounding_box_accuracy(m, box).value == 0.5
    assert np.isnan(measure.bounding_box_accuracy(m, np.ones((4, 4), bool)).value)
    np.testing.assert_allclose(measure.grid_pointing(m, [0]).values, 5 / 9)
    assert measure.sparseness(np.ones((1, 8))).value == pytest.approx(0)
    assert measure.sparseness(np.eye(1, 8)).value == pytest.approx(1 - 1 / 8)


def test_intervals_are_seeded_and_plain_data():
    m = measure.Measure("m", np.arange(20.0), "median")
    assert m.interval() == m.interval()
    assert m.interval()[0] < m.value < m.interval()[1]
    assert m.to_dict()["value"] == 9.5
    assert np.isnan(measure.bootstrap(np.array([np.nan]))).all()


def test_chains_of_positive_matrices_tend_to_rank_one():
    rng = np.random.default_rng(2)
    positive = measure.chain_convergence([rng.uniform(0, 1, (8, 8)) for _ in range(6)])
    free = measure.chain_convergence([rng.standard_normal((8, 8)) for _ in range(6)])
    assert positive[-1] > 1e4 > free[-1]


def test_an_unknown_input_is_said():
    with pytest.raises(graphattr.GraphattrError):
        measure.Scorer(linear())({"z": X})


@pytest.mark.skipif(not VECTORS.is_dir(), reason="the golden metrics (../shared/vectors) are not here")
def test_golden_metrics(capsys):
    assert check_metrics.main(VECTORS) == 0, capsys.readouterr().out


@pytest.mark.skipif(not VECTORS.is_dir(), reason="the golden models (../shared/vectors) are not here")
def test_randomisation_notices_what_the_gradient_sees():
    x, model = np.load(VECTORS / "cnn2_100__metrics.npz")["x"], str(VECTORS / "cnn2_100.onnx")
    cascade = measure.cascading_randomisation(model, x, "gradient")
    again = measure.cascading_randomisation(model, x, "gradient")
    assert cascade.layers[0] == "fc2"
    assert [m.value for m in cascade.measures] == [m.value for m in again.measures]
    relevance = measure.cascading_randomisation(model, x, "lrp.zplus")
    assert relevance.measures[0].value > cascade.measures[0].value
    assert measure.random_logit(model, x, "lrp.zplus").value > measure.random_logit(model, x, "gradient").value


def two_layers(quantised=False):
    """x [N, 6] -> 20 -> 4; the weights as they are, or as int8 levels behind a DequantizeLinear with a scale of 1/64."""
    rng = np.random.default_rng(0)
    made = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]> g (float[N,6] x) => (float[N,4] y) {
        h = MatMul (x, v) a = Relu (h) y = MatMul (a, w) }""")
    for k, (name, shape) in enumerate({"v": (6, 20), "w": (20, 4)}.items()):
        levels = rng.integers(-100, 100, shape).astype(np.int8)
        if not quantised:
            made.graph.initializer.append(onnx.numpy_helper.from_array((levels / 64).astype(np.float32), name))
            continue
        made.graph.initializer.extend([onnx.numpy_helper.from_array(levels, f"{name}_q"),
                                       onnx.numpy_helper.from_array(np.float32(1 / 64), f"{name}_s")])
        made.graph.node.insert(k, onnx.helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s"], [name]))
    return made


@pytest.mark.parametrize("quantised", [False, True])
def test_randomisation_reaches_quantised_weights(quantised):
    """Levels are drawn anew and scales stay: the map changes as it does without quantisation."""
    x = np.random.default_rng(1).standard_normal((6, 6)).astype(np.float32)
    found = measure.cascading_randomisation(two_layers(quantised), x, "gradient", compare=measure.spearman)
    assert found.depths == [1, 2]
    assert all(np.isfinite(m.values).all() and m.value < 0.9 for m in found.measures)


def patterns_of(made, method="pattern.attribution"):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", graphattr.FitWarning)  # few samples are the setting
        return graphattr.fit(made, np.random.default_rng(2).standard_normal((300, 6)).astype(np.float32), method)


def test_learned_patterns_are_measured():
    """random_logit compares the maps of two classes; relevances of one unit each come down as they do in two explanations."""
    x = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    made = two_layers()
    fitted = patterns_of(made)
    maps = [graphattr.explain(made, x, "pattern.attribution", target=np.full(4, c), fitted=fitted, seed="onehot").scores["x"]
            for c in range(4)]
    found = measure.random_logit(made, x, "pattern.attribution", target=0, compare=measure.spearman, fitted=fitted, seed="onehot")
    others = (np.random.Generator(np.random.PCG64(0)).integers(1, 4, 4)) % 4
    second = np.stack([maps[c][k] for k, c in enumerate(others)])
    np.testing.assert_allclose(found.values, measure.spearman(maps[0], second).values)

    units = np.broadcast_to(np.eye(4, dtype=np.float32)[:2], (4, 2, 4))
    cosine = measure.cosine_convergence(made, x, "pattern.attribution", tensors=["x"], vectors=units, fitted=fitted)["x"]
    a, b = (m.astype(np.float64) for m in maps[:2])
    want = np.abs((a * b).sum(1)) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(np.sort(cosine.values), np.sort(want), rtol=1e-5)


def test_weights_beside_the_model(tmp_path):
    """External data are found again where the measure changes the model."""
    made, x = two_layers(), np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    seeds = np.random.default_rng(3).standard_normal((4, 2, 20)).astype(np.float32)

    def measured(model):
        inside = measure.cosine_convergence(model, x, "gradient", tensors=["x"], output="a", vectors=seeds)["x"]
        cascade = measure.cascading_randomisation(model, x, "gradient", compare=measure.spearman)
        return [inside.values, *(m.values for m in cascade.measures)]

    expected = measured(made)
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    for found, want in zip(measured(tmp_path / "m.onnx"), expected, strict=True):
        np.testing.assert_array_equal(found, want)


def test_learned_patterns_where_relevance_starts_inside():
    """A tensor that only becomes an output leaves what was learned as it is; another model does not."""
    x, made = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32), two_layers()
    fitted = patterns_of(made, "pattern.net")
    seeds = np.random.default_rng(3).standard_normal((4, 2, 20)).astype(np.float32)
    found = measure.cosine_convergence(made, x, "pattern.net", tensors=["x"], output="a", vectors=seeds, fitted=fitted)["x"]
    active = x @ onnx.numpy_helper.to_array(made.graph.initializer[0]) > 0
    a, b = (seeds * active[:, None] @ fitted["h"]["pattern"].T).astype(np.float64).swapaxes(0, 1)
    want = np.abs((a * b).sum(1)) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(found.values, want, rtol=1e-5)
    with pytest.raises(graphattr.MethodError, match="learned for another model"):
        measure.cosine_convergence(two_layers(quantised=True), x, "pattern.net", tensors=["x"], output="a", fitted=fitted)


def test_patterns_of_the_intact_model_say_nothing_of_another():
    x = np.random.default_rng(1).standard_normal((4, 6)).astype(np.float32)
    made = two_layers()
    with pytest.raises(graphattr.MethodError, match="describes no re-initialised one"):
        measure.cascading_randomisation(made, x, "pattern.net", compare=measure.spearman, fitted=patterns_of(made, "pattern.net"))
    found = measure.cascading_randomisation(made, x, "pattern.net", compare=measure.spearman,
                                            fitted=lambda m: patterns_of(m, "pattern.net"))
    assert found.depths == [1, 2]
    assert all(np.isfinite(m.values).all() and m.value < 0.99 for m in found.measures)


def test_randomisation_at_some_depths():
    x = np.random.default_rng(1).standard_normal((2, 6)).astype(np.float32)
    every = measure.cascading_randomisation(two_layers(), x, "gradient", compare=measure.spearman)
    one = measure.cascading_randomisation(two_layers(), x, "gradient", compare=measure.spearman, at_most=1, batch_size=1)
    assert len(every.depths) == 2
    assert one.depths == [1]
    np.testing.assert_allclose(one.measures[0].values, every.measures[0].values)


def test_randomisation_reads_weights_that_lie_beside_the_file(tmp_path):
    x = np.random.default_rng(1).standard_normal((2, 6)).astype(np.float32)
    onnx.save(two_layers(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    beside = measure.cascading_randomisation(tmp_path / "m.onnx", x, "gradient", compare=measure.spearman)
    held = measure.cascading_randomisation(two_layers(), x, "gradient", compare=measure.spearman)
    assert [m.value for m in beside.measures] == [m.value for m in held.measures]


def test_weights_that_no_constant_holds():
    text = '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) { y = Exp (x) }'
    assert measure.cascading_randomisation(onnx.parser.parse_model(text), X, "gradient").layers == []


def test_weights_of_the_same_seed_are_not_drawn_once_more():
    """A model that NumPy initialised from seed 0 is randomised from seed 0, and changes."""
    made = linear()
    w = np.random.Generator(np.random.PCG64(0)).standard_normal((4, 2)).astype(np.float32)
    made.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(w, "W"))
    found = measure.cascading_randomisation(made, X, "gradient", target=0, compare=measure.spearman, random_state=0)
    assert abs(found.measures[0].value) < 0.99


def test_convergence_at_some_locations():
    """The same at all of them; fewer are a part of what all give, in any batches."""
    from tests.unit.test_audit import cnn
    from tests.unit.tiny import array

    x = array(3, 2, 12, 12)

    def cosines(**settings):
        return measure.cosine_convergence(cnn(2, channels=2), x, "gradient", tensors=["r0", "f"], pairs_of=3, **settings)

    every, same, few = cosines(), cosines(locations=144), cosines(locations=10, batch_size=4)
    np.testing.assert_array_equal(every["r0"].values, same["r0"].values)
    assert few["r0"].values.size == 3 * 3 * 10
    assert few["f"].values.size == 3 * 3
    got, held = few["r0"].values.reshape(9, 10), every["r0"].values.reshape(9, 144)
    places = [np.flatnonzero(np.isclose(held[0], v, atol=1e-6))[0] for v in got[0]]
    np.testing.assert_allclose(held[:, places], got, atol=1e-5)
