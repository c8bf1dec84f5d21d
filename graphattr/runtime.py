"""ONNX Runtime: one session per explanation, reused; feeds are checked before they reach it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from .errors import ModelError, RunError, did_you_mean
from .export import Explanation, read_manifest
from .graph import Array
from .infer import read_type
from .source import read

PROVIDERS = {
    "cpu": ["CPUExecutionProvider"],
    "cuda": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "tensorrt": ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"],
}
INDEX = "graphattr_target_index"


@dataclass(frozen=True)
class Attribution:
    """What a run gives: `scores` and `outputs` by tensor name, the explained index per sample, `delta` [N] and `ledger` when asked for."""

    scores: Mapping[str, Array]
    outputs: Mapping[str, Array]
    target: Array | None = None
    delta: Array | None = None
    ledger: Array | None = None
    extras: Mapping[str, Array] = field(default_factory=dict)


class Explainer:
    """An explanation graph in ONNX Runtime. `providers`: "cpu", "cuda", "tensorrt", or ONNX Runtime's own names.

    Raises RunError for feeds that do not fit, for non-finite attributions, and for what ONNX Runtime refuses.
    """

    def __init__(self, explanation: Explanation | str | os.PathLike[str] | onnx.ModelProto, providers: str | Sequence[Any] | None = None) -> None:
        model, folder = _model_of(explanation)
        manifest = read_manifest(model)
        if manifest is None:
            raise ModelError("this model is not an explanation made by graphattr (its metadata has no 'graphattr.manifest'); "
                             "make one with graphattr.convert(model)")
        self.manifest: Mapping[str, Any] = manifest
        self._index = manifest.get("target_tensor")
        self.session = open_session(model, folder, providers, [self._index] if self._index else [])
        self._types = {i.name: read_type(i.type) for i in model.graph.input}
        self.inputs, self.outputs = list(self._types), [o.name for o in model.graph.output]

    def __call__(self, feeds: Mapping[str, Any] | Any, target: Any = None) -> Attribution:
        """Explain a batch. feeds: arrays by input name (one array when there is one input); target: only for files made with target="input"."""
        arrays = self._feeds(feeds, target)
        names = self.outputs + ([self._index] if self._index else [])
        try:
            found = dict(zip(names, self.session.run(names, arrays), strict=True))
        except Exception as e:
            raise RunError(f"ONNX Runtime refused to run the explanation: {_first_line(e)}") from e
        return self._attribution(found, arrays)

    def _feeds(self, feeds: Mapping[str, Any] | Any, target: Any) -> dict[str, Array]:
        own = [n for n in self._types if n not in ("target", "seed")]
        if not isinstance(feeds, Mapping):
            if len(own) != 1:
                raise RunError(f"the model has {len(own)} inputs ({', '.join(own)}); give a dict of arrays by name")
            feeds = {own[0]: feeds}
        given = dict(feeds)
        if target is not None:
            if "target" not in self._types or self.manifest.get("target") != "input":
                raise RunError(f"this explanation was made for target={self.manifest.get('target')!r}; to choose the target at run time convert "
                               "with target=\"input\"")
            rows = np.shape(given[own[0]])[0] if own and own[0] in given and np.ndim(given[own[0]]) else 1
            given["target"] = np.broadcast_to(np.asarray(target, np.int64).reshape(-1), rows) if np.size(target) == 1 else target
        for name in given:
            if name not in self._types:
                raise RunError(f"the model has no input {name!r}{did_you_mean(name, self._types)} (inputs: {', '.join(self._types)})")
        missing = [n for n in self._types if n not in given]
        if missing:
            hint = "; pass target=" if missing == ["target"] else ""
            raise RunError(f"no value for input {', '.join(map(repr, missing))}{hint}")
        return {name: self._checked(name, np.asarray(value)) for name, value in given.items()}

    def _checked(self, name: str, array: Array) -> Array:
        """The array in the input's dtype; RunError when its shape does not fit or the conversion would lose something."""
        dtype, shape = self._types[name]
        if dtype is not None and array.dtype != dtype:
            if array.dtype.kind not in "fiub" or (array.dtype.kind == "f" and dtype.kind in "iu"):
                raise RunError(f"input {name!r} must be {dtype}, not {array.dtype}")
            array = array.astype(dtype)
        if shape is not None:
            if array.ndim != len(shape) or any(isinstance(d, int) and d != s for d, s in zip(shape, array.shape, strict=False)):
                wanted = "(" + ", ".join(str(d) if d is not None else "?" for d in shape) + ")"
                hint = " (add the batch axis: x[None])" if array.ndim == len(shape) - 1 else ""
                raise RunError(f"input {name!r} must have shape {wanted}, not {array.shape}{hint}")
            if shape and array.shape[0] == 0:
                raise RunError(f"input {name!r} has no samples: its shape is {array.shape}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise RunError(f"input {name!r} holds {int((~np.isfinite(array)).sum())} NaN or infinite values, the first at {where}")
        return array

    def _attribution(self, found: Mapping[str, Array], feeds: Mapping[str, Array]) -> Attribution:
        outputs = {n: found[n] for n in self.manifest["outputs"]}
        scores: dict[str, Array] = {}
        for name, out in self.manifest["attributions"].items():
            scores[name] = found[out]
            if not np.isfinite(found[out]).all():
                bad = ~np.isfinite(found[out])
                raise RunError(f"the attribution {out!r} has {int(bad.sum())} NaN or infinite values of {bad.size} (first in sample "
                               f"{int(np.argwhere(bad)[0][0])}); method {self.manifest['method']!r} divides by values near zero here: "
                               "use a larger eps, or another rule")
        extras = {n: found[n] for n in self.manifest.get("extras", {}).values()}
        rows = next((len(s) for s in scores.values() if s.ndim), 1)
        return Attribution(scores, outputs, self._target(found, feeds, rows), extras.get(self.manifest["extras"].get("delta", "")),
                           extras.get(self.manifest["extras"].get("ledger", "")), extras)

    def _target(self, found: Mapping[str, Array], feeds: Mapping[str, Array], rows: int) -> Array | None:
        """The explained index per sample, into the explained output's flattened trailing axes."""
        if self._index:
            return np.asarray(found[self._index]).reshape(-1)
        if "target" in feeds and self.manifest["target"] == "input":
            return feeds["target"].reshape(-1)
        return None


def open_session(model: onnx.ModelProto, folder: Path | None, providers: str | Sequence[Any] | None = None, extra_outputs: Sequence[str] = ()) -> Any:
    """An ONNX Runtime session; RunError says what is missing or what ONNX Runtime disliked."""
    try:
        import onnxruntime as ort
    except ImportError as e:
        raise RunError("running needs ONNX Runtime: pip install \"graphattr[cpu]\" (or \"graphattr[gpu]\")") from e
    chosen = _providers(ort, providers)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if extra_outputs:
        held = model
        model = onnx.ModelProto()
        model.CopyFrom(held)
        for name in extra_outputs:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None))
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=chosen)
    except Exception as e:
        raise RunError(f"ONNX Runtime {ort.__version__} refused to load the model: {_first_line(e)}") from e


def _providers(ort: Any, providers: str | Sequence[Any] | None) -> list[Any]:
    wanted = PROVIDERS.get(providers.lower(), [providers]) if isinstance(providers, str) else list(providers or PROVIDERS["cpu"])
    if any("CUDA" in str(p) or "Tensorrt" in str(p) for p in wanted) and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    available = ort.get_available_providers()
    first = wanted[0][0] if isinstance(wanted[0], tuple) else wanted[0]
    if first not in available:
        raise RunError(f"ONNX Runtime has no provider {first!r} here{did_you_mean(str(first), [*available, *PROVIDERS])} "
                       f"(available: {', '.join(available)}); for CUDA install \"graphattr[gpu]\" instead of \"graphattr[cpu]\"")
    return wanted


def _model_of(explanation: Any) -> tuple[onnx.ModelProto, Path | None]:
    if isinstance(explanation, Explanation):
        return explanation.model, explanation.folder
    source = read(explanation)
    return source.model, source.folder


def _first_line(e: Exception) -> str:
    return str(e).strip().split("\n")[0][:500]
