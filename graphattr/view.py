"""What an attribution looks like: a picture, curves, bars or words of each sample, and what is said beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .graph import Array
from .preprocess import InputItem, Preprocess
from .runtime import Attribution, tensor_and_method
from .sound import time_axis
from .texts import role, tokens_of
from .vocabulary import Vocabulary

MOST_BARS = 64  # values of one sample: more are a signal, unless they have the names of columns


@dataclass(frozen=True)
class View:
    """`item`: what was read, of which `feeds` were explained. `names`: of the classes."""

    item: InputItem
    feeds: Mapping[str, Array]
    a: Attribution
    pre: Preprocess
    names: Sequence[str] = ()
    vocabulary: Vocabulary | None = None

    @property
    def manifest(self) -> Mapping[str, Any]:
        """What the explanation says of itself."""
        return self.a.manifest

    def each(self) -> list[View]:
        """One for each target."""
        return [replace(self, a=a) for a in self.a.each()]

    def logits(self) -> Array:
        """(N, entries) of the explained output."""
        logits = np.asarray(self.a.outputs[self.manifest["output"]])
        return logits.reshape(len(logits), -1) if logits.ndim > 1 else logits.reshape(-1, 1)

    def caption(self, i: int) -> str:
        """The class that was explained and its score, where they are known."""
        if self.a.target is None:
            return "seed given at run time"
        index = int(self.a.target[i])
        said = label(index, self.names) or f"class {index}"
        scores = self.logits()[i] if self.a.outputs else np.empty(0)
        return f"{said} · {scores[index]:.3f}" if index < scores.size else said

    def tensor(self, score_name: str) -> str:
        """The explained tensor of a score."""
        return tensor_and_method(score_name, self.manifest)[0]

    def method(self, score_name: str) -> str:
        """The method of a score."""
        return tensor_and_method(score_name, self.manifest)[1] or str(self.manifest.get("method", ""))

    def features(self, top: int) -> list[dict[str, Any]]:
        """Of a table's first sample: the columns with the most relevance, by each method and for each target."""
        if self.manifest.get("targets") is not None:
            return [{**row, "caption": one.caption(0)} for one in self.each() for row in one.features(top)]
        found = []
        for score_name in self.a.scores:
            columns = self.columns(score_name, 0)
            for k in sorted(range(len(columns)), key=lambda k: -abs(columns[k][2]))[:top]:
                name, value, score = columns[k]
                found.append({"name": name, "value": value, "relevance": score, "method": self.method(score_name)})
        return found

    def columns(self, score_name: str, i: int) -> list[tuple[str, float, float]]:
        """(name, value, relevance) of each column of a table's row i; empty for anything else."""
        names, scores = self.item.columns, self.a.scores[score_name][i].ravel().tolist()
        values = self.feeds.get(self.tensor(score_name))
        if values is None or not len(names) == len(scores) == values[i].size:
            return []
        return list(zip(names, map(float, values[i].ravel()), scores, strict=True))

    def picture(self, score_name: str, i: int) -> Any:
        """A panel for picture-like attributions, curves for signals, bars for a few values, None for others; of several targets
        one below the other."""
        from .render import bars, curves, panel, reduction, stacked

        if self.manifest.get("targets") is not None:
            made = [one.picture(score_name, i) for one in self.each()]
            return None if None in made else stacked(made)
        score, caption, method = self.a.scores[score_name][i], self.caption(i), self.method(score_name)
        photo, last = self.item.display, self.pre.layout == "NHWC"
        if score.ndim == 3 and (photo is not None or score.shape[0] in (1, 3, 4) or last):
            channels_first = np.moveaxis(score, -1, 0) if last and score.shape[0] > 1 else score  # maps are (1, H, W)
            return panel(photo if i == 0 else None, channels_first, caption, method, reduction(method))
        signal, columns = self._signal(score_name, i), self.columns(score_name, i)
        if signal is not None:
            start = i * signal[0].shape[1] if self.item.rate else 0
            return curves(*signal, caption, method, self.item.rate, start)
        if columns:
            names = [f"{name} = {value:.4g}".replace("= -", "= \N{MINUS SIGN}") for name, value, _ in columns]
            return bars(names, [score for _, _, score in columns], caption, method)
        return bars([f"x{k}" for k in range(score.size)], score, caption, method) if score.ndim == 1 else None

    def _signal(self, score_name: str, i: int) -> tuple[Array, Array] | None:
        """(signal, relevance), each (channels, T), where sample i of an input is a signal."""
        x, r = self.feeds.get(self.tensor(score_name)), self.a.scores[score_name]
        if x is None or x.shape != r.shape or self.columns(score_name, i):
            return None
        if r.ndim == 2 and self.item.rate is None and r.shape[1] <= MOST_BARS:
            return None
        axis = time_axis(r.shape)
        if axis is None:
            return None
        return (x[i][None], r[i][None]) if r.ndim == 2 else (x[i], r[i]) if axis == 2 else (x[i].T, r[i].T)

    def tokens(self) -> list[dict[str, Any]]:
        """Words and relevance of every sample, for each input of words, each method and each target."""
        if self.manifest.get("targets") is not None:
            return [row for one in self.each() for row in one.tokens()]
        rows: list[dict[str, Any]] = []
        held = list(self.manifest.get("tokens", {}))
        shown = [name for name in held if role(name) == "ids"] or held
        for score_name, scores in self.a.scores.items():
            tensor = self.tensor(score_name)
            if tensor not in shown or scores.ndim != 2:
                continue
            for i, found in enumerate(tokens_of(self.feeds, tensor, self.item, self.vocabulary)):
                rows.append({
                    "sample": i, "input": tensor, "method": self.method(score_name), "caption": self.caption(i),
                    "words": [word for _, word in found], "scores": [float(scores[i, k]) for k, _ in found],
                })
        return rows


def label(index: int, names: Sequence[str]) -> str:
    """The name of a class, '' where none is known."""
    return names[index] if index < len(names) else ""
