"""The oracles against golden vectors of another implementation, and against what the papers promise."""

from __future__ import annotations

import functools
import itertools
import json
import pathlib

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.rules import methods, oracles, zoo
from tests.rules.nets import ACTIVATIONS, Net

VECTORS = pathlib.Path(__file__).parents[3] / "shared" / "vectors"
NETS = ("cnn_", "cnn2_", "mlp_", "residual_", "strided_", "gated_")
TABLE = json.loads((VECTORS / "methods.json").read_text()) if (VECTORS / "methods.json").exists() else {}
CHOSEN = {k: v for k, v in TABLE.items() if v["method"] in methods.METHODS}
FILES = sorted(f for f in VECTORS.glob("*__*.npz") if f.stem.split("__")[1] in CHOSEN and f.name.startswith(NETS))


@functools.cache
def net_at(name, data, shape, fold):
    return Net(onnx.load(VECTORS / f"{name}.onnx"), np.frombuffer(data, np.float32).reshape(shape), fold=fold)


def at(name, x, fold=True):
    return net_at(name, np.ascontiguousarray(x, np.float32).tobytes(), x.shape, fold)


@pytest.mark.skipif(not FILES, reason="no golden vectors beside the checkout")
@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_golden(file):
    model, vector = file.stem.split("__")
    z, entry = np.load(file), CHOSEN[vector]
    x = np.abs(z["x"]) if entry.get("x") == "abs" else z["x"]
    net = at(model, x, fold=not entry["method"].startswith("gradient"))
    params = dict(entry.get("params", {}))
    if params.pop("baselines", None):
        found = methods.explain(net, "gradient", z["target"])
        found["x"] = found["x"] * (x - z["baseline"].astype(float))
    else:
        found = methods.explain(net, entry["method"], z["target"], **params)
    expected = {"x": z["attribution"]} | {k.split("::")[1]: z[k] for k in z.files if k.startswith(("aux_R::", "aux_grad::"))}
    for name, want in expected.items():
        np.testing.assert_allclose(found[name], want, rtol=0, atol=1e-9 * np.abs(want).max() + 1e-14, err_msg=name)


BOX = {"low": -4.0, "high": 4.0}
POINTWISE = {"Mul", "Div", "Clip", "Tanh", "Sigmoid"}
HOMOGENEOUS = [n for n in zoo.ZOO if not POINTWISE & {l.op for l in zoo.case(n).net.layers if l.kind != "scale"}]


def explain(net, method, target, **params):
    return methods.explain(net, method, target, **((BOX if method in methods.BOXED else {}) | params))


def total(r):
    return r.reshape(len(r), -1).sum(1)


def close(found, want, tol=1e-9):
    np.testing.assert_allclose(found, want, rtol=0, atol=tol * np.abs(want).max() + 1e-13)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_forward_is_that_of_onnxruntime(name):
    c = zoo.case(name)
    session = onnxruntime.InferenceSession(c.model.SerializeToString(), providers=["CPUExecutionProvider"])
    y = session.run(None, {"x": c.x})[0].astype(float)
    logits = c.net.logits
    if c.model.graph.node[-1].op_type == "Softmax":
        logits = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    close(y, logits, 2e-6)
    close(c.unfolded.logits, c.net.logits)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_gradient_is_the_slope_of_the_output(name):
    c = zoo.case(name)
    step = np.random.default_rng(0).standard_normal(c.x.shape) * 1e-6 * np.abs(c.x).max()
    slope = total(methods.explain(c.net, "gradient", c.target)["x"] * step)
    pick = np.arange(len(c.x)), c.target
    up, down = (Net(c.model, c.x + s * step).logits[pick] for s in (1, -1))
    close((up - down) / 2, slope, 1e-6)
    close(methods.explain(c.unfolded, "gradient", c.target)["x"], methods.explain(c.net, "gradient", c.target)["x"])


@pytest.mark.parametrize("name", HOMOGENEOUS)
def test_zero_rule_is_gradient_times_input(name):
    c = zoo.case(name)
    for net in (c.net, c.unfolded):
        close(explain(net, "lrp.zero", c.target)["x"], explain(net, "gradient_x_input", c.target)["x"])


@pytest.mark.parametrize(("method", "want"), [
    ("excitation_backprop", lambda y: 1 + 0 * y), ("deep_taylor", oracles.pos), ("deep_taylor.bounded", oracles.pos),
    ("deep_taylor.positive", oracles.pos), ("lrp.epsilon", lambda y: y), ("lrp.zplus", lambda y: y),
    ("excitation_backprop.contrastive", lambda y: 0 * y), ("lrp.contrastive", lambda y: 0 * y)])
def test_conservation(method, want):
    """A net without biases loses nothing; the stabiliser takes about 1e-5."""
    c = zoo.case("deep")
    params = {"rectify": "none"} if method == "lrp.contrastive" else {}
    y = c.net.logits[np.arange(len(c.x)), c.target]
    np.testing.assert_allclose(total(explain(c.net, method, c.target, **params)["x"]), want(y), atol=3e-5)


