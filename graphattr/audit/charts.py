"""Curves as inline SVG, and pixels as data URIs: pictures of a page that needs nothing else."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from ..graph import Array

Place = Callable[[float], float]
INKS = ("#1f5fa8", "#c8402f", "#2f8f4e", "#8a4fb0", "#c98a12", "#0f8f99", "#a03a6b", "#5b6470")
GREY = "#8b9098"
WIDE, TALL, LEFT, RIGHT, TOP, BOTTOM = 640, 280, 52, 36, 14, 28


@dataclass(frozen=True)
class Curve:
    """`ys` over `xs`, with a band where `low` and `high` are given; None leaves a gap. A guide is dashed and grey."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    guide: bool = False


def chart(curves: Sequence[Curve], ticks: Sequence[tuple[float, str]], x_name: str, y_name: str, floor: float | None = 0.0,
          inks: Sequence[str] = INKS) -> str:
    """An SVG with axes and bands, a legend and the name of the x axis in HTML around it. `ticks`: places on the x axis and what
    stands there; every other one is left out on narrow screens."""
    values = [y for c in curves for y in (*c.ys, *c.low, *c.high) if y is not None]
    low = min([*values, *([] if floor is None else [floor])], default=0.0)
    high = max([*values, *([1.0] if floor is not None and max(values, default=1.0) > 0.5 else [])], default=1.0)
    high = high if high > low else low + 1
    left, right = min(x for c in curves for x in c.xs), max(x for c in curves for x in c.xs)

    def at_x(x: float) -> float:
        return LEFT + (WIDE - LEFT - RIGHT) * ((x - left) / (right - left) if right > left else 0.5)

    def at_y(y: float) -> float:
        return TOP + (TALL - TOP - BOTTOM) * (high - y) / (high - low)

    colours = dict(zip([c.name for c in curves if not c.guide], [*inks] * (1 + len(curves) // len(inks))))
    body, keys = [], []
    for k in range(5):
        y = low + (high - low) * k / 4
        body.append(f'<line x1="{LEFT}" x2="{WIDE - RIGHT}" y1="{at_y(y):.1f}" y2="{at_y(y):.1f}" class="rule"/>'
                    f'<text x="{LEFT - 8}" y="{at_y(y) + 4:.1f}" text-anchor="end">{y:.3g}</text>')
    for i, (x, said) in enumerate(ticks):
        more = ' class="more"' if i % 2 else ""
        body.append(f'<text x="{at_x(x):.1f}" y="{TALL - BOTTOM + 20}" text-anchor="middle"{more}>{escape(said)}</text>')
    for c in curves:
        ink = GREY if c.guide else colours[c.name]
        if c.low:
            body.append(_band(c, ink, at_x, at_y, min(0.15, 0.45 / len(curves))))
        body += _line(c, ink, at_x, at_y)
        dash = ' class="dash"' if c.guide else ""
        keys.append(f'<span><i{dash} style="border-color:{ink}"></i>{escape(c.name)}</span>')
    svg = f'<svg viewBox="0 0 {WIDE} {TALL}" role="img" aria-label="{escape(y_name)}">{"".join(body)}</svg>'
    above, below = f'<p class="keys"><b>{escape(y_name)}</b> {" ".join(keys)}</p>', f'<p class="faint under">{escape(x_name)}</p>'
    return f'<div class="chart">{above}{svg}{below}</div>'


def _band(c: Curve, ink: str, at_x: Place, at_y: Place, opacity: float) -> str:
    known = [(x, a, b) for x, a, b in zip(c.xs, c.low, c.high, strict=True) if a is not None and b is not None]
    points = [(x, a) for x, a, _ in known] + [(x, b) for x, _, b in reversed(known)]
    return f'<polygon points="{_points(points, at_x, at_y)}" fill="{ink}" opacity="{opacity:.2f}"/>'


def _line(c: Curve, ink: str, at_x: Place, at_y: Place) -> list[str]:
    known = [(x, y) for x, y in zip(c.xs, c.ys, strict=True) if y is not None]
    dash = ' stroke-dasharray="5 4"' if c.guide else ""
    line = f'<polyline points="{_points(known, at_x, at_y)}" fill="none" stroke="{ink}" stroke-width="2"{dash}/>'
    if c.guide or len(known) > 24:
        return [line]
    dots = [f'<circle cx="{at_x(x):.1f}" cy="{at_y(y):.1f}" r="3" fill="{ink}"/>' for x, y in known]
    return [line, *dots]


def _points(points: Sequence[tuple[float, float]], at_x: Place, at_y: Place) -> str:
    return " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in points)


def png(pixels: Array) -> bytes:
    """uint8 (H, W, 3) as a PNG."""
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b""))
    written = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(written)


def picture(pixels: Array, alt: str) -> str:
    """An <img> that holds its pixels."""
    small = ' class="tiny"' if max(pixels.shape[:2]) <= 128 else ""
    return f'<img{small} alt="{escape(alt, quote=True)}" src="data:image/png;base64,{base64.b64encode(png(pixels)).decode()}">'
