"""What has been measured already, one file per method and measure, and per batch of maps: a run that was killed goes on there."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RunError, WriteError
from ..files import write_atomically

OWN = re.compile(r"\.?[A-Za-z0-9_.-]+-[a-z0-9_-]+-[0-9a-f]{16}\.(json|npz)(\.\w+\.part)?")


@dataclass(frozen=True)
class State:
    """Findings in `folder`, under names that hold a checksum of all that they depend on; None keeps nothing."""

    folder: Path | None

    def path(self, method: str, measure: str, key: Any, suffix: str = ".json") -> Path | None:
        digest = hashlib.sha256(json.dumps(plain(key), sort_keys=True).encode()).hexdigest()[:16]
        name = f"{re.sub(r'[^A-Za-z0-9_.-]+', '_', method)}-{measure}-{digest}{suffix}"
        return None if self.folder is None else self.folder / name

    def read(self, path: Path | None) -> dict[str, Any] | None:
        if path is None or not path.exists():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError) as e:
            raise RunError(f"cannot read {path}: {e}; remove it to measure again") from e
        return found

    def write(self, path: Path | None, finding: Mapping[str, Any]) -> None:
        if path is not None:
            write_text(path, json.dumps(finding))

    @contextlib.contextmanager
    def open(self) -> Iterator[State]:
        """Itself, with its folder made; what is empty when the block ends goes again."""
        if self.folder is None:
            yield self
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise WriteError(f"cannot make the folder {self.folder}: {e.strerror or e}") from e
        try:
            yield self
        finally:
            for folder in (self.folder, self.folder.parent):
                with contextlib.suppress(OSError):  # it is not empty
                    folder.rmdir()

    def clear(self) -> None:
        """Remove what was kept here, of this audit and of others that were interrupted; what is not the state's own stays."""
        if self.folder is None or not self.folder.is_dir():
            return
        try:
            for path in self.folder.iterdir():
                if OWN.fullmatch(path.name):
                    path.unlink()
        except OSError as e:
            raise WriteError(f"cannot remove the files in {self.folder}: {e.strerror or e}") from e


def write_text(path: Path, text: str) -> Path:
    """Write a file whole or not at all; missing folders are made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, [text.encode()])
    except OSError as e:
        raise WriteError(f"cannot write {path}: {e.strerror or e}") from e
    return path


def plain(value: Any) -> Any:
    """As JSON has it: lists, strings, numbers; what is no number (NaN, infinity) is null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool)) or value is None else str(value)
