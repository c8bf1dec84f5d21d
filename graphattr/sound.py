"""Sound files become arrays: uncompressed .wav, by the standard library."""

from __future__ import annotations

import math
import wave
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .errors import RunError
from .graph import Array
from .infer import shape_text


def read_wav(path: Path) -> tuple[Array, int]:
    """(samples (channels, T) as float32 in -1 .. 1, samples per second)."""
    try:
        with wave.open(str(path), "rb") as file:
            channels, width, rate, count = file.getparams()[:4]
            raw = file.readframes(count)
    except (OSError, EOFError, wave.Error) as e:
        raise RunError(f"cannot read {path}: {e or 'the file ends early'} (uncompressed .wav files are read)") from e
    if width == 1:  # the only unsigned one
        samples = np.frombuffer(raw, np.uint8).astype(np.float64) - 128
    elif width == 3:
        bytes3 = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        samples = (np.pad(bytes3, ((0, 0), (1, 0))).copy().view("<i4")[:, 0] >> 8).astype(np.float64)
    else:
        samples = np.frombuffer(raw, f"<i{width}").astype(np.float64)
    if not samples.size:
        raise RunError(f"{path} holds no sound")
    return (samples.reshape(-1, channels).T / 2.0 ** (8 * width - 1)).astype(np.float32), rate


def fit_sound(sound: Array, shape: Sequence[int | str | None], name: str) -> Array:
    """(channels, T) as the model wants it: (N, T), (N, C, T) or (N, T, C). A length that is fixed cuts the sound into windows of
    that length, one per sample, the last one filled with zeros; one channel gets the mean of all."""
    axis = time_axis(shape)
    if axis is None:
        raise RunError(f"{name} is a sound, but the model wants {shape_text(tuple(shape))}: (N, T), (N, C, T) or (N, T, C)")
    channels = 1 if len(shape) == 2 else shape[3 - axis]
    if channels == 1:
        sound = sound.mean(0, keepdims=True)
    elif isinstance(channels, int) and channels != len(sound):
        raise RunError(f"{name} has {len(sound)} channels, the model wants {channels} ({shape_text(tuple(shape))})")
    length = shape[axis]
    if isinstance(length, int):
        windows = -(-sound.shape[1] // length)
        sound = np.pad(sound, ((0, 0), (0, windows * length - sound.shape[1])))
    batch = np.stack(np.split(sound, windows, 1)) if isinstance(length, int) else sound[None]  # (N, C, T)
    return batch[:, 0] if len(shape) == 2 else batch if axis == 2 else batch.transpose(0, 2, 1)


def time_axis(shape: Sequence[int | str | None]) -> int | None:
    """Which axis of a batch of signals is time: the open one, else the longer one, else the last; None for other shapes."""
    if len(shape) == 2:
        return 1
    if len(shape) != 3:
        return None
    first, last = (d if isinstance(d, int) else math.inf for d in shape[1:])
    return 1 if first > last else 2
