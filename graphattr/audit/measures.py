"""What an audit measures of one method: each a function of a Subject to a `Finding`, registered under its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .. import measure
from ..errors import MethodError, RunError, did_you_mean
from ..graph import Array
from ..layers import to_layers
from ..measure import Measure, bootstrap
from ..method import Method
from ..targets import explained_output
from .subject import Subject

RESAMPLES = 2000


@dataclass(frozen=True)
class Finding:
    """`metrics`: what rules of a gate may name. `values`: one per sample. `details`: curves, by name, as plain data."""

    metrics: Mapping[str, float]
    values: Array | None = None
    interval: tuple[float, float] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """A registered measure and the metrics that it gives."""

    run: Callable[..., Finding]
    metrics: tuple[str, ...]

    @property
    def settings(self) -> dict[str, Any]:
        """Names and defaults of its settings."""
        return {k: p.default for k, p in inspect.signature(self.run).parameters.items() if p.kind is p.KEYWORD_ONLY}


MEASURES: dict[str, Asked] = {}


def measured(*metrics: str) -> Callable[[Callable[..., Finding]], Callable[..., Finding]]:
    def register(f: Callable[..., Finding]) -> Callable[..., Finding]:
        MEASURES[f.__name__] = Asked(f, metrics)
        return f

    return register


def check_measures(asked: Mapping[str, Mapping[str, Any]]) -> None:
    """RunError for measures and settings that do not exist."""
    if not asked:
        raise RunError(f"the profile names no measure (there are {', '.join(MEASURES)})")
    for name, settings in asked.items():
        if name not in MEASURES:
            raise RunError(f"no measure is called {name!r}{did_you_mean(name, MEASURES)} (there are {', '.join(MEASURES)})")
        known = MEASURES[name].settings
        for key, value in settings.items():
            if key not in known:
                raise RunError(f"measure {name!r} has no setting {key!r}{did_you_mean(key, known)} "
                               f"(it has {', '.join(known) or 'none'})")
            wanted = (int, float) if isinstance(known[key], float) else type(known[key])
            if not isinstance(value, wanted) or isinstance(value, bool) or (not isinstance(value, str) and value < 0):
                raise RunError(f"measure {name!r}: {key} = {value!r} does not fit; the default is {known[key]!r}")


def _of(m: Measure, name: str, **settings: Any) -> Finding:
    return Finding({name: m.value}, m.values, m.interval(resamples=RESAMPLES), {}, {**m.settings, **settings})


def _band(curves: Array, statistic: str = "mean") -> dict[str, list[float]]:
    """A curve per sample as their middle and a bootstrap interval at each point."""
    middles = [Measure("", c, statistic).value for c in curves.T]
    edges = [bootstrap(c, statistic, 0.95, RESAMPLES) for c in curves.T]
    return {"middle": middles, "low": [e[0] for e in edges], "high": [e[1] for e in edges]}


# -- the measures -------------------------------------------------------------------------------------------------
@measured("completeness")
def completeness(s: Subject) -> Finding:
    """|what the attributions should add up to - what they do|, relative to the former."""
    if s.delta is None:
        raise MethodError("it does not say what its attributions add up to")
    gap = np.abs(s.delta.astype(np.float64))
    size = np.abs(s.sums + s.delta) if s.method.expects != "zero" else np.abs(s.attribution).reshape(len(gap), -1).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        relative = np.where(gap == 0, 0.0, gap / size)
    return _of(Measure("completeness", relative, "median"), "completeness", to=_to(s.method))


def _to(m: Method) -> str:
    """What the attributions add up to; a seed of logits is the score."""
    return "score" if m.expects == "seed" and m.seed in ("logit", "relu_logit") else m.expects


@measured("randomisation", "insensitive_layers")
def randomisation(s: Subject, *, layers: int = 12, init: str = "normal", insensitive: float = 0.9) -> Finding:
    """Similarity to the map of the intact model while layers are re-initialised from the output down. `layers` 0: each."""
    if s.fitted:
        raise MethodError("what it learned belongs to the intact model: with layers drawn anew it would have to be fitted anew")
    found = measure.cascading_randomisation(
        s.model, s.samples, s.method, before=s.attribution, init=_init(init), at_most=layers or None,
        keep=lambda depth, compute: s.kept(f"layer-{depth}", init, compute), **s.asked
    )
    if not found.layers:
        raise RunError("the model has no layer with weights")
    curve = _band(np.stack([m.values for m in found.measures], 1), "median")
    same = [m >= insensitive for m in curve["middle"]]
    depth = max([d for k, d in enumerate(found.depths) if all(same[: k + 1])], default=0)
    metrics = {"randomisation": float(np.mean(curve["middle"])), "insensitive_layers": float(depth)}
    details = {"layers": list(found.layers), "depths": list(found.depths), "curve": curve}
    return Finding(metrics, None, None, details, {"init": init, "compare": found.measures[0].name, "insensitive": insensitive})


def _init(init: str) -> Any:
    if init not in ("normal", "kaiming"):
        raise RunError(f'randomisation: init = {init!r} is neither "normal" nor "kaiming"')
    return init


@measured("random_logit")
def random_logit(s: Subject) -> Finding:
    """Similarity of the map of a class to that of another one, drawn at random."""
    s.needs_no_target("another class")
    if s.entries == 2:
        raise MethodError("of two classes one speaks for what the other speaks against, and maps are compared but for their sign")
    found = measure.random_logit(s.model, s.samples, s.method, before=s.attribution, fitted=s.fitted, **s.asked)
    return _of(found, "random_logit", compare=s.compare)


@measured("convergence")
def convergence(s: Subject, *, vectors: int = 5, tensors: int = 8, locations: int = 1000) -> Finding:
    """|cos| of what different relevances at the output become at the inputs of layers that have channels to compare, down to the
    explained inputs. `tensors` 0: at each. `locations`: at most so many of a tensor, 0: all."""
    s.needs_no_target("any other relevance")
    if s.ids:
        raise MethodError(f"the explained input {s.ids[0]!r} holds ids, which have no channels to compare")
    if s.method.forward_only or s.entries < 2:
        why = "it sends no relevance down the layers" if s.method.forward_only else "the explained output has one entry"
        raise MethodError(why)
    if vectors < 2:
        raise RunError("convergence compares vectors: at least 2 are needed")
    axes = s.once(("channels",), lambda: _channels(s))
    maps = {t: size for t, (_, size) in axes.items()}
    names = _tensors(maps, tensors)
    found = measure.cosine_convergence(
        s.model, s.samples, s.method, tensors=names, output=s.output, pairs_of=vectors, random_state=s.seed,
        channels={t: axis for t, (axis, _) in axes.items()}, locations=locations or None, providers=s.providers,
        batch_size=s.batch_size, fitted=s.fitted, **s.params,
    )
    middles = {t: found[t].value for t in names}
    details = {
        "tensors": names,
        "channels": [maps[t] for t in names],
        "curve": list(middles.values()),
        "percentiles": [found[t].details["percentiles"].tolist() for t in names],
        "baseline": [measure.random_baseline(maps[t], 2000, s.seed) if maps[t] else None for t in names],
    }
    return Finding({"convergence": middles[names[-1]]}, None, None, details, {"vectors": vectors, "locations": locations})


def _tensors(maps: Mapping[str, int], at_most: int) -> list[str]:
    names = [name for name, channels in maps.items() if channels != 1]  # a cosine of one number is 1 or -1
    if not names:
        raise RunError("no layer reads more than one channel")
    chosen = sorted({round(k) for k in np.linspace(0, len(names) - 1, min(len(names), at_most or len(names)))} | {len(names) - 1})
    return [names[k] for k in chosen]


def _channels(s: Subject) -> dict[str, tuple[int, int]]:
    """What layers with weights read, from the output down to the explained inputs: the axis over which they sum, from the end,
    and its size, 0 where the file leaves it open. An input that none of them reads has the channels of its layout."""
    canonical = s.canonical
    inputs, y = [canonical.value(n) for n in s.joint.names], explained_output(canonical, s.output, True).y
    layers = to_layers(canonical.graph, inputs, [y]).between(inputs, [y])
    tops = {layer.x: layer.channels for layer in reversed(layers) if layer.kind == "linear" and layer.x.is_float}
    axes = {v: a for v, a in tops.items() if v not in inputs}
    axes |= {v: tops.get(v, -1 if s.layout == "NHWC" else 1 - len(v.shape or (0, 0))) for v in inputs}
    sizes = {v: v.shape[a] if v.shape is not None and len(v.shape) >= -a else None for v, a in axes.items()}
    return {v.name: (axes[v], d if isinstance(d, int) else 0) for v, d in sizes.items()}


@measured("faithfulness", "morf", "lerf")
def flipping(s: Subject, *, steps: int = 20, baseline: float = 0.0) -> Finding:
    """The probability of the class while features go to the baseline: most relevant first (deletion), least relevant first (which
    is insertion, read from the end), and in random order; an id becomes the id `baseline`. faithfulness: area of the last but one
    minus that of the first."""
    if s.entries < 2:
        raise MethodError("the explained output has one entry, so there is no probability of a class")
    grain: Any = s.granularity
    if grain == "element":
        s.needs_input_shape()
    gone = s.removed(baseline)

    def flipped(ranked: Array, order: Any) -> Measure:
        return measure.pixel_flipping(
            s.scorer, s.feeds, ranked, s.target, order=order, granularity=grain, steps=steps, baseline=gone, name=s.name
        )

    def by_chance() -> Measure:
        rng = np.random.Generator(np.random.PCG64(s.seed))
        return flipped(np.asarray(rng.standard_normal(s.attribution.shape)), "morf")

    found = {way: flipped(s.attribution, way) for way in ("morf", "lerf")}
    found["random"] = s.once(("flipping", s.attribution.shape, grain, steps, gone), by_chance)
    gain = Measure("faithfulness", found["lerf"].values - found["morf"].values)
    details = {way: _band(m.details["curve"]) for way, m in found.items()}
    metrics = {"faithfulness": gain.value, "morf": found["morf"].value, "lerf": found["lerf"].value}
    return Finding(metrics, gain.values, gain.interval(resamples=RESAMPLES), details, dict(found["morf"].settings))


@measured("sensitivity_n")
def sensitivity_n(s: Subject, *, subsets: int = 50, share: float = 0.125, baseline: float = 0.0) -> Finding:
    """Correlation of what subsets of features are said to contribute with what the score loses when they become `baseline`."""
    s.needs_input_shape()
    rng = np.random.Generator(np.random.PCG64(s.seed))
    features = s.x[0].size
    n = max(1, round(share * features))
    drawn = np.stack([rng.choice(features, n, replace=False) for _ in range(subsets)])
    found = measure.sensitivity_n(
        s.scorer_of("sensitivity_n", subsets, n, baseline), s.feeds, s.attribution, s.target, subsets=drawn,
        baseline=s.removed(baseline), name=s.name,
    )
    return _of(found, "sensitivity_n")


@measured("infidelity")
def infidelity(s: Subject, *, samples: int = 100) -> Finding:
    """Squared error of <noise, attribution> as a forecast of what the noise does to the score."""
    s.needs_input_shape()
    s.needs_no_ids()
    found = measure.infidelity(
        s.scorer_of("infidelity", samples), s.feeds, s.attribution, s.target, samples=samples, random_state=s.seed, name=s.name
    )
    return _of(found, "infidelity")


@measured("max_sensitivity")
def max_sensitivity(s: Subject, *, samples: int = 5, radius: float = 0.02) -> Finding:
    """The largest relative change of the map under noise of `radius` times the range of the input."""
    s.needs_no_ids()
    width = radius * (float(s.x.max()) - float(s.x.min()))
    found = measure.max_sensitivity(
        lambda x: s.explain({**s.feeds, s.name: x}), s.x, radius=width, samples=samples, random_state=s.seed,
        before=s.attribution,
    )
    return _of(found, "max_sensitivity", radius=radius)


@measured("sparseness")
def sparseness(s: Subject) -> Finding:
    """The Gini index of the magnitudes."""
    return _of(measure.sparseness(s.attribution), "sparseness")
