"""Boxes of COCO and Pascal VOC, what the preprocessing makes of them, and the measures that use them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import graphattr
from graphattr import measure
from graphattr.audit import Profile
from graphattr.audit.annotations import Box, read_annotations
from graphattr.audit.boxes import Boxes, indices_of, outlined, place_boxes
from graphattr.audit.localised import _flat, _halved, _mosaics
from graphattr.preprocess import PRESETS, Preprocess, read_input
from tests.unit.tiny import array, model, node

image = pytest.importorskip("PIL.Image")
SIZES = {"a.png": (40, 30), "b.png": (60, 90), "c.png": (50, 50)}


def coco(path, boxes, sizes=SIZES, categories=((1, "cat"), (2, "dog"))):
    """{picture: [(x, y, w, h, category)]} as COCO has it."""
    ids = {name: 100 + i for i, name in enumerate(sizes)}
    path.write_text(json.dumps({
        "images": [{"id": ids[n], "file_name": n, "width": w, "height": h} for n, (w, h) in sizes.items()],
        "categories": [{"id": i, "name": n} for i, n in categories],
        "annotations": [{"image_id": ids[n], "bbox": list(b[:4]), "category_id": b[4]} for n, bs in boxes.items() for b in bs],
    }))
    return path


def voc(path, objects, filename="a.png", size=(40, 30), head=""):
    """[(xmin, ymin, xmax, ymax, name)] as Pascal VOC has it."""
    found = "".join(
        f"<object><name>{o[4]}</name><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part><bndbox><xmin>{o[0]}</xmin>"
        f"<ymin>{o[1]}</ymin><xmax>{o[2]}</xmax><ymax>{o[3]}</ymax></bndbox></object>" for o in objects)
    path.write_text(f"{head}<annotation><filename>{filename}</filename><size><width>{size[0]}</width><height>{size[1]}</height>"
                    f"<depth>3</depth></size>{found}</annotation>")
    return path


@pytest.fixture
def pictures(tmp_path):
    """Pictures of three sizes, black but for the white rectangle that is their box."""
    folder = tmp_path / "p"
    folder.mkdir()
    boxes = {"a.png": (8, 6, 12, 9), "b.png": (20, 40, 30, 20), "c.png": (5, 25, 20, 15)}
    for name, (wide, tall) in SIZES.items():
        pixels, (x, y, w, h) = np.zeros((tall, wide, 3), np.uint8), boxes[name]
        pixels[y : y + h, x : x + w] = 255
        image.fromarray(pixels).save(folder / name)
    return folder, boxes


def placed(path, folder, pre, shape, names=(), files=None):
    said = []
    files = sorted(folder.glob("*.png")) if files is None else files
    return place_boxes(path, files, [folder], pre, shape, names, said.append), said


# -- files ------------------------------------------------------------------------------------------------------------
def test_coco_and_voc_say_the_same(tmp_path):
    """A box of 12 x 9 pixels from the 9th column and the 7th row on, in either format."""
    one = read_annotations(coco(tmp_path / "c.json", {"a.png": [(8, 6, 12, 9, 2)]})).of(Path("x/a.png"), [Path("x")])
    two = read_annotations(voc(tmp_path / "a.xml", [(9, 7, 20, 15, "dog")])).of(Path("x/a.png"), [Path("x")])
    assert one.size == two.size == (40, 30)
    assert one.boxes == [Box(8, 6, 20, 15, "dog", 2)]
    assert two.boxes == [Box(8, 6, 20, 15, "dog")]


@pytest.mark.parametrize("name", ["a.png", "train/a.png", "old\\a.png", "q/a.png"])
def test_names_in_coco(tmp_path, name):
    held = read_annotations(coco(tmp_path / "c.json", {name: [(0, 0, 1, 1, 1)]}, {name: (40, 30)}))
    assert held.of(tmp_path / "p/q/a.png", [tmp_path / "p"]).boxes
    assert held.of(tmp_path / "p/q/b.png", [tmp_path / "p"]) is None


def test_names_in_folders_of_voc(tmp_path):
    """By the name of the annotation in its folder, else by the name that it says; a name said twice says nothing."""
    (tmp_path / "v/cats").mkdir(parents=True)
    (tmp_path / "v/dogs").mkdir()
    voc(tmp_path / "v/cats/1.xml", [(1, 1, 2, 2, "cat")], "image.jpg")
    voc(tmp_path / "v/dogs/1.xml", [(1, 1, 3, 3, "dog")], "image.jpg")
    voc(tmp_path / "v/x7.xml", [(1, 1, 4, 4, "cow")], "cow.jpg")
    held = read_annotations(tmp_path / "v")
    found = {n: held.of(tmp_path / n, [tmp_path]) for n in ("cats/1.jpg", "dogs/1.png", "cow.jpg", "image.jpg", "x7.png")}
    assert {n: f and f.boxes[0].name for n, f in found.items()} == {
        "cats/1.jpg": "cat", "dogs/1.png": "dog", "cow.jpg": "cow", "image.jpg": None, "x7.png": "cow"}


DEEP = "[" * 100_000
BOMB = '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;&b;">]>'


@pytest.mark.parametrize(("text", "said"), [
    ("", "cannot read"), ("[1, 2]", "is no COCO file"), ('{"images": []}', "is no COCO file"), (DEEP, "cannot read"),
    ('{"images": [3], "annotations": []}', "image 0 has no 'file_name'"),
    ('{"images": [{"id": 1, "file_name": 2}], "annotations": []}', "image 0 has no 'file_name'"),
    ('{"images": [{"id": true, "file_name": "a"}], "annotations": []}', "image 0 has no 'id'"),
    ('{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": []}', "is there twice"),
    ('{"images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}], "annotations": []}', "is there twice"),
    ('{"images": [], "annotations": [{"image_id": 1}]}', "annotation 0 has no 'bbox'"),
    ('{"images": [], "annotations": [{"image_id": 1, "bbox": [0, 0, 1, 1]}]}', "none of its 1 annotations"),
    ('{"images": [], "annotations": [], "categories": [{"id": 1}]}', "category 0 has no 'name'"),
    *((f'{{"images": [{{"id": 1, "file_name": "a"}}], "annotations": [{{"image_id": 1, "bbox": {b}}}]}}', said) for b, said in (
        ("[1, 2, 3]", "is no box"), ('["1", 2, 3, 4]', "is no box"), ("[1, 2, -3, 4]", "ends before it begins"),
        ("[1, 2, NaN, 4]", "no finite number"), ("[1, 2, 1e999, 4]", "no finite number"), ("[1, 2, 3, 1e400]", "no finite"),
        (f"[1, 2, {'9' * 400}, 4]", "no finite"), ("[true, 2, 3, 4]", "is no box"), (f"[1, 2, {'9' * 5000}, 4]", "cannot read"))),
])
def test_what_is_no_coco(tmp_path, text, said):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(graphattr.RunError, match=said):
        read_annotations(tmp_path / "c.json")


@pytest.mark.parametrize(("text", "said"), [
    ("", "cannot read"), ("<annotation>", "cannot read"), ("<html></html>", "its root is <html>"), ("{}", "cannot read"),
    (BOMB + "<annotation><filename>&c;</filename></annotation>", "declares a document type"),
    ('<!DOCTYPE a SYSTEM "file:///etc/passwd"><annotation/>', "declares a document type"),
    ("<annotation>&c;</annotation>", "cannot read"), ("<annotation>" + "<a>" * 99_999, "deeper than"),
    ('<?xml version="1.0" encoding="nowhere"?><annotation/>', "cannot read"), ("<annotation/><annotation/>", "cannot read"),
    ("<annotation><object><name>cat</name></object></annotation>", "object 0 has no bndbox/xmin"),
    ("<annotation><object><bndbox><xmin>1</xmin><ymin>x</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object></annotation>",
     "no finite number"),
    ("<annotation><object><bndbox><xmin>9</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object></annotation>",
     "ends before it begins"),
])
def test_what_is_no_voc(tmp_path, text, said):
    (tmp_path / "a.xml").write_text(text)
    for path in (tmp_path / "a.xml", tmp_path):
        with pytest.raises(graphattr.RunError, match=said):
            read_annotations(path)


def test_no_file_at_all(tmp_path):
    for path, said in ((tmp_path, "holds no .xml"), (tmp_path / "no.json", "no such file or folder of boxes")):
        with pytest.raises(graphattr.RunError, match=said):
            read_annotations(path)


# -- placing ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("pre", "shape"), [
    (PRESETS["none"], ("N", 3, 24, 36)), (PRESETS["imagenet"], ("N", 3, 64, 64)), (PRESETS["tf"], ("N", 48, 48, 3)),
    (Preprocess("grown", 40, 20), ("N", 3, "H", "W")), (Preprocess("squeezed", 33), ("N", 3, "H", "W")),
])
def test_boxes_move_as_the_pictures_do(pictures, tmp_path, pre, shape):
    """The box of a white rectangle is where the model's input is white, whatever the preprocessing."""
    folder, boxes = pictures
    found, _ = placed(coco(tmp_path / "c.json", {n: [(*b, 1)] for n, b in boxes.items()}), folder, pre, shape)
    for row, file in zip(found.rows, sorted(folder.glob("*.png")), strict=True):
        shown = read_input(file, pre, shape, "uint8").display[..., 0]
        made = found.mask(row, *shown.shape)
        assert (found.height, found.width) == shown.shape
        assert made.any()
        assert not made.all()
        assert shown[made].min() > 55, f"{file.name}: the box covers black"
        assert shown[~made].max() < 200, f"{file.name}: the box leaves white out"


