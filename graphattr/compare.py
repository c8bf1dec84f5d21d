"""Do two versions of a model predict and explain alike? Sample by sample, as plain data and as a page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from . import measure
from .audit.data import Samples, load_samples
from .audit.page import cells, class_name, document
from .audit.state import plain, write_text
from .canonical import Canonical, canonicalise
from .errors import RunError
from .graph import Array, Value
from .infer import shape_text
from .measure import Measure, Scorer, explained
from .measure.scoring import softmax
from .method import load_method
from .preprocess import Say, print_nothing
from .rule import load_rules
from .runtime import Explainer
from .source import Source, read
from .street import MethodLike, Model, Order, explanation_of
from .version import __version__

WORST = 5


class Difference(dict[str, Any]):
    """What `diff` found, as plain data under its keys."""

    def records(self) -> list[dict[str, Any]]:
        """One row per sample, as `pandas.DataFrame` takes them: sample, title, explained, predicted_a, predicted_b, spearman,
        ssim, top_overlap (NaN where there is none)."""
        p, number = self["prediction"], self["samples"]
        found = {k: m["values"] if m else [None] * number for k, m in self["explanation"].items()}
        return [
            {"sample": i, "title": self["titles"][i], "explained": p["explained"][i],
             **{f"predicted_{side}": classes[i] for side, classes in zip("ab", p["predicted"], strict=True)},
             **{k: float("nan") if v[i] is None else v[i] for k, v in found.items()}}
            for i in range(number)
        ]


def diff(
    a: Model,
    b: Model,
    data: Any,
    method: MethodLike = "lrp.epsilon_plus_flat",
    out: str | os.PathLike[str] | None = None,
    *,
    samples: int = 64,
    top: float = 0.1,
    target: int | None = None,
    labels: Any = None,
    preprocess: str | None = None,
    class_names: Sequence[str] = (),
    batch_size: int = 16,
    providers: Any = None,
    rules: Sequence[str | os.PathLike[str]] = (),
    say: Say = print_nothing,
    **params: Any,
) -> Difference:
    """Do two models predict and explain the same samples alike? Both explain the class that `a` predicts (or `target`).

    Inputs are matched by name, or with one input each by position; where `a` takes NCHW and `b` NHWC (or the reverse), `b` gets
    the pictures transposed and its maps are turned back. `b` may read another type (float16): samples are rounded to it.

    data, labels, preprocess: as for `audit`, for the inputs of `a`. samples: how many at most, spread over the data. top: the
    share of features that counts as the strongest. out: a file to write, an HTML page with the worst samples side by side.

    Keys: version, graphattr, method, params, a and b (name, sha256), samples, titles, input, transposed, prediction (agreement:
    the share of samples with the same class; probability: the largest difference; score: the same, of the scores; accuracy of a
    and b; explained: the class of each sample; predicted: the classes that a and b say),
    explanation (spearman, ssim or null, top_overlap: value, interval, values), samples_worst (sample, title, spearman, ssim,
    top_overlap, a, b: classes, probability: their difference), the least alike first. `records()` gives a row per sample.
    Raises RunError for models that cannot be compared.
    """
    load_rules([os.fspath(r) for r in rules])
    sources = [read(m) for m in (a, b)]
    first, second = (canonicalise(s) for s in sources)
    held = load_samples(first, data, labels, samples, preprocess, say)
    names, axes = _matched(first, second, held)
    types = {v.name: v.dtype for v in second.graph.inputs}
    feeds = [dict(held.feeds), {names[k]: _moved(v, axes.get(k)).astype(types[names[k]]) for k, v in held.feeds.items()}]
    scorers = [Scorer(m, providers=providers, batch_size=batch_size) for m in (a, b)]
    ys = [scorer(f) for scorer, f in zip(scorers, feeds, strict=True)]
    if ys[0].shape != ys[1].shape:
        raise RunError(f"the models cannot be compared: one explains {ys[0].shape[1]} entries, the other {ys[1].shape[1]}")
    aim = scorers[0].target(feeds[0], target)
    order = Order(load_method(method), target="input", params=params)
    shown = [held.name, names[held.name]]
    maps = []
    for model, f, scorer, name in zip((a, b), feeds, scorers, shown, strict=True):
        explainer = Explainer(explanation_of(model, order), providers)
        maps.append(explained(explainer, f, aim, scorer.rows(batch_size)).scores[name])
    maps[1] = _moved(maps[1], _inverse(axes.get(held.name)))
    if maps[0].shape != maps[1].shape:
        raise RunError(f"the maps cannot be compared: {maps[0].shape[1:]} and {maps[1].shape[1:]}")
    alike = _alike(maps, held, top)
    result = Difference(plain({
        "version": 1, "graphattr": __version__, "method": load_method(method).name, "params": params,
        "a": _said(sources[0]), "b": _said(sources[1]), "samples": len(held.x), "titles": held.titles, "input": shown,
        "transposed": bool(axes),
        "prediction": _predictions(ys, aim, held.labels),
        "explanation": {k: m and {"value": m.value, "interval": m.interval(resamples=2000), "values": m.values}
                        for k, m in alike.items()},
        "samples_worst": _worst(alike, ys, held),
    }))
    if out is not None:
        write_text(Path(out), _page(result, held, maps, class_names))
    return result


# -- matching -----------------------------------------------------------------------------------------------------
def _matched(a: Canonical, b: Canonical, held: Samples) -> tuple[dict[str, str], dict[str, tuple[int, ...]]]:
    """(name in b by name in a, axes to move for those of another layout)."""
    ours, theirs = list(a.graph.inputs), {v.name: v for v in b.graph.inputs}
    if len(ours) == len(theirs) == 1:
        names = {ours[0].name: next(iter(theirs))}
    else:
        missing = sorted({v.name for v in ours} ^ set(theirs))
        if missing:
            raise RunError(f"inputs are matched by name, and {', '.join(map(repr, missing))} is in one of the models only: "
                           "rename it")
        names = {v.name: v.name for v in ours}
    axes = {}
    for v in ours:
        moved = _axes(held.feeds[v.name].shape, theirs[names[v.name]], v)
        if moved is not None:
            axes[v.name] = moved
    return names, axes


def _axes(shape: Sequence[int], there: Value, here: Value) -> tuple[int, ...] | None:
    """None where the array fits as it is, the axes of its transposed form where only that fits."""
    for axes in (None, (0, 2, 3, 1), (0, 3, 1, 2)):
        moved = shape if axes is None else [shape[i] for i in axes] if len(shape) == 4 else None
        if moved is not None and _fits(moved, there):
            return axes
    raise RunError(f"input {here.name!r} of shape {shape_text(here.shape)} cannot be matched with {there.name!r} of shape "
                   f"{shape_text(there.shape)}: the samples are {tuple(shape)}")


def _fits(shape: Sequence[int], there: Value) -> bool:
    wanted = there.shape
    return wanted is None or (
        len(wanted) == len(shape) and all(not isinstance(w, int) or w == s for w, s in zip(wanted[1:], shape[1:], strict=True))
    )


def _moved(array: Array, axes: tuple[int, ...] | None) -> Array:
    return array if axes is None or array.ndim != 4 else np.ascontiguousarray(array.transpose(axes))


def _inverse(axes: tuple[int, ...] | None) -> tuple[int, ...] | None:
    return None if axes is None else tuple(int(i) for i in np.argsort(axes))


# -- comparing ----------------------------------------------------------------------------------------------------
def _predictions(ys: Sequence[Array], aim: Array, labels: Array | None) -> dict[str, Any]:
    classes = [y.argmax(1) for y in ys]
    return {
        "agreement": float((classes[0] == classes[1]).mean()) if ys[0].shape[1] > 1 else None,
        "probability": float(_probability(ys).max()) if ys[0].shape[1] > 1 else None,
        "score": float(np.abs(ys[0] - ys[1]).max()),
        "accuracy": None if labels is None else [float((c == labels).mean()) for c in classes],
        "explained": aim, "predicted": classes,
    }


def _probability(ys: Sequence[Array]) -> Array:
    """The largest difference of a probability, per sample."""
    return np.asarray(np.abs(softmax(ys[0]) - softmax(ys[1])).max(1))


def _alike(maps: Sequence[Array], held: Samples, top: float) -> dict[str, Measure | None]:
    flat = [_picture(m, held.layout) for m in maps]
    ssim = None
    if bool(held.layout) and flat[0].ndim == 3 and min(flat[0].shape[1:]) >= 5:
        pairs = [[measure.normalised(m) for m in pair] for pair in zip(*flat, strict=True)]
        ssim = Measure("ssim", np.array([measure.ssim(p, q) for p, q in pairs]), "median")
    a, b = maps
    return {"spearman": measure.spearman(a, b), "ssim": ssim, "top_overlap": measure.top_overlap(a, b, share=top)}


def _picture(m: Array, layout: str) -> Array:
    """(N, H, W): channels summed."""
    return m.sum(-1 if layout == "NHWC" and m.shape[1] != 1 else 1) if m.ndim == 4 else m


def _worst(alike: Mapping[str, Measure | None], ys: Sequence[Array], held: Samples) -> list[dict[str, Any]]:
    """The samples whose maps are ranked least alike; a map without ranks (constant) comes first."""
    ranks = alike["spearman"]
    assert ranks is not None
    order = np.argsort(np.nan_to_num(ranks.values, nan=-2.0), kind="stable")[:WORST]
    probability = _probability(ys)
    return [
        {
            "sample": int(i), "title": held.titles[i], **{k: None if m is None else float(m.values[i]) for k, m in alike.items()},
            "a": int(ys[0][i].argmax()), "b": int(ys[1][i].argmax()), "probability": float(probability[i]),
        }
        for i in order
    ]


def _said(source: Source) -> dict[str, str]:
    name = source.path.name if source.path is not None else source.model.graph.name or "model"
    return {"name": name, "sha256": source.sha256}


# -- the page -----------------------------------------------------------------------------------------------------
def lines(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was found, as (what, value in words)."""
    p, n = found["prediction"], found["samples"]
    rows = [("samples", str(n)), ("largest difference of a score", f"{p['score']:.3g}")]
    if p["agreement"] is not None:
        rows = [rows[0], ("same class predicted", f"{round(p['agreement'] * n)} of {n} ({100 * p['agreement']:.4g} %)"),
                ("largest difference of a probability", f"{p['probability']:.3g}"), rows[1]]
    if p["accuracy"] is not None:
        rows.append(("accuracy of A and B", " and ".join(f"{100 * v:.4g} %" for v in p["accuracy"])))
    named = {
        "spearman": "rank correlation of attributions",
        "ssim": "SSIM of attributions",
        "top_overlap": "strongest features in common",
    }
    for key, said in named.items():
        m = found["explanation"][key]
        if m is not None:
            known = [v for v in m["values"] if v is not None]
            value = "no number" if m["value"] is None else f"{m['value']:.4g} (median), worst {min(known):.4g}"
            rows.append((said, value))
    return rows


