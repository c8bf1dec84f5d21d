"""Audits of models with ids, several inputs or several outputs, and of methods that were fitted."""

from __future__ import annotations

import numpy as np
import pytest

import graphattr
from graphattr.audit import Profile
from tests.unit.test_audit import alone, cnn, said
from tests.unit.tiny import I, array, mlp, model, node

pytest.importorskip("onnxruntime")
TABLE = array(9, 4) * (np.arange(9) > 0)[:, None]  # id 0 fetches zeros
IDS = np.array([[1, 2, 3, 4, 8], [8, 7, 1, 1, 5], [2, 2, 6, 3, 0]])
NINE = ("completeness", "randomisation", "random_logit", "convergence", "flipping", "sensitivity_n", "infidelity",
        "max_sensitivity", "sparseness")
EVERY = {name: {} for name in NINE} | {"flipping": {"steps": 5}}


def tokens(hidden=True, length=5):
    """ids [N, length] -> rows [N, length, 4] -> their sum -> two layers, or one -> y [N, 3]."""
    nodes = [node("Gather", "table ids", "rows", "lookup"), node("ReduceSum", "rows one", "s", keepdims=0)]
    end = [node("Gemm", "s v", "h", "hidden"), node("Relu", "h", "a"), node("Gemm", "a u", "y", "head")]
    weights = {"table": TABLE.astype(np.float32), "one": np.array([1]), "v": array(4, 6, seed=1), "u": array(6, 3, seed=2)}
    if not hidden:
        end, weights = [node("Gemm", "s w", "y", "head")], {**weights, "w": array(4, 3, seed=3)}
    return model([*nodes, *end], {"ids": (I, ["N", length])}, {"y": ["N", 3]}, weights)


def found(report, method):
    return report.data["methods"][method]["measures"]


def profile(**measures):
    return Profile("p", samples=3, gallery=2, measures=measures)


# -- ids --------------------------------------------------------------------------------------------------------------
def test_what_can_be_measured_of_ids_is_measured():
    report = graphattr.audit(tokens(), IDS, ["gradient_x_input", "occlusion"], Profile("t", samples=3, measures=EVERY))
    held = found(report, "gradient_x_input")
    assert {name for name, f in held.items() if f["skipped"]} == {"infidelity", "max_sensitivity", "convergence"}
    assert "a little noise makes other tokens" in held["max_sensitivity"]["skipped"]
    assert "have no channels" in held["convergence"]["skipped"]
    assert held["randomisation"]["details"]["layers"] == ["head", "hidden"]
    assert report.data["samples"]["inputs"] == ["ids"]
    assert "".join(alone(report.html).text).count(" ".join(map(str, IDS[1]))) == 2, "the ids of a sample stand in their order"


def test_an_id_is_removed_by_another_id():
    """Deletion by hand: the row of the baseline's id takes the place of the most relevant one."""
    report = graphattr.audit(tokens(), IDS, ["gradient_x_input"], profile(flipping={"steps": 5, "baseline": 6}), target=1)
    a = graphattr.explain(tokens(), IDS, "gradient_x_input", target=1).scores["ids"]
    v, u = array(4, 6, seed=1).astype(float), array(6, 3, seed=2).astype(float)
    curve = []
    for ids, row in zip(IDS, a, strict=True):
        changed, line = ids.copy(), []
        for k in [None, *np.argsort(-row, kind="stable")]:
            if k is not None:
                changed[k] = 6
            y = np.maximum(TABLE[changed].sum(0) @ v, 0) @ u
            line.append(np.exp(y[1]) / np.exp(y).sum())
        curve.append(line)
    got = found(report, "gradient_x_input")["flipping"]["details"]["morf"]["middle"]
    np.testing.assert_allclose(got, np.mean(curve, 0), rtol=1e-5)
    assert max(got) - min(got) > 0.01


