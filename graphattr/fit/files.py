"""Files as chunks of rows: .npy mapped, .npz member by member, .parquet batch by batch, all else as `explain` reads it."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import RunError, did_you_mean
from ..graph import Array
from ..infer import Shape
from ..preprocess import Preprocess, fit_rows, load_preprocess, read_input
from ..tabular import TABLES, rows_of_table, tables

Chunk = dict[str, Array]
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
ARRAYS = (".npy", ".npz", *TABLES, ".wav")
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def files_in(path: Path) -> list[tuple[Path, int | None]]:
    """(file, class): the file itself; a folder's files; those of its folders, one per class. Classes count in the order of the
    folders' names, or are these names where all are numbers."""
    if not path.exists():
        raise RunError(f"no such file or folder: {path}")
    if path.is_file():
        return [(path, None)]
    inside = sorted(p for p in path.iterdir() if not p.name.startswith("."))
    folders = [p for p in inside if p.is_dir() and _files(p)]
    if folders and _files(path):
        raise RunError(f"{path} holds files and folders: give a folder of files, or one folder per class")
    numbered = all(p.name.isdecimal() for p in folders)
    found: list[tuple[Path, int | None]] = [
        (f, int(folder.name) if numbered else i) for i, folder in enumerate(folders) for f in _files(folder)
    ]
    found = found or [(f, None) for f in _files(path)]
    if not found:
        raise RunError(f"{path} holds no pictures and no arrays ({', '.join((*PICTURES, *ARRAYS))})")
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_file() and f.suffix.lower() in (*PICTURES, *ARRAYS))


def rows_of_file(path: Path, types: Mapping[str, Any]) -> int | None:
    """How many samples a file holds, where its head says so."""
    suffix = path.suffix.lower()
    if suffix in TABLES:
        return rows_of_table(path)
    if suffix not in (".npy", ".npz"):
        return 1 if suffix in PICTURES else None
    return next(iter(shape_of_file(path, types)), 0)


