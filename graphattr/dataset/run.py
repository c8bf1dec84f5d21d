"""Many inputs, explained: threads read and prepare ahead of the session, others write behind it; no more is held than that."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..ahead import ahead, in_threads
from ..errors import GraphattrError, RunError, WriteError, did_you_mean
from ..export import Explanation
from ..fit.data import paths_of
from ..fit.progress import Bar
from ..fitted import fingerprint
from ..infer import read_type
from ..preprocess import Say, print_nothing
from ..runtime import Attribution, Explainer
from ..session import Device, device_of
from ..sheet import in_a_path
from ..source import Source
from ..vocabulary import load_vocabulary
from .batches import Batch, Piece, Runner, Unit, axes_of, batches_of
from .entries import Entry, entries_of, unique
from .folder import INDEX, Index, read_settings
from .reading import NO_PICTURES, Failure, Part, Reader, parts_of_arrays
from .writing import NAMES, Writer

WRITE = ("npz", "png", "npy")
FEW = 100  # inputs: of more the results are arrays of all, not files of each, unless --write says otherwise
BATCH = 16


@dataclass
class Work:
    """What is to be explained, how, and what is written. After `reports`: `samples`, `skipped` (explained by an earlier run), and
    `failed`, (file, error) of what could not be.

    data: paths of files and folders, or arrays, arrays by name, an iterable of such batches. out: None writes nothing.
    write: some of "npz" (arrays of each input), "png" (pictures, and pages of texts), "npy" (arrays of all inputs).
    text: `data` are texts, one sample each. goes_on: keep an index, and go on from it, for few files as well.
    """

    explanation: Explanation
    data: Any
    out: Path | None = None
    preprocess: str | None = None
    provider: Any = None
    target: Any = None
    batch_size: int | None = None
    write: Sequence[str] | None = None
    keep_going: bool = False
    workers: int | None = None
    names: Sequence[str] = ()
    tokenizer: str | None = None
    text: bool = False
    top: int = 5
    progress: bool | None = None
    goes_on: bool = False
    say: Say = print_nothing
    samples: int = 0
    skipped: int = 0
    seconds: float = 0.0
    failed: list[tuple[str, GraphattrError]] = field(default_factory=list)
    done: Mapping[str, bytearray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = next((w for w in self.write or () if w not in WRITE), None)
        if wrong is not None:
            raise RunError(f"{wrong!r} cannot be written{did_you_mean(wrong, WRITE)} (there are: {', '.join(WRITE)})")
        for name, number in (("batch_size", self.batch_size), ("workers", self.workers)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise RunError(f"{name.replace('_', ' ')} must be a whole number from 1 on, not {number!r}")
        if self.text and "npy" in (self.write or ()):
            raise RunError("texts given as words have no folder that goes on: put them into a .txt file to write npy")
        if not self.of_files and self.write and {*self.write} != {"npy"}:
            raise RunError('arrays have no files that results could be named after: write=["npy"] puts them into arrays of all')

    # -- what there is --------------------------------------------------------------------------------------------
    @cached_property
    def explainer(self) -> Explainer:
        return Explainer(self.explanation, replace(self.device, spinning=False))  # others read and write on the same cores

    @cached_property
    def device(self) -> Device:
        return device_of(self.provider)

    @cached_property
    def of_files(self) -> bool:
        return self.text or bool(paths_of(self.data))

    @cached_property
    def entries(self) -> list[Entry]:
        if self.text:
            return [Entry("text", "text", "text")]
        return entries_of(paths_of(self.data), self.out, self.say)

    @cached_property
    def is_dataset(self) -> bool:
        """Whether the folder is one that goes on: of a folder, of many inputs, or of arrays."""
        if self.text or not self.of_files or self.goes_on:
            return not self.text
        return len(self.entries) > FEW or any(p.is_dir() for p in paths_of(self.data)) or "npy" in (self.write or ())

    @cached_property
    def written(self) -> tuple[str, ...]:
        """What is written: as asked, else as in the folder, else by how much there is."""
        if self.write is not None or self.out is None:
            return tuple(w for w in WRITE if w in (self.write or ()))
        held = read_settings(self.out) if self.is_dataset else None
        if held is not None:
            return tuple(held["write"])
        if self.of_files and len(self.entries) <= FEW:
            return ("npz", "png")
        return ("npy",)

    @cached_property
    def types(self) -> dict[str, Any]:
        own = self.explainer.own
        found = {i.name: i.type for i in self.explanation.model.graph.input if i.name in own}
        if not found:
            raise RunError("the model has no input of its own")
        return {name: found[name] for name in own}

    @cached_property
    def fixed(self) -> int | None:
        """How many samples the model takes, where it takes no other number."""
        first = (read_type(next(iter(self.types.values())))[1] or (None,))[0]
        return first if isinstance(first, int) else None

    @cached_property
    def size(self) -> int:
        if self.fixed and self.batch_size not in (None, self.fixed):
            self.say(f"the model takes batches of {self.fixed}, so the batch size is {self.fixed}")
        return self.fixed or self.batch_size or BATCH

    @cached_property
    def threads(self) -> int:
        """How many threads read, and how many draw."""
        return self.workers or min(2 if "cpu" in str(self.device.provider).lower() else 8, os.cpu_count() or 1)

    @cached_property
    def axes(self) -> dict[str, int | None]:
        return axes_of(self.explanation.model.graph, self.explainer.own)

    @cached_property
    def reader(self) -> Reader:
        whole = bool({"npz", "png"} & {*self.written})
        vocabulary = None if self.tokenizer is None else load_vocabulary(self.tokenizer)
        return Reader.of(self.types, self.entries, self.preprocess, self.size, whole=whole, vocabulary=vocabulary,
                         texts=list(self.data) if self.text else (), say=self.say)

    # -- explaining -----------------------------------------------------------------------------------------------
    def units(self) -> Generator[Unit]:
        """What is explained, in order. A failure ends it, or is noted in `failed` where one is to keep going."""
        runner = Runner(self.explainer, self._target(), self.fixed, self.axes)
        whole = self.of_files and self.reader.whole
        begun: list[tuple[Piece, Attribution]] = []
        with closing(ahead(batches_of(self._parts(), self.size, self.keep_going), 1)) as batches:
            for batch in batches:
                for one in [batch] if isinstance(batch, Failure) else runner.explained(batch, self.keep_going):
                    if isinstance(one, Failure):
                        self._failed(one)
                    elif not whole:
                        yield Unit(one[0].pieces, one[1])
                    else:
                        yield from self._whole(runner, begun, *one)

    def _parts(self) -> Iterator[Part | Failure]:
        if self.of_files:
            jobs = self.reader.jobs(self.entries, self.done)
            parts: Any = in_threads(self.reader.read, jobs, self.threads, self.size + self.threads)
        else:
            parts = parts_of_arrays(self.data, self.types, self.size)
        for part in parts:
            left = part if isinstance(part, Failure) else part.without(self.done.get(part.entry.file, b""))
            if left is not None:
                yield left

    def _whole(
        self, runner: Runner, begun: list[tuple[Piece, Attribution]], batch: Batch, a: Attribution
    ) -> Iterator[Unit]:
        """The inputs that end in this batch, with what `begun` holds of them."""
        at, of = 0, batch.rows
        for p in batch.pieces:
            begun.append((p, runner.rows_of(a, at, at + p.high - p.low, of)))
            at += p.high - p.low
            if p.ends:
                mine = [one for one in begun if one[0].part is p.part]
                begun.clear()
                if sum(q.high - q.low for q, _ in mine) == p.part.rows:  # else one of its samples failed
                    yield Unit([Piece(p.part, 0, p.part.rows)], runner.joined([one for _, one in mine]), p.part.item)

    def _failed(self, failure: Failure) -> None:
        error = failure.raised()
        if not self.keep_going:
            hint = "; keep_going (--keep-going) leaves such inputs out" if self.of_files and self.is_dataset and self.out else ""
            raise type(error)(f"{error}{hint}") from failure.error
        self.failed.append((failure.entry.file, error))

    def _target(self) -> Any:
        if self.explainer.manifest["target"] != "input":
            return None
        try:
            return int(self.target)
        except (TypeError, ValueError) as e:
            raise RunError("this explanation takes its target at run time: give one class index as the target (--target)") from e

    # -- writing --------------------------------------------------------------------------------------------------
    def reports(self) -> Iterator[dict[str, Any]]:
        """Explain and write; yields a report of each input that gets files of its own. What is whole stays, however it ends."""
        assert self.out is not None
        start = time.monotonic()
        index = self._index()
        self.skipped = 0 if index is None else index.lines
        writer = Writer(self, self.out, index)
        total = self.reader.total(self.entries) if self.of_files else None
        try:
            with Bar(self.progress if total is None or total > 1 else False).over("explaining", total) as advance:
                advance(self.skipped)
                try:
                    with closing(self.units()) as units:
                        for unit in units:
                            writer.write(unit)
                            yield from writer.finished(advance)
                except GraphattrError:
                    yield from writer.finished(advance, 0)  # what stands before the failure
                    raise
                yield from writer.finished(advance, 0)
        finally:
            writer.close()
            self.seconds = time.monotonic() - start

    def summary(self) -> dict[str, Any]:
        """What became of it, as plain data: samples (explained now), skipped (by an earlier run), failed, where results lie."""
        assert self.out is not None
        return {
            "out": str(self.out), "index": str(self.out / INDEX), "write": list(self.written), "samples": self.samples,
            "skipped": self.skipped, "failed": [{"file": file, "error": str(error)} for file, error in self.failed],
            "seconds": round(self.seconds, 3), "arrays": {k: str(self.out / f"{v}.npy") for k, v in self.arrays.items()},
        }

    @cached_property
    def arrays(self) -> dict[str, str]:
        """Output by output, the name of its array of all samples."""
        held = [name for name, axis in self.axes.items() if axis is not None] if "npy" in self.written else []
        return dict(zip(held, unique(map(in_a_path, held)), strict=True))

    def _index(self) -> Index | None:
        """The folder made ready; the index of one that goes on."""
        assert self.out is not None
        if not self.is_dataset:
            try:
                self.out.mkdir(parents=True, exist_ok=True)
            except OSError as e:
                raise WriteError(f"cannot make the folder {self.out}: {e.strerror}") from e
            return None
        manifest, model = self.explainer.manifest, self.explanation
        settings = {
            "method": manifest["method"], "params": manifest["params"], "output": manifest["output"],
            "target": manifest["target"] if manifest["target"] != "input" else self._target(),
            "write": list(self.written),
            **({"preprocess": asdict(self.reader.pre)} if self.of_files else {"data": self._digest()}),
            "explanation": fingerprint(Source(model.model, model.folder, "", None)),
        }
        results = "npz" in self.written
        columns = [*NAMES, *(["label"] if self.names else []), *(["result"] if results or "png" in self.written else [])]
        out = self.out

        def there(line: Mapping[str, Any]) -> bool:
            found = not results or (out / f"{line['result']}.npz").exists()
            if not found and "npy" in self.written:
                raise RunError(f"{out / line['result']}.npz is gone, which the index lists; remove {out} to explain anew")
            return found

        index = Index.begin(out, settings, columns, there)
        if index.lines and not self.of_files and self._digest() is None:
            raise RunError(f"{out} holds {index.lines} samples of an iterable, which cannot be told from others; give another "
                           "folder, or arrays or files")
        self.done = index.done
        return index

    def _digest(self) -> str | None:
        """A checksum of arrays; None of an iterable, which may be read but once."""
        arrays = self.data if isinstance(self.data, Mapping) else {"": self.data} if hasattr(self.data, "__array__") else None
        if arrays is None:
            return None
        found = 0
        for name in sorted(arrays):
            array = np.asarray(arrays[name])
            found = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), found)
            for row in array if array.ndim else [array]:
                found = zlib.crc32(np.ascontiguousarray(row).reshape(-1).view(np.uint8).data, found)
        return f"{found:08x}"


def pairs(work: Work) -> Iterator[tuple[list[str], Attribution]]:
    """(names, attribution) of one batch after the other: a picture by its file, a sample of an array or table as `file[i]`, one
    of arrays by its number."""
    with closing(work.units()) as units:
        for unit in units:
            yield [_name(entry, sample) for entry, sample in unit.samples], unit.a


def _name(entry: Entry, sample: int) -> str:
    if not entry.file:
        return str(sample)
    return f"{entry.file}[{sample}]" if Path(entry.path).suffix.lower() in NO_PICTURES else entry.file
