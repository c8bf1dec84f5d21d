"""Numbers become colours: red speaks for the explained class, blue against it, white is zero."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from graphattr.errors import RunError

Pixels = NDArray[np.uint8]
Map = NDArray[np.float64]

# Colours at equal steps of |value| from 0 to 1. Lightness falls evenly, so the maps survive a grey print.
FOR = ((255, 255, 255), (253, 219, 199), (244, 165, 130), (214, 84, 77), (170, 20, 43), (103, 0, 31))
AGAINST = ((255, 255, 255), (209, 229, 240), (146, 197, 222), (67, 147, 195), (33, 102, 172), (5, 48, 97))
ONLY_FOR = ((255, 255, 255), (254, 232, 173), (253, 187, 99), (238, 100, 60), (178, 24, 62), (84, 6, 56))

UNSIGNED = ("gradient", "smoothgrad", "vargrad", "guided_backprop", "guided_grad_cam", "deconvnet", "rectgrad")
"""Methods whose sign says how to change a pixel and not whether it speaks for the class."""


def reduction(method: str) -> str:
    """How a method's channels are usually shown: `max_abs` for the gradient's kin, else `sum`."""
    return "max_abs" if method in UNSIGNED else "sum"


def reduce_channels(a: ArrayLike, how: str = "sum", axis: int = 0) -> Map:
    """(C, H, W) -> (H, W): the `sum` over channels, or the largest magnitude (`max_abs`). (H, W) stays as it is."""
    x = np.asarray(a, np.float64)
    if x.ndim == 2:
        return x
    if x.ndim != 3:
        raise RunError(f"a map has the shape (C, H, W) or (H, W), not {x.shape}")
    if how not in ("sum", "max_abs"):
        raise RunError(f"channels are reduced by 'sum' or 'max_abs', not {how!r}")
    reduced: Map = x.sum(axis) if how == "sum" else np.abs(x).max(axis)
    return reduced


def robust_scale(a2d: ArrayLike, percentile: float = 99.5) -> float:
    """The magnitude that gets the full colour; single outliers above it do not wash out the rest. Never 0."""
    size = np.abs(np.asarray(a2d, np.float64))
    size = size[np.isfinite(size)]
    if not size.size or not size.max() > 0:
        return 1.0
    return float(np.percentile(size, percentile) or size.max())


def is_positive(a2d: ArrayLike, tolerance: float = 1e-3) -> bool:
    """Whether nothing speaks against: rounding below `tolerance` of the largest magnitude does not count."""
    a = np.nan_to_num(np.asarray(a2d, np.float64))
    return bool(a.size) and bool(a.min() >= -tolerance * np.abs(a).max())


def colours(values: ArrayLike, sequential: bool = False) -> Pixels:
    """Values in -1 .. 1 as RGB; beyond is clipped, NaN is grey."""
    v = np.asarray(values, np.float64)
    size = np.abs(np.nan_to_num(v)).clip(0, 1)
    rgb = _ramp(size, ONLY_FOR if sequential else FOR)
    below = v < 0
    rgb[below] = _ramp(size[below], AGAINST)
    rgb[np.isnan(v)] = 128
    return rgb.round().astype(np.uint8)


def _ramp(size: Map, anchors: tuple[tuple[int, int, int], ...]) -> Map:
    places = np.linspace(0, 1, len(anchors))
    return np.stack([np.interp(size, places, [a[c] for a in anchors]) for c in range(3)], -1)


def heatmap(a2d: ArrayLike, percentile: float = 99.5, sequential: bool | None = None, scale: float | None = None) -> Pixels:
    """(H, W) -> uint8 (H, W, 3), symmetric about zero; a map with nothing negative gets yellow to dark red.

    The full colour stands at `scale`, by default the given percentile of the magnitudes.
    """
    a = np.asarray(a2d, np.float64)
    return colours(a / (scale or robust_scale(a, percentile)), is_positive(a) if sequential is None else sequential)


def overlay(photo: Pixels, a2d: ArrayLike, percentile: float = 99.5, sequential: bool | None = None,
            strength: float = 0.95) -> Pixels:
    """The colours of the map laid on a pale grey version of the photo, the stronger the less photo shows through."""
    a = np.asarray(a2d, np.float64)
    if photo.shape[:2] != a.shape:
        raise RunError(f"the photo has the size {photo.shape[:2]}, the map {a.shape}: resize one of them")
    v = (a / robust_scale(a, percentile)).clip(-1, 1)
    grey = photo.astype(np.float64) @ (0.299, 0.587, 0.114)
    paper = np.repeat((140 + grey * 0.43)[..., None], 3, -1)
    alpha = strength * np.abs(np.nan_to_num(v))[..., None] ** 0.5
    # the colour of a weak value is nearly white and would bleach the photo, so the hue is taken from further up the ramp
    hue = colours(np.sign(v) * (0.35 + 0.65 * np.abs(v)), is_positive(a) if sequential is None else sequential)
    mixed: Pixels = (paper * (1 - alpha) + hue * alpha).round().clip(0, 255).astype(np.uint8)
    return mixed
