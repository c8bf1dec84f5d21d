"""The audit: a model, data and methods go in; findings, a verdict, `report.json` and `report.html` come out."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..canonical import canonicalise
from ..errors import GraphattrError, RunError, WriteError
from ..fit.progress import Bar
from ..fitted import Fitted, fingerprint, load_npz, needing, opened, save_npz
from ..graph import Array
from ..infer import shape_text
from ..measure import Scorer, explained
from ..measure.scoring import softmax
from ..method import Method, load_method
from ..preprocess import Say, print_nothing
from ..rule import load_rules
from ..runtime import Explainer
from ..source import Source, read
from ..street import MethodLike, Model, Order, explanation_of, methods_of
from ..version import __version__
from .data import Samples, load_samples
from .gate import parse
from .measures import MEASURES, Finding, Subject, check_measures
from .page import page
from .profile import THRESHOLDS, Profile, load_profile
from .records import SAMPLE, csv_text, metric_rows, sample_rows
from .state import State, plain, write_text
from .verdict import sentences, summary

SCHEMA = 1
METHODS = ("gradient", "lrp.epsilon_plus_flat")


@dataclass(frozen=True)
class Report:
    """`data`: what `report.json` holds. `html`: the page. `ok`: whether no rule of the gate failed.

    data: version (of this schema, 1), graphattr, ok, model (name, sha256, inputs, outputs), samples (number, sha256, input,
    target, labelled, accuracy, labels, predicted, explained, probability), settings (name of the profile, samples, gallery, seed,
    measures, thresholds, fail_on, provider), methods (by name: params, expects, source, summary, verdict: [check, question,
    passed, text], measures: by name [names, metrics, skipped, values, interval, details, settings]), gate ([rule, method, metric,
    value, failed, reason]). What is no number is null.
    """

    data: Mapping[str, Any]
    html: str

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
        """Write report.json, report.csv (the records by sample) and report.html, each whole or not at all; returns the page's
        path."""
        write_text(Path(folder) / "report.json", json.dumps(self.data, indent=1, allow_nan=False) + "\n")
        write_text(Path(folder) / "report.csv", csv_text(self.records(), SAMPLE))
        return write_text(Path(folder) / "report.html", self.html)


@dataclass(frozen=True)
class Bench:
    """What all methods of an audit share."""

    model: Model
    source: Source
    samples: Samples
    scorer: Scorer
    target: Array
    profile: Profile
    state: State
    key: Mapping[str, Any]
    batch_size: int
    providers: Any


def audit(
    model: Model,
    data: Any,
    methods: MethodLike | Sequence[MethodLike] = METHODS,
    profile: str | os.PathLike[str] | Profile = "standard",
    output: str | os.PathLike[str] | None = None,
    *,
    labels: Any = None,
    target: Any = "argmax",
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

    data: as for `fit`: arrays, dicts, .npz, .npy, .csv, pictures, folders (one per class). labels: a class per sample, as for
        `fit`, or a .csv with lines `file,class`.
    profile: "quick", "standard", "full", or the path of a .toml: samples, gallery, seed, fail_on, [measures.NAME] with settings,
        [thresholds]. The result is the same for the same seed.
    output: a folder for report.json, report.csv, report.html and what has been measured (`state`): an interrupted audit goes on
        there.
    target: the class that is explained: "argmax" (the predicted one), "labels", or an index.
    fail_on: rules such as "completeness > 0.01", for one method "gradient: insensitive_layers >= 3"; `Report.ok` is False where
        one holds, or where its metric could not be measured.
    params: parameters of the methods, each for those that know it.

    The first float input is explained, of the first float output. Raises what `convert` and `fit` raise.
    """
    load_rules([os.fspath(r) for r in rules])
    chosen = load_profile(profile)
    check_measures(chosen.measures)
    asked: list[Any] = list(methods) if isinstance(methods, (list, tuple)) else [methods]
    methods_of(asked, params)
    loaded = [load_method(m) for m in asked]
    gate = parse([*chosen.fail_on, *fail_on], [m.name for m in loaded], chosen.measures)
    held, own = opened(fitted), {}
    for m in loaded:
        own[m.name] = {k: v for k, v in params.items() if k in m.parameters()}
    bench = _bench(model, data, labels, target, chosen, output, preprocess, batch_size, providers, rules, say)
    found: dict[str, Any] = {}
    maps: dict[str, Array] = {}
    with Bar(progress).over("auditing", len(loaded) * len(chosen.measures)) as tick:
        for m in loaded:
            needs = needing(m)
            fits = [f for f in held if needs is not None and f.manifest["method"] == needs.name]
            found[m.name], maps[m.name] = _audited(bench, m, own[m.name], fits, tick)
    lines = [line for rule in gate for line in rule.lines(found)]
    result = {
        "version": SCHEMA,
        "graphattr": __version__,
        "ok": not any(line["failed"] for line in lines),
        **_provenance(bench, labels, target, [*chosen.fail_on, *fail_on]),
        "methods": found,
        "gate": lines,
    }
    result = plain(result)
    report = Report(result, page(result, bench.samples, maps, chosen.gallery, class_names))
    if output is not None:
        report.save(output)
    return report


