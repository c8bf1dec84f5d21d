"""Methods of many passes on the command line."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest

import graphattr
from tests.cli.test_cli import X, fails, run  # noqa: F401  (a fixture)
from tests.unit.tiny import mlp

pytest.importorskip("onnxruntime")


def test_parameters_by_set(run):  # noqa: F811
    settings = ["n_steps=30", "base=lrp.epsilon", "eps=0.01", "baselines=[0.5, 0.0, 0.0, 1.0]"]
    code, out, err = run("convert", "m.onnx", "--method", "integrated_gradients", "--target", "1", "-o", "e.onnx",
                         *(word for setting in settings for word in ("--set", setting)))
    assert (code, out) == (0, "e.onnx\n"), err
    held = {p.key: p.value for p in onnx.load("e.onnx").metadata_props}
    want = {"n_steps": 30, "base": "lrp.epsilon", "eps": 0.01, "baselines": [0.5, 0.0, 0.0, 1.0]}
    assert json.loads(held["graphattr.params"]) == want
    got = graphattr.Explainer("e.onnx")({"x": X}).scores["x"]
    same = graphattr.explain(mlp("Softmax"), X, method="integrated_gradients", target=1, **want)
    np.testing.assert_allclose(got, same.scores["x"], atol=1e-6)


def test_wrong_parameters(run):  # noqa: F811
    fails(run("convert", "m.onnx", "--method", "smoothgrad", "--set", "base=lrp.epsilom"), "did you mean 'lrp.epsilon'")
    fails(run("convert", "m.onnx", "--method", "smoothgrad", "--set", "n_sample=3"), "did you mean 'n_samples'")
    fails(run("convert", "m.onnx", "--method", "integrated_gradients", "--set", "n_steps=0"), "n_steps must be at least 1")


def test_inspect_shows_the_rules_of_the_base(run):  # noqa: F811
    code, out, err = run("inspect", "m.onnx", "--method", "integrated_gradients", "--set", "base=lrp.epsilon", "--json")
    assert code == 0, err
    assert {e["rule"] for e in json.loads(out)["layers"] if e["on_path"]} == {"lrp.epsilon", "lrp.pass"}


def test_the_catalogue_lists_parameters_of_the_procedure_and_of_the_base(run):  # noqa: F811
    code, out, _ = run("methods", "--json")
    table = {m["name"]: m["parameters"] for m in json.loads(out)}
    assert code == 0
    assert table["smoothgrad"]["stdevs"] == {"type": "a number", "default": 0.2}
    assert table["smoothgrad"]["base"] == {"type": "the name of a method", "default": "gradient"}
    assert "seed" in table["smoothgrad"]


def test_explain_and_verify(run):  # noqa: F811
    code, out, err = run("explain", "m.onnx", "x.npy", "--method", "guided_ig", "--set", "n_steps=4", "--delta")
    assert code == 0, err
    code, out, err = run("convert", "m.onnx", "--method", "guided_ig", "--set", "n_steps=400", "--delta", "-o", "e.onnx")
    assert code == 0, err
    code, out, err = run("verify", "e.onnx", "--model", "m.onnx")
    assert code == 0, (out, err)