def shape_of_file(path: Path, types: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of the array that a .npy or .npz holds for the first input."""
    if path.suffix.lower() == ".npy":
        return tuple(_mapped(path).shape)
    with _archive(path) as z, z.open(f"{_member(z, path, next(iter(types)), types)}.npy") as f:
        return _header(f, path)[0]


def chunks_of_file(
    path: Path, label: int | None, types: Mapping[str, Any], size: int, pre: Preprocess | None, given: bool = False
) -> Iterator[Chunk]:
    """Rows by input name; `labels` too, where the file or its folder says so. A class that was `given` counts before both."""
    for chunk in _chunks(path, types, size, pre):
        if label is not None and (given or "labels" not in chunk):
            chunk["labels"] = np.full(len(next(iter(chunk.values()))), label, np.int64)
        yield chunk


def _chunks(path: Path, types: Mapping[str, Any], size: int, pre: Preprocess | None) -> Iterator[Chunk]:
    suffix = path.suffix.lower()
    if suffix == ".npz":
        yield from _of_archive(path, types, size)
        return
    if suffix in TABLES:
        yield from _of_table(path, types, size)
        return
    if len(types) != 1:
        raise RunError(f"the model has {len(types)} inputs ({', '.join(types)}), {path} is one array; give .npz with their names")
    (name, (dtype, shape)), = types.items()
    if suffix == ".npy":
        rows = _mapped(path)
        yield from ({name: rows[i : i + size]} for i in range(0, len(rows), size))
        return
    yield {name: read_input(path, pre or load_preprocess("none"), _known(shape, name), dtype or np.float32).array}


def _of_table(path: Path, types: Mapping[str, Any], size: int) -> Iterator[Chunk]:
    """Columns under the names of all inputs, else the columns side by side as the only input."""
    for table in tables(path, size, list(types)):
        if table.inputs:
            chunk = {k: c if c.ndim == len(types[k][1] or c.shape) else c[:, None] for k, c in table.inputs.items()}
        elif len(types) == 1:
            (name, (dtype, shape)), = types.items()
            chunk = {name: fit_rows(table.array, _known(shape, name), dtype or np.dtype(np.float32), path.name)}
        else:
            raise RunError(f"the model has {len(types)} inputs ({', '.join(types)}), and {path} has no columns of these names")
        if table.classes is not None and "labels" not in types:
            chunk["labels"] = table.classes
        yield chunk


def _known(shape: Shape | None, name: str) -> Shape:
    if shape is None:
        raise RunError(f"the shape of input {name!r} is unknown, so files cannot be made to fit; give arrays")
    return shape


def _mapped(path: Path) -> Array:
    try:
        found: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise RunError(f"cannot read {path}: {e}") from e
    if not found.ndim:
        raise RunError(f"{path} holds a single number; the first axis must be samples")
    return found


# -- archives -----------------------------------------------------------------------------------------------------
def _of_archive(path: Path, types: Mapping[str, Any], size: int) -> Iterator[Chunk]:
    """The members of an .npz side by side, `size` rows at a time."""
    with _archive(path) as z, ExitStack() as stack:
        names = {name: _member(z, path, name, types) for name in types}
        if "labels" not in types and "labels.npy" in z.namelist():
            names["labels"] = "labels"
        readers = {k: _Rows(stack.enter_context(z.open(f"{m}.npy")), path, m) for k, m in names.items()}
        counts = {k: r.left for k, r in readers.items()}
        if len(set(counts.values())) > 1:
            raise RunError(f"{path}: different numbers of samples: {', '.join(f'{k} {n}' for k, n in counts.items())}")
        while all(r.left for r in readers.values()):
            yield {k: r.take(size) for k, r in readers.items()}


def _archive(path: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as e:
        raise RunError(f"cannot read {path}: {e}") from e


def _member(z: zipfile.ZipFile, path: Path, name: str, types: Mapping[str, Any]) -> str:
    """The member for an input: that of its name, or the only one where there is one input."""
    held = [n.removesuffix(".npy") for n in z.namelist() if n.endswith(".npy")]
    if name in held:
        return name
    others = [n for n in held if n != "labels"]
    if len(types) == len(others) == 1:
        return others[0]
    raise RunError(f"{path} has no array for the input {name!r}: it holds {', '.join(map(repr, held)) or 'nothing'}"
                   f"{did_you_mean(name, held)} (arrays are named like the model's inputs)")


class _Rows:
    """The rows of an array in a file, in order."""

    def __init__(self, f: IO[bytes], path: Path, name: str) -> None:
        self.f, self.where = f, f"{path}, array {name!r}"
        shape, fortran, self.dtype = _header(f, path)
        if fortran and len(shape) > 1:
            raise RunError(f"{self.where} is stored column by column; save it with np.ascontiguousarray")
        if not shape:
            raise RunError(f"{self.where} is a single number; the first axis must be samples")
        self.left, self.shape = shape[0], shape[1:]

    def take(self, n: int) -> Array:
        n = min(n, self.left)
        wanted = n * prod(self.shape) * self.dtype.itemsize
        try:
            held = self.f.read(wanted)
        except (OSError, zipfile.BadZipFile) as e:
            raise RunError(f"{self.where}: {e}") from e
        if len(held) < wanted:
            raise RunError(f"{self.where} is cut off")
        self.left -= n
        return np.frombuffer(held, self.dtype).reshape(n, *self.shape)


def _header(f: IO[bytes], path: Path) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, stored column by column, dtype) of an array in a file."""
    try:
        version = np.lib.format.read_magic(f)
        shape, fortran, dtype = HEADERS[version](f)
    except (ValueError, KeyError, OSError, zipfile.BadZipFile) as e:
        raise RunError(f"cannot read {path}: {e}") from e
    if dtype.hasobject:
        raise RunError(f"{path} holds Python objects, which are refused")
    return shape, fortran, dtype
