"""MIP-IN against a replica that writes its designs out, against golden vectors, and on what the vectors cannot tell apart."""

from __future__ import annotations

import functools
import json
import pathlib
import warnings

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import graphattr
from graphattr.fit import normal

pytest.importorskip("onnxruntime")
from tests.rules import engine, mip_in_oracle
from tests.rules.nets import Net
from tests.rules.zoo import Build

VECTORS = pathlib.Path(__file__).parents[3] / "shared" / "vectors"
SAMPLES = 240


def pooled():
    """BN, windows that overlap in both kinds of pooling, groups, several dense layers."""
    b = Build(31, 3, 8, 8)
    h = b.op("MaxPool", b.relu(b.norm(b.conv("x", 3, 6, pads=[1] * 4), 6)), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    h = b.op("AveragePool", b.relu(b.conv(h, 6, 8, group=2, pads=[1] * 4)), kernel_shape=[2, 2])
    h = b.relu(b.gemm(b.op("Flatten", h), 72, 10))
    return b.done(b.op("Softmax", b.gemm(h, 10, 4), axis=1))


def strided():
    """Strides, dilations, automatic padding, a global mean, MatMul with Add."""
    b = Build(32, 2, 9, 8)
    h = b.relu(b.conv("x", 2, 5, (3, 2), strides=[2, 1], auto_pad="SAME_UPPER"))
    h = b.relu(b.conv(h, 5, 6, strides=[2, 3], dilations=[2, 1], pads=[2, 1, 0, 1]))
    return b.done(b.matmul(b.op("Flatten", b.op("GlobalAveragePool", h)), 6, 4))


def wave():
    """One axis, a rectifier that is never 0, a dense layer with factors."""
    b = Build(33, 3, 12)
    h = b.op("LeakyRelu", b.conv("x", 3, 5, (4,), strides=[3], pads=[2, 1]), alpha=0.3)
    return b.done(b.gemm(b.op("Flatten", h), 20, 4, alpha=0.5, beta=2.0))


def tokens():
    """Dense layers on the last of three axes: every token is a row."""
    b = Build(34, 4, 5)
    h = b.relu(b.matmul(b.relu(b.matmul("x", 5, 7)), 7, 6))
    return b.done(b.matmul(b.op("ReduceMean", h, axes=[1], keepdims=0), 6, 4))


def shifted():
    """Factors and shifts that no layer absorbs, behind a rectifier and before a padded convolution."""
    b = Build(35, 2, 5, 5)
    h = b.op("Add", b.relu(b.conv("x", 2, 4)), b.const(np.array([0.5, -1, 2, 0.1], np.float32).reshape(4, 1, 1)))
    h = b.op("Mul", h, b.const(np.array([-2, 0.5, 3, 1.5], np.float32).reshape(4, 1, 1)))
    return b.head(b.relu(b.norm(b.relu(b.conv(h, 4, 4, pads=[1] * 4)), 4)), 36)


NETS = {f.__name__: f for f in (pooled, strided, wave, tokens, shifted)}


@functools.cache
def data(name):
    """(model, fitting samples, their classes, three samples to explain)."""
    model = NETS[name]()
    rng = np.random.default_rng(len(name))
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    x = rng.standard_normal((SAMPLES + 3, *shape)).astype(np.float32)
    return model, x[3:], rng.integers(0, 4, SAMPLES), x[:3]


def fit(model, x, target=2, **params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", graphattr.FitWarning)
        return graphattr.fit(model, {"x": x}, "mip_in", target=target, **params)


def explain(model, fitted, x, wrt=None, target=2, **params):
    session = engine.session(model, "mip_in", wrt, target, fitted=fitted, **params)
    return engine.run(session, x)


def close(found, want, rtol=5e-5):
    assert found.shape == want.shape
    np.testing.assert_allclose(found, want, rtol=0, atol=rtol * np.abs(want).max())


# -- against the replica --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("signal", "fit_on", "conv_bias"), [("scalar", "all", False), ("vector", "class", False),
                                                             ("vector", "all", True), ("scalar", "class", True)])
