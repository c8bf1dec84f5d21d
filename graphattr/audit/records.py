"""An audit as plain rows, for `pandas.DataFrame`, a database or a .csv file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

Row = dict[str, Any]
SAMPLE = ("method", "measure", "metric", "sample", "explained", "predicted", "label", "value")


def sample_rows(report: Mapping[str, Any]) -> list[Row]:
    """One row per method, measure and sample, of the measures that have a value per sample; NaN where it is no number."""
    about = report["samples"]
    known = [about["explained"], about["predicted"], about["labels"] or [None] * about["number"]]
    rows = []
    for method, measure, found in _findings(report):
        for i, value in enumerate(found["values"] or []):
            row = (method, measure, found["names"][0], i, *(k[i] for k in known), _number(value))
            rows.append(dict(zip(SAMPLE, row, strict=True)))
    return rows


def metric_rows(report: Mapping[str, Any]) -> list[Row]:
    """One row per method and metric: its value, the interval of a measure's first one, the verdict, why it was not measured."""
    rows = []
    for method, measure, found in _findings(report):
        passed = {line["check"]: line["passed"] for line in report["methods"][method]["verdict"]}
        for k, metric in enumerate(found["names"]):
            low, high = (k == 0 and found["interval"]) or (None, None)
            rows.append({
                "method": method, "measure": measure, "metric": metric, "value": _number(found["metrics"].get(metric)),
                "low": _number(low), "high": _number(high), "passed": passed.get(measure), "skipped": found["skipped"],
            })
    return rows


def _findings(report: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for method, entry in report["methods"].items():
        for measure, found in entry["measures"].items():
            yield method, measure, found


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)
