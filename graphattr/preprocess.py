"""Files that a user hands in (photos, .npy, .npz, .csv, .parquet, .wav) become arrays that the model accepts.

A picture is turned upright, resized, cropped, then every channel becomes (value * scale - mean) / std, value = 0 .. 255.
With a crop the short side is resized to `size` and the centre is cut out; without one the picture is squeezed to
`size` x `size`. A height and width fixed by the model always win: the picture then ends at exactly that shape, and
`size / crop` only says how much margin is cut away. Models with integer inputs get the plain 0 .. 255 values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from graphattr.errors import RunError, did_you_mean
from graphattr.files import named_or_table
from graphattr.sound import fit_sound, read_wav
from graphattr.tabular import TABLES, read_table

if TYPE_CHECKING:
    from PIL import Image

Array = NDArray[Any]
Shape = Sequence[int | str | None]
Say = Callable[[str], None]
CHANNELS = {"RGB": 3, "BGR": 3, "L": 1}


@dataclass(frozen=True)
class Preprocess:
    """How a picture becomes an input: resize, crop, colours, (value * scale - mean) / std."""

    name: str
    size: int | None = None
    crop: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1 / 255
    layout: str = "NCHW"
    colour: str = "RGB"
    resample: str = "bilinear"


@dataclass(frozen=True)
class InputItem:
    """One file, read: `array` has the batch axis, `display` is the picture as the model saw it (None if it is none).

    `named` holds all arrays of an .npz file, and `array` is then the first of them. `columns`: the names in a table's first line.
    `rate`: samples per second of a sound, whose windows of one length are the samples of `array`.
    """

    array: Array
    display: NDArray[np.uint8] | None
    name: str
    named: dict[str, Array] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    rate: float | None = None

    def feeds(self, inputs: Sequence[str]) -> dict[str, Array]:
        """The arrays keyed by the model's input names."""
        if not self.named:
            return {inputs[0]: self.array}
        lost = [i for i in inputs if i not in self.named]
        if lost and len(inputs) == len(self.named) == 1:
            return {inputs[0]: self.array}
        if lost:
            raise RunError(f"{self.name} has no array for the input {lost[0]!r}: it holds {', '.join(map(repr, self.named))}"
                           f"{did_you_mean(lost[0], self.named)} (arrays are named like the model's inputs)")
        return {i: self.named[i] for i in inputs}


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PRESETS = {
    p.name: p
    for p in (
        Preprocess("imagenet", 256, 224, IMAGENET_MEAN, IMAGENET_STD),                  # torchvision's evaluation transform
        Preprocess("tf", 224, None, (1.0,), (1.0,), 1 / 127.5, "NHWC"),                 # keras, mode "tf": -1 .. 1
        Preprocess("lite", 256, 224, (127.0,), (128.0,), 1.0, resample="bicubic"),      # EfficientNet-Lite: crop padding 32
        Preprocess("none"),                                                             # 0 .. 1, nothing else
    )
}


def load_preprocess(name: str | Path) -> Preprocess:
    """A preset by name, or the table of a .toml file: size crop mean std scale layout colour resample."""
    found = named_or_table(name, PRESETS, "preprocessing", "preprocessing file")
    return _from_table(*found) if isinstance(found, tuple) else found


def print_nothing(text: str) -> None:
    """For callers who need not be told."""


def preprocess_for(name: str | None, shape: Shape, say: Say = print_nothing) -> Preprocess:
    """The preprocessing asked for, in the layout that the model's input has; a guess is said aloud."""
    pre = load_preprocess(name or "none")
    if len(shape) != 4:
        return pre
    layout, reason = guess_layout(shape)
    if name is None:
        say("no --preprocess given: pictures are scaled to 0..1 and not normalised")
    if name is None or not str(name).endswith(".toml"):
        say(f"layout {layout} (guessed: {reason})")
        return replace(pre, layout=layout)
    return pre


