"""Remove what an attribution ranks first, or last, and watch the score: MoRF, LeRF, N-Ord, S-Ord, TPN, TPS.

Sources: Samek et al. 2017 (pixel flipping); Jeon et al. 2022 (DGA: MoRF and LeRF curves); Wang et al. 2020
(ordering, proportionality).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np

from ..graph import Array
from .result import Measure
from .scoring import Feeds, Scorer, softmax


def pixel_flipping(
    scorer: Scorer,
    feeds: Feeds,
    attribution: Array,
    target: Any = None,
    *,
    order: Literal["morf", "lerf"] = "morf",
    granularity: Literal["pixel", "element"] = "pixel",
    steps: int = 100,
    baseline: Any = 0.0,
    normalize: bool = False,
    name: str | None = None,
) -> Measure:
    """Area under softmax(y)_c while the most (least) relevant features become the baseline, j/steps of them at step j.

    Ranks are of the attribution summed over channels ("pixel", axis 1) or of each element; ties go to the lower index.
    `details["curve"]`: (N, steps + 1). Lower is better for "morf", higher for "lerf".
    """
    name, x, c = prepared(scorer, feeds, target, name)
    ranks = _ranks(attribution, granularity, descending=order == "morf")
    counts = [int(np.floor(j / steps * ranks.shape[1] + 0.5)) for j in range(steps + 1)]
    variants = (_where(ranks < k, x, baseline, granularity) for k in counts)
    every = scorer.all_of_variants(feeds, name, variants)
    curve = np.stack([softmax(y)[np.arange(len(c)), c] for y in every], 1)
    if normalize:
        curve = curve / curve[:, :1]
    area = (curve[:, :-1] + curve[:, 1:]).sum(1) / (2 * steps)
    settings = {"granularity": granularity, "steps": steps, "baseline": _said(baseline)}
    return Measure(order, area, "mean", {"curve": curve}, settings)


def ordering(
    scorer: Scorer, feeds: Feeds, attribution: Array, target: Any = None, *, kind: Literal["n", "s"] = "n", steps: int = 20,
    baseline: Any = 0.0, name: str | None = None,
) -> Measure:
    """Area under (y(x_k) - y(x_b)) / (y(x) - y(x_b)). N-Ord: while the positive features leave, most relevant first (lower is
    better); S-Ord: while they join the baseline (higher is better). Wang et al. 2020."""
    name, x, c = prepared(scorer, feeds, target, name)
    ranks, positive = _positive_ranks(attribution)
    base = np.broadcast_to(np.asarray(baseline, x.dtype), x.shape)

    def variants() -> Iterator[Array]:
        yield from (x, base)
        for j in range(steps + 1):
            chosen = (ranks < np.floor(j / steps * positive + 0.5)[:, None]).reshape(x.shape)
            yield np.where(chosen, base, x) if kind == "n" else np.where(chosen, x, base)

    scores = scorer.of_variants(feeds, name, variants(), c)
    curve = ((scores[2:] - scores[1]) / (scores[0] - scores[1])).T
    area = (curve[:, :-1] + curve[:, 1:]).sum(1) / (2 * steps)
    return Measure(f"{kind}_ord", area, "mean", {"curve": curve}, {"steps": steps, "baseline": _said(baseline)})


def proportionality(
    scorer: Scorer, feeds: Feeds, attribution: Array, target: Any = None, *, kind: Literal["n", "s"] = "n", steps: int = 20,
    baseline: Any = 0.0, normalize: bool = True, name: str | None = None,
) -> Measure:
    """TPN, TPS: the mean over shares kappa of |R(top) - R(bottom)|, where top and bottom are the fewest positive
    features, from either
    end of the ranking, that hold kappa of the positive attribution; R is the score lost by removing them (n) or the score of the
    baseline with them (s). 0 is best. Wang et al. 2020, Eq. 2."""
    name, x, c = prepared(scorer, feeds, target, name)
    ranks, positive = _positive_ranks(attribution)
    base = np.broadcast_to(np.asarray(baseline, x.dtype), x.shape)
    flat = attribution.reshape(len(x), -1).astype(np.float64)
    shares = np.arange(steps + 1) / steps

    def chosen(kappa: float, top: bool) -> Array:
        found = np.zeros(flat.shape, bool)
        for n, (row, rank, m) in enumerate(zip(flat, ranks, positive, strict=True)):
            features = np.argsort(rank, kind="stable")[: int(m)]
            features = features if top else features[::-1]
            sums = np.cumsum(row[features])
            wanted = kappa * sums[-1] - 1e-12 * sums[-1] if m else 0.0
            found[n, features[: int(np.searchsorted(np.append(0.0, sums), wanted, "left"))]] = True
        return found.reshape(x.shape)

    def variants() -> Iterator[Array]:
        yield from (x, base)
        for kappa in shares:
            for top in (True, False):
                yield np.where(chosen(kappa, top), base, x) if kind == "n" else np.where(chosen(kappa, top), x, base)

    scores = scorer.of_variants(feeds, name, variants(), c)
    gaps = np.abs(scores[2::2] - scores[3::2]).T
    area = (gaps[:, :-1] + gaps[:, 1:]).sum(1) / (2 * steps)
    if normalize:
        area = area / np.abs(scores[0] - scores[1])
    settings = {"steps": steps, "baseline": _said(baseline), "normalize": normalize}
    return Measure(f"tp{kind}", area, "mean", {"curve": gaps}, settings)


def prepared(scorer: Scorer, feeds: Feeds, target: Any, name: str | None) -> tuple[str, Array, Array]:
    given = scorer.named(feeds)
    name = name or next(k for k, v in given.items() if v.dtype.kind == "f")
    return name, given[name], scorer.target(feeds, target)


def _ranks(attribution: Array, granularity: str, descending: bool) -> Array:
    """Each feature's place in the order of removal, (N, features)."""
    found = np.asarray(attribution, np.float64)
    if granularity == "pixel" and found.ndim > 2:
        found = found.sum(1)
    found = found.reshape(len(found), -1)
    order = np.argsort(-found if descending else found, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(order.shape[1]), order.shape), 1)
    return ranks


def _positive_ranks(attribution: Array) -> tuple[Array, Array]:
    """(places in descending order, number of positive features)."""
    flat = np.asarray(attribution, np.float64).reshape(len(attribution), -1)
    return _ranks(attribution.reshape(flat.shape), "element", True), (flat > 0).sum(1)


def _where(chosen: Array, x: Array, baseline: Any, granularity: str) -> Array:
    pixels = granularity == "pixel" and x.ndim > 2
    shape = (len(x), 1, *x.shape[2:]) if pixels else x.shape
    return np.where(chosen.reshape(shape), np.asarray(baseline, x.dtype), x)


def _said(baseline: Any) -> Any:
    return float(baseline) if np.ndim(baseline) == 0 else f"array {np.shape(baseline)}"
