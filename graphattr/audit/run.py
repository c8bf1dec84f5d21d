"""The audit: a model, data and methods go in; findings, a verdict, `report.json` and `report.html` come out."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..canonical import canonicalise
from ..errors import GraphattrError, RunError
from ..files import csv_text
from ..fit.progress import Bar
from ..fitted import Fitted, fingerprint, load_npz, needing, opened, save_npz
from ..graph import Array
from ..infer import shape_text
from ..measure import Joint, Measure, Scorer, explained, joined
from ..measure.scoring import softmax
from ..method import Method, load_method
from ..preprocess import Say, print_nothing
from ..rule import load_rules
from ..runtime import Attribution, Explainer
from ..source import Source, read
from ..street import MethodLike, Model, Order, explanation_of, methods_of
from ..targets import explained_output
from ..version import __version__
from .data import Samples, load_samples
from .gate import parse
from .measures import MEASURES, Finding, check_measures
from .page import page
from .profile import THRESHOLDS, Profile, load_profile
from .records import SAMPLE, metric_rows, sample_rows
from .state import State, plain, write_text
from .subject import Subject
from .verdict import sentences, summary

SCHEMA = 1
METHODS = ("gradient", "lrp.epsilon_plus_flat")


@dataclass(frozen=True)
class Report:
    """`data`: what `report.json` holds. `html`: the page. `ok`: whether no rule of the gate failed. `timings`: seconds by method
    and measure, `maps` those of the maps of the samples; they are no part of the report, which is the same for the same seed.

    data: version (of this schema, 1), graphattr, ok, model (name, sha256, inputs, outputs), samples (number, sha256, inputs,
    output, target, labelled, accuracy, labels, predicted, explained, probability), settings (name of the profile, samples,
    gallery, seed, measures, thresholds, fail_on, provider), methods (by name: params, expects, source, summary, verdict: [check,
    question, passed, text], measures: by name [names, metrics, skipped, values, interval, details, settings]), gate ([rule,
    method, metric, value, failed, reason]). What is no number is null.
    """

    data: Mapping[str, Any]
    html: str
    timings: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return bool(self.data["ok"])

    @property
    def failures(self) -> list[str]:
        """The rules of the gate that failed, in words."""
        return [
            f"{line['method']} fails {line['rule']!r}: {line['metric']} is "
            f"{'not measured: ' + line['reason'] if line['value'] is None else format(line['value'], '.4g')}"
            for line in self.data["gate"] if line["failed"]
        ]

    def records(self, by: Literal["sample", "metric"] = "sample") -> list[dict[str, Any]]:
        """Plain rows, as `pandas.DataFrame` takes them; what is no number is NaN.

        by="sample": method, measure, metric, sample, explained, predicted, label, value; one row per method, measure and sample,
        of the measures with a value per sample. by="metric": method, measure, metric, value, low, high (the interval of a
        measure's first metric), passed (None: not measured, or no check), skipped (why). RunError for another `by`.
        """
        if by not in ("sample", "metric"):
            raise RunError(f'records are by "sample" or by "metric", not by {by!r}')
        return sample_rows(self.data) if by == "sample" else metric_rows(self.data)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write report.json, report.csv (the records by sample), timings.json and report.html, each whole or not at all; returns
        the page's path."""
        write_text(Path(folder) / "report.json", json.dumps(self.data, indent=1, allow_nan=False) + "\n")
        write_text(Path(folder) / "report.csv", csv_text(self.records(), SAMPLE))
        write_text(Path(folder) / "timings.json", json.dumps(self.timings, indent=1) + "\n")
        return write_text(Path(folder) / "report.html", self.html)


@dataclass(frozen=True)
class Asked:
    """What is explained: see `audit`."""

    target: Any
    output: str | None
    wrt: Any


@dataclass(frozen=True)
class Bench:
    """What all methods of an audit share."""

    model: Model
    source: Source
    samples: Samples
    asked: Asked
    scorer: Scorer
    scores: Array
    target: Array
    profile: Profile
    state: State
    key: Mapping[str, Any]
    batch_size: int
    providers: Any
    shared: dict[Any, Any] = field(default_factory=dict)  # what does not depend on the method


def audit(
    model: Model,
    data: Any,
    methods: MethodLike | Sequence[MethodLike] = METHODS,
    profile: str | os.PathLike[str] | Profile = "standard",
    out: str | os.PathLike[str] | None = None,
    *,
    labels: Any = None,
    boxes: str | os.PathLike[str] | None = None,
    target: Any = "argmax",
    output: str | None = None,
    wrt: str | Sequence[str] | None = None,
    fail_on: Sequence[str] = (),
    preprocess: str | None = None,
    class_names: Sequence[str] = (),
    fitted: Any = None,
    batch_size: int = 16,
    progress: bool | None = None,
    providers: Any = None,
    rules: Sequence[str | os.PathLike[str]] = (),
    say: Say = print_nothing,
    **params: Any,
) -> Report:
    """Can these methods' explanations of the model be trusted? Measured on data, said in words, with a page to look at.

    data: as for `fit`: arrays, dicts, .npz, .npy, tables, pictures, folders (one per class). labels: a class per sample, as for
        `fit`. boxes: where the objects of pictures are, for the measure `localisation`: COCO's .json, Pascal VOC's .xml or a
        folder of these.
    profile: "quick", "standard", "full", or the path of a .toml: samples, gallery, seed, fail_on, [measures.NAME] with settings,
        [thresholds]. The result is the same for the same seed.
    out: a folder for report.json, report.csv, report.html and timings.json; until they are written it holds `state`, what
        has been measured, and an interrupted audit goes on there.
    target: the class that is explained: "argmax" (the predicted one), "labels", or an index. output: the output that is explained
        (default: the first float one). wrt: the inputs that are explained (default: all float ones, or without any the ids that
        are looked up); several count as one map.
    fail_on: rules such as "completeness > 0.01", for one method "gradient: insensitive_layers >= 3"; `Report.ok` is False where
        one holds, or where its metric could not be measured.
    params: parameters of the methods, each for those that know it.

    Raises what `convert` and `fit` raise.
    """
    load_rules([os.fspath(r) for r in rules])
    chosen = load_profile(profile)
    if boxes is not None:
        chosen = replace(chosen, measures={**chosen.measures, "localisation": chosen.measures.get("localisation", {})})
    check_measures(chosen.measures)
    asked: list[Any] = list(methods) if isinstance(methods, (list, tuple)) else [methods]
    methods_of(asked, params)
    loaded = [load_method(m) for m in asked]
    gate = parse([*chosen.fail_on, *fail_on], [m.name for m in loaded], chosen.measures)
    held, own = opened(fitted), {}
    for m in loaded:
        own[m.name] = {k: v for k, v in params.items() if k in m.parameters()}
    source = read(model)
    samples = load_samples(canonicalise(source), data, labels, chosen.samples, preprocess, say, wrt, boxes, class_names)
    with State(None if out is None else Path(out) / "state").open() as state:
        bench = _bench(model, source, samples, Asked(target, output, wrt), chosen, state, batch_size, providers, rules)
        found: dict[str, Any] = {}
        maps: dict[str, Mapping[str, Array]] = {}
        timings: dict[str, Mapping[str, float]] = {}
        with Bar(progress).over("auditing", len(loaded) * len(chosen.measures)) as tick:
            for m in loaded:
                needs = needing(m)
                fits = [f for f in held if needs is not None and f.manifest["method"] == needs.name]
                found[m.name], maps[m.name], timings[m.name] = _audited(bench, m, own[m.name], fits, tick)
        lines = [line for rule in gate for line in rule.lines(found)]
        result = {
            "version": SCHEMA,
            "graphattr": __version__,
            "ok": not any(line["failed"] for line in lines),
            **_provenance(bench, [*chosen.fail_on, *fail_on]),
            "methods": found,
            "gate": lines,
        }
        result = plain(result)
        report = Report(result, page(result, samples, maps, chosen.gallery, class_names), timings)
        if out is not None:
            report.save(out)
            state.clear()
        return report


def _bench(
    model: Model, source: Source, samples: Samples, asked: Asked, profile: Profile, state: State, batch_size: int, providers: Any,
    rules: Sequence[Any],
) -> Bench:
    scorer = Scorer(model, asked.output, providers)
    scores = scorer(samples.feeds)
    aim = _target(scores, samples, asked.target)
    size = scorer.rows(batch_size)
    key = {
        "schema": SCHEMA, "version": __version__, "model": fingerprint(source), "samples": samples.sha256,
        "target": aim.tolist(), "output": asked.output, "wrt": list(samples.names), "seed": profile.seed,
        "provider": str(providers or "cpu"), "batch_size": size,
        "rules": [hashlib.sha256(Path(r).read_bytes()).hexdigest() for r in rules],
    }
    return Bench(model, source, samples, asked, scorer, scores, aim, profile, state, key, size, providers)


def _target(scores: Array, samples: Samples, target: Any) -> Array:
    if target == "labels":
        if samples.labels is None:
            raise RunError('target="labels" needs labels: pass labels=, or sort pictures into one folder per class')
        return samples.labels
    if target != "argmax" and not isinstance(target, int):
        raise RunError(f'target is "argmax", "labels" or the index of a class, not {target!r}')
    return np.asarray(scores.argmax(1)) if target == "argmax" else np.full(len(scores), target)


def _audited(
    bench: Bench, m: Method, params: Mapping[str, Any], fits: Sequence[Fitted], tick: Any
) -> tuple[dict[str, Any], Mapping[str, Array], dict[str, float]]:
    """One method's entry of the report, its maps by input, and the seconds that its parts took."""
    key = {**bench.key, "method": m, "params": params, "fitted": [f.manifest for f in fits]}
    run = _runner(bench, m, params, fits)
    maps, sums, delta, seconds = _maps(bench, m, run, key)
    s, timings = bench.samples, {"maps": seconds}
    joint = Joint.of(s.feeds, s.names)
    subject = Subject(
        bench.model, m, params, fits, bench.scorer.of_joint(joint), bench.scores, s.feeds, joint,
        s.layout if len(s.names) == 1 else "", bench.target, joined([maps[n] for n in s.names]), sums, delta,
        lambda feeds: joined([run(joint.split(feeds), bench.target).scores[n] for n in s.names]),
        bench.profile.seed, bench.batch_size, bench.asked.output, bench.asked.wrt, bench.providers, s.boxes, bench.shared,
        lambda part, settings, compute: _kept(bench, m.name, part, {**key, "part": part, "settings": settings}, compute),
    )
    found = {}
    for name, settings in bench.profile.measures.items():
        found[name], timings[name] = _found(bench, subject, name, settings, key)
        tick(1)
    lines = sentences(found, bench.profile)
    entry = {
        "summary": summary(m.name, lines), "params": params, "expects": m.expects, "source": m.source,
        "verdict": lines, "measures": found,
    }
    return entry, maps, timings


def _found(
    bench: Bench, subject: Subject, name: str, settings: Mapping[str, Any], key: Mapping[str, Any]
) -> tuple[dict[str, Any], float]:
    """A finding as plain data and its seconds: measured now, or in a run before. What cannot be measured says why."""
    asked = MEASURES[name]
    given = {**asked.settings, **settings}
    if "insensitive" in given:
        given["insensitive"] = settings.get("insensitive", bench.profile.threshold("insensitive"))
    key = {**key, "boxes": subject.boxes.sha256} if subject.boxes and name == "localisation" else key
    path = bench.state.path(subject.method.name, name, {**key, "measure": name, "settings": given})
    known = bench.state.read(path)
    if known is not None:
        return known["finding"], known["seconds"]
    skipped, start = None, time.perf_counter()
    try:
        finding = asked.run(subject, **given)
    except GraphattrError as e:
        finding, skipped = Finding({}), str(e)
    made: dict[str, Any] = {"names": list(asked.metrics), "skipped": skipped, **plain(finding)}
    seconds = round(time.perf_counter() - start, 3)
    bench.state.write(path, {"finding": made, "seconds": seconds})
    return made, seconds


def _kept(bench: Bench, method: str, part: str, key: Mapping[str, Any], compute: Callable[[], Measure]) -> Measure:
    """A part of a finding: measured now, or in a run before."""
    path = bench.state.path(method, part, key)
    known = bench.state.read(path)
    if known is not None:
        return Measure(known["name"], np.array(known["values"]), known["statistic"])
    found = compute()
    bench.state.write(path, {"name": found.name, "values": found.values.tolist(), "statistic": found.statistic})
    return found


def _runner(bench: Bench, m: Method, params: Mapping[str, Any], fits: Sequence[Fitted]) -> Callable[..., Attribution]:
    """(feeds, targets) -> attributions, by one session that is made when it is first needed."""
    held: list[Explainer] = []
    asked, classes = bench.asked, any(f.manifest.get("targets") for f in fits)
    aim = asked.target if classes and isinstance(asked.target, int) else "input"  # a fit may be of one class

    def run(feeds: Mapping[str, Array], target: Array) -> Attribution:
        if not held:
            order = Order(m, aim, asked.output, asked.wrt, params=params, fitted=fits, delta=m.expects != "nothing")
            held.append(Explainer(explanation_of(bench.model, order), bench.providers))
        return explained(held[0], feeds, target if aim == "input" else None, bench.batch_size)

    return run


def _maps(
    bench: Bench, m: Method, run: Callable[..., Attribution], key: Mapping[str, Any]
) -> tuple[dict[str, Array], Array, Array | None, float]:
    """(attributions by input, their sums, delta, seconds) of the samples, batch by batch: those that the state holds are read."""
    s, parts, seconds = bench.samples, [], 0.0
    for start in range(0, len(s.x), bench.batch_size):
        path = bench.state.path(m.name, f"maps-{start}", key, ".npz")
        if path is not None and path.exists():
            arrays, about = load_npz(path, "attributions of an audit")
        else:
            begun, rows = time.perf_counter(), slice(start, start + bench.batch_size)
            a = run({k: v[rows] for k, v in s.feeds.items()}, bench.target[rows])
            sums = np.sum([v.reshape(len(v), -1).sum(1, dtype=np.float64) for v in a.scores.values()], axis=0)
            arrays = {**{f"map{k}": a.scores[n] for k, n in enumerate(s.names)}, "sums": sums}
            arrays |= {} if a.delta is None else {"delta": a.delta}
            about = {"seconds": round(time.perf_counter() - begun, 3)}
            if path is not None:
                save_npz(path, arrays, about)
        parts.append(arrays)
        seconds += about["seconds"]
    whole = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
    return {n: whole[f"map{k}"] for k, n in enumerate(s.names)}, whole["sums"], whole.get("delta"), seconds


def _provenance(bench: Bench, rules: Sequence[str]) -> dict[str, Any]:
    s, scores = bench.samples, bench.scores
    predicted = scores.argmax(1)
    graph, path = bench.source.model.graph, bench.source.path
    profile = replace(bench.profile, fail_on=rules, thresholds={**THRESHOLDS, **bench.profile.thresholds})
    canonical = canonicalise(bench.source)
    types = {v.name: f"{v.dtype}{shape_text(v.shape)}" for v in canonical.graph.inputs}
    return {
        "model": {
            "name": path.name if path is not None else graph.name or "model", "sha256": bench.source.sha256,
            "inputs": types, "outputs": [o.name for o in graph.output],
        },
        "samples": {
            "number": len(s.x), "sha256": s.sha256, "inputs": list(s.names),
            "output": explained_output(canonical, bench.asked.output, True).name, "target": bench.asked.target,
            "labelled": s.labels is not None,
            "accuracy": None if s.labels is None else float((predicted == s.labels).mean()),
            "labels": s.labels, "predicted": predicted, "explained": bench.target,
            "probability": softmax(scores)[np.arange(len(scores)), bench.target],
        },
        "settings": {**plain(profile), "provider": str(bench.providers or "cpu")},
    }

