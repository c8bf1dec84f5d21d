"""Sanity checks: what remains of a map when the model forgets what it learned, or when another class is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import onnx
from onnx import numpy_helper

from ..canonical import Canonical, canonicalise
from ..errors import MethodError
from ..fitted import opened
from ..graph import Array, Graph, Value
from ..layers import Layer, to_layers
from ..method import load_method
from ..runtime import Explainer
from ..source import read
from ..street import MethodLike, Order, explanation_of
from ..targets import attributed, data_roots, explained_output
from .maps import ssim_flip
from .result import Measure
from .scoring import Feeds, Scorer, bare_model, embed, explained, joined

Compare = Callable[[Array, Array], Measure]
ORDERS = ("top_down", "bottom_up", "independent")


@dataclass(frozen=True)
class Cascade:
    """`layers`: the linear layers from the output down. `measures`: per layer, the maps of the intact model against those of one
    in which this layer and all above it were re-initialised; `depths`: how many these are."""

    layers: Sequence[str]
    measures: Sequence[Measure]
    depths: Sequence[int]

    def records(self) -> list[dict[str, Any]]:
        """One row per layer and sample: layer, depth, measure, sample, value."""
        found = zip(self.layers, self.depths, self.measures, strict=True)
        return [{"layer": layer, "depth": depth, **row} for layer, depth, m in found for row in m.records()]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: numbers, lists and strings."""
        return {"layers": list(self.layers), "depths": list(self.depths), "measures": [m.to_dict() for m in self.measures]}


def cascading_randomisation(
    model: Any,
    feeds: Feeds,
    method: MethodLike,
    *,
    target: Any = None,
    init: Literal["normal", "kaiming"] = "normal",
    random_state: int = 0,
    compare: Compare = ssim_flip,
    fitted: Callable[[Any], Any] | None = None,
    output: str | None = None,
    wrt: str | Sequence[str] | None = None,
    before: Array | None = None,
    providers: Any = None,
    batch_size: int = 16,
    at_most: int | None = None,
    keep: Callable[[int, Callable[[], Measure]], Measure] = lambda depth, compute: compute(),
    **params: Any,
) -> Cascade:
    """The similarity of maps of one class while layers are re-initialised from the output down.

    `init="normal"`: N(0, the layer's own standard deviation), biases 0; "kaiming": uniform in +-sqrt(6 / fan in). A method that
    looks at what the model learned changes; one whose similarity stays near 1 ignores the layers above. `at_most`: maps are
    compared at so many depths, from the first to the last, instead of at every one. `fitted`: for a method that learns from data,
    a function from a model to what `fit` learns for it, asked for every model that is explained; what was learned for the intact
    model (MethodError) describes none of the others. `output`, `wrt`: as for `convert`; maps of several tensors are compared as
    one array. `before`: the maps of the intact model, where they are known. `keep`: given a depth and what
    computes its measure, gives that measure; it may know it already. Adebayo et al. 2018, Sixt et al. 2020.
    """
    if fitted is not None and not callable(fitted):
        raise MethodError("what was learned for the intact model describes no re-initialised one; give a function that learns "
                          "anew, fitted=lambda m: graphattr.fit(m, data, method)")
    scorer = Scorer(model, output, providers)
    given, classes = scorer.named(feeds), scorer.target(feeds, target)

    def maps(of: Any) -> Array:
        order = Order(method, "input", output, wrt, params=params, fitted=opened(fitted and fitted(of)))
        return _maps(Explainer(explanation_of(of, order), providers), given, classes, scorer.rows(batch_size))

    intact = maps(model) if before is None else before

    def similarity(of: Any) -> Measure:
        return compare(intact, maps(of))

    names, measures, depths = [], [], []
    canonical = canonicalise(read(model))
    layers = linear_layers(canonical, output, wrt)[::-1]
    chosen = {round(k) for k in np.linspace(1, len(layers), min(len(layers), at_most or len(layers)))}
    for depth, (name, changed) in enumerate(_randomised(canonical, layers, init, random_state), 1):
        if depth in chosen:
            names.append(name)
            measures.append(keep(depth, partial(similarity, changed)))
            depths.append(depth)
    return Cascade(names, measures, depths)


def random_logit(
    model: Any,
    feeds: Feeds,
    method: MethodLike,
    *,
    target: Any = None,
    random_state: int = 0,
    compare: Compare = ssim_flip,
    fitted: Any = None,
    output: str | None = None,
    wrt: str | Sequence[str] | None = None,
    before: Array | None = None,
    providers: Any = None,
    batch_size: int = 16,
    **params: Any,
) -> Measure:
    """The similarity of the maps of a class and of a uniformly drawn other one: near 1 where a method does not care.
    `fitted`, `output`, `wrt`: as for `convert`; `before`: the maps of the class, where they are known. Sixt et al. 2020."""
    scorer = Scorer(model, output, providers)
    given, classes = scorer.named(feeds), scorer.target(feeds, target)
    entries = scorer.entries(given)
    if entries < 2:
        raise MethodError("random_logit needs an explained output with at least two entries; this model has one")
    rng = np.random.Generator(np.random.PCG64(random_state))
    others = (classes + rng.integers(1, entries, len(classes))) % entries
    order = Order(method, "input", output, wrt, params=params, fitted=opened(fitted))
    explainer, size = Explainer(explanation_of(model, order), providers), scorer.rows(batch_size)
    first = _maps(explainer, given, classes, size) if before is None else before
    found = compare(first, _maps(explainer, given, others, size))
    settings = {"method": load_method(method).name, **found.settings}
    return Measure("random_logit", found.values, found.statistic, found.details, settings)


