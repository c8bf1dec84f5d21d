"""Learning from data: what data may be, that they are streamed, states of interrupted fits, and what a Fitted is bound to."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import tracemalloc
import warnings

import numpy as np
import onnx
import pytest
from onnx import external_data_helper

import graphattr
from graphattr.fit import data, fitter
from graphattr.fitted import fingerprint
from graphattr.source import read
from tests.unit.tiny import I, array, mlp, model, node, saved

pytest.importorskip("onnxruntime")
X, LABELS = array(300, 4, seed=4), np.arange(300) % 3


def fit(what, made=None, method="pattern.net", **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", graphattr.FitWarning)
        return graphattr.fit(mlp() if made is None else made, what, method, **options)


def alike(one, other, exact=False):
    assert list(one.arrays) == list(other.arrays)
    for layer, arrays in one.arrays.items():
        for name, a in arrays.items():
            assert np.array_equal(a, other[layer][name]) if exact else np.allclose(a, other[layer][name], rtol=0, atol=2e-6)


@pytest.fixture(scope="module")
def whole():
    return fit(X)


@fitter("test.count")
def count(task, *, only: int = -1):
    """Samples (of one class), and the sum of the explained output: a fitter in five lines."""
    done = task.sums("count", {"y": task.g.ReduceSum(task.y, [0, 1], keepdims=0)}, label=None if only < 0 else only)
    return {"all": {"samples": np.array(done.samples), "y": done.sums["y"]}}


@pytest.fixture(scope="module")
def counting(tmp_path_factory):
    path = tmp_path_factory.mktemp("methods") / "counting.toml"
    path.write_text('base = "gradient"\nfit = "test.count"\n')
    return str(path)


# -- data -------------------------------------------------------------------------------------------------------------
def test_arrays_and_iterables(whole):
    """Whatever the batches, the statistics are those of all samples; two calls give the same bits."""
    assert whole.manifest["samples"] == 300
    alike(whole, fit(X), exact=True)
    alike(whole, fit({"x": X, "labels": LABELS}, batch_size=7))
    alike(whole, fit([X[:100], X[100:]]))
    alike(whole, fit((X[i : i + 9] for i in range(0, 300, 9)), batch_size=5))
    alike(whole, fit([{"x": X[:200]}, {"x": X[200:]}], batch_size=1000))
    alike(whole, fit([(X[:150], LABELS[:150]), (X[150:], LABELS[150:])]))
    alike(whole, fit(X.astype(np.float64)))


def test_files(whole, tmp_path):
    np.save(tmp_path / "a.npy", X)
    np.savez(tmp_path / "b.npz", x=X[:140], labels=LABELS[:140])
    np.savez_compressed(tmp_path / "c.npz", anything=X[140:])
    alike(whole, fit(tmp_path / "a.npy", batch_size=11))
    alike(whole, fit([tmp_path / "b.npz", str(tmp_path / "c.npz")], batch_size=11))
    (tmp_path / "folder").mkdir()
    for i in range(3):
        np.save(tmp_path / "folder" / f"{i}.npy", X[100 * i : 100 * i + 100])
    alike(whole, fit(tmp_path / "folder", batch_size=64))
    np.savetxt(tmp_path / "d.csv", X, delimiter=",", fmt="%.9g")
    alike(whole, fit(tmp_path / "d.csv"))


@pytest.fixture
def pictures(tmp_path):
    """Folders 2 and 10 with 3 and 4 pictures of 12 x 10 pixels."""
    image = pytest.importorskip("PIL.Image")
    rng = np.random.default_rng(0)
    for name, n in (("2", 3), ("10", 4)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(n):
            image.fromarray(rng.integers(0, 255, (12, 10, 3), np.uint8)).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_pictures_in_folders_of_classes(pictures, counting):
    """Pictures as `explain` reads them; the folder's number is the class, and folders without numbers count from 0."""
    made = model([node("GlobalAveragePool", "x", "g"), node("Flatten", "g", "y")], {"x": ["N", 3, 12, 10]}, {"y": ["N", 3]})
    every = fit(pictures, made, counting, preprocess="none")
    two = fit(pictures, made, counting, preprocess="none", only=2)
    ten = fit(pictures, made, counting, preprocess="none", only=10, batch_size=2)
    assert [int(f["all"]["samples"]) for f in (every, two, ten)] == [7, 3, 4]
    assert np.allclose(every["all"]["y"], two["all"]["y"] + ten["all"]["y"])
    flat = fit(pictures / "2", made, counting, preprocess="none")
    assert np.allclose(flat["all"]["y"], two["all"]["y"])
    (pictures / "10").rename(pictures / "cats")
    assert int(fit(pictures, made, counting, preprocess="none", only=1)["all"]["samples"]) == 4
    with pytest.raises(graphattr.RunError, match="no sample of class 5"):
        fit(pictures, made, counting, only=5)


