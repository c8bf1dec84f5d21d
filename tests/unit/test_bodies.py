"""Models with If, Loop and Scan, as files: names, rules inside bodies, what is refused; relevance against the written-out net."""

from __future__ import annotations

import re

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import graphattr

RNG = np.random.default_rng(5)
W, U = (RNG.standard_normal((3, 3)).astype(np.float32) for _ in range(2))
X = RNG.standard_normal((4, 2, 3)).astype(np.float32)
HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'

STEP = """
  a = Gather <axis = 0> (x, i)
  wa = MatMul (a, W)
  us = MatMul (s, U)
  z = Add (wa, us)
  n = Relu (z)
"""
LOOP = """g (float[T,N,3] x, float[N,3] s0) => (float[N,3] y, float[T,N,3] all) {
  t = Shape <start = 0, end = 1> (x)
  trips = Squeeze (t)
  y, all = Loop (trips, , s0) <body = body (int64 i, bool go, float[N,3] s)
                                      => (bool on, float[N,3] n, float[N,3] shown) {""" + STEP + """
    on = Identity (go)
    shown = Identity (n)
  }>
}"""
SCAN = """g (float[T,N,3] x, float[N,3] s0) => (float[N,3] y, float[T,N,3] all) {
  y, all = Scan <num_scan_inputs = 1, body = body (float[N,3] s, float[N,3] a) => (float[N,3] n, float[N,3] shown) {
    wa = MatMul (a, W)
    us = MatMul (s, U)
    z = Add (wa, us)
    n = Relu (z)
    shown = Identity (n)
  }> (s0, x)
}"""


def parsed(text, **weights):
    model = onnx.parser.parse_model(HEAD + text)
    model.graph.initializer.extend(onnx.numpy_helper.from_array(w, k) for k, w in (weights or {"W": W, "U": U}).items())
    return model


def written_out(steps):
    """The same net with its steps one by one."""
    lines, state = [], "s0"
    for t in range(steps):
        step = STEP.replace("(s, U)", f"({state}, U)").replace("(x, i)", f"(x, i{t})")
        for name in ("a", "wa", "us", "z", "n"):
            step = re.sub(rf"(?<=[ (]){name}(?=[,) ])", f"{name}{t}", step)
        lines.append(step)
        state = f"n{t}"
    text = f"g (float[{steps},N,3] x, float[N,3] s0) => (float[N,3] y) {{{''.join(lines)}  y = Identity ({state})\n}}"
    return parsed(text, W=W, U=U, **{f"i{t}": np.array(t) for t in range(steps)})


def scores(model, method, **params):
    ex = graphattr.convert(model, method=method, output="y", target=1, wrt=["x", "s0"], **params)
    return graphattr.Explainer(ex)({"x": X, "s0": np.abs(X[0])}).scores


@pytest.mark.parametrize("method", ["gradient", "gradient_x_input", "lrp.epsilon", "lrp.alpha2_beta1", "lrp.gamma", "lrp.zplus",
                                    "excitation_backprop", "deep_taylor", "guided_backprop", "lrp.cmp_alpha1_beta0"])
@pytest.mark.parametrize("text", [LOOP, SCAN], ids=["loop", "scan"])
def test_relevance_is_that_of_the_steps_written_out(text, method):
    got, want = scores(parsed(text), method), scores(written_out(4), method)
    for name in want if method != "deep_taylor" else ["x"]:  # the loop's state is no input of the net, the first step's is
        np.testing.assert_allclose(got[name], want[name], rtol=0, atol=2e-5 * np.abs(want[name]).max() + 1e-7, err_msg=name)


def test_what_both_branches_hold_under_one_name_stays_apart():
    text = """g (float[N,3] x) => (float[N,3] y) {
      s = ReduceSum <keepdims = 0> (x)
      zero = Constant <value_float = 0.0> ()
      c = Greater (s, zero)
      y = If (c) <then_branch = a () => (float[N,3] p) <float[1] k = {2.0}> { p = Mul (x, k) },
                  else_branch = b () => (float[N,3] q) <float[1] k = {3.0}> { q = Mul (x, k) }>
    }"""
    model = parsed(text, unused=W)
    ex = graphattr.Explainer(graphattr.convert(model, method="gradient", target=0))
    for x, want in ((X[0], 2.0), (-X[0], 3.0)):
        sign = 1 if x.sum() > 0 else -1
        found = ex({"x": x * sign * (1 if want == 2 else -1)}).scores["x"]
        np.testing.assert_allclose(found[:, 0], want)


