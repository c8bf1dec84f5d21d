"""Maps compared with each other, with boxes, and with what they should reconstruct."""

from __future__ import annotations

import numpy as np

from ..graph import Array
from .result import Measure


def normalised(m: Array, low: float = 0.5, high: float = 99.5) -> Array:
    """clip((m - p_low) / (p_high - p_low), 0, 1) with percentiles of the map."""
    a, b = np.percentile(m, [low, high])
    return np.clip((m - a) / (b - a), 0, 1) if b > a else np.zeros_like(m)


def ssim(a: Array, b: Array, data_range: float = 1.0) -> float:
    """Structural similarity of two (H, W) maps: uniform 5x5 windows, unbiased (co)variances, mean over the interior.
    Wang et al. 2004."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    ma, mb, aa, bb, ab = (_windows(m) / 25 for m in (a, b, a * a, b * b, a * b))
    va, vb, cov = (25 / 24 * (m - p * q) for m, p, q in ((aa, ma, ma), (bb, mb, mb), (ab, ma, mb)))
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    found = (2 * ma * mb + c1) * (2 * cov + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
    return float(found.mean())


def _windows(m: Array) -> Array:
    """Sums over 5x5 windows, (H - 4, W - 4)."""
    h, w = (d - 4 for d in m.shape)
    rows = sum(m[k : k + h] for k in range(1, 5)) + m[:h]
    return np.asarray(sum(rows[:, k : k + w] for k in range(1, 5)) + rows[:, :w])


def ssim_flip(a: Array, b: Array, low: float = 0.5, high: float = 99.5) -> Measure:
    """max(SSIM(n(a), n(b)), SSIM(n(a), n(-b))) per sample of (N, C, H, W) or (N, H, W) maps, channels summed. Sixt
    et al. 2020."""
    a, b = (m.sum(1, dtype=np.float64) if m.ndim == 4 else np.asarray(m, np.float64) for m in map(np.asarray, (a, b)))
    pairs = ((normalised(p, low, high), normalised(q, low, high), normalised(-q, low, high)) for p, q in zip(a, b, strict=True))
    return Measure("ssim", np.array([max(ssim(p, q), ssim(p, f)) for p, q, f in pairs]), "median")


def class_sensitivity(a: Array, b: Array, normalize: str = "maxabs") -> Measure:
    """|A(x, c1) - A(x, c2)|_2 per sample, each map over its largest absolute value unless normalize="none". Deng et al. 2021."""
    flat = [np.asarray(m, np.float64).reshape(len(m), -1) for m in (a, b)]
    if normalize == "maxabs":
        flat = [m / np.maximum(np.abs(m).max(1, keepdims=True), 1e-300) for m in flat]
    return Measure("class_sensitivity", np.linalg.norm(flat[0] - flat[1], axis=1), "mean", {}, {"normalize": normalize})


def bounding_box_accuracy(attribution: Array, boxes: Array, largest: float = 0.33) -> Measure:
    """The share of the n most relevant pixels that lie in the box of n pixels; NaN for boxes above `largest` of the image."""
    maps = _pixels(attribution)
    found = np.full(len(maps), np.nan)
    for k, (m, box) in enumerate(zip(maps, np.broadcast_to(boxes, maps.shape).reshape(len(maps), -1), strict=True)):
        n = int(box.sum())
        if 0 < n < largest * box.size:
            found[k] = box[np.argsort(-m.ravel(), kind="stable")[:n]].mean()
    return Measure("bounding_box_accuracy", found, "mean", {}, {"largest": largest})


def inside_ratio(attribution: Array, boxes: Array) -> Measure:
    """The share of the positive attribution that lies in the box; NaN where there is none. Kohlbrenner et al. 2020."""
    maps = np.maximum(_pixels(attribution), 0)
    inside = np.where(np.broadcast_to(boxes, maps.shape), maps, 0).sum((1, 2))
    with np.errstate(invalid="ignore"):
        return Measure("inside_ratio", inside / maps.sum((1, 2)))


def pointing(attribution: Array, boxes: Array) -> Measure:
    """1 where the most relevant pixel (the first of equals) lies in the box, else 0; NaN where all pixels are equal. Zhang et al.
    2018."""
    maps = _pixels(attribution)
    inside = np.broadcast_to(boxes, maps.shape).reshape(len(maps), -1)
    flat = maps.reshape(len(maps), -1)
    hits = inside[np.arange(len(flat)), flat.argmax(1)].astype(np.float64)
    return Measure("pointing", np.where(np.ptp(flat, axis=1) > 0, hits, np.nan))


def grid_pointing(attribution: Array, cells: Array, grid: tuple[int, int] = (2, 2)) -> Measure:
    """The share of the positive attribution in the cell of the mosaic that shows the class; `cells`: its index per sample,
    row by row. Boehle et al. 2021."""
    maps = np.maximum(_pixels(attribution), 0)
    rows, columns = grid
    n, h, w = maps.shape
    kept = maps[:, : h - h % rows, : w - w % columns]
    sums = kept.reshape(n, rows, h // rows, columns, w // columns).sum((2, 4)).reshape(n, -1)
    with np.errstate(invalid="ignore"):
        return Measure("grid_pointing", sums[np.arange(n), np.asarray(cells)] / sums.sum(1))


def sparseness(attribution: Array) -> Measure:
    """The Gini index of |A|: 0 where all features count alike, towards 1 where one counts alone. Chalasani et al. 2020."""
    a = np.sort(np.abs(np.asarray(attribution, np.float64)).reshape(len(attribution), -1), axis=1)
    n = a.shape[1]
    weights = 2 * np.arange(1, n + 1) - n - 1
    with np.errstate(invalid="ignore"):
        return Measure("sparseness", (a * weights).sum(1) / (n * a.sum(1)))


def average_prediction_change(score_x: Array, score_s: Array, classes: Array, positive: bool = False) -> Measure:
    """100 |y(x) - y(s)| / |y(x)| per sample (of what is lost only, where `positive`); `value` is the mean over classes of their
    means. Deng et al. 2021, Eq. 10 and 11."""
    change = np.asarray(score_x, np.float64) - np.asarray(score_s, np.float64)
    found = 100 * (np.maximum(change, 0) if positive else np.abs(change)) / np.abs(score_x)
    classes = np.asarray(classes)
    sizes = {c: int((classes == c).sum()) for c in np.unique(classes)}
    weights = np.array([1 / (sizes[c] * len(sizes)) for c in classes])
    return Measure("apc_positive" if positive else "apc", found * weights * len(found), "mean", {"change": found})


def _pixels(attribution: Array) -> Array:
    a = np.asarray(attribution, np.float64)
    return a.sum(1) if a.ndim == 4 else a
