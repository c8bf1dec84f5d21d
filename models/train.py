"""Networks of the papers, trained in plain NumPy on data that come inside packages.

    python -m models.train mnist_mlp mnist_cnn halfmoon csc_cifar -o trained

writes NAME.onnx (opset 17, input `x` with any batch, output `logits`) and NAME.npz (`x`, `labels`: what was held out for testing,
`train_x`, `train_labels`), and prints the accuracy.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from .data import Data, digits, digits_on_photos, flat_digits, moons
from .numpy_nets import Layer, channels_first, network, predict, to_onnx, train


@dataclass(frozen=True)
class Recipe:
    """A network, its data and how it is trained. `paper`: what the paper says of it."""

    layers: str
    shape: tuple[int, ...]
    data: Callable[[], Data]
    epochs: int
    batch: int
    lr: float
    paper: str
    seed: int = 0

    def untrained(self) -> list[Layer]:
        return network(self.layers, self.shape, self.seed)


RECIPES = {
    "mnist_mlp": Recipe("dense 512 relu dense 512 relu dense 10", (784,), flat_digits, 10, 100, 1e-3, "MLP-M of MIP-IN"),
    "mnist_cnn": Recipe("conv 32 relu pool conv 64 relu pool flatten dense 128 relu dense 10", (28, 28, 1), digits, 3, 50, 1e-3,
                        "CNN-M of MIP-IN, kernels and widths ours"),
    "csc_cifar": Recipe("conv 32 relu conv 64 relu pool conv 128 relu conv 128 relu pool flatten dense 1024 relu dense 10",
                        (32, 32, 3), digits_on_photos, 3, 50, 1e-3, "the CIFAR-10 network of When Explanations Lie, no dropout"),
    "halfmoon": Recipe("dense 5 relu dense 3 relu dense 1", (2,), moons, 5000, 800, 5e-4, "the half-moon network of DGA", seed=1),
}


def make(name: str, folder: Path) -> str:
    """Train one network and write its files; what there is to say of it."""
    recipe = RECIPES[name]
    data, start = recipe.data(), time.perf_counter()
    layers = train(recipe.untrained(), data.x, data.labels, epochs=recipe.epochs, batch=recipe.batch, lr=recipe.lr)
    right = np.mean(predict(layers, data.test_x) == data.test_labels)
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(to_onnx(layers, recipe.shape, name), folder / f"{name}.onnx")
    np.savez(folder / f"{name}.npz", x=channels_first(data.test_x), labels=data.test_labels,
             train_x=channels_first(data.x), train_labels=data.labels)
    return (f"{name}: {right:.1%} of {len(data.test_x)} test samples, after {recipe.epochs} epochs on {len(data.x)} "
            f"({time.perf_counter() - start:.0f} s); {recipe.paper}")


def main() -> None:
    parser = argparse.ArgumentParser(description="train networks of the papers")
    parser.add_argument("names", nargs="+", choices=RECIPES, metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("-o", "--out", type=Path, default=Path("trained"), metavar="DIR", help="folder (default: trained)")
    options = parser.parse_args()
    for name in options.names:
        print(make(name, options.out), flush=True)


if __name__ == "__main__":
    main()
