"""Does an attribution say what the score does? Sensitivity-n, infidelity, max-sensitivity, the completeness gap."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np

from ..graph import Array
from .ranking import prepared
from .result import Measure
from .scoring import Feeds, Scorer


def sensitivity_n(
    scorer: Scorer, feeds: Feeds, attribution: Array, target: Any = None, *, n: int | None = None, subsets: Array | None = None,
    baseline: float = 0.0, random_state: int = 0, name: str | None = None,
) -> Measure:
    """Pearson correlation, over random subsets of n features, of their attribution and the score lost by setting them to
    `baseline`.

    `subsets`: (S, n) flat indices; 100 drawn ones of n features (an eighth of all) where they are not given. Ancona et al. 2018.
    """
    name, x, c = prepared(scorer, feeds, target, name)
    flat = np.asarray(attribution, np.float64).reshape(len(x), -1)
    if subsets is None:
        rng = np.random.Generator(np.random.PCG64(random_state))
        size = n or max(1, flat.shape[1] // 8)
        subsets = np.stack([rng.choice(flat.shape[1], size, replace=False) for _ in range(100)])

    def without(subset: Array) -> Array:
        found = x.reshape(len(x), -1).copy()
        found[:, subset] = baseline
        return found.reshape(x.shape)

    scores = scorer.of_variants(feeds, name, chain([x], map(without, subsets)), c)
    lost, said = scores[0] - scores[1:], flat[:, subsets].sum(2).T
    a, b = said - said.mean(0), lost - lost.mean(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))
    return Measure("sensitivity_n", found, "mean", {}, {"n": int(subsets.shape[1]), "subsets": len(subsets)})


def infidelity(
    scorer: Scorer, feeds: Feeds, attribution: Array, target: Any = None, *,
    perturbations: Array | None = None, samples: int = 100,
    random_state: int = 0, name: str | None = None,
) -> Measure:
    """Mean over perturbations I of (<I, A> - (y_c(x) - y_c(x - I)))^2; I ~ N(0, (0.1 range)^2) unless given. Yeh et al. 2019."""
    name, x, c = prepared(scorer, feeds, target, name)
    if perturbations is None:
        rng = np.random.Generator(np.random.PCG64(random_state))
        width = 0.1 * (float(x.max()) - float(x.min()))
        perturbations = rng.normal(0.0, width, (samples, *x.shape[1:])).astype(x.dtype)
    scores = scorer.of_variants(feeds, name, (x - p for p in [np.zeros(x.shape[1:], x.dtype), *perturbations]), c)
    said = np.einsum("sk,nk->sn", perturbations.reshape(len(perturbations), -1).astype(np.float64),
                     np.asarray(attribution, np.float64).reshape(len(x), -1))
    return Measure("infidelity", ((said - (scores[0] - scores[1:])) ** 2).mean(0), "mean", {}, {"samples": len(perturbations)})


def max_sensitivity(
    explain: Callable[[Array], Array], x: Array, *, perturbations: Array | None = None, radius: float = 0.02, samples: int = 10,
    random_state: int = 0, before: Array | None = None,
) -> Measure:
    """max over |d| <= radius of |A(x + d) - A(x)| / |A(x)|; `explain` maps inputs to attributions of the same target. `before`:
    A(x), where it is known. Yeh et al. 2019."""
    if perturbations is None:
        rng = np.random.Generator(np.random.PCG64(random_state))
        perturbations = rng.uniform(-radius, radius, (samples, *x.shape[1:])).astype(x.dtype)
    base = np.asarray(explain(x) if before is None else before, np.float64).reshape(len(x), -1)
    size = np.linalg.norm(base, axis=1)
    found = np.max([np.linalg.norm(explain(x + d).reshape(len(x), -1) - base, axis=1) for d in perturbations], axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Measure("max_sensitivity", found / size, "mean", {}, {"samples": len(perturbations)})


def completeness_gap(
    scorer: Scorer, feeds: Feeds, attribution: Array, target: Any = None, *, baseline: Any = 0.0, name: str | None = None
) -> Measure:
    """|sum A - (y_c(x) - y_c(x'))|; `details["relative"]`: the same over |y_c(x) - y_c(x')|."""
    name, x, c = prepared(scorer, feeds, target, name)
    here, there = scorer.of_variants(feeds, name, [x, np.broadcast_to(np.asarray(baseline, x.dtype), x.shape)], c)
    gap = np.abs(np.asarray(attribution, np.float64).reshape(len(x), -1).sum(1) - (here - there))
    with np.errstate(divide="ignore"):
        return Measure("completeness_gap", gap, "median", {"relative": gap / np.abs(here - there)})
