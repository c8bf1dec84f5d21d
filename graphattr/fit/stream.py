"""Runs a graph over batches and adds up what it gives: the statistics of a fit, in float64, one batch at a time."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..canonical import Canonical
from ..errors import RunError
from ..export import proto_of
from ..graph import Array, Graph, Value
from ..lower import lower
from ..precision import Twin
from ..session import open_session
from ..simplify import prune, simplify, with_nodes
from .data import Batch, Data
from .progress import Bar
from .state import Pass, State, checksum

Each = Callable[[Mapping[str, Array]], Mapping[str, Array]]


@dataclass
class Stream:
    """A model, the batches that it is run on, and how far that has come."""

    canonical: Canonical
    twin: Twin | None
    wrt: Sequence[Value]
    data: Data
    state: State
    bar: Bar
    providers: Any = None
    lowering: str = "cpu"

    def sums(self, name: str, outputs: Mapping[str, Value], each: Each | None = None, label: int | None = None) -> Pass:
        """One way through the data: per batch run the graph up to `outputs`, and add up what `each` makes of them.

        name: what this pass is called in the state file and on the progress bar. label: samples of this class only.
        """
        done = self.state.passes.setdefault(name, Pass())
        if done.done:
            return done
        if label is not None and self.data.fixed and self.data.size > 1:
            raise RunError(f"the model takes batches of {self.data.size} only, so the samples of one class cannot be picked; "
                           "export it with a dynamic batch")
        run = self.runner(outputs)
        with _interrupts(self.state.path is not None) as interrupted:
            try:
                for batch in self._left(done, name):
                    chosen = batch if label is None else batch.only(label)
                    if chosen is not None:
                        found = run(chosen.feeds)
                        _add(done.sums, found if each is None else each(found), name)
                        done.samples += chosen.rows
                    done.batches, done.check = done.batches + 1, checksum(batch, done.check)
                    self.state.save_if_due()
                    if interrupted():
                        raise KeyboardInterrupt
            except BaseException:
                if done.batches:
                    self.state.save()
                raise
        if not done.samples:
            raise RunError("the data hold no sample" + (f" of class {label}" if label is not None else ""))
        bad = next((k for k, v in done.sums.items() if not np.isfinite(v).all()), None)
        if bad is not None:
            raise RunError(f"the statistics {bad!r} became NaN or infinite: the model overflows on these data")
        done.done = True
        self.state.save()
        return done

    def _left(self, done: Pass, name: str) -> Iterator[Batch]:
        """The batches that are not in the sums yet; those before are read again, to see that they are the same."""
        check, at, (before, wanted) = 0, 0, (done.batches, done.check)
        with self.bar.over(name, self.data.total) as advance:
            for batch in self.data:
                if at < before:
                    at, check = at + 1, checksum(batch, check)
                    if at == before and check != wanted:
                        raise RunError(f"the data are not those of the state in {self.state.path}; remove it to start anew")
                else:
                    yield batch
                advance(batch.rows)
        if at < before:
            raise RunError(f"the data end before those of the state in {self.state.path}; remove it to start anew")

    def runner(self, outputs: Mapping[str, Value]) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        """A function from feeds to the values of `outputs`, which ONNX Runtime computes."""
        g, folder = self._alone(outputs), self.canonical.source.folder
        session = open_session(proto_of(g, self.canonical.model), folder, self.providers)
        names, needed = list(outputs), {i.name for i in session.get_inputs()}

        def run(feeds: Mapping[str, Array]) -> dict[str, Array]:
            try:
                made = session.run([f"statistics/{n}" for n in names], {k: v for k, v in feeds.items() if k in needed})
            except Exception as e:
                first = str(e).strip().split("\n")[0][:500]
                raise RunError(f"ONNX Runtime refused to compute the statistics: {first}") from e
            return dict(zip(names, made, strict=True))

        return run

    def _alone(self, outputs: Mapping[str, Value]) -> Graph:
        """The graph with these outputs and nothing that they do not need."""
        g = self.canonical.graph if self.twin is None else self.twin.wide.graph
        shown = [(f"statistics/{n}", v) for n, v in outputs.items()]
        fast = lower(simplify(with_nodes(g, g.nodes, shown)), self.lowering)
        if self.twin is not None:
            fast = self.twin.join(fast, self.wrt)[0]
            fast = prune(with_nodes(fast, fast.nodes, [pair for pair in fast.outputs if pair[0] in dict(shown)]))
        used = {v for n in fast.nodes for v in n.uses} | {v for _, v in fast.outputs}
        fast.inputs = [v for v in fast.inputs if v in used]
        return fast


def _add(sums: dict[str, Array], found: Mapping[str, Array], name: str) -> None:
    """Add in float64, in place."""
    for key, value in found.items():
        if key in sums and sums[key].shape != np.shape(value):
            raise RunError(f"pass {name!r}: the statistics {key!r} change their shape from batch to batch, {sums[key].shape} to "
                           f"{np.shape(value)}: the layer's weight or output has axes that depend on the data")
    for key, value in found.items():
        if key in sums:
            np.add(sums[key], value, out=sums[key])
        else:
            sums[key] = np.array(value, np.float64)


@contextlib.contextmanager
def _interrupts(wanted: bool) -> Iterator[Callable[[], bool]]:
    """Ctrl-C lets the batch in hand be finished, so that no sum is left half added; a second one stops at once."""
    seen: list[int] = []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def handler(number: int, frame: Any) -> None:
        seen.append(number)
        if len(seen) > 1:
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: bool(seen)
    finally:
        signal.signal(signal.SIGINT, before)
