"""Ids become words, and texts become ids: tokenizer files and word lists.

Which word an id stands for is read from the file itself; only splitting a text needs the package `tokenizers`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import RunError
from .graph import Array

GLUE = "##"  # WordPiece: this piece continues the word before it
BLANKS = ("\u2581", "\u0120")  # SentencePiece, byte-level BPE: this piece begins a word
NEWLINES = ("\u010a", "\n")


@dataclass(frozen=True)
class Vocabulary:
    """The words of a tokenizer by id, and the file they were read from."""

    words: Mapping[int, str]
    path: Path

    def word(self, token: int) -> str:
        """The word of an id; an id that the file does not know is shown as a number."""
        return self.words.get(token, f"[{token}]")

    def encode(self, texts: Sequence[str], length: int | None = None) -> dict[str, Array]:
        """{"ids", "mask", "types"}, int64 [texts, tokens]: padded to the longest, or cut and padded to `length`."""
        made = _encoder(self.path, self.words)
        pad, name = _padding(self.words)
        if length is not None:
            made.enable_truncation(length)
        made.enable_padding(pad_id=pad, pad_token=name, length=length)
        found = made.encode_batch(list(texts))
        read = {"ids": "ids", "mask": "attention_mask", "types": "type_ids"}
        return {key: np.array([getattr(e, attribute) for e in found], np.int64) for key, attribute in read.items()}


def load_vocabulary(path: str | Path) -> Vocabulary:
    """A tokenizer.json, a vocab.json ({word: id}) or a vocab.txt (one word per line, the first has id 0)."""
    path = Path(path)
    try:
        text = path.read_text("utf-8")
        words = dict(_from_json(json.loads(text), path)) if path.suffix == ".json" else dict(enumerate(text.splitlines()))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as e:
        raise RunError(f"cannot read the tokenizer {path}: {e}") from e
    if not words:
        raise RunError(f"the tokenizer {path} holds no words")
    return Vocabulary(words, path)


def _from_json(held: Any, path: Path) -> Iterator[tuple[int, str]]:
    """(id, word) of the `tokenizers` format, or of a flat table."""
    table = held.get("model", held) if isinstance(held, dict) else {}
    table = table.get("vocab", table) if isinstance(table, dict) else {}
    if isinstance(table, list) and all(isinstance(entry, list) and entry for entry in table):  # Unigram: [word, score]
        yield from ((i, str(entry[0])) for i, entry in enumerate(table))
    elif isinstance(table, dict) and table and all(isinstance(i, int) for i in table.values()):
        yield from ((i, word) for word, i in table.items())
    else:
        raise RunError(f"{path} is no tokenizer.json (model.vocab) and no vocab.json ({{word: id}})")
    yield from ((t["id"], t["content"]) for t in held.get("added_tokens", ()) if isinstance(t, dict))


def _encoder(path: Path, words: Mapping[int, str]) -> Any:
    """What splits texts, as the file describes it; a vocab.txt is BERT's, in lower case where no word has a capital."""
    try:
        import tokenizers
    except ModuleNotFoundError as e:
        raise RunError('splitting a text into tokens needs the package tokenizers: pip install "graphattr[text]"') from e
    try:
        if path.suffix == ".json":
            return tokenizers.Tokenizer.from_file(str(path))
        small = not any(word != word.lower() for word in words.values() if not word.startswith("["))
        return tokenizers.implementations.BertWordPieceTokenizer({word: i for i, word in words.items()}, lowercase=small)
    except Exception as e:  # the package raises plain Exception
        raise RunError(f"cannot split texts by {path}: {e}; give a tokenizer.json, or BERT's vocab.txt") from e


def _padding(words: Mapping[int, str]) -> tuple[int, str]:
    known = {word: i for i, word in words.items()}
    return next(((known[name], name) for name in ("[PAD]", "<pad>", "<|endoftext|>") if name in known), (0, words.get(0, "")))


def spelled(words: Sequence[str]) -> list[tuple[str, str]]:
    """(what stands before it, the piece as it is read) of each token: pieces of one word are joined."""
    marks_begin = any(word.startswith(BLANKS) for word in words)
    pieces: list[tuple[str, str]] = []
    for k, word in enumerate(words):
        continues = word.startswith(GLUE) and word != GLUE
        begins = word.startswith(BLANKS) if marks_begin else not continues
        piece = word[1:] if word.startswith(BLANKS) else word[len(GLUE):] if continues else word
        piece = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}" if piece in NEWLINES else piece
        shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in piece)  # a terminal would obey escapes
        pieces.append((" " if begins and k else "", shown))
    return pieces