def test_labels(counting, tmp_path):
    """Labels may be given, lie in the data, or be missing where a class is asked for; their number must be right."""
    np.save(tmp_path / "l.npy", LABELS)
    (tmp_path / "l.txt").write_text("\n".join(map(str, LABELS)))
    wanted = [{"labels": LABELS}, {"labels": list(LABELS)}, {"labels": tmp_path / "l.npy"}, {"labels": str(tmp_path / "l.txt")}]
    for options in wanted:
        assert int(fit(X, None, counting, only=1, **options)["all"]["samples"]) == 100
    pairs = [(X[:50], LABELS[:50]), (X[50:], LABELS[50:])]
    for held in ({"x": X, "labels": LABELS}, pairs):
        assert int(fit(held, None, counting, only=2, batch_size=8)["all"]["samples"]) == 100
    with pytest.raises(graphattr.RunError, match="no labels: pass labels="):
        fit(X, None, counting, only=1)
    for wrong in (LABELS[:-1], np.append(LABELS, 0)):
        with pytest.raises(graphattr.RunError, match=f"{len(wrong)} labels for"):
            fit(X, None, counting, labels=wrong)
    with pytest.raises(graphattr.RunError, match="labels must be whole numbers, not float64"):
        fit(X, labels=LABELS * 0.5)


@pytest.mark.parametrize(("what", "said"), [
    (X[:, :3], r"must have shape \(N, 4\), not \(32, 3\)"),
    (X[0], r"must have shape"),
    (np.where(X > 2.5, np.nan, X), "NaN or infinite"),
    (X.astype(str), "must be float32, not <U"),
    ({"z": X}, r"no array for input 'x'.*they have 'z'"),
    ({"x": X, "labels": LABELS[:7]}, "different numbers of samples: x 300, labels 7"),
    ([], "no sample"),
    (X[:0], "no sample"),
    (7, "data must be an array"),
    ("missing.npz", "no such file or folder: missing.npz"),
])
def test_data_that_do_not_fit(what, said):
    with pytest.raises(graphattr.RunError, match=said):
        fit(what)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "t.npz").write_bytes(b"no zip")
    np.savez(tmp_path / "u.npz", z=X, w=X)
    np.savez(tmp_path / "f.npz", x=np.asfortranarray(X))
    np.savez(tmp_path / "o.npz", x=np.array([object()]))
    whole = tmp_path / "cut.npz"
    np.savez(whole, x=X)
    whole.write_bytes(whole.read_bytes()[:2000])
    (tmp_path / "empty").mkdir()
    for name, said in (("t.npz", "not a zip"), ("u.npz", "no array for the input 'x'"), ("f.npz", "column by column"),
                       ("o.npz", "Python objects"), ("cut.npz", "cannot read"), ("empty", "holds no pictures")):
        with pytest.raises(graphattr.RunError, match=said):
            fit(tmp_path / name)


def test_iterators_are_empty_after_the_first_time():
    """A second pass over a generator is refused; over a list it is the same again."""
    types = {"x": (np.dtype(np.float32), ("N", 4))}
    once = data.open_data((b for b in [X]), None, types, 100)
    assert sum(b.rows for b in once) == 300
    with pytest.raises(graphattr.RunError, match="reads the data more than once"):
        list(once)
    again = data.open_data([X], None, types, 100)
    assert [sum(b.rows for b in again) for _ in range(2)] == [300, 300]


def test_only_a_batch_is_held(tmp_path):
    """40 MB on disk, fitted in a few: .npz and .npy are read in batches."""
    wide = model([node("Gemm", "x w", "y", "lin")], {"x": ["N", 1000]}, {"y": ["N", 3]}, {"w": array(1000, 3)})
    x = array(10000, 1000)
    np.savez_compressed(tmp_path / "x.npz", x=x)
    np.save(tmp_path / "x.npy", x)
    found = []
    for name in ("x.npz", "x.npy"):
        fit(tmp_path / name, wide)
        tracemalloc.start()
        found.append(fit(tmp_path / name, wide))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8e6, f"{name}: {peak / 1e6:.0f} MB"
    alike(*found, exact=True)


