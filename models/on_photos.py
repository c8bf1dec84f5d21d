"""What papers claim of methods on photos, ours beside theirs: which pixels come first, whether they are where the class is, and
whether as much attribution is worth as much score."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import graphattr
from graphattr import measure
from graphattr.method import load_method

from . import photos as pictures

Array = NDArray[Any]
Row = Sequence[Any]  # of a table; a string is a line of its own
Claim = tuple[str, str, Mapping[str, Any], str]  # what it is called, method, parameters, what the paper says
NOISE = "noise"
"""Stands for a method whose map is noise."""


def maps(model: onnx.ModelProto, x: Array, target: Array, method: str, wrt: str | None = None, **params: Any) -> Array:
    """Attributions of each picture, explained one by one; of NOISE, Gaussian noise of the input's shape."""
    if method == NOISE:
        return np.random.default_rng(0).standard_normal(x.shape)
    explainer = graphattr.Explainer(graphattr.convert(model, method, target="input", wrt=wrt, **params))
    return next(iter(measure.explained(explainer, {explainer.own[0]: x}, target, batch_size=1).scores.values()))


def effort(method: str, passes: int, masks: int = 0) -> dict[str, int]:
    """The parameter that says how often a method runs the model: of RISE `masks`, of any other that has one `passes`."""
    known = {} if method == NOISE else load_method(method).parameters()
    return {name: masks if method == "rise" else passes for name in ("n_steps", "n_samples") if name in known}


