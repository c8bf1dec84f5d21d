"""Classes of samples: arrays, text, or a table of files and their classes; and what a table says of a file."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Generic, TypeVar

import numpy as np

from ..errors import RunError
from ..graph import Array

T = TypeVar("T")
Files = list[tuple[Path, int | None]]


class ByName(Generic[T]):
    """What belongs to a file: the entry of its path in its folder, of its name, or of its whole path; else the only entry
    whose last part is the file's name."""

    def __init__(self, entries: Mapping[str, T]) -> None:
        self.entries = {_posix(k): v for k, v in entries.items()}
        self.last: dict[str, list[str]] = {}
        for k in self.entries:
            self.last.setdefault(PurePosixPath(k).name, []).append(k)

    def of(self, file: Path, roots: Sequence[Any]) -> T | None:
        inside = [file.relative_to(r).as_posix() for r in map(Path, roots) if file.is_relative_to(r)]
        key = next((k for k in (*inside, file.name, file.as_posix()) if k in self.entries), None)
        alike = self.last.get(file.name, [])
        key = alike[0] if key is None and len(alike) == 1 else key
        return None if key is None else self.entries[key]


def _posix(name: str) -> str:
    return PurePosixPath(name.strip().replace("\\", "/")).as_posix()


def is_table(labels: Any) -> bool:
    return isinstance(labels, (str, os.PathLike)) and Path(labels).suffix.lower() == ".csv"


def with_classes(files: Files, labels: Any, roots: Sequence[Any]) -> tuple[Files, Any]:
    """Files with the classes that a .csv of `file,class` gives them, and no labels; else both as they are."""
    rows = _rows(Path(labels)) if files and is_table(labels) else []
    if all(len(row) == 1 for row in rows):
        return files, labels
    classes: dict[str, int] = {}
    for name, said in rows:
        if classes.setdefault(_posix(name), int(said)) != int(said):
            raise RunError(f"{labels} gives {name.strip()} the classes {classes[_posix(name)]} and {said.strip()}")
    held = ByName(classes)
    found: Files = []
    for file, _ in files:
        label = held.of(file, roots)
        if label is None:
            raise RunError(f"{labels} names no class for {file.name}; it has lines for {len(classes)} files")
        found.append((file, label))
    return found, None


def _rows(path: Path) -> list[list[str]]:
    """Lines `file,class`, or a class alone. A line whose class is no number may be the first only."""
    try:
        rows = [row for row in csv.reader(path.read_text("utf-8-sig").splitlines()) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise RunError(f"cannot read the labels in {path}: {e}") from e
    if rows and not rows[0][-1].strip().isdecimal():
        rows = rows[1:]
    if not rows:
        raise RunError(f"{path} holds no labels")
    bad = next((row for row in rows if not row[-1].strip().isdecimal() or len(row) > 2 or len(row) != len(rows[0])), None)
    if bad is not None:
        raise RunError(f"{path}: the line {','.join(bad)!r} is not `file,class` with a whole number (or the class alone)")
    return rows


def read_labels(labels: Any) -> Array:
    """A class per sample: an array, or a file: .npy, text with one number each, .csv with one number per line."""
    if is_table(labels):
        rows = _rows(Path(labels))
        if len(rows[0]) > 1:
            raise RunError(f"{labels} names files, and the data are arrays: give one class per line, in their order")
        return np.array([int(row[0]) for row in rows])
    if isinstance(labels, (str, os.PathLike)):
        path = Path(labels)
        try:
            labels = np.load(path) if path.suffix == ".npy" else np.array(path.read_text("utf-8").split(), np.int64)
        except (OSError, ValueError) as e:
            raise RunError(f"cannot read the labels in {path}: {e}; they come as .npy, as text with one number each, or as .csv "
                           "with lines file,class") from e
    found = np.asarray(labels)
    if found.dtype.kind not in "iub":
        raise RunError(f"labels must be whole numbers, not {found.dtype}")
    return found.reshape(-1)


def known(files: Iterable[tuple[Path, int | None]]) -> Array | None:
    """The classes of all files, where each has one."""
    classes = [label for _, label in files]
    return None if None in classes else np.array(classes)
