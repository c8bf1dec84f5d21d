"""Which files are explained, in which order, and under which names their results lie."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import RunError
from ..fit.files import ARRAYS, PICTURES
from ..preprocess import Say, print_nothing
from .folder import SETTINGS


@dataclass(frozen=True)
class Entry:
    """One input. `file`: what the index calls it, once. `result`: where its results lie in the folder, without a suffix."""

    path: str
    file: str
    result: str


def entries_of(inputs: Sequence[str | os.PathLike[str]], out: Path | None = None, say: Say = print_nothing) -> list[Entry]:
    """Files as they are named, and all files below folders, sorted. RunError for a folder without any.

    A file of a folder is called by its path in it, with the folder's name in front where there are several inputs. What is
    hidden is passed over, and `out`, and other folders of results; beside pictures, arrays and tables are.
    """
    paths: list[str] = []
    files: list[str] = []
    results: list[Path] = []
    for given in map(Path, inputs):
        if not given.is_dir():
            paths.append(str(given))
            files.append(str(given))
            results.append(Path(given.name))
            continue
        inside = [f.relative_to(given) for f in files_below(given, out, say)]
        paths += [str(given / f) for f in inside]
        files += [str(f if len(inputs) == 1 else given / f) for f in inside]
        results += [f if len(inputs) == 1 else Path(given.resolve().name) / f for f in inside]
    bare = Counter(f.with_suffix("") for f in results)
    names = unique(str(f.with_suffix("") if bare[f.with_suffix("")] == 1 else f) for f in results)
    return [Entry(*one) for one in zip(paths, unique(files), names, strict=True)]


def files_below(folder: Path, out: Path | None = None, say: Say = print_nothing) -> list[Path]:
    """The pictures of a folder and of all folders in it; where there are none, the arrays and tables."""
    skipped = None if out is None else out.resolve()
    found: list[Path] = []
    for top, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [f for f in folders if not f.startswith(".") and (Path(top) / f).resolve() != skipped
                      and not (Path(top) / f / SETTINGS).exists()]
        found += [Path(top) / n for n in names if not n.startswith(".") and Path(n).suffix.lower() in (*PICTURES, *ARRAYS)]
    pictures = [f for f in found if f.suffix.lower() in PICTURES]
    if not found:
        raise RunError(f"{folder} holds no pictures and no arrays ({', '.join((*PICTURES, *ARRAYS))})")
    if pictures and len(pictures) < len(found):
        say(f"{folder} holds pictures; {len(found) - len(pictures)} other files in it are left out "
            f"({next(f for f in found if f not in pictures).name} ...)")
    return sorted(pictures or found)


def _refuse(error: OSError) -> None:
    raise RunError(f"cannot read {error.filename}: {error.strerror}") from error


def unique(names: Iterable[str]) -> list[str]:
    """The names; one that was there before gets a number behind it."""
    taken: dict[str, int] = {}
    found = []
    for name in names:
        new = name
        while new in taken:
            taken[name] += 1
            new = f"{name}_{taken[name]}"
        taken[new] = 1
        found.append(new)
    return found
