"""Running explanations: feeds and what is wrong with them, providers, external weights, what `verify` finds."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import graphattr
from graphattr import export
from tests.unit.tiny import I, array, mlp, model, node, saved

onnxruntime = pytest.importorskip("onnxruntime")
X = array(3, 4, seed=9)
PLAIN = graphattr.convert(mlp())


@pytest.fixture(scope="module")
def explainer():
    return graphattr.Explainer(PLAIN)


# -- feeds --------------------------------------------------------------------------------------------------------
def test_feeds_by_name_and_by_position(explainer):
    one, two = explainer(X), explainer({"x": X})
    assert np.array_equal(one.scores["x"], two.scores["x"])
    assert one.scores["x"].shape == X.shape
    assert list(one.outputs) == ["y"]
    assert one.target.tolist() == one.outputs["y"].argmax(1).tolist()
    assert one.delta is None
    assert one.ledger is None
    for same in (X.tolist(), X.astype(np.float64), np.asfortranarray(X), X[::1]):
        assert np.allclose(explainer(same).scores["x"], one.scores["x"], atol=1e-6)
    assert explainer(np.eye(4, dtype=np.uint8)).scores["x"].shape == (4, 4)


def test_batches_of_any_size_equal_single_samples(explainer):
    whole = explainer(X).scores["x"]
    for i in range(3):
        assert np.allclose(explainer(X[i:i + 1]).scores["x"][0], whole[i], rtol=1e-5, atol=1e-6)
    assert explainer(np.repeat(X, 50, 0)).scores["x"].shape == (150, 4)


@pytest.mark.parametrize(("feeds", "words"), [
    (X[0], ["'x'", "(N, 4)", "(4,)", "x[None]"]), (X[:, :3], ["'x'", "(N, 4)", "(3, 3)"]), (X[None], ["'x'", "(1, 3, 4)"]),
    (X[:0], ["'x'", "no samples"]), (X.astype(str), ["'x'", "float32"]), (X.astype(complex), ["complex"]),
    (None, ["'x'", "object"]),
    ("name.npy", ["'x'"]), ([[1, 2], [3]], ["'x'", "no array"]), ({"X": X}, ["no input 'X'", "did you mean 'x'"]),
    ({}, ["no value for input 'x'"]), ({"x": X, "target": 1}, ["no input 'target'"]), ({"x": X, "z": X}, ["no input 'z'"]),
    (np.where(X[1, 1] == X, np.nan, X), ["'x'", "1 NaN", "(1, 1)"]), (np.where(X[0, 0] == X, -np.inf, X), ["(0, 0)"]),
    (np.full((1, 4), 1e39), ["'x'", "infinite"])])
def test_feeds_that_do_not_fit(explainer, feeds, words, recwarn, capfd):
    with pytest.raises(graphattr.RunError) as e:
        explainer(feeds)
    for word in words:
        assert word in str(e.value), str(e.value)
    assert not recwarn.list
    assert capfd.readouterr() == ("", "")


def test_a_target_for_a_file_that_has_one(explainer):
    with pytest.raises(graphattr.RunError, match=r"target='argmax'.*target=\"input\""):
        explainer(X, target=1)


def test_several_inputs():
    proto = model([node("Gather", "x i", "s", axis=1), node("Mul", "s z", "y")], {"x": ["N", 4], "i": (I, [2]), "z": ["N", 2]},
                  {"y": ["N", 2]})
    e = graphattr.Explainer(graphattr.convert(proto, method="gradient"))
    with pytest.raises(graphattr.RunError, match=r"3 inputs.*x, i, z"):
        e(X)
    feeds = {"x": X, "i": np.array([0, 3], np.int32), "z": X[:, :2]}
    assert set(e(feeds).scores) == {"x", "z"}
    with pytest.raises(graphattr.RunError, match="'i', 'z'"):
        e({"x": X})
    with pytest.raises(graphattr.RunError, match="'i' must be int64, not float64"):
        e({**feeds, "i": np.array([0.0, 3.0])})


def test_small_integers_do_not_wrap():
    inputs = {"u": (onnx.TensorProto.UINT8, ["N", 4]), "x": ["N", 4]}
    proto = model([node("Cast", "u", "f", to=1), node("Add", "f x", "y")], inputs, {"y": ["N", 4]})
    e = graphattr.Explainer(graphattr.convert(proto, method="gradient"))
    assert e({"u": np.full((3, 4), 255), "x": X}).scores["x"].shape == X.shape
    for wrong in (300, -1):
        with pytest.raises(graphattr.RunError, match=f"uint8.*{wrong}"):
            e({"u": np.full((3, 4), wrong), "x": X})


def test_a_baseline_at_run_time():
    e = graphattr.Explainer(graphattr.convert(mlp(), method="gradient_x_input", baselines="input", target=0))
    assert e.inputs == ["x", "x_baseline"]
    with pytest.raises(graphattr.RunError, match="'x_baseline'"):
        e({"x": X})
    assert not e({"x": X, "x_baseline": X}).scores["x"].any()
    with pytest.raises(graphattr.RunError, match=r"'x_baseline'.*axis 0"):
        e({"x": X, "x_baseline": X[:2]})


def test_attributions_that_are_not_finite_are_refused():
    proto = model([node("Sqrt", "x", "y")], outputs={"y": ["N", 4]})
    e = graphattr.Explainer(graphattr.convert(proto, method="gradient", target=0))
    with pytest.raises(graphattr.RunError, match=r"1 NaN or infinite values of 12.*sample 2"):
        e(np.array([[1, 1, 1, 1], [2, 2, 2, 2], [0, 1, 1, 1]], np.float32))


# -- sessions -----------------------------------------------------------------------------------------------------
def test_what_can_be_run(tmp_path):
    path = PLAIN.save(tmp_path / "e.onnx")
    want = graphattr.Explainer(PLAIN)(X).scores["x"]
    for thing in (path, str(path), PLAIN.model):
        assert np.array_equal(graphattr.Explainer(thing)(X).scores["x"], want)
    with pytest.raises(graphattr.ModelError, match=r"not an explanation.*graphattr\.convert"):
        graphattr.Explainer(mlp())
    with pytest.raises(graphattr.ModelError, match="no file"):
        graphattr.Explainer(tmp_path / "gone.onnx")
    broken = onnx.ModelProto()
    broken.CopyFrom(PLAIN.model)
    for p in broken.metadata_props:
        p.value = "{" if p.key == "graphattr.manifest" else p.value
    with pytest.raises(graphattr.ModelError, match="manifest"):
        graphattr.Explainer(broken)


@pytest.mark.parametrize("providers", ["cpu", "CPU", "CPUExecutionProvider", ["CPUExecutionProvider"],
                                       [("CPUExecutionProvider", {})], None])
def test_providers(providers):
    assert graphattr.Explainer(PLAIN, providers)(X).scores["x"].shape == X.shape


@pytest.mark.parametrize(("providers", "words"), [
    ("cdua", ["'cdua'", "did you mean 'cuda'"]), (["nope"], ["'nope'", "available: "]), (3, ["3", '"cuda"']),
    pytest.param("cuda", ["CUDAExecutionProvider", "graphattr[gpu]"],
                 marks=pytest.mark.skipif("CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="has CUDA"))])
def test_providers_that_are_not_there(providers, words):
    with pytest.raises(graphattr.RunError) as e:
        graphattr.Explainer(PLAIN, providers)
    for word in words:
        assert word in str(e.value), str(e.value)


def test_without_onnxruntime(monkeypatch):
    import sys
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(graphattr.RunError, match=r"graphattr\[cpu\]"):
        graphattr.Explainer(PLAIN)
    assert graphattr.convert(mlp()).outputs == ["y", "x_attribution"], "converting needs no runtime"


def test_the_file_needs_nothing_of_ours():
    """Plain ONNX Runtime gives the same, by name."""
    session = onnxruntime.InferenceSession(PLAIN.model.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["x"]
    assert [o.name for o in session.get_outputs()] == ["y", "x_attribution"]
    y, r = session.run(None, {"x": X})
    a = graphattr.Explainer(PLAIN)(X)
    assert np.array_equal(r, a.scores["x"])
    assert np.array_equal(y, a.outputs["y"])
    onnx.checker.check_model(PLAIN.model, full_check=True)


def test_metadata_survives():
    proto = mlp()
    proto.producer_name, proto.doc_string, proto.graph.doc_string, proto.model_version = "maker", "a model", "a graph", 7
    proto.metadata_props.add(key="owner", value="me")
    proto.graph.node[0].doc_string = "a layer"
    proto.graph.input[0].doc_string = "an input"
    before = proto.SerializeToString()
    made = graphattr.convert(proto, eps=0.5).model
    assert proto.SerializeToString() == before, "the given model is left as it is"
    assert (made.producer_name, made.doc_string, made.graph.doc_string, made.model_version) == ("maker", "a model", "a graph", 7)
    assert made.graph.node[0].doc_string == "a layer"
    assert made.graph.input[0].doc_string == "an input"
    props = {p.key: p.value for p in made.metadata_props}
    assert props["owner"] == "me"
    assert props["graphattr.method"] == "lrp.epsilon_plus_flat"
    manifest = json.loads(props["graphattr.manifest"])
    assert manifest["params"] == {"eps": 0.5}
    assert [e["layer"] for e in manifest["layers"]["lrp.epsilon_plus_flat"]] == ["first", "relu", "second"]
    assert manifest["version"] == graphattr.__version__
    import hashlib
    assert graphattr.convert(before).manifest["source_sha256"] == hashlib.sha256(before).hexdigest()


# -- weights outside the file -------------------------------------------------------------------------------------
def split(folder):
    """The perceptron with its weights in a file beside it."""
    path = folder / "big.onnx"
    onnx.save_model(mlp("Softmax"), path, save_as_external_data=True, location="big.bin", size_threshold=0)
    assert (folder / "big.bin").stat().st_size > 0
    return path


def test_external_data_is_read_and_embedded(tmp_path):
    explanation = graphattr.convert(split(tmp_path))
    want = graphattr.Explainer(graphattr.convert(mlp("Softmax")))(X).scores["x"]
    assert np.array_equal(graphattr.Explainer(explanation)(X).scores["x"], want)
    other = tmp_path / "elsewhere"
    other.mkdir()
    path = explanation.save(other / "e.onnx")
    assert os.listdir(other) == ["e.onnx"], "small weights go into the file"
    (tmp_path / "big.bin").unlink()
    assert np.array_equal(graphattr.Explainer(path)(X).scores["x"], want)


@pytest.mark.parametrize("external", [True, False])
def test_weights_above_the_limit_stay_outside(tmp_path, monkeypatch, external):
    monkeypatch.setattr(export, "EMBED_LIMIT", 10)
    source = split(tmp_path) if external else saved(mlp("Softmax"), tmp_path)
    explanation = graphattr.convert(source, delta=True)
    want = graphattr.Explainer(graphattr.convert(mlp("Softmax")))(X).scores["x"]
    assert np.allclose(graphattr.Explainer(explanation)(X).scores["x"], want), "before it is saved"
    other = tmp_path / "elsewhere"
    other.mkdir()
    path = explanation.save(other / "e.onnx")
    assert sorted(os.listdir(other)) == ["e.onnx", "e.onnx.data"]
    shutil.rmtree(tmp_path / "moved", ignore_errors=True)
    moved = other.rename(tmp_path / "moved")
    for f in tmp_path.glob("*.bin"):
        f.unlink()
    assert np.allclose(graphattr.Explainer(moved / path.name)(X).scores["x"], want), "the pair can be moved"
    held = onnx.load(moved / path.name)
    assert {p.key for p in held.metadata_props} >= {"graphattr.manifest", "graphattr.version"}
    onnx.checker.check_model(str(moved / path.name))
    assert graphattr.verify(moved / path.name)["ok"]
    session = onnxruntime.InferenceSession(str(moved / path.name), providers=["CPUExecutionProvider"])
    assert np.allclose(session.run(["x_attribution"], {"x": X})[0], want)


def test_saving_over_the_weights_that_are_read(tmp_path, monkeypatch):
    """The explanation takes the place of an older pair whose data it reads."""
    monkeypatch.setattr(export, "EMBED_LIMIT", 10)
    first = graphattr.convert(split(tmp_path)).save(tmp_path / "e.onnx")
    want = graphattr.Explainer(first)(X).scores["x"]
    read_back = graphattr.Explainer(first)
    assert np.array_equal(read_back(X).scores["x"], want)
    second = export.Explanation(onnx.load(first, load_external_data=False), read_back.manifest, tmp_path)
    second.save(first)
    assert np.array_equal(graphattr.Explainer(first)(X).scores["x"], want)


def test_half_a_pair_is_not_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "EMBED_LIMIT", 10)
    explanation = graphattr.convert(split(tmp_path))
    real = os.replace

    def fails_at_the_model(a, b):
        if str(b).endswith("e.onnx"):
            raise OSError(28, "No space left on device")
        real(a, b)

    monkeypatch.setattr(os, "replace", fails_at_the_model)
    with pytest.raises(graphattr.WriteError, match="No space left"):
        explanation.save(tmp_path / "e.onnx")
    assert sorted(os.listdir(tmp_path)) == ["big.bin", "big.onnx"]


# -- explain, inspect, verify -------------------------------------------------------------------------------------
def test_explain_in_one_call(tmp_path):
    a = graphattr.explain(mlp(), X, "gradient", 1)
    assert np.array_equal(a.scores["x"], graphattr.Explainer(graphattr.convert(mlp(), "gradient", 1))(X).scores["x"])
    assert graphattr.explain(saved(mlp(), tmp_path), {"x": X}, delta=True).delta.shape == (3,)
    assert graphattr.explain(PLAIN, X).scores["x"].shape == X.shape


def test_explain_does_not_ignore_what_a_finished_explanation_cannot_do():
    for options in ({"method": "gradient"}, {"target": 1}, {"delta": True}, {"wrt": ["a"]}, {"eps": 0.5},
                    {"target": np.array([1, 2, 0])}):
        with pytest.raises(graphattr.GraphattrError, match="already an explanation"):
            graphattr.explain(PLAIN, X, **options)
    run_time = graphattr.convert(mlp(), target="input")
    assert graphattr.explain(run_time, X, target=np.array([0, 1, 2])).target.tolist() == [0, 1, 2]
    assert graphattr.explain(run_time, X, target=1).target.tolist() == [1, 1, 1]


def test_inspect():
    found = graphattr.inspect(mlp("Softmax"), "lrp.zbox")
    assert json.loads(json.dumps(found)) == found, "plain data"
    assert found["explained"] == {"output": "y", "tensor": "z", "stripped": "Softmax"}
    assert [(r["name"], r["op"], r["kind"], r["parameters"], r["on_path"]) for r in found["layers"]] == [
        ("first", "Gemm", "linear", 25, True), ("relu", "Relu", "relu", 0, True), ("second", "Gemm", "linear", 18, True),
        ("end", "Softmax", "softmax", 0, False)]
    assert "'low'" in found["layers"][0]["problem"]
    assert found["coverage"]["covered"] == 1
    whole = graphattr.inspect(mlp("Softmax"), "lrp.zbox", low=-1.0, high=1.0)
    assert whole["coverage"]["covered"] == 3
    assert not whole["problems"]
    nothing = graphattr.inspect(mlp(), output="nope")
    assert any("'nope'" in p for p in nothing["problems"])
    none_float = model([node("ArgMax", "x", "y", axis=1)], outputs={"y": (I, ["N", 1])})
    assert any("float" in p for p in graphattr.inspect(none_float)["problems"])
    unknown = model([node("Custom", "x", "y", "mine", domain="my.ops")], outputs={"y": ["N", 4]}, domains=["my.ops"])
    for method in (None, "gradient"):
        assert graphattr.inspect(unknown, method)["layers"][0]["problem"]


def test_verify(tmp_path):
    source = saved(mlp("Softmax"), tmp_path)
    explanation = graphattr.convert(source, delta=True, ledger=True)
    found = graphattr.verify(explanation, source)
    assert json.loads(json.dumps(found)) == found
    assert found["ok"]
    assert {c["name"]: c["ok"] for c in found["checks"]}["provenance"] is True
    assert {c["name"]: c["ok"] for c in found["checks"]}["output y"] is True
    rows = {r["layer"]: r for r in found["ledger"]}
    assert set(rows) == {"first", "relu", "second"}
    for r in rows.values():
        assert abs(r["unexplained"]) < 1e-4 * max(1, abs(r["arrived"]))
    assert rows["second"]["sent"] == pytest.approx(rows["relu"]["arrived"], rel=1e-5)
    wrong = graphattr.verify(explanation, mlp())
    assert not wrong["ok"]
    assert {c["name"] for c in wrong["checks"] if c["ok"] is False} == {"provenance", "output y"}
    assert graphattr.verify(explanation, source, X)["ok"]
    assert not graphattr.verify(explanation, source, X[:, :2])["ok"]
    with pytest.raises(graphattr.ModelError, match="not an explanation"):
        graphattr.verify(mlp())


@pytest.mark.parametrize("target", ["argmax", 1, "input", "seed"])
def test_verify_makes_its_own_data(target):
    assert graphattr.verify(graphattr.convert(mlp(), method="gradient", target=target), mlp())["ok"]


@pytest.mark.parametrize("data", [np.float32(3), {}, {"x": np.float32(3)}, "text", {"z": X}])
def test_verify_with_data_that_is_none(data):
    found = graphattr.verify(PLAIN, None, data)
    assert not found["ok"]
    assert next(c for c in found["checks"] if c["name"] == "run")["ok"] is False


def test_verify_sees_a_changed_file():
    proto = onnx.ModelProto()
    proto.CopyFrom(PLAIN.model)
    w = next(t for t in proto.graph.initializer if t.name == "w2")
    w.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(w) + np.float32(0.1), "w2"))
    found = graphattr.verify(proto, mlp())
    assert not found["ok"]
    assert next(c for c in found["checks"] if c["name"] == "output y")["ok"] is False


def test_catalogues_are_plain_data():
    for catalogue in (graphattr.methods(), graphattr.rules(), graphattr.operators()):
        assert json.loads(json.dumps(catalogue)) == catalogue
        assert len(catalogue) > 5
