"""From input files to result files: arrays (.npz) and pictures (.png) per input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from .errors import RunError, WriteError
from .export import Explanation, write_atomically
from .graph import Array
from .infer import read_type
from .preprocess import InputItem, Preprocess, guess_layout, load_preprocess, read_input
from .runtime import Attribution, Explainer

MOST_PICTURES = 8  # of one file with many samples
ARRAYS = (".npy", ".npz", ".csv")
Say = Callable[[str], None]


def explain_files(
    explanation: Explanation,
    files: Sequence[str],
    out: Path,
    preprocess: str | None = None,
    provider: str = "cpu",
    top: int = 5,
    labels: str | None = None,
    target: str = "argmax",
    say: Say = lambda _: None,
) -> Iterator[dict[str, Any]]:
    """Explain each file; yields one report (input, target, top classes, written files) after the other."""
    explainer = Explainer(explanation, provider)
    names = _labels(labels)
    own = explainer.own
    info = next((i for i in explanation.model.graph.input if i.name in own), None)
    if info is None:
        raise RunError("the model has no input of its own")
    dtype, shape = read_type(info.type)
    pictures = any(Path(f).suffix.lower() not in ARRAYS for f in files)
    pre = _preprocess(preprocess, shape or (), say if pictures else lambda _: None)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise WriteError(f"cannot make the folder {out}: {e.strerror}") from e
    for file, label in zip(_progress(files), _result_names(files), strict=True):
        item = read_input(file, pre, shape or (), dtype or np.float32)
        a = explainer(item.feeds(own), _runtime_target(explainer, target))
        yield _report(file, out / label, item, a, explainer, pre, top, names)


def _result_names(files: Sequence[str]) -> list[str]:
    """A name for the results of each file: its stem, its name where stems agree, numbered where names do: none is shared."""
    stems = [Path(f).stem for f in files]
    names: list[str] = []
    for file in map(Path, files):
        base = file.stem if stems.count(file.stem) == 1 else file.name
        names.append(next(n for n in (base, *(f"{base}_{i}" for i in range(2, len(files) + 2))) if n not in names))
    return names


def _preprocess(name: str | None, shape: Sequence[Any], say: Say) -> Preprocess:
    """The preprocessing asked for, in the layout that the model's input has; a guess is said aloud."""
    pre = load_preprocess(name or "none")
    if len(shape) != 4:
        return pre
    layout, reason = guess_layout(shape)
    if name is None:
        say("no --preprocess given: pictures are scaled to 0..1 and not normalised")
    if name is None or not str(name).endswith(".toml"):
        say(f"layout {layout} (guessed: {reason})")
        return dataclasses.replace(pre, layout=layout)
    return pre


def _runtime_target(explainer: Explainer, target: str) -> Any:
    if explainer.manifest["target"] != "input":
        return None
    try:
        return int(target)
    except ValueError as e:
        raise RunError("this explanation takes its target at run time; give --target with a class index") from e


def _labels(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise RunError(f"cannot read the class names in {path}: {e}") from e


def _progress(files: Sequence[str]) -> Iterator[str]:
    """A progress bar on stderr when it is a terminal and there is something to wait for."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(files, "explaining", console=console, disable=len(files) < 2 or not console.is_terminal)


# -- one file -----------------------------------------------------------------------------------------------------
def _report(
    file: str,
    start: Path,
    item: InputItem,
    a: Attribution,
    explainer: Explainer,
    pre: Preprocess,
    top: int,
    names: Sequence[str],
) -> dict[str, Any]:
    """Write the results of one file under names that begin with `start`, and say what it is."""
    logits = np.asarray(a.outputs[explainer.manifest["output"]])
    flat = logits.reshape(len(logits), -1) if logits.ndim > 1 else logits.reshape(-1, 1)
    written = [_save_arrays(start.with_name(f"{start.name}.npz"), a, explainer.manifest)]
    for score_name, scores in a.scores.items():
        tensor, _, method = score_name.partition("/")
        shown = [tensor] * (len({n.partition("/")[0] for n in a.scores}) > 1) + [method] * bool(method)
        for i in range(min(len(scores), MOST_PICTURES)):
            index = None if a.target is None else int(a.target[i])
            name = ".".join([start.name, *([str(i)] if len(scores) > 1 else []), *shown, "png"])
            caption = _caption(flat[i], index, names)
            legend = method or str(explainer.manifest["method"])
            written += _save_picture(start.with_name(name), item, i, scores[i], pre, caption, legend)
    order = np.argsort(-flat[0], kind="stable")[:top]
    return {
        "input": file,
        "samples": len(flat),
        "target": None if a.target is None else a.target.tolist(),
        "top": [{"index": int(k), "label": _label(int(k), names), "score": float(flat[0, k])} for k in order],
        "delta": None if a.delta is None else a.delta.tolist(),
        "files": [str(f) for f in written],
    }


def _caption(scores: Array, index: int | None, names: Sequence[str]) -> str:
    if index is None:
        return "seed given at run time"
    return f"{_label(index, names) or f'class {index}'} · {scores[index]:.3f}" if index < scores.size else f"class {index}"


def _label(index: int, names: Sequence[str]) -> str:
    return names[index] if index < len(names) else ""


def _save_arrays(path: Path, a: Attribution, manifest: Mapping[str, Any]) -> Path:
    """Every output of the explanation under its own name, in one .npz."""
    arrays = {manifest["attributions"][name]: score for name, score in a.scores.items()}
    arrays.update({name: np.asarray(v) for name, v in a.outputs.items() if isinstance(v, np.ndarray) and v.dtype != object})
    arrays.update(a.extras)
    if a.target is not None:
        arrays["explained_index"] = a.target
    content = BytesIO()
    np.savez(content, **arrays)  # type: ignore[arg-type]
    try:
        write_atomically(path, [content.getvalue()])
    except OSError as e:
        raise WriteError(f"cannot write {path}: {e.strerror or e}") from e
    return path


def _save_picture(path: Path, item: InputItem, i: int, score: Array, pre: Preprocess, caption: str, method: str) -> list[Path]:
    """A panel for picture-like attributions, bars for one-dimensional ones, nothing for others."""
    from .render import bars, panel, reduction, save_png

    if score.ndim == 3 and (item.display is not None or score.shape[0] in (1, 3, 4) or pre.layout == "NHWC"):
        channels_first = np.moveaxis(score, -1, 0) if pre.layout == "NHWC" else score
        photo = item.display if item.display is not None and i == 0 else None
        save_png(panel(photo, channels_first, caption, f"{method}", reduction(method)), path)
    elif score.ndim == 1:
        save_png(bars([f"x{k}" for k in range(score.size)], score, caption, method), path)
    else:
        return []
    return [path]
