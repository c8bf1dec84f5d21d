"""Attributions as pictures."""

from graphattr.errors import RunError
from graphattr.render.heatmap import colours, heatmap, overlay, reduce_channels, reduction, robust_scale

try:
    from graphattr.render.compose import Row, bars, grid, panel
    from graphattr.render.save import save_png
except ModuleNotFoundError as e:
    raise RunError('pictures need Pillow: pip install "graphattr[images]"') from e

__all__ = ["Row", "bars", "colours", "grid", "heatmap", "overlay", "panel", "reduce_channels", "reduction",
           "robust_scale", "save_png"]
