"""From input files to result files: arrays (.npz), pictures (.png) and coloured texts (.html) per input, or arrays of all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .dataset import Work
from .errors import RunError
from .export import Explanation
from .preprocess import Say, print_nothing


def explain_files(
    explanation: Explanation,
    files: Sequence[str],
    out: Path,
    preprocess: str | None = None,
    provider: Any = "cpu",
    top: int = 5,
    labels: str | None = None,
    target: str = "argmax",
    say: Say = print_nothing,
    tokenizer: str | None = None,
    text: bool = False,
) -> Iterator[dict[str, Any]]:
    """Explain each file; yields one report (input, target, top classes, written files) after the other.

    tokenizer: a file that says which words the ids of a token model stand for. text: `files` are texts, one sample each.
    """
    work = Work(explanation, list(files), out, preprocess, provider, target, names=class_names(labels), tokenizer=tokenizer,
                text=text, top=top, say=say)
    yield from work.reports()


def class_names(path: str | None) -> list[str]:
    """The lines of a file of class names; RunError where it cannot be read."""
    if path is None:
        return []
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise RunError(f"cannot read the class names in {path}: {e}") from e