def _from_table(table: dict[str, Any], path: Path) -> Preprocess:
    known = [f.name for f in fields(Preprocess)]
    for key, value in table.items():
        if key not in known:
            raise RunError(f"{path}: unknown key {key!r}{did_you_mean(key, known)} (known: {', '.join(known)})")
        check, wanted = CHECKS[key]
        if not check(value):
            raise RunError(f"{path}: {key} = {value!r} is not {wanted}")
    values: dict[str, Any] = {k: _tuple(v) if k in ("mean", "std") else v for k, v in table.items()}
    if "scale" in values:
        values["scale"] = float(Fraction(values["scale"]))
    pre = Preprocess(**{"name": path.stem, **values})
    for key, numbers in (("mean", pre.mean), ("std", pre.std)):
        if len(numbers) not in (1, CHANNELS[pre.colour]):
            raise RunError(f"{path}: {key} has {len(numbers)} numbers for the {CHANNELS[pre.colour]} channels of {pre.colour}")
    if pre.crop and pre.size and pre.crop > pre.size:
        raise RunError(f"{path}: crop = {pre.crop} is larger than size = {pre.size}")
    return pre


def _tuple(value: Any) -> tuple[float, ...]:
    return tuple(float(v) for v in (value if isinstance(value, list) else [value]))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numbers(value: Any) -> bool:
    return _number(value) or (isinstance(value, list) and bool(value) and all(map(_number, value)))


def _fraction(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and Fraction(value) > 0
    except (ValueError, TypeError, ZeroDivisionError, OverflowError):
        return False


def _pixels(value: Any) -> bool:
    return type(value) is int and value > 0


def _nonzero(value: Any) -> bool:
    return _numbers(value) and all(_tuple(value))


CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "name": (lambda v: isinstance(v, str), "text"),
    "size": (_pixels, "a positive whole number of pixels"),
    "crop": (_pixels, "a positive whole number of pixels"),
    "mean": (_numbers, "a number or a list of numbers"),
    "std": (_nonzero, "a number or a list of numbers other than zero"),
    "scale": (_fraction, 'a positive number or a fraction like "1/255"'),
    "layout": (lambda v: v in ("NCHW", "NHWC"), '"NCHW" or "NHWC"'),
    "colour": (lambda v: isinstance(v, str) and v in CHANNELS, '"RGB", "BGR" or "L"'),
    "resample": (lambda v: v in ("bilinear", "bicubic"), '"bilinear" or "bicubic"'),
}


def guess_layout(shape: Shape) -> tuple[str, str]:
    """("NCHW" | "NHWC", the reason in words), from the place of the axis with 1, 3 or 4 channels."""
    shown = "(" + ", ".join("?" if s is None else str(s) for s in shape) + ")"
    if len(shape) != 4:
        return "NCHW", f"shape {shown} is not a picture's, so channels first is only the default"
    first, last = (isinstance(s, int) and s in (1, 3, 4) for s in (shape[1], shape[3]))
    if first and last:
        return "NCHW", f"axes 1 and 3 of {shown} could both be channels; channels first is the more common order"
    if last:
        return "NHWC", f"the last axis of {shown} has {shape[3]} channels"
    if first:
        return "NCHW", f"axis 1 of {shown} has {shape[1]} channels"
    return "NCHW", f"no axis of {shown} has 1, 3 or 4 channels, so channels first is only the default"


def read_input(path: str | Path, pre: Preprocess, shape: Shape, dtype: DTypeLike, inputs: Sequence[str] = ()) -> InputItem:
    """The file as an array of the input's shape and dtype; `pre` is used for pictures only, arrays are taken as they are.
    A table with a column for each of `inputs` is read as these."""
    path = Path(path)
    if not path.is_file():
        raise RunError(f"no such input file: {path}" if not path.exists() else f"{path} is not a file")
    if path.suffix.lower() in TABLES:
        return _read_table(path, shape, np.dtype(dtype), inputs)
    readers = {".npy": _read_npy, ".npz": _read_npz, ".wav": _read_wav}
    read = readers.get(path.suffix.lower())
    return read(path, pre, shape, np.dtype(dtype)) if read else _read_picture(path, pre, shape, np.dtype(dtype))


def _read_npy(path: Path, pre: Preprocess, shape: Shape, dtype: np.dtype[Any]) -> InputItem:
    array = fit_array(_load(path), shape, dtype, path.name)
    return InputItem(array, denormalise(array, pre), path.stem)