def test_a_fixed_batch_is_kept():
    """A model that takes 8 samples at a time: those left over are left out, loudly."""
    held = fit(X[:296], mlp(batch=8))
    alike(held, fit(X[:296]))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        held = graphattr.fit(mlp(batch=8), X, "pattern.net")
    assert any("4 samples were left out" in str(w.message) for w in said)
    assert held.manifest["samples"] == 296
    assert any("left out" in w for w in held.warnings)
    alike(fit(X, mlp(batch=1)), fit(X))


def test_integer_inputs_and_several(counting):
    """Every input is fed; float data for ids are refused."""
    nodes = [node("Gather", "table ids", "e"), node("ReduceMean", "e", "m", axes=[1], keepdims=0), node("Add", "m x", "s"),
             node("Gemm", "s w", "y", "lin")]
    made = model(nodes, {"ids": (I, ["N", 5]), "x": ["N", 4]}, weights={"table": array(9, 4), "w": array(4, 3)})
    ids = np.random.default_rng(0).integers(0, 9, (300, 5))
    held = fit({"ids": ids, "x": X}, made)
    assert held["lin"]["pattern"].shape == (4, 3)
    with pytest.raises(graphattr.RunError, match="input 'ids' must be int64, not float64"):
        fit({"ids": ids * 1.0, "x": X}, made)
    with pytest.raises(graphattr.RunError, match="2 inputs"):
        fit(X, made)


# -- states -----------------------------------------------------------------------------------------------------------
class Stops:
    """Batches that break off after some, once."""

    def __init__(self, after, error):
        self.after, self.error = after, error

    def __iter__(self):
        for i in range(0, 300, 10):
            if self.after == i // 10:
                self.after = None
                raise self.error
            yield X[i : i + 10]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("the disk is gone")])
def test_an_interrupted_fit_goes_on(tmp_path, error, monkeypatch):
    """What is left is run, and the result has the same bits as in one go; then the state is gone."""
    from graphattr.fit import stream

    batches, state = Stops(13, error), tmp_path / "s.npz"
    with pytest.raises(type(error)):
        fit(batches, state=state, batch_size=10)
    assert state.exists()
    ran = []
    monkeypatch.setattr(stream, "_add", lambda sums, found, name, add=stream._add: (ran.append(1), add(sums, found, name)))
    resumed = fit(batches, state=state, batch_size=10)
    assert len(ran) == 30 - 13
    assert not state.exists()
    assert not list(tmp_path.iterdir())
    alike(resumed, fit(X, batch_size=10), exact=True)
    assert resumed.manifest["samples"] == 300


def test_a_state_belongs_to_one_fit(tmp_path):
    state = tmp_path / "s.npz"
    with pytest.raises(KeyboardInterrupt):
        fit(Stops(13, KeyboardInterrupt()), state=state, batch_size=10)
    with pytest.raises(graphattr.MethodError, match="of another fit: its batch size is 10, here it is 20"):
        fit(X, state=state, batch_size=20)
    with pytest.raises(graphattr.MethodError, match=r"its method is 'pattern\.net', here it is 'pattern\.attribution'"):
        fit(X, method="pattern.attribution", state=state, batch_size=10)
    with pytest.raises(graphattr.MethodError, match="its params is"):
        fit(X, state=state, batch_size=10, kind="linear")
    with pytest.raises(graphattr.MethodError, match="its fingerprint is"):
        fit(X, mlp("Softmax"), state=state, batch_size=10)
    with pytest.raises(graphattr.RunError, match="the data are not those of the state"):
        fit(X[::-1].copy(), state=state, batch_size=10)
    with pytest.raises(graphattr.RunError, match="the data end before those of the state"):
        fit(X[:50], state=state, batch_size=10)
    alike(fit(X, state=state, batch_size=10), fit(X, batch_size=10), exact=True)
    state.write_bytes(b"what")
    with pytest.raises(graphattr.RunError, match="cannot read"):
        fit(X, state=state)
    fit(X).save(state)
    with pytest.raises(graphattr.RunError, match="does not hold the state of a fit"):
        fit(X, state=state)


