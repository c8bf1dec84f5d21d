"""Reading inputs: every preset against its formula written out, every file kind, every refusal."""

import numpy as np
import pytest

from graphattr.errors import GraphattrError
from graphattr.preprocess import PRESETS, Preprocess, denormalise, guess_layout, load_preprocess, read_input

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

NCHW, NHWC = ("N", 3, "H", "W"), (None, 224, 224, 3)
RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (60, 90, 3), dtype=np.uint8)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(PHOTO).save(path)
    return path


def save(tmp_path, pixels, name="x.png", **options):
    Image.fromarray(pixels).save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize(("name", "shape", "low", "high"), [
    ("imagenet", NCHW, -2.2, 2.7), ("tf", NHWC, -1, 1), ("lite", NCHW, -127 / 128, 1), ("none", NCHW, 0, 1)])
def test_preset_is_its_formula(photo, name, shape, low, high):
    pre = load_preprocess(name)
    item = read_input(photo, pre, shape, "float32")
    pixels = item.display.astype(np.float64)
    expected = {"imagenet": (pixels / 255 - PRESETS["imagenet"].mean) / PRESETS["imagenet"].std, "tf": pixels / 127.5 - 1,
                "lite": (pixels - 127) / 128, "none": pixels / 255}[name]
    got = item.array[0].transpose(1, 2, 0) if pre.layout == "NCHW" else item.array[0]
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert item.array.dtype == np.float32
    assert low <= item.array.min()
    assert item.array.max() <= high
    assert item.name == "photo"
    np.testing.assert_array_equal(denormalise(item.array, pre), item.display)


def test_sizes(photo):
    assert read_input(photo, PRESETS["imagenet"], NCHW, "float32").array.shape == (1, 3, 224, 224)
    assert read_input(photo, PRESETS["none"], NCHW, "float32").array.shape == (1, 3, 60, 90)
    assert read_input(photo, PRESETS["imagenet"], ("N", 3, 32, 48), "float32").array.shape == (1, 3, 32, 48)     # the model wins
    assert read_input(photo, PRESETS["tf"], (1, 17, 23, 3), "float32").array.shape == (1, 17, 23, 3)


def test_crop_takes_the_centre(tmp_path):
    pixels = np.zeros((32, 96, 3), np.uint8)
    pixels[8:24, 40:56] = 255
    pre = Preprocess("t", size=32, crop=16)
    assert read_input(save(tmp_path, pixels), pre, NCHW, "float32").array.min() == 1.0


def test_modes_are_read(tmp_path):
    grey = save(tmp_path, PHOTO[..., 0], "grey.png")
    np.testing.assert_array_equal(read_input(grey, PRESETS["none"], NCHW, "float32").display[..., 1], PHOTO[..., 0])
    clear = save(tmp_path, np.dstack([PHOTO, np.zeros(PHOTO.shape[:2], np.uint8)]), "clear.png")
    assert read_input(clear, PRESETS["none"], NCHW, "float32").array.min() == 1.0               # transparent is white
    Image.fromarray(PHOTO).quantize(8).save(tmp_path / "palette.gif")
    assert read_input(tmp_path / "palette.gif", PRESETS["none"], NCHW, "float32").array.shape == (1, 3, 60, 90)
    deep = save(tmp_path, PHOTO[..., 0].astype(np.uint16) * 257, "deep.png")
    np.testing.assert_array_equal(read_input(deep, PRESETS["none"], NCHW, "float32").display[..., 0], PHOTO[..., 0])


def test_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path, PHOTO, "turned.png", exif=exif)
    np.testing.assert_array_equal(read_input(path, PRESETS["none"], NCHW, "float32").display, np.rot90(PHOTO, -1))


def test_colours(photo):
    pre = Preprocess("bgr", scale=1.0, colour="BGR")
    item = read_input(photo, pre, NCHW, "float32")
    np.testing.assert_array_equal(item.array[0, 0], PHOTO[..., 2])
    np.testing.assert_array_equal(denormalise(item.array, pre), PHOTO)
    assert read_input(photo, PRESETS["none"], ("N", 1, 28, 28), "float32").array.shape == (1, 1, 28, 28)     # grey by itself
    raw = read_input(photo, Preprocess("u", layout="NHWC"), ("N", None, None, 3), np.uint8)
    np.testing.assert_array_equal(raw.array[0], PHOTO)


