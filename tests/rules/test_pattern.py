"""PatternNet and PatternAttribution: statistics of every linear operator, masks, estimators, and the backward pass."""

from __future__ import annotations

import functools
import warnings

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import graphattr
from tests.rules import pattern_oracle as oracle
from tests.rules import zoo
from tests.rules.nets import Net
from tests.unit import tiny

pytest.importorskip("onnxruntime")
from tests.rules import engine

SAMPLES = 120
NETS = ("cnn", "residual", "mobile", "dilated", "upsampled", "mlp", "tokens", "volume", "automatic", "biased", "branches",
        "prenorm")
KINDS = [("relu", "active"), ("relu.negative", "active"), ("linear", "active"), ("relu", "all")]


@functools.cache
def data(name):
    shape = zoo.case(name).x.shape[1:]
    return np.random.default_rng(7).standard_normal((SAMPLES, *shape)).astype(np.float32)


@functools.cache
def seen(name):
    """(the net at the data, which weight stands where)."""
    model = zoo.case(name).model
    return Net(model, data(name)), oracle.ids_of(model, data(name).shape[1:])


@functools.cache
def fitted(name, kind="relu", mean_y="active", method="pattern.net", batch_size=50):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", graphattr.FitWarning)
        return graphattr.fit(zoo.case(name).model, data(name), method, kind=kind, mean_y=mean_y, batch_size=batch_size)


def named(net, layer, arrays):
    """The name that graphattr has for a layer of the replica: its node's, or that of the normalisation folded into it."""
    return layer.name if layer.name in arrays else layer.output


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("kind", "mean_y"), KINDS)
def test_patterns_are_those_of_explicit_patches(name, kind, mean_y):
    """Conv of every geometry, groups, ConvTranspose, Gemm, MatMul on both sides; batches of 50, 50 and 20."""
    net, ids = seen(name)
    found, want = fitted(name, kind, mean_y), oracle.patterns(net, ids, kind, mean_y)
    layers = [l for l in net.layers if l.kind == "linear"]
    assert len(found.arrays) == len(layers)
    for layer in layers:
        key = named(net, layer, found.arrays)
        got, a = found[key]["pattern"].ravel(), want[layer.name][1:]
        condition = found.manifest["layers"][key]["condition"]
        np.testing.assert_allclose(got, a, rtol=0, atol=(3e-7 + 1e-7 * condition) * np.abs(a).max() * 10, err_msg=key)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("method", ["pattern.net", "pattern.attribution"])
def test_attributions_are_those_of_the_replica(name, method):
    c, (net, ids) = zoo.case(name), seen(name)
    learned = oracle.patterns(net, ids)
    want = oracle.explain(c.net, ids, learned, c.target, method == "pattern.attribution")[c.net.input]
    got = engine.attribute(c.model, c.x, c.target, method, fitted=fitted(name, method=method))["x"]
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())
    plain = engine.attribute(c.model, c.x, c.target, "gradient")["x"]
    assert np.abs(got - plain).max() > 1e-2 * np.abs(want).max(), "it is more than the gradient"


@pytest.mark.parametrize("name", ["cnn", "upsampled"])
def test_estimators_differ(name):
    """What the comparisons above tell apart: masks, and the mean that is subtracted."""
    found = [fitted(name, *k).arrays for k in KINDS]
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            assert any(np.abs(one[l]["pattern"] - other[l]["pattern"]).max() > 1e-3 for l in one)


# -- operators that the nets do not have ------------------------------------------------------------------------------
def cov_of(x, y, m):
    """E_m[x y] - E_m[x] E_m[y] over rows, per column of y: x (rows, K), y and m (rows, units)."""
    n = m.sum(0)
    return (m * y).T @ x / n[:, None] - (m.T @ x / n[:, None]) * ((m * y).sum(0) / n)[:, None]


