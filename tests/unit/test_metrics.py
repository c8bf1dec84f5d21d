"""Every measure against a slow one written from its definition; and no measure's test is passed by a constant.

A case asks a measure of `graphattr.measure` more than once, at inputs whose answers differ, and compares each with the definition
(METHODS.md, section 17, or the paper). The second test puts 0, 1, or the measure's own first number in the
place of all its numbers.
"""

from __future__ import annotations

import dataclasses
import inspect
from itertools import combinations, pairwise

import numpy as np
import pytest

import graphattr
from graphattr import measure
from graphattr.audit import Profile
from graphattr.audit.measures import MEASURES, Asked
from graphattr.measure import Cascade, Measure, Scorer
from tests.unit.test_audit import cnn
from tests.unit.tiny import array, model, node

pytest.importorskip("onnxruntime")
V, W = array(6, 8, seed=1).astype(float), array(8, 3, seed=2).astype(float)
X, A, B = array(4, 6, seed=3), array(4, 6, seed=4), array(4, 6, seed=5)
C = np.array([0, 2, 1, 1])
MAPS, OTHERS = array(3, 2, 9, 8, seed=6), array(3, 2, 9, 8, seed=7)
HELPERS = {"Cascade", "Joint", "Measure", "Scorer", "explained", "joined"}


def net():
    """x [N, 6] -> tanh(x V) W [N, 3]."""
    nodes = [node("MatMul", "x v", "h", "first"), node("Tanh", "h", "t"), node("MatMul", "t w", "y", "second")]
    return model(nodes, {"x": ["N", 6]}, {"y": ["N", 3]}, {"v": V.astype(np.float32), "w": W.astype(np.float32)})


def y(x):
    return np.tanh(np.asarray(x, float) @ V) @ W


def p(x):
    e = np.exp(y(x))
    return e / e.sum(-1, keepdims=True)


def without(x, features, base=0.0):
    found = np.array(x, float)
    found[list(features)] = base
    return found


def area(curve):
    return sum((a + b) / 2 for a, b in pairwise(curve)) / (len(curve) - 1)


def close(got, want, tolerance=1e-4):
    np.testing.assert_allclose(got.values if isinstance(got, Measure) else got, want, rtol=tolerance, atol=tolerance)


def each(f):
    return [f(n) for n in range(len(X))]


# -- the measures, slowly ---------------------------------------------------------------------------------------------
def pixel_flipping():
    def want(n, sign, steps):
        order, c = np.argsort(-sign * A[n], kind="stable"), C[n]
        return area([p(without(X[n], order[: int(np.floor(j / steps * 6 + 0.5))]))[c] for j in range(steps + 1)])

    for order, sign in (("morf", 1), ("lerf", -1)):
        close(measure.pixel_flipping(Scorer(net()), X, A, C, order=order, steps=4), each(lambda n, s=sign: want(n, s, 4)))
    flipped = measure.pixel_flipping(Scorer(net()), X, A, C, steps=3, normalize=True, granularity="element")
    close(flipped, each(lambda n: want(n, 1, 3) / p(X[n])[C[n]]))


def ordering():
    def curve(n, kind):
        kept = [k for k in np.argsort(-A[n], kind="stable") if A[n][k] > 0]
        low, high = y(np.zeros(6))[C[n]], y(X[n])[C[n]]
        counts = [int(np.floor(j / 4 * len(kept) + 0.5)) for j in range(5)]
        sets = [without(X[n], kept[:k]) if kind == "n" else without(X[n], set(range(6)) - set(kept[:k])) for k in counts]
        return [(y(s)[C[n]] - low) / (high - low) for s in sets]

    for kind in "ns":
        close(measure.ordering(Scorer(net()), X, A, C, kind=kind, steps=4), each(lambda n, k=kind: area(curve(n, k))))