def test_what_the_crop_takes_away_is_counted(pictures, tmp_path):
    """A 60 x 90 picture, its centre of 60 x 60: a box above is gone, one across the edge is cut."""
    folder, _ = pictures
    path = coco(tmp_path / "c.json", {"b.png": [(0, 0, 60, 15, 1), (10, 5, 20, 40, 1), (10, 40, 5, 5, 1), (3, 50, 0, 9, 1)]})
    found, said = placed(path, folder, Preprocess("c", 60, 60), ("N", 3, 60, 60), files=[folder / "b.png"])
    assert (found.outside, found.cut) == (2, 1)
    assert found.rows == [[Box(10, 0, 30, 30, "cat", 1), Box(10, 25, 15, 30, "cat", 1)]]
    assert said == ["boxes: 2 in 1 of 1 pictures; 2 lie outside of what the model sees, 1 are cut at its edge"]


def test_boxes_for_other_pictures(pictures, tmp_path):
    folder, _ = pictures
    pre, shape = PRESETS["none"], ("N", 3, 24, 24)
    with pytest.raises(graphattr.RunError, match=r"says nothing of these pictures: it names z.png, the pictures are a.png"):
        placed(coco(tmp_path / "c.json", {"z.png": [(0, 0, 1, 1, 1)]}, {"z.png": (9, 9)}), folder, pre, shape)
    with pytest.raises(graphattr.RunError, match=r"boxes of a.png are for 30 x 40 pixels, the picture has 40 x 30 \(once"):
        placed(coco(tmp_path / "c.json", {"a.png": [(0, 0, 1, 1, 1)]}, {"a.png": (30, 40)}), folder, pre, shape)
    found, _ = placed(voc(tmp_path / "a.xml", [(1, 1, 40, 30, "cat")], size=(0, 0)), folder, pre, shape)
    assert [len(row) for row in found.rows] == [1, 0, 0]


