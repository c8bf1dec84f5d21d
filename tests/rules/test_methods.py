"""graphattr in float32 against the float64 oracles, method by method and parameter by parameter, on every net of the zoo."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.rules import methods, zoo

pytest.importorskip("onnxruntime")
from tests.rules import engine

BOX = {"low": -4.0, "high": 4.0}
TOLERANCE = 1e-4


def box(method):
    return BOX if method in methods.BOXED else {}


def compare(c, method, model=None, wrt=("x",), **params):
    """The attribution of the tensors, all asked for at once."""
    params = box(method) | params
    found = engine.attribute(model or c.model, c.x, c.target, method, wrt=wrt, **params)
    net = c.unfolded if params.get("bn") == "pass" else c.net  # as zennit without a canoniser: nothing is folded
    expected = methods.explain(net, method, c.target, **params)
    for name in wrt:
        want, got = expected[name], found[name]
        assert got.shape == want.shape
        np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * np.abs(want).max() + 1e-12, err_msg=name)


@pytest.mark.parametrize("method", methods.METHODS)
@pytest.mark.parametrize("name", zoo.ZOO)
def test_method(name, method):
    compare(zoo.case(name), method)


PARAMETERS = [
    *[("cnn", m, {"bias": "ignore"}) for m in ("lrp.zero", "lrp.epsilon", "lrp.gamma", "lrp.zplus", "lrp.alpha5_beta4")],
    *[("upsampled", m, {"bias": "ignore"}) for m in ("lrp.epsilon", "lrp.gamma", "lrp.alpha2_beta1", "lrp.epsilon_plus_flat")],
    *[("mlp", m, {"bias": "ignore"}) for m in ("lrp.epsilon", "lrp.gamma", "lrp.zplus")],
    *[(n, "lrp.wsquare", {"bias": "absorb"}) for n in ("cnn", "mlp", "upsampled")],
    *[(n, "lrp.epsilon", {"eps": e}) for n in ("residual", "branches", "scaled", "mlp", "squeeze_excite") for e in (0.1, 0.0)],
    *[(n, "lrp.epsilon", {"add": a}) for n in ("residual", "shared", "mobile") for a in ("gradient", "half", "z")],
    *[("residual", m, {"add": "gradient"}) for m in ("lrp.zplus", "lrp.epsilon_plus", "lrp.zero", "lrp.gamma")],
    *[(n, m, {"mul": "gate"}) for n in ("gated", "squeeze_excite") for m in ("lrp.epsilon", "lrp.zplus", "lrp.zero")],
    *[(n, m, {"bn": "pass"}) for n in ("scaled", "cnn", "residual", "upsampled")
      for m in ("lrp.epsilon", "lrp.gamma", "lrp.epsilon_plus_flat", "lrp.zero")],
    *[("cnn", m, {"seed": s}) for m in ("lrp.epsilon", "lrp.zplus") for s in ("onehot", "logit", "relu_logit", "prob")],
    *[(n, "lrp.contrastive", {"rectify": r}) for n in ("residual", "shared", "deep") for r in ("first", "difference", "none")],
    *[(n, "rectgrad", {"q": q}) for n in ("cnn", "mobile", "mlp") for q in (0.0, 10, 50.0, 97.5, 100.0)],
    *[(n, "rectgrad", {"q": q, "interpolation": "nearest"}) for n in ("cnn", "residual") for q in (33.0, 98.0)],
    *[(n, "rectgrad", {"times_input": True, "q": 40.0}) for n in ("cnn", "shared")],
    *[("cnn", m, {"low": [-2.0, -3.0, -4.0], "high": [1.0, 2.0, 3.5]}) for m in methods.BOXED if m != "lrp.zbox"],
    ("upsampled", "deep_taylor.bounded", {"low": -1.5, "high": 0.0}),
    ("branches", "deep_taylor.bounded", {"low": 0.0, "high": 2.5}),
]


@pytest.mark.parametrize(("name", "method", "params"), PARAMETERS, ids=lambda v: str(v) if isinstance(v, str) else repr(v)[:40])
def test_parameter(name, method, params):
    compare(zoo.case(name), method, **params)


@pytest.mark.parametrize("method", ["lrp.epsilon_plus_flat", "lrp.gamma", "lrp.wsquare", "lrp.epsilon_gamma_box", "rectgrad",
                                    "deep_taylor", "excitation_backprop.contrastive", "lrp.contrastive"])
@pytest.mark.parametrize("name", ["cnn", "residual", "squeeze_excite", "mobile", "prenorm"])
def test_symbolic_height_and_width(name, method):
    c = zoo.case(name)
    model = onnx.ModelProto.FromString(c.model.SerializeToString())
    for dim, free in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "HW", strict=True):
        dim.dim_param = free
    compare(c, method, model)


def test_deep_taylor_with_bounds_is_the_bounded_method():
    c = zoo.case("cnn")
    found = engine.attribute(c.model, c.x, c.target, "deep_taylor.bounded", **BOX)
    same = engine.attribute(c.model, c.x, c.target, "deep_taylor.bounded", low=[-4.0] * 3, high=np.full((3, 1, 1), 4.0))
    np.testing.assert_allclose(found["x"], same["x"], atol=1e-6 * np.abs(found["x"]).max())


@pytest.mark.parametrize("name", ["cnn", "residual", "branches"])
def test_positive_inputs(name):
    """Deep Taylor's positive domain and Excitation Backprop at inputs as they are meant for."""
    c = zoo.case(name, sign=0)
    for method in ("deep_taylor.positive", "excitation_backprop", "excitation_backprop.contrastive", "lrp.alpha2_beta1"):
        compare(c, method)


def inner(c):
    """A tensor in the middle that folding leaves alone."""
    return next(l.output for l in c.net.layers if l.kind in ("act", "max", "mean"))


@pytest.mark.parametrize("method", methods.METHODS)
@pytest.mark.parametrize("name", ["cnn", "residual", "branches", "biased", "gated"])
def test_inner_tensors(name, method):
    """What a tensor receives depends on no other tensor that is asked for: "first" and "input" mean the model's own."""
    c = zoo.case(name)
    compare(c, method, wrt=["x", inner(c)])
    compare(c, method, wrt=[inner(c)])


@pytest.mark.parametrize("method", ["lrp.epsilon_plus_flat", "deep_taylor", "excitation_backprop.contrastive"])
def test_another_output_changes_nothing(method):
    """A second head behind the explained one is no part of its explanation."""
    c = zoo.case("cnn")
    model = onnx.ModelProto.FromString(c.model.SerializeToString())
    last = model.graph.node[-1]
    model.graph.node.append(onnx.helper.make_node("Gemm", [last.input[0], *last.input[1:]], ["other"], name="other", transB=1))
    model.graph.output.append(onnx.helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, ["N", 4]))
    compare(c, method, model)


@pytest.mark.parametrize("method", ["lrp.zplus", "lrp.wsquare"])
@pytest.mark.parametrize("name", ["cnn", "residual", "mlp", "automatic", "tokens", "upsampled"])
def test_shapes_that_the_file_does_not_record(name, method):
    c = zoo.case(name)
    model = onnx.ModelProto.FromString(c.model.SerializeToString())
    del model.graph.value_info[:]
    compare(c, method, model)