def proportionality():
    def gap(n, kind, share):
        kept = [k for k in np.argsort(-A[n], kind="stable") if A[n][k] > 0]

        def fewest(features):
            held = []
            while sum(A[n][k] for k in held) < share * sum(A[n][k] for k in kept) * (1 - 1e-9):
                held.append(features[len(held)])
            return held

        def score(features):
            gone = features if kind == "n" else set(range(6)) - set(features)
            return y(without(X[n], gone))[C[n]]

        return abs(score(fewest(kept)) - score(fewest(kept[::-1]))) / abs(y(X[n])[C[n]] - y(np.zeros(6))[C[n]])

    for kind in "ns":
        got = measure.proportionality(Scorer(net()), X, A, C, kind=kind, steps=4)
        close(got, each(lambda n, k=kind: area([gap(n, k, j / 4) for j in range(5)])))


def sensitivity_n():
    subsets = np.array([[0, 1], [2, 4], [3, 5], [1, 2], [0, 5]])
    for base in (0.0, 0.5):
        def want(n, base=base):
            lost = [y(X[n])[C[n]] - y(without(X[n], s, base))[C[n]] for s in subsets]
            return np.corrcoef([A[n][s].sum() for s in subsets], lost)[0, 1]

        close(measure.sensitivity_n(Scorer(net()), X, A, C, subsets=subsets, baseline=base), each(want))


def infidelity():
    noise = array(5, 6, seed=8)
    close(measure.infidelity(Scorer(net()), X, A, C, perturbations=noise), each(
        lambda n: np.mean([(i @ A[n] - (y(X[n])[C[n]] - y(X[n] - i)[C[n]])) ** 2 for i in noise])))


def max_sensitivity():
    noise = 0.1 * array(3, 6, seed=9)
    got = measure.max_sensitivity(lambda x: x**3, X, perturbations=noise)
    close(got, each(lambda n: max(np.linalg.norm((X[n] + d) ** 3 - X[n] ** 3) for d in noise) / np.linalg.norm(X[n] ** 3)))


def completeness_gap():
    for base in (0.0, 0.3):
        lost = each(lambda n, b=base: y(X[n])[C[n]] - y(np.full(6, b))[C[n]])
        got = measure.completeness_gap(Scorer(net()), X, A, C, baseline=base)
        close(got, np.abs(A.sum(1) - lost))
        close(got.details["relative"], np.abs(A.sum(1) - lost) / np.abs(lost))


def spearman():
    ranks = [np.argsort(np.argsort(m, axis=1), axis=1) for m in (A, B)]
    close(measure.spearman(A, B), each(lambda n: np.corrcoef(ranks[0][n], ranks[1][n])[0, 1]))


def top_overlap():
    for k in (1, 3):
        tops = [[set(np.argsort(-np.abs(row))[:k]) for row in m] for m in (A, B)]
        close(measure.top_overlap(A, B, share=k / 6), [len(a & b) / k for a, b in zip(*tops)])


def normalised():
    for m, (low, high) in ((MAPS[0], (0.5, 99.5)), (OTHERS[0], (10, 90))):
        a, b = np.percentile(m, [low, high])
        close(measure.normalised(m, low, high), [[[min(max((v - a) / (b - a), 0), 1) for v in r] for r in c] for c in m])


def slow_ssim(a, b, span=1.0):
    found = []
    for i in range(a.shape[0] - 4):
        for j in range(a.shape[1] - 4):
            p, q = (m[i : i + 5, j : j + 5].ravel() for m in (a, b))
            c = np.cov(p, q)
            one, two = (0.01 * span) ** 2, (0.03 * span) ** 2
            found.append((2 * p.mean() * q.mean() + one) * (2 * c[0, 1] + two)
                         / ((p.mean() ** 2 + q.mean() ** 2 + one) * (c[0, 0] + c[1, 1] + two)))
    return np.mean(found)


def ssim():
    a, b = (measure.normalised(m[:, 0]) for m in (MAPS, OTHERS))
    for p, q, span in ((a[0], b[0], 1.0), (a[1], b[1], 2.0), (a[0], (a[0] + b[0]) / 2, 1.0)):
        close(measure.ssim(p, q, span), slow_ssim(p, q, span), 1e-9)