def test_masks():
    """Pixels whose middle is inside; a box between middles has one pixel; maps of a layer are coarser than the input."""
    boxes = Boxes([[Box(1, 2, 3, 3.5)]], 4, 8)
    want = np.zeros((4, 8), bool)
    want[2, 1:3] = True
    np.testing.assert_array_equal(boxes.mask(boxes.rows[0], 4, 8), want)
    np.testing.assert_array_equal(np.argwhere(boxes.mask([Box(2.6, 0.1, 2.9, 0.4)], 4, 8)), [[0, 2]])
    np.testing.assert_array_equal(np.argwhere(boxes.mask([Box(1.4, 0.6, 3.6, 1.6)], 4, 8)), [[1, 1], [1, 2], [1, 3]])
    np.testing.assert_array_equal(boxes.mask([Box(0, 0, 4, 2), Box(7.9, 3.9, 8, 4)], 2, 4), [[1, 1, 0, 0], [0, 0, 0, 1]])


# -- classes ----------------------------------------------------------------------------------------------------------
NAMES = ["tench", "tabby, tabby cat", "Dog_breed", "crane", "crane"]


def test_names_of_classes():
    assert indices_of(NAMES)["tabby cat"] == {1}
    assert indices_of(NAMES)["dog breed"] == {2}
    assert indices_of(NAMES)["crane"] == {3, 4}


