"""Colours mean what they say, pictures have the promised shape, words fit."""

import subprocess
import sys

import numpy as np
import pytest

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

from graphattr.errors import GraphattrError  # noqa: E402
from graphattr.render import (  # noqa: E402
    Row,
    bars,
    colours,
    grid,
    heatmap,
    overlay,
    panel,
    reduce_channels,
    reduction,
    robust_scale,
    save_png,
)
from graphattr.render.text import font, shorten, width, wrap  # noqa: E402

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (40, 60, 3), dtype=np.uint8)
SIGNED = RNG.normal(size=(3, 40, 60))


def test_reduce_channels():
    a = np.array([[[1.0, -2.0]], [[-3.0, 1.0]]])
    np.testing.assert_array_equal(reduce_channels(a), [[-2, -1]])
    np.testing.assert_array_equal(reduce_channels(a, "max_abs"), [[3, 2]])
    np.testing.assert_array_equal(reduce_channels(a.transpose(1, 2, 0), "max_abs", axis=-1), [[3, 2]])
    np.testing.assert_array_equal(reduce_channels(a[0]), a[0])
    for bad in (lambda: reduce_channels(a, "mean"), lambda: reduce_channels(a[0, 0])):
        with pytest.raises(GraphattrError):
            bad()
    assert (reduction("guided_backprop"), reduction("lrp.epsilon")) == ("max_abs", "sum")


def test_white_is_zero_red_is_for_blue_is_against():
    zero, plus, minus = heatmap(np.array([[0.0, 5.0, -5.0]]))[0].astype(int)
    assert (zero == 255).all()
    assert plus[0] > plus[2]
    assert minus[2] > minus[0]


def test_ramps_fall_evenly_in_lightness():
    for v, sequential in [(np.linspace(0, 1, 64), False), (np.linspace(0, -1, 64), False), (np.linspace(0, 1, 64), True)]:
        light = colours(v, sequential) @ (0.299, 0.587, 0.114)
        assert (np.diff(light) < 0.6).all()
        assert light[0] > light[-1] + 150


def test_symmetric_and_robust():
    a = np.linspace(-1, 1, 400).reshape(20, 20)
    outlier = a.copy()
    outlier[0, 0] = -1e6
    np.testing.assert_array_equal(heatmap(outlier)[1:], heatmap(a, scale=robust_scale(outlier))[1:])
    assert robust_scale(outlier) < 2
    assert robust_scale(np.zeros((3, 3))) == 1.0
    assert robust_scale(np.eye(100)[:1], 50) == 1.0      # a percentile of 0 falls back to the largest


def test_extremes_do_not_warn():
    with np.errstate(all="raise"):
        for a in (np.zeros((2, 2)), np.full((2, 2), np.nan), np.array([[np.inf, -np.inf]]), np.full((2, 2), 1e-300)):
            assert heatmap(a).dtype == np.uint8
    assert (heatmap(np.zeros((2, 2))) == 255).all()


def test_overlay():
    blank = overlay(PHOTO, np.zeros((40, 60)))
    assert (np.ptp(blank.astype(int), axis=-1) == 0).all()
    red = overlay(PHOTO, np.ones((40, 60)), sequential=False).astype(int)
    assert (red[..., 0] > red[..., 2]).all()
    with pytest.raises(GraphattrError, match="resize"):
        overlay(PHOTO, np.zeros((4, 4)))