@pytest.mark.parametrize("name", NETS)
def test_replica(name, signal, fit_on, conv_bias):
    model, x, labels, asked = data(name)
    fitted = fit(model, x, signal=signal, fit_on=fit_on, conv_bias=conv_bias, ridge=0.01, labels=labels)
    rows = x if fit_on == "all" else x[labels == 2]
    inverses = mip_in_oracle.fit(Net(model, rows), 2, signal, 0.01, conv_bias)
    for init in ("logit", "one"):
        want = mip_in_oracle.explain(Net(model, asked), inverses, 2, init)
        close(explain(model, fitted, asked, init=init)["x"], want["x"])
    signal = mip_in_oracle.descend(Net(model, asked), mip_in_oracle.top(Net(model, asked), 2, signal), inverses, True)
    close(explain(model, fitted, asked, reconstruct=True)["x"], signal["x"])


@pytest.mark.parametrize("conv_bias", [False, True])
def test_learned_biases_reconstruct_the_input(conv_bias):
    """What is kept beside the inverses is the replica's, layer by layer."""
    model, x, _, _ = data("pooled")
    fitted = fit(model, x, fit_on="all", signal="vector", conv_bias=conv_bias)
    want = mip_in_oracle.fit(Net(model, x), 2, "vector", 1e-3, conv_bias)
    names = {layer.name: layer.output for layer in Net(model, x).layers if layer.kind == "linear"}
    assert len(fitted.arrays) == len(want) == 4
    for name, output in names.items():
        held = fitted[name if name in fitted.arrays else output]
        close(held["inverse_bias"].ravel(), want[name].b, 1e-4) if want[name].b.any() else np.testing.assert_array_equal(
            held["inverse_bias"], 0
        )


def test_the_replica_sees_what_it_should():
    """Each thing that could be left out changes the replica's answer by far more than the tolerance."""
    model, x, _, asked = data("pooled")
    net, seen = Net(model, x[:80]), Net(model, asked)
    want = mip_in_oracle.explain(seen, mip_in_oracle.fit(net, 2), 2)["x"]

    def differs(other):
        return np.abs(other["x"] - want).max() > 1e-2 * np.abs(want).max()

    for change in ({"signal": "vector"}, {"ridge": 30.0}, {"conv_bias": True}):
        assert differs(mip_in_oracle.explain(seen, mip_in_oracle.fit(net, 2, **change), 2))
    assert differs(mip_in_oracle.explain(seen, mip_in_oracle.fit(net, 1), 2))
    rectifiers = mip_in_oracle.RECTIFIERS
    try:
        mip_in_oracle.RECTIFIERS = set()
        unmasked = mip_in_oracle.fit(net, 2)
        assert differs(mip_in_oracle.explain(seen, unmasked, 2)), "without any indication"
        mip_in_oracle.RECTIFIERS = rectifiers
        assert differs(mip_in_oracle.explain(seen, unmasked, 2)), "with inverses of signals that were not masked"
    finally:
        mip_in_oracle.RECTIFIERS = rectifiers


def test_the_input_gets_no_indication():
    """Elements of the input that are 0 get what the inverse says."""
    model, x, _, asked = data("strided")
    asked = np.where(np.random.default_rng(0).random(asked.shape) < 0.5, 0, asked).astype(np.float32)
    found = explain(model, fit(model, x, fit_on="all"), asked)["x"]
    want = mip_in_oracle.explain(Net(model, asked), mip_in_oracle.fit(Net(model, x), 2), 2)["x"]
    close(found, want)
    assert (found[asked == 0] != 0).mean() > 0.5


# -- golden vectors ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", sorted(VECTORS.glob("*__mipin_*.npz")), ids=lambda p: p.stem)
def test_vector(path):
    z, params = np.load(path), json.loads(str(np.load(path)["params"]))
    model, target = str(VECTORS / f"{path.stem.split('__')[0]}.onnx"), params["target_class"]
    fitted = fit(model, z["data"], target, fit_on="all", signal=params["output"], ridge=params["lam"])
    close(explain(model, fitted, z["x"], target=target)["x"], z["attribution"], 3e-5)
    close(explain(model, fitted, z["x"], target=target, init="one")["x"], z["aux_A_one"], 3e-5)
    close(explain(model, fitted, z["x"], target=target, reconstruct=True)["x"], z["aux_S0"], 3e-5)