@pytest.mark.parametrize("spelling", ["MatMul", "Einsum", "GemmA"])
def test_weights_with_more_axes(spelling):
    """A weight per head (MatMul of rank 3, Einsum in another order of axes), and a weight on the left of a Gemm."""
    rng = np.random.default_rng(3)
    w, x = rng.standard_normal((3, 5, 4)).astype(np.float32), rng.standard_normal((60, 3, 2, 5)).astype(np.float32)
    if spelling == "GemmA":
        w, x = w[0], x[:5, 0, 0]  # W' x: the samples are columns
        made = tiny.model([tiny.node("Gemm", "w x", "h", "lin", transA=1), tiny.node("Relu", "h", "y", "relu")], {"x": [5, "M"]},
                          {"y": [4, "M"]}, {"w": w})
        y = w.T.astype(float) @ x
        a = cov_of(x.T.astype(float), y.T, y.T > 0)
        want = (a / (a * w.T).sum(1, keepdims=True)).T
        x = np.asarray(x)
    else:
        einsum = spelling == "Einsum"
        stored = w.transpose(2, 0, 1) if einsum else w
        lin = tiny.node(spelling, "x w", "h", "lin", **({"equation": "nhti,ohi->nhto"} if einsum else {}))
        made = tiny.model([lin, tiny.node("Relu", "h", "y", "relu")], {"x": ["N", 3, 2, 5]}, {"y": ["N", 3, 2, 4]}, {"w": stored})
        want = np.zeros((3, 5, 4))
        for h in range(3):
            rows = x[:, h].reshape(-1, 5).astype(float)
            y = rows @ w[h]
            cov = cov_of(rows, y, y > 0)
            want[h] = (cov / (cov * w[h].T).sum(1, keepdims=True)).T
        want = want.transpose(2, 0, 1) if einsum else want
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", graphattr.FitWarning)
        got = graphattr.fit(made, x, "pattern.net")["lin"]["pattern"]
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6 * np.abs(want).max())


def test_a_weight_behind_alpha_and_quantised_weights():
    """The effective weight is what counts: alpha, and levels times scale."""
    w, x = tiny.array(4, 5), tiny.array(200, 4, seed=1)
    levels, scale = np.rint(w * 40).astype(np.int8), np.float32(1 / 40)
    plain = tiny.model([tiny.node("Gemm", "x w", "y", "lin")], outputs={"y": ["N", 5]}, weights={"w": levels * (2 * scale)})
    spelt = tiny.model([tiny.node("DequantizeLinear", "q s", "w"), tiny.node("Gemm", "x w", "y", "lin", alpha=2.0)],
                       outputs={"y": ["N", 5]}, weights={"q": levels, "s": scale})
    one, other = (graphattr.fit(m, x, "pattern.attribution")["lin"]["pattern"] for m in (plain, spelt))
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


# -- invariants -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("kind", "mean_y"), KINDS)
def test_w_a_is_one(name, kind, mean_y):
    """Of every unit that was active: w a = 1."""
    net, ids = seen(name)
    arrays, alive = fitted(name, kind, mean_y).arrays, 0
    for layer in (l for l in net.layers if l.kind == "linear"):
        a = np.append(0, arrays[named(net, layer, arrays)]["pattern"].astype(float).ravel())
        for own, w, _, _ in oracle.patches(net, layer, ids[layer.name]):
            if a[own].any():
                alive += 1
                assert abs(w @ a[own] - 1) < 1e-6 * (1 + np.abs(w) @ np.abs(a[own]))
    assert alive > 3


def test_a_bias_acts_through_the_mask_only():
    made, x = zoo.case("tokens").model, data("tokens")
    moved = onnx.ModelProto()
    moved.CopyFrom(made)
    first = next(t for t in moved.graph.initializer if numpy_helper.to_array(t).ndim == 1 and len(numpy_helper.to_array(t)) == 8)
    first.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(first) + 0.3, first.name))
    before, after = (graphattr.fit(m, x, "pattern.net", kind="linear") for m in (made, moved))
    layer = next(iter(before.arrays))
    np.testing.assert_allclose(before[layer]["pattern"], after[layer]["pattern"], rtol=0, atol=2e-6)


