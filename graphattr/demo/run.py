"""The README's main job: two photos, one trained network, six methods, no download."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from graphattr.demo.efficientnet import build
from graphattr.demo.names import class_name
from graphattr.errors import RunError
from graphattr.preprocess import PRESETS, read_input

LOW, HIGH = (0 - 127) / 128, (255 - 127) / 128                      # the darkest and brightest pixel after preprocessing
METHODS: dict[str, dict[str, Any]] = {
    "gradient_x_input": {},
    "dga": {},
    "guided_backprop": {},
    "lrp.epsilon_plus_flat": {},
    "lrp.epsilon_gamma_box": {"low": LOW, "high": HIGH},
    "excitation_backprop": {},
}
PHOTOS = {"cat": "chelsea.png", "coffee": "coffee.png"}             # both CC0, from scikit-image
MODEL = "EfficientNet-Lite0"


@dataclass(frozen=True)
class Prediction:
    """What the network says about one photo: classes from the likeliest on."""

    classes: list[str]
    probabilities: list[float]


def run(out: Path = Path("demo-out")) -> None:
    """Explain the photos and leave pictures and explanation graphs in `out`; predictions and file names go to stdout."""
    from graphattr.render import Row, grid, panel, reduce_channels, reduction, save_png

    photos = load_photos()
    pixels = np.concatenate([item.array for item in photos])
    maps: dict[str, NDArray[Any]] = {}
    logits = np.empty((len(photos), 0), np.float32)
    for method in _talk(METHODS, "explaining"):
        maps[method], logits = explain(method, pixels, out)
    said = [predict(row) for row in logits]
    rows = [Row(_display(item.display), [reduce_channels(maps[m][i], reduction(m)) for m in METHODS],
                p.classes[0], _runners_up(p)) for i, (item, p) in enumerate(zip(photos, said))]
    for name, some in {"grid": rows, **{f"grid.{p}": [row] for p, row in zip(PHOTOS, rows)}}.items():
        page = grid(some, ["input", *METHODS], f"What makes {MODEL} say so", "Every map has its own scale.")
        save_png(page, out / f"{name}.png")
    for i, name in enumerate(_talk(PHOTOS, "painting")):
        for method in METHODS:
            picture = panel(rows[i].photo, maps[method][i], f"{said[i].classes[0]} · {said[i].probabilities[0]:.2f}",
                            f"{method} · {MODEL}", reduction(method))
            save_png(picture, out / f"{name}.{method}.png")
    report(dict(zip(PHOTOS, said)), out)


def load_photos() -> list[Any]:
    """The photos as the network wants them."""
    try:
        import skimage
    except ModuleNotFoundError as e:
        raise RunError('the photos are not installed: pip install "graphattr[demo]"') from e
    folder = Path(skimage.__file__).parent / "data"
    return [read_input(folder / file, PRESETS["lite"], ("N", 3, 224, 224), "float32") for file in PHOTOS.values()]


def explain(method: str, pixels: NDArray[Any], out: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Convert once, save the explanation graph, run it: attributions (N, 3, H, W) and logits (N, 1000)."""
    import graphattr

    explanation = graphattr.convert(build(), method=method, target="argmax", **METHODS[method])
    out.mkdir(parents=True, exist_ok=True)
    explanation.save(out / f"efficientnet_lite0.{method}.onnx")
    a = graphattr.Explainer(explanation)({"image": pixels})
    return a.scores["image"], a.outputs["logits"]


def predict(logits: NDArray[Any], top: int = 5) -> Prediction:
    odds = np.exp(logits - logits.max())
    best = np.argsort(-odds)[:top]
    return Prediction([class_name(int(i)) for i in best], [float(odds[i] / odds.sum()) for i in best])


def _runners_up(p: Prediction, least: float = 0.01) -> str:
    others = [f"{name} {x:.2f}" for name, x in list(zip(p.classes, p.probabilities))[1:4] if x >= least]
    return "\n".join([f"{p.probabilities[0]:.2f}", *(["", *others] if others else [])])


def _display(picture: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    assert picture is not None, "photos are pictures"
    return picture


def report(said: dict[str, Prediction], out: Path) -> None:
    """The predictions and the written files, on stdout."""
    console = Console()
    table = Table(title=f"{MODEL} says", title_justify="left")
    table.add_column("photo")
    table.add_column("class")
    table.add_column("probability", justify="right")
    for name, p in said.items():
        for i, (label, x) in enumerate(zip(p.classes, p.probabilities)):
            table.add_row("" if i else name, label, f"{x:.3f}", end_section=i + 1 == len(p.classes))
    console.print(table)
    for path in sorted(out.glob("*.png")) + sorted(out.glob("*.onnx")):
        print(path)


def _talk(things: Iterable[str], doing: str) -> Iterator[str]:
    """A line per thing on stderr."""
    console = Console(stderr=True)
    for thing in things:
        console.print(f"{doing} {thing} ...", style="dim", highlight=False)
        yield thing
