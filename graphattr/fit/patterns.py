"""Patterns: the direction in which a unit's input varies together with its output. Kindermans et al. 2018.

For a unit with weights w (a row), patches x and outputs z = w x + b, over the places where its mask m is 1:

    cov = sum m x z / n - (sum m x / n) mean(z),    a = cov / (w cov)

mean(z) is that of the same places ("active") or of all ("all"). The sums over x are derivatives of the layer by its weight, with
m and m (z - mu) as cotangents, so any geometry is right. mu is the batch's own mean of z: float32 then loses nothing to
cancellation, and (z - mu) + mu is put together again in float64. A bias drops out of cov.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from onnx import TensorProto

from ..fitted import Learned
from ..graph import Array, Graph, Value
from ..kinds import CONVOLUTIONS
from ..layers import Layer, LayerGraph
from ..units import Units, units_of
from .task import Task, fitter

Kind = Literal["relu", "relu.negative", "linear"]
FEW = 30  # a unit that was active at fewer places than this, or than it has weights, has a pattern of noise
LARGE = 1e4  # a condition number from which float32 values say little
NOISE = 1e-12  # w cov below this share of its terms is rounding: the unit does not vary
DOUBLE = TensorProto.DOUBLE
STATISTICS = ("n", "count", "mean", "rest", "rest of all", "patch", "product")
THROUGH = ("structure", "maxpool")


@fitter("pattern")
def patterns(task: Task, *, kind: Kind = "relu", mean_y: Literal["active", "all"] = "active") -> Learned:
    """a per linear layer, of its weight's shape. kind: the units' mask where a ReLU follows, z > 0, z <= 0 or all places."""
    layers = task.linear
    if not layers:
        return {}
    units = {layer.name: units_of(layer) for layer in layers}
    weights = {layer.name: units[layer.name].rows(task.constant(task.site(layer).w)) for layer in layers}
    outputs: dict[str, Value] = {}
    for layer in layers:
        mask = kind if feeds_relu(task.graph, layer) else "linear"
        for name, v in statistics(task, layer, units[layer.name], mask, mean_y).items():
            outputs[f"{layer.name}/{name}"] = v
    sums = task.sums("patterns", outputs, lambda found: _exact(found, units)).sums
    learned: dict[str, dict[str, Array]] = {}
    for layer in layers:
        own = {k.rpartition("/")[2]: v for k, v in sums.items() if k.rpartition("/")[0] == layer.name}
        a = pattern(own, weights[layer.name], mean_y)
        learned[layer.name] = {"pattern": units[layer.name].back(a).astype(np.float32)}
        _note(task, layer, own, weights[layer.name], a)
    return learned


def feeds_relu(graph: LayerGraph, layer: Layer) -> bool:
    """Whether all readers of a layer's output are rectifiers that let nothing negative pass; moves and max-pooling between count
    as nothing."""
    readers = [reader for reader in graph.layers if layer.y in reader.xs]
    return bool(readers) and all(
        reader.y in graph.nonnegative if reader.kind == "relu" else reader.kind in THROUGH and feeds_relu(graph, reader)
        for reader in readers
    )


# -- in the graph -------------------------------------------------------------------------------------------------
def statistics(task: Task, layer: Layer, units: Units, kind: Kind, mean_y: str) -> dict[str, Value]:
    """The sums of one batch. Over places: n = sum m, mean mu = sum m z / n, rests sum m (z - mu) and sum (z - mu), which are 0
    up to rounding where m is 1; over places and by weight: sum m x, sum m x (z - mu)."""
    g, site = task.g, task.site(layer)
    z = site.z
    x, w, wide = site.x, site.w, layer.op not in CONVOLUTIONS  # of which ONNX Runtime has no kernels in float64
    if wide:
        x, w = g.Cast(x, to=DOUBLE), g.Cast(w, to=DOUBLE)
    others = [a for a in range(z.rank) if a - z.rank not in units.axes]

    def over_places(v: Value) -> Value:
        return g.ReduceSum(v, others, keepdims=0)

    m = mask_of(g, z, kind)

    def chosen(v: Value) -> Value:
        return v if kind == "linear" else m * v

    n = g.ReduceSum(m, others, keepdims=1)
    mu = g.ReduceSum(chosen(z), others, keepdims=1) / g.Max(n, 1.0)
    centred = z - mu
    patch, product = site.weight_vjps([g.Cast(v, to=DOUBLE) if wide else v for v in (m, chosen(centred))], x, w)
    return {
        "n": over_places(m),
        "count": g.Cast(g.Size(z), to=DOUBLE),
        "mean": mu,
        "rest": over_places(chosen(centred)),
        "rest of all": over_places(centred if mean_y == "all" else chosen(centred)),
        "patch": patch,
        "product": product,
    }


def mask_of(g: Graph, z: Value, kind: Kind) -> Value:
    if kind == "linear":
        return g.ConstantOfShape(g.shape(z), value=np.ones(1, z.dtype))
    return g.CastLike(z > 0.0 if kind == "relu" else z <= 0.0, z)


# -- in numpy -----------------------------------------------------------------------------------------------------
def _exact(found: Mapping[str, Array], units: Mapping[str, Units]) -> dict[str, Array]:
    """n, P = sum m x, Q = sum m x z, T = sum m z, Y = sum z, count per unit, from a batch's centred sums, in float64."""
    sums: dict[str, Array] = {}
    for layer, unit in units.items():
        own = {k: found[f"{layer}/{k}"].astype(np.float64) for k in STATISTICS}
        n, rest, rest_of_all, mu = (own[k].reshape(-1) for k in ("n", "rest", "rest of all", "mean"))
        p, c = unit.rows(own["patch"]), unit.rows(own["product"])
        count = own["count"] / len(n)
        made = {"n": n, "P": p, "Q": c + p * mu[:, None], "T": n * mu + rest, "Y": count * mu + rest_of_all, "count": count}
        sums |= {f"{layer}/{k}": v for k, v in made.items()}
    return sums