def test_with_the_weights_as_patterns_it_is_the_gradient():
    """PatternNet with A = W, times y_c."""
    c = zoo.case("dilated")
    held = fitted("dilated")
    weights = {t.name: numpy_helper.to_array(t) for t in c.model.graph.initializer}
    arrays = {n.name: {"pattern": weights[n.input[1]]} for n in c.model.graph.node if n.name in held.arrays}
    got = engine.attribute(c.model, c.x, c.target, "pattern.net", fitted=graphattr.Fitted(arrays, held.manifest))["x"]
    logit = c.net.logits[np.arange(3), c.target].reshape(3, 1, 1, 1)
    np.testing.assert_allclose(got, logit * engine.attribute(c.model, c.x, c.target, "gradient")["x"], rtol=0, atol=1e-5)


def test_attributions_of_linear_models_add_up():
    """Without rectifiers and padding, PatternAttribution hands on exactly what it gets: y_c; its delta is 0."""
    b = zoo.Build(31, 2, 6, 6)
    made = b.head(b.conv(b.conv("x", 2, 4, group=2), 4, 3, (2, 2), strides=[2, 2]), 3 * 4)
    x = tiny.array(400, 2, 6, 6, seed=5)
    held = graphattr.fit(made, x, "pattern.attribution")
    a = graphattr.explain(made, x[:4], "pattern.attribution", fitted=held, delta=True)
    y = a.outputs[made.graph.output[0].name]
    assert np.allclose(a.scores["x"].sum((1, 2, 3)), y.max(1), atol=1e-4 * np.abs(y).max())
    assert np.abs(a.delta).max() < 1e-4 * np.abs(y).max()


# -- parameters and the engine ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", ["pattern.net", "pattern.attribution"])
def test_project_changes_the_length_only(method):
    """On a chain: each R / max |R| on the way gives the same direction, as in the replica."""
    c, (net, ids) = zoo.case("dilated"), seen("dilated")
    held = fitted("dilated", method=method)
    plain, projected = (engine.attribute(c.model, c.x, c.target, method, fitted=held, project=p)["x"] for p in (False, True))
    want = oracle.explain(c.net, ids, oracle.patterns(net, ids), c.target, method == "pattern.attribution", project=True)["x"]
    np.testing.assert_allclose(projected, want, rtol=0, atol=2e-5 * np.abs(want).max())
    for one, other in zip(plain, projected):
        np.testing.assert_allclose(one / np.abs(one).max(), other / np.abs(other).max(), rtol=0, atol=1e-5)


def test_samples_targets_and_neighbours():
    """A batch is its samples one by one; targets of every kind; several methods and tensors in one file."""
    c, held = zoo.case("cnn"), fitted("cnn")
    both = engine.attribute(c.model, c.x, c.target, "pattern.net", fitted=held)["x"]
    alone = [engine.attribute(c.model, c.x[i : i + 1], c.target[i : i + 1], "pattern.net", fitted=held)["x"] for i in range(3)]
    np.testing.assert_allclose(np.concatenate(alone), both, rtol=0, atol=1e-6 * np.abs(both).max())
    for target in ("argmax", int(c.target[0])):
        found = engine.run(engine.session(c.model, "pattern.net", target=target, fitted=held), c.x[:1])["x"]
        index = c.net.logits[0].argmax() if target == "argmax" else target
        want = engine.attribute(c.model, c.x[:1], [index], "pattern.net", fitted=held)["x"]
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-6 * np.abs(want).max())
    seeded = engine.run(engine.session(c.model, "pattern.net", target="seed", fitted=held), c.x,
                        seed=(c.net.logits * np.eye(4)[c.target]).astype(np.float32))["x"]
    np.testing.assert_allclose(seeded, both, rtol=0, atol=1e-5 * np.abs(both).max())
    names = ["pattern.net", "pattern.attribution", "gradient"]
    pair = [held, fitted("cnn", method="pattern.attribution")]
    many = engine.run(engine.session(c.model, names, wrt=["x", "relu2"], fitted=pair), c.x, target=c.target)
    np.testing.assert_allclose(many["x_attribution_pattern_net"], both, rtol=0, atol=1e-6 * np.abs(both).max())
    assert {f"relu2_attribution_{m}" for m in ("gradient", "pattern_net", "pattern")} <= set(many)  # run() cuts "_attribution"


