"""What is written of each unit: its sheet, its rows of the arrays of all, its lines of the index."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..ahead import Behind
from ..measure.scoring import softmax
from ..preprocess import InputItem
from ..sheet import Sheet
from ..view import View, label
from .batches import Unit, sample_arrays
from .folder import Growing, Index

if TYPE_CHECKING:
    from .run import Work

NAMES = ("file", "sample", "target", "top", "score", "probability")


class Writer:
    """Writes units behind the session: inputs by several threads, the arrays of all by one, the index when both are done."""

    def __init__(self, work: Work, out: Path, index: Index | None) -> None:
        self.work, self.out, self.index = work, out, index
        self.behind = Behind(work.size)
        self.pool = ThreadPoolExecutor(work.threads, "graphattr-write")
        self.row = ThreadPoolExecutor(1, "graphattr-rows")
        self.growing = Growing(out, index.lines) if index is not None and "npy" in work.written else None

    def write(self, unit: Unit) -> None:
        """Begin to write."""
        work = self.work
        futures: list[Future[Any]] = []
        if unit.item is not None:
            futures.append(self.pool.submit(self._sheet, unit))
        if self.growing is not None:
            futures.append(self.row.submit(self._rows, self.growing, unit))
        if self.index is not None:
            futures.append(self.row.submit(lines_of, unit, work.names, self.index.columns))
        self.behind.add(len(unit.samples), futures, unit)

    def finished(self, advance: Callable[[int], None], most: int | None = None) -> Iterator[dict[str, Any]]:
        """The reports of what is written, which the index then lists."""
        for results, unit in self.behind.done(most):
            rows = len(unit.samples)
            if self.growing is not None:
                self.growing.count(rows)
            if self.index is not None:
                self.index.add(results[-1])
            self.work.samples += rows
            advance(rows)
            if unit.item is not None:
                yield results[0]

    def close(self) -> None:
        """End; what is being written becomes whole, what has not begun is dropped."""
        for pool in (self.pool, self.row):
            pool.shutdown(cancel_futures=True)
        if self.growing is not None:
            self.growing.close()
        if self.index is not None:
            self.index.close()

    def _sheet(self, unit: Unit) -> dict[str, Any]:
        work, entry = self.work, unit.pieces[0].part.entry
        assert unit.item is not None
        view = View(unit.item, unit.feeds, unit.a, work.reader.pre, work.names, work.reader.vocabulary)
        return Sheet(entry.path, self.out / entry.result, view).report(work.top, work.written)

    def _rows(self, growing: Growing, unit: Unit) -> None:
        arrays = sample_arrays(unit.a, self.work.axes)
        growing.append({name: arrays[k] for k, name in self.work.arrays.items() if k in arrays})


def lines_of(unit: Unit, names: Sequence[str], columns: Sequence[str]) -> list[dict[str, Any]]:
    """A line of the index per sample: which class was explained, which has the highest score, and how probable the model finds
    that: of an output (N, classes) the score itself where the model ends in probabilities, else its softmax."""
    view = View(unit.item or InputItem(np.empty(0), None, ""), {}, unit.a, None, names)  # type: ignore[arg-type]
    logits, a = view.logits(), unit.a
    top = logits.argmax(1)
    probable = np.asarray(a.outputs[view.manifest["output"]]).ndim == 2 and logits.shape[1] > 1
    ended = view.manifest["stripped"] or bool((np.abs(logits.sum(1) - 1) < 1e-3).all() and (logits >= 0).all())
    chances = logits if ended else softmax(logits.astype(np.float64))
    lines = []
    for i, (entry, sample) in enumerate(unit.samples):
        aims = [] if a.target is None else np.ravel(a.target[i]).tolist()
        line = {
            "file": entry.file, "sample": sample, "target": " ".join(map(str, aims)), "top": int(top[i]),
            "score": f"{logits[i, top[i]]:.7g}", "probability": f"{chances[i, top[i]]:.6g}" if probable else "",
            "label": label(int(top[i]), names), "result": entry.result,
        }
        lines.append({k: line[k] for k in columns})
    return lines
