"""From input files to result files: arrays (.npz), pictures (.png) and coloured texts (.html) per input."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import RunError, WriteError
from .export import Explanation
from .infer import read_type
from .preprocess import Say, preprocess_for, print_nothing, read_input
from .runtime import Explainer
from .sheet import Sheet
from .tabular import TABLES
from .texts import read_texts, text_item
from .view import View
from .vocabulary import load_vocabulary

NO_PICTURES = (".npy", ".npz", *TABLES, ".wav", ".txt")


def explain_files(
    explanation: Explanation,
    files: Sequence[str],
    out: Path,
    preprocess: str | None = None,
    provider: str = "cpu",
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
    explainer = Explainer(explanation, provider)
    names = _labels(labels)
    own = explainer.own
    info = next((i for i in explanation.model.graph.input if i.name in own), None)
    if info is None:
        raise RunError("the model has no input of its own")
    dtype, shape = read_type(info.type)
    vocabulary = None if tokenizer is None else load_vocabulary(tokenizer)
    types = {i.name: i.type for i in explanation.model.graph.input if i.name in own}
    texts, files = (list(files), ["text"]) if text else ([], files)
    pictures = not text and any(Path(f).suffix.lower() not in NO_PICTURES for f in files)
    pre = preprocess_for(preprocess, shape or (), say if pictures else print_nothing)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise WriteError(f"cannot make the folder {out}: {e.strerror}") from e
    for file, label in zip(_progress(files), _result_names(files), strict=True):
        if text or Path(file).suffix.lower() == ".txt":
            item = text_item(texts or read_texts(Path(file)), file, vocabulary, types)
        else:
            item = read_input(file, pre, shape or (), dtype or np.float32, own)
        if item.rate:
            say(f"{file}: {item.rate:g} samples per second, taken as they are: {len(item.array)} x {item.array.shape[1:]}")
        feeds = item.feeds(own)
        a = explainer(feeds, _runtime_target(explainer, target))
        yield Sheet(file, out / label, View(item, feeds, a, pre, names, vocabulary)).report(top)


def _result_names(files: Sequence[str]) -> list[str]:
    """A name for the results of each file: its stem, its name where stems agree, numbered where names do: none is shared."""
    stems = [Path(f).stem for f in files]
    names: list[str] = []
    for file in map(Path, files):
        base = file.stem if stems.count(file.stem) == 1 else file.name
        names.append(next(n for n in (base, *(f"{base}_{i}" for i in range(2, len(files) + 2))) if n not in names))
    return names


def _runtime_target(explainer: Explainer, target: str) -> Any:
    if explainer.manifest["target"] != "input":
        return None
    try:
        return int(target)
    except ValueError as e:
        raise RunError("this explanation takes its target at run time; give --target with a class index") from e


def _labels(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise RunError(f"cannot read the class names in {path}: {e}") from e


def _progress(files: Sequence[str]) -> Iterator[str]:
    """A progress bar on stderr when it is a terminal and there is something to wait for."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(files, "explaining", console=console, disable=len(files) < 2 or not console.is_terminal)
