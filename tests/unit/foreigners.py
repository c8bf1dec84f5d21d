"""What the tests of foreign operators share: the original node and what it becomes, run side by side, and slopes of both."""

from __future__ import annotations

import numpy as np

import graphattr
from graphattr.foreign import standardise
from tests.unit.test_foreign import close, model, ms, outcome, same, x

__all__ = ["close", "conserved", "model", "ms", "outcome", "replica", "same", "slope", "stays", "symbolic", "x"]


def slope(m, feeds, name="x", h=1e-2, tolerance=2e-3, runs=None):
    """The gradient along a random direction, by the explanation graph of m and by central differences of m itself (or `runs`)."""
    rng = np.random.default_rng(5)
    y = outcome(runs or m, feeds)[0]
    seed, direction = (rng.normal(size=a.shape).astype(np.float32) for a in (y, feeds[name]))
    made = graphattr.convert(m, method="gradient", target="seed", wrt=[name], strip=False).model
    found = dict(zip((v.name for v in made.graph.output), outcome(made, {**feeds, "seed": seed}), strict=True))
    by_graph = np.sum(found[f"{name}_attribution"].astype(float) * direction)
    ahead, behind = (outcome(runs or m, {**feeds, name: feeds[name] + s * h * direction})[0] for s in (1, -1))
    by_steps = np.sum(seed * (ahead.astype(float) - behind)) / (2 * h)
    size = np.sqrt(np.sum(found[f"{name}_attribution"].astype(float) ** 2) * np.sum(direction.astype(float) ** 2))
    assert size > 0
    assert abs(by_graph - by_steps) <= tolerance * size, (by_graph, by_steps, size)


def replica(m, feeds, want, rtol=4e-6, opset=None):
    """The rewritten model gives what a replica says, where ONNX Runtime has no kernel of the original's."""
    new = standardise(m)
    assert not [n.op_type for n in new.graph.node if n.domain]
    got = outcome(new, feeds)
    for a, b in zip(want, got, strict=True):
        close(np.asarray(a), b, rtol)
    return new


def stays(m):
    assert standardise(m) is m


def conserved(m, feeds, tolerance=1e-4):
    """CP-LRP sends all relevance of y to the inputs; AttnLRP gives finite numbers."""
    y = outcome(m, feeds)[0]
    for method in ("lrp.attention", "lrp.attention_cp"):
        made = graphattr.convert(m, method=method, target="seed", output="y").model
        found = dict(zip((v.name for v in made.graph.output), outcome(made, {**feeds, "seed": y}), strict=True))
        parts = [v.astype(float) for k, v in found.items() if k.endswith("attribution")]
        assert all(np.isfinite(v).all() for v in parts)
    assert abs(sum(v.sum() for v in parts) - y.sum()) <= tolerance * np.abs(y).sum()


def symbolic(m, /, **names):
    """The model with names for axes of its inputs; "" leaves an axis as it is."""
    for v in m.graph.input:
        for d, name in zip(v.type.tensor_type.shape.dim, names.get(v.name, ()), strict=False):
            if name:
                d.dim_param = name
    return m
