"""How far a fit has come, on disk: what an interrupted fit goes on from."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MethodError, RunError
from ..fitted import load_npz, save_npz
from ..graph import Array
from .data import Batch

SECONDS = 5.0  # between two savings, at least
SHARE = 20.0  # and this many times what the last one took


@dataclass
class Pass:
    """The sums of one way through the data, after so many batches. `check` is a checksum of what was read."""

    batches: int = 0
    samples: int = 0
    check: int = 0
    done: bool = False
    sums: dict[str, Array] = field(default_factory=dict)


@dataclass
class State:
    """The passes of a fit by name. `key` says of which fit; without a path nothing is saved."""

    path: Path | None
    key: Mapping[str, Any]
    passes: dict[str, Pass] = field(default_factory=dict)
    due: float = 0.0

    @classmethod
    def begin(cls, path: str | os.PathLike[str] | None, key: Mapping[str, Any]) -> State:
        """A new state, or the one that lies at the path; MethodError when that is of another fit."""
        state = cls(None if path is None else Path(path), key)
        if state.path is None or not state.path.exists():
            return state
        arrays, manifest = load_npz(state.path, "the state of a fit; remove it, or name another file")
        if "passes" not in manifest:
            raise RunError(f"{state.path} does not hold the state of a fit; name another file")
        for name, value in key.items():
            if manifest["key"].get(name) != value:
                raise MethodError(f"the state in {state.path} is of another fit: its {name.replace('_', ' ')} is "
                                  f"{manifest['key'].get(name)!r}, here it is {value!r}; remove it, or name another file")
        for name, held in manifest["passes"].items():
            state.passes[name] = Pass(**held)
        for entry, array in arrays.items():
            name, _, key_of_sum = entry.partition("::")
            state.passes[name].sums[key_of_sum] = array
        return state

    def save(self) -> None:
        """Write all passes, whole or not at all."""
        if self.path is None:
            return
        start = time.monotonic()
        heads = {n: {k: v for k, v in vars(p).items() if k != "sums"} for n, p in self.passes.items()}
        arrays = {f"{n}::{k}": v for n, p in self.passes.items() for k, v in p.sums.items()}
        save_npz(self.path, arrays, {"key": dict(self.key), "passes": heads})
        self.due = time.monotonic() + max(SECONDS, SHARE * (time.monotonic() - start))

    def save_if_due(self) -> None:
        if time.monotonic() >= self.due:
            self.save()

    def remove(self) -> None:
        """The fit is done: nothing is left to go on from."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def checksum(batch: Batch, before: int) -> int:
    """A running checksum of the data, to notice that they are not those of the interrupted fit."""
    for array in (*batch.feeds.values(), *([] if batch.labels is None else [batch.labels])):
        before = zlib.crc32(str((array.shape, array.dtype)).encode(), before)
        before = zlib.crc32(_bytes(array), before) if array.dtype.kind != "O" else before
    return before


def _bytes(array: Array) -> Any:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