def test_panel():
    full = panel(PHOTO, SIGNED, "a title that is much longer than the picture is wide " * 4, "legend", side=200)
    alone = panel(None, SIGNED[0], "t", side=200)
    assert full.mode == alone.mode == "RGB"
    assert full.width > 3 * 200 > alone.width
    assert full.getpixel((0, 0)) == full.getpixel((full.width - 1, full.height - 1)) == (255, 255, 255)
    assert panel(PHOTO, np.zeros((1, 7, 7)), "small map", side=200).width == alone.width + 2 * (200 + 200 // 18)


def test_grid():
    rows = [Row(PHOTO, [SIGNED, np.abs(SIGNED[0])], "espresso", "0.95\ncup 0.01")] * 2
    names = ["input", "gradient", "lrp.a_very_long_method_name.that_must_wrap"]
    assert grid(rows, names, "title", "note", side=150).mode == "RGB"
    for bad in ([], [Row(PHOTO, [], "x")]):
        with pytest.raises(GraphattrError, match="a grid needs"):
            grid(bad, ["input"])


@pytest.mark.parametrize("values", [[1.0, -2.0, 0.0], [1, 2, 3], [-1, -2, -3], [0, 0, 0], [np.nan, 1, 2]])
def test_bars(values):
    picture = bars(["a", "b" * 200, "\N{SNOWMAN}"], values, "title", "legend")
    assert picture.width == 960
    seen = {c for _, c in picture.getcolors(1 << 20)}
    assert ((214, 84, 77) in seen) == any(v > 0 for v in values)
    assert ((67, 147, 195) in seen) == any(v < 0 for v in values)


def test_bars_leave_the_weak_out():
    names = [str(i) for i in range(50)]
    assert bars(names, np.arange(50), most=5).height < bars(names, np.arange(50)).height
    with pytest.raises(GraphattrError, match="2 names for 3 values"):
        bars(["a", "b"], [1, 2, 3])


def test_curves():
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    from graphattr.render import curves

    x = np.sin(np.linspace(0, 20, 300))
    one, three = curves(x, np.cos(x), "title", "legend"), curves(np.stack([x] * 3), np.stack([x, -x, x]))
    assert one.mode == three.mode == "RGB"
    assert one.width == three.width
    assert three.height > one.height
    assert curves(np.zeros((9, 20)), np.ones((9, 20)), most=3).height == three.height
    for relevance, reds, blues in ((np.ones(300), True, False), (-np.ones(300), False, True), (np.zeros(300), False, False)):
        seen = {c for _, c in curves(x, relevance).getcolors(1 << 20)}
        assert ((214, 84, 77) in seen, (67, 147, 195) in seen) == (reds, blues)
    with np.errstate(all="raise"):
        curves(np.zeros(1), np.zeros(1), rate=8000)
    with pytest.raises(GraphattrError, match="do not fit"):
        curves(x, x[:5])


def test_long_signals_keep_their_peaks_and_their_sum():
    pytest.importorskip("matplotlib", reason="needs matplotlib")
    from graphattr.render.signals import _binned

    x = np.zeros((1, 5000))
    x[0, 777] = 3
    assert _binned(x, 5, np.maximum).max() == 3
    assert _binned(x, 7, np.add).sum() == 3
    assert _binned(x, 7, np.add).shape == (1, 715)


def test_words_fit():
    of = font(16)
    for text in ("lrp.epsilon_plus_flat and more words", "m" * 99, "", "chocolate sauce 0.05"):
        assert all(width(line, of) <= 120 for line in wrap(text, of, 120))
        assert "".join(wrap(text, of, 120)).replace(" ", "") == text.replace(" ", "")
        assert width(shorten(text, of, 50), of) <= 50
    assert wrap("chocolate sauce 0.05", of, 140)[-1].endswith("0.05")


def test_save_is_atomic(tmp_path):
    save_png(Image.new("RGB", (3, 2)), tmp_path / "new" / "x.png")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.png"]
    assert Image.open(tmp_path / "new" / "x.png").size == (3, 2)
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(GraphattrError, match="cannot write"):
        save_png(Image.new("RGB", (3, 2)), tmp_path / "folder.png")
    assert {p.name for p in tmp_path.iterdir()} == {"new", "folder.png"}


def test_matplotlib_is_left_alone():
    code = "import sys, graphattr.render as r; r.bars(['a'], [1]); sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_texts_need_no_pillow():
    code = ("import sys; sys.modules['PIL'] = None; import graphattr.texts, graphattr.render as r\n"
            "r.page([], 't'); print('a page'); r.bars(['a'], [1])")
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout == "a page\n"
    assert 'pip install "graphattr[images]"' in done.stderr.splitlines()[-1]
