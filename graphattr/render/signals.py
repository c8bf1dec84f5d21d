"""Signals as curves, the relevance of every moment beneath, on one time axis."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from graphattr.errors import RunError
from graphattr.render.heatmap import AGAINST, FOR, colours, robust_scale
from graphattr.render.text import FAINT, INK

Numbers = NDArray[np.float64]
BAND = (66, 71, 80)
BINS = 1200  # what a picture of this width can show side by side


def curves(signal: ArrayLike, relevance: ArrayLike, title: str = "", legend: str = "", rate: float | None = None,
           start: int = 0, most: int = 6, names: Sequence[str] = ()) -> Image.Image:
    """(C, T) or (T,) each: the channels with the most relevance, each as a curve over its relevance; all on one scale.

    rate: samples per second, the axis is then in seconds; start: which sample is the first one. Where there are more moments
    than columns, a band from the smallest to the largest value is drawn, and relevance is summed within a column.
    """
    x, r = (np.atleast_2d(np.asarray(a, np.float64)) for a in (signal, relevance))
    if x.shape != r.shape or x.ndim != 2 or not x.size:
        raise RunError(f"signal {np.shape(signal)} and relevance {np.shape(relevance)} do not fit: the shape of each is (C, T)")
    shown = np.sort(np.argsort(-np.abs(np.nan_to_num(r)).sum(1), kind="stable")[:most])
    size = -(-x.shape[1] // BINS)
    low, high, summed = _binned(x, size, np.minimum), _binned(x, size, np.maximum), _binned(r, size, np.add)
    edges = start + np.minimum(np.arange(summed.shape[1] + 1) * size, x.shape[1])
    edges = edges / rate if rate else edges - 0.5  # sample k is drawn at k
    scale = robust_scale(summed[shown], 100)
    figure = Figure((11, 1.3 + 2.1 * len(shown)), dpi=120, facecolor="white")
    axes = figure.subplots(2 * len(shown), 1, sharex=True, squeeze=False, height_ratios=[3, 1.6] * len(shown))[:, 0]
    for k, c in enumerate(shown):
        name = names[c] if c < len(names) else f"channel {c}" if len(x) > 1 else ""
        _signal(axes[2 * k], edges, low[c], high[c], summed[c] / scale, name)
        _relevance(axes[2 * k + 1], edges, summed[c], scale)
    axes[-1].set_xlabel("seconds" if rate else "sample", color=_colour(FAINT))
    axes[-1].set_xlim(edges[0], edges[-1])
    notes = [legend] * bool(legend) + [f"{len(shown)} of {len(x)} channels"] * (len(shown) < len(x))
    notes += [f"relevance summed over {size} samples"] * (size > 1)
    _headings(figure, title, " \N{MIDDLE DOT} ".join(notes))
    return _picture(figure)


def _binned(a: Numbers, size: int, how: np.ufunc) -> Numbers:
    return how.reduceat(a, np.arange(0, a.shape[1], size), axis=1) if size > 1 else a


def _signal(axis: Any, edges: Numbers, low: Numbers, high: Numbers, relative: Numbers, name: str) -> None:
    """The curve, on a pale version of the colours beneath it."""
    middle = (edges[:-1] + edges[1:]) / 2
    span = float(np.nanmax(high) - np.nanmin(low)) or 1.0
    bottom, top = float(np.nanmin(low)) - 0.08 * span, float(np.nanmax(high)) + 0.08 * span
    box = (edges[0], edges[-1], bottom, top)
    axis.imshow(colours(0.55 * relative)[None], extent=box, aspect="auto", alpha=0.5, interpolation="nearest")
    if low is high:
        axis.plot(middle, low, color=_colour(INK), linewidth=1.1, marker="o" if len(low) == 1 else None)
    else:
        axis.fill_between(middle, low, high, color=_colour(BAND), linewidth=0.4)
    axis.set_ylim(bottom, top)
    _plain(axis, name)


def _relevance(axis: Any, edges: Numbers, r: Numbers, scale: float) -> None:
    for part, colour in ((r.clip(0, None), FOR[3]), (r.clip(None, 0), AGAINST[3])):
        axis.stairs(part, edges, fill=True, color=_colour(colour))
    axis.axhline(0, color=_colour(FAINT), linewidth=0.7)
    axis.set_ylim(-1.1 * scale * (r.min() < 0), 1.1 * scale * (r.max() > 0 or r.min() >= 0))
    _plain(axis, "relevance")


def _plain(axis: Any, name: str) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(_colour((200, 203, 208)))
    axis.tick_params(colors=_colour(FAINT), labelsize=8, length=3)
    axis.locator_params(axis="y", nbins=3)
    axis.set_ylabel(name, color=_colour(INK), fontsize=9)


def _headings(figure: Any, title: str, below: str) -> None:
    inch = 1 / figure.get_size_inches()[1]
    figure.text(0.085, 1 - 0.38 * inch, title, fontsize=14, fontweight="bold", color=_colour(INK), va="center")
    figure.text(0.085, 1 - 0.68 * inch, below, fontsize=9.5, color=_colour(FAINT), va="center")
    figure.subplots_adjust(left=0.085, right=0.975, top=1 - 0.95 * inch, bottom=0.5 * inch, hspace=0.28)
    figure.align_ylabels()


def _colour(rgb: tuple[int, int, int]) -> tuple[float, float, float]:
    return rgb[0] / 255, rgb[1] / 255, rgb[2] / 255


def _picture(figure: Any) -> Image.Image:
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
