"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO


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


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