def test_a_sum_of_rows_is_explained_exactly():
    report = graphattr.audit(tokens(False), IDS, ["gradient_x_input"], profile(completeness={}, sensitivity_n={"share": 0.4}))
    assert found(report, "gradient_x_input")["sensitivity_n"]["metrics"]["sensitivity_n"] == pytest.approx(1, abs=1e-4)
    assert said(report, "gradient_x_input", "completeness")["passed"] is True
    curved = [graphattr.audit(tokens(), IDS, ["gradient_x_input"], profile(sensitivity_n={"share": 0.4, "baseline": b}))
              for b in (0, 5)]
    values = [found(c, "gradient_x_input")["sensitivity_n"]["values"] for c in curved]
    assert np.abs(np.subtract(*values)).min() > 1e-3


@pytest.mark.parametrize(("baseline", "word"), [(0.5, "baseline = 0.5 is no id"), (9, "refused a batch")])
def test_what_is_no_id_is_said(baseline, word):
    report = graphattr.audit(tokens(), IDS, ["gradient_x_input"], profile(flipping={"baseline": baseline}))
    assert word in found(report, "gradient_x_input")["flipping"]["skipped"]


# -- several inputs ---------------------------------------------------------------------------------------------------
def two(outputs=1):
    """y = Gemm(a [N, 4]) + Gemm(b [N, 2, 3], flat); a second output is Relu(Gemm(a)) through a layer of its own."""
    nodes = [node("Gemm", "a v", "p", "left"), node("Flatten", "b", "f"), node("Gemm", "f w", "q", "right"),
             node("Add", "p q", "y")]
    weights = {"v": array(4, 3), "w": array(6, 3, seed=1), "u": array(4, 5, seed=2)}
    nodes += [node("Gemm", "a u", "t", "other"), node("Relu", "t", "z")] if outputs > 1 else []
    return model(nodes, {"a": ["N", 4], "b": ["N", 2, 3]}, {"y": ["N", 3], **({"z": ["N", 5]} if outputs > 1 else {})}, weights)


FEEDS = {"a": array(3, 4, seed=4), "b": array(3, 2, 3, seed=5)}


def test_every_input_counts():
    """A linear model of two inputs: products are exact, and a subset takes features of both."""
    report = graphattr.audit(two(), FEEDS, ["gradient_x_input"], Profile("e", samples=3, gallery=1, measures=EVERY))
    held = found(report, "gradient_x_input")
    assert {name for name, f in held.items() if f["skipped"]} == set()
    assert held["sensitivity_n"]["metrics"]["sensitivity_n"] == pytest.approx(1, abs=1e-4)
    a = graphattr.explain(two(), FEEDS, "gradient_x_input").scores
    both = np.concatenate([a["a"], a["b"].reshape(3, -1)], 1)
    np.testing.assert_allclose(held["sparseness"]["values"], graphattr.measure.sparseness(both).values, rtol=1e-6)
    assert held["randomisation"]["details"]["layers"] == ["right", "left"]
    assert report.data["samples"]["inputs"] == ["a", "b"]
    assert "samples of a, b" in report.html
    alone(report.html)


def test_infidelity_shakes_every_input():
    """<I, gradient> is what a linear model of two inputs loses."""
    held = found(graphattr.audit(two(), FEEDS, ["gradient"], profile(infidelity={"samples": 20})), "gradient")
    assert held["infidelity"]["metrics"]["infidelity"] < 1e-8


def test_one_input_of_two():
    report = graphattr.audit(two(), FEEDS, ["gradient_x_input"], profile(sparseness={}, randomisation={}), wrt="b")
    a = graphattr.explain(two(), FEEDS, "gradient_x_input", wrt="b").scores["b"]
    held = found(report, "gradient_x_input")
    np.testing.assert_allclose(held["sparseness"]["values"], graphattr.measure.sparseness(a).values, rtol=1e-6)
    assert held["randomisation"]["details"]["layers"] == ["right"]
    with pytest.raises(graphattr.RunError, match="'q' is none: wrt takes a, b"):
        graphattr.audit(two(), FEEDS, ["gradient"], profile(sparseness={}), wrt="q")


