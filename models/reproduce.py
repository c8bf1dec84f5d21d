"""Figures of the papers, ours beside theirs, on the networks that `python -m models.train` writes, and on photos.

    python -m models.reproduce mip_in_apc        needs mnist_mlp and mnist_cnn
    python -m models.reproduce pattern           needs the same; also writes pattern.png
    python -m models.reproduce csc               needs csc_cifar
    python -m models.reproduce random_logit      needs csc_cifar
    python -m models.reproduce dga               these three need foolbox's photos: pip install --no-deps foolbox==3.3.4
    python -m models.reproduce grid_pointing
    python -m models.reproduce proportionality
"""

import argparse
import inspect
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import graphattr
from graphattr import measure
from graphattr.method import load_method

from .numpy_nets import to_onnx
from .on_photos import Row, dga, grid_pointing, proportionality
from .train import RECIPES

Array = NDArray[Any]


@dataclass(frozen=True)
class Trained:
    """A network and its data, from the folder that `models.train` wrote."""

    name: str
    folder: Path

    def __post_init__(self) -> None:
        if not self.path.exists():
            raise SystemExit(f"{self.path} is missing: python -m models.train {self.name} -o {self.folder}")

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}.onnx"

    def data(self, part: str = "") -> tuple[Array, Array]:
        """(x, labels) for testing, or those of training with part="train_"."""
        with np.load(self.path.with_suffix(".npz")) as held:
            return held[f"{part}x"], held[f"{part}labels"]


# -- MIP-IN -------------------------------------------------------------------------------------------------------
APC = {  # shifts in pixels, digits per class, the paper's APC and positive APC
    "mnist_mlp": (2, 400, "10.10 / 2.6"),
    "mnist_cnn": (0, 200, "16.5 / 2.3"),
}


def mip_in_apc(folder: Path) -> Iterable[Row]:
    """How much the score changes when the input is what MIP-IN reconstructs (Deng et al. 2021, Eq. 10 and 11)."""
    from .mip_in_apc import apc

    yield "network", "APC / positive, test", "training", "paper", "fitted on"
    for name, (shifts, most, paper) in APC.items():
        trained = Trained(name, folder)
        x, labels = trained.data("train_")
        chosen = np.concatenate([np.flatnonzero(labels == c)[:most] for c in range(10)])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", graphattr.FitWarning)  # few digits per class are the setting
            found = apc(onnx.load(trained.path), {"train": (x[chosen], labels[chosen]), "test": trained.data()}, shifts)
        setting = f"{most} digits per class" + (f", moved by up to {shifts} pixels" if shifts else "")
        yield name, f"{found['test']} %", f"{found['train']} %", f"{paper} %", f"{setting}; the paper: 50000 digits"


# -- patterns -----------------------------------------------------------------------------------------------------
def pattern(folder: Path) -> Iterable[Row]:
    """Pictures of PatternAttribution beside the gradient, and how close to rank 1 patterns are."""
    rows: list[Array] = []
    yield "network", "layer", "sigma_1 / sigma_2 of patterns", "of weights", "paper", "fitted on"
    for trained in (Trained("mnist_mlp", folder), Trained("mnist_cnn", folder)):
        data = trained.data("train_")[0]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", graphattr.FitWarning)  # some units hardly ever respond
            fitted = graphattr.fit(trained.path, data, "pattern.attribution", batch_size=250, progress=False)
        x, labels = trained.data()
        x = np.stack([x[labels == c][0] for c in range(10)])
        for method, given in (("gradient", {}), ("pattern.attribution", {"fitted": fitted})):
            rows.append(graphattr.explain(trained.path, x, method, **given).scores["x"].reshape(-1, 28, 28))
        weights = {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(trained.path).graph.initializer}
        for layer, learned in fitted.arrays.items():
            ratios = [measure.singular_ratio(m) for m in (learned["pattern"], weights[f"{layer}.w"])]
            yield trained.name, layer, *(f"{v:.1f}" for v in ratios), "> 6 in most layers of VGG-16", f"{len(data)} digits"
    save_maps(folder / "pattern.png", [x.reshape(-1, 28, 28), *rows])


def save_maps(path: Path, rows: Sequence[Array]) -> None:
    """Rows of pictures: digits in grey, then maps, each at its own scale."""
    from PIL import Image

    from graphattr.render import heatmap, save_png

    grey = [np.repeat((255 * (1 - m))[..., None], 3, -1).astype(np.uint8) for m in rows[0]]
    lines = [np.concatenate(grey, 1), *(np.concatenate([heatmap(m, sequential=False) for m in row], 1) for row in rows[1:])]
    save_png(Image.fromarray(np.concatenate(lines).repeat(4, 0).repeat(4, 1)), path)
    print(path)


