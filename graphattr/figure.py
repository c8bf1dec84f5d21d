"""An attribution as a matplotlib figure: what `explain` writes to disk, for a notebook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import RunError, did_you_mean
from .graph import Array
from .preprocess import InputItem, denormalise, preprocess_for
from .runtime import Attribution
from .texts import passages
from .view import View
from .vocabulary import load_vocabulary

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot(
    attribution: Attribution,
    x: Any = None,
    sample: int = 0,
    *,
    tensor: str | None = None,
    labels: Sequence[str] = (),
    columns: Sequence[str] = (),
    words: Any = None,
    tokenizer: str | None = None,
    rate: float | None = None,
    preprocess: str | None = None,
) -> Figure:
    """One sample's attribution as a matplotlib Figure, and as a method `attribution.plot(x)`: heat maps beside the picture, bars
    of a table's columns, curves of a signal over their relevance, words on their colours; of several targets one below the other.

    x: what was explained, an array or arrays by name; without it, heat maps and bars stand alone. sample: which one of the batch.
    tensor: a key of `scores` (default: the first). labels: names of the classes. columns: names of a table's columns. words (one
    per id) or tokenizer (a tokenizer.json, vocab.json, vocab.txt): what ids stand for. rate: samples of a signal per second.
    preprocess: "imagenet", "tf", "lite" or a .toml, to show a picture in its own colours.

    pyplot is not touched: `figure.savefig("a.png")`, or a notebook's last line. Raises RunError where matplotlib is missing (the
    extra `images`), where x does not fit, and for shapes that have no picture.
    """
    name = _name(attribution, tensor)
    rows = len(attribution.scores[name]) if attribution.scores[name].ndim else 0
    if not -rows <= sample < rows:
        raise RunError(f"there is no sample {sample}: the attribution {name!r} has the shape {attribution.scores[name].shape}")
    at = slice(sample % rows, sample % rows + 1)
    a = _one(attribution, name, at)
    score = a.each()[0].scores[name]
    probe = View(InputItem(np.empty(0), None, ""), {}, a, preprocess_for(None, ()))
    feeds = {k: v[at] for k, v in _feeds(x, probe.tensor(name), rows).items()}
    held = feeds.get(probe.tensor(name))
    shape = (rows, *score.shape[1:])
    if held is not None and held.shape[1:] != shape[1:] and not held.ndim == len(shape) == 4:
        raise RunError(f"x has samples of shape {held.shape[1:]}, the attribution {name!r} {shape[1:]}")
    if len(columns) and (held is None or len(columns) != held[0].size):
        raise RunError(f"{len(columns)} columns are named, and x has "
                       f"{'none: give x' if held is None else f'{held[0].size} values per sample'}")
    pre = preprocess_for(preprocess, (score if held is None else held).shape)
    photo = None if held is None else denormalise(held, pre)
    named = {} if words is None else {"tokens": np.asarray(words)[at]}
    item = InputItem(np.empty(0), photo, "x", named, tuple(columns), rate)
    view = View(item, feeds, a, pre, labels, None if tokenizer is None else load_vocabulary(tokenizer))
    return _figure(view, name, shape)


def _figure(view: View, name: str, shape: Sequence[int]) -> Figure:
    from .render import figure, sentence, stacked

    if view.tensor(name) in view.manifest.get("tokens", {}):
        if view.tensor(name) not in view.feeds:
            raise RunError(f"the words of {name!r} are not known: give the ids, plot(x), or all inputs by name")
        found = [t for t in view.tokens() if t["input"] == view.tensor(name)]
        if found:
            return figure(stacked([sentence(passages([t])[0], t["caption"], t["method"]) for t in found]))
    made = view.picture(name, 0)
    if made is None:
        hint = "has no picture (pictures, tables, signals and tokens do)" if view.feeds else "needs what was explained: plot(x)"
        raise RunError(f"an attribution of shape {tuple(shape)} {hint}")
    return figure(made)


def _name(attribution: Attribution, tensor: str | None) -> str:
    name = tensor or next(iter(attribution.scores), "")
    if name not in attribution.scores:
        raise RunError(f"there is no attribution of {name!r}{did_you_mean(name, attribution.scores)} "
                       f"(there are {', '.join(attribution.scores) or 'none'})")
    return name


def _one(a: Attribution, name: str, at: slice) -> Attribution:
    """A sample of one attribution, as a batch."""
    output = str(a.manifest.get("output"))
    outputs = {output: np.asarray(a.outputs[output])[at]} if output in a.outputs else {}
    return replace(a, scores={name: a.scores[name][at]}, outputs=outputs, target=None if a.target is None else a.target[at])


def _feeds(x: Any, tensor: str, rows: int) -> dict[str, Array]:
    """Arrays by name; an array alone is that of the explained tensor."""
    given = x if isinstance(x, Mapping) else {} if x is None else {tensor: x}
    found = {str(k): np.asarray(v) for k, v in given.items()}
    wrong = next((k for k, v in found.items() if v.ndim and len(v) != rows), None)
    if wrong is not None:
        raise RunError(f"x has the shape {found[wrong].shape}, and {rows} samples were explained: give what was explained")
    return found
