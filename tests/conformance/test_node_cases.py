"""ONNX's own node cases against central differences: some of each operator by default, all of them with -m slow."""

from __future__ import annotations

import numpy as np
import pytest

from graphattr.vjp import VJPS
from tests.conformance.node_cases import Case, Outcome, cases, judge, judge_all, report, sample, share
from tests.conformance.quotients import NotSmooth, jittered, quotients

LEAST = 0.97
REFUSED = {  # operator -> what is refused of it
    "Adagrad": "training", "Adam": "training", "Momentum": "training",
    "BatchNormalization": "training mode", "Dropout": "training mode",
    "Binarizer": "thresholds", "TreeEnsemble": "thresholds",
    "AffineGrid": "the expanded form, whose ranks are known at run time only",
    "Scan": "opset 8",
}


def check(chosen: list[Case]) -> list[Outcome]:
    found = judge_all(chosen)
    bad = [o for o in found if o.verdict in ("wrong", "crash") or (o.verdict == "refused" and o.operator not in REFUSED)]
    assert not bad, report(bad)
    return found


def test_a_sample_of_each_operator() -> None:
    chosen = sample(cases(), 2)
    assert len({c.operator for c in chosen}) > 130
    check(chosen)


@pytest.mark.slow
def test_every_case() -> None:
    found = check(list(cases()))
    assert sum(o.verdict == "pass" for o in found) > 1200
    assert share(found) >= LEAST, report(found)


def named(name: str) -> Case:
    return next(c for c in cases() if c.name == name)


def test_a_wrong_derivative_a_refusal_and_a_crash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    c, right = named("test_sin"), VJPS["Sin"]
    assert judge(c).verdict == "pass"
    monkeypatch.setitem(VJPS, "Sin", lambda g, n, dy: [1.01 * dx for dx in right(g, n, dy)])
    assert judge(c).verdict == "wrong"
    monkeypatch.delitem(VJPS, "Sin")
    assert judge(c).verdict == "refused"
    monkeypatch.setattr("graphattr.convert", lambda *a, **k: 1 / 0)
    assert judge(c).verdict == "crash"


@pytest.mark.parametrize(("name", "verdict"), [("test_round", "zero"), ("test_bernoulli", "random"), ("test_relu", "pass"),
                                               ("test_reduce_max_empty_set", "not smooth"), ("test_clip_example", "pass")])
def test_verdicts(name: str, verdict: str) -> None:
    assert judge(named(name)).verdict == verdict


@pytest.mark.parametrize("f", [np.abs, lambda x: np.maximum(x, 0.1 * x), np.sqrt, np.sign, lambda x: np.round(x + 0.5)])
def test_kinks_and_jumps_are_not_smooth(f: object) -> None:
    def score(feeds: dict[str, np.ndarray]) -> float:
        with np.errstate(all="ignore"):
            value = float(np.sum(f(feeds["x"])))  # type: ignore[operator]
        if not np.isfinite(value):
            raise NotSmooth
        return value

    feeds = {"x": np.array([0.0, 1.3])}
    with pytest.raises(NotSmooth):
        quotients(score, feeds, ["x"], np.random.default_rng(0), np.dtype(np.float64))
    found = []
    for moved in jittered(feeds, ["x"], np.random.default_rng(0)):
        try:
            found = quotients(score, moved, ["x"], np.random.default_rng(0), np.dtype(np.float64))
            break
        except NotSmooth:
            continue
    assert found, "beside the kink there is a derivative"


def test_a_smooth_function_is_smooth_to_nine_digits() -> None:
    feeds = {"x": np.array([0.3, 1.1, -2.0])}
    for q in quotients(lambda z: float(np.sum(np.sin(z["x"]))), feeds, ["x"], np.random.default_rng(1), np.dtype(np.float64)):
        assert q.value == pytest.approx(float(np.sum(np.cos(feeds["x"]) * q.direction)), rel=1e-9)