def ssim_flip():
    def want(a, b):
        n = [np.clip((m - np.percentile(m, 0.5)) / np.ptp(np.percentile(m, [0.5, 99.5])), 0, 1) for m in (a, b, -b)]
        return max(slow_ssim(n[0], n[1]), slow_ssim(n[0], n[2]))

    for others in (OTHERS, 3 * OTHERS - MAPS):
        close(measure.ssim_flip(MAPS, others), [want(a.sum(0), b.sum(0)) for a, b in zip(MAPS, others)])


def class_sensitivity():
    close(measure.class_sensitivity(A, B, normalize="none"), np.sqrt(((A - B) ** 2).sum(1)))
    close(measure.class_sensitivity(A, B), each(lambda n: np.linalg.norm(A[n] / abs(A[n]).max() - B[n] / abs(B[n]).max())))


BOX = np.zeros((3, 9, 8), bool)
BOX[0, 1:4, 2:5], BOX[1, 4:8, 0:3], BOX[2, 0:2, 0:7] = True, True, True


def bounding_box_accuracy():
    flat = MAPS.sum(1).reshape(3, -1)
    close(measure.bounding_box_accuracy(MAPS, BOX),
          [np.mean([k in np.flatnonzero(b) for k in np.argsort(-m)[: b.sum()]]) for m, b in zip(flat, BOX)])


def inside_ratio():
    maps = np.maximum(MAPS.sum(1), 0)
    close(measure.inside_ratio(MAPS, BOX), [m[b].sum() / m.sum() for m, b in zip(maps, BOX)])


def pointing():
    maps = np.zeros((3, 1, 9, 8))
    maps[0, 0, 2, 3] = maps[1, 0, 0, 0] = maps[2, 0, 8, 7] = 1
    close(measure.pointing(maps, BOX), [1, 0, 0])


def grid_pointing():
    m = np.maximum(MAPS.sum(1), 0)[:, :8]
    quarters = [(slice(0, 4), slice(0, 4)), (slice(0, 4), slice(4, 8)), (slice(4, 8), slice(0, 4)), (slice(4, 8), slice(4, 8))]
    for cells in ([0, 1, 2], [3, 3, 0]):
        close(measure.grid_pointing(MAPS, cells), [m[n][quarters[c]].sum() / m[n].sum() for n, c in enumerate(cells)])


def sparseness():
    def gini(row):
        return sum(abs(a - b) for a in row for b in row) / (2 * len(row) ** 2 * row.mean())

    close(measure.sparseness(A), [gini(np.abs(row)) for row in A])


def average_prediction_change():
    before, after, classes = np.array([2.0, 4.0, 1.0]), np.array([1.0, 5.0, 1.0]), [7, 7, 3]
    assert measure.average_prediction_change(before, after, classes).value == pytest.approx(((50 + 25) / 2 + 0) / 2)
    assert measure.average_prediction_change(before, after, classes, True).value == pytest.approx(((50 + 0) / 2 + 0) / 2)


def bootstrap():
    for values, statistic in ((np.arange(9.0), "mean"), (array(12, seed=1) ** 2, "median")):
        rng = np.random.Generator(np.random.PCG64(0))
        drawn = [getattr(np, statistic)(values[i]) for i in rng.integers(0, len(values), (500, len(values)))]
        close(measure.bootstrap(values, statistic, 0.9, 500), np.percentile(drawn, [5, 95]))


def singular_ratio():
    for m in (np.diag([6.0, 2.0, 1.0]), array(4, 2, 3, seed=1)):
        values = np.sort(np.sqrt(np.linalg.eigvalsh(m.reshape(len(m), -1) @ m.reshape(len(m), -1).T)))
        close(measure.singular_ratio(m), values[-1] / values[-2], 1e-4)


def chain_convergence():
    a, b = np.diag([3.0, 1.0]), np.diag([2.0, 1.0])
    close(measure.chain_convergence([a, b]), [3, 6])
    close(measure.chain_convergence([b, b, b]), [2, 4, 8])


def random_baseline():
    for channels in (2, 3, 64):  # |cos| of two directions: uniform angle, uniform cosine, nearly normal
        want = {2: np.sqrt(0.5), 3: 0.5, 64: 0.6745 / 8}[channels]
        close(measure.random_baseline(channels, 40_000), want, 0.02)


