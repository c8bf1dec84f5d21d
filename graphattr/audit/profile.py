"""What is measured, on how many samples, and from which number on words are said of it: a preset or the table of a .toml file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..errors import RunError, did_you_mean
from ..files import named_or_table

THRESHOLDS: Mapping[str, float] = {
    "completeness": 0.01,  # the attributions add up, relative to what they should add up to
    "insensitive": 0.9,  # similarity from which on a map counts as the same although layers were re-initialised
    "random_logit": 0.9,  # the same for the map of another class
    "convergence": 0.9,  # |cos| from which on relevances count as one direction
    "sensitivity_n": 0.3,  # correlation that is agreement
    "max_sensitivity": 1.0,  # a relative change of the map that is too much
}


@dataclass(frozen=True)
class Profile:
    """`measures`: settings by the name of the measure. `thresholds`: see THRESHOLDS. `fail_on`: rules of a gate."""

    name: str
    samples: int = 32
    gallery: int = 6
    seed: int = 0
    measures: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)
    fail_on: Sequence[str] = ()

    def threshold(self, name: str) -> float:
        return float(self.thresholds.get(name, THRESHOLDS[name]))


QUICK: Mapping[str, Mapping[str, Any]] = {
    "completeness": {},
    "randomisation": {"layers": 6},
    "random_logit": {},
    "flipping": {"steps": 10},
    "sparseness": {},
}
STANDARD: Mapping[str, Mapping[str, Any]] = {
    "completeness": {},
    "randomisation": {"layers": 12},
    "random_logit": {},
    "convergence": {"vectors": 5, "tensors": 8},
    "flipping": {"steps": 20},
    "sensitivity_n": {"subsets": 50},
    "max_sensitivity": {"samples": 5},
    "grid_pointing": {"mosaics": 8},
    "sparseness": {},
}
FULL: Mapping[str, Mapping[str, Any]] = {
    "completeness": {},
    "randomisation": {"layers": 0},
    "random_logit": {},
    "convergence": {"vectors": 5, "tensors": 0},
    "flipping": {"steps": 100},
    "sensitivity_n": {"subsets": 100},
    "infidelity": {"samples": 100},
    "max_sensitivity": {"samples": 10},
    "grid_pointing": {"mosaics": 50},
    "sparseness": {},
}
PROFILES = {
    p.name: p
    for p in (
        Profile("quick", samples=8, gallery=4, measures=QUICK),
        Profile("standard", samples=32, gallery=6, measures=STANDARD),
        Profile("full", samples=200, gallery=8, measures=FULL),
    )
}


def load_profile(profile: str | os.PathLike[str] | Profile) -> Profile:
    """A preset by name, or the table of a .toml file: samples gallery seed fail_on [measures.NAME] [thresholds]."""
    if isinstance(profile, Profile):
        return profile
    found = named_or_table(profile, PROFILES, "profile", "profile")
    return _from_table(*found) if isinstance(found, tuple) else found


def _from_table(table: dict[str, Any], path: Path) -> Profile:
    known = [f.name for f in fields(Profile) if f.name != "name"]
    _check_keys(table, known, str(path))
    for key in ("samples", "gallery", "seed"):
        least = 1 if key == "samples" else 0
        if key in table and (type(table[key]) is not int or table[key] < least):
            raise RunError(f"{path}: {key} = {table[key]!r} is not a whole number of at least {least}")
    thresholds, measures, rules = (table.get(k, {}) for k in ("thresholds", "measures", "fail_on"))
    if not isinstance(thresholds, dict) or not all(isinstance(v, (int, float)) for v in thresholds.values()):
        raise RunError(f"{path}: [thresholds] holds numbers by name")
    if not isinstance(measures, dict) or not all(isinstance(v, dict) for v in measures.values()):
        raise RunError(f"{path}: [measures.NAME] holds the settings of a measure, and may be empty")
    if rules and not (isinstance(rules, list) and all(isinstance(r, str) for r in rules)):
        raise RunError(f'{path}: fail_on is a list of rules such as ["completeness > 0.01"]')
    _check_keys(thresholds, THRESHOLDS, f"{path}, [thresholds]")
    return Profile(**{"name": path.stem, "measures": STANDARD, **table})


def _check_keys(table: Mapping[str, Any], known: Any, where: str) -> None:
    for key in table:
        if key not in known:
            raise RunError(f"{where}: unknown key {key!r}{did_you_mean(key, known)} (known: {', '.join(known)})")
