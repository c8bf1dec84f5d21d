"""A picture as a matplotlib figure: for notebooks, which show it, and for all that a figure can be saved as."""

from io import BytesIO

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

DPI = 120


class Picture(Figure):
    """A figure that no state of pyplot knows, and that notebooks show whether or not pyplot was imported."""

    def _repr_png_(self) -> bytes:
        content = BytesIO()
        self.savefig(content, format="png", dpi=self.dpi)
        return content.getvalue()


def figure(image: Image.Image) -> Figure:
    """The picture, pixel for pixel at the figure's own resolution."""
    made = Picture((image.width / DPI, image.height / DPI), dpi=DPI)
    axes = made.add_axes((0, 0, 1, 1))
    axes.imshow(np.asarray(image), aspect="auto", interpolation="antialiased")
    axes.set_axis_off()
    return made
