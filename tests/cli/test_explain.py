"""`graphattr explain` on texts, tables and signals: what is printed, and which files are written."""

# ruff: noqa: F811
from __future__ import annotations

import csv
import json
import os

import numpy as np
import pytest

import graphattr
from tests.cli.test_cli import X, fails, run  # noqa: F401  (a fixture)
from tests.unit.tiny import I, array, model, node, saved

pytest.importorskip("onnxruntime")
IDS = np.array([[1, 2, 3, 0, 0], [4, 3, 2, 1, 5]])


def words(folder):
    """w.onnx: input_ids and attention_mask -> y [N, 3]; ids.npz; vocab.txt."""
    nodes = [node("Gather", "table input_ids", "e"), node("Cast", "attention_mask", "f", to=1), node("Unsqueeze", "f last", "u"),
             node("Mul", "e u", "m"), node("Tanh", "m", "t"), node("ReduceSum", "t axes", "s", keepdims=0),
             node("Gemm", "s w", "y")]
    weights = {"table": array(6, 4), "w": array(4, 3, seed=1), "last": np.array([-1]), "axes": np.array([1])}
    saved(model(nodes, {k: (I, ["N", "T"]) for k in ("input_ids", "attention_mask")}, weights=weights), folder, "w.onnx")
    np.savez(folder / "ids.npz", input_ids=IDS, attention_mask=(IDS > 0).astype(np.int64))
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "cat", "<dog>", "sat", "##s"]), encoding="utf-8")


def test_explain_ids(run, tmp_path):
    words(tmp_path)
    code, out, err = run("explain", "w.onnx", "ids.npz", "-o", "res", "--method", "gradient_x_input", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert [t["words"] for t in found["tokens"]] == [["1", "2", "3"], ["4", "3", "2", "1", "5"]], "padding is not shown"
    want = graphattr.explain("w.onnx", dict(np.load("ids.npz")), "gradient_x_input", wrt="tokens").scores["input_ids"]
    assert np.allclose(found["tokens"][0]["scores"], want[0, :3], atol=1e-6)
    assert np.allclose(found["tokens"][1]["scores"], want[1], atol=1e-6)
    assert sorted(os.listdir("res")) == ["ids.html", "ids.npz"]
    assert np.allclose(np.load("res/ids.npz")["input_ids_attribution"], want, atol=1e-6)


def test_explain_words(run, tmp_path):
    words(tmp_path)
    code, out, _ = run("explain", "w.onnx", "ids.npz", "-o", "res", "--tokenizer", "vocab.txt", "--wrt", "tokens", "--top", "1")
    assert code == 0
    lines = out.splitlines()
    assert any(line.startswith("[UNK](") and " cat(" in line and " <dog>(" in line for line in lines), out
    assert "\x1b" not in out, "no colours where there is no terminal"
    html = (tmp_path / "res" / "ids.html").read_text(encoding="utf-8")
    assert "&lt;dog&gt;</span>" in html
    assert "<dog>" not in html
    assert "[PAD]" not in html
    np.savez(tmp_path / "named.npz", **np.load("ids.npz"), tokens=np.array([list("abcde"), list("fghij")]))
    out = run("explain", "w.onnx", "named.npz", "-o", "res", "--tokenizer", "vocab.txt", "--json")[1]
    assert [t["words"] for t in json.loads(out)["tokens"]] == [list("abc"), list("fghij")]


def test_explain_several_methods_on_one_page(run, tmp_path):
    words(tmp_path)
    argv = ("explain", "w.onnx", "ids.npz", "-o", "res", "--method", "gradient,gradient_x_input", "--json")
    assert len(json.loads(run(*argv)[1])["tokens"]) == 4
    html = (tmp_path / "res" / "ids.html").read_text(encoding="utf-8")
    assert html.count("<h2>") == 2


def test_explain_texts(run, tmp_path):
    pytest.importorskip("tokenizers", reason="splitting texts needs the package tokenizers (extra: text)")
    words(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "cat", "##s"]), encoding="utf-8")
    (tmp_path / "lines.txt").write_text("Cats\n\ncat\n", encoding="utf-8")
    want = [["[CLS]", "cat", "##s", "[SEP]"], ["[CLS]", "cat", "[SEP]"]]
    for given, name in ((["lines.txt"], "lines.html"), (["Cats", "cat", "--text"], "text.html")):
        code, out, _ = run("explain", "w.onnx", *given, "-o", "res", "--tokenizer", "vocab.txt", "--json")
        assert code == 0
        assert [t["words"] for t in json.loads(out)["tokens"]] == want
        assert name in os.listdir("res")


