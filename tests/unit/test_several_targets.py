"""Several targets of each sample: the largest k, or a list. Slice j is what `target="input"` says of the j-th."""

from __future__ import annotations

import csv

import numpy as np
import onnx
import pytest

import graphattr
from tests.unit.test_figure import tokens
from tests.unit.test_lower import MODELS, inputs
from tests.unit.test_precision import cnn as half
from tests.unit.test_targets import X, jacobian, refused
from tests.unit.tiny import F, array, mlp, model, node

pytest.importorskip("onnxruntime")
METHODS = ["gradient", "lrp.epsilon_plus_flat", "lrp.contrastive", "deeplift.rescale", "integrated_gradients", "smoothgrad",
           "fullgrad", "guided_ig", "occlusion", "dmbp"]


def run(proto, feeds=X, target="argmax"):
    return graphattr.explain(proto, feeds, "gradient", target)


def ranked(y):
    """Indices from the largest entry of each sample to the smallest, of equal ones the lower first."""
    flat = y.reshape(len(y), -1)
    return np.array([sorted(range(flat.shape[1]), key=lambda k: (-row[k], k)) for row in flat])


def alike(a, b):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(np.abs(b).max(), 1e-6))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_largest_against_difference_quotients(k):
    a = run(mlp(), target=f"top{k}")
    top = ranked(a.outputs["y"])[:, :k]
    assert a.scores["x"].shape == (5, k, 4)
    assert a.target.tolist() == top.tolist()
    assert len({tuple(row) for row in top.tolist()}) > 1, "the samples should differ in their classes"
    np.testing.assert_allclose(a.scores["x"], jacobian()[np.arange(5)[:, None], top], atol=1e-3)


@pytest.mark.parametrize("target", [[2], [0, 2, 0], [(1,), 2], [np.int64(1), (np.int64(0),)]])
def test_a_list_is_the_same_for_every_sample(target):
    a = run(mlp(), target=target)
    want = [int(np.ravel(t)[0]) for t in target]
    assert a.target.tolist() == [want] * 5
    np.testing.assert_allclose(a.scores["x"], jacobian()[:, want], atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["plain", "mobile"])
def test_a_slice_is_what_the_target_gets_alone(name, method):
    if method == "dmbp" and name == "mobile":
        pytest.skip("dmbp is for rectifiers")
    x, options = inputs(3), {"delta": True} if method in ("gradient", "lrp.epsilon_plus_flat") else {}
    options |= {"ledger": True} if options else {}
    both = graphattr.explain(MODELS[name](), x, method, "top2", **options)
    assert both.target.tolist() == ranked(both.outputs[both.manifest["output"]])[:, :2].tolist()
    alone = graphattr.Explainer(graphattr.convert(MODELS[name](), method, "input", **options))
    rows = [graphattr.explain(MODELS[name](), x[i : i + 1], method, "top2", **options) for i in range(3)]
    for j, one in enumerate(both.each()):
        want = alone(x, both.target[:, j])
        assert one.target.tolist() == both.target[:, j].tolist()
        for what in ("scores", "extras"):
            held, expected = getattr(one, what), getattr(want, what)
            assert list(held) == list(expected)
            for key in held:
                alike(held[key], expected[key])
    for key, score in both.scores.items():
        assert score.shape[:2] == (3, 2)
        assert not np.allclose(score[:, 0], score[:, 1])
        alike(np.concatenate([r.scores[key] for r in rows]), score)
    if options:
        assert both.delta.shape == (3, 2)
        assert both.ledger.shape[:2] == (3, 2)
        alike(both.ledger[:, 1], alone(x, both.target[:, 1]).ledger)


def test_equal_entries_the_lower_index_first_as_argmax_has_it():
    nodes = [node("Gemm", "x w", "y")]
    proto = model(nodes, weights={"w": np.ones((4, 3), np.float32)})
    assert run(proto, target="top3").target.tolist() == [[0, 1, 2]] * 5
    assert run(proto).target.tolist() == [0] * 5


def test_the_forward_pass_and_what_does_not_depend_on_the_target_stand_in_the_file_once():
    count = [len(graphattr.convert(mlp(), "lrp.epsilon", t).model.graph.node) for t in ("top1", "top2", "top3")]
    assert count[2] - count[1] <= count[1] - count[0] <= count[0] // 2, "a further target brings its own walk only"
    made = graphattr.convert(mlp(), "gradient", "top3").model.graph
    ops = [n.op_type for n in made.node]
    assert ops.count("Relu") == 1
    assert ops.count("TopK") == 1
    assert ops.count("MatMul") + ops.count("Gemm") == 2 + 3 * 2
    weights = [t for t in made.initializer if len(t.dims) == 2 and np.prod(t.dims) == 20]
    assert len(weights) == 1


