"""Findings in plain words: which check a method passes, which it does not, and what was not measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .profile import Profile

CHECKS = {  # name -> the question it answers
    "completeness": "Does it add up?",
    "randomisation": "Does it look at every layer?",
    "random_logit": "Does it tell classes apart?",
    "convergence": "Does it depend on what is explained?",
    "flipping": "Does it find what counts?",
    "sensitivity_n": "Are its shares right?",
    "max_sensitivity": "Is it stable?",
    "localisation": "Does it look at the object?",
    "grid_pointing": "Does it find the right one of four pictures?",
}
SUMS = {
    "seed": "the score counted as 1",
    "score": "the score",
    "difference": "the score's change from the baseline",
    "zero": "zero",
}
DECIDES = {"localisation": ("inside_ratio",)}  # boxes may all be too large for the accuracy
Said = tuple[bool | None, str]


def sentences(found: Mapping[str, Mapping[str, Any]], profile: Profile) -> list[dict[str, Any]]:
    """check, question, passed (None: not measured, or no number), text: for each measure that can be passed."""
    lines = []
    for name, question in CHECKS.items():
        if name not in found:
            continue
        finding = found[name]
        if finding["skipped"]:
            passed, text = None, f"not measured: {finding['skipped']}"
        elif any(finding["metrics"].get(m) is None for m in DECIDES.get(name, finding["names"])):
            passed, text = None, "not measured: there is no number to compare (are scores or maps zero?)"
        else:
            passed, text = SENTENCES[name](finding, profile)
        lines.append({"check": name, "question": question, "passed": passed, "text": text})
    return lines


def summary(name: str, lines: list[dict[str, Any]]) -> str:
    """One line per method."""
    judged = [line for line in lines if line["passed"] is not None]
    failed = [line["text"] for line in judged if not line["passed"]]
    counted = f"{name} passes {len(judged) - len(failed)} of {len(judged)} checks"
    return f"{counted}: {'; '.join(failed)}" if failed else counted


# -- a sentence per measure ---------------------------------------------------------------------------------------
def _completeness(f: Mapping[str, Any], profile: Profile) -> Said:
    gap, limit = f["metrics"]["completeness"], profile.threshold("completeness")
    what = SUMS[f["settings"]["to"]]
    if gap <= limit:
        return True, f"sums to {what} within {_within(gap)}"
    return False, f"does not sum to {what}: off by {_percent(gap)} (median)"


def _randomisation(f: Mapping[str, Any], profile: Profile) -> Said:
    depths, depth = f["details"]["depths"], int(f["metrics"]["insensitive_layers"])
    similar = f["details"]["curve"]["middle"]
    of = "SSIM" if f["settings"]["compare"] == "ssim" else "rank correlation"
    total = depths[-1]
    if depth == 0:
        return True, f"changes as soon as the last layer forgets what it learned ({of} {similar[0]:.2f})"
    if depth == total:
        all_of = "its one layer" if total == 1 else f"all {total} layers"
        return False, f"insensitive to {all_of} with weights: the map stays the same in a random network"
    return False, f"insensitive to the last {_layers(depth)} of {total} ({of} still {similar[depths.index(depth)]:.2f})"


def _random_logit(f: Mapping[str, Any], profile: Profile) -> Said:
    value = f["metrics"]["random_logit"]
    of = "SSIM" if f["settings"]["compare"] == "ssim" else "rank correlation"
    if value >= profile.threshold("random_logit"):
        return False, f"gives nearly the same map for another class ({of} {value:.2f})"
    return True, f"gives another map for another class ({of} {value:.2f})"


def _convergence(f: Mapping[str, Any], profile: Profile) -> Said:
    value, limit = f["metrics"]["convergence"], profile.threshold("convergence")
    last = f["details"]["tensors"][-1]
    if value < limit:
        return True, f"different starts stay different down to {last!r} (|cos| {value:.2f})"
    cosines = [c if c is not None else 0.0 for c in f["details"]["curve"]]
    start = next(k for k in range(len(cosines)) if min(cosines[k:]) >= limit)
    first = f["details"]["tensors"][start]
    return False, f"whatever it starts from becomes one direction from {first!r} down (|cos| {value:.3g} at {last!r})"


def _flipping(f: Mapping[str, Any], profile: Profile) -> Said:
    gain, low = f["metrics"]["faithfulness"], (f["interval"] or [None])[0]
    if low is not None and low > 0:
        return True, f"what it ranks first counts more than what it ranks last (areas differ by {gain:.2g})"
    if gain > 0:
        return False, f"its ranking is not surely better than chance (areas differ by {gain:.2g}, the interval includes 0)"
    return False, f"what it ranks first counts no more than what it ranks last (areas differ by {gain:.2g})"


def _sensitivity_n(f: Mapping[str, Any], profile: Profile) -> Said:
    r = f["metrics"]["sensitivity_n"]
    good = r >= profile.threshold("sensitivity_n")
    return good, f"{'agrees' if good else 'does not agree'} with what the score loses without subsets of features (r = {r:.2f})"


def _max_sensitivity(f: Mapping[str, Any], profile: Profile) -> Said:
    change, noise = f["metrics"]["max_sensitivity"], f["settings"]["radius"]
    good = change <= profile.threshold("max_sensitivity")
    return good, f"{'changes' if good else 'is unstable: it changes'} by {_percent(change)} under noise of {_percent(noise)}"


def _localisation(f: Mapping[str, Any], profile: Profile) -> Said:
    d, ratio = f["details"], f["metrics"]["inside_ratio"]
    good = d["gain"][0] is not None and d["gain"][0] > 0
    what = "boxes" if f["settings"]["classes"] == "all" else "boxes of the class"
    said = f"{_percent(ratio)} of what speaks for the class lies in the {what}, which cover {_percent(d['area'])} of the picture"
    hits = f"the strongest pixel in {d['hits']} of {len(d['pictures'])}"
    return good, f"{said}; {hits}" if good else f"{said}: not surely more than chance; {hits}"


def _grid_pointing(f: Mapping[str, Any], profile: Profile) -> Said:
    share, low = f["metrics"]["grid_pointing"], (f["interval"] or [None])[0]
    said = f"of four pictures {_percent(share)} of what speaks for the class of one lies in it"
    good = low is not None and low > 0.25
    return good, said if good else f"{said}, where chance gives 25 %"


def _layers(n: int) -> str:
    return "layer" if n == 1 else f"{n} layers"


def _within(gap: float) -> str:
    """A round number that the gap is below."""
    return "rounding" if gap < 1e-7 else next(f"{b:g}" for b in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, gap) if gap <= b)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


SENTENCES: Mapping[str, Callable[[Mapping[str, Any], Profile], Said]] = {
    "completeness": _completeness,
    "randomisation": _randomisation,
    "random_logit": _random_logit,
    "convergence": _convergence,
    "flipping": _flipping,
    "sensitivity_n": _sensitivity_n,
    "max_sensitivity": _max_sensitivity,
    "localisation": _localisation,
    "grid_pointing": _grid_pointing,
}
