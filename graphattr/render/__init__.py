"""Attributions as pictures, curves and coloured text. Only pictures need Pillow, only curves and figures matplotlib."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from graphattr.errors import RunError
from graphattr.render.heatmap import colours, heatmap, overlay, reduce_channels, reduction, robust_scale
from graphattr.render.words import Passage, coloured, page

if TYPE_CHECKING:
    from graphattr.render.compose import Row, bars, grid, panel, stacked
    from graphattr.render.notebook import figure
    from graphattr.render.prose import sentence
    from graphattr.render.save import save_png
    from graphattr.render.signals import curves

__all__ = ["Passage", "Row", "bars", "coloured", "colours", "curves", "figure", "grid", "heatmap", "overlay", "page",
           "panel", "reduce_channels", "reduction", "robust_scale", "save_png", "sentence", "stacked"]

WITH_PILLOW = {**dict.fromkeys(("Row", "bars", "grid", "panel", "stacked"), "compose"), "curves": "signals", "figure": "notebook",
               "sentence": "prose", "save_png": "save"}


def __getattr__(name: str) -> Any:
    if name not in WITH_PILLOW:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f"{__name__}.{WITH_PILLOW[name]}"), name)
    except ModuleNotFoundError as e:
        raise RunError('pictures need Pillow and matplotlib: pip install "graphattr[images]"') from e
