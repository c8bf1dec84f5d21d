"""DMBP against golden vectors, an oracle by the closed form, and what must hold for any masks."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.rules import zoo
from tests.rules.dmbp_oracle import Masked, masked, sigmoid
from tests.rules.nets import Net

pytest.importorskip("onnxruntime")
from graphattr_rules import dmbp

import graphattr
from tests.rules import engine

VECTORS = pathlib.Path(__file__).parents[3] / "shared" / "vectors"
FILES = sorted(VECTORS.glob("*__dmbp_*.npz"))
TABLE = json.loads((VECTORS / "methods.json").read_text()) if FILES else {}
NETS = ("cnn", "residual", "branches", "dilated", "upsampled", "shared", "scaled", "prenorm", "volume", "automatic", "biased",
        "deep")
SETTINGS = ({"n_steps": 0}, {"n_steps": 8}, {"n_steps": 6, "optimizer": "gd", "lr": 0.05})
AUX = {"aux_pos": "positive_x", "aux_neg": "negative_x", "aux_y_pos": "y_positive", "aux_y_neg": "y_negative",
       "aux_nuisance": "nuisance", "aux_loss": "loss"}


def close(got, want, tolerance=3e-5, floor=1e-6, what=""):
    assert got.shape == want.shape, what
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max() + floor, err_msg=what)


def learned(model, x, target, **params):
    """All outputs, extras by their own names, and the Loop's state before and behind its steps (the logits come first)."""
    made = graphattr.convert(model, method="dmbp", target="input", extras=True, **params).model
    loops = [n for n in made.graph.node if n.op_type == "Loop"]
    names = [name for n in loops for name in (*n.input[2:], *n.output[: len(n.input) - 2])]
    made.graph.output.extend(helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, None) for n in names)
    session = engine.onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    found = engine.run(session, x, target=np.asarray(target, np.int64))
    states = [found[n] for n in names]
    logits = made.graph.output[0].name
    return {k.removeprefix(f"{logits}_"): v for k, v in found.items()}, states[: len(names) // 2], states[len(names) // 2 :]


def extras(c, model=None, **params):
    return learned(model or c.model, c.x, c.target, **params)[0]


# --- golden vectors ---


@pytest.mark.skipif(not FILES, reason="no golden vectors beside the checkout")
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_golden(file):
    """Maps, masks, their slopes and the loss, of the oracle to 9 digits and of graphattr in float32."""
    z, path = np.load(file), VECTORS / f"{file.stem.split('__')[0]}.onnx"
    params = TABLE[file.stem.split("__")[1]]["params"]
    net = Net(onnx.load(path), z["x"])
    oracle = Masked(net, np.eye(net.logits.shape[1])[z["target"]])
    want = oracle.explain(**params) | {"thetas": oracle.learn(**{"lr": 0.1, "optimizer": "adam"} | params)[0]}
    close(want["x"], z["attribution"], 1e-9, 1e-12)
    for key, name in AUX.items():
        close(want[name], z[key], 1e-9, 1e-12, key)
    first, slopes = oracle.start(), oracle.slopes(oracle.start())
    for l in oracle.relus:
        close(first[l.name], z[f"aux_theta0::{l.name}"], 0, 0)
        if f"aux_grad0::{l.name}" in z.files:
            close(slopes[l.name], z[f"aux_grad0::{l.name}"], 1e-9, 1e-12, l.name)
        close(want["thetas"][l.name], z[f"aux_theta::{l.name}"], 1e-7, 1e-9, l.name)
    found, before, behind = learned(str(path), z["x"], z["target"], **params)
    close(found["x"], z["attribution"])
    for key, name in AUX.items():
        close(found[name], z[key], floor=1e-5, what=key)
    for l, a, b in zip(oracle.relus[::-1], before, behind):
        close(a, z[f"aux_theta0::{l.name}"], 0, 0, l.name)
        close(b, z[f"aux_theta::{l.name}"], 1e-4, what=l.name)


# --- the oracle ---


@pytest.mark.parametrize("mask", ["element", "channel"])
@pytest.mark.parametrize("name", ["cnn", "residual", "shared", "biased"])
def test_the_closed_form_is_the_slope_of_the_loss(name, mask):
    oracle = masked(zoo.case(name), mask)
    rng = np.random.default_rng(0)
    thetas = {k: t + 0.3 * rng.standard_normal(t.shape) for k, t in oracle.start().items()}
    step = {k: 1e-6 * rng.standard_normal(t.shape) for k, t in thetas.items()}
    up, down = (oracle.loss({k: t + sign * step[k] for k, t in thetas.items()}) for sign in (1, -1))
    slope = sum((d * step[k]).reshape(len(d), -1).sum(1) for k, d in oracle.slopes(thetas).items())
    np.testing.assert_allclose((up - down) / 2, slope, rtol=1e-5)


# --- graphattr against the oracle ---


@pytest.mark.parametrize("mask", ["element", "channel"])
@pytest.mark.parametrize("name", NETS)
def test_zoo(name, mask):
    """Residual joins, concatenation, biases of all kinds, affine layers that nothing absorbs."""
    c, oracle = zoo.case(name), masked(zoo.case(name), mask)
    for params in SETTINGS:
        found, want = extras(c, mask=mask, **params), oracle.explain(**params)
        for key in want:
            close(found[key], want[key], floor=1e-5, what=f"{key} {params}")


@pytest.mark.parametrize("mask", ["element", "channel"])
@pytest.mark.parametrize("name", ["cnn", "residual", "shared", "scaled"])
def test_the_slopes_of_the_masks(name, mask):
    """One step of gradient descent shows dL/dtheta: g D p of the masked linearised forward pass."""
    c, oracle = zoo.case(name), masked(zoo.case(name), mask)
    _, before, behind = learned(c.model, c.x, c.target, mask=mask, optimizer="gd", lr=1.0, n_steps=1)
    slopes = oracle.slopes(oracle.start())
    assert len(before) == len(oracle.relus)
    for l, a, b in zip(oracle.relus[::-1], before, behind):
        close(a, oracle.start()[l.name], 0, 0)
        close(a - b, slopes[l.name], 1e-5, 1e-6, l.name)


@pytest.mark.parametrize("name", ["cnn", "residual", "shared", "biased"])
def test_an_inner_tensor(name):
    """Only rectifiers above it are masked; what comes past it is a constant that the layers add."""
    c = zoo.case(name)
    inner = next(l.output for l in c.net.layers if l.op == "Relu")
    want = masked(c, wrt=inner).explain(n_steps=5)
    found = extras(c, n_steps=5, wrt=[inner])
    for key in want:
        close(found[key], want[key], floor=1e-5, what=key)
    both = extras(c, n_steps=5, wrt=["x", inner])
    close(both[inner], want[inner])
    close(both["x"], masked(c).explain(n_steps=5)["x"])


def skipping():
    """A branch without rectifiers up to the output: its biases and the last one's pass no mask."""
    b = zoo.Build(30, 3, 6, 6)
    h = b.op("Add", b.conv(b.relu(b.conv("x", 3, 5, pads=[1] * 4)), 5, 4, pads=[1] * 4), b.conv("x", 3, 4, (1, 1)))
    return b.head(b.op("GlobalAveragePool", h), 4)


def skipping_case():
    x = np.random.default_rng(0).standard_normal((3, 3, 6, 6)).astype(np.float32)
    return zoo.Case("skipping", skipping(), x, np.array([0, 1, 3]))


@pytest.mark.parametrize("params", SETTINGS, ids=str)
def test_biases_that_no_rectifier_passes(params):
    c = skipping_case()
    found, want = extras(c, **params), masked(c).explain(**params)
    for key in want:
        close(found[key], want[key], floor=1e-5, what=key)


# --- what must hold for any masks ---


@pytest.mark.parametrize("name", ["cnn", "residual", "biased", "skipping"])
def test_open_masks_are_gradient_times_input(name, monkeypatch):
    """sigma = 1: y+ is all of y without free biases, y- what passes no rectifier."""
    case = skipping_case() if name == "skipping" else zoo.case(name)
    monkeypatch.setattr(dmbp, "masked", lambda g, rs, theta, slope: [slope * rs[0], 0.0 * rs[1]])
    found, oracle = extras(case, n_steps=0), masked(case)
    close(found["positive_x"], engine.attribute(case.model, case.x, case.target, "gradient_x_input")["x"])
    close(found["y_positive"], oracle.rest)
    close(found["y_negative"], oracle.parts({l.name: np.float64(40.0) for l in oracle.relus})[1])
    assert case.name == "skipping" or np.abs(found["y_negative"]).max() == 0


def adding():
    """Constants in sums of several, in Concat, Pad, Where and a BatchNormalization that nothing absorbs; a Resize."""
    b = zoo.Build(32, 3, 5, 5)
    h = b.op("Sum", b.conv("x", 3, 4), b.conv("x", 3, 4), b.weight(1, 4, 3, 3))
    h = b.op("Where", b.const(b.rng.random((1, 4, 3, 3)) > 0.3), b.relu(h), b.const(np.float32(0.4)))
    h = b.op("Pad", h, b.ints(0, 0, 0, 0, 0, 0, 1, 1), b.const(np.float32(0.7)))
    h = b.op("Add", b.norm(b.op("Resize", h, "", b.const(np.float32([1, 1, 2, 2])), mode="nearest"), 4), b.weight(4, 8, 8))
    h = b.op("Sub", b.weight(4, 6, 6), b.op("Mean", b.relu(b.conv(h, 4, 4)), b.conv(h, 4, 4), b.weight(4, 1, 1)))
    return b.head(b.relu(h), 144)


def test_every_constant_counts(monkeypatch):
    """With open masks nothing is left over: x dy/dx and the constants are all of y, but for those that pass no rectifier."""
    monkeypatch.setattr(dmbp, "masked", lambda g, rs, theta, slope: [slope * rs[0], 0.0 * rs[1]])
    x = np.random.default_rng(0).standard_normal((3, 3, 5, 5)).astype(np.float32)
    found = learned(adding(), x, [0, 1, 3], n_steps=0)[0]
    assert np.abs(found["y_negative"]).max() == 0
    assert np.abs(found["nuisance"]).max() < 1e-5 * np.abs(found["y_positive"]).max()


def test_without_rectifiers():
    """Each pass is gradient x input of what is linear, or of the output itself."""
    c = zoo.case("cnn")
    for wrt in (next(l.output for l in c.net.layers if l.op == "Flatten"), c.net.output):
        found = extras(c, wrt=[wrt], n_steps=5)
        want = engine.attribute(c.model, c.x, c.target, "gradient_x_input", wrt=[wrt])[wrt]
        close(found[f"positive_{wrt}"], want)
        close(found[wrt], 2 * want)
        close(found["loss"], np.abs(want.reshape(3, -1).sum(1))[None], floor=1e-5)


def test_the_largest_of_data_and_a_constant_is_refused():
    b = zoo.Build(33, 6)
    h = b.op("Max", b.matmul("x", 6, 5), b.matmul("x", 6, 5), b.weight(5))
    with pytest.raises(graphattr.MethodError, match="operator Max"):
        graphattr.convert(b.done(b.gemm(b.relu(h), 5, 4)), method="dmbp", target=0)


@pytest.mark.parametrize("name", NETS)
def test_the_parts_add_up_and_learning_helps(name):
    c, oracle = zoo.case(name), masked(zoo.case(name))
    found = extras(c, n_steps=20, optimizer="gd", lr=0.01)
    close(found["y_positive"] + found["y_negative"] + found["nuisance"], oracle.rest, floor=1e-5)
    close(found["positive_x"] + found["negative_x"], found["x"])
    close(found["y_negative"] - found["y_positive"] + np.abs(found["nuisance"]), found["loss"][-1], floor=1e-5)
    assert found["loss"].shape == (21, len(c.x))
    assert (found["loss"][-1] <= found["loss"][0] + 1e-5).all()
    assert (found["loss"][-1] < found["loss"][0] - 1e-3).any()


@pytest.mark.parametrize("mask", ["element", "channel"])
def test_a_batch_is_its_samples_one_by_one(mask):
    c = zoo.case("residual")
    explainer = engine.session(c.model, "dmbp", extras=True, mask=mask, n_steps=6)
    together = engine.run(explainer, c.x, target=c.target)
    for i in range(len(c.x)):
        alone = engine.run(explainer, c.x[i : i + 1], target=c.target[i : i + 1])
        for key, v in alone.items():
            axis = 1 if key.endswith("_loss") else 0
            np.testing.assert_allclose(np.take(together[key], [i], axis), v, rtol=1e-4, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("name", ["cnn", "residual"])
def test_symbolic_height_and_width(name):
    c = zoo.case(name)
    model = onnx.ModelProto.FromString(c.model.SerializeToString())
    for dim, free in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "HW", strict=True):
        dim.dim_param = free
    for mask in ("element", "channel"):
        want = masked(c, mask).explain(n_steps=4)
        close(extras(c, model, n_steps=4, mask=mask)["x"], want["x"])


def test_targets():
    """argmax is that of the input; a seed of one class is that class, twice the seed twice the first map."""
    c = zoo.case("cnn")
    top = c.net.logits.argmax(1)
    want = engine.attribute(c.model, c.x, top, "dmbp", n_steps=4)["x"]
    close(engine.run(engine.session(c.model, "dmbp", target="argmax", n_steps=4), c.x)["x"], want)
    one = np.eye(c.net.logits.shape[1], dtype=np.float32)[top]
    seeded = engine.session(c.model, "dmbp", target="seed", n_steps=4)
    close(engine.run(seeded, c.x, seed=one)["x"], want)
    weights = np.random.default_rng(1).standard_normal(one.shape).astype(np.float32)
    close(engine.run(seeded, c.x, seed=weights)["x"], Masked(c.net, weights.astype(float)).explain(n_steps=4)["x"])


def test_several_inputs():
    """Two inputs are the parts of one; an input that the output does not read gets zeros."""
    c = zoo.case("cnn")
    model = onnx.ModelProto.FromString(c.model.SerializeToString())
    graph = model.graph
    graph.node.insert(0, helper.make_node("Concat", ["a", "b"], ["x"], "join", axis=1))
    del graph.input[:]
    parts = (("a", 1), ("b", 2), ("c", 1))
    graph.input.extend(helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", k, 7, 7]) for n, k in parts)
    graph.node.append(helper.make_node("Neg", ["c"], ["unread"], "other"))
    graph.output.append(helper.make_tensor_value_info("unread", onnx.TensorProto.FLOAT, ["N", 1, 7, 7]))
    feeds = {"a": c.x[:, :1], "b": c.x[:, 1:], "c": c.x[:, :1]}
    made = graphattr.convert(model, method="dmbp", target="input", n_steps=5, extras=True)
    found = graphattr.Explainer(made)(feeds, target=c.target)
    want = masked(c).explain(n_steps=5)
    close(np.concatenate([found.scores["a"], found.scores["b"]], 1), want["x"])
    assert not found.scores["c"].any()
    y = graph.output[0].name
    assert {f"{y}_positive_a", f"{y}_negative_b", f"{y}_loss", f"{y}_nuisance"} <= set(made.outputs)


def test_beside_another_method():
    c = zoo.case("cnn")
    made = graphattr.convert(c.model, method=["dmbp", "gradient"], target="input", n_steps=3, extras=True)
    found = engine.run(engine.onnxruntime.InferenceSession(made.model.SerializeToString()), c.x, target=c.target)
    want, y = masked(c).explain(n_steps=3), c.model.graph.output[0].name
    close(found["x_attribution_dmbp"], want["x"])
    close(found[f"{y}_loss_dmbp"], want["loss"], floor=1e-5)
    close(found["x_attribution_gradient"], engine.attribute(c.model, c.x, c.target, "gradient")["x"])


def test_half_precision():
    """Explained in float32, as the same model with its weights rounded."""
    c, half, wide = zoo.case("deep"), onnx.ModelProto(), onnx.ModelProto()
    half.CopyFrom(c.model)
    wide.CopyFrom(c.model)
    del half.graph.value_info[:], wide.graph.value_info[:]
    for a, b in zip(half.graph.initializer, wide.graph.initializer):
        weight = onnx.numpy_helper.to_array(a).astype(np.float16)
        a.CopyFrom(onnx.numpy_helper.from_array(weight, a.name))
        b.CopyFrom(onnx.numpy_helper.from_array(weight.astype(np.float32), b.name))
    for v in (*half.graph.input, *half.graph.output):
        v.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    x = c.x.astype(np.float16)
    both = ((half, x), (wide, x.astype(np.float32)))
    found, want = (graphattr.explain(m, v, "dmbp", target=1, n_steps=4).scores["x"] for m, v in both)
    assert found.dtype == np.float32
    close(found, want)


# --- the graph ---


def body_of(model):
    (loop,) = (n for n in model.graph.node if n.op_type == "Loop")
    return next(a.g for a in loop.attribute if a.name == "body")


def test_the_graph_does_not_grow_with_the_steps():
    """One Loop, whose body holds neither weights (unless the lowering copies them) nor what is the same at every step."""
    c = zoo.case("cnn")
    few, many = (graphattr.convert(c.model, method="dmbp", target=0, n_steps=n, lowering="portable").model for n in (10, 1000))
    assert [n.op_type for n in few.graph.node] == [n.op_type for n in many.graph.node]
    assert [n.op_type for n in body_of(few).node] == [n.op_type for n in body_of(many).node]
    assert not {"MaxPool", "Greater", "Transpose"} & {n.op_type for n in body_of(few).node}
    assert sum(np.prod(t.dims) for t in body_of(few).initializer) < 200


@pytest.mark.parametrize("spelling", ["Clip", "Max"])
def test_other_spellings_of_relu(spelling):
    c = zoo.case("cnn")
    model = onnx.ModelProto.FromString(c.model.SerializeToString())
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0), "zero"))
    for node in model.graph.node:
        if node.op_type == "Relu":
            node.op_type = spelling
            node.input.append("zero")
    close(extras(c, model, n_steps=4)["x"], masked(c).explain(n_steps=4)["x"])