def test_several_axes_several_methods_and_two_attributed_tensors():
    nodes = [node("Mul", "x z", "p"), node("Gemm", "p w", "h"), node("Reshape", "h s", "y")]
    proto = model(nodes, {"x": ["N", 4], "z": ["N", 4]}, {"y": ["N", 2, 3]}, {"w": array(4, 6), "s": np.array([0, 2, 3])})
    feeds = {"x": array(3, 4, seed=1), "z": array(3, 4, seed=2)}
    made = graphattr.convert(proto, ["gradient", "gradient_x_input"], [(1, 2), (0, 1), 4])
    assert (made.manifest["target"], made.manifest["targets"]) == ([[1, 2], [0, 1], 4], 3)
    a = graphattr.Explainer(made)(feeds)
    assert a.target.tolist() == [[5, 1, 4]] * 3
    for j, t in enumerate([(1, 2), (0, 1), (1, 1)]):
        want = graphattr.explain(proto, feeds, ["gradient", "gradient_x_input"], t)
        assert set(want.scores) == set(a.scores)
        for key, score in want.scores.items():
            alike(a.scores[key][:, j], score)
    top = run(proto, feeds, target="top6")
    assert top.target.tolist() == ranked(top.outputs["y"]).tolist()


def test_ids():
    ids = np.array([[1, 2, 3], [4, 5, 6]])
    a = graphattr.explain(tokens(), ids, "gradient_x_input", "top2")
    assert a.scores["ids"].shape == (2, 2, 3)
    alike(a.scores["ids"][:, 1], graphattr.explain(tokens(), ids, "gradient_x_input", a.target[:, 1]).scores["ids"])


def test_half_precision_takes_the_largest_of_the_models_own_output():
    x = array(3, 1, 6, 6, dtype=np.float16)
    a = run(half(), x, target="top2")
    assert a.target.tolist() == ranked(a.outputs[a.manifest["output"]])[:, :2].tolist()
    alone = graphattr.Explainer(graphattr.convert(half(), "gradient", "input"))
    for j in (0, 1):
        alike(a.scores["x"][:, j], alone(x, a.target[:, j]).scores["x"])
    assert run(half(), x, target=[1, 0]).target.tolist() == [[1, 0]] * 3
    a = graphattr.explain(half(), x, "integrated_gradients", "top2", n_steps=3)
    alone = graphattr.Explainer(graphattr.convert(half(), "integrated_gradients", "input", n_steps=3))
    for j in (0, 1):
        alike(a.scores["x"][:, j], alone(x, a.target[:, j]).scores["x"])


@pytest.mark.parametrize(("target", "words"), [
    ("top4", ["'top4' asks for 4", "(N, 3)", "has 3"]), ("top0", ["'top3'", "not 'top0'"]), ("top", ["not 'top'"]),
    ("top-1", ["not 'top-1'"]), ([], ["at least one"]), (["argmax"], ["list of targets", "argmax"]), ([[1]], ["list of targets"]),
    ([0, 3], ["target 3 is out of range", "0 to 2"]), ([0, -1], ["-1"]), ([(0, 1)], ["2 indices", "1 axes"]), ([True], ["True"]),
    ([1.0], ["1.0"])])
def test_targets_that_are_wrong(target, words):
    refused(mlp(), *words, target=target)


def test_more_than_an_open_axis_has_is_an_error_of_the_run():
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "y")]
    proto = model(nodes, {"x": ["N", "F"], "w": (F, ["F", "C"])}, {"y": ["N", "C"]})
    explainer = graphattr.Explainer(graphattr.convert(proto, "gradient", "top3", wrt="x"))
    assert explainer({"x": X, "w": array(4, 3)}).scores["x"].shape == (5, 3, 4)
    with pytest.raises(graphattr.RunError, match="refused to run"):
        explainer({"x": X, "w": array(4, 2)})
    fixed = graphattr.Explainer(graphattr.convert(proto, "gradient", [0, 2], wrt="x"))
    with pytest.raises(graphattr.RunError, match="refused to run"):
        fixed({"x": X, "w": array(4, 2)})


def test_a_fit_for_the_targets_of_a_list():
    x = array(4096, 4, seed=3)
    fitted = graphattr.fit(mlp(), x, "pattern.net", target=[2, 0], progress=False)
    a = graphattr.explain(mlp(), x[:4], "pattern.net", [0, 2], fitted=fitted)
    for j, t in enumerate((0, 2)):
        alike(a.scores["x"][:, j], graphattr.explain(mlp(), x[:4], "pattern.net", t, fitted=fitted).scores["x"])
    with pytest.raises(graphattr.MethodError, match=r"learned for target 2 and 0, not for 1"):
        graphattr.convert(mlp(), "pattern.net", [0, 1], fitted=fitted)