def test_one_output_of_two():
    asked = profile(completeness={}, randomisation={}, random_logit={}, convergence={})
    report = graphattr.audit(two(2), FEEDS, ["gradient_x_input"], asked, output="z", wrt="a")
    held = found(report, "gradient_x_input")
    assert held["randomisation"]["details"]["layers"] == ["other"], "layers of the other output are no layers of this one"
    assert report.data["samples"]["output"] == "z"
    scores = np.maximum(FEEDS["a"] @ array(4, 5, seed=2), 0)
    assert report.data["samples"]["predicted"] == scores.argmax(1).tolist()
    assert said(report, "gradient_x_input", "completeness")["passed"] is True
    assert not [f["skipped"] for f in held.values() if f["skipped"]]
    with pytest.raises(graphattr.TargetError, match="did you mean"):
        graphattr.audit(two(2), FEEDS, ["gradient"], asked, output="zz")


# -- fits -------------------------------------------------------------------------------------------------------------
def test_a_fitted_method_is_asked_for_other_classes_and_relevances():
    fitted = graphattr.fit(mlp(), array(2000, 4, seed=7), method="pattern.net")
    asked = profile(randomisation={}, random_logit={}, convergence={})
    held = found(graphattr.audit(mlp(), array(3, 4), ["pattern.net"], asked, fitted=fitted), "pattern.net")
    assert "would have to be fitted anew" in held["randomisation"]["skipped"]
    other = graphattr.measure.random_logit(mlp(), array(3, 4), "pattern.net", fitted=fitted, compare=graphattr.measure.spearman)
    assert held["random_logit"]["values"] == pytest.approx(np.abs(other.values).tolist())
    assert 0 <= held["convergence"]["metrics"]["convergence"] <= 1


def test_a_method_fitted_for_one_class():
    x = array(300, 4, seed=7)
    net = model([node("Gemm", "x w1 b1", "h", "first"), node("Gemm", "h w2 b2", "y", "second")],
                weights={"w1": array(4, 5), "b1": array(5, seed=1), "w2": array(5, 3, seed=2), "b2": array(3, seed=3)})
    fitted = graphattr.fit(net, x, method="mip_in", target=1, fit_on="all")
    asked = profile(random_logit={}, convergence={}, sparseness={}, max_sensitivity={})
    held = found(graphattr.audit(net, x[:3], ["mip_in"], asked, fitted=fitted, target=1), "mip_in")
    assert held["random_logit"]["skipped"] == "it was fitted for the target 1, and says nothing of another class"
    assert "any other relevance" in held["convergence"]["skipped"]
    want = graphattr.explain(net, x[:3], "mip_in", target=1, fitted=fitted).scores["x"]
    np.testing.assert_allclose(held["sparseness"]["values"], graphattr.measure.sparseness(want).values, rtol=1e-5)
    assert held["max_sensitivity"]["skipped"] is None
    with pytest.raises(graphattr.MethodError, match="--target 1"):
        graphattr.audit(net, x[:3], ["mip_in"], asked, fitted=fitted)


def test_a_fixed_batch_that_is_larger_than_the_batch_asked_for():
    x, asked = array(40, 2, 12, 12), Profile("f", samples=20, measures={"convergence": {"vectors": 3}, "random_logit": {}})
    fixed, free = (graphattr.audit(cnn(1, batch=b, channels=2), x, ["gradient"], asked, batch_size=8) for b in (20, "N"))
    for name in asked.measures:
        got, want = (found(r, "gradient")[name] for r in (fixed, free))
        assert got["skipped"] is None
        assert got["metrics"] == pytest.approx(want["metrics"], rel=1e-4), name
    held = graphattr.diff(cnn(1, batch=20, channels=2), cnn(1, channels=2), x, "gradient", samples=20, batch_size=8)
    assert held["explanation"]["spearman"]["value"] == pytest.approx(1)