def conv_inverse(s, x, kernel, strides, pads, dilations, groups, ridge, bias=False):
    """The kernel and bias as `normal` finds them, fed in two batches."""
    grid, found, shifts = normal.Grid(kernel, strides, pads[:len(kernel)], dilations), [], []
    for a, b in zip(np.split(s, groups, 1), np.split(x, groups, 1), strict=True):
        parts = [normal.sums_of(normal.conv_rows(a[i::2], b[i::2], grid), a.shape[1] * int(np.prod(kernel))) for i in (0, 1)]
        made = normal.solve({k: parts[0][k] + parts[1][k] for k in parts[0]}, ridge, bias)
        assert parts[0]["rows"] + parts[1]["rows"] == len(x) * np.prod(x.shape[2:])
        found.append(np.moveaxis(made.w.reshape(*kernel, a.shape[1], b.shape[1]), (-2, -1), (0, 1)))
        shifts.append(made.b)
    return np.concatenate(found), np.concatenate(shifts)


@pytest.mark.parametrize("path", sorted(VECTORS.glob("mipin_conv_*.npz")), ids=lambda p: p.stem)
def test_convolution_vector(path):
    z, p = np.load(path), json.loads(str(np.load(path)["params"]))
    s, d, pads = [p["stride"]] * 2, [p.get("dil", 1)] * 2, [p["pad"]] * 4
    geometry = ([p["kernel"]] * 2, s, pads, d, p.get("groups", 1), p["lam"])
    np.testing.assert_allclose(conv_inverse(z["S"], z["X"], *geometry)[0], z["K"], rtol=0, atol=1e-12)
    kernel, bias = conv_inverse(z["S"], z["X"], *geometry, True)
    np.testing.assert_allclose(kernel, z["K_bias"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(bias, z["b_bias"], rtol=0, atol=1e-12)


# -- least squares -------------------------------------------------------------------------------------------------
GEOMETRIES = {
    "1d": ((9,), (3,), [3], (2,), [1, 1], [3], 1),
    "dilation shares a factor with the stride": ((9, 8), (4, 3), [3, 2], (4, 6), [2, 1, 2, 1], [2, 3], 2),
    "3d": ((7, 6, 5), (5, 3, 2), [2, 3, 1], (1, 2, 3), [0, 1, 0, 0, 1, 0], [2, 1, 1], 2),
    "positions that no tap reaches": ((5, 5), (3, 3), [1, 1], (2, 2), [0] * 4, [1, 1], 1),
    "taps that reach nothing": ((4, 3), (1, 1), [5, 5], (7, 7), [2] * 4, [2, 2], 1),
}


@pytest.mark.parametrize("block", [normal.BLOCK, 64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_convolutions_of_any_geometry(name, bias, block, monkeypatch):
    monkeypatch.setattr(normal, "BLOCK", block)
    space, out, *geometry, groups = GEOMETRIES[name]
    kernel, strides, pads, dilations = geometry
    rng = np.random.default_rng(3)
    s, x = rng.standard_normal((6, 4, *out)), rng.standard_normal((6, 6, *space))
    found = conv_inverse(s, x, kernel, strides, pads, dilations, groups, 1e-2, bias)
    want = mip_in_oracle.conv_inverse(s, x, kernel, strides, pads, dilations, groups, 1e-2, bias)
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)


def test_a_transposed_convolution_is_found_again():
    """X = ConvTranspose(S; K) gives K, exactly, without a ridge."""
    rng = np.random.default_rng(4)
    s, k = rng.standard_normal((8, 5, 4, 6)), rng.standard_normal((5, 3, 3, 2))
    geometry = ([2, 1], [1, 0, 1, 0], [1, 2])
    x = mip_in_oracle.conv_apply(s, k, (7, 8), geometry[0], geometry[1], geometry[2], 1)
    found, _ = conv_inverse(s, x, [3, 2], *geometry, 1, 0.0)
    np.testing.assert_allclose(found, k, rtol=0, atol=1e-10)


def test_dense_rows_are_a_ridge_regression():
    """Columns that never vary get nothing, with and without a ridge; condition number and rest are those of the system."""
    rng = np.random.default_rng(5)
    s = np.concatenate([rng.standard_normal((50, 4)) + 30, np.full((50, 1), 7.0), np.zeros((50, 1))], 1)
    x = s[:, :4] @ rng.standard_normal((4, 3)) + 5 + rng.standard_normal((50, 3))
    for ridge in (0.0, 0.5):
        made = normal.solve(normal.sums_of(normal.dense_rows(s, x), 6), ridge, True)
        w, b = mip_in_oracle.ridge_fit(s[:, :4], x, ridge, True)
        np.testing.assert_allclose(made.w, np.vstack([w, np.zeros((2, 3))]), atol=1e-9)
        np.testing.assert_allclose(made.b, b, atol=1e-8)
        centred = s[:, :4] - s[:, :4].mean(0)
        assert made.condition == pytest.approx(np.linalg.cond(centred.T @ centred + ridge * np.eye(4)), rel=0.05)
        assert made.residual == pytest.approx(np.square(x - s @ made.w - made.b).sum() / np.square(x).sum(), rel=1e-6)


def test_dependent_equations_name_the_layer():
    model, x, _, _ = data("pooled")
    with pytest.raises(graphattr.MethodError, match=r"layer '.*equations of its inverse depend on each other; give"):
        fit(model, x[:8], fit_on="all", signal="vector", ridge=0)
    with pytest.raises(graphattr.MethodError, match="ridge must not be negative"):
        fit(model, x, fit_on="all", ridge=-1.0)


# -- the fit -------------------------------------------------------------------------------------------------------
def test_batches_do_not_matter():
    model, x, labels, asked = data("strided")
    one, other = (fit(model, x, labels=labels, batch_size=n) for n in (7, 240))
    for layer in one.arrays:
        for name, array in one[layer].items():
            np.testing.assert_allclose(array, other[layer][name], rtol=0, atol=1e-5 * np.abs(other[layer][name]).max())
    whole = explain(model, one, asked)["x"]
    for i in range(len(asked)):
        close(explain(model, one, asked[i:i + 1])["x"], whole[i:i + 1], 1e-6)


@pytest.mark.parametrize(("fit_on", "signal"), [("class", "scalar"), ("all", "vector"), ("all", "scalar")])
def test_several_targets(tmp_path, fit_on, signal):
    """One Fitted for three targets says for each what its own would; other targets are refused."""
    model, x, labels, asked = data("strided")
    options = {"labels": labels, "fit_on": fit_on, "signal": signal}
    path = fit(model, x, [0, (2,), 3], **options).save(tmp_path / "three.npz")
    for target in (0, 3):
        close(explain(model, path, asked, target=target)["x"],
              explain(model, fit(model, x, target, **options), asked, target=target)["x"], 1e-6)
    close(explain(model, path, asked, target=(2,))["x"], explain(model, fit(model, x, 2, **options), asked)["x"], 1e-6)
    for target in (1, "argmax", "input", "seed"):
        with pytest.raises(graphattr.MethodError, match="learned for target"):
            graphattr.convert(model, "mip_in", target, fitted=path)
    with pytest.raises(graphattr.MethodError, match="pass target="):
        graphattr.fit(model, {"x": x}, "mip_in")


def test_few_rows_are_warned_of():
    model, x, _, _ = data("pooled")
    with pytest.warns(graphattr.FitWarning, match=r"fewer than 4 rows per unknown.* has (\d+) rows for 10 unknowns \(condition"):
        fitted = graphattr.fit(model, {"x": x[:39]}, "mip_in", target=2, fit_on="all", signal="vector")
    assert len(fitted.warnings) == 1
    assert "has 39 rows for 10 unknowns" in fitted.warnings[0]
    notes = fitted.manifest["layers"]
    first = next(v for v in notes.values() if v["rows"] == 39 * 64)
    assert first["unknowns"] == 6 * 9
    assert all(v["condition"] >= 1 and 0 <= v["residual"] <= 1 for v in notes.values())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graphattr.fit(model, {"x": x[:40]}, "mip_in", target=2, fit_on="all", signal="vector")


def test_classes():
    """Labels are needed for one class; a multi-index is no class."""
    model, x, labels, _ = data("strided")
    with pytest.raises(graphattr.RunError, match="no labels"):
        fit(model, x)
    with pytest.raises(graphattr.RunError, match="no sample of class 2"):
        fit(model, x, labels=np.zeros(SAMPLES, np.int64))
    one = fit(model, x, labels=labels)
    other = fit(model, x[labels == 2], fit_on="all")
    for layer in one.arrays:
        np.testing.assert_allclose(one[layer]["inverse"], other[layer]["inverse"], atol=1e-6)
    b = Build(5, 2, 5, 5)
    maps = b.done(b.op("Reshape", b.conv("x", 2, 4, (5, 5)), b.ints(0, -1)))
    y = maps.graph.node[0].output[0]
    with pytest.raises(graphattr.MethodError, match=r"target \(1, 0, 0\) is no class that samples have.*fit_on='all'"):
        graphattr.fit(_with_output(maps, y), {"x": np.ones((4, 2, 5, 5), np.float32)}, "mip_in", target=(1, 0, 0), output=y)


def _with_output(model, name):
    made = onnx.ModelProto()
    made.CopyFrom(model)
    made.graph.output.append(next(v for v in onnx.shape_inference.infer_shapes(model).graph.value_info if v.name == name))
    return made


def test_an_interrupted_fit_goes_on(tmp_path):
    """Layers that are done are not fitted again; the result is the same."""
    model, x, _, _ = data("strided")
    whole, seen = fit(model, x, fit_on="all", batch_size=40), []

    def batches():
        for i in range(0, SAMPLES, 40):
            seen.append(i)
            if len(seen) == 10:  # in the second pass
                raise KeyboardInterrupt
            yield {"x": x[i:i + 40]}

    class Again:
        def __iter__(self):
            return batches()

    options = {"target": 2, "fit_on": "all", "batch_size": 40, "state": tmp_path / "state.npz"}
    with pytest.raises(KeyboardInterrupt):
        graphattr.fit(model, Again(), "mip_in", **options)
    assert (tmp_path / "state.npz").exists()
    fitted = graphattr.fit(model, Again(), "mip_in", **options)
    assert not (tmp_path / "state.npz").exists()
    assert len(seen) == 10 + 2 * 6, "one pass was done, one is read again, one is new"
    for layer in whole.arrays:
        np.testing.assert_array_equal(fitted[layer]["inverse"], whole[layer]["inverse"])


def test_half_precision():
    """A float16 model is fitted and explained on its float32 twin."""
    model, x, _, asked = data("strided")
    rounded, half = onnx.ModelProto(), onnx.ModelProto()
    rounded.CopyFrom(model)
    half.CopyFrom(model)
    for a, b in zip(rounded.graph.initializer, half.graph.initializer, strict=True):
        if a.data_type == onnx.TensorProto.FLOAT:
            low = numpy_helper.to_array(a).astype(np.float16)
            a.CopyFrom(numpy_helper.from_array(low.astype(np.float32), a.name))
            b.CopyFrom(numpy_helper.from_array(low, b.name))
    for v in (*half.graph.input, *half.graph.output, *half.graph.value_info):
        v.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    x, asked = x.astype(np.float16), asked.astype(np.float16)
    session = engine.session(half, "mip_in", target=2, fitted=fit(half, x, fit_on="all"))
    found = session.run(["x_attribution"], {"x": asked})[0]
    assert found.dtype == np.float32
    close(found, explain(rounded, fit(rounded, x.astype(np.float32), fit_on="all"), asked)["x"])


# -- what it cannot invert, and the classifier's module ------------------------------------------------------------------
def joined():
    """A residual join, behind which a chain begins at a tensor of pictures: (model, name of that tensor)."""
    b = Build(36, 3, 8, 8)
    h = b.relu(b.conv("x", 3, 6, pads=[1] * 4))
    cut = b.op("MaxPool", b.relu(b.op("Add", h, b.conv(h, 6, 6, pads=[1] * 4))), kernel_shape=[2, 2], strides=[2, 2])
    h = b.relu(b.conv(cut, 6, 5, pads=[1] * 4))
    return b.done(b.gemm(b.op("Flatten", h), 80, 4)), cut


def test_joins_are_refused():
    model, cut = joined()
    x = np.random.default_rng(0).standard_normal((40, 3, 8, 8)).astype(np.float32)
    with pytest.raises(graphattr.UnsupportedOp, match=r"'mip_in' has no rule for layer 'add\d+' \(operator Add, kind sum\)"):
        fit(model, x, fit_on="all")
    fitted = fit(model, x, fit_on="all", wrt=cut)
    with pytest.raises(graphattr.UnsupportedOp, match="Add"):
        graphattr.convert(model, "mip_in", 2, fitted=fitted)
    with pytest.raises(graphattr.MissingFit, match="mip_in"):
        graphattr.convert(model, "mip_in", 2)


def test_branches_are_refused():
    b = Build(37, 3, 6, 6)
    h = b.relu(b.conv("x", 3, 4))
    both = b.op("Concat", b.conv(h, 4, 2, (1, 1)), b.conv(h, 4, 3, (1, 1)), axis=1)
    model = b.head(both, 80)
    with pytest.raises(graphattr.UnsupportedOp, match=r"'relu\d+' is read by 'conv\d+' and 'conv\d+'"):
        fit(model, np.ones((8, 3, 6, 6), np.float32), fit_on="all")


def test_transposed_convolutions_are_refused():
    b = Build(38, 3, 5, 5)
    model = b.head(b.relu(b.deconv("x", 3, 2)), 98)
    with pytest.raises(graphattr.UnsupportedOp, match=r"no inverse is known for layer 'convtranspose\d+' \(ConvTranspose\)"):
        fit(model, np.random.default_rng(0).standard_normal((8, 3, 5, 5)).astype(np.float32), fit_on="all")


def test_classifier_module():
    """At a tensor inside: A with the indication there; upsampled: max(0, mean over channels), resized to the picture."""
    model, cut = joined()
    x = np.random.default_rng(1).standard_normal((120, 3, 8, 8)).astype(np.float32)
    fitted, asked = fit(model, x, fit_on="all", wrt=cut), x[:3]
    net = Net(model, asked)
    names = [layer.output for layer in net.layers]
    rest = names.index(cut) + 1
    whole = Net(model, x)
    net.layers, whole.layers = net.layers[rest:], whole.layers[rest:]
    a = mip_in_oracle.explain(net, mip_in_oracle.fit(whole, 2), 2)[cut]
    assert (net.values[cut] == 0).any()
    want = a * (net.values[cut] != 0)
    assert np.abs(a - want).max() > 0.01 * np.abs(a).max(), "the indication matters here"
    close(explain(model, fitted, asked, cut)[cut], want)
    raised = np.maximum(want.mean(1, keepdims=True), 0)
    close(explain(model, fitted, asked, cut, upsample=True)[cut], bilinear(bilinear(raised, 2, 8), 3, 8))


def bilinear(a, axis, size):
    """Linear along one axis, pixels at their centres."""
    n = a.shape[axis]
    at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
    low = np.floor(at).astype(int)
    part = (at - low).reshape(-1, *[1] * (a.ndim - 1 - axis))
    return np.take(a, low, axis) * (1 - part) + np.take(a, np.minimum(low + 1, n - 1), axis) * part


def test_upsampling_needs_a_picture():
    model, x, _, _ = data("strided")
    fitted = fit(model, x, fit_on="all")
    flat = next(n.output[0] for n in model.graph.node if n.op_type == "Flatten")
    with pytest.raises(graphattr.MethodError, match=r"'flatten\d+' has 2 axes; choose a tensor of pictures"):
        graphattr.convert(model, "mip_in", 2, wrt=flat, fitted=fitted, upsample=True)


def test_every_tensor_of_one_fit():
    """A fit at the input serves tensors inside, several at once."""
    model, x, _, asked = data("pooled")
    names = [n.output[0] for n in model.graph.node if n.op_type in ("Relu", "MaxPool", "AveragePool")]
    found = explain(model, fit(model, x, fit_on="all"), asked, ["x", *names])
    net = Net(model, asked)
    want = mip_in_oracle.explain(net, mip_in_oracle.fit(Net(model, x), 2), 2)
    for name in names:
        close(found[name], want[name] * (net.values[name] != 0))
    close(found["x"], want["x"])


def test_affine_layers_are_undone():
    """A normalisation of the input written as Sub and Div, and a factor that is 0: exact inverses, no fit."""
    b = Build(39, 3, 5, 5)
    mean, std = np.array([0.4, 0.5, 0.6], np.float32).reshape(3, 1, 1), np.array([0.2, 0.25, 4.0], np.float32).reshape(3, 1, 1)
    inside = b.op("Div", b.op("Sub", "x", b.const(mean)), b.const(std))
    h = b.relu(b.conv(inside, 3, 4, pads=[1] * 4))
    model = b.head(h, 100)
    x = np.random.default_rng(2).uniform(0, 1, (60, 3, 5, 5)).astype(np.float32)
    fitted = fit(model, x, fit_on="all")
    found, signal = explain(model, fitted, x[:3], ["x", inside]), explain(model, fitted, x[:3], ["x", inside], reconstruct=True)
    close(found["x"], found[inside] * std)
    close(signal["x"], signal[inside] * std + mean)
