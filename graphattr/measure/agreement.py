"""Do two attributions say the same? Rank correlation, and how many of the strongest features they share."""

from __future__ import annotations

import numpy as np

from ..graph import Array
from .result import Measure


def spearman(a: Array, b: Array) -> Measure:
    """Pearson's correlation of the ranks, per sample; equal values share their mean rank. NaN for a constant map."""
    ranks = [np.stack([_ranks(row) for row in np.asarray(m, np.float64).reshape(len(m), -1)]) for m in (a, b)]
    p, q = (r - r.mean(1, keepdims=True) for r in ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Measure("spearman", (p * q).sum(1) / np.sqrt((p * p).sum(1) * (q * q).sum(1)), "median")


def _ranks(row: Array) -> Array:
    _, inverse, counts = np.unique(row, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)])


def top_overlap(a: Array, b: Array, share: float = 0.1) -> Measure:
    """|top(a) & top(b)| / k per sample: top: the k = share of all features with the largest magnitudes."""
    flat = [np.abs(np.asarray(m, np.float64)).reshape(len(m), -1) for m in (a, b)]
    k = max(1, round(share * flat[0].shape[1]))
    tops = [np.argsort(-m, axis=1, kind="stable")[:, :k] for m in flat]
    found = np.array([len(np.intersect1d(p, q)) / k for p, q in zip(*tops, strict=True)])
    return Measure("top_overlap", found, "median", {}, {"share": share, "features": k})
