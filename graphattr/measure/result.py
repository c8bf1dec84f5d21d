"""What a measure finds: one value per sample, their summary and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..graph import Array

STATISTICS: Mapping[str, Callable[..., Any]] = {"mean": np.mean, "median": np.median}


@dataclass(frozen=True)
class Measure:
    """`values`: one number per sample. `details`: curves and the like, by name. `settings`: what it was measured with."""

    name: str
    values: Array
    statistic: str = "mean"
    details: Mapping[str, Array] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def value(self) -> float:
        """The statistic of the values that are numbers; NaN when there is none."""
        kept = self.values[np.isfinite(self.values)]
        return float(STATISTICS[self.statistic](kept)) if kept.size else float("nan")

    def interval(self, level: float = 0.95, resamples: int = 10_000, random_state: int = 0) -> tuple[float, float]:
        """A bootstrap confidence interval of the statistic."""
        return bootstrap(self.values, self.statistic, level, resamples, random_state)

    def records(self) -> list[dict[str, Any]]:
        """One row per sample, as `pandas.DataFrame` takes them: measure, sample, value."""
        return [{"measure": self.name, "sample": i, "value": v} for i, v in enumerate(self.values.tolist())]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: numbers, lists and strings."""
        low, high = self.interval()
        return {
            "name": self.name,
            "value": self.value,
            "statistic": self.statistic,
            "interval": [low, high],
            "values": self.values.tolist(),
            "details": {k: np.asarray(v).tolist() for k, v in self.details.items()},
            "settings": dict(self.settings),
        }


def bootstrap(
    values: Array, statistic: str = "median", level: float = 0.99, resamples: int = 10_000, random_state: int = 0
) -> tuple[float, float]:
    """Percentiles of the statistic over resamples of the values with replacement, seeded PCG64; NaN values are left out."""
    kept = np.asarray(values, np.float64)
    kept = kept[np.isfinite(kept)]
    if not kept.size:
        return float("nan"), float("nan")
    rng = np.random.Generator(np.random.PCG64(random_state))
    found = STATISTICS[statistic](kept[rng.integers(0, kept.size, (resamples, kept.size))], axis=1)
    low, high = np.percentile(found, [50 * (1 - level), 100 - 50 * (1 - level)])
    return float(low), float(high)
