"""A fixed sample of the golden vectors, which another implementation made in float64, through the whole of graphattr."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest

import graphattr

pytest.importorskip("onnxruntime")
from tests.rules import engine

VECTORS = pathlib.Path(__file__).parents[3] / "shared" / "vectors"
MODELS = ("cnn_100", "cnn2_200", "mlp_100", "residual_200", "strided_100", "gated_100")
INSTALLED = {m["name"] for m in graphattr.methods()}
TABLE = json.loads((VECTORS / "methods.json").read_text()) if (VECTORS / "methods.json").exists() else {}


def sample():
    """Two models for each vector, in turn, each as it is and as torch or a softmax at the end would have it."""
    for i, (vector, entry) in enumerate(TABLE.items()):
        held = [m for m in MODELS if (VECTORS / f"{m}__{vector}.npz").exists()]
        if entry["method"] in INSTALLED and "fit" not in entry and held:
            for model in sorted({held[i % len(held)], held[(i + 3) % len(held)]}):
                variants = [v for v in (f"{model}_torch", f"{model}_softmax") if (VECTORS / f"{v}.onnx").exists()]
                variants *= "layer" not in entry.get("params", {})  # its name differs
                yield from ((v, model, vector) for v in (model, *variants))


@pytest.mark.parametrize(("variant", "model", "vector"), list(sample()))
def test_vector(variant, model, vector):
    z, entry = np.load(VECTORS / f"{model}__{vector}.npz"), TABLE[vector]
    x = np.abs(z["x"]) if entry.get("x") == "abs" else z["x"]
    feeds = {name: z[key].astype(np.float32) for name, key in entry.get("feeds", {}).items()}
    explainer = engine.session(str(VECTORS / f"{variant}.onnx"), entry["method"], **entry.get("params", {}))
    found, want = engine.run(explainer, x, target=z["target"].astype(np.int64), **feeds)["x"], z["attribution"]
    check(found, want, z)


def check(found, want, z):
    tolerance = max(3e-5, 2e-6 * float(np.nan_to_num(z["cond"], posinf=0)))
    np.testing.assert_allclose(found, want, rtol=0, atol=tolerance * np.abs(want).max() + 1e-7)


ATTENTION = sorted(f.stem for kind in ("attnlrp", "cplrp") for f in VECTORS.glob(f"transformer_100*__{kind}_*.npz"))


@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name):
    """Token embeddings as the input, and behind a table; relevance of every tensor where it was written down."""
    model, vector = name.split("__")
    z, entry = np.load(VECTORS / f"{name}.npz"), TABLE[vector]
    want = {"x": z["attribution"]} | {k.split("::")[1]: z[k] for k in z.files if k.startswith("aux_R::")}
    want.pop("head", None)
    explainer = engine.session(str(VECTORS / f"{model}.onnx"), entry["method"], list(want), **entry["params"])
    found = engine.run(explainer, z["x"], **{k: z[k].astype(np.int64) for k in ("target", "ids") if k in z.files})
    for tensor in want:
        check(found[tensor], want[tensor], z)


@pytest.mark.skipif(bool(TABLE), reason="the vectors are there")
def test_vectors_are_absent():
    pytest.skip("no golden vectors beside the checkout")
