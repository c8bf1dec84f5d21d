"""LSTM, GRU and RNN written out in time: the same outputs, the right gradients, and relevance as a NumPy oracle computes it."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphattr
from tests.unit.tiny import node

ort.set_default_logger_severity(4)
T, N, I, H = 5, 3, 4, 3
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
DIRECTIONS = ("forward", "reverse", "bidirectional")


def draw(*shape, seed=0, dtype=np.float32):
    return (0.6 * np.random.default_rng([seed, *shape]).standard_normal(shape)).astype(dtype)


def weights(op, directions=1, bias=True, peepholes=False, dtype=np.float32, seed=1):
    k = GATES[op]
    found = {"W": draw(directions, k * H, I, seed=seed), "R": draw(directions, k * H, H, seed=seed + 1)}
    found |= {"B": draw(directions, 2 * k * H, seed=seed + 2)} if bias else {}
    found |= {"P": draw(directions, 3 * H, seed=seed + 3)} if peepholes else {}
    return {name: w.astype(dtype) for name, w in found.items()}


def net(op, direction="forward", *, bias=True, peepholes=False, batch="N", steps=T, before=(), after=(), result=None,
        inputs=(), dtype=np.float32, layout=0, **attrs):
    """x -> recurrent node "cell" -> Y, Y_h (and Y_c). `inputs`: more inputs of the node: {slot: array, or shape of an input}."""
    d = 2 if direction == "bidirectional" else 1
    held, kind = weights(op, d, bias, peepholes, dtype), helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shape = [batch, steps, I] if layout else [steps, batch, I]
    infos = [helper.make_tensor_value_info("x", kind, shape)]
    for slot, given in dict(inputs).items():
        if isinstance(given, np.ndarray):
            held[slot] = given
        else:
            infos.append(helper.make_tensor_value_info(slot, TensorProto.INT32 if slot == "lens" else kind, given))
    slots = ["x", *(s if s in held or s in dict(inputs) else "" for s in ("W", "R", "B", "lens", "h0", "c0", "P"))]
    while not slots[-1]:
        slots.pop()
    outs = ["Y", "Y_h", "Y_c"][:3 if op == "LSTM" else 2]
    attrs |= {"layout": layout} if layout else {}
    cell = helper.make_node(op, slots, outs, name="cell", hidden_size=H, direction=direction, **attrs)
    shown = [helper.make_tensor_value_info(o, kind, None) for o in (outs if result is None else [result, *outs])]
    tensors = [numpy_helper.from_array(w, k) for k, w in held.items()]
    graph = helper.make_graph([*before, cell, *after], "g", infos, shown, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model, feeds):
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def unchanged(model, feeds, output="Y"):
    """The model's outputs, which must be those of its explanation graph, where no recurrent node is left."""
    ex = graphattr.convert(model, method="gradient", output=output, target="seed")
    assert not {n.op_type for n in ex.model.graph.node} & set(GATES)
    want = run(model, feeds)
    got = run(ex.model, feeds | {"seed": np.zeros_like(want[output])})
    for name, y in want.items():
        assert got[name].shape == y.shape
        np.testing.assert_allclose(got[name], y, rtol=0, atol=1e-5 * np.abs(y).max(), err_msg=name)
    return want


VARIANTS = {
    "plain": {},
    "no bias": {"bias": False},
    "lengths": {"inputs": {"lens": np.array([5, 2, 1], np.int32)}},
    "an empty sequence": {"inputs": {"lens": np.array([5, 0, 3], np.int32)}},
    "all the same length": {"inputs": {"lens": np.array([5, 5, 5], np.int32)}},
    "initial state": {"inputs": {"h0": draw(1, N, H, seed=7)}},
    "initial state and lengths": {"inputs": {"h0": draw(1, N, H, seed=7), "lens": np.array([1, 5, 4], np.int32)}},
    "clip": {"clip": 0.4},
    "one step": {"steps": 1},
}


EACH = [*(("bidirectional", v) for v in VARIANTS), *((d, v) for d in ("forward", "reverse") for v in ("plain", "lengths"))]


