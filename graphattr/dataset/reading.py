"""Inputs as rows for the model: pictures by several threads, large arrays and tables so many rows at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import GraphattrError, RunError
from ..fit.data import checked, open_data
from ..fit.files import chunks_of_file, rows_of_file, shape_of_file
from ..graph import Array
from ..infer import read_type
from ..preprocess import InputItem, Preprocess, Say, preprocess_for, print_nothing, read_input
from ..tabular import TABLES
from ..texts import read_texts, text_item
from ..vocabulary import Vocabulary
from .entries import Entry

NO_PICTURES = (".npy", ".npz", *TABLES, ".wav", ".txt")


@dataclass(frozen=True)
class Part:
    """Rows of an input: arrays by the model's input names, and which `samples` of the input they are. `item`: the whole input,
    where its results get files of their own."""

    entry: Entry
    samples: Sequence[int]
    feeds: Mapping[str, Array]
    item: InputItem | None = None

    @property
    def rows(self) -> int:
        return len(self.samples)

    def without(self, done: Sequence[int]) -> Part | None:
        """The rows that `done` does not mark; None where there are none."""
        left = [i for i, k in enumerate(self.samples) if k >= len(done) or not done[k]]
        if len(left) == self.rows:
            return self
        rows = {k: v[left] for k, v in self.feeds.items()}
        return replace(self, samples=[self.samples[i] for i in left], feeds=rows) if left else None


@dataclass(frozen=True)
class Failure:
    """An input, or a sample of it, that could not be explained."""

    entry: Entry
    error: GraphattrError

    def raised(self) -> GraphattrError:
        """The error, with the name of the input in it."""
        text, path = str(self.error), self.entry.path
        return self.error if path in text or not path else type(self.error)(f"{path}: {text}")


@dataclass(frozen=True)
class Job:
    """What one thread reads or checks: an entry, or rows of it."""

    entry: Entry
    first: int = 0
    rows: Mapping[str, Array] | None = None
    error: GraphattrError | None = None


@dataclass(frozen=True)
class Reader:
    """How files become rows for a model's inputs `types`. `whole`: every file at once, to be shown with its results.

    `texts`: the inputs are texts themselves.
    """

    types: Mapping[str, Any]
    pre: Preprocess
    size: int
    whole: bool = False
    vocabulary: Vocabulary | None = None
    texts: Sequence[str] = ()
    say: Say = print_nothing

    @classmethod
    def of(cls, types: Mapping[str, Any], entries: Sequence[Entry], preprocess: str | None, size: int, **more: Any) -> Reader:
        """`types`: TypeProto by input name. What is guessed of pictures is said where there are any."""
        shape = read_type(next(iter(types.values())))[1]
        pictures = any(Path(e.path).suffix.lower() not in NO_PICTURES for e in entries) and not more.get("texts")
        pre = preprocess_for(preprocess, shape or (), more.get("say", print_nothing) if pictures else print_nothing)
        return cls(types, pre, size, **more)

    @property
    def shapes(self) -> dict[str, Any]:
        return {name: read_type(t) for name, t in self.types.items()}

    def jobs(self, entries: Sequence[Entry], done: Mapping[str, bytearray]) -> Iterator[Job]:
        """What is to be read, in order; `done` says which samples of a file are there already."""
        for entry in entries:
            whole = self.whole or not self._streams(entry)
            if whole:
                if entry.file not in done:
                    yield Job(entry)
                continue
            try:
                if entry.file in done and done[entry.file].count(1) == rows_of_file(Path(entry.path), self.shapes):
                    continue
                at = 0
                for chunk in chunks_of_file(Path(entry.path), None, self.shapes, self.size, self.pre):
                    rows = {k: v for k, v in chunk.items() if k in self.types}
                    yield Job(entry, at, rows)
                    at += len(next(iter(rows.values())))
            except GraphattrError as e:
                yield Job(entry, error=e)

    def _streams(self, entry: Entry) -> bool:
        """Whether the file is a table, or an array with an axis of samples."""
        path = Path(entry.path)
        if path.suffix.lower() in TABLES:
            return True
        if path.suffix.lower() not in (".npy", ".npz") or not path.is_file():
            return False
        try:
            axes = len(shape_of_file(path, self.shapes))
        except GraphattrError:
            return False  # reading it whole says what is wrong
        return axes == len(next(iter(self.shapes.values()))[1] or ())

    def read(self, job: Job) -> Part | Failure:
        """The rows of a job."""
        try:
            if job.error is not None:
                raise job.error
            if job.rows is not None:
                rows = {k: checked(k, v, *self.shapes[k]) for k, v in job.rows.items()}
                return Part(job.entry, range(job.first, job.first + len(next(iter(rows.values())))), rows)
            item = self._item(job.entry.path)
            feeds = item.feeds(list(self.types))
            if len({len(v) if v.ndim else 0 for v in feeds.values()}) != 1:
                counts = ", ".join(f"{k} {len(v) if v.ndim else 0}" for k, v in feeds.items())
                raise RunError(f"{job.entry.path}: different numbers of samples: {counts}")
            return Part(job.entry, range(len(next(iter(feeds.values())))), feeds, item if self.whole else None)
        except GraphattrError as e:
            return Failure(job.entry, e)

    def _item(self, path: str) -> InputItem:
        if self.texts or Path(path).suffix.lower() == ".txt":
            return text_item(self.texts or read_texts(Path(path)), path, self.vocabulary, self.types)
        dtype, shape = next(iter(self.shapes.values()))
        item = read_input(path, self.pre, shape or (), dtype or np.float32, list(self.types))
        if item.rate:
            self.say(f"{path}: {item.rate:g} samples per second, taken as they are: {len(item.array)} x {item.array.shape[1:]}")
        return item if self.whole else replace(item, display=None)

    def total(self, entries: Sequence[Entry]) -> int | None:
        """How many samples there are, where the files' heads say so."""
        known = []
        for entry in entries:
            try:
                known.append(rows_of_file(Path(entry.path), self.shapes) if Path(entry.path).suffix.lower() != ".txt" else None)
            except GraphattrError:
                known.append(None)
        return None if None in known else sum(n for n in known if n is not None)


def parts_of_arrays(data: Any, types: Mapping[str, Any], size: int) -> Iterator[Part]:
    """An array, arrays by name, or an iterable of such batches, as rows."""
    at = 0
    for batch in open_data(data, None, {name: read_type(t) for name, t in types.items()}, size):
        yield Part(Entry("", "", ""), range(at, at + batch.rows), batch.feeds)
        at += batch.rows