def test_verify_bound_records_and_a_finished_explanation():
    made = graphattr.convert(mlp(), "lrp.epsilon", "top2", delta=True, ledger=True)
    found = graphattr.verify(made, mlp(), X)
    assert found["ok"], found
    alone = graphattr.convert(mlp(), "lrp.epsilon", [int(t) for t in ranked(run(mlp()).outputs["y"])[0, :2]], ledger=True)
    (want, rows) = (graphattr.verify(e, mlp(), X[:1])["ledger"] for e in (alone, made))
    assert [r["layer"] for r in rows] == [r["layer"] for r in want]
    alike(np.array([r["sent"] for r in rows]), np.array([r["sent"] for r in want]))
    a = graphattr.explain(made, X, target="top2")
    bound = graphattr.Explainer(made).bound(X)(X)
    assert np.array_equal(bound.scores["x"], a.scores["x"])
    assert bound.target.tolist() == a.target.tolist()
    records = a.records(X)
    assert len(records) == 2 * 5 * 4
    assert [r["target"] for r in records[::4]] == a.target.T.ravel().tolist()
    alike(np.array([r["attribution"] for r in records]).reshape(2, 5, 4), a.scores["x"].transpose(1, 0, 2))
    with pytest.raises(graphattr.MethodError, match="target 'top2'"):
        graphattr.explain(made, X, target="top3")
    with pytest.raises(graphattr.RunError, match="made for target='top2'"):
        graphattr.Explainer(made)(X, 1)


@pytest.mark.parametrize("batch", ["N", 2])
def test_data_sets(batch, tmp_path):
    want = run(mlp(), target="top2")
    graphattr.explain_dataset(mlp(batch=batch), X, tmp_path, "gradient", "top2", batch_size=2, progress=False)
    alike(np.load(tmp_path / "x_attribution.npy"), want.scores["x"])
    with open(tmp_path / "index.csv", newline="") as f:
        assert [row["target"] for row in csv.DictReader(f)] == [f"{a} {b}" for a, b in want.target]


def test_the_file_says_what_it_holds():
    made = graphattr.convert(mlp(), "gradient", "top3").model
    (out,) = (o for o in made.graph.output if o.name == "x_attribution")
    assert [d.dim_param or d.dim_value for d in out.type.tensor_type.shape.dim] == ["N", 3, 4]
    onnx.checker.check_model(made, full_check=True)
    held = {p.key: p.value for p in made.metadata_props}
    assert held["graphattr.target"] == "top3"


def convolutions(graph):
    """How many there are in the bodies of a graph's Loops, and how many Loops."""
    inner = [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
    found = [convolutions(g) for g in inner]
    here = [sum(n.op_type.startswith("Conv") for n in g.node) for g in inner]
    return sum(here) + sum(c for c, _ in found), len(inner) + sum(k for _, k in found)


@pytest.mark.parametrize(("method", "options", "loops"), [
    ("integrated_gradients", {"n_steps": 3}, 1), ("smoothgrad", {"n_samples": 3}, 1), ("occlusion", {}, 1), ("rise", {}, 1),
    ("guided_ig", {"n_steps": 3}, 1), ("integrated_gradients", {"base": "smoothgrad", "n_steps": 2, "n_samples": 2}, 2)])
def test_methods_of_many_passes_step_abreast(method, options, loops):
    """One Loop for all targets; where the steps do not depend on the target, each has one forward pass."""
    files = [graphattr.convert(MODELS["plain"](), method, f"top{k}", **options).model for k in (1, 2, 3)]
    one, two, three = (convolutions(f.graph) for f in files)
    assert one[1] == two[1] == three[1] == loops
    more = two[0] - one[0]
    assert three[0] - two[0] == more
    if method in ("occlusion", "rise"):
        assert more == 0, "no derivative: a further target costs nothing"
    elif method != "guided_ig":  # whose path depends on the target
        assert more < one[0] / 2
    x = inputs(2)
    a = graphattr.explain(MODELS["plain"](), x, method, "top3", **options)
    alone = graphattr.Explainer(graphattr.convert(MODELS["plain"](), method, "input", **options))
    for j in range(3):
        for key, score in alone(x, a.target[:, j]).scores.items():
            alike(a.scores[key][:, j], score)


def test_loops_behind_one_another_stay_apart():
    """dga's steps feed one another; each target keeps its own chain, and the values stay what they are."""
    x = inputs(2)
    a = graphattr.explain(MODELS["plain"](), x, ["dga", "integrated_gradients", "smoothgrad"], "top2", n_steps=4, n_samples=4)
    alone = graphattr.convert(MODELS["plain"](), ["dga", "integrated_gradients", "smoothgrad"], "input", n_steps=4, n_samples=4)
    for j in range(2):
        for key, score in graphattr.Explainer(alone)(x, a.target[:, j]).scores.items():
            alike(a.scores[key][:, j], score)
