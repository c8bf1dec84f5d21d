"""LSTM, GRU and RNN whose length is open, or long, become a Scan: the same numbers as with their steps written one by one."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import graphattr
from graphattr import recurrent
from tests.unit.test_recurrent import DIRECTIONS, GATES, STATES, I, N, draw, net, run
from tests.unit.tiny import node

LENS = {"lens": np.array([5, 2, 1], np.int32)}
OPTIONS = [
    *({"op": op, "direction": d} for op in GATES for d in DIRECTIONS),
    {"op": "GRU", "linear_before_reset": 1, "direction": "bidirectional"},
    {"op": "LSTM", "peepholes": True, "clip": 0.4, "inputs": STATES},
    {"op": "LSTM", "inputs": {"c0": STATES["c0"]}, "input_forget": 1},
    {"op": "LSTM", "direction": "reverse", "peepholes": True, "inputs": STATES | LENS},
    {"op": "GRU", "direction": "bidirectional", "inputs": LENS},
    {"op": "RNN", "direction": "reverse", "inputs": LENS, "bias": False, "activations": ["Relu"]},
]
METHODS = {
    "gradient": {}, "lrp.epsilon": {}, "lrp.epsilon_plus_flat": {}, "lrp.alpha2_beta1": {}, "lrp.gamma": {},
    "lrp.attention": {}, "lrp.zbox": {"low": -3.0, "high": 3.0},
    "lrp.wsquare": {}, "deep_taylor": {}, "excitation_backprop": {}, "guided_backprop": {},
}


def both(steps, **options):
    """The same net with the length left open, and fixed."""
    return [net(**options, steps=s) for s in ("T", steps)]


def explained(model, x, method, output="Y_h", **params):
    ex = graphattr.convert(model, method=method, output=output, target="seed", **params)
    y = run(model, {"x": x})[output]
    return run(ex.model, {"x": x, "seed": draw(*y.shape, seed=5)}), {n.op_type for n in ex.model.graph.node}


def alike(a, b):
    for name, want in b.items():
        np.testing.assert_allclose(a[name], want, rtol=0, atol=2e-5 * max(1e-3, np.abs(want).max()), err_msg=name)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_outputs_and_gradients(options, steps):
    if steps < 5 and "lens" in options.get("inputs", {}):
        options = options | {"inputs": options["inputs"] | {"lens": np.minimum(LENS["lens"], steps)}}
    x, (open_, fixed) = draw(steps, N, I), both(steps, **options)
    for output in ("Y", "Y_h"):
        (got, ops), (want, unrolled) = explained(open_, x, "gradient", output), explained(fixed, x, "gradient", output)
        assert "Scan" in ops
        assert "Scan" not in unrolled
        alike(got, want)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_relevance(options, method):
    x, (open_, fixed) = draw(5, N, I), both(5, **options)
    alike(explained(open_, x, method, **METHODS[method])[0], explained(fixed, x, method, **METHODS[method])[0])


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_one_step_of_relevance(direction):
    x, (open_, fixed) = draw(1, N, I), both(1, op="LSTM", direction=direction)
    alike(explained(open_, x, "lrp.alpha2_beta1")[0], explained(fixed, x, "lrp.alpha2_beta1")[0])


def test_a_long_sequence_is_a_scan_of_the_same_numbers(monkeypatch):
    model, x = net("LSTM", "bidirectional", steps=40), draw(40, N, I)
    got, ops = explained(model, x, "lrp.epsilon")
    monkeypatch.setattr(recurrent, "LONGEST", 40)
    want, unrolled = explained(model, x, "lrp.epsilon")
    assert ("Scan" in ops, "Scan" in unrolled) == (True, False)
    alike(got, want)


def test_batch_first():
    models = [net("RNN", steps=s, layout=0, before=[node("Transpose", "a", "x", perm=[1, 0, 2])]) for s in ("T", 5)]
    for model, s in zip(models, ("T", 5), strict=True):
        model.graph.input[0].CopyFrom(onnx.helper.make_tensor_value_info("a", 1, ["N", s, I]))
    a = draw(N, 5, I)
    files = (graphattr.convert(m, method="lrp.epsilon", output="Y_h", target=1) for m in models)
    got, want = (graphattr.Explainer(ex)({"a": a}) for ex in files)
    alike(got.scores, want.scores)


def test_layers_inside_have_names_and_rules():
    ex = graphattr.convert(net("LSTM", steps="T"), method="lrp.epsilon", output="Y_h", target=0)
    rules = {e["layer"]: e["rule"] for e in ex.manifest["layers"]["lrp.epsilon"]}
    assert {rules["cell/step/gates"], rules["cell/first/gates"]} == {"lrp.epsilon"}
    assert rules["cell"] == "body"


def test_a_table_can_speak_of_them(tmp_path):
    table = tmp_path / "mine.toml"
    table.write_text('base = "lrp.epsilon"\n[[assign]]\nwhere = { name = "cell/step/gates" }\nrule = "lrp.gamma"\n')
    ex = graphattr.convert(net("LSTM", steps="T"), method=str(table), output="Y_h", target=0)
    assert {e["layer"]: e["rule"] for e in ex.manifest["layers"]["mine"]}["cell/step/gates"] == "lrp.gamma"


def test_delta_and_ledger():
    ex = graphattr.convert(net("LSTM", steps="T"), method="gradient_x_input", output="Y_h", target=0, delta=True, ledger=True)
    found = run(ex.model, {"x": draw(4, N, I)})
    assert np.isfinite(found["Y_h_delta"]).all()
    assert np.isfinite(found["Y_h_ledger"]).all()


@pytest.mark.parametrize("op", GATES)
def test_half_precision_of_any_length(op):
    """The Scan's twin in float32 explains the half-precision model as the written-out one does."""
    x = draw(5, N, I).astype(np.float16)
    models = [net(op, "bidirectional", steps=s, dtype=np.float16) for s in ("T", 5)]
    files = [graphattr.convert(m, method="lrp.epsilon", output="Y_h", target=1) for m in models]
    got, want = (graphattr.Explainer(ex)({"x": x}).scores for ex in files)
    assert got["x"].dtype == np.float32
    np.testing.assert_allclose(got["x"], want["x"], rtol=0, atol=2e-3 * np.abs(want["x"]).max())


@pytest.mark.parametrize("steps", ["T", 5])
def test_a_sequence_that_comes_time_first_is_summed_per_sample(steps):
    model = net("LSTM", steps=steps, after=[node("ReduceMean", "Y", "y", axes=[0, 1], keepdims=0)], result="y")
    model.graph.output[0].CopyFrom(onnx.helper.make_tensor_value_info("y", 1, ["N", None]))
    x = draw(5, N, I)
    a = graphattr.explain(model, {"x": x}, "gradient_x_input", output="y", target=0, delta=True, ledger=True)
    y, zero = (run(model, {"x": v})["y"][:, 0] for v in (x, 0 * x))
    np.testing.assert_allclose(a.delta, y - zero - a.scores["x"].sum((0, 2)), atol=1e-5)
    assert a.ledger.shape[0] == N