@pytest.mark.parametrize(("direction", "variant"), EACH)
@pytest.mark.parametrize("op", GATES)
def test_outputs(op, direction, variant):
    options = dict(VARIANTS[variant])
    if direction == "bidirectional" and "h0" in options.get("inputs", {}):
        options["inputs"] = options["inputs"] | {"h0": draw(2, N, H, seed=8)}
    unchanged(net(op, direction, **options), {"x": draw(options.get("steps", T), N, I)})


@pytest.mark.parametrize(("direction", "variant"), [*EACH, ("reverse", "activations"), ("bidirectional", "activations")])
def test_outputs_of_gru_that_resets_late(direction, variant):
    options = VARIANTS.get(variant, {"activations": ["HardSigmoid", "Softsign"] * (2 if direction == "bidirectional" else 1)})
    if direction == "bidirectional" and "h0" in options.get("inputs", {}):
        options = options | {"inputs": options["inputs"] | {"h0": draw(2, N, H, seed=8)}}
    model = net("GRU", direction, linear_before_reset=1, **options)
    unchanged(model, {"x": draw(options.get("steps", T), N, I)})


STATES = {"h0": draw(1, N, H, seed=7), "c0": draw(1, N, H, seed=8)}


@pytest.mark.parametrize("options", [
    {"peepholes": True}, {"peepholes": True, "clip": 0.4, "inputs": STATES}, {"inputs": STATES}, {"inputs": {"c0": STATES["c0"]}},
    {"input_forget": 1, "inputs": STATES}, {"input_forget": 1, "peepholes": True},
    {"direction": "reverse", "peepholes": True, "inputs": STATES | {"lens": np.array([3, 5, 1], np.int32)}},
    {"direction": "bidirectional", "peepholes": True},
    {"activations": ["HardSigmoid", "Tanh", "LeakyRelu"], "activation_alpha": [0.3, 0.2], "activation_beta": [0.4]},
    {"direction": "bidirectional", "activations": ["HardSigmoid", "Tanh", "LeakyRelu", "Sigmoid", "Relu", "Elu"],
     "activation_alpha": [0.3, 0.2, 0.5], "activation_beta": [0.4]},
], ids=str)
def test_outputs_of_lstm(options):
    unchanged(net("LSTM", **options), {"x": draw(T, N, I)})


NAMES = ["Relu", "Sigmoid", "HardSigmoid", "Softsign", "Softplus", "Elu", "LeakyRelu", "Tanh", "ThresholdedRelu", "Affine",
         "ScaledTanh"]


@pytest.mark.parametrize("options", [
    *({"activations": [a]} for a in NAMES),
    {"activations": ["HardSigmoid"], "activation_alpha": [0.3], "activation_beta": [0.4]},
    {"activations": ["ThresholdedRelu"], "activation_alpha": [0.3]},
    {"activations": ["Affine"], "activation_alpha": [0.7], "activation_beta": [0.4]},
    {"activations": ["ScaledTanh"], "activation_alpha": [0.7], "activation_beta": [1.4]},
], ids=str)
def test_outputs_of_rnn(options):
    unchanged(net("RNN", **options), {"x": draw(T, N, I)})


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_behind_its_end_a_sequence_shows_zero_and_keeps_its_state(direction):
    model = net("LSTM", direction, inputs={"lens": ["N"]})
    feeds = {"x": draw(T, N, I), "lens": np.array([5, 2, 3], np.int32)}
    y = unchanged(model, feeds)["Y"]
    assert not y[2:, :, 1].any()
    assert not y[3:, :, 2].any()
    alone = unchanged(model, {"x": feeds["x"][:, 1:2], "lens": feeds["lens"][1:2]})  # another batch size, the same file
    np.testing.assert_allclose(alone["Y"][:, :, 0], y[:, :, 1], atol=1e-6)
    a = run(graphattr.convert(model, method="gradient", output="Y", target="seed").model, feeds | {"seed": np.ones_like(y)})
    assert not a["x_attribution"][2:, 1].any()
    assert a["x_attribution"][:2, 1].all()


