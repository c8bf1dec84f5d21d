"""Do explanations forget what the upper layers say? Cosine similarity convergence and rank-1 matrix chains. Sixt et al. 2020."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from math import gcd
from typing import Any

import numpy as np
import onnx

from ..errors import RunError
from ..fitted import Fitted, fingerprint, opened
from ..graph import Array
from ..method import load_method
from ..runtime import Explainer
from ..source import read
from ..street import MethodLike, Order, explanation_of
from .result import Measure
from .scoring import embed, explained

PERCENTILES = (0, 1, 5, 10, 20, 50, 80, 95, 99, 100)
EDGES = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.99, 0.999, 0.9999, 1.0)


def cosine_convergence(
    model: Any,
    feeds: Mapping[str, Array] | Array,
    method: MethodLike = "lrp.zplus",
    *,
    tensors: Sequence[str],
    output: str | None = None,
    vectors: Array | None = None,
    pairs_of: int = 5,
    random_state: int = 0,
    absolute: bool = True,
    channels: int | Mapping[str, int] = 1,
    locations: int | None = None,
    fitted: Any = None,
    providers: Any = None,
    batch_size: int = 16,
    **params: Any,
) -> dict[str, Measure]:
    """|cos| between what different relevances at `output` become at each of `tensors`: per tensor the values of all pairs,
    samples and locations (over channels where a tensor has other axes). Near 1: the map no longer depends on the layers above.

    `output`: the tensor where relevance starts, any tensor of the model (default: what is explained). `vectors`: (N, m, *its
    shape); drawn from N(0, 1) where not given. A pair with a zero vector is left out. `channels`: their
    axis, for all or by tensor (-1 where tokens are vectors). `locations`: of a tensor at most so many, drawn once for all
    samples. `fitted`: as for `convert`.
    """
    learned: Sequence[Fitted] = opened(fitted)
    if output is not None:
        model, learned = _showing(model, output, learned)
    order = Order(method=method, target="seed", output=output, wrt=list(tensors), params=params, fitted=learned)
    explainer = Explainer(explanation_of(model, order), providers)
    given = dict(feeds) if isinstance(feeds, Mapping) else {explainer.own[0]: np.asarray(feeds)}
    rows = len(next(iter(given.values())))
    shape = _seed_shape(explainer, given) if vectors is None else (rows, *np.shape(vectors)[2:])
    if vectors is None:
        rng = np.random.Generator(np.random.PCG64(random_state))
        vectors = rng.standard_normal((rows, pairs_of, *shape[1:])).astype(np.float32)
    m = vectors.shape[1]
    found: dict[str, list[Array]] = {t: [] for t in tensors}
    chosen: dict[str, Any] = {}
    step = _samples_at_once(explainer, batch_size, m)
    for start in range(0, rows, step):
        part = {k: np.repeat(v[start : start + step], m, 0) for k, v in given.items()}
        seed = vectors[start : start + step].reshape(-1, *shape[1:]).astype(np.float32)
        scores = explained(explainer, {**part, "seed": seed}, batch_size=batch_size).scores
        for t in tensors:
            r = np.moveaxis(scores[t], channels if isinstance(channels, int) else channels.get(t, 1), 1)
            r = r.reshape(len(r) // m, m, r.shape[1], -1)
            found[t].append(_cosines(r[..., chosen.setdefault(t, _chosen(r.shape[-1], locations, random_state))]))
    settings = {"method": load_method(method).name, "vectors": m, "absolute": absolute}
    return {t: _similarity(t, np.concatenate(held), absolute, settings) for t, held in found.items()}


def _samples_at_once(explainer: Explainer, batch_size: int, m: int) -> int:
    """So many samples, each with its m relevances, that they fill a batch, or whole batches where the file fixes their size."""
    fixed = explainer.session.get_inputs()[0].shape[0]
    return batch_size // gcd(batch_size, m) if isinstance(fixed, int) else max(1, batch_size // m)


def _showing(model: Any, tensor: str, learned: Sequence[Fitted]) -> tuple[Any, Sequence[Fitted]]:
    """The model with one of its tensors as an output, so that relevance can start there; what was learned for the model counts
    for this one, whose layers are the same."""
    source, proto = read(model), onnx.ModelProto()
    if tensor in [o.name for o in source.model.graph.output]:
        return model, learned
    proto.CopyFrom(source.model)
    embed(proto, source)
    proto.graph.output.append(onnx.ValueInfoProto(name=tensor))
    if not learned:
        return proto, learned
    names = [fingerprint(source), fingerprint(replace(source, model=proto))]
    of_this = [one.manifest["fingerprint"] == names[0] for one in learned]
    return proto, [replace(one, manifest={**one.manifest, "fingerprint": names[1]}) if same else one
                   for one, same in zip(learned, of_this)]


def _seed_shape(explainer: Explainer, given: Mapping[str, Array]) -> tuple[int, ...]:
    """The shape of the explained tensor for these inputs."""
    rows = len(next(iter(given.values())))
    declared = explainer.session.get_inputs()[[i.name for i in explainer.session.get_inputs()].index("seed")].shape
    if not all(isinstance(d, int) for d in declared[1:]):
        raise RunError(f"the explained output has the shape {tuple(declared)}, which the file leaves open; pass vectors=")
    return (rows, *declared[1:])


def _chosen(size: int, locations: int | None, random_state: int) -> Any:
    if not locations or size <= locations:
        return slice(None)
    return np.sort(np.random.Generator(np.random.PCG64(random_state)).choice(size, locations, replace=False))


def _cosines(r: Array) -> Array:
    """(N, pairs, locations) of relevances (N, m, C, locations) of m vectors; NaN where one of a pair is zero."""

    def product(i: int, j: int) -> Array:
        return np.asarray(np.einsum("ncl,ncl->nl", r[:, i], r[:, j], dtype=np.float64))

    sizes = [np.sqrt(product(i, i)) for i in range(r.shape[1])]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.stack([product(i, j) / (sizes[i] * sizes[j]) for i, j in combinations(range(r.shape[1]), 2)], 1)


def _similarity(name: str, cosines: Array, absolute: bool, settings: Mapping[str, Any]) -> Measure:
    values = (np.abs(cosines) if absolute else cosines).reshape(-1)
    kept = np.clip(values[np.isfinite(values)], -1, 1)
    details = {"percentiles": np.percentile(kept, PERCENTILES) if kept.size else np.full(len(PERCENTILES), np.nan),
               "histogram": np.histogram(np.abs(kept), EDGES)[0]}
    return Measure(f"csc {name}", values, "median", details, settings)


def random_baseline(channels: int, n: int = 10_000, random_state: int = 0) -> float:
    """The median |cos| of independent Gaussian vectors of that many channels."""
    rng = np.random.Generator(np.random.PCG64(random_state))
    a, b = rng.standard_normal((2, n, channels))
    return float(np.median(np.abs((a * b).sum(1)) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)))


def singular_ratio(matrix: Array) -> float:
    """sigma_1 / sigma_2 of a weight or pattern matrix (a convolution's as out x rest): large where it is close to rank 1."""
    s = np.linalg.svd(np.asarray(matrix, np.float64).reshape(len(matrix), -1), compute_uv=False)
    return float(s[0] / s[1]) if len(s) > 1 and s[1] > 0 else float("inf")


def chain_convergence(matrices: Sequence[Array]) -> Array:
    """sigma_1 / sigma_2 of the products M_1, M_1 M_2, ..., scaled after each step: how fast a chain tends to rank 1."""
    product, found = None, []
    for m in matrices:
        product = np.asarray(m, np.float64) if product is None else product @ m
        product = product / np.linalg.norm(product)
        found.append(singular_ratio(product))
    return np.array(found)
