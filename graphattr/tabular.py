"""Tables of numbers, .csv and .parquet: rows are samples, columns are features, or the inputs of a model by name.

A column `labels` or `label` holds the class of each row and is no feature. A .parquet is read so many rows at a time.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import RunError

Array = NDArray[Any]
TABLES = (".csv", ".parquet")
CLASSES = ("labels", "label")
ROWS = 1 << 14


@dataclass(frozen=True)
class Table:
    """`array`: (rows, features); a column of lists alone keeps its axes. `names`: of the features, where the file has any.
    `classes`: one per row. `inputs`: columns by name, where there is one for each input that was asked for."""

    array: Array
    names: tuple[str, ...] = ()
    classes: Array | None = None
    inputs: Mapping[str, Array] = field(default_factory=dict)


def read_table(path: Path, inputs: Sequence[str] = ()) -> Table:
    """The whole table. RunError where a cell is no number, or a column's lists differ in length."""
    parts = list(tables(path, ROWS, inputs))
    classes = [p.classes for p in parts if p.classes is not None]
    return Table(
        np.concatenate([p.array for p in parts]), parts[0].names, np.concatenate(classes) if classes else None,
        {k: np.concatenate([p.inputs[k] for p in parts]) for k in parts[0].inputs},
    )


def tables(path: Path, size: int, inputs: Sequence[str] = ()) -> Iterator[Table]:
    """The table in parts, of a .parquet `size` rows each. Where all `inputs` have a column, only these are read."""
    parts = (_of_parquet if path.suffix.lower() == ".parquet" else _of_csv)(path, size, inputs)
    first = next(parts, None)
    if first is None:
        raise RunError(f"{path} is empty")
    yield first
    yield from parts


def rows_of_table(path: Path) -> int:
    """How many samples the file holds."""
    if path.suffix.lower() == ".csv":
        lines, _, header = _lines(path)
        return len(lines) - header
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def _chosen(names: Sequence[str], inputs: Sequence[str], path: Path) -> tuple[list[str], str | None]:
    """The columns to read, and the one of classes."""
    classes = next((n for n in CLASSES if n in names and n not in inputs), None)
    chosen = list(inputs) if inputs and set(inputs) <= set(names) else [n for n in names if n != classes]
    twice = [n for n in (*inputs, *CLASSES) if list(names).count(n) > 1]
    if twice:
        raise RunError(f"{path} has several columns {twice[0]!r}")
    if not chosen:
        raise RunError(f"{path} has no column but {classes!r}, which holds classes")
    return chosen, classes


def _classes(column: Array, name: str, path: Path) -> Array:
    if column.ndim != 1 or not np.isfinite(column).all() or (column != np.trunc(column)).any():
        raise RunError(f"{path}: the column {name!r} holds classes, which are whole numbers")
    return column.astype(np.int64)


