"""What a measure of an audit looks at: one method on one model, its attributions of the samples, and how to ask for more."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import measure
from ..canonical import Canonical, canonicalise
from ..errors import MethodError, RunError
from ..fitted import Fitted
from ..graph import Array
from ..measure import Joint, Measure, Scorer
from ..measure.scoring import Feeds
from ..method import Method
from ..source import read
from .boxes import Boxes


@dataclass(frozen=True)
class Subject:
    """`feeds`, `scorer`, `attribution`: what is explained is one array, input `name`, of the inputs in `joint`; `samples`: arrays
    by input name. `sums`: of all that a sample's attributions are; `delta`: what is missing to what they should add up to."""

    model: Any
    method: Method
    params: Mapping[str, Any]
    fitted: Sequence[Fitted]
    scorer: Scorer
    scores: Array
    samples: Mapping[str, Array]
    joint: Joint
    layout: str
    target: Array
    attribution: Array
    sums: Array
    delta: Array | None
    explain: Callable[[Mapping[str, Array]], Array]
    seed: int
    batch_size: int
    output: str | None = None
    wrt: Any = None
    providers: Any = None
    boxes: Boxes | None = None
    shared: dict[Any, Any] = field(default_factory=dict)
    kept: Callable[[str, Any, Callable[[], Measure]], Measure] = lambda part, settings, compute: compute()

    @property
    def name(self) -> str:
        return self.joint.name

    @property
    def feeds(self) -> dict[str, Array]:
        return self.joint.join(self.samples)

    @property
    def x(self) -> Array:
        return self.feeds[self.name]

    @property
    def entries(self) -> int:
        """How many scores there are to explain."""
        return int(self.scores.shape[1])

    @property
    def ids(self) -> list[str]:
        """The explained inputs that hold ids."""
        return [n for n in self.joint.names if self.samples[n].dtype.kind in "iu"]

    @property
    def granularity(self) -> str:
        """Pixels of pictures with channels first, else every element by itself."""
        return "pixel" if self.layout == "NCHW" and self.x.ndim == 4 else "element"

    @property
    def asked(self) -> dict[str, Any]:
        """What explains a changed model, or another class, as this one was explained."""
        return {
            "target": self.target, "output": self.output, "wrt": self.wrt, "random_state": self.seed,
            "compare": self.alike, "providers": self.providers, "batch_size": self.batch_size, **self.params,
        }

    @property
    def compare(self) -> str:
        """How maps are compared, either sign: by SSIM where they are pictures, else by |rank correlation|."""
        a = self.attribution
        pictures = bool(self.layout) and a.ndim == 4 and min(channels_first(a, self.layout).shape[2:]) >= 5
        return "ssim" if pictures else "|spearman|"

    def alike(self, a: Array, b: Array) -> Measure:
        if self.compare == "ssim":
            return measure.ssim_flip(channels_first(a, self.layout), channels_first(b, self.layout))
        found = measure.spearman(a, b)
        return Measure(self.compare, np.abs(found.values), found.statistic)

    def once(self, what: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        """What does not depend on the method, computed for the first of them."""
        if what not in self.shared:
            self.shared[what] = compute()
        return self.shared[what]

    @property
    def canonical(self) -> Canonical:
        """The model, read."""
        found: Canonical = self.once(("canonical",), lambda: canonicalise(read(self.model)))
        return found

    def scorer_of(self, *what: Any) -> Scorer:
        """A scorer whose one set of variants is the same for all methods, so that the model runs them once."""
        return _Once(self, what)

    def needs_input_shape(self) -> None:
        if self.attribution.shape != self.x.shape:
            raise MethodError(f"its maps have the shape {self.attribution.shape[1:]}, the input {self.x.shape[1:]}")

    def needs_no_ids(self) -> None:
        if self.ids:
            names = " and ".join(map(repr, self.ids))
            raise MethodError(f"{names} hold{'' if self.ids[1:] else 's'} ids: a little noise makes other tokens of them")

    def needs_no_target(self, what: str) -> None:
        """Some fits are of the classes that they were learned for."""
        learned = next((f.manifest["targets"] for f in self.fitted if f.manifest.get("targets")), None)
        if learned:
            raise MethodError(f"it was fitted for the target {' and '.join(map(str, learned))}, and says nothing of {what}")

    def removed(self, baseline: float) -> float:
        """The value of a removed feature, which must be an id where ids are explained."""
        if self.ids and baseline != int(baseline):
            raise RunError(f"baseline = {baseline:g} is no id to replace those of {self.ids[0]!r} by")
        return baseline


class _Once(Scorer):
    def __init__(self, subject: Subject, what: tuple[Any, ...]) -> None:
        self.__dict__.update(subject.scorer.__dict__)
        self.subject, self.what = subject, what

    def of_variants(self, feeds: Feeds, name: str, variants: Iterable[Array], target: Array) -> Array:
        s = self.subject
        found: Array = s.once(self.what, lambda: s.scorer.of_variants(feeds, name, variants, target))
        return found


def channels_first(a: Array, layout: str) -> Array:
    """Maps (N, C, H, W) of a layout; those of one channel have it in front already."""
    return np.moveaxis(a, -1, 1) if layout == "NHWC" and a.ndim == 4 and a.shape[1] != 1 else a
