"""One explained file on paper: its arrays, its pictures or its page, and the report of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from .errors import WriteError
from .files import write_atomically
from .graph import Array
from .preprocess import InputItem, Preprocess
from .runtime import Attribution
from .sound import time_axis
from .texts import passages, role, tokens_of
from .vocabulary import Vocabulary

MOST_PICTURES = 8  # of one file with many samples
MOST_BARS = 64  # values of one sample: more are a signal, unless they have the names of columns


@dataclass(frozen=True)
class Sheet:
    """One explained file: what was read, what came out; its results are written under names that begin with `start`."""

    file: str
    start: Path
    item: InputItem
    feeds: Mapping[str, Array]
    a: Attribution
    manifest: Mapping[str, Any]
    pre: Preprocess
    names: Sequence[str]
    vocabulary: Vocabulary | None

    def report(self, top: int) -> dict[str, Any]:
        """Write the results and say what they are."""
        logits, target = self._logits(), self.a.target
        written, tokens = [self._save_arrays()], self._tokens()
        for score_name, scores in self.a.scores.items():
            for i in range(min(len(scores), MOST_PICTURES)):
                written += self._save_picture(score_name, i)
        if tokens:
            written.append(self._save_page(tokens))
        order = np.argsort(-logits[0], kind="stable")[:top]
        return {
            "input": self.file,
            "samples": len(logits),
            "target": None if target is None else target.tolist(),
            "top": [{"index": int(k), "label": _label(int(k), self.names), "score": float(logits[0, k])} for k in order],
            "delta": None if self.a.delta is None else self.a.delta.tolist(),
            "features": self._features(top),
            "tokens": tokens,
            "files": [str(f) for f in written],
        }

    def _logits(self) -> Array:
        logits = np.asarray(self.a.outputs[self.manifest["output"]])
        return logits.reshape(len(logits), -1) if logits.ndim > 1 else logits.reshape(-1, 1)

    def _caption(self, i: int) -> str:
        if self.a.target is None:
            return "seed given at run time"
        index, scores = int(self.a.target[i]), self._logits()[i]
        said = _label(index, self.names) or f"class {index}"
        return f"{said} · {scores[index]:.3f}" if index < scores.size else f"class {index}"

    def _split(self, score_name: str) -> tuple[str, str]:
        """(tensor, method) of a score; the method is '' when it is alone in the file. Names of tensors may hold slashes."""
        methods = str(self.manifest["method"]).split(",")
        method = next((m for m in methods if len(methods) > 1 and score_name.endswith(f"/{m}")), "")
        return score_name.removesuffix(f"/{method}") if method else score_name, method

    def _method(self, score_name: str) -> str:
        return self._split(score_name)[1] or str(self.manifest["method"])

    def _save_arrays(self) -> Path:
        """Every output of the explanation under its own name, in one .npz."""
        a = self.a
        arrays = {self.manifest["attributions"][name]: score for name, score in a.scores.items()}
        arrays.update({k: np.asarray(v) for k, v in a.outputs.items() if isinstance(v, np.ndarray) and v.dtype != object})
        arrays.update(a.extras)
        if a.target is not None:
            arrays["explained_index"] = a.target
        content = BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]
        return _write(self.start.with_name(f"{self.start.name}.npz"), content.getvalue())

    # -- tables -------------------------------------------------------------------------------------------------------
    def _features(self, top: int) -> list[dict[str, Any]]:
        """Of a table's first sample: the columns with the most relevance, by each method."""
        found = []
        for score_name in self.a.scores:
            columns = self._columns(score_name, 0)
            for k in sorted(range(len(columns)), key=lambda k: -abs(columns[k][2]))[:top]:
                name, value, score = columns[k]
                found.append({"name": name, "value": value, "relevance": score, "method": self._method(score_name)})
        return found

    def _columns(self, score_name: str, i: int) -> list[tuple[str, float, float]]:
        """(name, value, relevance) of each column of a table's row i; empty for anything else."""
        names, scores = self.item.columns, self.a.scores[score_name][i].ravel().tolist()
        values = self.feeds.get(self._split(score_name)[0])
        if values is None or not len(names) == len(scores) == values[i].size:
            return []
        return list(zip(names, map(float, values[i].ravel()), scores, strict=True))

    # -- pictures -----------------------------------------------------------------------------------------------------
    def _save_picture(self, score_name: str, i: int) -> list[Path]:
        tensor, method = self._split(score_name)
        made = None if tensor in self.manifest.get("tokens", {}) else self._picture(score_name, i)
        if made is None:
            return []
        several = len({self._split(name)[0] for name in self.a.scores}) > 1
        which = [str(i)] * (len(self.a.scores[score_name]) > 1) + [_in_a_path(tensor)] * several + [method] * bool(method)
        path = self.start.with_name(".".join([self.start.name, *which, "png"]))
        from .render import save_png

        save_png(made, path)
        return [path]

    def _picture(self, score_name: str, i: int) -> Any:
        """A panel for picture-like attributions, curves for signals, bars for a few values, None for others."""
        from .render import bars, curves, panel, reduction

        score, caption, method = self.a.scores[score_name][i], self._caption(i), self._method(score_name)
        photo, last = self.item.display, self.pre.layout == "NHWC"
        if score.ndim == 3 and (photo is not None or score.shape[0] in (1, 3, 4) or last):
            channels_first = np.moveaxis(score, -1, 0) if last and score.shape[0] > 1 else score  # maps are (1, H, W)
            return panel(photo if i == 0 else None, channels_first, caption, method, reduction(method))
        signal, columns = self._signal(score_name, i), self._columns(score_name, i)
        if signal is not None:
            start = i * signal[0].shape[1] if self.item.rate else 0
            return curves(*signal, caption, method, self.item.rate, start)
        if columns:
            names = [f"{name} = {value:.4g}".replace("= -", "= \N{MINUS SIGN}") for name, value, _ in columns]
            return bars(names, [score for _, _, score in columns], caption, method)
        return bars([f"x{k}" for k in range(score.size)], score, caption, method) if score.ndim == 1 else None

    def _signal(self, score_name: str, i: int) -> tuple[Array, Array] | None:
        """(signal, relevance), each (channels, T), where sample i of an input is a signal."""
        x, r = self.feeds.get(self._split(score_name)[0]), self.a.scores[score_name]
        if x is None or x.shape != r.shape or self._columns(score_name, i):
            return None
        if r.ndim == 2 and self.item.rate is None and r.shape[1] <= MOST_BARS:
            return None
        axis = time_axis(r.shape)
        if axis is None:
            return None
        return (x[i][None], r[i][None]) if r.ndim == 2 else (x[i], r[i]) if axis == 2 else (x[i].T, r[i].T)

    # -- texts --------------------------------------------------------------------------------------------------------
    def _tokens(self) -> list[dict[str, Any]]:
        """Words and relevance of every sample, for each input of words and each method."""
        rows: list[dict[str, Any]] = []
        held = list(self.manifest.get("tokens", {}))
        shown = [name for name in held if role(name) == "ids"] or held
        for score_name, scores in self.a.scores.items():
            tensor = self._split(score_name)[0]
            if tensor not in shown or scores.ndim != 2:
                continue
            for i, found in enumerate(tokens_of(self.feeds, tensor, self.item, self.vocabulary)):
                rows.append({
                    "sample": i, "input": tensor, "method": self._method(score_name), "caption": self._caption(i),
                    "words": [word for _, word in found], "scores": [float(scores[i, k]) for k, _ in found],
                })
        return rows

    def _save_page(self, tokens: Sequence[Mapping[str, Any]]) -> Path:
        from .render import page

        html = page(passages(tokens), Path(self.file).name, f"{self.manifest['method']} of the output {self.manifest['output']}")
        return _write(self.start.with_name(f"{self.start.name}.html"), html.encode())


def _in_a_path(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def _label(index: int, names: Sequence[str]) -> str:
    return names[index] if index < len(names) else ""


def _write(path: Path, content: bytes) -> Path:
    try:
        write_atomically(path, [content])
    except OSError as e:
        raise WriteError(f"cannot write {path}: {e.strerror or e}") from e
    return path
