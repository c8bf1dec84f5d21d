"""What to learn from, as batches: arrays, dicts of arrays, iterables of batches, .npz, .npy, tables, pictures, folders.

Nothing but a batch is held: .npy files are mapped, members of an .npz and a .parquet read row by row, pictures one by one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RunError, did_you_mean
from ..graph import Array
from ..infer import Shape, shape_text
from ..preprocess import Preprocess
from .files import PICTURES, Chunk, chunks_of_file, files_in, rows_of_file
from .labels import read_labels, with_classes

LABELS = "labels"
Types = Mapping[str, tuple[np.dtype[Any] | None, Shape | None]]


@dataclass(frozen=True)
class Batch:
    """Arrays by input name, and a class per sample where that is known."""

    feeds: Mapping[str, Array]
    labels: Array | None = None

    @property
    def rows(self) -> int:
        return len(next(iter(self.feeds.values())))

    def only(self, label: int) -> Batch | None:
        """The samples of one class; None where there are none, RunError where classes are not known."""
        if self.labels is None:
            raise RunError("the data have no labels: pass labels=, put an array 'labels' into the data, or sort pictures into "
                           "one folder per class")
        chosen = np.flatnonzero(self.labels == label)
        return Batch({k: v[chosen] for k, v in self.feeds.items()}, self.labels[chosen]) if len(chosen) else None


@dataclass(frozen=True)
class Data:
    """Batches, again and again. `total`: how many samples, where that is known before they are read. `fixed`: the model takes
    batches of `size` only; the samples that fill no batch are left out and counted in `spare`."""

    chunks: Callable[[], Iterator[Chunk]]
    types: Types
    size: int
    total: int | None = None
    labels: Array | None = None
    fixed: bool = False
    spare: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[Batch]:
        """Batches of `size` samples; the last one of a run of equal shapes may be smaller."""
        at = 0
        self.spare.clear()
        for chunk in _of_size(self._checked(), self.size):
            batch = _as_batch(chunk)
            if self.labels is not None:
                if at + batch.rows > len(self.labels):
                    raise RunError(f"there are {len(self.labels)} labels for more samples than that")
                batch = Batch(batch.feeds, self.labels[at : at + batch.rows])
            at += batch.rows
            if self.fixed and batch.rows < self.size:
                self.spare.append(batch.rows)
            else:
                yield batch
        if self.labels is not None and at < len(self.labels):
            raise RunError(f"there are {len(self.labels)} labels for {at} samples")

    def left_out(self) -> list[str]:
        """The warning that some samples fill no batch of the model, if so."""
        some = f"{sum(self.spare)} samples were left out: they fill no batch of {self.size}, and the model takes no other"
        return [some] if self.spare else []

    def _checked(self) -> Iterator[Chunk]:
        for chunk in self.chunks():
            yield {k: checked(k, v, *self.types.get(k, (np.dtype(np.int64), ("N",)))) for k, v in chunk.items()}


def open_data(data: Any, labels: Any, types: Types, size: int, pre: Preprocess | None = None, fixed: bool = False) -> Data:
    """The data as batches of `size` samples for a model's inputs (name -> dtype and shape). RunError for what is no data."""
    paths = paths_of(data)
    files, left = with_classes([f for p in paths for f in files_in(p)], labels, paths)
    given = None if left is None else read_labels(left)
    if paths:
        first = labels is not left
        known = [rows_of_file(f, types) for f, _ in files]
        total = sum(n for n in known if n is not None) if None not in known else None
        chunks = lambda: (c for f, label in files for c in chunks_of_file(f, label, types, size, pre, first))  # noqa: E731
        return Data(chunks, types, size, total, given, fixed)
    if isinstance(data, Mapping) or hasattr(data, "__array__"):
        named = _named(data, types)
        total = min(map(len, named.values()))
        starts = range(0, total, size)
        return Data(lambda: ({k: v[i : i + size] for k, v in named.items()} for i in starts), types, size, total, given, fixed)
    if not isinstance(data, Iterable):
        raise RunError(f"data must be an array, a dict of arrays, an iterable of batches or a path, not {type(data).__name__}")
    return Data(_again(data, types), types, size, None, given, fixed)


