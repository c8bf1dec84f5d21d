"""Samples for an audit: so many of the data, spread evenly over them, with the picture and the class of each where known."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..canonical import Canonical
from ..errors import RunError
from ..fit.data import Batch, Data, Types, has_pictures, open_data, paths_of
from ..fit.files import PICTURES, files_in
from ..fit.labels import known, read_labels, with_classes
from ..graph import Array
from ..preprocess import Preprocess, Say, guess_layout, load_preprocess, preprocess_for, print_nothing
from ..targets import wanted
from .boxes import Boxes, place_boxes


@dataclass(frozen=True)
class Samples:
    """`feeds`: arrays by input name. `names`: the inputs that are explained. `layout`: NCHW or NHWC of pictures in the first, or
    ''."""

    feeds: Mapping[str, Array]
    names: Sequence[str]
    labels: Array | None
    layout: str
    pre: Preprocess
    titles: Sequence[str]
    boxes: Boxes | None = None

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def x(self) -> Array:
        return self.feeds[self.name]

    def of(self, name: str) -> Samples:
        """The same samples, of which one input is explained."""
        return self if name == self.name else replace(self, names=[name], layout=_layout(self.feeds[name].shape))

    @property
    def sha256(self) -> str:
        digest = hashlib.sha256()
        for name, array in sorted(self.feeds.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def load_samples(
    canonical: Canonical, data: Any, labels: Any, at_most: int, preprocess: str | None = None, say: Say = print_nothing,
    wrt: str | Sequence[str] | None = None, boxes: Any = None, class_names: Sequence[str] = (),
) -> Samples:
    """Samples for the model's inputs; RunError where the data or the boxes do not fit, or `wrt` names what is no input."""
    inputs = canonical.graph.inputs
    names = [one.x.name for one in wanted(canonical, wrt)]
    inside = [n for n in names if n not in [v.name for v in inputs]]
    if inside:
        raise RunError(f"what is measured varies inputs of the model, and {inside[0]!r} is none: wrt takes "
                       f"{', '.join(v.name for v in inputs)}")
    types: Types = {v.name: (v.dtype, v.shape) for v in inputs}
    shape = types[names[0]][1] or ()
    fixed = next((s[0] for _, s in types.values() if s and isinstance(s[0], int)), 1)
    pre = preprocess_for(preprocess, shape, say) if has_pictures(data) else load_preprocess(preprocess or "none")
    titles: Sequence[str] = ()
    placed: Boxes | None = None
    roots = paths_of(data)
    files = [pair for root in roots for pair in files_in(root)]
    if files and all(f.suffix.lower() in PICTURES for f, _ in files):
        files, labels = with_classes(files, labels, roots)
        chosen = _spread(len(files), at_most, fixed)
        classes = known(files) if labels is None else read_labels(labels)
        labels = None if classes is None else _picked(classes, chosen, len(files))
        data = [files[i][0] for i in chosen]
        titles = [f.name for f in data]
        placed = None if boxes is None else place_boxes(Path(boxes), data, roots, pre, shape, class_names, say)
    elif boxes is not None:
        raise RunError("boxes belong to pictures by the names of their files, and the data are other than pictures")
    feeds, found = _rows(open_data(data, labels, types, 64, pre), at_most, fixed)
    titles = titles or [f"sample {i}" for i in range(len(feeds[names[0]]))]
    return Samples(feeds, names, found, _layout(shape), pre, titles, placed)


def _layout(shape: Sequence[Any]) -> str:
    return guess_layout(shape)[0] if len(shape) == 4 else ""


def _rows(data: Data, at_most: int, fixed: int) -> tuple[dict[str, Array], Array | None]:
    """The chosen rows: spread over all where their number is known, else the first. Nothing else is held."""
    wanted = None if data.total is None else _spread(data.total, at_most, fixed)
    batches, at = [], 0
    for batch in data:
        rows = slice(None) if wanted is None else wanted[(wanted >= at) & (wanted < at + batch.rows)] - at
        batches.append(Batch({k: v[rows] for k, v in batch.feeds.items()}, None if batch.labels is None else batch.labels[rows]))
        at += batch.rows
        if wanted is None and at >= max(at_most, fixed):
            break
    if not batches:
        raise RunError("the data hold no samples")
    shapes = {tuple((k, v.shape[1:]) for k, v in b.feeds.items()) for b in batches}
    if len(shapes) > 1:
        raise RunError(f"samples must have one shape to be compared, the data have {len(shapes)}")
    feeds = {k: np.concatenate([b.feeds[k] for b in batches]) for k in batches[0].feeds}
    known = [b.labels for b in batches if b.labels is not None]
    labels = np.concatenate(known) if len(known) == len(batches) else None
    first = slice(0, len(_spread(len(next(iter(feeds.values()))), at_most, fixed)))
    return {k: v[first] for k, v in feeds.items()}, None if labels is None else labels[first]


def _spread(total: int, at_most: int, fixed: int) -> Array:
    """Indices of at most so many samples from first to last; a multiple of the model's batch where that is fixed."""
    n = min(total, max(at_most, fixed)) // fixed * fixed
    if not n:
        raise RunError(f"the data hold {total} samples, the model takes {fixed} at once: give more, or export it with an open "
                       "batch" if total else "the data hold no samples")
    return np.floor(np.arange(n) * total / n).astype(np.int64)


def _picked(labels: Array, chosen: Array, total: int) -> Array:
    if len(labels) != total:
        raise RunError(f"there are {len(labels)} labels for {total} pictures")
    return np.asarray(labels[chosen])
