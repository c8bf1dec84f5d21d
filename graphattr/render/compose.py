"""Pictures for people: one explanation (`panel`), many side by side (`grid`), a table's features (`bars`)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from graphattr.errors import RunError
from graphattr.render.heatmap import (
    AGAINST,
    FOR,
    Pixels,
    colours,
    heatmap,
    is_positive,
    overlay,
    reduce_channels,
    robust_scale,
)
from graphattr.render.text import FAINT, INK, Font, font, height, shorten, width, wrap, write

WHITE, HAIRLINE = (255, 255, 255), (200, 203, 208)
At = tuple[int, int]


@dataclass(frozen=True)
class Row:
    """One line of a grid: the photo, one map (C, H, W) or (H, W) per method, what the model said in one or more lines."""

    photo: Pixels
    maps: Sequence[NDArray[Any]]
    label: str
    detail: str = ""


def panel(photo: Pixels | None, a: ArrayLike, title: str, legend: str = "", how: str = "sum", side: int = 448) -> Image.Image:
    """Input, attribution, both together; title and legend above, colour bar below. `a` is (C, H, W) or (H, W)."""
    a2d = reduce_channels(a, how)
    shown = [("attribution", heatmap(a2d))]
    if photo is not None:
        shown = [("input", photo), *shown, ("attribution on the input", overlay(photo, _as_large_as(photo, a2d)))]
    tile, gap, edge = _tile(a2d.shape if photo is None else photo.shape[:2], side), side // 18, side // 12
    bold, small = font(side // 17, bold=True), font(side // 26)
    wide = max(len(shown) * (tile[0] + gap) - gap, side)
    heading, below_heading = wrap(title, bold, wide), wrap(legend, small, wide) if legend else []
    captions = edge + len(heading) * height(bold) + len(below_heading) * height(small) + gap
    tiles = captions + height(small) + gap // 4
    page = Image.new("RGB", (wide + 2 * edge, tiles + tile[1] + gap + bar_height(small) + edge), WHITE)
    draw = ImageDraw.Draw(page)
    write(draw, (edge, edge), heading, bold)
    write(draw, (edge, edge + len(heading) * height(bold)), below_heading, small, FAINT)
    for i, (name, pixels) in enumerate(shown):
        x = edge + i * (tile[0] + gap)
        write(draw, (x, captions), [shorten(name, small, tile[0])], small)
        _paste(page, pixels, (x, tiles), tile)
    bar_x = edge + (tile[0] + gap) * (len(shown) // 2)
    colour_bar(page, (bar_x, tiles + tile[1] + gap), max(tile[0], side // 2), small, is_positive(a2d), robust_scale(a2d),
               "strong" if how == "max_abs" else "for")
    return page


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures below one another."""
    page = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), WHITE)
    top = 0
    for p in pictures:
        page.paste(p, (0, top))
        top += p.height
    return page


