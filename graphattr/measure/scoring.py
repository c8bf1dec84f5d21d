"""The explained score of a model at many inputs: the tensor that is explained, not what a terminal Softmax makes of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx.external_data_helper import load_external_data_for_model

from ..canonical import Canonical, canonicalise
from ..errors import RunError
from ..graph import Array, Graph
from ..onnxio import write_model
from ..runtime import Attribution, Explainer
from ..session import open_session
from ..simplify import prune, with_nodes
from ..source import Source, read
from ..targets import entries, explained_output

Feeds: TypeAlias = "Mapping[str, Array] | Array"


def bare_model(canonical: Canonical, graph: Graph) -> onnx.ModelProto:
    """The graph with the source's imports of foreign operators (trees, contrib)."""
    proto = write_model(graph)
    proto.opset_import.extend(o for o in canonical.model.opset_import if o.domain not in ("", "ai.onnx"))
    return proto


def embed(proto: onnx.ModelProto, source: Source) -> None:
    """External data into the model, which then needs no folder."""
    if source.folder is not None:
        load_external_data_for_model(proto, str(source.folder))


def joined(arrays: Sequence[Array]) -> Array:
    """Arrays of the same samples as one: a single one as it is, several as (N, all their entries)."""
    return arrays[0] if len(arrays) == 1 else np.concatenate([a.reshape(len(a), -1) for a in arrays], 1)


@dataclass(frozen=True)
class Joint:
    """The inputs that are varied, as one array: `names`, and the shape of a sample and the dtype of each."""

    names: Sequence[str]
    shapes: Sequence[tuple[int, ...]]
    dtypes: Sequence[np.dtype[Any]]

    @classmethod
    def of(cls, feeds: Mapping[str, Array], names: Sequence[str]) -> Joint:
        return cls(names, [feeds[n].shape[1:] for n in names], [feeds[n].dtype for n in names])

    @property
    def name(self) -> str:
        return "+".join(self.names)

    def join(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """The feeds with these inputs as one."""
        rest = {k: v for k, v in feeds.items() if k not in self.names}
        return {self.name: joined([feeds[n] for n in self.names]), **rest}

    def split(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """What `join` was made of."""
        found, x = {k: v for k, v in feeds.items() if k != self.name}, feeds[self.name]
        if len(self.names) == 1:
            return {**found, self.name: x}
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes])
        for name, part, shape, dtype in zip(self.names, np.split(x, ends[:-1], 1), self.shapes, self.dtypes, strict=True):
            found[name] = part.reshape(-1, *shape).astype(dtype)
        return found


