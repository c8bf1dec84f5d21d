"""Networks trained in NumPy: derivatives, the file that is written, and that training learns."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")
import onnxruntime

from models import train
from models.numpy_nets import channels_first, forward, gradients, network, predict, pull, slope, to_onnx
from models.numpy_nets import train as adam

NETS = {
    "mlp": ("dense 7 relu dense 4", (6,)),
    "cnn": ("conv 3 relu conv 4 relu pool conv 5 relu pool flatten dense 6 relu dense 3", (8, 4, 2)),
    "one_logit": ("dense 5 relu dense 1", (2,)),
}


@pytest.fixture(params=NETS)
def net(request):
    """(layers in float64, inputs, labels)."""
    text, shape = NETS[request.param]
    random = np.random.default_rng(3)
    layers = [replace(v, w=v.w.astype(np.float64), b=random.normal(0, 0.1, v.b.shape)) for v in network(text, shape)]
    return layers, random.normal(size=(10, *shape)), random.integers(0, max(2, layers[-1].shape[0]), 10)


def loss(layers, x, labels):
    """Mean cross entropy, written out sample by sample."""
    found = []
    for row, label in zip(forward(layers, x)[-1], labels):
        logits = np.array([0, row[0]]) if len(row) == 1 else row
        found.append(np.log(np.exp(logits).sum()) - logits[label])
    return np.mean(found)


def test_gradients_against_central_differences(net):
    layers, x, labels = net
    values = forward(layers, x)
    linear = [layer for layer in reversed(layers) if layer.is_linear]
    random = np.random.default_rng(5)
    for layer, pair in zip(linear, gradients(layers, values, slope(values[-1], labels)), strict=True):
        for weight, found in zip((layer.w, layer.b), pair, strict=True):
            way, at = random.normal(size=weight.shape), weight.copy()
            ends = []
            for step in (1e-6, -1e-6):
                weight[:] = at + step * way
                ends.append(loss(layers, x, labels))
            weight[:] = at
            assert (found * way).sum() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-4, abs=1e-8), layer.name


def test_pull_reaches_the_input(net):
    layers, x, _ = net
    values = forward(layers, x)
    d = np.ones_like(values[-1])
    for layer, before, after in reversed(list(zip(layers, values, values[1:]))):
        d = pull(layer, before, after, d)
    way = np.random.default_rng(7).normal(size=x.shape)
    ends = [forward(layers, x + step * way)[-1].sum() for step in (1e-6, -1e-6)]
    assert (d * way).sum() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)


@pytest.mark.parametrize("name", NETS)
def test_file_computes_the_same(name):
    text, shape = NETS[name]
    layers, random = network(text, shape, seed=1), np.random.default_rng(2)
    for layer in layers:
        layer.b[:] = random.normal(size=layer.b.shape)
    model = to_onnx(layers, shape, name)
    assert model.opset_import[0].version == 17
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for rows in (1, 5):
        x = random.normal(size=(rows, *shape)).astype(np.float32)
        np.testing.assert_allclose(session.run(["logits"], {"x": channels_first(x)})[0], forward(layers, x)[-1], atol=1e-5)


def blobs(shape, classes=3, rows=120):
    """Noise around one seeded pattern per class."""
    random = np.random.default_rng(0)
    middles, labels = 2 * random.normal(size=(classes, *shape)), random.integers(0, classes, rows)
    return (middles[labels] + 0.1 * random.normal(size=(rows, *shape))).astype(np.float32), labels


@pytest.mark.parametrize("name", NETS)
def test_training_learns_and_repeats(name):
    text, shape = NETS[name]
    x, labels = blobs(shape, 2 if name == "one_logit" else 3)
    fresh = network(text, shape)
    first, again = (adam(fresh, x, labels, epochs=20, batch=20, lr=1e-2) for _ in range(2))
    assert np.mean(predict(first, x) == labels) > 0.95
    assert all(np.array_equal(a.w, b.w) and np.array_equal(a.b, b.b) for a, b in zip(first, again, strict=True))
    assert np.array_equal(fresh[0].w, network(text, shape)[0].w), "the untrained layers stay"


def test_layers_have_the_shapes_of_the_papers():
    dense = [layer for layer in train.RECIPES["mnist_mlp"].untrained() if layer.is_linear]
    assert [layer.w.shape for layer in dense] == [(784, 512), (512, 512), (512, 10)]
    cifar = train.RECIPES["csc_cifar"].untrained()
    assert [layer.name for layer in cifar if layer.is_linear] == ["conv1", "conv2", "conv3", "conv4", "fc5", "fc6"]
    assert {layer.name: layer.shape for layer in cifar}["flatten4"] == (8192,)


def test_halfmoon(tmp_path):
    pytest.importorskip("sklearn", reason="the half moons come with scikit-learn")
    said = train.make("halfmoon", tmp_path)
    assert float(re.search(r"([\d.]+)%", said)[1]) > 97
    held = np.load(tmp_path / "halfmoon.npz")
    session = onnxruntime.InferenceSession(str(tmp_path / "halfmoon.onnx"), providers=["CPUExecutionProvider"])
    logits = session.run(None, {"x": held["x"]})[0]
    assert np.mean((logits[:, 0] > 0) == held["labels"]) > 0.97


def test_committed_halfmoon():
    """The file in models/ is the network of the recipe, and small."""
    path = train.Path(train.__file__).parent / "halfmoon.onnx"
    assert path.stat().st_size < 100_000
    weights = [tuple(w.dims) for w in onnx.load(path).graph.initializer]
    assert weights == [(5, 2), (5,), (3, 5), (3,), (1, 3), (1,)]