def rows(*held):
    return [[Box(0, 0, 1, 1, name, index) for name, index in row] for row in held]


@pytest.mark.parametrize(("held", "names", "way", "kept"), [
    (rows([("Tabby", 9), ("crane", 8)], [("crane", 9)], [("tench", 9)]), NAMES, "names", [1, 1, 0]),
    (rows([("x", 1), ("y", 4)], [("z", 4)], []), NAMES, "ids", [1, 1, 0]),
    (rows([("x", 1), ("y", 4)], [("z", 4)], []), (), "ids", [1, 1, 0]),
    (rows([("x", 9), ("y", 4)], [("z", 7)], []), NAMES, "all", [2, 1, 0]),
    (rows([("crane", None)], [("x", None)], [("y", None)]), NAMES, "all", [1, 1, 1]),
    (rows([("tabby", None)], [("x", None)], [("y", None)]), NAMES, "all", [1, 1, 1]),
    (rows([("tabby", None)], [("x", None)], []), NAMES, "names", [1, 0, 0]),
])
def test_boxes_of_the_explained_class(held, names, way, kept):
    chosen, found = Boxes(held, 4, 4, names).of_class(np.array([1, 4, 1]))
    assert (found, [len(row) for row in chosen]) == (way, kept)


def test_classes_may_be_told():
    held = Boxes(rows([("crane", 0)], [("x", 0)], [("y", 0)]), 4, 4, NAMES)
    assert [len(r) for r in held.of_class(np.array([4, 1, 1]), "names")[0]] == [1, 0, 0]
    with pytest.raises(graphattr.MethodError, match="by the ids of the categories"):
        held.of_class(np.array([4, 1, 1]), "ids")
    with pytest.raises(graphattr.RunError, match="is none of auto, names, ids, all"):
        held.of_class(np.array([4, 1, 1]), "name")


# -- measures ---------------------------------------------------------------------------------------------------------
def quadrants(batch="N", size=8, layout="NCHW"):
    """Four scores, the sums of the channels of a picture: gradient x input of score k is channel k."""
    perm = [node("Transpose", "x", "t", perm=[0, 3, 1, 2])] if layout == "NHWC" else []
    nodes = [*perm, node("ReduceSum", f"{'t' if perm else 'x'} ax", "y", keepdims=0)]
    shape = [batch, 4, size, size] if layout == "NCHW" else [batch, size, size, 4]
    return model(nodes, {"x": shape}, {"y": [batch, 4]}, {"ax": np.array([2, 3], np.int64)})


def bright(n=4, size=8, seed=0):
    """Sample k is bright in channel k, and a little in the others."""
    x = np.abs(array(n, 4, size, size, seed=seed)) * 0.1
    x[np.arange(n), np.arange(n) % 4] += 1
    return x.astype(np.float32)


def found(report, method, name):
    return report.data["methods"][method]["measures"][name]


def said(report, method, name):
    return next(line for line in report.data["methods"][method]["verdict"] if line["check"] == name)


def grey_audit(folder, boxes, methods=("gradient_x_input", "gradient"), **options):
    """Scores: the brightness of the picture, and its negative. Gradient x input shows what is white, the gradient nothing."""
    nodes = [node("Flatten", "x", "f"), node("Gemm", "f w", "y")]
    weights = {"w": np.stack([np.ones(3 * 20 * 20), -np.ones(3 * 20 * 20)], 1).astype(np.float32)}
    net = model(nodes, {"x": ["N", 3, 20, 20]}, {"y": ["N", 2]}, weights)
    few = Profile("f", samples=8, measures={"sparseness": {}})
    return graphattr.audit(net, folder, list(methods), few, boxes=boxes, **options)


