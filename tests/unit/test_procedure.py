"""What methods of many passes are built of: a Loop's steps hold what changes, and may collect values."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

pytest.importorskip("onnxruntime")
import onnxruntime as ort

import graphattr
from graphattr.rule import REGISTRY

RULES = """
from graphattr.rule import Found, procedure


@procedure("test.running")
def running(job, *, n: int = 4):
    (x,) = job.xs

    def step(body, i, states):
        new = states[0] + body.Exp(x)
        drawn = body.ReduceSum(body.RandomUniformLike(x), [1], keepdims=0)
        return [new, body.ReduceSum(new, [1], keepdims=0), drawn]

    states, *collected = job.repeat(n, [x * 0.0], step)
    return Found([states], dict(zip(("sums", "draws"), collected)))


@procedure("test.passed")
def passed(job):
    g, kinds = job.g, []

    def rule(site, rs):
        kinds.append(site.layer.kind)
        return [site.vjps(r) for r in rs] if site.layer.kind != "relu" else list(rs)

    arrived = job.passed(g, [job.onehot, job.onehot * 3.0], rule)
    one, three = arrived[job.xs[0]]
    return Found([one], {"three": three, "layers": g.const([float(len(kinds))])})
"""


@pytest.fixture(scope="module")
def convert(tmp_path_factory):
    tmp_path = tmp_path_factory.mktemp("rules")
    (tmp_path / "mine.py").write_text(RULES, encoding="utf-8")
    rng = np.random.default_rng(0)
    weights = [numpy_helper.from_array(rng.normal(size=s).astype("f4"), n) for n, s in (("w", (5, 6)), ("v", (6, 3)))]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"], "first"), helper.make_node("Relu", ["a"], ["r"], "relu"),
             helper.make_node("MatMul", ["r", "v"], ["y"], "second")]
    info = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["N", k]) for n, k in (("x", 5), ("y", 3))]
    model = helper.make_model(helper.make_graph(nodes, "net", info[:1], info[1:], weights),
                              opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def run(name, **params):
        table = tmp_path / f"{name}.toml"
        table.write_text(f'procedure = "test.{name}"\nexpects = "nothing"\n', encoding="utf-8")
        made = graphattr.convert(model, method=str(table), target=1, rules=[tmp_path / "mine.py"], **params).model
        x = rng.normal(size=(2, 5)).astype("f4")
        session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
        return made, x, dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": x})))

    yield run, [numpy_helper.to_array(t) for t in weights]
    for name in ("test.running", "test.passed"):
        REGISTRY.procedures.pop(name, None)


def test_steps_collect_values_and_leave_out_what_stays(convert):
    made, x, found = convert[0]("running", n=4)
    (loop,) = (n for n in made.graph.node if n.op_type == "Loop")
    inside = [n.op_type for a in loop.attribute if a.name == "body" for n in a.g.node]
    assert "Exp" not in inside  # once, before the Loop
    assert "RandomUniformLike" in inside  # anew at every step
    np.testing.assert_allclose(found["x_attribution"], 4 * np.exp(x), rtol=1e-6)
    np.testing.assert_allclose(found["y_sums"], np.arange(1, 5)[:, None] * np.exp(x).sum(1), rtol=1e-5)
    assert found["y_draws"].shape == (4, 2)
    assert len(np.unique(found["y_draws"])) == 8


def test_no_step_at_all_is_no_loop(convert):
    made, _, found = convert[0]("running", n=0)
    assert not [n for n in made.graph.node if n.op_type == "Loop"]
    assert not found["x_attribution"].any()
    assert "y_sums" not in found


def test_signals_pass_side_by_side(convert):
    run, (w, v) = convert
    _, x, found = run("passed")
    np.testing.assert_allclose(found["x_attribution"], np.broadcast_to(v[:, 1] @ w.T, x.shape), rtol=1e-5)
    np.testing.assert_allclose(found["y_three"], 3 * found["x_attribution"], rtol=1e-5)
    assert found["y_layers"] == 3