def pattern(sums: Mapping[str, Array], w: Array, mean_y: str) -> Array:
    """a = cov / (w cov), one row per unit; zeros where a unit was never active or did not vary."""
    n = np.maximum(sums["n"], 1.0)[:, None]
    mean = (sums["T"][:, None] / n) if mean_y == "active" else (sums["Y"] / sums["count"])[:, None]
    cov = sums["Q"] / n - sums["P"] / n * mean
    scale = (np.abs(w) * (np.abs(sums["Q"]) / n + np.abs(sums["P"] / n * mean))).sum(1)
    varies = (w * cov).sum(1)
    good = (sums["n"] > 0) & (np.abs(varies) > NOISE * scale)
    return np.where(good[:, None], cov / np.where(good, varies, 1.0)[:, None], 0.0)


def _note(task: Task, layer: Layer, sums: Mapping[str, Array], w: Array, a: Array) -> None:
    """The condition number |w| |a|, by which errors of the covariance are amplified, and a warning where samples are too few."""
    n, enough = sums["n"], max(FEW, w.shape[1])
    condition = float((np.linalg.norm(w, axis=1) * np.linalg.norm(a, axis=1)).max())
    task.notes[layer.name] = {"condition": condition, "units": len(n), "fewest": int(n.min()), "never": int((n == 0).sum())}
    if condition > LARGE:
        task.warnings.append(
            f"layer {layer.name!r}: condition number {condition:.0e}: what a unit reads varies mostly across its weights, so its "
            "pattern is a small difference of large numbers"
        )
    if (n < enough).any():
        task.warnings.append(
            f"layer {layer.name!r}: {int((n < enough).sum())} of {len(n)} units were active at fewer than {enough} places (the "
            f"fewest: {int(n.min())}), so their patterns rest on too few samples; fit on more data"
        )
