"""Rules that a report must keep, such as "completeness > 0.01" or "gradient: insensitive_layers >= 3": a gate for machines."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import RunError, did_you_mean
from .measures import MEASURES

SIGNS: Mapping[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt
}
RULE = re.compile(r"^\s*(?:(?P<method>[^<>=]+?)\s*:\s*)?(?P<metric>[a-z_]+)\s*(?P<sign>>=|<=|>|<)\s*(?P<number>\S+)\s*$")


@dataclass(frozen=True)
class Rule:
    """Fails where `metric sign number` holds, for one method or for each."""

    text: str
    method: str | None
    metric: str
    sign: str
    number: float

    def lines(self, methods: Mapping[str, Mapping[str, Any]]) -> Iterable[dict[str, Any]]:
        """One line per method: what was found, and whether it fails. What was not measured fails."""
        for name, found in methods.items():
            if self.method not in (None, name):
                continue
            held = next(m for m in found["measures"].values() if self.metric in m["names"])
            value = held["metrics"].get(self.metric)
            failed = value is None or SIGNS[self.sign](value, self.number)
            why = None if value is not None else held["skipped"] or "it is no number"
            yield {"rule": self.text, "method": name, "metric": self.metric, "value": value, "failed": failed, "reason": why}


def parse(rules: Sequence[str], methods: Iterable[str], measures: Iterable[str]) -> list[Rule]:
    """RunError for a rule that cannot be read, or names what is not measured."""
    known = [metric for name in measures for metric in MEASURES[name].metrics]
    every = [metric for asked in MEASURES.values() for metric in asked.metrics]
    found = []
    for text in rules:
        match = RULE.match(text)
        number = _number(match["number"]) if match else None
        if match is None or number is None:
            raise RunError(f'--fail-on {text!r}: write METRIC > NUMBER, such as "completeness > 0.01" (also >=, <, <=), '
                           'or "METHOD: METRIC > NUMBER"')
        if match["metric"] not in known:
            hint = "the profile does not measure it" if match["metric"] in every else "there is no such metric"
            raise RunError(f"--fail-on {text!r}: {hint}{did_you_mean(match['metric'], known)} (measured: {', '.join(known)})")
        held = list(methods)
        if match["method"] and match["method"] not in held:
            raise RunError(f"--fail-on {text!r}: {match['method']!r} is not audited (methods: {', '.join(held)})")
        found.append(Rule(text, match["method"], match["metric"], match["sign"], number))
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