def grid(rows: Sequence[Row], columns: Sequence[str], title: str = "", note: str = "", side: int = 336) -> Image.Image:
    """Photos below one another, input and methods side by side; every map has its own scale."""
    if not rows or any(not len(r.maps) or len(r.maps) != len(columns) - 1 for r in rows):
        raise RunError(f"a grid needs one column name for the input and one per map: {len(columns)} names, "
                       f"{[len(r.maps) for r in rows]} maps")
    tile = _tile(rows[0].photo.shape[:2], side)
    edge, gap, left = side // 7, side // 24, round(side * 0.56)
    large, bold, small = font(side // 12, bold=True), font(side // 17, bold=True), font(side // 21)
    wide = left + len(columns) * (tile[0] + gap) - gap
    heading, heads = wrap(title, large, wide) if title else [], [wrap(c, bold, tile[0]) for c in columns]
    first = edge + len(heading) * height(large) + max(map(len, heads)) * height(bold) + 2 * gap
    last = first + len(rows) * (tile[1] + gap)
    page = Image.new("RGB", (wide + 2 * edge, last + gap + bar_height(small) + edge), WHITE)
    draw = ImageDraw.Draw(page)
    write(draw, (edge, edge - gap // 2), heading, large)
    for i, lines in enumerate(heads):       # short heads move down, so that all stand on their tiles
        x, y = edge + left + i * (tile[0] + gap), first - gap // 2 - len(lines) * height(bold)
        write(draw, (x + tile[0] // 2, y), lines, bold, align="centre")
    for r, row in enumerate(rows):
        y = first + r * (tile[1] + gap)
        _say(draw, (edge, y + tile[1] // 2), left - 2 * gap, row, bold, small)
        for i, pixels in enumerate([row.photo, *(heatmap(reduce_channels(m)) for m in row.maps)]):
            _paste(page, pixels, (edge + left + i * (tile[0] + gap), y), tile)
    _grid_legend(page, (edge + left, last + gap), tile[0], gap, rows, small)
    write(draw, (edge + wide, last + gap), wrap(note, small, wide // 2) if note else [], small, FAINT, "right")
    return page


def _say(draw: ImageDraw.ImageDraw, middle: At, limit: int, row: Row, bold: Font, small: Font) -> None:
    label, detail = wrap(row.label, bold, limit), [w for line in row.detail.splitlines() for w in wrap(line, small, limit)]
    y = middle[1] - (len(label) * height(bold) + len(detail) * height(small)) // 2
    write(draw, (middle[0], y), label, bold)
    write(draw, (middle[0], y + len(label) * height(bold) + 2), detail, small, FAINT)


def _grid_legend(page: Image.Image, at: At, wide: int, gap: int, rows: Sequence[Row], of: Font) -> None:
    """One bar per kind of map that the grid shows."""
    kinds = {is_positive(reduce_channels(m)) for row in rows for m in row.maps}
    for i, sequential in enumerate(sorted(kinds)):
        colour_bar(page, (at[0] + i * (wide + gap), at[1]), wide, of, sequential, most="strong" if sequential else "for")


def bars(names: Sequence[str], values: ArrayLike, title: str = "", legend: str = "", most: int = 20,
         wide: int = 960) -> Image.Image:
    """The features with the largest magnitudes as horizontal bars about zero, largest on top."""
    v = np.asarray(values, np.float64).ravel()
    if not v.size or len(names) != v.size:
        raise RunError(f"{len(names)} names for {v.size} values")
    order = np.argsort(-np.abs(np.nan_to_num(v)), kind="stable")[:most]
    bold, small, edge, line = font(26, bold=True), font(18), 36, 34
    inner = wide - 2 * edge
    heading, below_heading = wrap(title, bold, inner) if title else [], wrap(legend, small, inner) if legend else []
    top = edge + len(heading) * height(bold) + len(below_heading) * height(small) + (18 if heading or below_heading else 0)
    left_out = [f"{v.size - len(order)} weaker ones not shown"] if len(order) < v.size else []
    page = Image.new("RGB", (wide, top + len(order) * line + len(left_out) * height(small) + edge), WHITE)
    draw = ImageDraw.Draw(page)
    write(draw, (edge, edge - 8), heading, bold)
    write(draw, (edge, edge - 8 + len(heading) * height(bold)), below_heading, small, FAINT)
    shown = [(shorten(str(names[i]), small, wide // 3), float(v[i])) for i in order]
    _bars(draw, shown, (edge, top, wide - edge, line), small)
    write(draw, (edge, top + len(order) * line + 6), left_out, small, FAINT)
    return page


def _bars(draw: ImageDraw.ImageDraw, shown: list[tuple[str, float]], box: tuple[int, int, int, int], of: Font) -> None:
    left, top, right, line = box
    room = max(width(f"{x:+.3g}", of) for _, x in shown) + 12
    start = left + max(width(name, of) for name, _ in shown) + 18
    lengths = [x if np.isfinite(x) else 0.0 for _, x in shown]      # NaN and infinity are named, not drawn
    low, high = min(0.0, *lengths), max(0.0, *lengths)
    room_left, room_right = (room if low < 0 else 0), (room if any(not x < 0 for _, x in shown) else 0)
    step = (right - start - room_left - room_right) / ((high - low) or 1.0)
    zero = start + room_left - low * step
    for i, (name, x) in enumerate(shown):
        y, end = top + i * line, round(zero + lengths[i] * step)
        write(draw, (left, y + 6), [name], of)
        if lengths[i]:
            draw.rectangle((min(zero, end), y + 5, max(zero, end), y + line - 6), fill=FOR[3] if x > 0 else AGAINST[3])
        write(draw, (end + (-8 if x < 0 else 8), y + 6), [_number(x)], of, FAINT, "right" if x < 0 else "left")
    draw.line((round(zero), top, round(zero), top + len(shown) * line), fill=INK)


def _number(x: float) -> str:
    return f"{x:+.3g}".replace("-", "\N{MINUS SIGN}") if x else "0"


def colour_bar(page: Image.Image, at: At, wide: int, of: Font, sequential: bool = False, scale: float | None = None,
               most: str = "for", peak: float = 1.0) -> None:
    """The ramp, up to `peak` of it, with its two ends in words, and in numbers where one scale holds for the whole picture."""
    thick = round(height(of) * 0.7)
    values = np.linspace(0 if sequential else -1, 1, wide)
    ramp = np.repeat(colours(peak * values, sequential)[None], thick, 0)
    _paste(page, ramp, at, (wide, thick))
    draw, y = ImageDraw.Draw(page), at[1] + thick + height(of) // 4
    low = "0" if sequential else "against" if scale is None else f"against {_number(-scale)}"
    high = most if scale is None else f"{most} {_number(scale)}"
    write(draw, (at[0], y), [low], of, FAINT)
    write(draw, (at[0] + wide, y), [high], of, FAINT, "right")
    if not sequential:
        write(draw, (at[0] + wide // 2, y), ["0"], of, FAINT, "centre")


def bar_height(of: Font) -> int:
    return round(height(of) * 0.7) + height(of) // 4 + height(of)


def _tile(shape: Sequence[int], side: int) -> At:
    """(width, height) with the longer one = side."""
    tall, wide = shape
    return max(1, round(side * wide / max(tall, wide))), max(1, round(side * tall / max(tall, wide)))


def _as_large_as(photo: Pixels, a2d: NDArray[Any]) -> NDArray[Any]:
    if photo.shape[:2] == a2d.shape:
        return a2d
    soft = Image.fromarray(np.nan_to_num(a2d).astype(np.float32))
    return np.asarray(soft.resize((photo.shape[1], photo.shape[0]), Image.Resampling.BILINEAR), np.float64)


def _paste(page: Image.Image, pixels: Pixels, at: At, tile: At) -> None:
    page.paste(_resized(pixels, tile), at)
    frame = (at[0] - 1, at[1] - 1, at[0] + tile[0], at[1] + tile[1])
    ImageDraw.Draw(page).rectangle(frame, outline=HAIRLINE)


def _resized(pixels: Pixels, size: At) -> Image.Image:
    """Smooth for photos; tiny maps keep their square pixels."""
    picture = Image.fromarray(pixels)
    if picture.size == size:
        return picture
    tiny = max(picture.size) <= 64 and size[0] >= picture.width
    return picture.resize(size, Image.Resampling.NEAREST if tiny else Image.Resampling.LANCZOS)
