"""Slow float64 replicas of the methods of many passes, on the nets of `zoo.py`: host loops over explanations of one pass."""

from __future__ import annotations

import numpy as np

from tests.rules import methods
from tests.rules.nets import Net


def explained(case, x, base="gradient", **params):
    """What a method of one pass says of other inputs."""
    return methods.explain(Net(case.model, x), base, case.target, **params)["x"]


def score(case, x):
    return Net(case.model, x).logits.reshape(len(x), -1)[np.arange(len(x)), case.target]


def places(quadrature, n):
    """Points in [0, 1] and their weights."""
    if quadrature == "gausslegendre":  # eigenvalues of the Jacobi matrix (Golub and Welsch)
        k = np.arange(1, n)
        values, vectors = np.linalg.eigh(np.diag(k / np.sqrt(4.0 * k * k - 1), 1) + np.diag(k / np.sqrt(4.0 * k * k - 1), -1))
        return (values + 1) / 2, vectors[0] ** 2
    if quadrature == "riemann_trapezoid":
        return np.linspace(0, 1, n), np.array([0.5, *[1.0] * (n - 2), 0.5]) / (n - 1)
    first = {"riemann_left": 0, "riemann_middle": 0.5, "riemann_right": 1}[quadrature]
    return np.array([(k + first) / n for k in range(n)]), np.full(n, 1 / n)


def integrated(case, rows, n, quadrature="gausslegendre", base="gradient", **params):
    """The mean over references (each broadcasts against x) of (x - x') times the mean of `base` on the way."""
    x, found = case.x.astype(float), []
    for row in rows:
        steps = zip(*places(quadrature, n), strict=True)
        found.append((x - row) * sum(w * explained(case, row + a * (x - row), base, **params) for a, w in steps))
    return np.mean(found, 0)


def guided(gradient, x, start, n, rectify="none"):
    """One sample's guided path, feature by feature."""
    place, total = np.array(start, float).ravel(), np.zeros(x.size)
    goal = x.ravel().astype(float)
    for k in range(n):
        g = gradient(place.reshape(x.shape)).ravel()
        left = np.abs(goal - place).sum() / (n - k)
        moved = np.zeros(x.size)
        for i in sorted(range(x.size), key=lambda i: (abs(g[i]), i)):
            far = abs(goal[i] - place[i])
            step = far if k == n - 1 else min(far, left)
            moved[i] = step * np.sign(goal[i] - place[i])
            left -= step
        total += np.maximum(g * moved, 0) if rectify == "steps" else g * moved
        place = place + moved
    return (np.maximum(total, 0) if rectify == "integral" else total).reshape(x.shape)


def blur(x, sigma):
    """A Gaussian along every axis behind the second, edges repeated, cut at 4 sigma."""
    reach = int(4 * sigma + 0.5)
    weights = np.array([np.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1)])
    weights /= weights.sum()
    for axis in range(2, x.ndim):
        size = x.shape[axis]
        at = [np.clip(np.arange(size) + k, 0, size - 1) for k in range(-reach, reach + 1)]
        x = sum(w * np.take(x, i, axis) for w, i in zip(weights, at, strict=True))
    return x