SLOW = """
    import sys, time, numpy as np, graphattr
    class Slow:
        def __iter__(self):
            x = np.load("x.npy")
            for i in range(0, 300, 10):
                print(i, flush=True)
                time.sleep(0.05)
                yield x[i : i + 10]
    graphattr.fit("m.onnx", Slow(), "pattern.net", batch_size=10, state="s.npz").save("f.npz")
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_a_crash_leave_a_state(tmp_path, sent):
    """Another process is stopped in the middle; what it left is whole, and going on gives what one go gives."""
    saved(mlp(), tmp_path)
    np.save(tmp_path / "x.npy", X)
    code = textwrap.dedent(SLOW)
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code], cwd=tmp_path, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    for line in process.stdout:
        if line.strip() == "120":
            break
    process.send_signal(sent)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert (tmp_path / "s.npz").exists(), err
    assert not (tmp_path / "f.npz").exists()
    with np.load(tmp_path / "s.npz") as held:
        begun = json.loads(held["graphattr.manifest"].tobytes())["passes"]["patterns"]
    assert 1 <= begun["batches"] <= 14
    assert begun["batches"] >= 12 or sent == signal.SIGKILL, "Ctrl-C finishes the batch in hand"
    resumed = fit(tmp_path / "x.npy", tmp_path / "m.onnx", state=tmp_path / "s.npz", batch_size=10)
    alike(resumed, fit(X, batch_size=10), exact=True)


def test_no_bar_without_a_terminal(capfd):
    fit(X)
    assert capfd.readouterr() == ("", "")
    fit(X, progress=True)
    out, err = capfd.readouterr()
    assert not out
    assert "patterns" in err
    assert "300/300" in err


# -- what a Fitted is -------------------------------------------------------------------------------------------------
def test_saving_and_loading(tmp_path, whole):
    """The same arrays and manifest; a Fitted, its path, or both in a list do the same."""
    path = whole.save(tmp_path / "f.npz")
    held = graphattr.Fitted.load(path)
    alike(held, whole, exact=True)
    assert held.manifest == json.loads(json.dumps(whole.manifest))
    with np.load(path) as plain:
        assert "first::pattern" in plain.files, "keyed by layer"
    made = [graphattr.convert(mlp(), "pattern.net", fitted=f).model for f in (whole, path, str(path), [path])]
    assert all(m == made[0] for m in made[1:])
    manifest = graphattr.convert(mlp(), "pattern.net", fitted=whole).manifest
    assert manifest["fitted"][0]["samples"] == 300
    assert manifest["fitted"][0]["params"] == {"kind": "relu", "mean_y": "active"}


def test_files_that_are_no_fitted(tmp_path):
    np.savez(tmp_path / "x.npz", x=X)
    (tmp_path / "y.npz").write_text("what")
    for name, said in (("x.npz", "does not hold parameters that graphattr learned"), ("y.npz", "cannot read"),
                       ("z.npz", "cannot read")):
        with pytest.raises(graphattr.RunError, match=said):
            graphattr.convert(mlp(), "pattern.net", fitted=tmp_path / name)
    with pytest.raises(graphattr.MethodError, match=r"must be a graphattr\.Fitted or the path of one, not int"):
        graphattr.convert(mlp(), "pattern.net", fitted=3)
    with pytest.raises(graphattr.WriteError, match="cannot write"):
        fit(X).save(tmp_path / "no" / "f.npz")


def test_a_fitted_is_bound_to_its_model_and_method(whole, tmp_path):
    """Another weight, method or target is an error that says which; so is a fit that nobody needs, and one that is missing."""
    other = mlp()
    other.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(array(5, seed=77), "b1"))
    with pytest.raises(graphattr.MethodError, match="learned for another model"):
        graphattr.convert(other, "pattern.net", fitted=whole)
    with pytest.raises(graphattr.MethodError, match=r"learned for method 'pattern.net', and 'pattern.attribution' was asked for"):
        graphattr.convert(mlp(), "pattern.attribution", fitted=whole)
    with pytest.raises(graphattr.MethodError, match="'gradient' learns nothing from data"):
        graphattr.convert(mlp(), "gradient", fitted=whole)
    two = fit(X, target=[2, 1])
    assert two.manifest["targets"] == [2, 1]
    graphattr.convert(mlp(), "pattern.net", target=1, fitted=two)
    for target in (0, "argmax", "input"):
        with pytest.raises(graphattr.MethodError, match=f"learned for target 2 and 1, not for {target!r}"):
            graphattr.convert(mlp(), "pattern.net", target=target, fitted=two)
    path = saved(mlp(), tmp_path)
    command = re.escape(f"graphattr fit {path} DATA --method pattern.net -o FITTED.npz")
    with pytest.raises(graphattr.MissingFit, match=command):
        graphattr.convert(path, "pattern.net")
    with pytest.raises(graphattr.MissingFit, match=r"'pattern\.net'"):
        graphattr.convert(mlp(), "integrated_gradients", base="pattern.net")
    assert graphattr.inspect(path, "pattern.net")["problems"] == [], "looking needs no fit"


def test_methods_that_ask_a_fitted_one(whole):
    """A procedure whose base is learned uses it at every step."""
    steps = [(k + 1) / 4 for k in range(4)]
    a = graphattr.explain(mlp(), X[:3], "integrated_gradients", base="pattern.net", fitted=whole, n_steps=4,
                          quadrature="riemann_right", target=1)
    want = np.mean([graphattr.explain(mlp(), t * X[:3], "pattern.net", fitted=whole, target=1).scores["x"] for t in steps], 0)
    assert want.any()
    assert np.allclose(a.scores["x"], X[:3] * want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["gradient", "lrp.epsilon", "integrated_gradients"])
def test_methods_that_learn_nothing(method):
    with pytest.raises(graphattr.MethodError, match=f"method '{method}' learns nothing from data"):
        fit(X, method=method)


@pytest.mark.parametrize(("options", "said"), [
    ({"kind": "relus"}, r"parameter 'kind' must be one of 'relu', 'relu.negative', 'linear', not 'relus'"),
    ({"kinds": "relu"}, "has no parameter 'kinds'; did you mean 'kind'"),
    ({"project": True}, "has no parameter 'project'"),
    ({"target": "argmax"}, "fitting needs the targets themselves"),
    ({"target": 9}, "target 9 is out of range"),
    ({"batch_size": 0}, "batch_size must be a positive integer"),
    ({"output": "nothing"}, "no output 'nothing'"),
    ({"wrt": "nothing"}, "no tensor 'nothing'"),
])
def test_options_that_do_not_fit(options, said):
    with pytest.raises(graphattr.GraphattrError, match=said):
        fit(X, **options)


def test_the_fingerprint_is_of_what_is_computed(tmp_path):
    """A path, bytes, a ModelProto, weights outside the file: the same; names of producers do not count, attributes do."""
    made = mlp()
    path = saved(made, tmp_path)
    found = fingerprint(read(made))
    assert found == fingerprint(read(path)) == fingerprint(read(path.read_bytes())) == fingerprint(read(onnx.load(path)))
    outside = tmp_path / "outside.onnx"
    onnx.save(onnx.load(path), outside, save_as_external_data=True, size_threshold=0)
    assert external_data_helper.uses_external_data(onnx.load(outside, load_external_data=False).graph.initializer[0])
    assert fingerprint(read(outside)) == found
    typed = mlp()
    typed.producer_name, typed.graph.doc_string, typed.graph.node[0].doc_string = "another", "said", "more"
    for t in typed.graph.initializer:
        values = onnx.numpy_helper.to_array(t)
        t.CopyFrom(onnx.helper.make_tensor(t.name, t.data_type, t.dims, values.ravel()))  # typed fields in place of raw bytes
    assert fingerprint(read(typed)) == found
    changed = mlp()
    changed.graph.node[0].attribute.append(onnx.helper.make_attribute("alpha", 2.0))
    assert fingerprint(read(changed)) != found
    assert fingerprint(read(mlp(opset=18))) != found
    assert fit(X, path).manifest["fingerprint"] == fit(X).manifest["fingerprint"]


def test_layers_inside_bodies_are_refused():
    """A Gemm in the branch of an If cannot be learned: the error names it."""
    def branch(name, op):
        out = onnx.helper.make_tensor_value_info(f"{name}_out", onnx.TensorProto.FLOAT, ["N", 4])
        return onnx.helper.make_graph([op], name, [], [out])

    then, other = branch("t", node("Gemm", "x w", "t_out", "inside")), branch("e", node("Relu", "x", "e_out", "plain"))
    nodes = [node("ReduceSum", "x", "s", keepdims=0), node("Greater", "s zero", "c"),
             node("If", "c", "h", "choice", then_branch=then, else_branch=other), node("Gemm", "h v", "y", "lin")]
    made = model(nodes, weights={"w": array(4, 4), "v": array(4, 3), "zero": np.float32(0)})
    with pytest.raises(graphattr.UnsupportedOp, match=r"layer 'choice/then/inside' \(Gemm\) is in the body of an If"):
        fit(X, made)


def test_the_catalogue_says_what_is_learned():
    known = {m["name"]: m["fit"] for m in graphattr.methods()}
    assert known["gradient"] is None
    assert known["pattern.net"]["kind"]["default"] == "relu"
    assert "relu.negative" in known["pattern.attribution"]["kind"]["type"]
