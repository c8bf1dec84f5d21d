"""Words on pictures: fonts that every installation has, wrapped and fitted to a width."""

import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageDraw, ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
INK, FAINT = (25, 28, 33), (105, 110, 118)


@cache
def font(size: int, bold: bool = False) -> Font:
    """DejaVu Sans from the installed matplotlib, or Pillow's own font; nothing is looked up on the system."""
    spec = find_spec("matplotlib")      # finds the folder without importing it
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" if spec and spec.origin else Path()
    file = folder / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")
    return ImageFont.truetype(str(file), size) if file.is_file() else ImageFont.load_default(size)


def width(text: str, of: Font) -> int:
    return round(of.getlength(text))


def wrap(text: str, of: Font, limit: int) -> list[str]:
    """Lines no wider than limit, broken after spaces, dots and underscores, inside a word only where nothing else helps."""
    lines = [""]
    for piece in re.findall(r"(?:[^\s._/]|\.(?=\d))*[\s._/]*", text):
        if lines[-1] and width((lines[-1] + piece).rstrip(), of) > limit:
            lines.append("")
        for letter in piece:
            if lines[-1] and width((lines[-1] + letter).rstrip(), of) > limit:
                lines.append("")
            lines[-1] += letter
    return [line.strip() for line in lines if line.strip()] or [""]


def shorten(text: str, of: Font, limit: int) -> str:
    """The text, or its beginning and an ellipsis where it is wider than limit."""
    if width(text, of) <= limit:
        return text
    while text and width(text + "\N{HORIZONTAL ELLIPSIS}", of) > limit:
        text = text[:-1]
    return text.rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def height(of: Font) -> int:
    """From one line to the next."""
    return round(getattr(of, "size", 12) * 1.35)


def write(draw: ImageDraw.ImageDraw, at: tuple[float, float], lines: list[str], of: Font, ink: tuple[int, int, int] = INK,
          align: str = "left") -> None:
    """Lines below one another from the top `at`; `align` says which end of a line stands there."""
    anchor = {"left": "la", "centre": "ma", "right": "ra"}[align]
    for i, line in enumerate(lines):
        draw.text((at[0], at[1] + i * height(of)), line, ink, of, anchor=anchor)
