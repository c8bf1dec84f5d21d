"""Texts in, words with their relevance out: what token models read and what their explanations say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from .errors import RunError
from .graph import Array
from .infer import read_type
from .preprocess import InputItem
from .render import Passage, coloured
from .vocabulary import Vocabulary, spelled

MOST_TEXTS = 20  # on the terminal; the page has all of them
DOT = " \N{MIDDLE DOT} "
OTHERS = {"mask": "mask", "type": "types", "segment": "types", "position": "positions"}  # part of an input's name: what it holds


def role(name: str) -> str:
    """What an integer input of a token model holds, by its name: "mask", "types", "positions", else "ids"."""
    return next((role for part, role in OTHERS.items() if part in name.lower()), "ids")


def read_texts(path: Path) -> list[str]:
    """The lines of a text file that are not empty, one sample each."""
    try:
        lines = [line.strip() for line in path.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as e:
        raise RunError(f"cannot read {path}: {e}") from e
    if not any(lines):
        raise RunError(f"{path} is empty; each line is one sample")
    return [line for line in lines if line]


def text_item(texts: Sequence[str], name: str, vocabulary: Vocabulary | None, inputs: Mapping[str, Any]) -> InputItem:
    """Texts as the model's inputs (name: type), each by what its name says that it holds."""
    if vocabulary is None:
        raise RunError(f"{name} is text: give the model's tokenizer with --tokenizer tokenizer.json")
    main = [i for i in inputs if role(i) == "ids"]
    if len(main) != 1:
        raise RunError(
            f"a text fills one input of ids, but the model has {len(main)} ({', '.join(inputs)}); give an .npz with all inputs"
        )
    shape = read_type(inputs[main[0]])[1] or ()
    if len(shape) != 2:
        raise RunError(f"a text becomes ids [samples, tokens], but the input {main[0]!r} has {len(shape)} axes")
    made = vocabulary.encode(texts, shape[1] if isinstance(shape[1], int) else None)
    made["positions"] = np.broadcast_to(np.arange(made["ids"].shape[1]), made["ids"].shape).copy()
    return InputItem(made["ids"], None, name, {i: made[role(i)] for i in inputs})


def tokens_of(
    feeds: Mapping[str, Array], ids: str, item: InputItem, vocabulary: Vocabulary | None
) -> list[list[tuple[int, str]]]:
    """(position, word) of each sample's tokens without padding: words of the array `tokens`, of the vocabulary, or ids."""
    held, shape = item.named.get("tokens"), feeds[ids].shape
    if held is not None and held.dtype.kind not in "US":
        held = None
    if held is not None and held.shape != shape:
        raise RunError(f"{item.name}: `tokens` has the shape {held.shape}, {ids!r} has {shape}; give one word for each id")
    mask = next((v for name, v in feeds.items() if role(name) == "mask" and v.shape == shape), np.ones(shape))
    return [
        [(k, _word(row[k], None if held is None else held[i, k], vocabulary)) for k in np.flatnonzero(mask[i]).tolist()]
        for i, row in enumerate(feeds[ids])
    ]


def _word(token: Any, word: Any, vocabulary: Vocabulary | None) -> str:
    if word is not None:
        return str(word)
    return str(int(token)) if vocabulary is None else vocabulary.word(int(token))


def passages(rows: Sequence[Mapping[str, Any]]) -> list[Passage]:
    """What a report lists under `tokens`, ready to be shown; with headings where there are several inputs or methods."""
    headings = [DOT.join((row["input"], row["method"])) for row in rows]
    several = len(set(headings)) > 1
    return [
        Passage(spelled(row["words"]), row["scores"], f"{row['sample']}: {row['caption']}", heading if several else "")
        for row, heading in zip(rows, headings, strict=True)
    ]


def print_passages(rows: Sequence[Mapping[str, Any]]) -> None:
    """Words on the colours of their relevance; where there are no colours a number follows each word."""
    console = Console(highlight=False, markup=False)
    colour = console.is_terminal and not console.no_color
    for passage in passages(rows[:MOST_TEXTS]):
        caption = DOT.join((passage.caption, passage.heading)) if passage.heading else passage.caption
        for line in (Text(f"\n{caption}", "bold" if colour else ""), coloured(passage, colour)):
            console.print(line, soft_wrap=not colour)
    if len(rows) > MOST_TEXTS:
        console.print(f"\n{len(rows) - MOST_TEXTS} more in the .html file")
