"""Data as people have them, on the command line: tables, classes of files, boxes."""

from __future__ import annotations

import json

import numpy as np
import pytest

import graphattr
from tests.cli.calls import caller
from tests.unit.test_boxes import SIZES, coco, voc
from tests.unit.test_tabular import as_csv, parquet
from tests.unit.tiny import array, mlp, model, node, saved

pytest.importorskip("onnxruntime")
X, LABELS = array(30, 4, seed=4), np.arange(30) % 3
COLUMNS = {"age": X[:, 0], "height": X[:, 1], "income": X[:, 2], "smokes": X[:, 3], "label": LABELS}


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """`graphattr ARGS` in a folder with m.onnx, the table t.csv and t.parquet, net.onnx and the folder p of pictures."""
    saved(mlp(), tmp_path)
    nodes = [node("Flatten", "x", "f"), node("Gemm", "f w", "y")]
    net = model(nodes, {"x": ["N", 3, 20, 20]}, {"y": ["N", 3]}, {"w": array(1200, 3)})
    saved(net, tmp_path, "net.onnx")
    as_csv(tmp_path / "t.csv", COLUMNS)
    (tmp_path / "f.toml").write_text("samples = 30\ngallery = 3\n[measures.sparseness]\n")
    monkeypatch.chdir(tmp_path)
    return caller(capfd)


@pytest.fixture
def pictures(tmp_path):
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "p").mkdir()
    for name, (wide, tall) in SIZES.items():
        image.fromarray(np.random.default_rng(wide).integers(0, 255, (tall, wide, 3), np.uint8)).save(tmp_path / "p" / name)
    (tmp_path / "labels.csv").write_text("file,class\na.png,2\nb.png,0\nc.png,1\n")


@pytest.mark.usefixtures("pictures")
def test_classes_of_files_are_the_same_for_fit_audit_and_diff(run):
    """Learned for class 1, which only c.png has; audit and diff count with the same classes."""
    code, _, err = run("fit", "net.onnx", "p", "--labels", "labels.csv", "--method", "mip_in", "--target", "1", "-o", "f.npz",
                       "--preprocess", "none", "--json")
    assert code == 0, err
    with pytest.warns(graphattr.FitWarning):
        want = graphattr.fit("net.onnx", ["p/c.png"], "mip_in", target=1, labels=[1])
    held = graphattr.Fitted.load("f.npz")
    assert held.manifest["samples"] == 1
    for layer, arrays in want.arrays.items():
        for name, a in arrays.items():
            np.testing.assert_array_equal(held.arrays[layer][name], a)
    report = json.loads(run("audit", "net.onnx", "p", "--labels", "labels.csv", "--profile", "f.toml", "-o", "r", "--json")[1])
    assert report["samples"]["labels"] == [2, 0, 1]
    found = json.loads(run("diff", "net.onnx", "net.onnx", "p", "--labels", "labels.csv", "--method", "gradient", "--json")[1])
    assert found["prediction"]["accuracy"] == [report["samples"]["accuracy"]] * 2
    for argv in (("fit", "net.onnx", "p", "--method", "pattern.net", "-o", "g.npz"), ("diff", "net.onnx", "net.onnx", "p"),
                 ("audit", "net.onnx", "p", "-o", "r")):
        code, out, err = run(*argv, "--labels", "gone.csv")
        assert (code, out) == (1, "")
        assert "cannot read the labels in gone.csv" in err


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_everywhere(run, tmp_path, suffix):
    """explain, fit, audit and diff read the same table, and its column of classes."""
    if suffix == "parquet":
        parquet(tmp_path / "t.parquet", COLUMNS)
    table = f"t.{suffix}"
    found = json.loads(run("explain", "m.onnx", table, "-o", "res", "--method", "gradient_x_input", "--top", "4", "--json")[1])
    assert {f["name"] for f in found["features"]} == {"age", "height", "income", "smokes"}
    report = json.loads(run("audit", "m.onnx", table, "--profile", "f.toml", "-o", "r", "--json")[1])
    assert report["samples"]["labels"] == LABELS.tolist()
    assert json.loads(run("diff", "m.onnx", "m.onnx", table, "--method", "gradient", "--json")[1])["prediction"]["accuracy"]
    code, _, err = run("fit", "m.onnx", table, "--method", "mip_in", "--target", "1", "-o", "f.npz")
    assert code == 0, err
    assert graphattr.Fitted.load("f.npz").manifest["samples"] == 10


@pytest.mark.usefixtures("pictures")
def test_boxes(run, tmp_path):
    coco(tmp_path / "c.json", {"a.png": [(8, 6, 12, 9, 1)], "b.png": [(20, 40, 30, 20, 2), (80, 80, 9, 9, 1)]})
    argv = ("audit", "net.onnx", "p", "--profile", "f.toml", "--method", "gradient", "-o", "r", "--preprocess", "none")
    code, out, err = run(*argv, "--boxes", "c.json", "--fail-on", "inside_ratio > 2")
    assert code == 0, err
    assert "boxes: 2 in 2 of 3 pictures; 1 lie outside of what the model sees, 0 are cut at its edge" in err
    assert "Does it look at the object?" in out
    assert "of what speaks for the class lies in the boxes" in out.replace("\n", " ")
    (tmp_path / "v").mkdir()
    voc(tmp_path / "v/a.xml", [(1, 1, 40, 30, "cat")])
    code, _, err = run(*argv, "--boxes", "v", "--fail-on", "pointing < 2")
    assert code == 1
    assert "gradient fails 'pointing < 2': pointing is 1" in err


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize(("boxes", "rule", "word"), [
    ("gone.json", "pointing<1", "no such file or folder of boxes: gone.json"), ("p", "pointing<1", "holds no .xml"),
    ("labels.csv", "pointing<1", "cannot read the boxes"), (None, "pointing<1", "the profile does not measure it"),
])
def test_boxes_that_are_none(run, tmp_path, boxes, rule, word):
    argv = ("audit", "net.onnx", "p", "--profile", "f.toml", "-o", "r", "--fail-on", rule)
    code, out, err = run(*argv, *(["--boxes", boxes] if boxes else []))
    assert (code, out) == (1, "")
    assert word in err
    assert not (tmp_path / "r" / "report.json").exists()


def test_boxes_are_no_parameter_of_a_method(run):
    code, _, err = run("audit", "m.onnx", "t.csv", "-o", "r", "--set", "boxes=3")
    assert code == 1
    assert "boxes is not a method's parameter" in err