def test_localisation(pictures, tmp_path):
    """What is white is the box: all of gradient x input lies in it, and of a flat gradient as much as the box covers."""
    folder, boxes = pictures
    path = coco(tmp_path / "c.json", {n: [(*b, 0)] for n, b in boxes.items()}, categories=[(0, "bright")])
    notes = []
    report = grey_audit(folder, path, say=notes.append)
    assert notes[-1].startswith("boxes: 3 in 3 of 3 pictures")
    good = found(report, "gradient_x_input", "localisation")
    assert good["names"] == ["inside_ratio", "bounding_box_accuracy", "pointing"]
    assert good["metrics"]["inside_ratio"] > 0.9
    assert good["metrics"]["bounding_box_accuracy"] > 0.9
    assert good["metrics"]["pointing"] == 1
    assert good["settings"] == {"classes": "ids", "largest": 0.33}
    line = said(report, "gradient_x_input", "localisation")
    assert line["passed"] is True
    assert "of what speaks for the class lies in the boxes of the class, which cover" in line["text"]
    assert line["text"].endswith("the strongest pixel in 3 of 3")
    flat = found(report, "gradient", "localisation")
    assert flat["metrics"]["inside_ratio"] == pytest.approx(flat["details"]["area"])
    assert flat["metrics"]["pointing"] is None
    assert "not surely more than chance" in said(report, "gradient", "localisation")["text"]


def test_localisation_is_that_of_a_slow_oracle(pictures, tmp_path):
    """Counted pixel by pixel on the attributions themselves; boxes of other classes do not count."""
    folder, boxes = pictures
    held = {n: [(*b, 0), (0, 0, 3, 3, 1)] for n, b in boxes.items()}
    held["c.png"] = [(0, 0, 9, 9, 1)]
    path = coco(tmp_path / "c.json", held, categories=[(0, "bright"), (1, "dark")])
    x = np.concatenate([read_input(f, PRESETS["none"], ("N", 3, 20, 20), "float32").array for f in sorted(folder.glob("*.png"))])
    report = grey_audit(folder, path, ["gradient_x_input"])
    ratios, accuracies, hits = [], [], []
    for a, name in zip(x.astype(float).sum(1), ("a.png", "b.png"), strict=False):
        (wide, tall), (left, top, w, h) = SIZES[name], boxes[name]
        box = np.array([[left <= (j + 0.5) * wide / 20 < left + w and top <= (i + 0.5) * tall / 20 < top + h for j in range(20)]
                        for i in range(20)])
        ratios.append(a[box].sum() / a.sum())
        order = np.argsort(-a.ravel(), kind="stable")
        accuracies.append(box.ravel()[order[: box.sum()]].mean())
        hits.append(box.ravel()[order[0]])
    got = found(report, "gradient_x_input", "localisation")
    np.testing.assert_allclose(got["values"][:2], ratios, rtol=1e-5)
    assert got["values"][2] is None
    assert got["metrics"]["bounding_box_accuracy"] == pytest.approx(np.mean(accuracies))
    assert got["metrics"]["pointing"] == np.mean(hits)
    assert got["details"]["pictures"] == [0, 1]


def test_boxes_of_any_class_and_the_gate(pictures, tmp_path):
    folder, _ = pictures
    path = voc(tmp_path / "a.xml", [(9, 7, 20, 15, "cat")])
    report = grey_audit(folder, path, ["gradient_x_input"], fail_on=["pointing < 0.5", "inside_ratio < 2"])
    assert found(report, "gradient_x_input", "localisation")["settings"]["classes"] == "all"
    assert "lies in the boxes, which" in said(report, "gradient_x_input", "localisation")["text"]
    assert [line["failed"] for line in report.data["gate"]] == [False, True]
    assert len(report.records()) == 2 * 3
    assert "inside_ratio" in report.html


def test_large_boxes_have_no_accuracy(pictures, tmp_path):
    """They are still measured by what lies in them."""
    folder, _ = pictures
    path = coco(tmp_path / "c.json", {n: [(0, 0, w, h * 0.8, 0)] for n, (w, h) in SIZES.items()})
    report = grey_audit(folder, path, ["gradient_x_input"])
    assert found(report, "gradient_x_input", "localisation")["metrics"]["bounding_box_accuracy"] is None
    assert said(report, "gradient_x_input", "localisation")["passed"] is not None


