"""Attributions averaged over noisy copies of the input."""

from collections.abc import Callable, Sequence
from typing import Literal

from graphattr.errors import MethodError
from graphattr.rule import Graph, Job, MethodName, Value, per_sample, procedure

from .noise import normal


@procedure("smoothgrad")
def smoothgrad(
    job: Job,
    *,
    base: MethodName = MethodName("gradient"),
    n_samples: int = 50,
    stdevs: float = 0.2,
    noise: Literal["drawn", "input"] = "drawn",
    random_state: int = 0,
    times_input: bool = False,
) -> list[Value]:
    """mean_i R(x + stdevs (max x - min x) xi_i), where R is the gradient or what another method (`base`) says there.

    `noise="input"` reads xi from the graph input `<x>_noise`, (n_samples, *shape of x); drawn noise is the same for all samples.
    """
    there = noisy(job, base, n_samples, stdevs, noise, random_state)

    def step(body: Graph, i: Value, sums: list[Value]) -> list[Value]:
        return [v + m for v, m in zip(sums, there(body, i), strict=True)]

    mean = [v * (1.0 / n_samples) for v in job.repeat(n_samples, [x * 0.0 for x in job.xs], step)]
    return [x * m for x, m in zip(job.xs, mean, strict=True)] if times_input else mean


@procedure("vargrad")
def vargrad(
    job: Job,
    *,
    base: MethodName = MethodName("gradient"),
    n_samples: int = 50,
    stdevs: float = 0.2,
    noise: Literal["drawn", "input"] = "drawn",
    random_state: int = 0,
) -> list[Value]:
    """mean_i R_i^2 - (mean_i R_i)^2 over the noisy copies of SmoothGrad, by Welford's recurrence."""
    there, xs = noisy(job, base, n_samples, stdevs, noise, random_state), job.xs

    def step(body: Graph, i: Value, states: list[Value]) -> list[Value]:
        means, squares = states[: len(xs)], states[len(xs) :]
        away = [m - mean for m, mean in zip(there(body, i), means, strict=True)]
        new = [mean + a / body.CastLike(i + 1, a) for mean, a in zip(means, away, strict=True)]
        more = [s + a * (a - (v - mean)) for s, a, v, mean in zip(squares, away, new, means, strict=True)]
        return [*new, *more]

    zeros = [x * 0.0 for x in xs]
    return [s * (1.0 / n_samples) for s in job.repeat(n_samples, [*zeros, *zeros], step)[len(xs) :]]


def noisy(
    job: Job, base: str, n: int, stdevs: float, noise: str, random_state: int
) -> Callable[[Graph, Value], Sequence[Value]]:
    """(body, i) -> what `base` says of the i-th noisy copy."""
    if n < 1 or stdevs < 0:
        raise MethodError(f"noisy copies: n_samples must be at least 1 and stdevs at least 0, not {n} and {stdevs}")
    g, xs = job.g, job.xs
    given = [job.input(x, "noise", (n,)) if noise == "input" else None for x in xs]
    widths = [spread(g, x) * stdevs for x in xs]

    def there(body: Graph, i: Value) -> Sequence[Value]:
        drawn = [
            normal(body, x, i, random_state, k) if held is None else body.Gather(held, i, axis=0)
            for k, (x, held) in enumerate(zip(xs, given, strict=True))
        ]
        return job.at(body, [x + w * xi for x, w, xi in zip(xs, widths, drawn, strict=True)]).explained_by(base)

    return there


def spread(g: Graph, x: Value) -> Value:
    """max x - min x of each sample."""
    return per_sample(g, "ReduceMax", x) - per_sample(g, "ReduceMin", x)
