"""Photos that come inside packages, 2 x 2 mosaics of them, and the network that explains them. Nothing is copied into this
repository, and no package is imported for its photos."""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from graphattr import measure
from graphattr.demo.efficientnet import build
from graphattr.preprocess import PRESETS, read_input

Array = NDArray[Any]
SIDE = 224
SCENES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
"""Photos of scikit-image of what ImageNet knows; they have no label."""


@cache
def network() -> onnx.ModelProto:
    """EfficientNet-Lite0, trained on ImageNet; it takes pictures of any size."""
    return build()


def data_of(package: str, install: str) -> Path:
    """The folder `data` of an installed package; SystemExit where there is none."""
    found = find_spec(package)
    folder = Path((found.submodule_search_locations or ["."])[0]) / "data" if found else None
    if folder is None or not folder.is_dir():
        raise SystemExit(f"the photos come with {package}: pip install {install}")
    return folder


@dataclass(frozen=True, eq=False)
class Photos:
    """x (N, 3, 224, 224) as the network wants them; labels: classes of ImageNet, -1 where nobody says."""

    x: Array
    labels: Array


def load(most: int | None = None) -> Photos:
    """Foolbox's 20 labelled photos of ImageNet, then those of scikit-image; `most`: only so many."""
    labelled = sorted(data_of("foolbox", "--no-deps foolbox==3.3.4").glob("imagenet_*_*.jpg"))
    folder = data_of("skimage", "scikit-image pillow")
    files = [*labelled, *(folder / name for name in SCENES)][:most]
    x = [read_input(f, PRESETS["lite"], ("N", 3, SIDE, SIDE), "float32").array for f in files]
    return Photos(np.concatenate(x), np.array([int(f.stem.split("_")[2]) if f in labelled else -1 for f in files]))


def scorer(model: onnx.ModelProto) -> measure.Scorer:
    return measure.Scorer(model, batch_size=16)


@dataclass(frozen=True, eq=False)
class Mosaics:
    """x (N, 3, 448, 448): each picture stands once for each class in it. `cells`: where the class is, row by row."""

    x: Array
    labels: Array
    cells: Array


def mosaics(photos: Photos, model: onnx.ModelProto, count: int) -> Mosaics:
    """Seeded mosaics of four photos of four classes, all of which the network gets right."""
    right = scorer(model).target(photos.x) == photos.labels
    _, first = np.unique(photos.labels[right], return_index=True)
    known = np.flatnonzero(right)[np.sort(first)]
    if len(known) < 4:
        raise SystemExit(f"a mosaic needs photos of four classes that the network gets right; of {len(right)} photos it gets "
                         f"{len(known)} classes right")
    random = np.random.default_rng(0)
    chosen = np.stack([random.choice(known, 4, replace=False) for _ in range(count)])
    rows = [np.concatenate([photos.x[chosen[:, k]], photos.x[chosen[:, k + 1]]], 3) for k in (0, 2)]
    return Mosaics(np.concatenate(rows, 2).repeat(4, 0), photos.labels[chosen].reshape(-1), np.tile(np.arange(4), count))