@pytest.mark.parametrize("op", GATES)
def test_batch_first(op):
    """layout=1, which ONNX Runtime's own kernels refuse, is layout=0 with other axes."""
    attrs = {"linear_before_reset": 1} if op == "GRU" else {}
    h0 = draw(2, N, H, seed=7)
    plain = net(op, "bidirectional", inputs={"h0": h0}, **attrs)
    turned = net(op, "bidirectional", layout=1, inputs={"h0": h0.transpose(1, 0, 2).copy()}, **attrs)
    x = draw(T, N, I)
    want = run(plain, {"x": x})
    ex = graphattr.convert(turned, method="gradient", output="Y_h", target="seed")
    got = run(ex.model, {"x": x.transpose(1, 0, 2).copy(), "seed": np.ones((N, 2, H), np.float32)})
    np.testing.assert_allclose(got["Y"], want["Y"].transpose(2, 0, 1, 3), atol=1e-6)
    for name in [n for n in want if n != "Y"]:
        np.testing.assert_allclose(got[name], want[name].transpose(1, 0, 2), atol=1e-6)
    same = graphattr.convert(plain, method="gradient", output="Y_h", target="seed")
    back = run(same.model, {"x": x, "seed": np.ones((2, N, H), np.float32)})["x_attribution"]
    np.testing.assert_allclose(got["x_attribution"], back.transpose(1, 0, 2), atol=1e-6)


def test_weights_that_nodes_compute():
    """Exporters that fold nothing leave nodes between the file's weights and the recurrent node."""
    w = weights("LSTM", 2)
    model = net("LSTM", "bidirectional", before=[node("Neg", "W_", "W"), node("Neg", "R_", "R"), node("Neg", "B_", "B")])
    for t in model.graph.initializer:
        t.CopyFrom(numpy_helper.from_array(-w[t.name], f"{t.name}_"))
    unchanged(model, {"x": draw(T, N, I)})


def test_a_long_sequence():
    unchanged(net("RNN", steps=66), {"x": draw(66, N, I)}, "Y_h")


def test_zero_states_made_by_nodes_are_left_out():
    """torch and tf2onnx make the initial state from the batch size; no step reads it."""
    made = [node("Shape", "x", "size"), node("Slice", "size one two", "rows"), node("Concat", "d rows h", "state", axis=0),
            node("ConstantOfShape", "state", "h0")]
    model = net("GRU", before=made, inputs={"h0": np.zeros(0, np.float32)})
    del model.graph.initializer[-1]
    for name, value in {"one": [1], "two": [2], "d": [1], "h": [H]}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value), name))
    unchanged(model, {"x": draw(T, N, I)})
    text = graphattr.convert(model, method="gradient", output="Y", target="seed")
    assert not any("start" in n.name for n in text.model.graph.node)


# -- gradients ----------------------------------------------------------------------------------------------------
def differences(model, feeds, seed, output, names, step=1e-2):
    """Slopes of <output, seed> along random directions, by central differences of the original model in float64 sums."""
    for name in names:
        v = draw(*feeds[name].shape, seed=11)

        def along(h, name=name, v=v):
            return float((run(model, feeds | {name: feeds[name] + np.float32(h) * v})[output].astype(float) * seed).sum())

        f = [along(k * step) for k in (-2, -1, 1, 2)]
        yield name, v, (8 * (f[2] - f[1]) - (f[3] - f[0])) / (12 * step)


@pytest.mark.parametrize("direction", ["reverse", "bidirectional"])
@pytest.mark.parametrize(("op", "late"), [("RNN", 0), ("LSTM", 0), ("GRU", 0), ("GRU", 1)])
def test_gradients(op, late, direction):
    d = 2 if direction == "bidirectional" else 1
    more = {"h0": [d, "N", H], "lens": np.array([5, 2, 4], np.int32)} | ({"c0": [d, "N", H]} if op == "LSTM" else {})
    attrs = {"linear_before_reset": 1} if late else {}
    model = net(op, direction, inputs=more, peepholes=op == "LSTM", **attrs)
    feeds = {"x": draw(T, N, I), "h0": draw(d, N, H, seed=7)} | ({"c0": draw(d, N, H, seed=8)} if op == "LSTM" else {})
    seed = draw(T, d, N, H, seed=9)
    ex = graphattr.convert(model, method="gradient", output="Y", target="seed")
    got = run(ex.model, feeds | {"seed": seed})
    for name, v, want in differences(model, feeds, seed, "Y", feeds):
        assert float((got[f"{name}_attribution"] * v).sum()) == pytest.approx(want, rel=2e-3, abs=2e-3), name


# -- relevance: METHODS in float64 --------------------------------------------------------------------------------
def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def divide(r, z, eps):
    return r / np.where(z >= 0, z + eps, z - eps)


