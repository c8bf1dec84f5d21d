"""Text coloured by relevance: lines for a terminal, and a page of HTML that needs nothing else."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from rich.text import Text

from graphattr.render.heatmap import AGAINST, FOR, colours, robust_scale

DOT = " \N{MIDDLE DOT} "
PEAK = 0.8  # how far up the ramp the strongest token goes: words stay readable
PALE = 0.08  # of the full colour: below this a token stays as it is


@dataclass(frozen=True)
class Passage:
    """One sample: (what stands before it, piece) per token, its relevance, and what the model said."""

    pieces: Sequence[tuple[str, str]]
    scores: Sequence[float]
    caption: str
    heading: str = ""  # of all passages in a row that share it

    @property
    def scale(self) -> float:
        return robust_scale(self.scores, 100)


def shades(passage: Passage) -> Iterator[tuple[str, str, str]]:
    """(ink, paper, number) of each token as #rrggbb; paper is '' for tokens without a word to say."""
    relative = np.asarray(passage.scores, np.float64) / passage.scale
    for rgb, share, score in zip(colours(PEAK * relative), relative, passage.scores, strict=True):
        dark = float(rgb @ np.array([0.299, 0.587, 0.114])) < 140
        paper = "" if abs(share) < PALE else _hex(rgb)
        yield "#ffffff" if dark else "#191c21", paper, signed(score)


def _hex(rgb: Sequence[int]) -> str:
    return "#" + "".join(f"{int(c):02x}" for c in rgb)


def signed(x: float) -> str:
    return f"{x:+.3g}".replace("-", "\N{MINUS SIGN}") if x else "0"


def coloured(passage: Passage, colour: bool) -> Text:
    """The passage as one line; without colours each token is followed by its relevance."""
    line = Text()
    for (before, piece), (ink, paper, number) in zip(passage.pieces, shades(passage), strict=True):
        line.append(before)
        line.append(piece if colour else f"{piece}({number})", f"{ink} on {paper}" if colour and paper else "")
    return line


STYLE = """
:root { color-scheme: light }
body { font: 17px/1.9 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #191c21; background: #fff; max-width: 60rem;
       margin: 2.5rem auto; padding: 0 1.5rem }
h1 { font-size: 1.35rem; line-height: 1.3; margin: 0 0 .2rem }
h2 { font-size: 1.05rem; margin: 2.2rem 0 0 }
.faint, figcaption { color: #696e76; font-size: .84rem; line-height: 1.5; margin: 0 }
.legend { display: flex; align-items: center; gap: .7rem; margin: 1rem 0 1.6rem; font-size: .84rem; color: #696e76 }
.legend i { width: 16rem; height: .8rem; border-radius: .2rem; border: 1px solid #c8cbd0 }
figure { margin: 1.4rem 0; padding: 0 0 1.1rem; border-bottom: 1px solid #e6e8eb }
figcaption b { color: #191c21; font-weight: 600 }
figure p { margin: .35rem 0 0; overflow-wrap: anywhere }
span { border-radius: .22rem; padding: .1rem .12rem }
""".strip()


def page(passages: Sequence[Passage], title: str, subtitle: str = "") -> str:
    """A whole HTML page: one line per passage, tokens on their colours, the number on hovering; every text is escaped."""
    ramp = ", ".join([*(_hex(c) for c in AGAINST[4::-1]), *(_hex(c) for c in FOR[1:5])])
    body, heading = [], ""
    for passage in passages:
        if passage.heading != heading:
            heading = passage.heading
            body.append(f"<h2>{escape(heading)}</h2>")
        body.append(_figure(passage))
    return "\n".join([
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n.legend i {{ background: linear-gradient(90deg, {ramp}) }}\n</style>",
        f"</head>\n<body>\n<h1>{escape(title)}</h1>",
        *([f'<p class="faint">{escape(subtitle)}</p>'] if subtitle else []),
        '<div class="legend"><span>against</span><i></i><span>for the explained class</span></div>',
        *body,
        "</body>\n</html>\n",
    ])


def _figure(passage: Passage) -> str:
    what, _, rest = passage.caption.partition(DOT)
    said = f"<b>{escape(what)}</b>" + escape(f"{DOT}score {rest}" if rest else "")
    note = f"full colour at {passage.scale:.3g}, sum {signed(float(np.sum(passage.scores)))}"
    line = "".join(
        f"{escape(before)}<span{_style(ink, paper)} title=\"{escape(number)}\">{escape(piece)}</span>"
        for (before, piece), (ink, paper, number) in zip(passage.pieces, shades(passage), strict=True)
    )
    return f'<figure>\n<figcaption>{said}{DOT}{note}</figcaption>\n<p dir="auto">{line}</p>\n</figure>'


def _style(ink: str, paper: str) -> str:
    return f' style="background:{paper};color:{ink}"' if paper else ""
