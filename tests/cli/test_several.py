"""`--target top3`, a list of targets and `--size` on the command line."""

# ruff: noqa: F811
from __future__ import annotations

import json

import numpy as np
import pytest

import graphattr
from tests.cli.test_cli import run  # noqa: F401  (a fixture)
from tests.cli.test_explain import words
from tests.unit.test_audit import cnn
from tests.unit.tiny import array, mlp, saved

pytest.importorskip("onnxruntime")


def test_pictures_one_panel_per_class(run, tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    net, x = cnn(1), array(1, 1, 12, 12)
    saved(net, tmp_path, "c.onnx")
    np.save(tmp_path / "x.npy", x)
    heights = {}
    for target in ("argmax", "top2", "[1,0]"):
        code, out, _ = run("explain", "c.onnx", "x.npy", "-o", "res", "--target", target, "--method", "gradient", "--json")
        assert code == 0
        report = json.loads(out)
        heights[target] = image.open(tmp_path / "res" / "x.png").size
        held = np.load(tmp_path / "res" / "x.npz")
        if target != "argmax":
            want = [[t["index"] for t in report["top"]][:2]] if target == "top2" else [[1, 0]]
            assert report["target"] == held["explained_index"].tolist() == want
            assert held["x_attribution"].shape == (1, 2, 1, 12, 12)
    assert heights["top2"] == heights["[1,0]"] == (heights["argmax"][0], 2 * heights["argmax"][1])
    a = graphattr.explain(net, x, "gradient", "top2")
    shown = np.asarray(a.plot(x).axes[0].images[0].get_array())
    parts = [np.asarray(one.plot(x).axes[0].images[0].get_array()) for one in a.each()]
    assert np.array_equal(shown, np.concatenate(parts))


def test_tables_and_words(run, tmp_path):
    saved(mlp(), tmp_path, "t.onnx")
    (tmp_path / "t.csv").write_text("a,b,c,d\n" + "\n".join(",".join(map(str, row)) for row in array(2, 4).tolist()))
    code, out, err = run("explain", "t.onnx", "t.csv", "-o", "res", "--target", "top2", "--method", "gradient")
    assert (code, err) == (0, "")
    a = graphattr.explain(mlp(), array(2, 4), "gradient", "top2")
    for j in (0, 1):
        assert sum(f"class {a.target[0, j]} ·" in line for line in out.splitlines()) == 4, out
    rows = (tmp_path / "res" / "t.attribution.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 2 * 4
    words(tmp_path)
    code, out, _ = run("explain", "w.onnx", "ids.npz", "-o", "res", "--target", "top3", "--json")
    found = json.loads(out)["tokens"]
    assert [t["sample"] for t in found] == [0, 1] * 3
    assert len({t["caption"] for t in found}) == 6
    assert (tmp_path / "res" / "ids.html").read_text(encoding="utf-8").count("class ") >= 6


def test_convert_and_verify(run, tmp_path):
    saved(mlp(), tmp_path, "m.onnx")
    options = ("--target", "top2", "--size", "small", "--ledger", "--delta")
    code, out, _ = run("convert", "m.onnx", *options, "-o", "e.onnx", "--json")
    manifest = json.loads(out)["manifest"]
    assert (code, manifest["target"], manifest["targets"], manifest["size"]) == (0, "top2", 2, "small")
    assert run("verify", "e.onnx", "--model", "m.onnx")[0] == 0
    assert json.loads(run("convert", "m.onnx", "--target", "[2,0]", "-o", "e.onnx", "--json")[1])["manifest"]["target"] == [2, 0]
    for target, said in (("top9", "has 3"), ("[2,", "must be"), ("[3]", "out of range"), ("topp", "did you mean")):
        code, _, err = run("convert", "m.onnx", "--target", target)
        assert code == 1
        assert said in err, err