def cosine_convergence():
    """Of a gradient: v -> v W' diag(1 - tanh^2) V' at the input, v W' before it."""
    v = array(4, 3, 3, seed=8)
    found = measure.cosine_convergence(net(), X, "gradient", tensors=["t", "x"], vectors=v)

    def cosines(r):
        return np.array([abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in combinations(r, 2)])

    inside = [v[n] @ W.T for n in range(4)]
    slopes = 1 - np.tanh(X.astype(float) @ V) ** 2
    close(found["t"], np.concatenate([cosines(r) for r in inside]))
    close(found["x"], np.concatenate([cosines(r * slopes[n] @ V.T) for n, r in enumerate(inside)]))


def cascading_randomisation():
    """Redrawing the last layer of one that is linear: the gradient becomes a row of the weight that was drawn."""
    found = measure.cascading_randomisation(net(), X, "gradient", target=C, compare=measure.spearman, random_state=3)
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(3, spawn_key=(1,))))
    wide = rng.normal(0.0, W.astype(np.float32).astype(float).std(), W.shape).astype(np.float32)
    first = rng.normal(0.0, V.astype(np.float32).astype(float).std(), V.shape).astype(np.float32)

    def maps(v, w):
        return np.stack(each(lambda n: v @ ((1 - np.tanh(X[n] @ v) ** 2) * w[:, C[n]])))

    def ranked(a, b):
        rank = [np.argsort(np.argsort(m, axis=1), axis=1) for m in (a, b)]
        return each(lambda n: np.corrcoef(rank[0][n], rank[1][n])[0, 1])

    close(found.measures[0], ranked(maps(V, W), maps(V, wide)))
    close(found.measures[1], ranked(maps(V, W), maps(first, wide)))


def random_logit():
    others = (C + np.random.Generator(np.random.PCG64(5)).integers(1, 3, 4)) % 3
    slopes = 1 - np.tanh(X.astype(float) @ V) ** 2
    maps = [np.stack(each(lambda n, c=c: V @ (slopes[n] * W[:, c[n]]))) for c in (C, others)]
    found = measure.random_logit(net(), X, "gradient", target=C, random_state=5, compare=lambda a, b: Measure("", (a * b).sum(1)))
    close(found, (maps[0] * maps[1]).sum(1), 1e-3)


CASES = [
    average_prediction_change, bootstrap, bounding_box_accuracy, cascading_randomisation, chain_convergence, class_sensitivity,
    completeness_gap, cosine_convergence, grid_pointing, infidelity, inside_ratio, max_sensitivity, normalised, ordering,
    pixel_flipping, pointing, proportionality, random_baseline, random_logit, sensitivity_n, singular_ratio, sparseness, spearman,
    ssim, ssim_flip, top_overlap,
]


# -- and a constant ---------------------------------------------------------------------------------------------------
def levelled(found, number):
    """The same kind of answer, with one number in the place of all."""
    if isinstance(found, Measure):
        details = {k: levelled(v, number) for k, v in found.details.items()}
        return dataclasses.replace(found, values=np.full(np.shape(found.values), number), details=details)
    if isinstance(found, Cascade):
        return dataclasses.replace(found, measures=[levelled(m, number) for m in found.measures])
    if isinstance(found, dict):
        return {k: levelled(v, number) for k, v in found.items()}
    return np.full(np.shape(found), number) if np.ndim(found) else number


def first_number(found):
    while isinstance(found, (Measure, Cascade, dict)):
        found = found.values if isinstance(found, Measure) else found.measures[0] if isinstance(found, Cascade) else next(
            iter(found.values()))
    return float(np.ravel(found)[0])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_a_measure_is_its_definition(case):
    case()