# -- When Explanations Lie ----------------------------------------------------------------------------------------
FITTED_ON = 1000
"""Pictures from which patterns are learned."""
FORGETS, REMEMBERS = (">= .99", "near 1"), ("below .99", ".4 to .8")  # what the paper finds: median |cos|, SSIM
CSC: dict[str, tuple[str, dict[str, Any], tuple[str, str]]] = {
    "LRP alpha1 beta0": ("lrp.zplus", {"bias": "ignore"}, ("> 1 - 1e-6 at conv1", "near 1")),
    "LRP alpha2 beta1": ("lrp.alpha2_beta1", {}, FORGETS),
    "LRP alpha5 beta4": ("lrp.alpha5_beta4", {}, (">= .99, VGG-16 below", "near 1")),
    "Deep Taylor": ("deep_taylor.bounded", {"low": 0.0, "high": 1.0}, FORGETS),
    "Excitation Backprop": ("excitation_backprop", {}, FORGETS),
    "PatternAttribution": ("pattern.attribution", {}, FORGETS),
    "PatternNet": ("pattern.net", {}, ("no number", "no number")),
    "Guided Backprop": ("guided_backprop", {}, FORGETS),
    "Deconvnet": ("deconvnet", {}, FORGETS),
    "RectGrad": ("rectgrad", {}, FORGETS),
    "LRP-z": ("lrp.zero", {}, REMEMBERS),
    "DeepLIFT Rescale": ("deeplift.rescale", {}, REMEMBERS),
    "DeepLIFT, ablation": ("deeplift.ablation", {}, FORGETS),
    "gradient": ("gradient", {}, ("no number", "no number")),
}
TENSORS = ("conv4", "conv2", "conv1", "x")


def learned(model: onnx.ModelProto, data: Array, method: str) -> dict[str, Any]:
    """What the method learns from the data, as the parameter that takes it; nothing where it learns nothing."""
    if not load_method(method).fit:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", graphattr.FitWarning)  # some units hardly ever respond
        return {"fitted": graphattr.fit(model, data, method, batch_size=50, progress=False)}


def csc(folder: Path) -> Iterable[Row]:
    """Median |cos| between maps of random relevances that start at the logits: near 1, the map has forgotten them."""
    recipe, trained = RECIPES["csc_cifar"], Trained("csc_cifar", folder)
    noise = np.random.default_rng(0).random((6 + FITTED_ON, 3, 32, 32), np.float32)
    cases = {
        "trained": (onnx.load(trained.path), trained.data()[0][:20], trained.data("train_")[0][:FITTED_ON]),
        "random": (to_onnx(recipe.untrained(), recipe.shape, "random"), noise[:6], noise[6:]),
    }
    yield "method", "network", *TENSORS, "paper"
    for said, (method, params, paper) in CSC.items():
        for kind, (model, x, data) in cases.items():
            given = {**params, **learned(model, data, method)}
            found = measure.cosine_convergence(model, x, method, tensors=TENSORS, **given)
            yield said, kind, *(nines(found[t].value) for t in TENSORS), paper[0]


def nines(v: float) -> str:
    """Three digits, and more nines where there are more."""
    return f"{v:.3f}" if v < 0.99 else f"1 - {1 - v:.0e}"


def random_logit(folder: Path) -> Iterable[Row]:
    """SSIM between the maps of a class and of another, the sign of one free: near 1, the map does not depend on the class."""
    trained = Trained("csc_cifar", folder)
    model, x, data = onnx.load(trained.path), trained.data()[0][:100], trained.data("train_")[0][:FITTED_ON]
    yield "method", "SSIM, median", "99 % interval", "paper"
    for said, (method, params, paper) in CSC.items():
        found = measure.random_logit(model, x, method, seed="onehot", **params, **learned(model, data, method))
        low, high = found.interval(0.99)
        yield said, f"{found.value:.2f}", f"{low:.2f} .. {high:.2f}", paper[1]


# -- command line -------------------------------------------------------------------------------------------------
FIGURES: dict[str, Callable[..., Iterable[Row]]] = {
    f.__name__: f for f in (mip_in_apc, pattern, csc, random_logit, dga, grid_pointing, proportionality)
}
OPTIONS = {
    "photos": "photos, labelled ones first", "mosaics": "mosaics of four photos", "passes": "steps or noisy copies of a method",
    "masks": "masks of RISE", "steps": "steps in which pixels are removed",
}


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no positive whole number")
    return int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description="figures of the papers, ours beside theirs")
    parser.add_argument("name", choices=FIGURES, metavar="NAME", help=", ".join(FIGURES))
    parser.add_argument("-o", "--out", type=Path, default=Path("trained"), metavar="DIR", help="where models.train wrote")
    taken = {name: inspect.signature(f).parameters for name, f in FIGURES.items()}
    for option, text in OPTIONS.items():
        defaults = ", ".join(f"{name} {p[option].default}" for name, p in taken.items() if option in p)
        parser.add_argument(f"--{option}", type=positive, metavar="N", help=f"{text} ({defaults})")
    options = parser.parse_args()
    given = {k: getattr(options, k) for k in OPTIONS if getattr(options, k) is not None}
    for option in given:
        if option not in taken[options.name]:
            parser.error(f"{options.name} takes no --{option}")
    start = time.perf_counter()
    try:
        for row in FIGURES[options.name](options.out, **given):
            print(row if isinstance(row, str) else "| " + " | ".join(map(str, row)) + " |", flush=True)
    except graphattr.GraphattrError as e:
        raise SystemExit(f"error: {e}") from e
    print(f"{time.perf_counter() - start:.0f} s, {time.process_time():.0f} s of a processor")


if __name__ == "__main__":
    main()
