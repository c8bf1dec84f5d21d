"""Does a method look where the object is? Measured with boxes, and on mosaics of the samples themselves."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import measure
from ..errors import MethodError, RunError
from ..graph import Array
from ..measure import Measure, explained
from ..measure.scoring import softmax
from ..runtime import Explainer
from ..street import Order, explanation_of
from .measures import RESAMPLES, Finding, measured
from .subject import Subject, channels_first

GRID = 2
TILES = ("auto", "whole", "half")


@measured("inside_ratio", "bounding_box_accuracy", "pointing")
def localisation(s: Subject, *, classes: str = "auto", largest: float = 0.33) -> Finding:
    """The share of the positive attribution inside the boxes; of the n strongest pixels those in boxes of n pixels (of less than
    `largest` of the picture); whether the strongest pixel lies in one. `classes`: which boxes count, see `Boxes.of_class`."""
    if s.boxes is None:
        raise MethodError("no boxes were given (--boxes takes COCO's .json, or Pascal VOC's .xml)")
    maps = _pictures(s, s.attribution)
    rows, way = s.boxes.of_class(s.target, classes)
    kept = np.flatnonzero([bool(row) for row in rows])
    if not len(kept):
        raise MethodError("the model sees nothing of any box")
    masks = np.stack([s.boxes.mask(rows[i], *maps.shape[2:]) for i in kept])
    found = {
        "inside_ratio": measure.inside_ratio(maps[kept], masks),
        "bounding_box_accuracy": measure.bounding_box_accuracy(maps[kept], masks, largest),
        "pointing": measure.pointing(maps[kept], masks),
    }
    ratio, area = found["inside_ratio"], masks.mean((1, 2))
    values = np.full(len(rows), np.nan)
    values[kept] = ratio.values
    details = {
        "area": float(area.mean()), "gain": Measure("gain", ratio.values - area).interval(resamples=RESAMPLES),
        "pictures": kept, "hits": int(np.nansum(found["pointing"].values)), "values": {k: m.values for k, m in found.items()},
        "outside": s.boxes.outside, "cut": s.boxes.cut, "sha256": s.boxes.sha256,
    }
    settings = {"classes": way, "largest": largest}
    return Finding({k: m.value for k, m in found.items()}, values, ratio.interval(resamples=RESAMPLES), details, settings)


@measured("grid_pointing")
def grid_pointing(s: Subject, *, mosaics: int = 8, tiles: str = "auto") -> Finding:
    """The share of a class's positive attribution in its own cell of a mosaic of 2 x 2 samples of different predicted classes,
    over all cells. Boehle et al. 2021. `tiles`: "whole" where the model takes any height and width, else "half" (means of areas).
    """
    s.needs_no_target("any other class")
    if len(s.samples) > 1:
        raise MethodError("a mosaic is one picture, and the model has several inputs")
    x = np.moveaxis(s.x, -1, 1) if s.layout == "NHWC" else s.x
    if not s.layout or x.ndim != 4 or min(x.shape[2:]) < GRID:
        raise MethodError("mosaics are made of pictures")
    chosen, aims = _chosen(softmax(s.scores), mosaics, np.random.Generator(np.random.PCG64(s.seed)))
    size = next(v.shape for v in s.canonical.graph.inputs if v.name == s.name) or (None,) * 4
    height, width = (size[i] for i in ((1, 2) if s.layout == "NHWC" else (2, 3)))
    whole = tiles == "whole" or (tiles == "auto" and not isinstance(height, int) and not isinstance(width, int))
    if tiles not in TILES:
        raise RunError(f"grid_pointing: tiles = {tiles!r} is none of {', '.join(TILES)}")
    made = _mosaics(x if whole else _halved(x), chosen, None if whole else x.shape[2:])
    each = np.repeat(made, GRID**2, axis=0).astype(s.x.dtype)
    a = _explained(s, np.moveaxis(each, 1, -1) if s.layout == "NHWC" else each, aims.ravel(), size[0])
    found = measure.grid_pointing(_flat(a, s.layout, each.shape[2:]), np.tile(np.arange(GRID**2), len(chosen)), (GRID, GRID))
    shown = chosen.ravel()
    values = np.array([_mean(found.values[shown == i]) for i in range(len(x))])
    details = {"mosaics": chosen, "classes": aims, "values": found.values}
    settings = {"mosaics": len(chosen), "tiles": "whole" if whole else "half"}
    return Finding({"grid_pointing": found.value}, values, found.interval(resamples=RESAMPLES), details, settings)


def _pictures(s: Subject, attribution: Array) -> Array:
    """Maps of pictures, channels first."""
    if not s.layout or attribution.ndim != 4:
        raise MethodError("boxes are of pictures, and its maps are none")
    return channels_first(attribution, s.layout)


def _mean(values: Array) -> float:
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _chosen(probability: Array, mosaics: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """(samples, their predicted classes), each (mosaics, 4): four classes at random, and of each a sample."""
    predicted = probability.argmax(1)
    classes = np.unique(predicted)
    if len(classes) < GRID**2:
        raise MethodError(f"a mosaic needs samples of {GRID**2} classes, and the model predicts {len(classes)}")
    if not mosaics:
        raise RunError("grid_pointing: mosaics = 0 measures nothing")
    drawn = np.stack([rng.choice(classes, GRID**2, replace=False) for _ in range(mosaics)])
    return np.array([[rng.choice(np.flatnonzero(predicted == c)) for c in row] for row in drawn]), drawn


def _mosaics(tiles: Array, chosen: Array, size: Any) -> Array:
    """(mosaics, C, H, W): four tiles row by row; of an odd `size` the last row or column is that before it."""
    n, (c, h, w) = len(chosen), tiles.shape[1:]
    grid = tiles[chosen].reshape(n, GRID, GRID, c, h, w).transpose(0, 3, 1, 4, 2, 5).reshape(n, c, GRID * h, GRID * w)
    rest = (0, 0) if size is None else (size[0] - GRID * h, size[1] - GRID * w)
    return np.pad(grid, ((0, 0), (0, 0), (0, rest[0]), (0, rest[1])), mode="edge")


def _halved(x: Array) -> Array:
    """Pictures of half the height and width, each pixel the mean of the area that it covers."""
    height, width = (_areas(n) for n in x.shape[2:])
    return np.asarray(np.einsum("ih,nchw,jw->ncij", height, x.astype(np.float64), width, optimize=True))


def _areas(n: int) -> Array:
    """(n // 2, n): how much of each of n pixels lies in each of half as many, rows that add up to 1."""
    edges, k = np.linspace(0, n, n // GRID + 1), np.arange(n)
    shared = np.minimum(edges[1:, None], k + 1) - np.maximum(edges[:-1, None], k)
    return np.asarray(np.clip(shared, 0, None) / (n / (n // GRID)))


def _explained(s: Subject, x: Array, aims: Array, batch: Any) -> Array:
    """Attributions of the classes `aims`. A batch has as many pixels as one of samples; one that the model fixes is filled up."""
    order = Order(s.method, "input", s.output, s.wrt, params=s.params, fitted=s.fitted)
    fixed = isinstance(batch, int)
    size = batch if fixed else max(1, s.batch_size * s.x[0].size // x[0].size)
    rows = np.arange(len(x) + (-len(x) % size if fixed else 0)) % len(x)
    explainer = Explainer(explanation_of(s.model, order), s.providers)
    return np.asarray(explained(explainer, {s.name: x[rows]}, aims[rows], size).scores[s.name][: len(x)])


def _flat(maps: Array, layout: str, size: tuple[int, ...]) -> Array:
    """(N, H, W): channels summed; the pixels of a layer's map are doubled, so that its middle is that of the mosaic."""
    flat: Array = channels_first(maps, layout).sum(1, dtype=np.float64)
    return flat if flat.shape[1:] == size else flat.repeat(GRID, 1).repeat(GRID, 2)