def said(params: Mapping[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in params.items() if k not in ("wrt", "layer")) or "-"


# -- Distilled Gradient Aggregation -------------------------------------------------------------------------------
DGA: list[Claim] = [  # the paper's LeRF / MoRF, VGG-16
    ("DGA", "dga", {}, ".434 / .023"),
    ("gradient x input", "gradient_x_input", {}, ".078 / .045"),
    ("integrated gradients", "integrated_gradients", {}, ".096 / .036"),
    ("DeepLIFT Rescale", "deeplift.rescale", {}, ".095 / .027"),
    ("SmoothGrad", "smoothgrad", {}, ".360 / .064"),
    ("SmoothGrad x input", "smoothgrad", {"times_input": True}, "no number"),
    ("RISE", "rise", {}, ".393 / .130"),
    ("Grad-CAM", "grad_cam", {}, ".414 / .111"),
    ("noise", NOISE, {}, "no number"),
]


def areas(model: onnx.ModelProto, x: Array, attribution: Array, target: Array, steps: int) -> tuple[Array, Array]:
    """(LeRF, MoRF) per picture: the area under the class's probability while pixels go to 0, least or most relevant first."""
    scorer = pictures.scorer(model)
    lerf = measure.pixel_flipping(scorer, x, attribution, target, order="lerf", steps=steps).values
    return lerf, measure.pixel_flipping(scorer, x, attribution, target, order="morf", steps=steps).values


def dga(folder: Path, *, photos: int = 25, passes: int = 20, masks: int = 200, steps: int = 25) -> Iterable[Row]:
    """LeRF (higher is better) and MoRF (lower is better) of the class that the network says (Jeon et al. 2022)."""
    model, x = pictures.network(), pictures.load(photos).x
    target = pictures.scorer(model).target(x)
    found: dict[str, tuple[Array, Array]] = {}
    yield "method", "settings", "LeRF", "MoRF", "pictures on which DGA is ahead", "paper, VGG-16"
    for name, method, params, paper in DGA:
        settings = {**params, **effort(method, passes, masks)}
        lerf, morf = found[name] = areas(model, x, maps(model, x, target, method, **settings), target, steps)
        first = found[DGA[0][0]]
        ahead = f"{(first[0] > lerf).sum()} / {(first[1] < morf).sum()} of {len(x)}" if len(found) > 1 else "-"
        yield name, said(settings), f"{lerf.mean():.3f}", f"{morf.mean():.3f}", ahead, paper
    lerfs, morfs = ({name: values[k].mean() for name, values in found.items()} for k in (0, 1))
    yield (f"From the best on, by LeRF: {', '.join(sorted(lerfs, key=lerfs.__getitem__, reverse=True))}. "
           f"By MoRF: {', '.join(sorted(morfs, key=morfs.__getitem__))}. The paper: DGA leads both.")
    yield f"{len(x)} pictures, {steps} steps; pixels go to 0, the grey in the middle of what the network reads."


# -- the grid pointing game ---------------------------------------------------------------------------------------
LAST = "_conv_head.relu6"
"""The last tensor of EfficientNet-Lite0 that has places; the classes read its mean over them."""
AT_LAST = {"wrt": LAST}
GRID: list[Claim] = [
    ("gradient", "gradient", {}, "poor"),
    ("Guided Backprop", "guided_backprop", {}, "poor"),
    ("gradient x input", "gradient_x_input", {}, "poor"),
    ("integrated gradients", "integrated_gradients", {}, "poor"),
    ("gradient", "gradient", AT_LAST, "constant map"),
    ("Guided Backprop", "guided_backprop", AT_LAST, "constant map"),
    ("gradient x input", "gradient_x_input", AT_LAST, "good"),
    ("Grad-CAM", "grad_cam", {"layer": LAST}, "good"),
    ("occlusion", "occlusion", {"patch": 64, "stride": 64}, "no number"),
    ("RISE", "rise", {}, "no number"),
    ("DGA", "dga", {}, "not there"),
    ("LRP EpsilonPlusFlat", "lrp.epsilon_plus_flat", {}, "not there"),
    ("Excitation Backprop, contrastive", "excitation_backprop.contrastive", {}, "not there"),
    ("noise", NOISE, {}, "-"),
]


def in_cell(attribution: Array, cells: Array) -> Array:
    """1 where the most relevant pixel of a 2 x 2 mosaic lies in the cell; NaN where a map has one value everywhere."""
    pixels = attribution.sum(1)
    n, h, w = pixels.shape
    rows, columns = (np.arange(size) * 2 // size for size in (h, w))
    boxes = (2 * rows[:, None] + columns)[None] == np.asarray(cells)[:, None, None]
    flat = np.ptp(pixels.reshape(n, -1), axis=1) <= 1e-5 * np.abs(pixels).reshape(n, -1).max(1)
    return np.where(flat, np.nan, measure.pointing(attribution, boxes).values)


def grid_pointing(folder: Path, *, mosaics: int = 4, passes: int = 10, masks: int = 100) -> Iterable[Row]:
    """The share of the positive attribution that lies in the quarter which shows the class (Boehle et al. 2021)."""
    model = pictures.network()
    made = pictures.mosaics(pictures.load(), model, mosaics)
    yield "method", "attributed to", "settings", "share in the quarter", "largest is in it", "paper"
    for name, method, params, paper in GRID:
        settings = {**params, **effort(method, passes, masks)}
        found = maps(model, made.x, made.labels, method, **settings)
        share, hits = measure.grid_pointing(found, made.cells), in_cell(found, made.cells)
        yield (name, "last layer" if "wrt" in params else "input", said(settings), counted(share.values, ".3f"),
               counted(hits, ".0%"), paper)
    yield f"{mosaics} mosaics, each explained for its four classes; chance is .25."


def counted(values: Array, form: str) -> str:
    """The mean of what is a number, and how many are none."""
    kept = values[np.isfinite(values)]
    lost = f" ({len(values) - len(kept)} of {len(values)} have none)" if len(kept) < len(values) else ""
    return (format(kept.mean(), form) if len(kept) else "-") + lost


# -- ordering and proportionality ---------------------------------------------------------------------------------
INTERPRETING: list[Claim] = [
    ("gradient x input", "gradient_x_input", {}, ""),
    ("integrated gradients", "integrated_gradients", {"quadrature": "riemann_right"}, ""),
    ("SmoothGrad x input", "smoothgrad", {"times_input": True}, ""),
    ("DeepLIFT RevealCancel", "deeplift.reveal_cancel", {}, ""),
    ("LRP alpha2 beta1", "lrp.alpha2_beta1", {}, ""),
    ("Guided Backprop", "guided_backprop", {}, ""),
    ("Grad-CAM", "grad_cam", {}, ""),
    ("noise", NOISE, {}, ""),
]
SIDES = ("N-Ord", "S-Ord", "TPN", "TPS")
"""Necessity and sufficiency, of the order and of the shares."""


def proportionality(folder: Path, *, photos: int = 8, passes: int = 20, steps: int = 10) -> Iterable[Row]:
    """Pixels removed (necessity) and added (sufficiency) in order, and whether equal shares of the attribution change the score
    alike (Wang et al. 2020). All but S-Ord: lower is better."""
    model, x = pictures.network(), pictures.load(photos).x
    scorer = pictures.scorer(model)
    target = scorer.target(x)
    found: dict[str, list[float]] = {}
    yield "method", "settings", *SIDES
    for name, method, params, _ in INTERPRETING:
        settings = {**params, **effort(method, passes)}
        pixels = maps(model, x, target, method, **settings).sum(1, keepdims=True)
        a = np.broadcast_to(pixels, x.shape)  # the three colours of a pixel go together
        kinds: tuple[Any, Any] = ("n", "s")
        found[name] = [f(scorer, x, a, target, kind=k, steps=steps).value
                       for f in (measure.ordering, measure.proportionality) for k in kinds]
        yield name, said(settings), *(f"{v:.3f}" for v in found[name])
    best = {}
    for k, title in enumerate(SIDES):
        values = {name: -row[k] if title == "S-Ord" else row[k] for name, row in found.items()}
        best[title] = min(values, key=values.__getitem__)
    yield f"Best: {', '.join(f'{title} {name}' for title, name in best.items())}. {both_sides(best)}"
    yield f"{len(x)} pictures, {steps} steps; pixels are put to 0 or come from there."


def both_sides(best: Mapping[str, str]) -> str:
    """Whether the paper's conclusion holds: no method is the best both of necessity and of sufficiency."""
    pairs = {"ordering": ("N-Ord", "S-Ord"), "proportionality": ("TPN", "TPS")}
    winners = [f"{best[n]} by {what}" for what, (n, s) in pairs.items() if best[n] == best[s]]
    ours = f"Here one is: {', '.join(winners)}." if winners else "Nor is one here."
    return f"The paper: no method is the best of both necessity and sufficiency. {ours}"