@pytest.mark.parametrize("rows", [1, 2])
def test_a_decided_if_leaves_its_branch(rows):
    """PyTorch writes squeeze(0) so: an If on a static shape."""
    text = f"""g (float[{rows},3] x) => (float[?] y) {{
      d = Shape <start = 0, end = 1> (x)
      one = Constant <value_ints = [1]> ()
      c = Equal (d, one)
      m = MatMul (x, W)
      y = If (c) <then_branch = a () => (float[3] p) {{ axes = Constant <value_ints = [0]> () p = Squeeze (m, axes) }},
                  else_branch = b () => (float[{rows},3] q) {{ q = Identity (m) }}>
    }}"""
    model = parsed(text)
    if rows == 1:
        model.graph.output[0].type.tensor_type.ClearField("shape")
        model.graph.output[0].type.CopyFrom(onnx.helper.make_tensor_type_proto(1, [3]))
    else:
        model.graph.output[0].type.CopyFrom(onnx.helper.make_tensor_type_proto(1, [rows, 3]))
    ex = graphattr.convert(model, method="lrp.epsilon", target="seed")
    assert "If" not in {n.op_type for n in ex.model.graph.node}
    assert "y" in {o for n in ex.model.graph.node for o in n.output}
    shape = (3,) if rows == 1 else (rows, 3)
    found = ort.InferenceSession(ex.model.SerializeToString()).run(None, {"x": X[0][:rows], "seed": np.ones(shape, np.float32)})
    np.testing.assert_allclose(found[0], (X[0][:rows] @ W).reshape(shape), rtol=1e-5)
    np.testing.assert_allclose(found[1].sum(), shape[0] if rows == 1 else rows * 3, rtol=1e-3)


def test_an_operator_in_a_body_that_has_no_derivative_is_named():
    text = LOOP.replace("Relu (z)", "NoSuch (z)")
    model = parsed(text)
    body = next(n for n in model.graph.node if n.op_type == "Loop").attribute[0].g
    next(n for n in body.node if n.op_type == "NoSuch").domain = "com.example"
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    with pytest.raises(graphattr.UnsupportedOp, match=r"com\.example:NoSuch.*y/n.*'y/z'"):
        graphattr.convert(model, method="lrp.epsilon", output="y", target=0)


def test_a_method_without_a_line_for_a_layer_inside_says_where(tmp_path):
    table = tmp_path / "bare.toml"
    table.write_text('[[assign]]\nwhere = { kind = ["linear", "sum"] }\nrule = "lrp.epsilon"\n'
                     '[[assign]]\nwhere = { kind = "structure" }\nrule = "gradient"\n')
    with pytest.raises(graphattr.UnsupportedOp, match=r"no rule for layer 'y/n' \(operator Relu"):
        graphattr.convert(parsed(LOOP), method=str(table), output="y", target=0)
    ex = graphattr.convert(parsed(LOOP), method=str(table), output="y", target=0, strict=False)
    assert ex.manifest["fallbacks"] == ["y/n"]