@pytest.mark.parametrize(("argv", "message"), [
    (["lines.txt"], ["lines.txt", "--tokenizer"]), (["cat", "--text"], ["--tokenizer"]), (["bad.npz"], ["`tokens`", "(1, 2)"]),
    (["empty.txt", "--tokenizer", "vocab.txt"], ["empty"]), (["ids.npz", "--tokenizer", "gone.json"], ["gone.json"]),
    (["ids.npz", "--wrt", "attention_mask"], ["attention_mask", "int64"])])
def test_explain_refuses_texts(run, tmp_path, argv, message):
    words(tmp_path)
    (tmp_path / "lines.txt").write_text("cat", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n", encoding="utf-8")
    np.savez(tmp_path / "bad.npz", **np.load("ids.npz"), tokens=np.array([["a", "b"]]))
    fails(run("explain", "w.onnx", *argv), *message)


def test_explain_tables(run, tmp_path):
    header = 'age,"height, cm",income,smokes\n'
    (tmp_path / "people.csv").write_text(header + "\n".join(",".join(map(str, row)) for row in X.tolist()), encoding="utf-8")
    argv = ("explain", "m.onnx", "people.csv", "-o", "res", "--method", "gradient_x_input", "--top", "2")
    found = json.loads(run(*argv, "--json")[1])
    score = graphattr.explain("m.onnx", X, "gradient_x_input").scores["x"][0]
    names, order = ["age", "height, cm", "income", "smokes"], np.argsort(-np.abs(score))[:2]
    assert [f["name"] for f in found["features"]] == [names[k] for k in order]
    assert np.allclose([f["relevance"] for f in found["features"]], score[order], atol=1e-6)
    assert np.allclose([f["value"] for f in found["features"]], X[0][order], atol=1e-6)
    out = run(*argv)[1]
    assert f"{names[order[0]]} " in out
    assert f"{score[order[0]]:+.4g}" in out
    assert json.loads(run("explain", "m.onnx", "x.npy", "-o", "res", "--json")[1])["features"] == []
    with open("res/people.attribution.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [r["column"] for r in rows] == names * len(X)
    assert np.allclose([float(r["attribution"]) for r in rows[:4]], score, atol=1e-6)
    assert np.array_equal(np.array([r["value"] for r in rows], np.float32).reshape(X.shape), X)
    assert "x.attribution.csv" not in os.listdir("res")


def test_explain_signals(run, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    from PIL import Image

    from tests.unit.test_sound import written

    for name, shape in (("s.onnx", ["N", 2, "T"]), ("t.onnx", ["N", 1, 100])):
        nodes = [node("Conv", "x w", "c"), node("Relu", "c", "r"), node("GlobalAveragePool", "r", "p"), node("Flatten", "p", "y")]
        saved(model(nodes, {"x": shape}, {"y": ["N", 3]}, {"w": array(3, shape[1], 5)}), tmp_path, name)
    np.save(tmp_path / "s.npy", array(2, 2, 80))
    assert run("explain", "s.onnx", "s.npy", "-o", "res")[0] == 0
    assert sorted(os.listdir("res")) == ["s.0.png", "s.1.png", "s.npz"]
    written(tmp_path / "a.wav", np.sin(np.linspace(0, 99, 250)))
    code, out, err = run("explain", "t.onnx", "a.wav", "-o", "wav", "--json")
    assert code == 0
    assert "8000 samples per second" in err
    assert "3 x (1, 100)" in err
    assert json.loads(out)["samples"] == 3
    assert sorted(os.listdir("wav")) == ["a.0.png", "a.1.png", "a.2.png", "a.npz"]
    assert Image.open("wav/a.0.png").width == Image.open("res/s.0.png").width
    assert Image.open("wav/a.0.png").height < Image.open("res/s.0.png").height, "one channel instead of two"


# -- folders ------------------------------------------------------------------------------------------------------
def test_explain_a_folder(run, tmp_path):
    """A few inputs get files of their own; the folder goes on, and belongs to one explanation."""
    (tmp_path / "data" / "b").mkdir(parents=True)
    for i, name in enumerate(("x.npy", "y.npy", "b/x.npy")):
        np.save(tmp_path / "data" / name, X[i : i + 1])
    argv = ("explain", "m.onnx", "data", "-o", "res", "--method", "gradient_x_input")
    code, out, err = run(*argv)
    assert code == 0, err
    assert "3 samples explained" in err
    assert out.endswith("res/index.csv\n")
    assert sorted(os.listdir("res")) == ["b", "dataset.json", "index.csv", *sorted(
        f for n in "xy" for f in (f"{n}.npz", f"{n}.png") if f in os.listdir("res"))]
    assert {"x.npz", "y.npz"} <= set(os.listdir("res"))
    want = graphattr.explain("m.onnx", X[:3], "gradient_x_input").scores["x"]
    for i, name in enumerate(("x", "y", "b/x")):
        assert np.allclose(np.load(f"res/{name}.npz")["x_attribution"], want[i], atol=1e-6)
    os.unlink("res/y.npz")
    assert "1 samples explained" in run(*argv)[2]
    assert os.path.exists("res/y.npz")
    code, out, err = run(*argv[:-1], "gradient")
    assert (code, out) == (1, "")
    assert "method is 'gradient_x_input', here it is 'gradient'" in err
    assert run(*argv, "--write", "npy")[0] == 1, "other files than are there"


def test_explain_many_inputs_into_arrays_of_all(run, tmp_path):
    """More than 100 inputs: arrays of all. One line on stdout, or JSON."""
    for i in range(101):
        np.save(tmp_path / f"many{i:03d}.npy", X[i % 3 : i % 3 + 1])
    files = [f"many{i:03d}.npy" for i in range(101)]
    argv = ("explain", "m.onnx", *files, "-o", "res", "--method", "gradient_x_input", "--batch-size", "7", "--workers", "2")
    code, out, _ = run(*argv, "--json")
    found = json.loads(out)
    assert (code, found["samples"], found["write"]) == (0, 101, ["npy"])
    held = np.load(found["arrays"]["x_attribution"], mmap_mode="r")
    want = graphattr.explain("m.onnx", X, "gradient_x_input").scores["x"]
    assert np.allclose(held, want[np.arange(101) % 3], atol=1e-6)
    with open("res/index.csv", newline="", encoding="utf-8") as file:
        assert [r["file"] for r in csv.DictReader(file)] == files
    assert run(*argv)[1] == "res/index.csv\n"
    assert sorted(os.listdir("res")) == ["dataset.json", "index.csv", "x_attribution.npy", "y.npy"]


def test_explain_keeps_going(run, tmp_path):
    """What cannot be read stops the run; with --keep-going it is listed at the end, and the exit code is 1 all the same."""
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    code, out, err = run("explain", "m.onnx", "x.npy", "bad.npy", "-o", "res")
    assert code == 1
    assert "bad.npy" in err
    assert "res/x.npz" in out, "what stands before it is explained"
    code, out, err = run("explain", "m.onnx", "bad.npy", "x.npy", "-o", "res", "--keep-going", "--write", "npz")
    assert code == 1
    assert err.startswith("error: ")
    assert "bad.npy" in err
    assert "res/x.npz" in out
    assert "png" not in out


@pytest.mark.parametrize(("argv", "words"), [
    (["--write", "jpg"], ["'jpg'", "npz, png, npy"]), (["--batch-size", "0"], ["batch size"]), (["--workers", "0"], ["workers"])])
def test_explain_refuses_what_it_cannot_write(run, argv, words):
    fails(run("explain", "m.onnx", "x.npy", *argv), *words)
