"""The page of an audit: verdict, charts, gallery, provenance, in one file that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

import numpy as np

from ..graph import Array
from ..preprocess import denormalise
from ..render.heatmap import colours, heatmap, overlay, reduce_channels, reduction, robust_scale
from .boxes import outlined
from .charts import INKS, Curve, chart, picture
from .data import Samples
from .subject import channels_first
from .verdict import CHECKS

STYLE = """
:root { color-scheme: light }
body { font: 16px/1.55 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #191c21; background: #fff; max-width: 70rem;
       margin: 2.2rem auto; padding: 0 1.5rem; overflow-wrap: break-word }
h1 { font-size: 1.5rem; line-height: 1.3; margin: 0 0 .2rem }
h2 { font-size: 1.15rem; margin: 2.6rem 0 .6rem; padding-top: .9rem; border-top: 1px solid #e6e8eb }
h3 { font-size: 1rem; margin: 1.5rem 0 .2rem }
p { margin: .3rem 0 } .faint { color: #696e76; font-size: .88rem }
table { border-collapse: collapse; margin: .8rem 0; font-size: .92rem } .wide { overflow-x: auto }
th, td { text-align: left; vertical-align: top; padding: .4rem .8rem .4rem 0; border-bottom: 1px solid #e6e8eb }
th { font-weight: 600 } td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td.number small { display: block; color: #696e76 } .verdict td { min-width: 9.5rem } .verdict th:first-child { min-width: 7rem }
body > table :is(th, td) { overflow-wrap: anywhere; min-width: 6rem }
.yes { color: #1d7a43 } .no { color: #b3261e } .open { color: #696e76 }
.yes::before { content: "\\2713\\00a0" } .no::before { content: "\\2717\\00a0" } .open::before { content: "\\2013\\00a0" }
.gate { padding: .6rem .9rem; border-radius: .4rem; margin: .8rem 0 }
.gate.bad { background: #fdecea } .gate.good { background: #e8f5ec }
.chart { margin: .4rem 0 1.2rem; max-width: 46rem } svg { width: 100%; height: auto; display: block }
svg text { font-size: 12px; fill: #696e76 } svg .rule { stroke: #e6e8eb }
.keys span { white-space: nowrap; margin-left: .9rem; font-size: .88rem }
.keys i { display: inline-block; width: 1.4rem; border-top: 3px solid; margin-right: .35rem; vertical-align: middle }
.keys i.dash { border-top-style: dashed } .under { text-align: center }
img { display: block; width: 10rem; height: auto; border: 1px solid #c8cbd0 } img.tiny { image-rendering: pixelated }
.gallery td, .gallery th { border: 0; padding: .2rem .5rem .5rem 0 } .gallery p { font-size: .84rem; max-width: 11rem }
.values { border-collapse: separate; border-spacing: 0; margin: 0; font-size: .82rem }
.values td { border: 0; padding: .05rem .5rem }
.ids { font-size: .82rem; min-width: 9rem; max-width: 22rem } .ids span { border-radius: .2rem; padding: .05rem .2rem }
code, .hash { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .84rem; overflow-wrap: anywhere }
pre { font-size: .8rem; background: #f6f7f8; padding: .8rem; overflow-x: auto; border-radius: .4rem }
@media (max-width: 40rem) {
  body { padding: 0 1rem } img { width: 8rem } .gallery p { max-width: 7rem } .ids { max-width: 16rem }
  svg text { font-size: 20px } svg .more { display: none }
}
""".strip()
MOST_VALUES = 20


def document(title: str, subtitle: str, body: Sequence[str]) -> str:
    """A whole page; `body` is HTML, title and subtitle are text."""
    return "\n".join([
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>",
        f'<h1>{escape(title)}</h1>\n<p class="faint">{escape(subtitle)}</p>',
        *body,
        "</body>\n</html>\n",
    ])


Maps = Mapping[str, Mapping[str, Array]]  # attributions of the samples by method and input


def page(report: Mapping[str, Any], samples: Samples, maps: Maps, gallery: int, names: Sequence[str] = ()) -> str:
    """The report as HTML; the maps of the first `gallery` samples are shown."""
    model, about = report["model"], report["samples"]
    accuracy = "" if about["accuracy"] is None else f", {100 * about['accuracy']:.3g} % of them classified as labelled"
    subtitle = f"{about['number']} samples of {', '.join(about['inputs'])}{accuracy}; profile {report['settings']['name']}"
    return document(f"Can the explanations of {model['name']} be trusted?", subtitle, [
        *_verdict(report),
        "<h2>Charts</h2>", *_charts(report),
        "<h2>Samples</h2>", _gallery(report, samples, maps, gallery, names),
        "<h2>Numbers</h2>", _numbers(report),
        "<h2>Provenance</h2>", *_provenance(report),
    ])


# -- the verdict --------------------------------------------------------------------------------------------------
def _verdict(report: Mapping[str, Any]) -> list[str]:
    methods = report["methods"]
    found = [f"<p><b>{escape(name)}</b>{escape(m['summary'].removeprefix(name))}.</p>" for name, m in methods.items()]
    if report["gate"]:
        bad = [line for line in report["gate"] if line["failed"]]
        broken = "".join(f"<br>{escape(_gate_line(line))}" for line in bad)
        head = f"The gate fails in {len(bad)} of {len(report['gate'])} cases" if bad else "The gate is passed"
        found.append(f'<p class="gate {"bad" if bad else "good"}"><b>{head}</b>{broken}</p>')
    asked = [c for c in CHECKS if any(line["check"] == c for m in methods.values() for line in m["verdict"])]
    rows = []
    for check in asked:
        cells = [next((line for line in m["verdict"] if line["check"] == check), None) for m in methods.values()]
        rows.append(f"<tr><th>{escape(CHECKS[check])}</th>{''.join(map(_cell, cells))}</tr>")
    heads = "".join(f"<th>{escape(name)}</th>" for name in methods)
    return [*found, f'<div class="wide"><table class="verdict"><tr><th></th>{heads}</tr>{"".join(rows)}</table></div>']


def _gate_line(line: Mapping[str, Any]) -> str:
    value = f"not measured ({line['reason']})" if line["value"] is None else f"{line['value']:.4g}"
    return f"{line['method']}: fails {line['rule']!r}: {line['metric']} is {value}"


def _cell(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return "<td></td>"
    mark = {True: "yes", False: "no", None: "open"}[line["passed"]]
    return f'<td class="{mark}">{escape(line["text"])}</td>'


# -- charts -------------------------------------------------------------------------------------------------------
def _charts(report: Mapping[str, Any]) -> list[str]:
    inks = {name: INKS[i % len(INKS)] for i, name in enumerate(report["methods"])}

    def of(measure: str) -> dict[str, Any]:
        held = {n: m["measures"].get(measure) for n, m in report["methods"].items()}
        return {n: f for n, f in held.items() if f is not None and not f["skipped"]}

    found = []
    for draw, measure in ((_cascade, "randomisation"), (_convergence, "convergence"), (_flipping, "flipping")):
        shown = of(measure)
        if shown:
            found += draw(shown, [inks[n] for n in shown])
    return found or ['<p class="faint">Nothing that was measured has a curve.</p>']


def _cascade(found: Mapping[str, Any], inks: Sequence[str]) -> list[str]:
    curves, details = [], next(iter(found.values()))["details"]
    for name, f in found.items():
        c = f["details"]["curve"]
        ys, low, high = ([1.0, *c[k]] for k in ("middle", "low", "high"))
        curves.append(Curve(name, [0, *f["details"]["depths"]], ys, low, high))
    depths = [0, *details["depths"]]
    compare = {"ssim": "SSIM", "|spearman|": "absolute rank correlation"}[next(iter(found.values()))["settings"]["compare"]]
    names = f"from {details['layers'][0]!r} to {details['layers'][-1]!r}"
    return [
        "<h3>What remains of a map when layers forget what they learned</h3>",
        ('<p class="faint">Layers with weights are re-initialised from the output down; the same class is explained. A curve '
         "that stays near 1 belongs to a method that ignores these layers. Median and 95 % bootstrap interval.</p>"),
        chart(curves, _thin([(d, str(d)) for d in depths]), f"layers re-initialised, {names}", compare, inks=inks),
    ]


def _convergence(found: Mapping[str, Any], inks: Sequence[str]) -> list[str]:
    details = next(iter(found.values()))["details"]
    names, curves = details["tensors"], []
    for method, f in found.items():
        p = np.array([[np.nan if v is None else v for v in row] for row in f["details"]["percentiles"]])
        low, high = ([None if np.isnan(v) else float(v) for v in np.abs(p[:, k])] for k in (4, 6))
        curves.append(Curve(method, range(len(names)), f["details"]["curve"], low, high))
    curves.append(Curve("independent random vectors", range(len(names)), details["baseline"], guide=True))
    return [
        "<h3>Does the explanation depend on what is explained?</h3>",
        ('<p class="faint">Random relevances start at the output; the curve is |cos| between what becomes of them at the inputs '
         "of layers, from the output down. At 1 the map no longer depends on the layers above. Median, and the 20th and 80th "
         "percentile as a band.</p>"),
        chart(curves, _thin([(i, _short(n)) for i, n in enumerate(names)]), "tensor, from the output down to the input",
              "|cos|", inks=inks),
    ]


def _flipping(found: Mapping[str, Any], inks: Sequence[str]) -> list[str]:
    def curves(way: str, name: str | None = None, mirrored: bool = False) -> list[Curve]:
        made = []
        for method, f in found.items():
            held = {k: v[::-1] if mirrored else v for k, v in f["details"][way].items()}
            xs = [k / (len(held["middle"]) - 1) for k in range(len(held["middle"]))]
            made.append(Curve(name or method, xs, held["middle"], held["low"], held["high"]))
        return made

    ticks = [(k / 4, f"{25 * k} %") for k in range(5)]
    chance, there = curves("random", "in random order")[0], curves("random", "in random order", True)[0]
    guides = [replace(c, low=(), high=(), guide=True) for c in (chance, there)]
    return [
        "<h3>Does the ranking find what counts?</h3>",
        ('<p class="faint">The probability of the explained class while features are replaced by the baseline, the most relevant '
         "first (deletion, lower is better), and while they come back to it, the most relevant first (insertion, higher is "
         "better). Mean and 95 % bootstrap interval.</p>"),
        chart([*curves("morf"), guides[0]], ticks, "features deleted", "probability, deletion", inks=inks),
        chart([*curves("lerf", mirrored=True), guides[1]], ticks, "features inserted", "probability, insertion", inks=inks),
    ]


def _thin(ticks: Sequence[tuple[float, str]], most: int = 13) -> list[tuple[float, str]]:
    """So many ticks that their words do not overlap."""
    longest = max(len(said) for _, said in ticks)
    step = max(1, -(-len(ticks) // min(most, max(2, 80 // max(longest, 1)))))
    return [t for i, t in enumerate(ticks) if i % step == 0]


def _short(name: str) -> str:
    return name if len(name) <= 14 else f"\N{HORIZONTAL ELLIPSIS}{name[-13:]}"


# -- gallery ------------------------------------------------------------------------------------------------------
def _gallery(report: Mapping[str, Any], s: Samples, maps: Maps, most: int, names: Sequence[str]) -> str:
    """Samples below one another, the input and each method side by side; several inputs have a row each."""
    several = len(s.names) > 1
    heads = "".join(f"<th>{escape(h)}</th>" for h in ("", "input" if several else s.name, *maps))
    rows = []
    for i in range(min(most, len(s.x))):
        caption = _caption(report, s, i, names)
        for name in s.names:
            shown = cells(s.of(name), {m: held[name] for m, held in maps.items()}, i)
            said = caption + (f"<p>{escape(name)}</p>" if several else "")
            rows.append(f"<tr><td>{said}</td>{''.join(f'<td>{c}</td>' for c in shown)}</tr>")
            caption = ""
    return ('<p class="faint">Red speaks for the explained class, blue against it; yellow to dark red where a method knows no '
            f'against. Every map has its own scale.</p>\n<div class="wide"><table class="gallery"><tr>{heads}</tr>'
            f'{"".join(rows)}</table></div>')


def _caption(report: Mapping[str, Any], s: Samples, i: int, names: Sequence[str]) -> str:
    about = report["samples"]
    said = f"explained: {class_name(about['explained'][i], names)}, probability {about['probability'][i]:.3g}"
    also = [f"predicted: {class_name(about['predicted'][i], names)}"] if about["predicted"][i] != about["explained"][i] else []
    label = [f"label: {class_name(int(s.labels[i]), names)}"] if s.labels is not None else []
    return f"<p><b>{escape(s.titles[i])}</b></p>" + "".join(f"<p>{escape(t)}</p>" for t in (said, *also, *label))


def class_name(index: int, names: Sequence[str]) -> str:
    return names[index] if index < len(names) else f"class {index}"


def cells(s: Samples, maps: Mapping[str, Array], i: int, method: str = "") -> list[str]:
    """The input of sample i and each map, as pictures, strips or tables of values. `maps`: by method, unless all are of one."""
    x = s.x[i]
    photo = denormalise(s.x[i : i + 1], replace(s.pre, layout=s.layout)) if s.layout else None
    if photo is not None:
        drawn = [picture(photo if s.boxes is None else outlined(photo, s.boxes.rows[i]), f"input {i}")]
        for name, a in maps.items():
            flat = reduce_channels(channels_first(a[i : i + 1], s.layout)[0], reduction(method or name))
            small = photo.shape[:2] != flat.shape or max(flat.shape) <= 64
            drawn.append(picture(heatmap(flat) if small else overlay(photo, flat), f"{name}, sample {i}"))
        return drawn
    if x.dtype.kind in "iu" and x.ndim == 1 and all(a[i].shape == x.shape for a in maps.values()):
        return ["", *(_ids(x, a[i]) for a in maps.values())]
    if x.ndim == 1 and x.size <= 4 * MOST_VALUES:
        return ["", *(_values(x, a[i]) for a in maps.values())]
    return [_strip(x, f"input {i}"), *(_strip(a[i], f"{name}, sample {i}") for name, a in maps.items())]


def _strip(a: Array, alt: str) -> str:
    """Signals and sequences as rows of colour."""
    rows = np.asarray(a, np.float64).reshape(-1, a.shape[-1]) if a.ndim > 1 else np.asarray(a, np.float64)[None]
    return picture(np.repeat(heatmap(rows), max(1, 24 // len(rows)), 0), alt)


def _values(x: Array, a: Array) -> str:
    """The strongest features with their values, on the colour of their relevance."""
    flat, paint = np.asarray(a, np.float64).ravel(), _paint(a)
    order = np.argsort(-np.abs(flat), kind="stable")[:MOST_VALUES] if flat.size == x.size else range(min(flat.size, MOST_VALUES))
    rows = []
    for k in order:
        what = f"x{k} = {x[k]:.4g}" if flat.size == x.size else f"x{k}"
        rows.append(f'<tr><td>{what}</td><td class="number" style="{paint(flat[k])}">{flat[k]:+.3g}</td></tr>')
    return f'<table class="values">{"".join(rows)}</table>'


def _ids(x: Array, a: Array) -> str:
    """Ids in their order, on the colour of their relevance."""
    paint = _paint(a)
    spans = (f'<span style="{paint(float(r))}" title="{float(r):+.3g}">{int(v)}</span>' for v, r in zip(x, a, strict=True))
    return f'<p class="ids">{" ".join(spans)}</p>'


def _paint(a: Array) -> Callable[[float], str]:
    """The colours of a value among those of a map."""
    scale = robust_scale(a, 100)

    def style(value: float) -> str:
        rgb = colours(np.array([0.8 * value / scale]))[0]
        ink = "#ffffff" if rgb @ np.array([0.299, 0.587, 0.114]) < 140 else "#191c21"
        return f"background:#{''.join(f'{int(c):02x}' for c in rgb)};color:{ink}"

    return style


# -- numbers and provenance ---------------------------------------------------------------------------------------
def _numbers(report: Mapping[str, Any]) -> str:
    methods = report["methods"]
    every = [pair for m in methods.values() for pair in m["measures"].items()]
    metrics = dict.fromkeys((name, metric) for name, f in every for metric in f["names"])
    rows = []
    for measure, metric in metrics:
        held = [m["measures"][measure] for m in methods.values()]
        rows.append(f"<tr><th>{escape(metric)}</th>" + "".join(_number(f, metric) for f in held) + "</tr>")
    heads = "".join(f"<th>{escape(name)}</th>" for name in methods)
    return f'<div class="wide"><table><tr><th></th>{heads}</tr>{"".join(rows)}</table></div>'


def _number(f: Mapping[str, Any], metric: str) -> str:
    if f["skipped"]:
        return f'<td class="open">{escape(f["skipped"])}</td>'
    value, interval = f["metrics"].get(metric), f["interval"]
    said = "no number" if value is None else f"{value:.4g}"
    if interval and metric == f["names"][0] and None not in interval:
        said += f"<small>{interval[0]:.3g} to {interval[1]:.3g}</small>"
    return f'<td class="number">{said}</td>'


def _provenance(report: Mapping[str, Any]) -> list[str]:
    model, about = report["model"], report["samples"]
    rows = {
        "model": model["name"], "sha256 of the file": model["sha256"],
        "inputs": ", ".join(f"{k} {v}" for k, v in model["inputs"].items()), "outputs": ", ".join(model["outputs"]),
        "samples": f"{about['number']}, sha256 {about['sha256']}", "explained": f"{about['target']} of {about['output']}",
        "graphattr": report["graphattr"],
        "methods": "; ".join(
            name + (f" ({', '.join(f'{k}={v}' for k, v in m['params'].items())})" if m["params"] else "")
            + (f", {m['source']}" if m["source"] else "")
            for name, m in report["methods"].items()
        ),
        "seed": str(report["settings"]["seed"]), "run on": report["settings"]["provider"],
    }
    lines = "".join(f'<tr><th>{escape(k)}</th><td class="hash">{escape(v)}</td></tr>' for k, v in rows.items())
    settings = escape(json.dumps(report["settings"], indent=1))
    return [f"<table>{lines}</table>", f"<details><summary>profile</summary><pre>{settings}</pre></details>"]