@pytest.mark.parametrize("steps", ["T", 3])
def test_a_recurrent_node_in_a_branch(steps):
    """An LSTM inside an If is written out there: the relevance of the same LSTM outside."""
    rng = np.random.default_rng(2)
    shapes = {"A": (1, 16, 3), "B": (1, 16, 4), "K": (3, 4)}
    held = {k: (0.5 * rng.standard_normal(s)).astype(np.float32) for k, s in shapes.items()}
    lstm = "p, h, c = LSTM <hidden_size = 4> (x, A, B)\n"
    mean = "m = ReduceMean <axes = [0, 1], keepdims = 0> (p)\n"
    inside = parsed(f"""g (float[{steps},N,3] x, bool which) => (float[N,4] y) {{
      y = If (which) <then_branch = a () => (float[N,4] m) {{ {lstm} {mean} }},
                      else_branch = b () => (float[N,4] q) {{ n = ReduceMean <axes = [0], keepdims = 0> (x) q = MatMul (n, K) }}>
    }}""", **held)
    outside = parsed(f"g (float[{steps},N,3] x) => (float[N,4] m) {{ {lstm} {mean} }}", **held)
    got = graphattr.explain(inside, {"x": X[:3], "which": np.array(True)}, "lrp.epsilon", target=1).scores["x"]
    want = graphattr.explain(outside, {"x": X[:3]}, "lrp.epsilon", target=1).scores["x"]
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_samples_do_not_mix():
    ex = graphattr.Explainer(graphattr.convert(parsed(LOOP), method="lrp.epsilon", output="y", target=0, wrt=["x"]))
    whole = ex({"x": X, "s0": X[1]}).scores["x"]
    for n in range(2):
        one = ex({"x": X[:, n : n + 1], "s0": X[1][n : n + 1]}).scores["x"]
        np.testing.assert_allclose(one, whole[:, n : n + 1], atol=1e-6)


def test_inspect_lists_what_is_inside():
    rows = {r["name"]: r for r in graphattr.inspect(parsed(LOOP), method="lrp.epsilon", output="y")["layers"]}
    assert rows["y"]["op"] == "Loop"
    assert rows["y/wa"]["rule"] == "lrp.epsilon"


def test_the_body_of_a_scan_may_leave_all_types_to_the_node():
    """Linear attention, as ONNX's function body writes it: ranks inside come from outside."""
    text = HEAD + """g (float[2,4,3] k, float[2,4,3] q) => (float[3,3] end, float[2,4,3] y) {
      zero = Constant <value = float {0.0}> ()
      shape = Constant <value = int64[2] {3, 3}> ()
      start = Expand (zero, shape)
      end, y = Scan <num_scan_inputs = 2, scan_input_axes = [1, -2], scan_output_axes = [1],
                     body = body (s, k_t, q_t) => (t, out) {
        kt = Transpose (k_t)
        outer = MatMul (kt, k_t)
        t = Add (s, outer)
        out = MatMul (q_t, t)
      }> (start, k, q)
    }"""
    k, q = (RNG.standard_normal((2, 4, 3)).astype(np.float32) for _ in range(2))
    seed = RNG.standard_normal((2, 4, 3)).astype(np.float32)
    made = graphattr.convert(onnx.parser.parse_model(text), "gradient", target="seed", output="y", wrt=["k", "q"])
    found = graphattr.Explainer(made)({"k": k, "q": q, "seed": seed}).scores

    def score(k, q):
        return sum(np.sum(q[:, i] @ sum(k[:, j].T @ k[:, j] for j in range(i + 1)) * seed[:, i]) for i in range(4))

    for name, x in (("k", k), ("q", q)):
        u, h = RNG.standard_normal(x.shape), 1e-5
        ends = [score(**({"k": k.astype(float), "q": q.astype(float)} | {name: x + s * h * u})) for s in (1, -1)]
        assert np.sum(found[name] * u) == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-4, abs=1e-4)


def test_in_half_precision_a_scan_whose_values_are_not_needed_still_shows_its_states():
    """The gradient of a running product needs the states, not the result: in float32 only the rewritten Scan is left."""
    text = HEAD + """g (float16[4,3] x, float16[3] s0) => (float16[3] y) {
      y = Scan <num_scan_inputs = 1, body = body (s, x_t) => (t) { t = Mul (s, x_t) }> (s0, x)
    }"""
    x, s0 = (1 + 0.2 * RNG.random((4, 3))).astype(np.float16), np.ones(3, np.float16)
    made = graphattr.convert(onnx.parser.parse_model(text), "gradient", target="seed", wrt="x")
    found = graphattr.Explainer(made)({"x": x, "s0": s0, "seed": np.ones(3, np.float32)}).scores["x"]
    np.testing.assert_allclose(found, x.astype(np.float64).prod(0) / x, rtol=1e-3)
