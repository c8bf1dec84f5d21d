"""Batches of rows of many inputs, explained, and given back input by input."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import GraphattrError, RunError
from ..graph import Array
from ..infer import read_type
from ..preprocess import InputItem
from ..runtime import Attribution, Explainer
from .entries import Entry
from .reading import Failure, Part


@dataclass(frozen=True)
class Piece:
    """Rows `low` to `high` of a part."""

    part: Part
    low: int
    high: int

    @property
    def ends(self) -> bool:
        return self.high == self.part.rows

    @property
    def feeds(self) -> dict[str, Array]:
        return {k: v[self.low : self.high] for k, v in self.part.feeds.items()}


@dataclass(frozen=True)
class Batch:
    """Pieces whose rows are run at once."""

    pieces: Sequence[Piece]
    feeds: Mapping[str, Array]

    @classmethod
    def of(cls, pieces: Sequence[Piece]) -> Batch:
        held = [p.feeds for p in pieces]
        return cls(pieces, held[0] if len(held) == 1 else {k: np.concatenate([f[k] for f in held]) for k in held[0]})

    @property
    def rows(self) -> int:
        return sum(p.high - p.low for p in self.pieces)

    def singles(self) -> Iterator[Batch]:
        """Each row by itself."""
        for p in self.pieces:
            yield from (Batch.of([Piece(p.part, i, i + 1)]) for i in range(p.low, p.high))


def batches_of(parts: Iterable[Part | Failure], size: int, keep_going: bool) -> Iterator[Batch | Failure]:
    """Batches of `size` rows, in order; a change of shape ends one early. A failure comes behind all rows that were before it,
    and ends all; where one is to `keep_going` it comes at once, and batches stay full."""
    held: list[Piece] = []
    for part in parts:
        if isinstance(part, Failure):
            if not keep_going:
                yield from [Batch.of(held)] if held else []
                yield part
                return
            yield part
            continue
        if held and _shapes(held[0].part) != _shapes(part):
            yield Batch.of(held)
            held = []
        low = 0
        while low < part.rows:
            high = min(part.rows, low + size - sum(p.high - p.low for p in held))
            held.append(Piece(part, low, high))
            low = high
            if sum(p.high - p.low for p in held) == size:
                yield Batch.of(held)
                held = []
    if held:
        yield Batch.of(held)


def _shapes(part: Part) -> list[Any]:
    return [(k, v.shape[1:], v.dtype) for k, v in part.feeds.items()]


@dataclass(frozen=True)
class Unit:
    """What is written together: an input with all of its samples, or rows of several."""

    pieces: Sequence[Piece]
    a: Attribution
    item: InputItem | None = None

    @property
    def samples(self) -> list[tuple[Entry, int]]:
        return [(p.part.entry, p.part.samples[i]) for p in self.pieces for i in range(p.low, p.high)]

    @property
    def feeds(self) -> Mapping[str, Array]:
        return Batch.of(self.pieces).feeds


@dataclass(frozen=True)
class Runner:
    """Runs batches. `fixed`: the model takes so many rows and no others; a smaller batch is filled with its last row, whose
    copies are cut off again. `axes`: of each output, the axis of samples, None where there is none."""

    explainer: Explainer
    target: Any
    fixed: int | None
    axes: Mapping[str, int | None]

    def explained(self, batch: Batch, keep_going: bool) -> Iterator[tuple[Batch, Attribution] | Failure]:
        """The batch and its attribution. Where it fails, each row by itself, to know which one it was; not without any."""
        try:
            found = self.run(batch)
        except GraphattrError as e:
            if batch.rows == 1:
                yield Failure(batch.pieces[0].part.entry, e)
                return
            alone = [one for single in batch.singles() for one in self.explained(single, keep_going)]
            if not any(isinstance(one, Failure) for one in alone):
                raise
            for one in alone:
                yield one
                if isinstance(one, Failure) and not keep_going:
                    return
            return
        yield batch, found

    def run(self, batch: Batch) -> Attribution:
        rows = batch.rows
        if not self.fixed or rows == self.fixed:
            return self.explainer(batch.feeds, self.target)
        full = {k: np.concatenate([v, np.repeat(v[-1:], self.fixed - rows, 0)]) for k, v in batch.feeds.items()}
        return self.rows_of(self.explainer(full, self.target), 0, rows, self.fixed)

    def rows_of(self, a: Attribution, low: int, high: int, of: int) -> Attribution:
        """The attribution of some of its `of` rows; an output that is not of samples is left out unless all are asked for."""
        return a if (low, high) == (0, of) else _each(a, lambda name, v: self._cut(name, v, low, high))

    def joined(self, several: Sequence[Attribution]) -> Attribution:
        """The attribution of rows that were run in several batches."""
        if len(several) == 1:
            return several[0]
        held = [_arrays(a) for a in several]

        def join(name: str, _: Array) -> Array | None:
            axis = self.axes.get(name, 0)
            return None if axis is None or any(name not in h for h in held) else np.concatenate([h[name] for h in held], axis)

        return _each(several[0], join)

    def _cut(self, name: str, value: Array, low: int, high: int) -> Array | None:
        axis = self.axes.get(name, 0)
        if axis is None or not isinstance(value, np.ndarray):
            return None
        return value[(slice(None),) * axis + (slice(low, high),)]


def _arrays(a: Attribution) -> dict[str, Any]:
    """Every array under the name of the output that it is; that of the targets under ''."""
    shown = a.manifest["attributions"]
    target = {} if a.target is None else {"": a.target}
    return {**{shown[k]: v for k, v in a.scores.items()}, **a.outputs, **a.extras, **target}


def sample_arrays(a: Attribution, axes: Mapping[str, int | None]) -> dict[str, Array]:
    """Every array that is of samples, by the name of its output, samples first."""
    return {
        k: np.moveaxis(v, axes.get(k) or 0, 0)
        for k, v in _arrays(a).items()
        if k and isinstance(v, np.ndarray) and v.dtype != object and axes.get(k, 0) is not None
    }


def _each(a: Attribution, change: Callable[[str, Array], Array | None]) -> Attribution:
    """The attribution with every array changed; None leaves it out. Scores must stay."""
    manifest = a.manifest
    scores: dict[str, Array] = {}
    for name, value in a.scores.items():
        new = change(manifest["attributions"][name], value)
        if new is None:
            raise RunError(f"the attribution {manifest['attributions'][name]!r} has no axis of samples, so that inputs cannot be "
                           "run together: use a batch size of 1")
        scores[name] = new
    extras = {k: new for k, v in a.extras.items() if (new := change(k, v)) is not None}
    outputs = {k: new for k, v in a.outputs.items() if (new := change(k, v)) is not None}
    return replace(
        a, scores=scores, outputs=outputs, extras=extras,
        target=None if a.target is None else change("", a.target),
        delta=extras.get(manifest["extras"].get("delta", "")), ledger=extras.get(manifest["extras"].get("ledger", "")),
    )


def axes_of(graph: Any, inputs: Sequence[str]) -> dict[str, int | None]:
    """The axis of samples of each output of a GraphProto: that which has the name or the size of the first input's first axis.

    A first axis whose size is open, or of an output whose shape is, counts as that of samples.
    """
    types = {i.name: read_type(i.type)[1] for i in graph.input}
    batch = next(iter(types[inputs[0]] or ("",)), "")
    found: dict[str, int | None] = {}
    for output in graph.output:
        shape = read_type(output.type)[1]
        named = [i for i, d in enumerate(shape or ()) if d == batch and isinstance(d, str)]
        if shape is None or named:
            found[output.name] = named[0] if named else 0
        else:
            found[output.name] = 0 if shape and (shape[0] == batch or not isinstance(shape[0], int)) else None
    return found