# -- csv ----------------------------------------------------------------------------------------------------------
def _lines(path: Path) -> tuple[list[str], str | None, int]:
    """(lines, what parts their cells, whether the first is a header)."""
    try:
        lines = [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        raise RunError(f"cannot read {path}: {e}") from e
    mark = max(",;\t", key=lines[-1].count) if lines else ","
    mark_or_space = mark if lines and mark in lines[-1] else None
    return lines, mark_or_space, int(len(lines) > 1 and not _is_numbers(lines[0], mark_or_space))


def _of_csv(path: Path, size: int, inputs: Sequence[str]) -> Iterator[Table]:
    lines, mark_or_space, header = _lines(path)
    if not lines:
        return
    names = [cell.strip() for cell in next(csv.reader(lines[:1], delimiter=mark_or_space or " "))] if header else []
    chosen, classes = _chosen(names, inputs, path) if names else ([], None)
    read = [names.index(n) for n in (*chosen, *([classes] if classes else []))] if set(chosen) == set(inputs) else None
    try:
        rows = np.loadtxt(lines[header:], delimiter=mark_or_space, ndmin=2, usecols=read if names else None)
    except ValueError as e:
        raise RunError(f"{path}: {e}. Each row is one sample, each column a number; only line 1 may be a header.") from e
    shown = names if read is None else [names[k] for k in read]
    if names and rows.shape[1] != len(shown):
        raise RunError(f"{path}: line 1 names {len(shown)} columns, the rows have {rows.shape[1]}")
    if classes is None:
        array, labels = rows, None
    else:
        at = shown.index(classes)
        array, labels, shown = np.delete(rows, at, 1), _classes(rows[:, at], classes, path), [n for n in shown if n != classes]
    by_name = {n: _whole(c) for n, c in zip(shown, array.T, strict=True)} if names and read is not None else {}
    yield Table(array, tuple(shown), labels, by_name)


def _whole(column: Array) -> Array:
    """Integers where text has no fractions: ids are read as such."""
    return column.astype(np.int64) if np.array_equal(column, np.trunc(column)) and np.abs(column).max() < 2**53 else column


def _is_numbers(line: str, mark: str | None) -> bool:
    try:
        return bool([float(cell) for cell in line.split(mark)])
    except ValueError:
        return False


# -- parquet ------------------------------------------------------------------------------------------------------
def _of_parquet(path: Path, size: int, inputs: Sequence[str]) -> Iterator[Table]:
    with _opened(path) as file:
        stored = file.schema_arrow
        index = [n for n in (stored.pandas_metadata or {}).get("index_columns", []) if isinstance(n, str)]
        chosen, classes = _chosen([n for n in stored.names if n not in index], inputs, path)
        at = 0
        shapes: dict[str, tuple[int, ...]] = {}
        for batch in file.iter_batches(size, columns=[*chosen, *([classes] if classes else [])]):
            columns = {n: _numbers(batch.column(n), f"{path}, column {n!r}", at) for n in batch.schema.names}
            for name, column in columns.items():
                if shapes.setdefault(name, column.shape[1:]) != column.shape[1:]:
                    raise RunError(f"{path}, column {name!r}: {_LISTS} ({shapes[name]}, from row {at + 1} on {column.shape[1:]})")
            at += len(batch)
            labels = _classes(columns.pop(classes), classes, path) if classes else None
            if len(batch):
                yield _table(columns, labels, set(chosen) == set(inputs))


_LISTS = "its lists differ in length, so they are no axis"


def _table(columns: Mapping[str, Array], classes: Array | None, named: bool) -> Table:
    held = list(columns.items())
    if len(held) == 1 and held[0][1].ndim > 1:
        return Table(held[0][1], (), classes, dict(held) if named else {})
    flat = [c.reshape(len(c), -1) for _, c in held]
    names = tuple(n if c.ndim == 1 else f"{n}[{k}]" for (n, c), f in zip(held, flat) for k in range(f.shape[1]))
    return Table(np.concatenate(flat, axis=1), names, classes, dict(held) if named else {})


def _numbers(column: Any, where: str, at: int, each: int = 1) -> Array:
    """An Arrow column as (rows, *axes), an axis for each level of lists. Its first element is of row `at`, a row has `each`."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind, rows = column.type, len(column)
    if column.null_count:
        first = int(np.argmax(column.is_null().to_numpy(zero_copy_only=False)))
        raise RunError(f"{where} has no value in row {at + first // each + 1}: fill it or leave the row out")
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        sizes = [kind.list_size] * rows if pa.types.is_fixed_size_list(kind) else np.diff(column.offsets.to_numpy())
        if len(set(sizes)) > 1:
            raise RunError(f"{where}: {_LISTS} (rows from {at + 1} on have {min(sizes)} to {max(sizes)} elements)")
        length = int(next(iter(sizes), 0))
        inner = _numbers(column.flatten(), where, at, each * max(length, 1))
        return inner.reshape(rows, length, *inner.shape[1:])
    if pa.types.is_decimal(kind):
        column = column.cast(pa.float64())
    elif not (pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise RunError(f"{where} is {kind}: a table holds numbers, and lists of numbers of one length")
    found: Array = column.to_numpy(zero_copy_only=False)
    return found


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as e:
        raise RunError('reading .parquet needs pyarrow: pip install "graphattr[data]"') from e
    try:
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:  # else it reads ahead, all of the file
            yield file
    except (pa.ArrowException, OSError) as e:
        raise RunError(f"cannot read {path}: {str(e).splitlines()[0]}") from e
