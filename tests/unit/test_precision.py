"""Half-precision models are explained in float32, and their own outputs stay bit by bit."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from tiny import F, H, I, array, mlp, model, node, saved

import graphattr
from graphattr.cli import main
from graphattr.errors import MethodError, UnsupportedOp

LRP = ["lrp.epsilon", "lrp.zplus", "lrp.epsilon_plus_flat", "lrp.alpha2_beta1"]


def half_weights(**weights):
    return {k: v.astype(np.float16) for k, v in weights.items()}


def cnn(scale=1.0, mixed=False):
    """x [N, 1, 6, 6] -> Conv Relu Conv Relu mean Gemm -> y [N, 3] in float16; `mixed`: float32 outside."""
    weights = half_weights(w1=scale * array(4, 1, 3, 3), b1=array(4, seed=1), w2=scale * array(5, 4, 3, 3, seed=2) / 4,
                           b2=array(5, seed=3), w3=array(5, 3, seed=4), b3=array(3, seed=5))
    nodes = [node("Conv", "h w1 b1", "c1", "first", pads=[1, 1, 1, 1]), node("Relu", "c1", "r1", "relu1"),
             node("MaxPool", "r1", "p", "pool", kernel_shape=[2, 2], strides=[2, 2]),
             node("Conv", "p w2 b2", "c2", "second"), node("Relu", "c2", "r2", "relu2"),
             node("GlobalAveragePool", "r2", "gap", "gap"), node("Flatten", "gap", "flat", "flat"),
             node("Gemm", "flat w3 b3", "z", "dense")]
    first, last = (["Cast", F], ["Cast", F]) if mixed else (["Identity", H], ["Identity", H])
    before = node("Cast", "x", "h", "in", to=H) if mixed else node(first[0], "x", "h", "in")
    after = node("Cast", "z", "y", "out", to=F) if mixed else node(last[0], "z", "y", "out")
    return model([before, *nodes, after], {"x": (first[1], ["N", 1, 6, 6])}, {"y": (last[1], ["N", 3])}, weights)


def float32_twin(proto):
    """The same model with every half-precision weight, type and attribute in float32."""
    kinds = (H, TensorProto.BFLOAT16)
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    for t in made.graph.initializer:
        if t.data_type in kinds:
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float32), t.name))
    for v in [*made.graph.input, *made.graph.output]:
        if v.type.tensor_type.elem_type in kinds:
            v.type.tensor_type.elem_type = F
    for n in made.graph.node:
        for a in n.attribute:
            if a.name == "to" and a.i in kinds:
                a.i = F
    return made


def run(proto, feeds):
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


def close(a, b, tolerance=1e-3):
    assert np.isfinite(a).all()
    assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("wrt", ["x", "r1"])
@pytest.mark.parametrize("method", ["gradient", "gradient_x_input", *LRP])
def test_equals_the_float32_twin(method, wrt, mixed):
    proto = cnn(mixed=mixed)
    x = array(3, 1, 6, 6, seed=7).astype(np.float16)
    ex = graphattr.convert(proto, method=method, wrt=wrt, delta=True, ledger=True)
    onnx.checker.check_model(ex.model, full_check=True)
    a = graphattr.Explainer(ex)({"x": x})
    want = graphattr.explain(float32_twin(proto), {"x": x.astype(np.float32)}, method, wrt=wrt)
    assert a.scores[wrt].dtype == np.float32
    close(a.scores[wrt], want.scores[wrt])
    assert np.array_equal(a.target, want.target)
    assert np.array_equal(a.outputs["y"], run(proto, {"x": x.astype(np.float32 if mixed else np.float16)})[0])
    assert ex.manifest["precision"] == "float32"


def test_names_of_layers_are_those_of_the_source():
    ex, in_half = (graphattr.convert(cnn(), method="lrp.epsilon", precision=p) for p in ("float32", "model"))
    assert ex.manifest["layers"] == in_half.manifest["layers"]
    assert ex.manifest["wrt"] == ["x"]
    assert in_half.manifest["precision"] == "model"
    assert [r["name"] for r in graphattr.inspect(cnn())["layers"]] == [e["layer"] for e in ex.manifest["layers"]["lrp.epsilon"]]


def test_weights_are_kept_once_in_half_precision():
    ex = graphattr.convert(cnn(), method="lrp.epsilon")
    kinds = [t.data_type for t in ex.model.graph.initializer if t.name in ("w1", "w2", "w3")]
    assert kinds == [H] * 3
    assert not [t for t in ex.model.graph.initializer if t.data_type == F and np.prod(t.dims) > 4]


@pytest.mark.parametrize("method", LRP)
def test_what_overflows_in_half_precision_does_not_here(method):
    proto = cnn(scale=40.0)
    x = array(2, 1, 6, 6, seed=7).astype(np.float16)
    a = graphattr.explain(proto, {"x": x}, method)
    close(a.scores["x"], graphattr.explain(float32_twin(proto), {"x": x.astype(np.float32)}, method).scores["x"])


def test_argmax_is_the_models_own():
    """In float16 the first two logits are equal and the first wins; in float32 the second is larger."""
    weights = half_weights(w=np.array([[1.0, 1.0, 0.0], [0.0, 2.0**-11, 0.0]], np.float32))
    proto = model([node("MatMul", "x w", "y", "dense")], {"x": (H, ["N", 2])}, {"y": (H, ["N", 3])}, weights)
    a = graphattr.explain(proto, {"x": np.array([[1.0, 0.5]], np.float16)}, "gradient")
    assert a.outputs["y"][0, 0] == a.outputs["y"][0, 1]
    assert a.target.tolist() == [0]
    assert a.scores["x"].tolist() == [[1.0, 0.0]]


@pytest.mark.parametrize("target", ["input", "seed", 1, (2,)])
def test_targets(target):
    x, proto = array(3, 1, 6, 6, seed=7).astype(np.float16), cnn()
    ex, want = (graphattr.convert(p, method="lrp.epsilon", target=target) for p in (proto, float32_twin(proto)))
    extra = {"input": {"target": np.array([0, 2, 1])}, "seed": {"seed": array(3, 3)}}.get(target, {})
    got = run(ex.model, {"x": x, **extra})[-1]
    close(got, run(want.model, {"x": x.astype(np.float32), **extra})[-1])


def test_several_methods_and_a_baseline_input():
    ex = graphattr.convert(cnn(), method=["gradient_x_input", "lrp.zplus"], baselines="input", target=0)
    assert ex.inputs == ["x", "x_baseline"]
    x = array(2, 1, 6, 6).astype(np.float16)
    dtype = ex.model.graph.input[1].type.tensor_type.elem_type
    baseline = np.zeros(x.shape, helper.tensor_dtype_to_np_dtype(dtype))
    assert len(run(ex.model, {"x": x, "x_baseline": baseline})) == 3


def test_masked_attention_in_its_own_precision():
    """x -> softmax(x q x^T + mask) x -> mean -> y; the mask is minus infinity."""
    nodes = [
        node("MatMul", "x q", "xq", "query"), node("Transpose", "x", "t", "turn", perm=[0, 2, 1]),
        node("MatMul", "xq t", "u", "scores"), node("Add", "u mask", "m", "masked"),
        node("Softmax", "m", "a", "softmax", axis=-1), node("MatMul", "a x", "c", "mix"),
        node("ReduceMean", "c", "f", "mean", axes=[1], keepdims=0), node("MatMul", "f w", "y", "head"),
    ]
    weights = half_weights(q=array(4, 4) / 4, w=array(4, 3, seed=1), mask=np.triu(np.full((5, 5), -np.inf), 1))
    proto = model(nodes, {"x": (H, ["N", 5, 4])}, {"y": (H, ["N", 3])}, weights)
    x = array(2, 5, 4, seed=2).astype(np.float16)
    own, twin = (graphattr.explain(proto, x, "lrp.attention", 1, precision=p).scores["x"] for p in ("model", "float32"))
    close(own, twin, 2e-2)


def test_integers_and_what_is_no_half_precision_are_shared():
    """ids -> Gather(half table) -> mean -> Gemm; the shape arithmetic appears once."""
    nodes = [node("Gather", "table ids", "e", "embed"), node("Shape", "e", "s", "shape"), node("Reshape", "e s", "r", "same"),
             node("ReduceMean", "r", "m", "mean", axes=[1], keepdims=0), node("MatMul", "m w", "y", "dense")]
    weights = half_weights(table=array(9, 4), w=array(4, 3, seed=1))
    proto = model(nodes, {"ids": (I, ["N", 5])}, {"y": (H, ["N", 3])}, weights)
    ids = np.arange(10).reshape(2, 5) % 9
    ex = graphattr.convert(proto, method="gradient_x_input", wrt=["e"])
    assert [n.op_type for n in ex.model.graph.node].count("Gather") == 1
    close(run(ex.model, {"ids": ids})[-1],
          run(graphattr.convert(float32_twin(proto), method="gradient_x_input", wrt=["e"]).model, {"ids": ids})[-1])


def test_a_terminal_softmax_in_half_precision():
    nodes = [node("MatMul", "x w", "z", "dense"), node("Softmax", "z", "y", "soft")]
    proto = model(nodes, {"x": (H, ["N", 4])}, {"y": (H, ["N", 3])}, half_weights(w=array(4, 3)))
    x = array(2, 4).astype(np.float16)
    for strip in (True, False):
        got, want = (graphattr.explain(p, {"x": x.astype(d)}, "gradient", strip=strip).scores["x"]
                     for p, d in ((proto, np.float16), (float32_twin(proto), np.float32)))
        close(got, want, 2e-3)


def test_bodies_of_an_explanation_read_the_joined_graph():
    """An If that the backward pass wrote captures values of the twin."""
    from graphattr.canonical import canonicalise
    from graphattr.onnxio import write_model
    from graphattr.precision import in_float32
    from graphattr.source import read
    from graphattr.targets import attributed, explained_output

    own = canonicalise(read(cnn()))
    twin = in_float32(own, explained_output(own, None, True), attributed(own, None))
    g = twin.wide.graph
    y, body = twin.wide.value("z" if "z" in g.names else "y"), g.subgraph("then")
    body.outputs.append(("b", body.Mul(y, y)))
    other = g.subgraph("else")
    other.outputs.append(("c", other.Add(y, y)))
    g.outputs.append(("extra", g.If(g.const(True), then_branch=body, else_branch=other)))
    joined, _ = twin.join(twin.added(), [twin.wide.value("x")], None)
    x = array(2, 1, 6, 6).astype(np.float16)
    got = run(write_model(joined), {"x": x})
    close(got[1], got[0].astype(np.float32) ** 2, 1e-2)


def branching(relu="Relu", domain=""):
    """z = x w, then Relu or Neg of it."""
    out = helper.make_tensor_value_info("b", H, ["N", 3])
    then = helper.make_graph([helper.make_node(relu, ["z"], ["b"], domain=domain)], "then", [], [out])
    other = helper.make_graph([helper.make_node("Neg", ["z"], ["b"])], "else", [], [out])
    nodes = [node("MatMul", "x w", "z", "dense"),
             helper.make_node("If", ["which"], ["y"], name="branch", then_branch=then, else_branch=other)]
    return model(nodes, {"x": (H, ["N", 4]), "which": (TensorProto.BOOL, [])}, {"y": (H, ["N", 3])}, half_weights(w=array(4, 3)))


@pytest.mark.parametrize("which", [True, False])
def test_control_flow_in_half_precision(which):
    x, w = array(2, 4, seed=3).astype(np.float16), array(4, 3).astype(np.float16).astype(np.float32)
    a = graphattr.explain(branching(), {"x": x, "which": np.array(which)}, "gradient_x_input", target=1)
    z = x.astype(np.float32) @ w
    want = x * w[:, 1] * ((z[:, 1:2] > 0) if which else -1.0)
    assert a.scores["x"].dtype == np.float32
    np.testing.assert_allclose(a.scores["x"], want, rtol=1e-5, atol=1e-6)


def test_a_foreign_operator_in_a_half_precision_body_is_refused():
    proto = branching("Mystery", "com.example")
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    with pytest.raises(UnsupportedOp, match=r"com\.example:Mystery.*precision=.model"):
        graphattr.convert(proto, method="gradient", target=1)


@pytest.mark.parametrize("method", ["gradient_x_input", "lrp.epsilon"])
def test_relevance_beyond_the_largest_half(method):
    """300 * 300 - 300 * 299 is a small output made of relevances of 90000, which float16 does not hold."""
    weights = half_weights(w=np.array([[300.0], [-299.0]], np.float32))
    proto = model([node("MatMul", "x w", "y", "dense")], {"x": (H, ["N", 2])}, {"y": (H, ["N", 1])}, weights)
    a = graphattr.explain(proto, {"x": np.array([[300.0, 300.0]], np.float16)}, method, delta=True, ledger=True)
    np.testing.assert_allclose(a.scores["x"], [[90000.0, -89700.0]], rtol=1e-5)


@pytest.mark.parametrize("method", ["gradient", "gradient_x_input", "lrp.epsilon", "lrp.epsilon_plus_flat"])
@pytest.mark.parametrize("wrt", ["x", "r1", ["x", "r1"]])
@pytest.mark.parametrize("mixed", [False, True])
def test_sums_in_the_models_own_precision(mixed, wrt, method):
    """Tensors of different types add up in float32, in the residual and in the ledger."""
    x = array(3, 1, 6, 6, seed=7).astype(np.float16)
    got, want = (graphattr.explain(cnn(mixed=mixed), {"x": x}, method, wrt=wrt, precision=p, delta=True, ledger=True)
                 for p in ("model", "float32"))
    for mine, twin in ((got.delta, want.delta), (got.ledger, want.ledger)):
        assert mine.dtype == np.float32
        assert np.abs(mine - twin).max() <= 2e-2 * np.abs(want.ledger).max()


def in_bfloat16(proto):
    """The half-precision model with bfloat16 in place of float16."""
    made = onnx.ModelProto()
    made.CopyFrom(proto)
    for t in made.graph.initializer:
        wide = numpy_helper.to_array(t).astype(np.float32)
        t.CopyFrom(helper.make_tensor(t.name, TensorProto.BFLOAT16, wide.shape, wide.reshape(-1)))
    for v in [*made.graph.input, *made.graph.output]:
        if v.type.tensor_type.elem_type == H:
            v.type.tensor_type.elem_type = TensorProto.BFLOAT16
    for n in made.graph.node:
        for a in n.attribute:
            if a.name == "to" and a.i == H:
                a.i = TensorProto.BFLOAT16
    return made


def dense(mixed):
    """x -> Gemm Relu Gemm -> y in float16, which ONNX allows in bfloat16 from opset 13 on."""
    weights = half_weights(w1=array(4, 5), b1=array(5, seed=1), w2=array(5, 3, seed=2))
    inner = [node("Gemm", "h w1 b1", "a", "first"), node("Relu", "a", "r", "relu"), node("MatMul", "r w2", "z", "second")]
    around = ([node("Cast", "x", "h", "in", to=H)], [node("Cast", "z", "y", "out", to=F)]) if mixed else \
        ([node("Identity", "x", "h", "in")], [node("Identity", "z", "y", "out")])
    kind = F if mixed else H
    return model([*around[0], *inner, *around[1]], {"x": (kind, ["N", 4])}, {"y": (kind, ["N", 3])}, weights)


@pytest.mark.parametrize("precision", ["float32", "model"])
@pytest.mark.parametrize("mixed", [False, True])
def test_bfloat16(mixed, precision):
    """ONNX Runtime's CPU has no such kernels: checked for legality, run by ONNX's reference, compared with the float32 twin."""
    proto = in_bfloat16(dense(mixed))
    if precision == "model":
        with pytest.raises(MethodError, match="opset 20"):
            graphattr.convert(proto, method="lrp.epsilon_plus", precision=precision)
        proto.opset_import[0].version, proto.ir_version = 20, 10
    ex = graphattr.convert(proto, method="lrp.epsilon_plus", target="input", delta=True, ledger=True, precision=precision)
    onnx.checker.check_model(ex.model, full_check=True)
    shown = {v.name: v.type.tensor_type.elem_type for v in ex.model.graph.output}
    assert shown["x_attribution"] == shown["y_ledger"] == shown["y_delta"] == F
    x, target = array(2, 4, seed=7).astype(ml_dtypes.bfloat16), np.array([0, 2])
    feeds = {"x": x.astype(np.float32) if mixed else x, "target": target}
    got = dict(zip(shown, ReferenceEvaluator(ex.model).run(None, feeds), strict=True))
    wide = graphattr.explain(float32_twin(proto), {"x": x.astype(np.float32)}, "lrp.epsilon_plus", target=target)
    close(got["x_attribution"], wide.scores["x"], 1e-5 if precision == "float32" else 5e-2)
    assert (got["y"].astype(np.float32) == ReferenceEvaluator(proto).run(None, {"x": feeds["x"]})[0].astype(np.float32)).all()


def test_bfloat16_convolutions_give_a_legal_file():
    proto = in_bfloat16(cnn())
    proto.opset_import[0].version, proto.ir_version = 22, 10
    ex = graphattr.convert(proto, method="lrp.epsilon", target="input")
    onnx.checker.check_model(ex.model, full_check=True)
    assert ex.model.graph.output[-1].type.tensor_type.elem_type == F
    assert {n.op_type for n in ex.model.graph.node} >= {"Cast", "Conv"}


def test_other_models_have_no_twin():
    default, in_model = (graphattr.convert(mlp(), method="lrp.epsilon", precision=p) for p in ("float32", "model"))
    assert default.model.SerializeToString(deterministic=True) == in_model.model.SerializeToString(deterministic=True)
    assert "precision" not in default.manifest


def test_precision_is_checked(tmp_path, capsys):
    with pytest.raises(MethodError, match="did you mean"):
        graphattr.convert(mlp(), precision="float23")
    path = saved(cnn(), tmp_path)
    assert main(["convert", str(path), "--precision", "model", "-o", str(tmp_path / "o.onnx"), "--json"]) == 0
    assert '"precision": "model"' in capsys.readouterr().out
