"""One explained file on paper: its arrays, its pictures or its page, and the report of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from .errors import WriteError
from .files import csv_text, write_atomically
from .runtime import tensor_and_method
from .texts import passages
from .view import View, label

MOST_PICTURES = 8  # of one file with many samples


@dataclass(frozen=True)
class Sheet:
    """One explained file; its results are written under names that begin with `start`."""

    file: str
    start: Path
    view: View

    def report(self, top: int, write: Sequence[str] = ("npz", "png")) -> dict[str, Any]:
        """Write the results and say what they are: of "npz" the arrays and the table, of "png" the pictures and the page."""
        view, a = self.view, self.view.a
        logits, target, tokens = view.logits(), a.target, view.tokens()
        written = [self._save_arrays(), *self._save_table()] if "npz" in write else []
        if "png" in write:
            for score_name, scores in a.scores.items():
                for i in range(min(len(scores), MOST_PICTURES)):
                    written += self._save_picture(score_name, i)
            if tokens:
                written.append(self._save_page(tokens))
        order = np.argsort(-logits[0], kind="stable")[:top]
        return {
            "input": self.file,
            "samples": len(logits),
            "target": None if target is None else target.tolist(),
            "top": [{"index": int(k), "label": label(int(k), view.names), "score": float(logits[0, k])} for k in order],
            "delta": None if a.delta is None else a.delta.tolist(),
            "features": view.features(top),
            "tokens": tokens,
            "files": [str(f) for f in written],
        }

    def _save_arrays(self) -> Path:
        """Every output of the explanation under its own name, in one .npz."""
        a = self.view.a
        arrays = {a.manifest["attributions"][name]: score for name, score in a.scores.items()}
        arrays.update({k: np.asarray(v) for k, v in a.outputs.items() if isinstance(v, np.ndarray) and v.dtype != object})
        arrays.update(a.extras)
        if a.target is not None:
            arrays["explained_index"] = a.target
        content = BytesIO()
        np.savez(content, **arrays)  # type: ignore[arg-type]
        return _write(self.start.with_name(f"{self.start.name}.npz"), content.getvalue())

    def _save_table(self) -> list[Path]:
        """Of a table whose columns have names: a row per sample and column."""
        view = self.view
        first = view.each()[0]
        scores = {name: view.a.scores[name] for name, one in first.a.scores.items() if one.ndim == 2 and first.columns(name, 0)}
        if not scores:
            return []
        rows = replace(view.a, scores=scores).records(view.feeds, view.item.columns)
        return [_write(self.start.with_name(f"{self.start.name}.attribution.csv"), csv_text(rows, list(rows[0])).encode())]

    def _save_picture(self, score_name: str, i: int) -> list[Path]:
        view, scores = self.view, self.view.a.scores
        tensor, method = tensor_and_method(score_name, view.manifest)
        made = None if tensor in view.manifest.get("tokens", {}) else view.picture(score_name, i)
        if made is None:
            return []
        several = len({view.tensor(name) for name in scores}) > 1
        which = [str(i)] * (len(scores[score_name]) > 1) + [in_a_path(tensor)] * several + [method] * bool(method)
        path = self.start.with_name(".".join([self.start.name, *which, "png"]))
        from .render import save_png

        save_png(made, path)
        return [path]

    def _save_page(self, tokens: Sequence[Mapping[str, Any]]) -> Path:
        from .render import page

        made = self.view.manifest
        html = page(passages(tokens), Path(self.file).name, f"{made['method']} of the output {made['output']}")
        return _write(self.start.with_name(f"{self.start.name}.html"), html.encode())


def in_a_path(name: str) -> str:
    """The name without what a file's name may not hold."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def _write(path: Path, content: bytes) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, [content])
    except OSError as e:
        raise WriteError(f"cannot write {path}: {e.strerror or e}") from e
    return path