@pytest.mark.parametrize("number", [0.0, 1.0, None], ids=["0", "1", "its first"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.__name__)
def test_a_constant_does_not_pass(case, number, monkeypatch):
    real, held = getattr(measure, case.__name__), [number]

    def constant(*args, **settings):
        found = real(*args, **settings)
        held[0] = first_number(found) if held[0] is None else held[0]
        return levelled(found, held[0])

    monkeypatch.setattr(measure, case.__name__, constant)
    with pytest.raises(AssertionError):
        case()


def test_every_measure_has_a_case():
    assert {c.__name__ for c in CASES} == set(measure.__all__) - HELPERS


# -- the audit's measures ---------------------------------------------------------------------------------------------
SETTINGS = {"flipping": {"steps": 4}, "max_sensitivity": {"samples": 2}, "infidelity": {"samples": 5},
            "sensitivity_n": {"subsets": 9}}
LOCAL = {"localisation", "grid_pointing"}  # tests/unit/test_boxes.py


def audited(name):
    """What the audit says of two methods, and what the measures themselves say."""
    x, methods = array(3, 2, 8, 8, seed=4), ["gradient_x_input", "lrp.zplus"]
    net, s = small(), {"random_state": 0}
    data = graphattr.audit(net, x, methods, Profile("p", samples=3, measures={name: SETTINGS.get(name, {})})).data
    found = [data["methods"][m]["measures"][name] for m in methods]
    scorer = Scorer(net)
    c = scorer.target(x)
    explainers = [graphattr.Explainer(graphattr.convert(net, m, "input", delta=True)) for m in methods]
    a = [e(x, c) for e in explainers]
    maps = [one.scores["x"] for one in a]
    drawn = np.random.Generator(np.random.PCG64(0))
    subsets = np.stack([drawn.choice(128, 16, replace=False) for _ in range(9)])
    want = {
        "completeness": lambda k: np.median(np.abs(a[k].delta) / np.abs(maps[k].sum((1, 2, 3)) + a[k].delta)),
        "randomisation": lambda k: np.mean([m.value for m in measure.cascading_randomisation(net, x, methods[k]).measures]),
        "random_logit": lambda k: measure.random_logit(net, x, methods[k], target=c).value,
        "convergence": lambda k: measure.cosine_convergence(net, x, methods[k], tensors=["x"])["x"].value,
        "flipping": lambda k: np.subtract(*(measure.pixel_flipping(scorer, x, maps[k], c, steps=4, order=o).value
                                            for o in ("lerf", "morf"))),
        "sensitivity_n": lambda k: measure.sensitivity_n(scorer, x, maps[k], c, subsets=subsets).value,
        "infidelity": lambda k: measure.infidelity(scorer, x, maps[k], c, samples=5).value,
        "max_sensitivity": lambda k: measure.max_sensitivity(
            lambda at: explainers[k](at, c).scores["x"], x, radius=0.02 * float(np.ptp(x)), samples=2, **s).value,
        "sparseness": lambda k: measure.sparseness(maps[k]).value,
    }[name]
    got = [f["metrics"][f["names"][0]] for f in found]
    np.testing.assert_allclose(got, [want(0), want(1)], rtol=1e-3, atol=1e-4)


def small():
    net = cnn(1, channels=2)
    for d in net.graph.input[0].type.tensor_type.shape.dim[2:]:
        d.dim_value = 8
    w = next(t for t in net.graph.initializer if t.name == "wd")
    held = np.frombuffer(w.raw_data, np.float32).reshape(-1, 10)[: 8 * 64]
    w.dims[0] = len(held)
    w.raw_data = held.tobytes()
    return net


@pytest.mark.parametrize("name", [n for n in MEASURES if n not in LOCAL])
def test_an_audit_says_what_its_measures_say(name):
    audited(name)


@pytest.mark.parametrize("name", [n for n in MEASURES if n not in LOCAL])
def test_the_first_finding_of_an_audit_does_not_pass_for_all(name, monkeypatch):
    asked, held = MEASURES[name], []

    def constant(s, **settings):
        held.append(asked.run(s, **settings))
        return held[0]

    constant.__signature__ = inspect.signature(asked.run)
    monkeypatch.setitem(MEASURES, name, Asked(constant, asked.metrics))
    with pytest.raises(AssertionError):
        audited(name)