def _again(data: Iterable[Any], types: Types) -> Callable[[], Iterator[Chunk]]:
    """An iterable of batches; one that can be read only once says so when it is asked for more."""
    once = iter(data) if isinstance(data, Iterator) else None
    used: list[bool] = []

    def chunks() -> Iterator[Chunk]:
        if once is not None and used:
            raise RunError("this method reads the data more than once, and an iterator is empty after the first time: give a "
                           "list of batches, an object whose __iter__ starts anew, arrays, or files")
        used.append(True)
        for item in data if once is None else once:
            pair = isinstance(item, (tuple, list)) and len(item) == 2
            yield _named(item[0] if pair else item, types) | ({LABELS: read_labels(item[1])} if pair else {})

    return chunks


def _named(item: Any, types: Types) -> dict[str, Array]:
    """Arrays by input name, and labels: from a dict, or from the array of a single input."""
    if not isinstance(item, Mapping):
        if len(types) != 1:
            raise RunError(f"the model has {len(types)} inputs ({', '.join(types)}); give dicts of arrays by name")
        item = {next(iter(types)): item}
    missing = [name for name in types if name not in item]
    if missing:
        raise RunError(f"the data have no array for input {missing[0]!r}{did_you_mean(missing[0], item)} "
                       f"(they have {', '.join(map(repr, item))})")
    arrays = {k: item[k] if isinstance(item[k], np.ndarray) else np.asarray(item[k]) for k in (*types, *_also(item, types))}
    lengths = {k: len(v) if v.ndim else 0 for k, v in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise RunError(f"the arrays have different numbers of samples: {', '.join(f'{k} {n}' for k, n in lengths.items())}")
    return arrays


def _also(item: Iterable[str], types: Types) -> list[str]:
    return [LABELS] if LABELS in item and LABELS not in types else []


def checked(name: str, array: Array, dtype: np.dtype[Any] | None, shape: Shape | None) -> Array:
    """The rows in the input's type; RunError where their shape does not fit or they are not finite."""
    if dtype is None:
        raise RunError(f"input {name!r} is no tensor; data cannot be fed to it")
    if array.dtype.kind not in ("iub" if dtype.kind in "iu" else "fiub"):
        raise RunError(f"the data for input {name!r} must be {dtype}, not {array.dtype}")
    if shape is not None and (
        array.ndim != len(shape) or any(isinstance(d, int) and d != s for d, s in zip(shape[1:], array.shape[1:], strict=True))
    ):
        raise RunError(f"the data for input {name!r} must have shape {shape_text(shape)}, not {array.shape}")
    array = np.asarray(array, dtype)
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise RunError(f"the data for input {name!r} hold NaN or infinite values")
    return array


def _of_size(chunks: Iterator[Chunk], size: int) -> Iterator[Chunk]:
    """The same rows in chunks of `size`; a change of shape ends a chunk early."""
    held: list[Chunk] = []
    for chunk in chunks:
        if held and _shapes(held[0]) != _shapes(chunk):
            yield _joined(held)
            held = []
        held.append(chunk)
        while sum(map(_rows, held)) >= size:
            whole = _joined(held)
            yield {k: v[:size] for k, v in whole.items()}
            held = [{k: v[size:] for k, v in whole.items()}] if _rows(whole) > size else []
    if held:
        yield _joined(held)


def _rows(chunk: Chunk) -> int:
    return len(next(iter(chunk.values())))


def _shapes(chunk: Chunk) -> list[Any]:
    return [(k, v.shape[1:]) for k, v in chunk.items()]


def _joined(chunks: Sequence[Chunk]) -> Chunk:
    return chunks[0] if len(chunks) == 1 else {k: np.concatenate([c[k] for c in chunks]) for k in chunks[0]}


def _as_batch(chunk: Chunk) -> Batch:
    return Batch({k: v for k, v in chunk.items() if k != LABELS}, chunk.get(LABELS))


def paths_of(data: Any) -> list[Path]:
    """The files and folders, where the data are these."""
    several = [data] if isinstance(data, (str, os.PathLike)) else data if isinstance(data, (list, tuple)) else []
    return [Path(d) for d in several] if all(isinstance(d, (str, os.PathLike)) for d in several) else []


def has_pictures(data: Any) -> bool:
    """Whether any of the files are pictures, which have to be prepared."""
    return any(f.suffix.lower() in PICTURES for p in paths_of(data) for f, _ in files_in(p))