def _page(found: Mapping[str, Any], held: Samples, maps: Sequence[Array], names: Sequence[str]) -> str:
    a, b = (f"{side}: {found[side.lower()]['name']}" for side in "AB")
    table = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in lines(found))
    rows = []
    for w in found["samples_worst"]:
        said = [f"rank correlation {_number(w['spearman'])}", f"SSIM {_number(w['ssim'])}" if w["ssim"] is not None else "",
                f"A says {class_name(w['a'], names)}, B says {class_name(w['b'], names)}"]
        caption = f"<p><b>{escape(w['title'])}</b></p>" + "".join(f"<p>{escape(s)}</p>" for s in said if s)
        shown = cells(held, {a: maps[0], b: maps[1]}, w["sample"], found["method"])
        rows.append(f"<tr><td>{caption}</td>{''.join(f'<td>{c}</td>' for c in shown)}</tr>")
    heads = "".join(f"<th>{escape(h)}</th>" for h in ("", held.name, a, b))
    return document("Do two models predict and explain alike?", f"{a}, {b}; method {found['method']}", [
        f"<table>{table}</table>", "<h2>The samples that are explained least alike</h2>",
        f'<div class="wide"><table class="gallery"><tr>{heads}</tr>{"".join(rows)}</table></div>',
        "<h2>Provenance</h2>",
        "<table>" + "".join(f'<tr><th>sha256 of {escape(found[s]["name"])}</th><td class="hash">{found[s]["sha256"]}</td></tr>'
                            for s in ("a", "b")) + f"<tr><th>graphattr</th><td>{__version__}</td></tr></table>",
    ])


def _number(value: float | None) -> str:
    return "no number" if value is None else f"{value:.3g}"

