"""Many inputs: the same numbers as one by one, in order, into a folder that goes on where it was left, with little held."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import graphattr
from graphattr import RunError
from graphattr.ahead import ahead, in_threads
from graphattr.dataset import Work
from graphattr.dataset.entries import entries_of, unique
from graphattr.dataset.folder import Growing
from graphattr.runtime import Explainer
from tests.unit.killed import DYING
from tests.unit.tiny import array, mlp, model, node, saved

pytest.importorskip("onnxruntime")
X = array(37, 4, seed=9)
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def mlp_gradient():
    return graphattr.convert(mlp("Softmax"), "gradient_x_input")


@pytest.fixture(scope="module")
def cnn():
    """x [N, 3, 8, 8] -> y [N, 5], its gradient_x_input."""
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("GlobalAveragePool", "r", "p"), node("Flatten", "p", "f"),
             node("Gemm", "f v", "y")]
    weights = {"w": array(6, 3, 3, 3), "v": array(6, 5, seed=1)}
    return graphattr.convert(model(nodes, {"x": ["N", 3, 8, 8]}, {"y": ["N", 5]}, weights), "gradient_x_input")


@pytest.fixture
def photos(tmp_path):
    """23 pictures of different sizes in photos/, some in folders below, two of one name."""
    Image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    r, folder = np.random.default_rng(3), tmp_path / "photos"
    for i in range(23):
        sub = folder / ("", "b", "a/deep")[i % 3]
        sub.mkdir(parents=True, exist_ok=True)
        name = "same.png" if i in (3, 4) else f"{i:02d}.{('png', 'jpg')[i % 2]}"
        Image.fromarray(r.integers(0, 255, (9 + i % 5, 12, 3), dtype=np.uint8)).save(sub / name)
    return folder


def lines(out):
    with (out / "index.csv").open(newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def content(out):
    """Every file below, byte by byte; a table of settings and results alike."""
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


# -- threads ------------------------------------------------------------------------------------------------------
def test_what_is_made_ahead_is_bounded_and_in_order():
    made = []

    def items():
        for i in range(50):
            made.append(i)
            yield i

    found = ahead(items(), 2)
    assert next(found) == 0
    time.sleep(0.2)
    assert len(made) <= 1 + 2 + 1, "one taken, two in the queue, one in the hand"
    assert list(found) == list(range(1, 50))


def test_ahead_raises_where_it_failed_and_ends_when_closed():
    def items():
        try:
            yield 1
            yield 2
            raise ValueError("third")
        finally:
            closed.append(True)

    closed: list[bool] = []
    found = ahead(items(), 1)
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(ValueError, match="third"):
        next(found)
    found = ahead(items(), 1)
    next(found)
    found.close()
    assert closed == [True, True]
    assert not [t for t in threading.enumerate() if t.name == "graphattr-ahead"]


def test_several_threads_keep_the_order():
    begun, most = [], 4

    def work(i):
        begun.append(i)
        time.sleep(0.002 * (i % 3))
        return i * i

    found = in_threads(work, range(30), 3, most)
    assert next(found) == 0
    time.sleep(0.1)
    assert len(begun) <= most + 1
    assert [0, *found] == [i * i for i in range(30)]


# -- batches ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [1, 5, 16, 64])
def test_batches_are_the_samples_one_by_one(mlp_gradient, size):
    alone = [graphattr.explain(mlp_gradient, X[i : i + 1]) for i in range(len(X))]
    names, scores, tops = [], [], []
    for found, a in graphattr.explain_batches(mlp_gradient, X, batch_size=size):
        assert len(found) == len(a.scores["x"]) <= size
        names += found
        scores.append(a.scores["x"])
        tops += a.target.tolist()
    assert names == [str(i) for i in range(len(X))]
    np.testing.assert_allclose(np.concatenate(scores), np.concatenate([a.scores["x"] for a in alone]), rtol=1e-6, atol=1e-7)
    assert tops == [int(a.target[0]) for a in alone]


def test_pictures_are_what_explain_reads(cnn, photos):
    from graphattr.preprocess import preprocess_for, read_input

    pre = preprocess_for("imagenet", (None, 3, 8, 8))
    names, scores = [], []
    for found, a in graphattr.explain_batches(cnn, photos, batch_size=4, preprocess="imagenet"):
        names += found
        scores += list(a.scores["x"])
    assert names == sorted(str(p.relative_to(photos)) for p in photos.rglob("*.*"))
    for name, score in zip(names, scores, strict=True):
        x = read_input(photos / name, pre, (None, 3, 8, 8), np.float32).array
        np.testing.assert_allclose(score, graphattr.explain(cnn, x).scores["x"][0], rtol=1e-6, atol=1e-7)


def test_a_fixed_batch_is_filled_and_cut():
    made = graphattr.convert(mlp(batch=8), "gradient_x_input")
    want = graphattr.explain(graphattr.convert(mlp(), "gradient_x_input"), X).scores["x"]
    found = [a.scores["x"] for _, a in graphattr.explain_batches(made, X)]
    assert [len(f) for f in found] == [8, 8, 8, 8, 5]
    np.testing.assert_allclose(np.concatenate(found), want, rtol=1e-6, atol=1e-7)


def test_a_change_of_shape_ends_a_batch(tmp_path):
    nodes = [node("ReduceSum", "x axes", "s", keepdims=0), node("Gemm", "s w", "y")]
    net = model(nodes, {"x": ["N", "T", 4]}, weights={"axes": np.array([1]), "w": array(4, 3)})
    made = graphattr.convert(net, "gradient_x_input")
    for i, length in enumerate((5, 5, 2, 5)):
        np.save(tmp_path / f"{i}.npy", array(2, length, 4, seed=i))
    found = list(graphattr.explain_batches(made, tmp_path, batch_size=3))
    assert [a.scores["x"].shape for _, a in found] == [(3, 5, 4), (1, 5, 4), (2, 2, 4), (2, 5, 4)]
    assert [n for names, _ in found for n in names] == [f"{i}.npy[{k}]" for i in range(4) for k in range(2)]
    with pytest.raises(RunError, match="change their shape"):
        graphattr.explain_dataset(made, tmp_path, tmp_path / "out")
    graphattr.explain_dataset(made, tmp_path, tmp_path / "each", write=["npz"], batch_size=3)
    for i in range(4):
        want = graphattr.explain(made, np.load(tmp_path / f"{i}.npy")).scores["x"]
        np.testing.assert_allclose(np.load(tmp_path / "each" / f"{i}.npz")["x_attribution"], want, rtol=1e-6, atol=1e-7)


def test_outputs_that_are_no_samples_are_not_cut_along_the_wrong_axis(tmp_path):
    """h [2, N, 4] has its samples on axis 1, k [1] has none."""
    nodes = [node("Gemm", "x w", "y"), node("Unsqueeze", "x zero", "u"), node("Concat", "u u", "h", axis=0),
             node("ReduceMax", "x", "m", keepdims=0), node("Reshape", "m one", "k")]
    weights = {"w": array(4, 3), "zero": np.array([0]), "one": np.array([1])}
    net = model(nodes, {"x": ["N", 4]}, {"y": ["N", 3], "h": [2, "N", 4], "k": [1]}, weights)
    made = graphattr.convert(net, "gradient_x_input", output="y")
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", X[2 * i : 2 * i + 2])
    graphattr.explain_dataset(made, tmp_path, tmp_path / "all", batch_size=4)
    np.testing.assert_array_equal(np.load(tmp_path / "all" / "h.npy"), np.stack([X[:8], X[:8]], 1))
    assert not (tmp_path / "all" / "k.npy").exists()
    graphattr.explain_dataset(made, [tmp_path / "0.npy", tmp_path / "1.npy"], tmp_path / "each", write=["npz"], batch_size=4)
    held = np.load(tmp_path / "each" / "1.npz")
    np.testing.assert_array_equal(held["h"], np.stack([X[2:4]] * 2))
    assert "k" not in held.files, "the largest of four samples belongs to no file of two"


# -- folders ------------------------------------------------------------------------------------------------------
def test_a_folder_of_all(cnn, photos, tmp_path):
    out = tmp_path / "out"
    found = graphattr.explain_dataset(cnn, photos, out, batch_size=4, preprocess="none", class_names=["a", "b", "c", "d", "e"])
    assert (found["samples"], found["skipped"], found["failed"]) == (23, 0, [])
    assert found["arrays"] == {"x_attribution": str(out / "x_attribution.npy"), "y": str(out / "y.npy")}
    scores, y, rows = np.load(out / "x_attribution.npy", mmap_mode="r"), np.load(out / "y.npy"), lines(out)
    assert [r["file"] for r in rows] == sorted(str(p.relative_to(photos)) for p in photos.rglob("*.*"))
    named = {n: (a, k) for names, a in graphattr.explain_batches(cnn, photos, batch_size=4) for k, n in enumerate(names)}
    for i, row in enumerate(rows):
        a, k = named[row["file"]]
        np.testing.assert_array_equal(scores[i], a.scores["x"][k])
        np.testing.assert_array_equal(y[i], a.outputs["y"][k])
        odds = np.exp(y[i].astype(float))
        assert int(row["top"]) == int(row["target"]) == y[i].argmax()
        assert row["label"] == "abcde"[y[i].argmax()]
        assert np.isclose(float(row["score"]), y[i].max(), rtol=1e-6)
        assert np.isclose(float(row["probability"]), odds.max() / odds.sum(), rtol=1e-5)


def test_probabilities_of_a_softmax_are_its_own(mlp_gradient, tmp_path):
    graphattr.explain_dataset(mlp_gradient, X, tmp_path / "out")
    y = np.load(tmp_path / "out" / "y.npy")
    assert np.allclose([float(r["probability"]) for r in lines(tmp_path / "out")], y.max(1), rtol=1e-5)


def test_pictures_of_one_name_lie_apart(cnn, photos, tmp_path):
    found = graphattr.explain_dataset(cnn, photos, tmp_path / "out", write=["npz", "png"], batch_size=8)
    assert found["samples"] == 23
    written = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.npz")}
    assert {"same.npz", "b/same.npz"} <= written
    assert len(written) == len(list((tmp_path / "out").rglob("*.png"))) == 23
    for row in lines(tmp_path / "out"):
        held = np.load(tmp_path / "out" / f"{row['result']}.npz")
        assert held["explained_index"].tolist() == [int(row["target"])]


def test_names_are_never_shared(tmp_path):
    for name in ("a/x.png", "a/x.jpg", "b/x.png", "b/labels.csv", "b/.hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    said = []
    found = entries_of([tmp_path], tmp_path / "out", said.append)
    assert [(e.file, e.result) for e in found] == [("a/x.jpg", "a/x.jpg"), ("a/x.png", "a/x.png"), ("b/x.png", "b/x")]
    assert "labels.csv" in said[0]
    found = entries_of([tmp_path / "a", tmp_path / "b" / "x.png"])
    assert [e.result for e in found] == ["a/x.jpg", "a/x.png", "x"]
    assert unique(["x", "x_2", "x", "x"]) == ["x", "x_2", "x_3", "x_4"]
    assert [e.file for e in entries_of([tmp_path], tmp_path / "b")] == ["a/x.jpg", "a/x.png"], "results are no inputs"


@pytest.mark.parametrize("kind", ["npy", "npz", "csv", "parquet"])
def test_large_arrays_and_tables_are_read_row_by_row(mlp_gradient, tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "npy":
        np.save(path, X)
    elif kind == "npz":
        np.savez(path, x=X)
    elif kind == "csv":
        path.write_text("a,b,c,d\n" + "\n".join(",".join(map(repr, row)) for row in X.tolist()))
    else:
        pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
        import pyarrow.parquet as pq
        pq.write_table(pa.table({n: X[:, i] for i, n in enumerate("abcd")}), path)
    found = graphattr.explain_dataset(mlp_gradient, path, tmp_path / "out", batch_size=10)
    assert found["samples"] == 37
    np.testing.assert_allclose(np.load(tmp_path / "out" / "x_attribution.npy"), graphattr.explain(mlp_gradient, X).scores["x"],
                               rtol=1e-6, atol=1e-7)
    assert [int(r["sample"]) for r in lines(tmp_path / "out")] == list(range(37))
    again = graphattr.explain_dataset(mlp_gradient, path, tmp_path / "out", batch_size=10)
    assert (again["samples"], again["skipped"]) == (0, 37)


def test_arrays_without_an_axis_of_samples_are_one(cnn, tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", array(3, 8, 8, seed=i))
    graphattr.explain_dataset(cnn, tmp_path, tmp_path / "out")
    want = graphattr.explain(cnn, np.stack([array(3, 8, 8, seed=i) for i in range(3)])).scores["x"]
    np.testing.assert_allclose(np.load(tmp_path / "out" / "x_attribution.npy"), want, rtol=1e-6, atol=1e-7)


# -- going on -----------------------------------------------------------------------------------------------------
CHILD = f"""{DYING}
die_after(int(sys.argv[3]), int(sys.argv[4]))
graphattr.explain_dataset("m.onnx", sys.argv[1], sys.argv[2], "gradient_x_input", batch_size=4, write=sys.argv[5].split(","))
"""


@pytest.mark.parametrize("write", ["npy", "npz,png"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_was_killed_goes_on(cnn, photos, tmp_path, monkeypatch, write, number):
    monkeypatch.chdir(tmp_path)
    nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("GlobalAveragePool", "r", "p"), node("Flatten", "p", "y")]
    saved(model(nodes, {"x": ["N", 3, 8, 8]}, {"y": ["N", 5]}, {"w": array(5, 3, 3, 3)}), tmp_path, "m.onnx")
    given = {"method": "gradient_x_input", "batch_size": 4, "write": write.split(",")}
    graphattr.explain_dataset("m.onnx", photos, tmp_path / "whole", **given)
    path = os.pathsep.join([str(ROOT), str(ROOT / "rules")])
    done = subprocess.run([sys.executable, "-c", CHILD, str(photos), "cut", "3", str(int(number)), write],
                          env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=False)
    assert done.returncode != 0, done
    rows = lines(tmp_path / "cut")
    assert 0 < len(rows) < 23
    for p in (tmp_path / "cut").glob("*.npy"):
        assert len(np.load(p)) >= len(rows), "readable, and all that the index lists"
    for p in (tmp_path / "cut").rglob("*.npz"):
        np.load(p)["x_attribution"]
    ran, run = [], Explainer.__call__
    monkeypatch.setattr(Explainer, "__call__", lambda self, x, target=None: (ran.append(len(x["x"])), run(self, x, target))[1])
    found = graphattr.explain_dataset("m.onnx", photos, tmp_path / "cut", **given)
    assert found["samples"] == sum(ran) == 23 - len(rows)
    assert found["skipped"] == len(rows)
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_another_explanation_does_not_go_into_the_folder(mlp_gradient, tmp_path):
    out = tmp_path / "out"
    graphattr.explain_dataset(mlp_gradient, X, out)
    before = content(out)
    other = graphattr.convert(mlp("Softmax"), "gradient")
    with pytest.raises(RunError, match=r"method is 'gradient_x_input', here it is 'gradient'; give another folder"):
        graphattr.explain_dataset(other, X, out)
    with pytest.raises(RunError, match="data"):
        graphattr.explain_dataset(mlp_gradient, X + 1, out)
    weights = mlp("Softmax")
    weights.graph.initializer[0].raw_data = array(4, 5, seed=77).tobytes()
    with pytest.raises(RunError, match="explanation"):
        graphattr.explain_dataset(graphattr.convert(weights, "gradient_x_input"), X, out)
    graphattr.explain_dataset(mlp_gradient, iter([X]), tmp_path / "it")
    with pytest.raises(RunError, match="iterable"):
        graphattr.explain_dataset(mlp_gradient, iter([X]), tmp_path / "it")
    assert content(out) == before


def test_a_result_that_is_gone_is_made_again(cnn, photos, tmp_path):
    out = tmp_path / "out"
    graphattr.explain_dataset(cnn, photos, out, write=["npz"])
    before = content(out)
    (out / "b" / "same.npz").unlink()
    assert graphattr.explain_dataset(cnn, photos, out, write=["npz"])["samples"] == 1
    assert {k: v for k, v in content(out).items() if k != "index.csv"} == {k: v for k, v in before.items() if k != "index.csv"}
    assert len(lines(out)) == 23


def test_new_pictures_come_behind(cnn, photos, tmp_path):
    from PIL import Image

    graphattr.explain_dataset(cnn, photos, tmp_path / "out")
    Image.new("RGB", (9, 9), "red").save(photos / "00_new.png")
    assert graphattr.explain_dataset(cnn, photos, tmp_path / "out")["samples"] == 1
    assert lines(tmp_path / "out")[-1]["file"] == "00_new.png"
    assert len(np.load(tmp_path / "out" / "y.npy")) == 24


def test_two_runs_do_not_write_into_one_folder(mlp_gradient, tmp_path):
    pytest.importorskip("fcntl", reason="the system has no locks of files")
    index = Work(mlp_gradient, X, tmp_path / "out", write=["npy"], goes_on=True)._index()
    with pytest.raises(RunError, match="another run is writing"):
        graphattr.explain_dataset(mlp_gradient, X, tmp_path / "out")
    index.close()
    assert graphattr.explain_dataset(mlp_gradient, X, tmp_path / "out")["samples"] == len(X)


def test_growing_arrays_are_whole_at_any_time(tmp_path):
    held = Growing(tmp_path, 0)
    held.append({"a": np.ones((3, 2), np.float32)})
    held.count(3)
    held.append({"a": np.zeros((2, 2), np.float32)})
    assert np.load(tmp_path / "a.npy").tolist() == [[1, 1]] * 3, "what is not counted is not seen"
    held.close()
    held = Growing(tmp_path, 3)
    held.append({"a": np.full((1, 2), 7, np.float32)})
    held.count(1)
    held.close()
    assert np.load(tmp_path / "a.npy", mmap_mode="r").tolist() == [[1, 1]] * 3 + [[7, 7]]
    assert (tmp_path / "a.npy").stat().st_size == 128 + 4 * 8
    with pytest.raises(RunError, match="does not hold the 9 rows"):
        Growing(tmp_path, 9).append({"a": np.ones((1, 2), np.float32)})
    with pytest.raises(RunError, match="does not hold the 4 rows"):
        Growing(tmp_path, 4).append({"a": np.ones((1, 1), np.float32)})


# -- failures -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("write", [["npy"], ["npz"]])
def test_an_unreadable_picture_in_the_middle(cnn, photos, tmp_path, write):
    (photos / "b" / "10.png").write_bytes(b"no picture")
    names = sorted(str(p.relative_to(photos)) for p in photos.rglob("*.*"))
    bad = names.index("b/10.png")
    with pytest.raises(RunError, match=r"b/10\.png is no picture"):
        graphattr.explain_dataset(cnn, photos, tmp_path / "stops", write=write, batch_size=4)
    assert [r["file"] for r in lines(tmp_path / "stops")] == names[:bad], "what stands before it is written"
    found = graphattr.explain_dataset(cnn, photos, tmp_path / "goes", write=write, batch_size=4, keep_going=True)
    assert [f["file"] for f in found["failed"]] == ["b/10.png"]
    assert found["samples"] == len(names) - 1
    assert [r["file"] for r in lines(tmp_path / "goes")] == names[:bad] + names[bad + 1 :]
    again = graphattr.explain_dataset(cnn, photos, tmp_path / "goes", write=write, batch_size=4, keep_going=True)
    assert (again["samples"], len(again["failed"])) == (0, 1), "it is tried again"


@pytest.mark.parametrize("write", [["npy"], ["npz"]])
def test_a_sample_that_cannot_be_explained_is_named(mlp_gradient, tmp_path, write):
    for i in range(6):
        np.save(tmp_path / f"{i}.npy", X[i : i + 1] * (np.nan if i == 3 else 1))
    for kind in ("stops", "goes"):
        (tmp_path / kind).mkdir()
    with pytest.raises(RunError, match=r"3\.npy.*NaN"):
        graphattr.explain_dataset(mlp_gradient, sorted(tmp_path.glob("*.npy")), tmp_path / "stops", write=write)
    assert len(lines(tmp_path / "stops")) == 3
    files = sorted(tmp_path.glob("*.npy"))
    found = graphattr.explain_dataset(mlp_gradient, files, tmp_path / "goes", write=write, keep_going=True)
    assert found["samples"] == 5
    assert [Path(f["file"]).name for f in found["failed"]] == ["3.npy"]


def test_a_run_that_fails_names_the_sample(tmp_path):
    """The derivative of a root is infinite at 0, in one of four samples."""
    made = graphattr.convert(model([node("Sqrt", "x", "s"), node("Gemm", "s w", "y")], weights={"w": array(4, 3)}), "gradient")
    x = np.abs(X[:4])
    x[2, 1] = 0
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(RunError, match=r"x\.npy: .*NaN or infinite"):
        graphattr.explain_dataset(made, tmp_path / "x.npy", tmp_path / "stops")
    found = graphattr.explain_dataset(made, tmp_path / "x.npy", tmp_path / "goes", keep_going=True)
    assert (found["samples"], len(found["failed"])) == (3, 1)
    assert [int(r["sample"]) for r in lines(tmp_path / "goes")] == [0, 1, 3]
    each = graphattr.explain_dataset(made, tmp_path / "x.npy", tmp_path / "each", write=["npz"], keep_going=True)
    assert (each["samples"], len(each["failed"])) == (0, 1), "a file of its own has all samples or none"
    want = graphattr.explain(made, x[[0, 1, 3]]).scores["x"]
    np.testing.assert_allclose(np.load(tmp_path / "goes" / "x_attribution.npy"), want, rtol=1e-6)


@pytest.mark.parametrize(("given", "words"), [
    ({"write": ["jpg"]}, "'jpg' cannot be written"), ({"batch_size": 0}, "batch size"), ({"workers": 0}, "workers"),
    ({"write": ["npz"]}, "arrays have no files")])
def test_what_cannot_be_asked(mlp_gradient, tmp_path, given, words):
    with pytest.raises(RunError, match=words):
        graphattr.explain_dataset(mlp_gradient, X, tmp_path / "out", **given)


def test_settings_say_what_the_folder_is(mlp_gradient, tmp_path):
    graphattr.explain_dataset(mlp_gradient, X, tmp_path / "out")
    held = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (held["method"], held["target"], held["write"]) == ("gradient_x_input", "argmax", ["npy"])
    (tmp_path / "out" / "dataset.json").write_text("{")
    with pytest.raises(RunError, match=r"dataset\.json"):
        graphattr.explain_dataset(mlp_gradient, X, tmp_path / "out")


def test_no_more_than_some_batches_are_held(cnn, tmp_path, monkeypatch):
    """How far reading is ahead of the session: not with the number of inputs."""
    from graphattr.dataset.reading import Reader

    read, gap, run, reading = [], [], Explainer.__call__, Reader.read
    monkeypatch.setattr(Reader, "read", lambda self, job: (read.append(1), reading(self, job))[1])
    explained = [0]

    def slow(self, feeds, target=None):
        time.sleep(0.02)
        gap.append(len(read) - explained[0])
        explained[0] += len(feeds["x"])
        return run(self, feeds, target)

    monkeypatch.setattr(Explainer, "__call__", slow)
    for i in range(60):
        np.save(tmp_path / f"{i:02d}.npy", array(3, 8, 8, seed=i))
    graphattr.explain_dataset(cnn, tmp_path, tmp_path / "out", batch_size=4, workers=2)
    assert explained[0] == 60
    assert max(gap) <= 4 * 5, gap


def test_the_session_leaves_the_cores_to_others_while_it_waits(mlp_gradient):
    options = Work(mlp_gradient, X).explainer.session.get_session_options()
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_texts_that_are_no_file_have_no_folder_that_goes_on(mlp_gradient, tmp_path):
    with pytest.raises(RunError, match=r"\.txt"):
        Work(mlp_gradient, ["a text"], tmp_path, text=True, write=["npy"])


@pytest.mark.parametrize("kind", ["npy", "npz", "array"])
def test_rows_that_are_not_listed_are_made_again(mlp_gradient, tmp_path, kind):
    """Killed between the rows and their lines, or within a line: as if it had never been."""
    data = X
    if kind != "array":
        data = tmp_path / f"x.{kind}"
        np.save(data, X) if kind == "npy" else np.savez(data, x=X)
    out = tmp_path / "out"
    graphattr.explain_dataset(mlp_gradient, data, out, batch_size=10)
    before = content(out)
    text = (out / "index.csv").read_text()
    (out / "index.csv").write_text("\n".join(text.split("\n")[:21]) + "\n" + text.split("\n")[21][:4])
    (out / ".index.csv.abc.part").touch()
    found = graphattr.explain_dataset(mlp_gradient, data, out, batch_size=10)
    assert (found["samples"], found["skipped"]) == (17, 20)
    assert content(out) == before
