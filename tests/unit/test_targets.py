"""What is explained, and with respect to what: targets, outputs, stripping, attributed tensors."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

import graphattr
from tests.unit.tiny import I, array, mlp, model, node

onnxruntime = pytest.importorskip("onnxruntime")
X = array(5, 4, seed=9)


def run(proto, feeds=X, target=None, **options):
    options.setdefault("method", "gradient")
    return graphattr.Explainer(graphattr.convert(proto, **options))(feeds, target)


def refused(proto, *words, error=graphattr.TargetError, **options):
    with pytest.raises(error) as e:
        graphattr.convert(proto, **options)
    for word in words:
        assert word in str(e.value), str(e.value)


def jacobian(proto=None):
    """(N, 3, 4): the derivative of each score of the perceptron, by central differences of float64."""
    w1, b1, w2, b2 = (onnx.numpy_helper.to_array(t).astype(float) for t in (proto or mlp()).graph.initializer)
    def f(x): return np.maximum(x @ w1 + b1, 0) @ w2 + b2
    return np.stack([(f(X + d) - f(X - d)) / 2e-4 for d in 1e-4 * np.eye(4)], axis=-1)


# -- the target ---------------------------------------------------------------------------------------------------
def test_an_index_a_tuple_and_the_largest():
    want = jacobian()
    for target in (0, 1, 2, (1,), np.int64(0)):
        a = graphattr.Explainer(graphattr.convert(mlp(), method="gradient", target=target))(X)
        index = int(np.ravel(target)[0])
        assert a.target.tolist() == [index] * 5
        assert np.allclose(a.scores["x"], want[:, index], atol=1e-3)
    a = run(mlp())
    top = a.outputs["y"].argmax(1)
    assert len(set(top)) > 1, "the samples should differ in their class"
    assert a.target.tolist() == top.tolist()
    assert np.allclose(a.scores["x"], want[np.arange(5), top], atol=1e-3)


def test_targets_of_the_run_may_differ_from_sample_to_sample():
    explainer = graphattr.Explainer(graphattr.convert(mlp(), method="gradient", target="input"))
    assert explainer.inputs == ["x", "target"]
    for target in (np.array([0, 1, 2, 1, 0]), [2, 2, 1, 0, 0], 1, np.int32(2), [1]):
        a = explainer(X, target)
        index = np.broadcast_to(np.asarray(target), 5)
        assert a.target.tolist() == index.tolist()
        assert np.allclose(a.scores["x"], jacobian()[np.arange(5), index], atol=1e-3)
    same = explainer({"x": X, "target": np.array([0, 1, 2, 1, 0])})
    assert np.array_equal(same.scores["x"], explainer(X, [0, 1, 2, 1, 0]).scores["x"])
    assert graphattr.explain(mlp(), X, "gradient", target=np.array([0, 1, 2, 1, 0])).target.tolist() == [0, 1, 2, 1, 0]


@pytest.mark.parametrize(("target", "words"), [
    (3, ["target 3 ", "sample 0", "0 to 2"]), (-1, ["-1", "0 to 2"]), ([0, 1, 2, 3, 0], ["target 3 ", "sample 3"]),
    ([0, 0, 0, 0, -1], ["-1", "sample 4"]), ([0, 1], ["'target'", "(2,)", "5"]), (1.0, ["int64", "float"]), ("one", ["int64"]),
    (True, ["int64", "bool"]), (np.zeros((5, 1), int), ["'target'", "(5, 1)"]), (None, ["target", "pass target="])])
def test_targets_of_the_run_that_are_wrong(target, words, capfd):
    explainer = graphattr.Explainer(graphattr.convert(mlp(), method="gradient", target="input"))
    with pytest.raises(graphattr.RunError) as e:
        explainer(X, target)
    for word in words:
        assert word in str(e.value), str(e.value)
    assert capfd.readouterr() == ("", ""), "the error is raised, not printed"


def test_a_target_out_of_range_is_an_error_of_the_file_itself():
    """Without graphattr too: ONNX Runtime refuses, and returns no zeros."""
    made = graphattr.convert(mlp(), method="gradient", target="input").model
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for target in (3, 99, -99):
        with pytest.raises(Exception, match="out of data bounds"):
            session.run(None, {"x": X, "target": np.full(5, target)})


@pytest.mark.parametrize(("target", "words"), [
    (3, ["target 3", "(N, 3)", "0 to 2"]), (-1, ["target -1", "0 to 2"]), ((3,), ["(3,)", "(N, 3)"]), ((-1,), ["(-1,)"]),
    ((1, 2), ["2 indices", "1 axes"]), ((), ["0 indices"]), ("argmin", ["'argmin'", "'argmax'"]),
    ("seeds", ["did you mean 'seed'"]),
    (True, ["True"]), (1.0, ["1.0"]), (None, ["None"]), ((0.5,), ["(0.5,)"]), ([True], ["True"]), ({1}, ["{1}"])])
def test_targets_that_are_wrong(target, words):
    refused(mlp(), "target", *words, target=target)


def test_several_axes_and_open_axes():
    grid = model([node("Conv", "x w", "y", "conv")], {"x": ["N", 2, "H", 4]}, {"y": ["N", 3, "H", 2]}, {"w": array(3, 2, 1, 3)})
    x = array(2, 2, 3, 4)
    for target, flat in (((2, 1, 0), 2 * 6 + 1 * 2), ((0, 0, 1), 1)):
        a = run(grid, x)
        one = graphattr.Explainer(graphattr.convert(grid, method="gradient", target=target))(x)
        same = graphattr.Explainer(graphattr.convert(grid, method="gradient", target=flat))(x)
        assert one.target.tolist() == same.target.tolist() == [flat, flat]
        assert np.array_equal(one.scores["x"], same.scores["x"])
        assert np.count_nonzero(one.scores["x"][0, 0]) == 3
        assert a.target.shape == (2,)
    refused(grid, "(0, 0, 2)", target=(0, 0, 2))
    refused(grid, "(N, 3, H, 2)", target=(1,))
    late = graphattr.Explainer(graphattr.convert(grid, method="gradient", target=18))
    with pytest.raises(graphattr.RunError, match="ONNX Runtime"):
        late(x)
    with pytest.raises(graphattr.RunError, match="ONNX Runtime"):
        graphattr.Explainer(graphattr.convert(grid, method="gradient", target="input"))(x, 18)


def vector():
    """x [N, 4] -> y [N]."""
    return model([node("Gemm", "x w b", "g"), node("Squeeze", "g axes", "y")], outputs={"y": ["N"]},
                 weights={"w": array(4, 1), "b": array(1), "axes": np.array([1])})


@pytest.mark.parametrize("target", ["argmax", 0, ()])
def test_outputs_of_rank_1(target):
    a = graphattr.Explainer(graphattr.convert(vector(), method="gradient", target=target, delta=True, ledger=True))(X)
    assert a.target.tolist() == [0] * 5
    assert np.allclose(a.scores["x"], np.repeat(array(4, 1).T, 5, 0))
    assert a.delta.shape == (5,)
    assert a.ledger.shape[::2] == (5, 4)
    with pytest.raises(graphattr.RunError, match="0 to 0"):
        graphattr.Explainer(graphattr.convert(vector(), method="gradient", target="input"))(X, 1)


def test_outputs_of_rank_1_and_wrong_targets():
    refused(vector(), "a target is 0", target=1)
    refused(vector(), "0 axes after the batch", target=(0,))


def test_outputs_of_rank_0():
    proto = model([node("ReduceSum", "x", "y", keepdims=0)], outputs={"y": []})
    a = run(proto, X)
    assert a.target.tolist() == [0]
    assert np.array_equal(a.scores["x"], np.ones_like(X))
    assert graphattr.Explainer(graphattr.convert(proto, method="gradient", target="input"))(X, 0).target.tolist() == [0]


def test_a_seed_of_the_run():
    explainer = graphattr.Explainer(graphattr.convert(mlp(), method="gradient", target="seed"))
    assert explainer.inputs == ["x", "seed"]
    seed = array(5, 3, seed=4)
    a = explainer({"x": X, "seed": seed})
    assert np.allclose(a.scores["x"], np.einsum("nc,nci->ni", seed, jacobian()), atol=1e-2)
    assert a.target is None
    for wrong, words in ((seed[:1], "axis 0"), (seed[:, :2], "shape"), (seed * np.nan, "NaN")):
        with pytest.raises(graphattr.RunError, match=words):
            explainer({"x": X, "seed": wrong})
    with pytest.raises(graphattr.RunError, match="'seed'"):
        explainer(X)
    with pytest.raises(graphattr.RunError, match="target='seed'"):
        explainer({"x": X, "seed": seed}, 1)
    refused(mlp(), "seed", error=graphattr.MethodError, target="seed", seed="prob")
    refused(mlp(), "2 seeds", error=graphattr.MethodError, target="seed", method="lrp.contrastive")


# -- the output ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("end", ["Softmax", "LogSoftmax", "Sigmoid"])
def test_a_terminal_activation_is_stripped(end):
    explanation = graphattr.convert(mlp(end), method="gradient", target=1)
    assert explanation.manifest["stripped"] == end
    a = graphattr.Explainer(explanation)(X)
    assert np.allclose(a.scores["x"], jacobian()[:, 1], atol=1e-3)
    whole = graphattr.Explainer(graphattr.convert(mlp(end), method="gradient", target=1, strip=False))(X)
    assert graphattr.convert(mlp(end), method="gradient", strip=False).manifest["stripped"] == ""
    y, J = a.outputs["y"].astype(float), jacobian()
    want = {"Sigmoid": lambda: (y * (1 - y))[:, 1, None] * J[:, 1],
            "Softmax": lambda: y[:, 1, None] * (J[:, 1] - np.einsum("nc,nci->ni", y, J)),
            "LogSoftmax": lambda: J[:, 1] - np.einsum("nc,nci->ni", np.exp(y), J)}[end]()
    assert np.allclose(whole.scores["x"], want, atol=1e-3)
    assert np.array_equal(a.outputs["y"], whole.outputs["y"]), "stripping changes no output"


def test_stripping_looks_through_reshapes_and_past_labels():
    """As scikit-learn writes it: probabilities that also feed ArgMax."""
    proto = mlp("Softmax")
    proto.graph.node.append(node("ArgMax", "y", "label", axis=1, keepdims=0))
    proto.graph.output.append(helper.make_tensor_value_info("label", I, ["N"]))
    assert graphattr.convert(proto, method="gradient").manifest["stripped"] == "Softmax"
    proto.graph.node.append(node("Reshape", "y shape", "last"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array([-1, 3, 1]), "shape"))
    proto.graph.output.append(helper.make_tensor_value_info("last", 1, ["N", 3, 1]))
    explanation = graphattr.convert(proto, method="gradient", output="last", target=1)
    assert explanation.manifest["stripped"] == "Softmax"
    assert explanation.manifest["output"] == "last"
    assert np.allclose(graphattr.Explainer(explanation)(X).scores["x"], jacobian()[:, 1], atol=1e-3)


@pytest.mark.parametrize("sizes", [["N", "T", 4], ["N", 3, 4], None])
def test_a_softmax_of_an_old_opset_keeps_the_samples_apart(sizes):
    """(N, T, classes): before opset 13 a matrix is made for the Softmax; what is explained has a sample per row all the same."""
    nodes = [node("MatMul", "x w", "z"), node("Reshape", "z n", "r"), node("Softmax", "r", "y", axis=2)]
    proto = model(nodes, {"x": ["N", "T", 5]}, {"y": sizes}, {"w": array(5, 4), "n": np.array([0, 0, 4])}, opset=12)
    x = array(2, 3, 5, seed=1)
    a = graphattr.Explainer(graphattr.convert(proto, method="gradient", target="input"))(x, np.array([6, 1]))
    want = np.zeros((2, 3, 5), np.float32)
    want[0, 1], want[1, 0] = array(5, 4)[:, 2], array(5, 4)[:, 1]
    np.testing.assert_allclose(a.scores["x"], want, atol=1e-6)


def test_an_inner_softmax_stays():
    proto = model([node("Softmax", "x", "s"), node("Gemm", "s w", "y")], weights={"w": array(4, 3)})
    assert graphattr.convert(proto, method="gradient").manifest["stripped"] == ""


def two_outputs():
    proto = mlp()
    proto.graph.node.append(node("ArgMax", "y", "label", "top", axis=1))
    proto.graph.output.insert(0, helper.make_tensor_value_info("label", I, ["N", 1]))
    proto.graph.output.append(helper.make_tensor_value_info("a", 1, ["N", 5]))
    return proto


def test_the_output_by_name():
    explanation = graphattr.convert(two_outputs(), method="gradient")
    assert explanation.manifest["output"] == "y", "the first float one"
    assert explanation.outputs == ["label", "y", "a", "x_attribution"]
    inner = graphattr.convert(two_outputs(), method="gradient", output="a", target=4, delta=True)
    assert inner.outputs[-1] == "a_delta"
    assert [e["layer"] for e in inner.manifest["layers"]["gradient"]] == ["first", "relu"]
    refused(two_outputs(), "no output 'lable'", "did you mean 'label'", output="lable")
    refused(two_outputs(), "int64", output="label")
    refused(mlp(), "no output 'h'", "outputs: y", output="h")


# -- the attributed tensors ---------------------------------------------------------------------------------------
def test_all_float_inputs_are_the_default():
    proto = model([node("Add", "x z", "s"), node("Gather", "s i", "y", axis=1)], {"x": ["N", 4], "i": (I, [2]), "z": ["N", 4]},
                  {"y": ["N", 2]})
    explanation = graphattr.convert(proto, method="gradient")
    assert explanation.inputs == ["x", "i", "z"]
    assert explanation.outputs == ["y", "x_attribution", "z_attribution"]
    assert graphattr.convert(proto, method="gradient", wrt="z").outputs == ["y", "z_attribution"]
    a = run(proto, {"x": X, "z": X, "i": np.array([1, 2])}, target=None, wrt=["z", "x"])
    assert list(a.scores) == ["z", "x"]


def test_an_input_that_does_not_matter_gets_zeros_unless_it_was_named():
    proto = model([node("Gemm", "x w", "y"), node("Relu", "z", "r")], {"x": ["N", 4], "z": ["N", 2]},
                  {"y": ["N", 3], "r": ["N", 2]}, {"w": array(4, 3)})
    explanation = graphattr.convert(proto, method="gradient")
    assert explanation.manifest["unaffected"] == ["z"]
    assert not graphattr.Explainer(explanation)({"x": X, "z": X[:, :2]}).scores["z"].any()
    refused(proto, "'z'", "does not depend on", method="gradient", wrt=["z"])
    refused(proto, "'z'", "does not depend on", method="gradient", wrt=["x", "z"])


@pytest.mark.parametrize("method", ["gradient", "lrp.epsilon", "lrp.epsilon_plus_flat", "deep_taylor"])
def test_inner_tensors_and_inputs_together(method):
    alone = {name: run(mlp(), method=method, wrt=[name]).scores[name] for name in ("x", "h", "a", "y")}
    together = run(mlp(), method=method, wrt=["a", "x", "y", "h", "x"])
    assert list(together.scores) == ["a", "x", "y", "h"]
    for name, want in alone.items():
        assert np.allclose(together.scores[name], want, rtol=1e-5, atol=1e-6), name
    assert together.scores["a"].shape == (5, 5)


def test_tensors_that_cannot_be_attributed_to():
    refused(mlp(), "no tensor 'hh'", wrt=["hh"])
    refused(mlp(), "'w1' is a weight", wrt=["w1"])
    refused(mlp(), "empty", wrt=[])
    refused(mlp(), "names of tensors", wrt=3)
    refused(mlp(), "names of tensors", wrt=[3])
    refused(mlp("Softmax"), "'y'", "Softmax is stripped", "'z'", "strip=False", wrt=["y"])
    refused(two_outputs(), "'label'", "int64", wrt=["label"])
    unknown = mlp()
    unknown.graph.input[0].type.tensor_type.ClearField("shape")
    refused(unknown, "'x'", "rank is unknown", "shape")


def test_a_folded_tensor_names_its_successor():
    parts = {n: np.abs(array(3, seed=i)) + 0.5 for i, n in enumerate(("scale", "bias", "mean", "var"))}
    proto = model([node("Conv", "x w", "c", "conv"), node("BatchNormalization", "c scale bias mean var", "n", "norm"),
                   node("Identity", "n", "i"), node("Relu", "i", "y", "relu")],
                  {"x": ["N", 2, 4, 4]}, {"y": ["N", 3, 2, 2]}, {"w": array(3, 2, 3, 3), **parts})
    refused(proto, "'c'", "folded", "successor 'n'", wrt=["c"])
    refused(proto, "'i'", "folded", "successor 'n'", wrt=["i"])
    assert graphattr.convert(proto, wrt=["n"]).outputs == ["y", "n_attribution"]
    assert graphattr.convert(proto, method="lrp.epsilon", wrt=["c"], bn="pass").outputs == ["y", "c_attribution"]


def counts():
    """ids [N, 4], taken as numbers -> y [N, 3]."""
    return model([node("Cast", "ids", "numbers", to=1), node("Gemm", "numbers w", "y", "head")], {"ids": (I, ["N", 4])},
                 weights={"w": array(4, 3)})


def test_models_of_integers_name_where_floats_begin():
    for options in ({}, {"wrt": ["ids"]}):
        refused(counts(), "'numbers'", "wrt=['numbers']", **options)
    a = run(counts(), {"ids": np.array([[0, 1, 2, 3], [1, 1, 1, 1]])}, wrt=["numbers"])
    assert a.scores["numbers"].shape == (2, 4)
    assert graphattr.convert(counts(), wrt=["numbers"], delta=True).outputs == ["y", "numbers_attribution", "y_delta"]