@pytest.mark.parametrize(("name", "layer"), [
    ("gated", "Mul"), ("mlp", "LeakyRelu"), ("mobile", "Clip"), ("ratio", "Exp"), ("tokens", "Tanh"), ("sums", "Mul"),
    ("squeeze_excite", "Mul")])
def test_layers_that_are_refused(name, layer):
    for strict in (True, False):
        with pytest.raises(graphattr.MethodError, match="attribute to a tensor behind it") as error:
            graphattr.convert(zoo.case(name).model, method="dmbp", target=0, strict=strict)
        assert layer in str(error.value)


def chosen(by):
    b = zoo.Build(31, 6)
    h = b.matmul("x", 6, 5)
    condition = b.op("Greater", h, b.const(np.float32(0))) if by == "data" else b.const(np.array([1, 0, 1, 1, 0], bool))
    return b.done(b.gemm(b.relu(b.gemm(b.op("Where", condition, h, b.const(np.float32(0.5))), 5, 7)), 7, 4))


def test_a_choice_by_the_data_is_refused_and_one_by_a_constant_adds_its_value():
    with pytest.raises(graphattr.MethodError, match="operator Where"):
        graphattr.convert(chosen("data"), method="dmbp", target=0)
    c = zoo.case("deep")
    x = np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    found = learned(chosen("constant"), x, c.target, n_steps=3)[0]
    plain = zoo.Build(31, 6)
    w, b = plain.weight(6, 5, spread=(2 / 6) ** 0.5), plain.weight(5, spread=0.2)
    keep, other = np.array([1, 0, 1, 1, 0], "f4"), np.array([0, 0.5, 0, 0, 0.5], "f4")
    for t, factor, shift in zip(plain.init, (keep, keep), (0, other)):
        t.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(t) * factor + np.float32(shift), t.name))
    plain.const(np.zeros(1)), plain.const(np.zeros(1))
    h = plain.op("Add", plain.op("MatMul", "x", w), b)
    model = plain.done(plain.gemm(plain.relu(plain.gemm(h, 5, 7)), 7, 4))
    want = learned(model, x, c.target, n_steps=3)[0]
    for key in ("x", "y_positive", "y_negative", "loss"):
        close(found[key], want[key], floor=1e-5, what=key)


@pytest.mark.parametrize(("params", "message"), [
    ({"n_steps": -1}, "n_steps >= 0"), ({"lr": 0.0}, "lr > 0"), ({"optimizer": "sgd"}, "optimizer"), ({"mask": "filter"}, "mask"),
    ({"delta": True}, "delta"), ({"ledger": True}, "ledger")])
def test_what_makes_no_sense_is_an_error(params, message):
    with pytest.raises(graphattr.MethodError, match=message):
        graphattr.convert(zoo.case("cnn").model, method="dmbp", target=0, **params)


def test_sigmoid_starts_where_the_paper_says():
    np.testing.assert_allclose(sigmoid(np.array([2.0, 0.0, -2.0])), [0.880797, 0.5, 0.119203], atol=1e-6)