class Scorer:
    """y of a model as (N, entries), run in batches of `batch_size`, or of the file's own size where that is fixed. Only one input
    is varied: the one of `name`."""

    def __init__(self, model: Any, output: str | None = None, providers: Any = None, batch_size: int = 64) -> None:
        canonical = canonicalise(read(model))
        y = explained_output(canonical, output, True).y
        graph = canonical.graph
        proto = bare_model(canonical, prune(with_nodes(graph, graph.nodes, [("graphattr_scores", y)])))
        self.session = open_session(proto, canonical.source.folder, providers)
        self.inputs = [v.name for v in graph.inputs]
        fixed = [v.shape[0] for v in graph.inputs if v.shape and isinstance(v.shape[0], int)]
        self.fixed = int(fixed[0]) if fixed else None
        self.batch_size = self.fixed or batch_size
        self._entries = entries(y)

    def rows(self, batch_size: int) -> int:
        """How many samples may run at once where `batch_size` are asked for."""
        return self.fixed or batch_size

    def entries(self, feeds: Feeds) -> int:
        """How many scores a sample has; a batch is run where the file does not say it."""
        if self._entries is None:
            self._entries = int(self({k: v[: self.batch_size] for k, v in self.named(feeds).items()}).shape[1])
        return self._entries

    def __call__(self, feeds: Feeds) -> Array:
        """(N, entries) in float64."""
        given = self.named(feeds)
        rows = len(next(iter(given.values())))
        found = []
        for start in range(0, rows, self.batch_size):
            part = {k: np.asarray(v[start : start + self.batch_size]) for k, v in given.items()}
            try:
                found.append(self.session.run(None, part)[0].reshape(len(next(iter(part.values()))), -1))
            except Exception as e:
                raise RunError(f"ONNX Runtime refused a batch: {str(e).splitlines()[0]}") from e
        return np.concatenate(found).astype(np.float64)

    def of_joint(self, joint: Joint) -> Scorer:
        """The same scores of feeds in which several inputs are one array."""
        return _JointScorer(self, joint)

    def named(self, feeds: Feeds) -> dict[str, Array]:
        """Arrays by input name."""
        if isinstance(feeds, Mapping):
            missing = [name for name in self.inputs if name not in feeds]
            if missing:
                raise RunError(f"no value for input {', '.join(map(repr, missing))} (given: {', '.join(feeds) or 'nothing'})")
            return {name: np.asarray(feeds[name]) for name in self.inputs}
        if len(self.inputs) != 1:
            raise RunError(f"the model has {len(self.inputs)} inputs ({', '.join(self.inputs)}); give arrays by name")
        return {self.inputs[0]: np.asarray(feeds)}

    def target(self, feeds: Feeds, target: Any = None) -> Array:
        """One index per sample: as given, else where y is largest."""
        rows = len(next(iter(self.named(feeds).values())))
        if target is None:
            return np.asarray(self(feeds).argmax(1))
        return np.broadcast_to(np.asarray(target, np.int64).reshape(-1), (rows,))

    def of_variants(self, feeds: Feeds, name: str, variants: Iterable[Array], target: Array) -> Array:
        """y_c for several variants of one input, (variants, N); the model runs at full batches across them."""
        return np.stack([y[np.arange(len(y)), target] for y in self.all_of_variants(feeds, name, variants)])

    def all_of_variants(self, feeds: Feeds, name: str, variants: Iterable[Array]) -> Iterable[Array]:
        """y for each variant, (N, entries); as many variants share a batch as fit."""
        given = self.named(feeds)
        rows, dtype = len(given[name]), given[name].dtype
        together = max(1, self.batch_size // max(rows, 1))
        held: list[Array] = []

        def run() -> list[Array]:
            batch = {k: np.concatenate([v] * len(held)) for k, v in given.items()}
            batch[name] = np.concatenate(held).astype(dtype)
            found = self(batch).reshape(len(held), rows, -1)
            held.clear()
            return list(found)

        for variant in variants:
            held.append(np.asarray(variant))
            if len(held) == together:
                yield from run()
        if held:
            yield from run()


class _JointScorer(Scorer):
    def __init__(self, scorer: Scorer, joint: Joint) -> None:
        self.scorer, self.joint = scorer, joint
        self.fixed, self.batch_size, self._entries = scorer.fixed, scorer.batch_size, scorer._entries
        self.inputs = [joint.name, *(n for n in scorer.inputs if n not in joint.names)]

    def __call__(self, feeds: Feeds) -> Array:
        return self.scorer(self.joint.split(self.named(feeds)))


def explained(explainer: Explainer, feeds: Mapping[str, Array], target: Any = None, batch_size: int = 16) -> Attribution:
    """The explainer's answer for all samples, run in batches of `batch_size`: scores, target and delta."""
    rows = len(next(iter(feeds.values())))
    parts = []
    for start in range(0, rows, batch_size):
        part = slice(start, start + batch_size)
        aim = None if target is None else np.asarray(target)[part]
        parts.append(explainer({k: v[part] for k, v in feeds.items()}, aim))
    scores = {k: np.concatenate([p.scores[k] for p in parts]) for k in parts[0].scores}
    targets, deltas = [p.target for p in parts if p.target is not None], [p.delta for p in parts if p.delta is not None]
    return Attribution(scores, {}, np.concatenate(targets) if targets else None, np.concatenate(deltas) if deltas else None)


def softmax(y: Array) -> Array:
    e = np.exp(y - y.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))
