"""Golden vectors of the methods that learn from data first: fit, convert, run."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest

import graphattr
from tests.golden.test_vectors import TABLE, VECTORS, check

pytest.importorskip("onnxruntime")
from tests.rules import engine

LEARNED = {m["name"] for m in graphattr.methods() if m["fit"] is not None}


def sample():
    """Every model of each vector, as it is; one of them also as torch or a softmax at the end would have it."""
    for vector, entry in TABLE.items():
        if entry["method"] in LEARNED:
            models = sorted(f.name.split("__")[0] for f in VECTORS.glob(f"*__{vector}.npz"))
            yield from ((m, m, vector) for m in models)
            yield from ((f"{m}_{end}", m, vector) for m in models[:1] for end in ("torch", "softmax")
                        if (VECTORS / f"{m}_{end}.onnx").exists())


@pytest.mark.parametrize(("variant", "model", "vector"), list(sample()))
def test_fitted_vector(variant, model, vector):
    z, entry = np.load(VECTORS / f"{model}__{vector}.npz"), TABLE[vector]
    target = json.loads(str(z["params"]) or "{}").get("target_class")
    path, chosen = str(VECTORS / f"{variant}.onnx"), {} if target is None else {"target": int(target)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", graphattr.FitWarning)
        fitted = graphattr.fit(path, {"x": z["data"]}, entry["method"], **entry["fit"], **chosen)
    explainer = engine.session(path, entry["method"], fitted=fitted, **entry.get("params", {}), **chosen)
    check(engine.run(explainer, z["x"], target=z["target"].astype(np.int64))["x"], z["attribution"], z)
    for key in (k for k in z.files if k.startswith("aux_pattern::") and variant == model):
        found = fitted[key.split("::")[1]]["pattern"]
        np.testing.assert_allclose(found, z[key], rtol=0, atol=3e-5 * np.abs(z[key]).max())
