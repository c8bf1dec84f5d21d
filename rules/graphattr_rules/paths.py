"""Attributions along a path from a reference to the input."""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from graphattr.errors import MethodError
from graphattr.rule import SIGMA, Baselines, Found, Graph, Job, MethodName, Value, procedure

from .ordered import joined, parted, smallest_first

Quadrature = Literal["gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"]
Rectify = Literal["none", "integral", "steps"]


@procedure("integrated_gradients")
def integrated_gradients(
    job: Job,
    *,
    base: MethodName = MethodName("gradient"),
    baselines: Baselines = 0.0,
    sigma: float = SIGMA,
    n_steps: int = 50,
    quadrature: Quadrature = "gausslegendre",
) -> Found:
    """(x - x') sum_k w_k R(x' + a_k (x - x')), where R is the gradient or what another method (`base`) says there.

    Of several references x' (rows of `baselines`) the mean is taken: expected gradients.
    """
    places, weights = nodes(quadrature, n_steps)
    references = job.references(baselines, sigma)
    rows = references.count

    def step(body: Graph, i: Value, sums: list[Value]) -> list[Value]:
        at, k = references.row(body, row_of(i, n_steps, rows)), body.Mod(i, n_steps) if rows > 1 else i
        differences = [x - at[x] for x in job.xs]
        here = job.at(body, [at[x] + number(body, places, k, x) * d for x, d in zip(job.xs, differences, strict=True)])
        return [
            total + number(body, weights / rows, k, x) * d * m
            for total, d, m, x in zip(sums, differences, here.explained_by(base), job.xs, strict=True)
        ]

    return Found(job.repeat(n_steps * rows, [x * 0.0 for x in job.xs], step), {}, dict(references.values))


@procedure("guided_ig")
def guided_ig(
    job: Job, *, baselines: Baselines = 0.0, sigma: float = SIGMA, n_steps: int = 50, rectify: Rectify = "none"
) -> Found:
    """sum_k grad s(x_k) (x_{k+1} - x_k) on a path from x' to x that moves what matters least first. Kapishnikov et al. 2021.

    Each of the n steps covers 1/n of the path's L1 length: the features with the smallest |gradient| go all the way to x, in
    order, the last of them as far as the length allows (the limit of the original's small sets, without its anchors). All
    attributed tensors share one path. `rectify`: relu of the whole sum ("integral") or of each step ("steps"). Of several
    references (rows of `baselines`) the mean is taken. Where the score is smooth, what the attributions lack of its change
    vanishes with 1/n; at a rectifier's kink the path may slide along the side of the smaller gradient, and a gap stays.
    """
    if n_steps < 1:
        raise MethodError(f"guided_ig: n_steps must be at least 1, not {n_steps}")
    g, references = job.g, job.references(baselines, sigma)
    rows, xs = references.count, list(job.xs)
    target = joined(g, xs)

    def step(body: Graph, i: Value, states: list[Value]) -> list[Value]:
        place, total = states
        k = i
        if rows > 1:
            start = joined(body, filled(xs, references.row(body, row_of(i, n_steps, rows))))
            k = body.Mod(i, n_steps)
            place = body.Where(body.Equal(k, 0), start, place)
        here = job.at(body, parted(body, place, xs))
        gradient = joined(body, here.explained_by("gradient"))
        moved = smallest_first(body, body.Abs(gradient), target - place, body.Sub(n_steps, k))
        part = gradient * moved
        return [place + moved, total + (body.Relu(part) if rectify == "steps" else part)]

    start = joined(g, filled(xs, references.row(g, g.const(0))))
    _, found = job.repeat(n_steps * rows, [start, target * 0.0], step)
    maps = parted(g, found if rows == 1 else found * (1.0 / rows), xs)
    return Found([g.Relu(m) for m in maps] if rectify == "integral" else maps, {}, dict(references.values))


def nodes(quadrature: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(places in [0, 1], weights) of n points on a path from 0 to 1."""
    least = 2 if quadrature == "riemann_trapezoid" else 1
    if n < least:
        raise MethodError(f"integrated_gradients: n_steps must be at least {least} with quadrature {quadrature!r}, not {n}")
    k = np.arange(n)
    if quadrature == "gausslegendre":
        x, w = np.polynomial.legendre.leggauss(n)
        return (x + 1) / 2, w / 2
    if quadrature == "riemann_trapezoid":
        w = np.full(n, 1 / (n - 1))
        w[[0, -1]] /= 2
        return k / (n - 1), w
    shift = {"riemann_left": 0.0, "riemann_middle": 0.5, "riemann_right": 1.0}[quadrature]
    return (k + shift) / n, np.full(n, 1 / n)


def number(g: Graph, numbers: np.ndarray, k: Value, like: Value) -> Value:
    """The k-th of these numbers, in the type of a tensor."""
    return g.Gather(g.const(numbers, like.dtype), k, axis=0)


def row_of(i: Value, n_steps: int, rows: int) -> Value | None:
    """Which reference the i-th of all steps starts from."""
    return i / n_steps if rows > 1 else None


def filled(xs: Sequence[Value], references: Mapping[Value, Value]) -> list[Value]:
    """Each reference in the shape of its tensor."""
    return [x * 0.0 + references[x] for x in xs]
