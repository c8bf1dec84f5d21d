"""Words on the colours of their relevance, as a picture."""

from collections.abc import Iterator

from PIL import Image, ImageDraw

from graphattr.render.compose import WHITE, bar_height, colour_bar
from graphattr.render.text import FAINT, Font, font, height, shorten, width, wrap, write
from graphattr.render.words import PEAK, Passage, shades

Piece = tuple[float, str, str, str]  # where it begins, itself, its ink, its paper


def sentence(passage: Passage, title: str = "", legend: str = "", wide: int = 960) -> Image.Image:
    """The passage as running text, every piece on its colour; one bar says what the colours mean."""
    bold, small, words, edge, pad = font(26, bold=True), font(18), font(22), 36, 4
    inner = wide - 2 * edge
    lines = list(_lines(passage, words, inner, pad))
    heading, below_heading = wrap(title, bold, inner) if title else [], wrap(legend, small, inner) if legend else []
    top = edge + len(heading) * height(bold) + len(below_heading) * height(small) + (18 if heading or below_heading else 0)
    step = round(1.5 * height(words))
    page = Image.new("RGB", (wide, top + len(lines) * step + 18 + bar_height(small) + edge), WHITE)
    draw = ImageDraw.Draw(page)
    write(draw, (edge, edge - 8), heading, bold)
    write(draw, (edge, edge - 8 + len(heading) * height(bold)), below_heading, small, FAINT)
    for k, line in enumerate(lines):
        y = top + k * step
        for x, piece, ink, paper in line:
            if paper:
                box = (edge + x, y, edge + x + width(piece, words) + 2 * pad, y + height(words) + pad)
                draw.rounded_rectangle(box, radius=pad, fill=paper)
            draw.text((edge + x + pad, y + pad), piece, ink, words)
    colour_bar(page, (edge, top + len(lines) * step + 18), inner // 2, small, scale=passage.scale, peak=PEAK)
    return page


def _lines(passage: Passage, of: Font, limit: int, pad: int) -> Iterator[list[Piece]]:
    """Pieces beside one another; a word that does not fit begins a line, one that is longer is broken between its pieces."""
    held = [(before, shorten(piece, of, limit - 2 * pad)) for before, piece in passage.pieces]
    widths = [width(piece, of) + 2 * pad for _, piece in held]
    line: list[Piece] = []
    at = 0
    for k, ((before, piece), (ink, paper, _)) in enumerate(zip(held, shades(passage), strict=True)):
        start = at + (width(" ", of) if before and line else 0)
        end = next((j for j in range(k + 1, len(held)) if held[j][0]), len(held)) if before else k + 1
        word = sum(widths[k:end])
        if line and start + (word if word <= limit else widths[k]) > limit:
            yield line
            line, start = [], 0
        line.append((start, piece, ink, paper))
        at = start + widths[k]
    yield line
