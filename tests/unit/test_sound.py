"""Sound files: every width, channels, windows of the model's length."""

from __future__ import annotations

import wave

import numpy as np
import pytest

import graphattr
from graphattr.preprocess import load_preprocess, read_input
from graphattr.sound import fit_sound, read_wav, time_axis

WAVE = np.sin(np.linspace(0, 20, 50)) * 0.9


def written(path, samples, width=2, rate=8000):
    """A .wav of samples (T,) or (T, channels) in -1 .. 1."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1 if samples.ndim == 1 else samples.shape[1])
        file.setsampwidth(width)
        file.setframerate(rate)
        whole = np.round(samples * (2 ** (8 * width - 1) - 1)).astype("<i4").reshape(-1, 1)
        file.writeframes((whole + 128).astype(np.uint8).tobytes() if width == 1 else whole.view(np.uint8)[:, :width].tobytes())
    return path


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_widths(tmp_path, width):
    sound, rate = read_wav(written(tmp_path / "a.wav", WAVE, width))
    assert rate == 8000
    assert sound.dtype == np.float32
    assert sound.shape == (1, 50)
    assert np.allclose(sound[0], WAVE, atol=1.5 / 2 ** (8 * width - 1) + 1e-6)


def test_channels(tmp_path):
    sound, _ = read_wav(written(tmp_path / "a.wav", np.stack([WAVE, -WAVE, WAVE * 0.5], 1)))
    assert np.allclose(sound, [WAVE, -WAVE, WAVE * 0.5], atol=1e-4)
    for shape, want in ((("N", "T"), (1, 50)), (("N", 1, "T"), (1, 1, 50)), (("N", "T", 1), (1, 50, 1)),
                        (("N", 3, "T"), (1, 3, 50)), (("N", "T", 3), (1, 50, 3)), (("N", "C", "T"), (1, 3, 50)),
                        (("N", 20), (3, 20)), (("N", 20, 1), (3, 20, 1)), (("N", 3, 25), (2, 3, 25))):
        assert fit_sound(sound, shape, "a.wav").shape == want, shape
    assert np.allclose(fit_sound(sound, ("N", "T"), "a.wav")[0], sound.mean(0))
    assert np.array_equal(fit_sound(sound, ("N", "T", 3), "a.wav")[0].T, sound)


def test_windows_are_filled_with_zeros():
    cut = fit_sound(np.arange(1, 51, dtype=np.float32)[None], ("N", 1, 20), "a.wav")
    assert cut.reshape(-1).tolist() == [*range(1, 51), *[0] * 10]


def test_time_is_the_open_or_the_longer_axis():
    shapes = [("N", "T"), ("N", 3, "T"), ("N", "T", 3), ("N", "C", "T"), ("N", 9, 40), ("N", 40, 9), ("N", 1, 1),
              (None, 3, 9, 9), ("N",)]
    assert [time_axis(s) for s in shapes] == [1, 2, 1, 2, 2, 1, 2, None, None]


def test_sounds_that_do_not_fit(tmp_path):
    path = written(tmp_path / "a.wav", WAVE)
    (tmp_path / "bad.wav").write_bytes(b"RIFF")
    (tmp_path / "text.wav").write_text("no sound")
    written(tmp_path / "none.wav", WAVE[:0])
    none = load_preprocess("none")
    for name, shape, words in (("bad.wav", ("N", "T"), "bad.wav"), ("text.wav", ("N", "T"), "text.wav"),
                               ("none.wav", ("N", "T"), "no sound"), ("a.wav", ("N", 3, "T"), "1 channels"),
                               ("a.wav", ("N", 3, 8, 8), "is a sound")):
        with pytest.raises(graphattr.RunError, match=words):
            read_input(tmp_path / name, none, shape, np.float32)
    item = read_input(path, none, ("N", 1, 20), np.float32)
    assert (item.rate, item.array.shape) == (8000, (3, 1, 20))