def test_maps_of_a_layer_are_measured_at_their_size(pictures, tmp_path):
    folder, boxes = pictures
    nodes = [node("Conv", "x w", "c", "conv", strides=[4, 4]), node("Relu", "c", "r"), node("GlobalAveragePool", "r", "p"),
             node("Flatten", "p", "y")]
    net = model(nodes, {"x": ["N", 3, 40, 40]}, {"y": ["N", 2]}, {"w": np.ones((2, 3, 4, 4), np.float32)})
    path = coco(tmp_path / "c.json", {n: [(*b, 1)] for n, b in boxes.items()})
    few = Profile("f", samples=8, measures={"sparseness": {}})
    report = graphattr.audit(net, folder, ["grad_cam"], few, boxes=path, layer="conv", upsample=False)
    got = found(report, "grad_cam", "localisation")
    assert got["skipped"] is None
    assert got["metrics"]["inside_ratio"] > 0.7


def test_without_boxes_and_without_pictures(tmp_path):
    asked = Profile("l", samples=2, measures={"localisation": {}})
    report = graphattr.audit(quadrants(), bright(), ["gradient"], asked)
    assert "no boxes were given (--boxes takes" in said(report, "gradient", "localisation")["text"]
    path = coco(tmp_path / "c.json", {})
    with pytest.raises(graphattr.RunError, match="the data are other than pictures"):
        graphattr.audit(quadrants(), bright(), ["gradient"], asked, boxes=path)


def test_an_audit_goes_on_when_boxes_change(pictures, tmp_path, monkeypatch):
    """Other boxes are other findings; what has nothing to do with them is read."""
    from graphattr.audit.state import State

    folder, boxes = pictures
    monkeypatch.setattr(State, "clear", lambda self: None)
    path = coco(tmp_path / "c.json", {n: [(*b, 0)] for n, b in boxes.items()})
    first = grey_audit(folder, path, ["gradient_x_input"], out=tmp_path / "r")
    coco(path, {n: [(0, 0, 4, 4, 0)] for n in boxes})
    second = grey_audit(folder, path, ["gradient_x_input"], out=tmp_path / "r")
    one, two = (found(r, "gradient_x_input", "localisation")["metrics"]["inside_ratio"] for r in (first, second))
    assert one > 0.9 > two
    assert len(list((tmp_path / "r/state").glob("*sparseness*"))) == 1


# -- mosaics ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("size", "tiles"), [("H", "whole"), (8, "half"), (9, "half")])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_grid_pointing(size, tiles, layout):
    """Gradient x input shows where a class is bright: the share in its own cell is a ratio of sums over the tiles."""
    pixels = 8 if size == "H" else size
    x = bright(4, pixels)
    asked = Profile("g", samples=4, measures={"grid_pointing": {"mosaics": 3}})
    given = x if layout == "NCHW" else x.transpose(0, 2, 3, 1).copy()
    report = graphattr.audit(quadrants(size=size, layout=layout), given, ["gradient_x_input"], asked)
    got = found(report, "gradient_x_input", "grid_pointing")
    assert got["skipped"] is None
    assert got["settings"] == {"mosaics": 3, "tiles": tiles}
    sums = x.astype(float).sum((2, 3))  # sample, class
    wanted = [[sums[i, i] / sums[row, i].sum() for i in row] for row in got["details"]["mosaics"]]
    np.testing.assert_allclose(np.reshape(got["details"]["values"], (3, 4)), wanted, rtol=1e-5 if pixels % 2 == 0 else 0.05)
    assert got["details"]["classes"] == got["details"]["mosaics"]
    shown = np.ravel(got["details"]["mosaics"])
    np.testing.assert_allclose(got["values"], [np.ravel(got["details"]["values"])[shown == i].mean() for i in range(4)])
    line = said(report, "gradient_x_input", "grid_pointing")
    assert line["passed"] is True
    assert line["text"].startswith("of four pictures ")