def test_inner_tensors_need_no_more_than_what_is_behind_them():
    """A fit with wrt= learns the layers behind it; explaining the input with it names the layer that is missing."""
    c = zoo.case("dilated")
    inner = next(n.output[0] for n in c.model.graph.node if n.op_type == "Relu")
    held = graphattr.fit(c.model, data("dilated"), "pattern.net", wrt=inner)
    assert len(held.arrays) == len(fitted("dilated").arrays) - 1
    assert engine.attribute(c.model, c.x, c.target, "pattern.net", wrt=inner, fitted=held)[inner].any()
    with pytest.raises(graphattr.MissingFit, match="'conv0' has no learned 'pattern'"):
        graphattr.convert(c.model, "pattern.net", fitted=held)


def test_half_precision_is_fitted_in_float32():
    """The statistics of a float16 model are those of its float32 twin."""
    c = zoo.case("dilated")
    half = onnx.ModelProto()
    half.CopyFrom(c.model)
    del half.graph.value_info[:]
    for t in half.graph.initializer:
        if t.data_type == onnx.TensorProto.FLOAT:
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name))
    for v in [*half.graph.input, *half.graph.output]:
        v.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    held = graphattr.fit(half, data("dilated"), "pattern.net")
    for layer, arrays in fitted("dilated").arrays.items():
        assert held[layer]["pattern"].dtype == np.float32
        np.testing.assert_allclose(held[layer]["pattern"], arrays["pattern"], rtol=0, atol=5e-3)
    a = graphattr.explain(half, c.x.astype(np.float16), "pattern.net", fitted=held)
    assert a.scores["x"].dtype == np.float32
    assert a.scores["x"].any()


def test_a_large_condition_number_is_said():
    """w = (1, -1) reads two inputs that are nearly the same: cov lies across w."""
    t = np.random.default_rng(0).standard_normal(400)
    x = np.stack([t * (1 + 1e-4), t], 1).astype(np.float32)
    made = tiny.model([tiny.node("Gemm", "x w", "y", "lin")], {"x": ["N", 2]}, {"y": ["N", 1]}, {"w": np.float32([[1], [-1]])})
    with pytest.warns(graphattr.FitWarning, match="layer 'lin': condition number 2e.04"):
        held = graphattr.fit(made, x, "pattern.net")
    assert held.manifest["layers"]["lin"]["condition"] > 1e4


def test_units_that_never_vary_have_no_pattern():
    """Never active, or always the same: zeros, and a warning that says how many."""
    w, b = np.ones((4, 3), np.float32), np.array([-100, 0, 50], np.float32)
    w[:, 2] = 0
    made = tiny.model([tiny.node("Gemm", "x w b", "h", "lin"), tiny.node("Relu", "h", "y", "relu")], weights={"w": w, "b": b})
    with pytest.warns(graphattr.FitWarning, match="layer 'lin': 1 of 3 units were active at fewer than 30 places"):
        held = graphattr.fit(made, np.random.default_rng(0).random((500, 4)).astype(np.float32), "pattern.net")
    a = held["lin"]["pattern"]
    assert not a[:, 0].any()
    assert not a[:, 2].any()
    assert a[:, 1].all()
    assert held.manifest["layers"]["lin"]["never"] == 1
    assert "fit on more data" in held.warnings[0]