def test_conservation_where_both_parts_exist():
    rng = np.random.default_rng(0)
    x, w, r, b = rng.standard_normal((3, 20)), rng.standard_normal((6, 20)), rng.standard_normal((3, 6)), rng.standard_normal(6)
    flat = {"support": np.ones_like(w), "low": -4.0, "high": 4.0, "eps": 0.0, "bias": "ignore"}
    for name in ("alpha_beta", "zplus", "gamma", "wsquare", "flat", "zbox", "epsilon"):
        close(oracles.LINEAR[name](x, w, b, r, **flat).sum(1), r.sum(1), 1e-12)
    z = x @ w.T + b
    close(oracles.epsilon(x, w, b, r, eps=0).sum(1), (r * (z - b) / z).sum(1))


@pytest.mark.parametrize("method", methods.METHODS)
@pytest.mark.parametrize("name", ["cnn", "gated", "residual"])
def test_scaling_the_seed_scales_the_attribution(name, method):
    """Every method but the contrastive LRP is positively homogeneous in R, all but three linear."""
    c = zoo.case(name)
    seed = np.random.default_rng(1).standard_normal(c.net.logits.shape)
    found = explain(c.net, method, c.target, seeded=seed)["x"]
    close(explain(c.net, method, c.target, seeded=3 * seed)["x"], 3 * found)
    if method not in methods.RECTIFIED:
        other = np.random.default_rng(2).standard_normal(seed.shape)
        both = explain(c.net, method, c.target, seeded=seed - 2 * other)["x"]
        close(both, found - 2 * explain(c.net, method, c.target, seeded=other)["x"], 1e-8)


def test_rules_that_are_special_cases():
    rng = np.random.default_rng(3)
    x, w, r, b = rng.standard_normal((3, 9)), rng.standard_normal((5, 9)), rng.standard_normal((3, 5)), rng.standard_normal(5)
    close(oracles.alpha_beta(x, w, b, r, alpha=1, beta=0), oracles.zplus(x, w, b, r))
    close(oracles.gamma(x, w, b, r, gamma=0), oracles.epsilon(x, w, b, r))
    up = r * (x @ w.T + b > 0)
    close(oracles.gamma(x, w, b, up, gamma=1e9, eps=0), oracles.zplus(x, w, b, up, eps=0), 1e-7)
    close(oracles.zbox(x, w, b, r, low=0, high=0), oracles.epsilon(x, w, b, r, bias="ignore"))
    close(oracles.wsquare(x, w, b, r), oracles.wsquare(0 * x, w, b, r))
    close(oracles.flat(x, w, b, r, support=np.ones_like(w), eps=0), np.repeat(r.sum(1, keepdims=True) / 9, 9, 1))


def test_ties_and_zeros():
    """An empty denominator drops relevance at eps 0, sgn(0) is 1, the first maximum wins, kinks have slope 0."""
    assert oracles.divide(np.ones(3), np.array([0.0, -0.0, 2.0]), 0).tolist() == [0, 0, 0.5]
    assert oracles.divide(np.ones(3), np.array([0.0, -0.0, -1.0]), 0.5).tolist() == [2, 2, -1 / 1.5]
    ids, _ = oracles.pool_winners(np.zeros((1, 1, 2, 2)), (2, 2), (1, 1), (0, 0, 0, 0), (1, 1))
    assert ids.item() == 0
    assert ACTIVATIONS["Clip"][1](np.array([0.0, 3.0, 6.0]), {}, [0.0, 6.0]).tolist() == [0, 1, 0]


def test_guided_backprop_of_a_positive_net_is_the_gradient():
    c = zoo.case("deep")
    model = onnx.ModelProto.FromString(c.model.SerializeToString())
    for tensor in list(model.graph.initializer)[1:]:
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.abs(onnx.numpy_helper.to_array(tensor)), tensor.name))
    net = Net(model, c.x)
    close(explain(net, "guided_backprop", c.target)["x"], explain(net, "gradient", c.target)["x"])
    assert np.abs(explain(net, "deconvnet", c.target)["x"] - explain(net, "gradient", c.target)["x"]).max() > 0.1


def test_zplus_converges_to_rank_one_and_epsilon_does_not():
    """Sixt et al. 2020: what the output receives soon stops to matter."""
    rng = np.random.default_rng(4)
    x, layers = rng.uniform(0, 1, (1, 60)), []
    for _ in range(9):
        w = rng.standard_normal((60, 60)) / 30**0.5
        layers.append((x, w))
        x = oracles.pos(x @ w.T)
    def cosine(rule):
        r = rng.standard_normal((2, 60))
        for x, w in reversed(layers):
            r = rule(np.repeat(x, 2, 0), w, np.zeros(60), r, eps=1e-9)
        return abs(r[0] @ r[1]) / np.linalg.norm(r[0]) / np.linalg.norm(r[1])
    assert np.median([cosine(oracles.zplus) for _ in range(5)]) > 1 - 1e-6
    assert np.median([cosine(oracles.epsilon) for _ in range(5)]) < 0.99


def test_zoo_tells_all_methods_apart():
    """Any two methods differ clearly on some net of the zoo: agreement with the right one means something."""
    maps = {m: [explain((c := zoo.case(n)).net, m, c.target)["x"] for n in zoo.ZOO] for m in methods.METHODS}
    for how in ("none", "difference"):
        maps[how] = [explain((c := zoo.case(n)).net, "lrp.contrastive", c.target, rectify=how)["x"] for n in zoo.ZOO]
    for a, b in itertools.combinations(maps, 2):
        apart = max(np.abs(p - q).max() / np.abs(q).max() for p, q in zip(maps[a], maps[b]) if np.abs(q).max() > 0)
        assert apart > 1e-2, f"{a} and {b} agree on every net"
