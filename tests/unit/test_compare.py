"""Two versions of a model: the same, another spelling, another layout, other weights; ranks and overlaps."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import graphattr
from graphattr import measure
from graphattr.compare import lines
from tests.unit.test_audit import alone, cnn
from tests.unit.tiny import H, array, mlp, model, node, renamed, saved

pytest.importorskip("onnxruntime")
X = array(8, 1, 12, 12, seed=1)


def shaken(proto, size, seed=0):
    """The model with noise on its weights, relative to their spread."""
    made, rng = onnx.ModelProto(), np.random.Generator(np.random.PCG64(seed))
    made.CopyFrom(proto)
    for t in made.graph.initializer:
        w = onnx.numpy_helper.to_array(t)
        t.CopyFrom(onnx.numpy_helper.from_array((w + size * w.std() * rng.standard_normal(w.shape)).astype(w.dtype), t.name))
    return made


def channels_last(channels=3):
    """cnn(1, channels) for an input (N, H, W, C)."""
    made = renamed(cnn(1, channels=channels), x="x_nchw")
    del made.graph.input[:]
    made.graph.input.append(onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 12, 12, channels]))
    made.graph.node.insert(0, node("Transpose", "x", "x_nchw", "last", perm=[0, 3, 1, 2]))
    return made


# -- diff -------------------------------------------------------------------------------------------------------------
def test_a_model_is_like_itself_under_another_name():
    found = graphattr.diff(cnn(2), renamed(cnn(2), x="image"), X)
    assert found["input"] == ["x", "image"]
    assert found["prediction"] == {"agreement": 1.0, "probability": 0.0, "score": 0.0, "accuracy": None,
                                   "explained": found["prediction"]["explained"],
                                   "predicted": [found["prediction"]["explained"]] * 2}
    assert {k: m["value"] for k, m in found["explanation"].items()} == pytest.approx({"spearman": 1, "ssim": 1, "top_overlap": 1})
    assert not found["transposed"]


def test_the_further_the_weights_the_less_alike():
    near, far = (graphattr.diff(cnn(2), shaken(cnn(2), s), X, "gradient_x_input") for s in (0.1, 1.0))
    for key in ("spearman", "ssim", "top_overlap"):
        assert 1 > near["explanation"][key]["value"] > far["explanation"][key]["value"], key
    assert 0 < near["prediction"]["probability"] < far["prediction"]["probability"]


def test_agreement_counts_classes():
    """y = (x0, x1) against y = (x1, x0): the classes agree nowhere, and the two features change their places."""
    nets = [model([node("MatMul", "x w", "y")], {"x": ["N", 2]}, {"y": ["N", 2]}, {"w": np.eye(2, dtype=np.float32)[k]})
            for k in ([0, 1], [1, 0])]
    found = graphattr.diff(*nets, np.array([[3.0, 1.0], [1.0, 2.0]], np.float32), "gradient_x_input", top=0.5)
    assert found["prediction"]["agreement"] == 0
    assert found["prediction"]["score"] == 2
    assert [(w["a"], w["b"]) for w in sorted(found["samples_worst"], key=lambda w: w["sample"])] == [(0, 1), (1, 0)]
    assert found["explanation"]["top_overlap"]["values"] == [0, 0]
    assert found["explanation"]["spearman"]["values"] == [-1, -1]


def test_the_worst_samples_come_first():
    found = graphattr.diff(cnn(2), shaken(cnn(2), 0.3), X, "gradient_x_input")
    ranks = found["explanation"]["spearman"]["values"]
    assert [w["sample"] for w in found["samples_worst"]] == np.argsort(ranks)[:5].tolist()
    assert found["samples_worst"][0]["spearman"] == min(ranks)


@pytest.mark.parametrize("swapped", [False, True])
def test_layouts_are_turned(swapped):
    """NCHW against NHWC: the same pictures, and maps that are compared pixel by pixel."""
    x, pair = array(4, 3, 12, 12), (cnn(1, channels=3), channels_last())
    data = x.transpose(0, 2, 3, 1) if swapped else x
    found = graphattr.diff(*(pair[::-1] if swapped else pair), data, "gradient_x_input")
    assert found["transposed"]
    assert found["prediction"]["score"] < 1e-5
    assert found["explanation"]["spearman"]["value"] == pytest.approx(1, abs=1e-4)
    assert found["explanation"]["ssim"]["value"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("first", ["half", "single"])
def test_half_precision_against_single(first):
    """One model reads float16, the other float32: each gets its own type."""
    w = array(4, 3)
    nets = {"half": model([node("Cast", "x", "f", to=1), node("MatMul", "f w", "y")], {"x": (H, ["N", 4])}, weights={"w": w}),
            "single": model([node("MatMul", "x w", "y")], weights={"w": w})}
    a, b = nets[first], nets["single" if first == "half" else "half"]
    found = graphattr.diff(a, b, array(5, 4), "gradient_x_input")
    assert found["prediction"]["agreement"] == 1
    assert found["prediction"]["score"] < 1e-2
    assert found["explanation"]["spearman"]["value"] == pytest.approx(1)


def test_tables_have_no_ssim():
    found = graphattr.diff(mlp("Softmax"), mlp(), array(5, 4), "gradient_x_input")
    assert found["explanation"]["ssim"] is None
    assert found["prediction"]["score"] == 0, "a terminal Softmax is looked through"
    assert found["explanation"]["top_overlap"]["value"] == 1


def test_two_inputs_are_matched_by_name():
    net = model([node("Add", "p q", "s"), node("MatMul", "s w", "y")], {"p": ["N", 4], "q": ["N", 4]}, weights={"w": array(4, 3)})
    x = {"p": array(3, 4), "q": array(3, 4, seed=1)}
    assert graphattr.diff(net, net, x, "gradient")["explanation"]["spearman"]["value"] == pytest.approx(1)
    with pytest.raises(graphattr.RunError, match="matched by name, and 'q', 'r' is in one of the models only"):
        graphattr.diff(net, renamed(net, q="r"), x, "gradient")


def test_models_that_cannot_be_compared():
    with pytest.raises(graphattr.RunError, match="cannot be matched"):
        graphattr.diff(cnn(1), mlp(), X)
    with pytest.raises(graphattr.RunError, match="one explains 10 entries, the other 4"):
        graphattr.diff(cnn(1), cnn(1, classes=4), X)


def test_the_page_of_a_difference(tmp_path):
    a, b = saved(cnn(2), tmp_path, "a.onnx"), saved(shaken(cnn(2), 0.3), tmp_path, "<b>.onnx")
    found = graphattr.diff(a, b, {"x": X, "labels": np.arange(8)}, out=tmp_path / "d.html")
    json.dumps(found, allow_nan=False)
    html = (tmp_path / "d.html").read_text()
    page = alone(html)
    assert len(page.links) == 5 * 3
    assert "B: <b>.onnx" in "".join(page.text)
    assert str(tmp_path) not in html
    assert dict(lines(found))["same class predicted"].endswith("%)")
    assert "accuracy of A and B" in dict(lines(found))


# -- agreement --------------------------------------------------------------------------------------------------------
def test_rank_correlation_with_ties():
    """By hand: ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4 have the covariance 4.5 and the variances 4.5 and 5."""
    a, b = np.array([[1, 2, 2, 3.0]]), np.array([[1, 3, 2, 4.0]])
    assert measure.spearman(a, b).value == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert measure.spearman(a, -b).value == pytest.approx(-measure.spearman(a, b).value)
    assert np.isnan(measure.spearman(a, np.ones((1, 4))).value)


def test_rank_correlation_looks_at_ranks_only():
    a = array(3, 5, 6)
    np.testing.assert_allclose(measure.spearman(a, np.exp(a)).values, 1)


def test_overlap_of_the_strongest():
    a, b = np.array([[5, -4, 1, 0.0]]), np.array([[5, 0, 1, -4.0]])
    assert measure.top_overlap(a, b, 0.5).value == 0.5
    assert measure.top_overlap(a, -a, 0.5).value == 1
    assert measure.top_overlap(a, b, 0.01).settings["features"] == 1
