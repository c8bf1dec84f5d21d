"""Methods of many passes on models of every make: a host loop over the single pass of the same model is the reference."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")
import graphattr
from tests.rules import walks
from tests.unit import test_bodies as bodies
from tests.unit import test_recurrent as recurrent
from tests.unit.test_quantised import SORTS
from tests.unit.test_quantised import X as LEVELS

STEPS = 3


def host(model, feeds, base, **params):
    """Integrated gradients by running the explanation of one pass again and again."""
    explainer = graphattr.Explainer(graphattr.convert(model, base, target=1, **params))
    moving = list(explainer(feeds).scores)
    total = dict.fromkeys(moving, 0.0)
    for a, w in zip(*walks.places("gausslegendre", STEPS), strict=True):
        here = explainer({k: np.float32(a) * v if k in moving else v for k, v in feeds.items()}).scores
        total = {k: v + w * here[k].astype(float) for k, v in total.items()}
    return {k: v * feeds[k] for k, v in total.items()}


def compare(model, feeds, base, tolerance=1e-4, lowerings=("cpu", "cuda", "portable"), **params):
    want = host(model, feeds, base, **params)
    for lowering in lowerings:
        made = graphattr.convert(model, "integrated_gradients", target=1, base=base, n_steps=STEPS, lowering=lowering, **params)
        got = graphattr.Explainer(made)(feeds).scores
        assert set(got) == set(want)
        for name, v in want.items():
            limit = tolerance * np.abs(v).max() + 1e-9
            np.testing.assert_allclose(got[name], v, rtol=0, atol=limit, err_msg=f"{lowering} {name}")


@pytest.mark.parametrize("base", ["gradient", "lrp.epsilon", "lrp.zplus"])
@pytest.mark.parametrize("text", [bodies.LOOP, bodies.SCAN], ids=["loop", "scan"])
def test_loops_of_the_models_own(text, base):
    feeds = {"x": bodies.X, "s0": np.abs(bodies.X[0])}
    compare(bodies.parsed(text), feeds, base, output="y", wrt=["x", "s0"])


@pytest.mark.parametrize("base", ["gradient", "lrp.epsilon"])
@pytest.mark.parametrize("steps", [4, "T"])
@pytest.mark.parametrize("op", ["LSTM", "GRU"])
def test_recurrent_nets(op, steps, base):
    model = recurrent.net(op=op, direction="bidirectional", steps=steps)
    compare(model, {"x": recurrent.draw(4, recurrent.N, recurrent.I)}, base, output="Y_h")


@pytest.mark.parametrize("base", ["gradient", "lrp.epsilon_plus"])
@pytest.mark.parametrize(("sort", "opset"), [("qdq per channel", 17), ("qdq per channel", 21), ("qoperator", 17),
                                             ("dynamic per channel", 17)])
def test_quantised_models(sort, opset, base, tmp_path):
    """Levels may round to the neighbour where ONNX Runtime's integer kernels compute."""
    model = SORTS[sort](tmp_path)
    if opset == 21:
        model.opset_import[0].version, model.ir_version = 21, 10
    compare(model, {"x": LEVELS}, base, tolerance=0.1)


def test_bodies_three_deep():
    """Noisy copies of noisy copies of a model that has a Loop itself: three bodies deep."""
    model = bodies.parsed(bodies.LOOP)
    made = graphattr.convert(model, "vargrad", 1, "y", ["x", "s0"], base="smoothgrad", n_samples=2)
    a = graphattr.Explainer(made)({"x": bodies.X, "s0": np.abs(bodies.X[0])})
    assert all(np.isfinite(v).all() and np.abs(v).max() > 0 for v in a.scores.values())
    onnx.checker.check_model(made.model, full_check=True)