def lstm_relevance(w, d, xs, r_last, eps):
    """Relevance of x_t for that of the last h: Arras et al. 2017, gates get nothing."""
    wx, wh, b = w["W"][d], w["R"][d], w["B"][d][:4 * H] + w["B"][d][4 * H:]
    g_rows = slice(3 * H, 4 * H)
    h = c = np.zeros((xs.shape[1], H))
    tape = []
    for x in xs:
        a = x @ wx.T + h @ wh.T + b
        i, o, f = sigmoid(a[:, :H]), sigmoid(a[:, H:2 * H]), sigmoid(a[:, 2 * H:3 * H])
        g, before = np.tanh(a[:, g_rows]), (h, c)
        c = f * c + i * g
        h = o * np.tanh(c)
        tape.append((x, before, i * g, f * before[1], c, a[:, g_rows]))
    r_h, r_c, found = r_last, np.zeros_like(c), []
    for x, (h0, _), ig, fc, c1, z in tape[::-1]:
        s = divide(r_c + r_h, c1, eps)
        u = divide(ig * s, z, eps)
        found.append(x * (u @ wx[g_rows]))
        r_h, r_c = h0 * (u @ wh[g_rows]), fc * s
    return np.array(found[::-1])


def gru_relevance(w, d, xs, r_last, eps, late):
    """As for the LSTM; with linear_before_reset=1 the reset gate is a coefficient of the candidate's one denominator."""
    wx, wh, bx, bh = w["W"][d], w["R"][d], w["B"][d][:3 * H], w["B"][d][3 * H:]
    n_rows, h, tape = slice(2 * H, 3 * H), np.zeros((xs.shape[1], H)), []
    for x in xs:
        a = x @ wx.T + bx
        zr = sigmoid((a + h @ wh.T + bh)[:, :2 * H])
        z, r = zr[:, :H], zr[:, H:]
        q = a[:, n_rows] + (r * (h @ wh[n_rows].T + bh[n_rows]) if late else (r * h) @ wh[n_rows].T + bh[n_rows])
        new, old = (1 - z) * np.tanh(q), z * h
        tape.append((x, h, r, q, new, old))
        h = new + old
    r_h, found = r_last, []
    for x, h0, r, q, new, old in tape[::-1]:
        s = divide(r_h, new + old, eps)
        u = divide(new * s, q, eps)
        found.append(x * (u @ wx[n_rows]))
        r_h = old * s + (h0 * ((r * u) @ wh[n_rows]) if late else (r * h0) * (u @ wh[n_rows]))
    return np.array(found[::-1])


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize(("op", "late"), [("LSTM", 0), ("GRU", 0), ("GRU", 1)])
def test_relevance(op, late, direction, eps):
    d = 2 if direction == "bidirectional" else 1
    model = net(op, direction, **({"linear_before_reset": 1} if late else {}))
    w = {k: v.astype(np.float64) for k, v in weights(op, d).items()}
    x, seed = draw(T, N, I, seed=20), draw(d, N, H, seed=21)
    ex = graphattr.convert(model, method="lrp.epsilon", output="Y_h", target="seed", mul="gate", eps=eps)
    got = run(ex.model, {"x": x, "seed": seed})["x_attribution"]
    want = np.zeros_like(x, np.float64)
    for k in range(d):
        turn = -1 if direction == "reverse" or k else 1
        args = w, k, x[::turn].astype(np.float64), seed[k].astype(np.float64), eps
        want += (lstm_relevance(*args) if op == "LSTM" else gru_relevance(*args, late))[::turn]
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_initial_states_take_their_share_from_no_gate():
    """What a constant initial state earns ends there: as if it were an input that nobody asks for."""
    x, seed = draw(T, N, I), draw(1, N, H, seed=9)
    for op in ("LSTM", "GRU"):
        states = STATES if op == "LSTM" else {"h0": STATES["h0"]}
        given, fixed = (net(op, inputs=s) for s in ({k: [1, "N", H] for k in states}, states))
        options = {"method": "lrp.epsilon", "output": "Y_h", "target": "seed", "mul": "gate", "bias": "ignore", "eps": 0.0}
        free = run(graphattr.convert(given, **options).model, {"x": x, "seed": seed, **states})
        bound = run(graphattr.convert(fixed, **options).model, {"x": x, "seed": seed})
        np.testing.assert_allclose(bound["x_attribution"], free["x_attribution"], atol=1e-5)


