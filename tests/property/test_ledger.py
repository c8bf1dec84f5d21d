"""What arrives at a layer is what it sends on, and what its bias and its stabiliser keep: for every kind of layer and rule."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
import graphattr
from tests.rules import zoo

NETS = [n for n in zoo.ZOO if n != "faint"]
METHODS = ("lrp.epsilon", "lrp.epsilon_plus_flat", "lrp.gamma", "lrp.alpha2_beta1", "lrp.wsquare", "deep_taylor")


def normalised(written_out):
    """Dense layers, a normalisation over the features with factor and shift, whole or in pieces, dense layers."""
    b = zoo.Build(20, 5, 6)
    h = b.matmul("x", 6, 8)
    scale, shift = b.weight(8, at=1), b.weight(8)
    if written_out:
        d = b.op("Sub", h, b.op("ReduceMean", h, axes=[-1]))
        under = b.op("Add", b.op("ReduceMean", b.op("Mul", d, d), axes=[-1]), b.const(np.float32(1e-5)))
        h = b.op("Add", b.op("Mul", b.op("Div", d, b.op("Sqrt", under)), scale), shift)
    else:
        h = b.op("LayerNormalization", h, scale, shift)
    return b.head(b.relu(h), 40)


def ledger(model, x, target, method):
    """(layers, 4), and the layers' kinds."""
    explanation = graphattr.convert(model, method, target="input", ledger=True)
    a, manifest = graphattr.Explainer(explanation)(x, target), explanation.manifest
    kinds = {e["layer"]: e["kind"] for e in manifest["layers"][method]}
    return a.ledger.astype(float).sum(0), [kinds[name] for name in manifest["ledger"]["layers"][method]]


def balanced(lines, kinds):
    apart = np.abs(lines[:, 0] - lines[:, 1:].sum(1)) / np.abs(lines[:, 0]).max()
    assert apart.max() < 2e-5, {k: float(d) for k, d in zip(kinds, apart) if d > 2e-5}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETS)
def test_every_layer_is_balanced(name, method):
    c = zoo.case(name)
    lines, kinds = ledger(c.model, c.x, c.target, method)
    if lines.any():
        balanced(lines, kinds)


@pytest.mark.parametrize("written_out", [False, True])
def test_the_shift_of_a_normalisation_is_a_bias(written_out):
    x = np.random.default_rng(3).standard_normal((2, 5, 6)).astype(np.float32)
    lines, kinds = ledger(normalised(written_out), x, np.array([0, 3]), "lrp.epsilon")
    balanced(lines, kinds)
    assert abs(lines[kinds.index("norm"), 2]) > 1e-3 * np.abs(lines[:, 0]).max()
