"""A folder of explanations that grows: what it belongs to, what is in it already, arrays that can be read at any time.

dataset.json says which explanation and which settings; index.csv has a line per sample; row i of each .npy is line i of it.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import RunError, WriteError
from ..files import write_atomically
from ..graph import Array

SETTINGS, INDEX, FORMAT = "dataset.json", "index.csv", 1
Line = Mapping[str, Any]


def read_settings(out: Path) -> dict[str, Any] | None:
    """What dataset.json says; None where there is none."""
    path = out / SETTINGS
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as e:
        raise RunError(f"cannot read {path}: {e}; remove it, or give another folder") from e
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise RunError(f"{path} is of no folder of explanations that is known here; give another folder")
    return found


@dataclass
class Index:
    """The lines of index.csv, appended as samples are done. `done`: for each file, which of its samples."""

    path: Path
    columns: Sequence[str]
    done: dict[str, bytearray] = field(default_factory=dict)
    lines: int = 0
    file: IO[bytes] | None = None
    lock: IO[bytes] | None = None

    @classmethod
    def begin(cls, out: Path, settings: Mapping[str, Any], columns: Sequence[str], there: Callable[[Line], bool]) -> Index:
        """A new one, or the one in the folder; RunError where that is of something else.

        Lines whose results are not `there` any more are dropped, so that they are made again.
        """
        wanted = json.loads(json.dumps({"format": FORMAT, **settings}))
        held = read_settings(out)
        if held is not None and held != wanted:
            name, was, now = _difference(held, wanted)
            raise RunError(f"{out} holds other explanations: their {name} is {was!r}, here it is {now!r}; give another folder, "
                           "or remove that one")
        index = cls(out / INDEX, columns)
        with _writing(index.path):
            out.mkdir(parents=True, exist_ok=True)
            if held is None:
                write_atomically(out / SETTINGS, [(json.dumps(wanted, indent=2) + "\n").encode()])
            index.lock = _locked(out / SETTINGS)
            for left in out.rglob(".*.part"):  # of a run that was killed
                left.unlink()
            index._read(there)
        return index

    def _read(self, there: Callable[[Line], bool]) -> None:
        content = self.path.read_bytes() if self.path.exists() else _csv(self.columns, [], header=True)
        whole = content[: content.rfind(b"\n") + 1]
        text = whole.decode("utf-8", "surrogateescape")
        gone = 0
        for row in csv.DictReader(io.StringIO(text, newline="")):
            if there(row):
                self._note(row["file"], int(row["sample"]))
                self.lines += 1
            else:
                gone += 1
        if gone:
            kept = filter(there, csv.DictReader(io.StringIO(text, newline="")))
            whole = _csv(self.columns, kept, header=True)
        if whole != content or not self.path.exists():
            write_atomically(self.path, [whole])

    def _note(self, name: str, sample: int) -> None:
        marks = self.done.setdefault(name, bytearray())
        marks.extend(bytes(max(sample + 1 - len(marks), 0)))
        marks[sample] = 1

    def add(self, lines: Sequence[Line]) -> None:
        """Lines behind the others; on disk when this returns."""
        with _writing(self.path):
            if self.file is None:
                self.file = self.path.open("ab")
            self.file.write(_csv(self.columns, lines))
            self.file.flush()
        self.lines += len(lines)

    def close(self) -> None:
        for f in (self.file, self.lock):
            if f is not None:
                f.close()
        self.file = self.lock = None


def _difference(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> tuple[str, Any, Any]:
    """(name, what was, what is now) of the first setting that differs."""
    name = next(k for k in {**wanted, **held} if held.get(k) != wanted.get(k))
    was, now = held.get(name), wanted.get(name)
    if not isinstance(was, dict) or not isinstance(now, dict):
        return name, was, now
    inner, was, now = _difference(was, now)
    return f"{name} {inner}", was, now


def _locked(path: Path) -> IO[bytes]:
    """The file, held against a second run for as long as it is open, where the system can do that."""
    f = path.open("rb")
    try:
        import fcntl
    except ModuleNotFoundError:
        return f
    try:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        f.close()
        raise RunError(f"another run is writing to {path.parent}; wait for it, or give another folder") from e
    return f


def _csv(columns: Sequence[str], rows: Iterable[Line], header: bool = False) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "surrogateescape")


@dataclass(frozen=True)
class _Array:
    """A .npy that grows: `rows` stands at its end, `head` at its beginning; two threads may use them side by side."""

    rows: IO[bytes]
    head: IO[bytes]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Growing:
    """Arrays `<name>.npy` in a folder whose first axis grows: `append` puts rows behind, `count` says in the headers that they
    are there. Whoever reads a file sees whole rows, and all that were counted."""

    def __init__(self, out: Path, rows: int) -> None:
        self.out, self.rows = out, rows
        self._arrays: dict[str, _Array] = {}

    def append(self, arrays: Mapping[str, Array]) -> None:
        """Rows behind the others, as many in each array."""
        for name, array in arrays.items():
            path = self.out / f"{name}.npy"
            with _writing(path):
                held = self._arrays.get(name) or self._open(name, path, array)
                if array.shape[1:] != held.shape:
                    raise RunError(f"samples of {name!r} change their shape from {held.shape} to {array.shape[1:]}: they are no "
                                   "single array; write files for each (--write npz), or bring the inputs to one size")
                held.rows.write(np.ascontiguousarray(array, held.dtype).reshape(-1).view(np.uint8).data)
                held.rows.flush()

    def count(self, rows: int) -> None:
        """So many rows more are there."""
        self.rows += rows
        for name, held in list(self._arrays.items()):
            with _writing(self.out / f"{name}.npy"):
                held.head.seek(0)
                held.head.write(_header(self.rows, held.dtype, held.shape))

    def close(self) -> None:
        for held in self._arrays.values():
            held.rows.close()
            held.head.close()
        self._arrays.clear()

    def _open(self, name: str, path: Path, array: Array) -> _Array:
        """The file behind its counted rows; a new one where none was counted yet."""
        dtype, shape = array.dtype.newbyteorder("="), array.shape[1:]
        start = len(_header(0, dtype, shape))
        if not self.rows:
            write_atomically(path, [_header(0, dtype, shape)])
        size = start + self.rows * int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if not path.exists() or path.stat().st_size < size or _head(path) != (dtype, shape):
            raise RunError(f"{path} does not hold the {self.rows} rows that {INDEX} lists; remove the folder to explain anew")
        rows = path.open("r+b")
        rows.truncate(size)
        rows.seek(size)
        self._arrays[name] = _Array(rows, path.open("r+b", buffering=0), dtype, shape)
        return self._arrays[name]


def _head(path: Path) -> tuple[np.dtype[Any], tuple[int, ...]] | None:
    """(dtype, shape of a row) of a .npy; None for what is none."""
    try:
        with path.open("rb") as f:
            np.lib.format.read_magic(f)
            shape, _, dtype = np.lib.format.read_array_header_1_0(f)
    except ValueError:
        return None
    return dtype, shape[1:]


def _header(rows: int, dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Of a .npy with so many rows; as long for any number of them."""
    text = io.BytesIO()
    np.lib.format.write_array_header_1_0(text, {
        "descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, *shape)
    })
    return text.getvalue()


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as e:
        raise WriteError(f"cannot write {path}: {e.strerror or e}") from e