def _bench(
    model: Model, data: Any, labels: Any, target: Any, profile: Profile, output: Any, preprocess: str | None, batch_size: int,
    providers: Any, rules: Sequence[Any], say: Say,
) -> Bench:
    source = read(model)
    scorer = Scorer(model, providers=providers)
    samples = load_samples(canonicalise(source), data, labels, profile.samples, preprocess, say)
    aim = _target(scorer, samples, target)
    folder = None if output is None else Path(output) / "state"
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise WriteError(f"cannot make the folder {folder}: {e.strerror}") from e
    key = {
        "schema": SCHEMA, "version": __version__, "model": fingerprint(source), "samples": samples.sha256,
        "target": aim.tolist(), "seed": profile.seed, "provider": str(providers or "cpu"), "batch_size": batch_size,
        "rules": [hashlib.sha256(Path(r).read_bytes()).hexdigest() for r in rules],
    }
    size = min(batch_size, scorer.batch_size)
    return Bench(model, source, samples, scorer, aim, profile, State(folder), key, size, providers)


def _target(scorer: Scorer, samples: Samples, target: Any) -> Array:
    if target == "labels":
        if samples.labels is None:
            raise RunError('target="labels" needs labels: pass labels=, or sort pictures into one folder per class')
        return samples.labels
    if target != "argmax" and not isinstance(target, int):
        raise RunError(f'target is "argmax", "labels" or the index of a class, not {target!r}')
    return scorer.target(samples.feeds, None if target == "argmax" else target)


def _audited(
    bench: Bench, m: Method, params: Mapping[str, Any], fits: Sequence[Fitted], tick: Any
) -> tuple[dict[str, Any], Array]:
    """One method's entry of the report, and its maps."""
    key = {**bench.key, "method": m, "params": params, "fitted": [f.manifest for f in fits]}
    subject = _subject(bench, m, params, fits, key)
    found = {}
    for name, settings in bench.profile.measures.items():
        found[name] = _found(bench, subject, name, settings, key)
        tick(1)
    lines = sentences(found, bench.profile)
    entry = {
        "summary": summary(m.name, lines), "params": params, "expects": m.expects, "source": m.source,
        "verdict": lines, "measures": found,
    }
    return entry, subject.attribution


def _found(bench: Bench, subject: Subject, name: str, settings: Mapping[str, Any], key: Mapping[str, Any]) -> dict[str, Any]:
    """A finding as plain data: measured now, or in a run before. What cannot be measured says why."""
    asked = MEASURES[name]
    given = {**asked.settings, **settings}
    if "insensitive" in given:
        given["insensitive"] = settings.get("insensitive", bench.profile.threshold("insensitive"))
    path = bench.state.path(subject.method.name, name, {**key, "measure": name, "settings": given})
    known = bench.state.read(path)
    if known is not None:
        return known
    skipped = None
    try:
        finding = asked.run(subject, **given)
    except GraphattrError as e:
        finding, skipped = Finding({}), str(e)
    made: dict[str, Any] = {"names": list(asked.metrics), "skipped": skipped, **plain(finding)}
    bench.state.write(path, made)
    return made


def _subject(bench: Bench, m: Method, params: Mapping[str, Any], fits: Sequence[Fitted], key: Mapping[str, Any]) -> Subject:
    held: list[Explainer] = []

    def run(feeds: Mapping[str, Array], target: Array) -> Any:
        if not held:
            delta = m.expects != "nothing"
            made = explanation_of(bench.model, Order(method=m, target="input", params=params, fitted=fits, delta=delta))
            held.append(Explainer(made, bench.providers))
        return explained(held[0], feeds, target, bench.batch_size)

    s = bench.samples
    arrays = _maps(bench, m, run, key)
    return Subject(
        bench.model, m, params, fits, bench.scorer, s.feeds, s.name, s.layout, bench.target, arrays["attribution"],
        arrays["sums"], arrays.get("delta"), lambda feeds, target: run(feeds, target).scores[s.name], bench.profile.seed,
        bench.batch_size, bench.providers,
    )


def _maps(bench: Bench, m: Method, run: Any, key: Mapping[str, Any]) -> dict[str, Array]:
    """The attributions of the samples, from the state where they are there."""
    path = bench.state.path(m.name, "maps", key)
    path = None if path is None else path.with_suffix(".npz")
    if path is not None and path.exists():
        return load_npz(path, "attributions of an audit")[0]
    a = run(bench.samples.feeds, bench.target)
    sums = np.sum([v.reshape(len(v), -1).sum(1, dtype=np.float64) for v in a.scores.values()], axis=0)
    arrays = {"attribution": a.scores[bench.samples.name], "sums": sums, **({} if a.delta is None else {"delta": a.delta})}
    if path is not None:
        save_npz(path, arrays, {"method": m.name})
    return arrays


def _provenance(bench: Bench, labels: Any, target: Any, rules: Sequence[str]) -> dict[str, Any]:
    s, scores = bench.samples, bench.scorer(bench.samples.feeds)
    predicted = scores.argmax(1)
    graph, path = bench.source.model.graph, bench.source.path
    profile = replace(bench.profile, fail_on=rules, thresholds={**THRESHOLDS, **bench.profile.thresholds})
    types = {v.name: f"{v.dtype}{shape_text(v.shape)}" for v in canonicalise(bench.source).graph.inputs}
    return {
        "model": {
            "name": path.name if path is not None else graph.name or "model", "sha256": bench.source.sha256,
            "inputs": types, "outputs": [o.name for o in graph.output],
        },
        "samples": {
            "number": len(s.x), "sha256": s.sha256, "input": s.name, "target": target, "labelled": s.labels is not None,
            "accuracy": None if s.labels is None else float((predicted == s.labels).mean()),
            "labels": s.labels, "predicted": predicted, "explained": bench.target,
            "probability": softmax(scores)[np.arange(len(scores)), bench.target],
        },
        "settings": {**plain(profile), "provider": str(bench.providers or "cpu")},
    }

