"""Attributions along a path from a reference to the input."""

from typing import Literal

import numpy as np

from graphattr.rule import Found, Graph, Job, MethodName, Operand, Value, procedure

Quadrature = Literal["gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"]


@procedure("integrated_gradients")
def integrated_gradients(
    job: Job,
    *,
    base: MethodName = MethodName("gradient"),
    baselines: Operand | Literal["input"] = 0.0,
    n_steps: int = 50,
    quadrature: Quadrature = "gausslegendre",
) -> Found:
    """(x - x') sum_k w_k R(x' + a_k (x - x')), where R is the gradient or what another method (`base`) says there."""
    places, weights = nodes(quadrature, n_steps)
    g, references = job.g, [job.reference(x, baselines) for x in job.xs]
    differences = [x - r for x, r in zip(job.xs, references, strict=True)]

    def step(body: Graph, k: Value, sums: list[Value]) -> list[Value]:
        a, w = (body.Gather(g.const(v, job.xs[0].dtype), k, axis=0) for v in (places, weights))
        here = job.at(body, [r + a * d for r, d in zip(references, differences, strict=True)])
        return [total + w * m for total, m in zip(sums, here.explained_by(base), strict=True)]

    sums = job.repeat(n_steps, [d * 0.0 for d in differences], step)
    return Found([d * s for d, s in zip(differences, sums, strict=True)], {}, dict(zip(job.xs, references, strict=True)))


def nodes(quadrature: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    """(places in [0, 1], weights) of n points (METHODS section 2)."""
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
