"""How much of a digit's score MIP-IN's source signal keeps: APC and positive APC of a network that `models.train` made.

    python -m models.train mnist_mlp -o trained
    python -m models.mip_in_apc trained/mnist_mlp --shifts 2

For each class c the inverses are fitted on its training samples (--fit-on all: on all of them), moved by up to --shifts pixels,
and S_0 reconstructs the test samples of c from their score. APC = mean |y_c(x) - y_c(S_0)| / |y_c(x)|, the mean over classes of
the mean over samples; the positive APC counts losses only. Both in percent, for training and test samples.
"""

import argparse
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

import graphattr

PAPER = {"mnist_mlp": "10.10 / 2.6", "mnist_cnn": "16.5 / 2.3"}  # Deng et al. 2021, Table 4: 50,000 training digits

Array = NDArray[np.float32]


class Shifted:
    """Digits moved by every (down, right) of at most `most` pixels, one batch after the other, again and again."""

    def __init__(self, x: Array, most: int, batch: int = 500) -> None:
        self.x, self.most, self.batch = x, most, batch

    def __iter__(self) -> Iterator[dict[str, Array]]:
        moves = range(-self.most, self.most + 1)
        for i in range(0, len(self.x), self.batch):
            for down in moves:
                for right in moves:
                    yield {"x": moved(self.x[i : i + self.batch], down, right)}


def moved(x: Array, down: int, right: int) -> Array:
    """Pictures of 28 x 28 pixels, flat or not, moved over a background of 0."""
    wide = np.pad(x.reshape(-1, 28, 28), ((0, 0), (28, 28), (28, 28)))
    return wide[:, 28 - down : 56 - down, 28 - right : 56 - right].reshape(x.shape)


def losses(model: onnx.ModelProto, fitted: graphattr.Fitted, x: Array, label: int) -> NDArray[np.float64]:
    """(y_c(x) - y_c(S_0)) / |y_c(x)| per sample."""
    explainer = graphattr.Explainer(graphattr.convert(model, "mip_in", label, fitted=fitted, reconstruct=True))
    first = explainer({"x": x})
    again = explainer({"x": first.scores["x"]})
    (name,) = first.outputs
    before, after = (run.outputs[name][:, label].astype(np.float64) for run in (first, again))
    return (before - after) / np.abs(before)


def apc(
    model: onnx.ModelProto, parts: dict[str, tuple[Array, NDArray]], shifts: int, fit_on: str = "class", **options: object
) -> dict[str, str]:
    """APC / positive APC of each part, in percent."""
    found = {name: list[tuple[float, float]]() for name in parts}
    x, labels = parts["train"]
    for label in np.unique(labels):
        data = Shifted(x if fit_on == "all" else x[labels == label], shifts)
        fitted = graphattr.fit(model, data, "mip_in", target=int(label), fit_on="all", batch_size=500, **options)
        for name, (rows, classes) in parts.items():
            lost = losses(model, fitted, rows[classes == label], int(label))
            found[name].append((float(np.abs(lost).mean()), float(np.maximum(lost, 0).mean())))
    return {name: " / ".join(f"{100 * v:.2f}" for v in np.mean(rows, axis=0)) for name, rows in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="APC of MIP-IN")
    parser.add_argument("network", type=Path, help="what models.train wrote, without .onnx and .npz")
    parser.add_argument("--shifts", type=int, default=0, metavar="PIXELS", help="move the fitting samples by up to so many")
    parser.add_argument("--fit-on", choices=("class", "all"), default="class")
    parser.add_argument("--signal", choices=("scalar", "vector"), default="scalar")
    parser.add_argument("--ridge", type=float, default=1e-3)
    chosen = parser.parse_args()
    warnings.simplefilter("once", graphattr.FitWarning)
    held = np.load(chosen.network.with_suffix(".npz"))
    parts = {"train": (held["train_x"], held["train_labels"]), "test": (held["x"], held["labels"])}
    model = onnx.load(chosen.network.with_suffix(".onnx"))
    found = apc(model, parts, chosen.shifts, fit_on=chosen.fit_on, signal=chosen.signal, ridge=chosen.ridge)
    paper = PAPER.get(chosen.network.name, "no number")
    print(f"{chosen.network.name}, {chosen.signal}, fitted on {chosen.fit_on}, shifts {chosen.shifts}, ridge {chosen.ridge:g}: "
          f"train {found['train']}, test {found['test']} (the paper, of a network of its own: {paper})")


if __name__ == "__main__":
    main()
