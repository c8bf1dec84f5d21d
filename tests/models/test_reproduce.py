"""The figures of the papers, on networks so small that they are ready in seconds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
from models import reproduce, train
from models.data import split
from models.numpy_nets import predict

SMALL = {
    "mnist_mlp": "dense 12 relu dense 12 relu dense 10",
    "mnist_cnn": "conv 4 relu pool conv 4 relu pool flatten dense 12 relu dense 10",
    "csc_cifar": "conv 8 relu conv 8 relu pool conv 8 relu conv 8 relu pool flatten dense 16 relu dense 10",
}


def patterns(shape):
    """Ten seeded pictures with noise on them, in 0 .. 1."""
    random = np.random.default_rng(0)
    middles, labels = random.random((10, *shape)), np.arange(150) % 10
    return split((middles[labels] * 0.8 + 0.2 * random.random((150, *shape))).astype(np.float32), labels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What models.train writes, of small networks and made-up data."""
    out = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        for name, layers in SMALL.items():
            recipe = train.RECIPES[name]
            small = replace(recipe, layers=layers, data=lambda shape=recipe.shape: patterns(shape), epochs=2, batch=30)
            patch.setitem(train.RECIPES, name, small)
            said = train.make(name, out)
            assert said.startswith(f"{name}: ")
            assert "of 30 test samples, after 2 epochs on 120" in said
        yield out


def test_a_missing_network_says_how_to_make_it(tmp_path):
    with pytest.raises(SystemExit, match=r"python -m models\.train mnist_mlp -o"):
        list(reproduce.pattern(tmp_path))


def test_what_is_held_out(folder):
    x, labels = reproduce.Trained("mnist_cnn", folder).data()
    assert x.shape == (30, 1, 28, 28)
    assert np.bincount(labels).tolist() == [3] * 10
    assert len(reproduce.Trained("mnist_cnn", folder).data("train_")[0]) == 120


def test_random_networks_forget(folder, monkeypatch):
    """Sixt et al. 2020: alpha1 beta0 tends to one direction, the gradient does not."""
    monkeypatch.setattr(reproduce, "CSC", {k: reproduce.CSC[k] for k in ("LRP alpha1 beta0", "gradient")})
    head, *rows = reproduce.csc(folder)
    assert list(head) == ["method", "network", "conv4", "conv2", "conv1", "x", "paper"]
    found = {(row[0], row[1]): row for row in rows}
    assert found["LRP alpha1 beta0", "random"][4].startswith("1 - ")
    assert float(found["gradient", "random"][4]) < 0.8


def test_patterns_forget(folder, monkeypatch):
    """PatternAttribution, learned on noise, comes closer to one direction than the gradient; Excitation Backprop gets there."""
    chosen = ("PatternAttribution", "Excitation Backprop", "gradient")
    monkeypatch.setattr(reproduce, "CSC", {k: reproduce.CSC[k] for k in chosen})
    monkeypatch.setattr(reproduce, "FITTED_ON", 60)
    _, *rows = reproduce.csc(folder)
    at_conv1 = {row[0]: row[4] for row in rows if row[1] == "random"}
    assert at_conv1["Excitation Backprop"].startswith("1 - ")
    pattern, gradient = (1 - float(v[4:]) if v.startswith("1 - ") else float(v) for v in map(at_conv1.get, chosen[::2]))
    assert pattern > gradient + 0.1


def test_random_logit(folder, monkeypatch):
    monkeypatch.setattr(reproduce, "CSC", {k: reproduce.CSC[k] for k in ("LRP alpha1 beta0", "gradient")})
    _, forgets, remembers = reproduce.random_logit(folder)
    assert float(forgets[1]) > float(remembers[1])


def test_mip_in_apc(folder, monkeypatch):
    monkeypatch.setattr(reproduce, "APC", {"mnist_mlp": (1, 5, "10.10 / 2.6")})
    head, row = reproduce.mip_in_apc(folder)
    assert len(row) == len(head)
    assert row[3] == "10.10 / 2.6 %"
    assert row[4].startswith("5 digits per class, moved by up to 1 pixels")
    change, loss = (float(v) for v in row[2].removesuffix(" %").split(" / "))
    assert 0 <= loss <= change < 100


def test_patterns(folder):
    image = pytest.importorskip("PIL.Image")
    head, *rows = reproduce.pattern(folder)
    assert [len(row) for row in rows] == [len(head)] * 7
    assert [row[1] for row in rows] == ["fc1", "fc2", "fc3", "conv1", "conv2", "fc3", "fc4"]
    assert image.open(folder / "pattern.png").size == (10 * 28 * 4, 5 * 28 * 4)


@pytest.mark.parametrize(("value", "text"), [(0.5, "0.500"), (0.99, "1 - 1e-02"), (1 - 3e-7, "1 - 3e-07")])
def test_nines(value, text):
    assert reproduce.nines(value) == text


def test_predictions_need_no_batch():
    layers = train.network("dense 3", (4,))
    x = np.random.default_rng(0).random((7, 4), np.float32)
    assert np.array_equal(predict(layers, x, batch=2), predict(layers, x))