def _read_npz(path: Path, pre: Preprocess, shape: Shape, dtype: np.dtype[Any]) -> InputItem:
    archive = _load(path)
    named: dict[str, Array] = {k: archive[k] for k in archive.files}
    if not named:
        raise RunError(f"{path} holds no array")
    first = next(iter(named.values()))
    array = fit_array(first, shape, dtype, path.name) if len(named) == 1 else first
    return InputItem(array, denormalise(array, pre), path.stem, dict.fromkeys(named, array) if len(named) == 1 else named)


def _load(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise RunError(f"cannot read {path}: {e} (arrays of Python objects are refused)") from e


def _read_table(path: Path, shape: Shape, dtype: np.dtype[Any], inputs: Sequence[str]) -> InputItem:
    table = read_table(path, inputs)
    if table.inputs:
        named = {k: c if c.ndim > 1 else c[:, None] for k, c in table.inputs.items()}
        return InputItem(next(iter(named.values())), None, path.stem, named)
    return InputItem(fit_rows(table.array, shape, dtype, path.name), None, path.stem, columns=table.names)


def _read_wav(path: Path, pre: Preprocess, shape: Shape, dtype: np.dtype[Any]) -> InputItem:
    sound, rate = read_wav(path)
    return InputItem(fit_array(fit_sound(sound, shape, path.name), shape, dtype, path.name), None, path.stem, rate=rate)


def fit_rows(array: Array, shape: Shape, dtype: np.dtype[Any], name: str) -> Array:
    """Rows of a table as samples: their elements are reshaped where only the axes differ."""
    return fit_array(array.reshape(len(array), -1) if array.ndim != len(shape) else array, shape, dtype, name)


def fit_array(array: Array, shape: Shape, dtype: np.dtype[Any], name: str) -> Array:
    """The array with a batch axis, reshaped where only the axes differ, cast to dtype."""
    if array.dtype.kind not in "biuf":
        raise RunError(f"{name} holds {array.dtype}, the model wants {dtype}")
    wanted = list(shape)[1:]
    width = int(np.prod([w for w in wanted if isinstance(w, int)], dtype=np.int64))
    if array.ndim == 2 and len(wanted) != 1 and array.shape[1] == width and all(isinstance(w, int) for w in wanted):
        array = array.reshape([len(array), *(w for w in wanted if isinstance(w, int))])
    if array.ndim == len(wanted):
        array = array[None]
    fits = array.ndim == len(shape) and all(not isinstance(w, int) or w == a for w, a in zip(wanted, array.shape[1:]))
    if not fits:
        raise RunError(f"{name} has the shape {tuple(array.shape)}, the model wants {_shown(shape)}")
    return np.ascontiguousarray(array, dtype)


def _shown(shape: Shape) -> str:
    return "(" + ", ".join("?" if s is None else str(s) for s in shape) + ")"


def _read_picture(path: Path, pre: Preprocess, shape: Shape, dtype: np.dtype[Any]) -> InputItem:
    if len(shape) != 4:
        raise RunError(f"{path.name} is read as a picture, but the model wants {_shown(shape)}: "
                       "give .npy, .npz, or .csv with one sample per row")
    colour = _colour(pre, shape[1 if pre.layout == "NCHW" else 3], shape)
    opened, mode = _open(path), "L" if colour == "L" else "RGB"
    picture = _cut(opened if opened.mode == mode else opened.convert(mode), pre, fixed_size(pre, shape))
    pixels = np.asarray(picture, np.uint8)
    shown = pixels if mode == "RGB" else np.asarray(picture.convert("RGB"), np.uint8)
    return InputItem(normalise(pixels, pre, dtype), shown, path.stem)


def _colour(pre: Preprocess, channels: int | str | None, shape: Shape) -> str:
    """The preset's colours, or grey where the model has one channel and the preset treats all channels alike."""
    if channels == 1 and pre.colour != "L" and len(pre.mean) == len(pre.std) == 1:
        return "L"
    if isinstance(channels, int) and channels != CHANNELS[pre.colour]:
        raise RunError(f"the model's input {_shown(shape)} has {channels} channels in the layout {pre.layout}, the preprocessing "
                       f"{pre.name!r} gives {CHANNELS[pre.colour]} ({pre.colour}): set `layout` and `colour` in a .toml file")
    return pre.colour


def _open(path: Path) -> "Image.Image":
    """The first frame, upright, 8 bits per channel, transparency on white."""
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ModuleNotFoundError as e:
        raise RunError('reading pictures needs Pillow: pip install "graphattr[images]"') from e
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file)
            picture.load()
    except UnidentifiedImageError as e:
        raise RunError(f"{path} is no picture that Pillow can read; arrays come as .npy, .npz or .csv") from e
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise RunError(f"cannot read the picture {path}: {e}") from e
    if picture.mode[0] in "IF":     # Pillow's own conversion clips at 255 and would turn 16-bit scans white
        wide = np.asarray(picture, np.float64)
        return Image.fromarray((wide / 257 if wide.max() > 255 else wide).clip(0, 255).round().astype(np.uint8))
    if picture.has_transparency_data:
        clear = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear)
    return picture