@pytest.mark.parametrize("method", ["lrp.zplus", "lrp.gamma", "lrp.flat", "lrp.wsquare", "lrp.alpha2_beta1", "lrp.epsilon_plus"])
@pytest.mark.parametrize("late", [0, 1])
def test_every_linear_rule_speaks_of_the_candidate(method, late):
    ex = graphattr.convert(net("GRU", linear_before_reset=late), method=method, output="Y_h", target=0, mul="gate", ledger=True)
    rule = {layer["layer"]: layer["rule"] for layer in ex.manifest["layers"][method]}["cell/t1/candidate"]
    assert rule.startswith("lrp.")
    assert all(np.isfinite(v).all() for v in run(ex.model, {"x": draw(T, N, I)}).values())


@pytest.mark.parametrize("bias", ["absorb", "ignore"])
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_the_ledger_explains_everything(op, bias):
    model = net(op, **({"linear_before_reset": 1} if op == "GRU" else {}))
    ex = graphattr.convert(model, method="lrp.epsilon", output="Y_h", target=1, mul="gate", ledger=True, bias=bias, eps=1e-3)
    for arrived, sent, *kept in run(ex.model, {"x": draw(T, N, I)})["Y_h_ledger"].astype(np.float64).sum(0):
        assert arrived == pytest.approx(sent + sum(kept), abs=1e-4 * max(1, abs(arrived)))


def test_uniform_products_give_the_gates_their_half():
    x, seed = draw(T, N, I), draw(1, N, H, seed=9)
    maps = [run(graphattr.convert(net("LSTM"), method="lrp.epsilon", output="Y_h", target="seed", mul=m).model,
                {"x": x, "seed": seed})["x_attribution"] for m in ("gate", "uniform")]
    assert np.abs(maps[0] - maps[1]).max() > 1e-3 * np.abs(maps[0]).max()


# -- what is refused, and what is not -----------------------------------------------------------------------------
def test_an_unknown_activation_is_refused_by_name():
    with pytest.raises(graphattr.UnsupportedOp, match="Gelu"):
        graphattr.convert(net("RNN", activations=["Gelu"]), method="gradient", output="Y", target=0)


@pytest.mark.parametrize("name", ["Affine", "ScaledTanh"])
def test_gradients_through_activations_of_two_nodes(name):
    model = net("RNN", activations=[name], activation_alpha=[0.7], activation_beta=[0.4])
    x, seed = draw(T, N, I), draw(T, 1, N, H, seed=4)
    found = run(graphattr.convert(model, method="gradient", output="Y", target="seed").model, {"x": x, "seed": seed})
    u, h = draw(T, N, I, seed=5), np.float32(1e-2)
    up, down = (float(np.sum(run(model, {"x": x + s * h * u})["Y"] * seed)) for s in (1, -1))
    assert np.sum(found["x_attribution"] * u) == pytest.approx((up - down) / (2 * float(h)), rel=1e-3)


def test_a_tensor_inside_a_step_can_be_asked_for():
    inside = ["cell/t1/candidate/x", "x"]
    ex = graphattr.convert(net("GRU", linear_before_reset=1), method="gradient", output="Y_h", target=0, wrt=inside)
    assert run(ex.model, {"x": draw(T, N, I)})[f"{inside[0]}_attribution"].shape == (N, H)


def test_the_layer_table_is_readable():
    rows = graphattr.inspect(net("LSTM", "bidirectional"), method="lrp.epsilon", output="Y_h")["layers"]
    names = [r["name"] for r in rows]
    assert {"cell/forward/t1/gates", "cell/reverse/t0/candidate"} <= set(names)
    assert {r["op"] for r in rows if r["name"].endswith("candidate")} == {"Gemm"}
    assert sum(r["kind"] == "linear" for r in rows) == 2 * 2 * T


def test_half_precision():
    model = net("LSTM", dtype=np.float16)
    ex = graphattr.convert(model, method="lrp.epsilon", output="Y_h", target=0)
    assert np.isfinite(run(ex.model, {"x": draw(T, N, I).astype(np.float16)})["x_attribution"]).all()