def test_arrays(tmp_path):
    x = RNG.normal(size=(2, 3, 8, 8))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "one.npy", x[0])
    np.savez(tmp_path / "x.npz", ids=np.arange(3), mask=np.ones(3))
    np.savez(tmp_path / "single.npz", anything=x)
    batch = read_input(tmp_path / "x.npy", PRESETS["none"], NCHW, "float32")
    np.testing.assert_array_equal(batch.array, x.astype(np.float32))
    assert batch.display.shape == (8, 8, 3)
    assert read_input(tmp_path / "one.npy", PRESETS["none"], NCHW, "float32").array.shape == (1, 3, 8, 8)
    named = read_input(tmp_path / "x.npz", PRESETS["none"], ("N", "S"), "int64")
    assert set(named.feeds(["ids", "mask"])) == {"ids", "mask"}
    with pytest.raises(GraphattrError, match=r"no array for the input 'idz'.*did you mean 'ids'"):
        named.feeds(["idz"])
    single = read_input(tmp_path / "single.npz", PRESETS["none"], NCHW, "float32")
    assert single.feeds(["input"])["input"].dtype == np.float32


@pytest.mark.parametrize("text", ["a,b,c\n1,2,3\n4,5,6\n", "1;2;3\n4;5;6", "1 2 3\n4 5 6\n",
                                  "\ufeffa\tb\tc\n1\t2\t3\n\n4\t5\t6\n"])
def test_csv(tmp_path, text):
    (tmp_path / "t.csv").write_text(text, "utf-8")
    item = read_input(tmp_path / "t.csv", PRESETS["none"], ("N", 3), "float32")
    np.testing.assert_array_equal(item.array, [[1, 2, 3], [4, 5, 6]])
    assert item.display is None


def test_csv_rows_become_pictures(tmp_path):
    np.savetxt(tmp_path / "digits.csv", np.arange(128).reshape(2, 64), delimiter=",")
    assert read_input(tmp_path / "digits.csv", PRESETS["none"], ("N", 1, 8, 8), "float32").array.shape == (2, 1, 8, 8)


BAD = [("gone.png", NCHW, "no such input file"), ("bad.png", NCHW, "no picture that Pillow can read"),
       ("bad.npy", NCHW, "cannot read"), ("object.npy", NCHW, "cannot read"), ("bad.csv", ("N", 2), "Each row is one sample"),
       ("empty.csv", ("N", 2), "is empty"), ("photo.png", ("N", 10), "read as a picture"),
       ("photo.png", ("N", 4, "H", "W"), "has 4 channels"),
       ("wide.npy", ("N", 4), r"has the shape \(2, 5\), the model wants \(N, 4\)")]


@pytest.mark.parametrize(("name", "shape", "words"), BAD)
@pytest.mark.usefixtures("photo")
def test_refusals(tmp_path, name, shape, words):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "bad.npy").write_bytes(b"no array")
    (tmp_path / "bad.csv").write_text("a,b\n1,x\n")
    (tmp_path / "empty.csv").write_text("\n")
    np.save(tmp_path / "object.npy", np.array([{}], object))
    np.save(tmp_path / "wide.npy", np.zeros((2, 5)))
    with pytest.raises(GraphattrError, match=words):
        read_input(tmp_path / name, PRESETS["imagenet"], shape, "float32")


def test_toml(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('size = 40\ncrop = 32\nmean = [1, 2, 3]\nstd = 2\nscale = "1/255"\nlayout = "NHWC"\ncolour = "BGR"\n')
    assert load_preprocess(path) == Preprocess("mine", 40, 32, (1.0, 2.0, 3.0), (2.0,), 1 / 255, "NHWC", "BGR")
    with pytest.raises(GraphattrError, match="did you mean 'imagenet'"):
        load_preprocess("imagnet")


@pytest.mark.parametrize(("text", "words"), [
    ("sise = 3", "unknown key 'sise'; did you mean 'size'"), ("size = 0", "size = 0 is not"), ("std = 0", "std = 0 is not"),
    ('layout = "CHW"', "is not"), ("mean = [1, 2]", "mean has 2 numbers"), ("size = 3\ncrop = 4", "larger than size"),
    ("size = ", "cannot read")])
def test_toml_refusals(tmp_path, text, words):
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(GraphattrError, match=words):
        load_preprocess(tmp_path / "bad.toml")


def test_guess_layout():
    assert guess_layout(("N", 3, "H", "W"))[0] == "NCHW"
    layout, why = guess_layout((None, 224, 224, 3))
    assert (layout, why) == ("NHWC", "the last axis of (?, 224, 224, 3) has 3 channels")
    assert "default" in guess_layout(("N", "C", "H", "W"))[1]
    assert "both" in guess_layout((1, 3, 8, 3))[1]
    assert "not a picture" in guess_layout(("N", 4))[1]