@dataclass(frozen=True)
class Cut:
    """A picture is resized to `wide` x `tall`; the input is `width` x `height` of it, from (`left`, `top`) on."""

    wide: int
    tall: int
    left: int
    top: int
    width: int
    height: int


def cut_of(width: int, height: int, pre: Preprocess, fixed: tuple[int, int] | None) -> Cut:
    """What becomes of an upright picture. `fixed`: (height, width) of the model's input, where the file says so."""
    if pre.crop is None:
        h, w = fixed or ((pre.size, pre.size) if pre.size else (height, width))
        return Cut(w, h, 0, 0, w, h)
    h, w = fixed or (pre.crop, pre.crop)
    margin = (pre.size or pre.crop) / pre.crop
    grow = max(h * margin / height, w * margin / width)
    # truncation of the long side and rounding of the corner as in torchvision, so that its numbers come out
    tall, wide = (max(t, int(s * grow + 1e-6)) for s, t in ((height, h), (width, w)))
    return Cut(wide, tall, round((wide - w) / 2), round((tall - h) / 2), w, h)


def fixed_size(pre: Preprocess, shape: Shape) -> tuple[int, int] | None:
    """(height, width) of a picture's input, where the file says so."""
    height, width = (shape[i] for i in ((2, 3) if pre.layout == "NCHW" else (1, 2)))
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) of the upright picture."""
    return _open(path).size


def _cut(picture: "Image.Image", pre: Preprocess, fixed: tuple[int, int] | None) -> "Image.Image":
    from PIL import Image

    how = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}[pre.resample]
    c = cut_of(*picture.size, pre, fixed)
    return picture.resize((c.wide, c.tall), how).crop((c.left, c.top, c.left + c.width, c.top + c.height))


def normalise(pixels: NDArray[np.uint8], pre: Preprocess, dtype: np.dtype[Any]) -> Array:
    """uint8 (H, W, 3) or (H, W) -> (1, C, H, W) or (1, H, W, C); integer inputs keep 0 .. 255."""
    x: Array = pixels[..., None] if pixels.ndim == 2 else pixels
    if pre.colour == "BGR" and x.shape[-1] == 3:
        x = x[..., ::-1]
    if dtype.kind not in "iub":
        x = (x.astype(np.float32) * np.float32(pre.scale) - np.array(pre.mean, np.float32)) / np.array(pre.std, np.float32)
    x = x.transpose(2, 0, 1) if pre.layout == "NCHW" else x
    return np.ascontiguousarray(x[None], dtype)


def denormalise(array: Array, pre: Preprocess) -> NDArray[np.uint8] | None:
    """The first sample as an uint8 (H, W, 3) picture, or None if the array is none.

    Values that the preprocessing cannot have produced are stretched from their minimum to their maximum instead.
    """
    if array.ndim != 4 or not array.size:
        return None
    x = np.asarray(array[0], np.float64)
    x = x.transpose(1, 2, 0) if pre.layout == "NCHW" else x
    if x.shape[-1] not in (1, 3) or min(x.shape[:2]) < 2 or not np.isfinite(x).all():
        return None
    usable = len(pre.mean) in (1, x.shape[-1]) and len(pre.std) in (1, x.shape[-1])
    y = (x * np.array(pre.std) + np.array(pre.mean)) / pre.scale if usable and array.dtype.kind not in "iub" else x
    if y.min() < -1 or y.max() > 256:
        y = (x - x.min()) / max(float(np.ptp(x)), 1e-12) * 255
    y = y[..., ::-1] if pre.colour == "BGR" else y
    return np.broadcast_to(y.round().clip(0, 255).astype(np.uint8), (*y.shape[:2], 3)).copy()