def test_a_flat_gradient_finds_no_picture():
    report = graphattr.audit(quadrants(), bright(8), ["gradient"], Profile("g", samples=8, measures={"grid_pointing": {}}))
    line = said(report, "gradient", "grid_pointing")
    assert line["passed"] is False
    assert line["text"] == "of four pictures 25 % of what speaks for the class of one lies in it, where chance gives 25 %"


def test_mosaics_of_a_fixed_batch():
    asked = Profile("g", samples=6, measures={"grid_pointing": {"mosaics": 2}})
    one, two = (found(graphattr.audit(quadrants(b), bright(6), ["gradient_x_input"], asked), "gradient_x_input", "grid_pointing")
                for b in (3, "N"))
    assert one["metrics"] == pytest.approx(two["metrics"])


def test_what_makes_no_mosaic():
    asked = Profile("g", samples=4, measures={"grid_pointing": {}})
    few = graphattr.audit(quadrants(), bright(3), ["gradient"], asked)
    assert "a mosaic needs samples of 4 classes, and the model predicts 3" in said(few, "gradient", "grid_pointing")["text"]
    table = model([node("MatMul", "x w", "y")], weights={"w": array(4, 3)})
    flat = graphattr.audit(table, array(4, 4), ["gradient"], asked)
    assert "mosaics are made of pictures" in said(flat, "gradient", "grid_pointing")["text"]
    thin = graphattr.audit(quadrants(size=1), bright(4, 1), ["gradient"], asked)
    assert "mosaics are made of pictures" in said(thin, "gradient", "grid_pointing")["text"]
    bad = graphattr.audit(quadrants(), bright(), ["gradient"], Profile("g", measures={"grid_pointing": {"tiles": "all"}}))
    assert "is none of auto, whole, half" in said(bad, "gradient", "grid_pointing")["text"]


def test_tiles():
    """Halved pictures keep their mean; a mosaic of an odd size repeats its last row and column."""
    x = array(5, 2, 7, 8)
    half = _halved(x)
    assert half.shape == (5, 2, 3, 4)
    np.testing.assert_allclose(half.mean((2, 3)), x.mean((2, 3)), atol=1e-6)
    np.testing.assert_allclose(_halved(array(1, 1, 4, 6)), array(1, 1, 4, 6).reshape(1, 1, 2, 2, 3, 2).mean((3, 5)), atol=1e-6)
    made = _mosaics(half, np.array([[3, 1, 0, 2]]), (7, 8))
    np.testing.assert_array_equal(made[0, :, :6], np.block([[half[3], half[1]], [half[0], half[2]]]))
    np.testing.assert_array_equal(made[0, :, 6], made[0, :, 5])


def test_the_middle_of_a_layers_map_is_that_of_the_mosaic():
    """Of a 3 x 3 map the middle row and column belong to two cells, the middle to four."""
    m = np.arange(1.0, 10).reshape(1, 1, 3, 3)
    flat = _flat(np.repeat(m, 4, 0), "NCHW", (6, 6))
    want = [1 + 2 / 2 + 4 / 2 + 5 / 4, 3 + 2 / 2 + 6 / 2 + 5 / 4, 7 + 4 / 2 + 8 / 2 + 5 / 4, 9 + 6 / 2 + 8 / 2 + 5 / 4]
    np.testing.assert_allclose(measure.grid_pointing(flat, np.arange(4)).values, np.array(want) / 45)


def test_measures_of_maps():
    m, box = np.zeros((2, 1, 4, 4)), np.zeros((4, 4), bool)
    m[0, 0, 1, 1], m[0, 0, 3, 3], m[0, 0, 0, 0], box[1, 1:3] = 5.0, 3.0, -7.0, True
    np.testing.assert_array_equal(measure.inside_ratio(m, box).values, [5 / 8, np.nan])
    np.testing.assert_array_equal(measure.pointing(m, box).values, [1, np.nan])


def test_frames_are_drawn_around_boxes():
    photo = np.full((10, 12, 3), 9, np.uint8)
    drawn = outlined(photo, [Box(1, 2, 5.2, 7)])
    changed = (drawn != photo).any(2)
    want = np.zeros((10, 12), bool)
    want[2:7, 1:5] = True
    want[3:6, 2:4] = False
    np.testing.assert_array_equal(changed, want)
