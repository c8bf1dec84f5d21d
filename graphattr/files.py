"""Files that are there whole or not at all, rows as .csv, and tables of settings that are files or have a name."""

from __future__ import annotations

import csv
import io
import math
import os
import tempfile
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

from .errors import RunError, did_you_mean

T = TypeVar("T")


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside `path` to write to; it takes the place of `path` when the block ends without an exception."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as f:
            yield f
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_atomically(path: Path, chunks: Iterator[bytes] | Sequence[bytes]) -> None:
    """Write the chunks to a temporary file beside `path`, then rename it."""
    with whole_file(path) as f:
        for chunk in chunks:
            f.write(chunk)


def csv_text(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """The rows under a line of names; what is no number is an empty field."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: None if isinstance(v, float) and math.isnan(v) else v for k, v in row.items()} for row in rows)
    return text.getvalue()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def named_or_table(
    name: str | os.PathLike[str], presets: Mapping[str, T], what: str, file: str
) -> T | tuple[dict[str, Any], Path]:
    """The preset of that name, or the content of a .toml file with its path; RunError says which `what` there are."""
    if str(name) in presets:
        return presets[str(name)]
    path = Path(name)
    if path.suffix != ".toml":
        raise RunError(f"no {what} is called {str(name)!r}{did_you_mean(str(name), presets)} "
                       f"(known: {', '.join(presets)}, or the path of a .toml file)")
    try:
        return tomllib.loads(path.read_text("utf-8")), path
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise RunError(f"cannot read the {file} {path}: {e}") from e
