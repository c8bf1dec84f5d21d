"""Directional derivatives by central differences, with an honest answer where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

Array = np.ndarray
Feeds = Mapping[str, Array]
STEPS = {  # precision of the values -> (step, how well two quotients must agree)
    np.dtype(np.float64): [(1e-4, 1e-5), (1e-6, 1e-4), (1e-2, 2e-3)],
    np.dtype(np.float32): [(1e-2, 5e-3), (5e-2, 5e-3), (2e-3, 1e-2)],
}
COARSE = [(5e-2, 2e-2), (0.2, 2e-2)]


@dataclass(frozen=True)
class Quotient:
    """d <y, seed> along `direction` of one input, and how sure that is (relative)."""

    name: str
    direction: Array
    value: float
    error: float


class NotSmooth(Exception):
    """There is no derivative here, or none that differences can find."""


def size_of(x: Array) -> float:
    """The root mean square of the finite elements; 1 where there is nothing to measure."""
    finite = x[np.isfinite(x)].astype(np.float64)
    rms = float(np.sqrt(np.mean(finite**2))) if finite.size else 0.0
    return rms or 1.0


def jittered(feeds: Feeds, names: list[str], rng: np.random.Generator) -> Iterator[dict[str, Array]]:
    """The data as it is, then moved a little: towards zero, away from it, upwards, anywhere."""
    yield dict(feeds)

    def moved(change: Callable[[Array], Array]) -> dict[str, Array]:
        return {k: np.asarray(change(v), v.dtype) if k in names else v for k, v in feeds.items()}

    yield moved(lambda v: v * (1 - 0.03 * rng.random(v.shape)))
    yield moved(lambda v: v * (1 + 0.03 * rng.random(v.shape)))
    yield moved(lambda v: v + 0.03 * size_of(v) * rng.random(v.shape))
    for width in (0.02, 0.2):
        yield moved(lambda v, w=width: v + w * size_of(v) * rng.standard_normal(v.shape))


def quotients(f: Callable[[Feeds], float], feeds: Feeds, names: list[str], rng: np.random.Generator, precision: np.dtype,
              directions: int = 2) -> list[Quotient]:
    """Along random directions of each named input; NotSmooth where the quotients of two steps, or of two sides, disagree."""
    centre = f(feeds)
    found = []
    for name in names:
        for _ in range(directions if feeds[name].size else 0):
            u = rng.standard_normal(feeds[name].shape) * size_of(feeds[name])
            found.append(_quotient(lambda t: f({**feeds, name: np.asarray(feeds[name] + t * u, feeds[name].dtype)}),  # noqa: B023
                                   centre, name, u, STEPS.get(precision, COARSE)))
    return found


def _quotient(line: Callable[[float], float], centre: float, name: str, u: Array, steps: list[tuple[float, float]]) -> Quotient:
    """Richardson's value from steps h and h/2, the first whose quotients agree."""
    why = ""
    for h, tolerance in steps:
        try:
            values = {t: line(t) for t in (h, -h, h / 2, -h / 2)}
        except NotSmooth as e:
            why = str(e)
            continue
        wide, narrow = (values[h] - values[-h]) / (2 * h), (values[h / 2] - values[-h / 2]) / h
        scale = max(abs(wide), abs(narrow), 1e-3 * abs(centre), 1e-6)
        error = abs(wide - narrow) / scale
        if _bends(values, centre, h, 20 * tolerance * scale):
            values |= {t: line(t) for t in (h / 4, -h / 4)}
            if _bends(values, centre, h / 2, 20 * tolerance * scale):
                raise NotSmooth(f"along {name}: one-sided quotients differ")
        if error <= tolerance:
            return Quotient(name, u, (4 * narrow - wide) / 3, max(error, tolerance))
        why = f"the quotients {wide:.6g} and {narrow:.6g} of two steps differ"
    raise NotSmooth(f"along {name}: {why}")


def _bends(values: Mapping[float, float], centre: float, h: float, least: float) -> bool:
    """Whether the one-sided quotients differ as much at h/2 as at h (a kink); smooth functions bend half as much, noise twice."""
    wide, narrow = ((values[t] + values[-t] - 2 * centre) / t for t in (h, h / 2))
    return bool(wide) and abs(narrow) > least and 0.8 < narrow / wide < 1.25