def reinitialised(
    model: Any,
    order: Literal["top_down", "bottom_up", "independent"] = "top_down",
    *,
    init: Literal["normal", "kaiming"] = "normal",
    random_state: int = 0,
    output: str | None = None,
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """(layer, a model of its own in which this layer forgot what it learned), for each layer with weights: and with it all above
    ("top_down"), all below ("bottom_up"), or none other ("independent"). MethodError for another order."""
    if order not in ORDERS:
        raise MethodError(f"layers are re-initialised {', '.join(map(repr, ORDERS))}, not {order!r}")
    canonical = canonicalise(read(model))
    layers = linear_layers(canonical, output)
    rounds = [[layer] for layer in layers] if order == "independent" else [layers if order == "bottom_up" else layers[::-1]]
    for together in rounds:
        for name, changed in _randomised(canonical, together, init, random_state):
            made = onnx.ModelProto()
            made.CopyFrom(changed)
            yield name, made


def _maps(explainer: Explainer, feeds: Mapping[str, Array], target: Array, size: int) -> Array:
    return joined(list(explained(explainer, feeds, target, size).scores.values()))


def linear_layers(canonical: Canonical, output: str | None = None, wrt: str | Sequence[str] | None = None) -> list[Layer]:
    """The layers with weights between what is attributed to and the explained output, from the input up."""
    roots, y = attributed(canonical, wrt), explained_output(canonical, output, True).y
    layers = to_layers(canonical.graph, data_roots(canonical, roots), [*roots, y])
    return [layer for layer in layers.between(roots, [y]) if layer.kind == "linear"]


def _randomised(
    canonical: Canonical, layers: Sequence[Layer], init: str, random_state: int
) -> Iterator[tuple[str, onnx.ModelProto]]:
    """(layer, the model with that linear layer and those before it in `layers` re-initialised)."""
    graph = canonical.graph
    proto = bare_model(canonical, graph)
    embed(proto, canonical.source)
    held = {t.name: t for t in proto.graph.initializer}
    # a stream of its own: weights that NumPy initialised from the same seed must not be drawn once more
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(random_state, spawn_key=(1,))))
    for layer in layers:
        for v in _learned(graph, layer):
            old = numpy_helper.to_array(held[v.name])
            held[v.name].CopyFrom(numpy_helper.from_array(_drawn(old, init, rng, v.is_float), v.name))
        yield layer.name, proto


def _learned(graph: Graph, layer: Layer) -> list[Value]:
    """The constants that hold the layer's weight and bias; behind a DequantizeLinear its levels, not their scale."""
    direct = [v for n in layer.nodes for v in n.inputs if v is not None and v.is_const and v.is_float]
    behind = [_stored(graph, v) for v in (layer.w, layer.b) if v is not None and not v.is_const]
    found = list(dict.fromkeys(v for v in (*direct, *behind) if v is not None))
    if not any(_is_weight(v.shape or ()) for v in found):
        raise MethodError(f"layer {layer.name!r} keeps its weight in no constant, so it cannot be drawn anew")
    return found


def _stored(graph: Graph, value: Value) -> Value | None:
    """The constant that a value was made of, by nodes that change its type or form."""
    while not value.is_const:
        node = graph.producer(value)
        if node is None or node.inputs[0] is None:
            return None
        value = node.inputs[0]
    return value


def _is_weight(shape: Sequence[Any]) -> bool:
    """A bias has one axis that counts."""
    return len([d for d in shape if d != 1]) > 1


def _drawn(old: Array, init: str, rng: np.random.Generator, is_float: bool) -> Array:
    """A weight drawn anew, in whole levels where it is quantised; a bias is 0."""
    if not _is_weight(old.shape):
        return np.zeros_like(old)
    wide = np.asarray(old, np.float64)
    if not is_float:
        levels = np.clip(np.rint(rng.normal(wide.mean(), wide.std(), old.shape)), wide.min(), wide.max())
        return np.asarray(levels.astype(old.dtype))
    if init == "kaiming":
        bound = np.sqrt(6 / max(1, old[0].size))
        return np.asarray(rng.uniform(-bound, bound, old.shape), old.dtype)
    return np.asarray(rng.normal(0.0, wide.std(), old.shape), old.dtype)
