"""ONNX Runtime: one session per explanation, reused; feeds are checked before they reach it."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx

from .bound import Bound
from .errors import ModelError, RunError, did_you_mean
from .export import Explanation, read_manifest
from .graph import Array
from .infer import read_type, shape_text
from .session import device_of, first_line, open_session, run_options
from .source import read

INDEX = "graphattr_target_index"


@dataclass(frozen=True)
class Attribution:
    """What a run gives: `scores` and `outputs` by tensor name, the explained index per sample, `delta`, `ledger`, and what the
    explanation says of itself (`manifest`). Several targets: all but `outputs` have them as axis 1, `target` is (N, k)."""

    scores: Mapping[str, Array]
    outputs: Mapping[str, Array]
    target: Array | None = None
    delta: Array | None = None
    ledger: Array | None = None
    extras: Mapping[str, Array] = field(default_factory=dict)
    manifest: Mapping[str, Any] = field(default_factory=dict)

    plot: ClassVar[Callable[..., Any]]  # graphattr.plot, which stands on a higher floor

    def each(self) -> list[Attribution]:
        """An Attribution for each target where several were asked for, as if it had been the only one; else this one."""
        k = self.manifest.get("targets")
        if k is None:
            return [self]

        def at(v: Any, j: int) -> Any:
            return None if v is None else v.take(j, min(1, v.ndim - 1))

        return [
            replace(self, scores={n: at(v, j) for n, v in self.scores.items()}, target=at(self.target, j),
                    delta=at(self.delta, j), ledger=at(self.ledger, j), extras={n: at(v, j) for n, v in self.extras.items()},
                    manifest={**self.manifest, "targets": None})
            for j in range(k)
        ]

    def records(self, x: Any = None, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
        """One row per sample and column of tables (N, F), as `pandas.DataFrame` takes them: tensor, method, sample, target (None:
        a seed), column, value (where x is given), attribution.

        x: what was explained, an array or arrays by name. columns: their names (default: x0, x1 ...). Attributions of other
        shapes are left out; RunError where there is no table, or x or columns do not fit. Several targets: the first one's first.
        """
        if self.manifest.get("targets") is not None:
            return [row for one in self.each() for row in one.records(x, columns)]
        tables = {name: score for name, score in self.scores.items() if score.ndim == 2}
        if not tables:
            shapes = ", ".join(f"{name} {score.shape}" for name, score in self.scores.items())
            raise RunError(f"records are of tables (N, F); the attributions are {shapes}: take them from `scores`")
        rows: list[dict[str, Any]] = []
        given = list(columns)
        for name, score in tables.items():
            tensor, method = tensor_and_method(name, self.manifest)
            values = x.get(tensor) if isinstance(x, Mapping) else x
            values = None if values is None else np.asarray(values)
            if values is not None and values.shape != score.shape:
                raise RunError(f"x has the shape {values.shape}, the attribution {name!r} {score.shape}")
            if given and len(given) != score.shape[1]:
                raise RunError(f"{len(given)} names for the {score.shape[1]} columns of {name!r}")
            known, names = [], given or [f"x{k}" for k in range(score.shape[1])]
            if x is not None:
                known = [("value", np.full(score.shape, np.nan) if values is None else values)]
            arrays = [(key, array.tolist()) for key, array in [*known, ("attribution", score)]]
            for i in range(len(score)):
                about = {"tensor": tensor, "method": method or str(self.manifest.get("method", "")), "sample": i,
                         "target": None if self.target is None else int(self.target[i])}
                rows += [{**about, "column": name, **{key: held[i][k] for key, held in arrays}} for k, name in enumerate(names)]
        return rows


class Explainer:
    """An explanation graph in ONNX Runtime.

    providers: "cpu", "cuda", "tensorrt", or a list of ONNX Runtime's own names.
    provider_options: of the first of them, such as {"device_id": 1, "use_tf32": False, "gpu_mem_limit": 2**33}.
    threads: how many the CPU takes for one operator (default: as many as it has cores).

    Raises RunError for feeds that do not fit, for non-finite attributions, and for what ONNX Runtime refuses.
    """

    def __init__(
        self,
        explanation: Explanation | str | os.PathLike[str] | onnx.ModelProto,
        providers: Any = None,
        provider_options: Mapping[str, Any] | None = None,
        threads: int | None = None,
    ) -> None:
        model, folder = _model_of(explanation)
        manifest = read_manifest(model)
        if manifest is None:
            raise ModelError(
                "this model is not an explanation made by graphattr (its metadata has no 'graphattr.manifest'); "
                "make one with graphattr.convert(model)"
            )
        self.manifest: Mapping[str, Any] = manifest
        self._index = manifest.get("target_tensor")
        device = device_of(providers, provider_options, threads)
        self.session = open_session(model, folder, device, [self._index] if self._index else [])
        self._run, self.graphs = run_options(self.session), itertools.count(1)
        self._types = {i.name: read_type(i.type) for i in model.graph.input}
        added = [
            {"input": "target", "seed": "seed"}.get(str(manifest["target"])),
            *(f"{n}_baseline" for n in manifest["wrt"]),
        ]
        self._ours = {name for name in added if name in self._types}
        self.own = [name for name in self._types if name not in self._ours]
        self.inputs, self.outputs = list(self._types), [o.name for o in model.graph.output]

    def __call__(self, feeds: Mapping[str, Any] | Any, target: Any = None) -> Attribution:
        """Explain a batch. feeds: arrays by name, or the array of a single input; target: for files made with target="input"."""
        arrays = self._feeds(feeds, target)
        names = self.outputs + ([self._index] if self._index else [])
        try:
            found = dict(zip(names, self.session.run(names, arrays, self._run), strict=True))
        except Exception as e:
            raise RunError(f"ONNX Runtime refused to run the explanation: {first_line(e)}") from e
        return self._attribution(found, arrays)

    def bound(self, feeds: Mapping[str, Any] | Any, target: Any = None) -> Bound:
        """The explanation bound to the shapes of these feeds: called again and again it copies what it must and allocates
        nothing on the device. RunError for models with inputs or outputs that are no tensors."""
        return Bound(self, self._feeds(feeds, target))

    def _feeds(self, feeds: Mapping[str, Any] | Any, target: Any) -> dict[str, Array]:
        own = self.own
        if not isinstance(feeds, Mapping):
            if len(own) != 1:
                raise RunError(f"the model has {len(own)} inputs ({', '.join(own)}); give a dict of arrays by name")
            feeds = {own[0]: feeds}
        others = {name: value for name, value in feeds.items() if name in self._types and self._types[name][0] is None}
        given = {name: _array(name, value) for name, value in feeds.items() if name not in others}
        if target is not None:
            if "target" not in self._ours:
                raise RunError(
                    f"this explanation was made for target={self.manifest.get('target')!r}; to choose it at run time convert "
                    'with target="input"'
                )
            first = next((given[n] for n in own if n in given and given[n].ndim), None)
            given["target"] = self._spread(_array("target", target), first)
        for name in given:
            if name not in self._types:
                raise RunError(
                    f"the model has no input {name!r}{did_you_mean(name, self._types)} (inputs: {', '.join(self._types)})"
                )
        missing = [n for n in self._types if n not in given and n not in others]
        if missing:
            hint = "; pass target=" if missing == ["target"] else ""
            raise RunError(f"no value for input {', '.join(map(repr, missing))}{hint}")
        checked = {name: self._checked(name, value) for name, value in given.items()}
        self._check_sizes(checked)
        if "target" in self._ours:
            self._check_target(checked["target"])
        return checked | others  # sequences, optionals and maps go as they are

    def _spread(self, target: Array, first: Array | None) -> Array:
        """One index for all samples, or one per sample."""
        fixed = (self._types["target"][1] or (None,))[0]
        rows = fixed if isinstance(fixed, int) else 1 if first is None else len(first)
        return np.broadcast_to(target.reshape(-1), (rows,)) if target.size == 1 else target

    def _check_sizes(self, given: Mapping[str, Array]) -> None:
        """Axes of one name must have one size, as far as the inputs are graphattr's own."""
        known: dict[str, tuple[int, str]] = {}
        for name in sorted(given, key=lambda n: n in self._ours):
            for axis, (d, size) in enumerate(zip(self._types[name][1] or (), given[name].shape, strict=False)):
                held = known.setdefault(d, (size, name)) if isinstance(d, str) else (size, name)
                if held[0] != size and name in self._ours:
                    raise RunError(
                        f"input {name!r} of shape {given[name].shape} does not fit: its axis {axis} ({d}) "
                        f"is {held[0]} in input {held[1]!r}"
                    )

    def _check_target(self, target: Array) -> None:
        entries = self.manifest.get("entries")
        bad = np.argwhere((target < 0) | (target >= (entries if entries is not None else np.iinfo(np.int64).max)))
        if bad.size:
            at = int(bad[0][0])
            raise RunError(
                f"target {int(target[at])} of sample {at} is out of range: a target of output "
                f"{self.manifest['output']!r} is 0 to {'...' if entries is None else entries - 1}"
            )

    def _checked(self, name: str, array: Array) -> Array:
        """The array in the input's dtype; RunError when its shape does not fit or the conversion would lose something."""
        dtype, shape = self._types[name]
        if dtype is not None and array.dtype != dtype:
            fits = "US" if dtype.kind == "O" else "iu" if dtype.kind in "iu" else "fiub"
            if array.dtype.kind not in fits:
                raise RunError(f"input {name!r} must be {'strings' if dtype.kind == 'O' else dtype}, not {array.dtype}")
            if dtype.kind in "iu" and array.size:
                low, high, allowed = int(array.min()), int(array.max()), np.iinfo(dtype)
                if low < allowed.min or high > allowed.max:
                    raise RunError(f"input {name!r} must be {dtype}, but holds {low} to {high}")
            with np.errstate(over="ignore"):
                array = array.astype(dtype)
        if shape is not None:
            if array.ndim != len(shape) or any(isinstance(d, int) and d != s for d, s in zip(shape, array.shape, strict=False)):
                wanted = shape_text(shape)
                hint = " (add the batch axis: x[None])" if array.ndim == len(shape) - 1 else ""
                raise RunError(f"input {name!r} must have shape {wanted}, not {array.shape}{hint}")
            if shape and array.shape[0] == 0:
                raise RunError(f"input {name!r} has no samples: its shape is {array.shape}")
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(array))[0])
            raise RunError(
                f"input {name!r} holds {int((~np.isfinite(array)).sum())} NaN or infinite values, the first at {where}"
            )
        return array

    def _attribution(self, found: Mapping[str, Array], feeds: Mapping[str, Array]) -> Attribution:
        outputs = {n: found[n] for n in self.manifest["outputs"]}
        scores: dict[str, Array] = {}
        for name, out in self.manifest["attributions"].items():
            scores[name] = found[out]
            if not np.isfinite(found[out]).all():
                bad = ~np.isfinite(found[out])
                raise RunError(
                    f"the attribution {out!r} has {int(bad.sum())} NaN or infinite values of {bad.size} (first in sample "
                    f"{int(np.argwhere(bad)[0][0])}); method {self.manifest['method']!r} divides by values near zero here: "
                    "use a larger eps, or another rule"
                )
        extras = {n: found[n] for n in self.manifest.get("extras", {}).values()}
        rows = next((len(s) for s in scores.values() if s.ndim), 1)
        return Attribution(
            scores,
            outputs,
            self._target(found, feeds, rows),
            extras.get(self.manifest["extras"].get("delta", "")),
            extras.get(self.manifest["extras"].get("ledger", "")),
            extras,
            self.manifest,
        )

    def _target(self, found: Mapping[str, Array], feeds: Mapping[str, Array], rows: int) -> Array | None:
        """The explained index per sample, into the explained output's flattened trailing axes."""
        if self._index:
            index = np.asarray(found[self._index])
            return index if self.manifest.get("targets") is not None else index.reshape(-1)
        return feeds["target"].reshape(-1) if "target" in self._ours else None


def tensor_and_method(name: str, manifest: Mapping[str, Any]) -> tuple[str, str]:
    """Of a key of `scores`; the method is '' when it is alone in the file. Names of tensors may hold slashes."""
    methods = str(manifest.get("method", "")).split(",")
    method = next((m for m in methods if len(methods) > 1 and name.endswith(f"/{m}")), "")
    return name.removesuffix(f"/{method}") if method else name, method


def _model_of(explanation: Any) -> tuple[onnx.ModelProto, Path | None]:
    if isinstance(explanation, Explanation):
        return explanation.model, explanation.folder
    source = read(explanation)
    return source.model, source.folder


def _array(name: str, value: Any) -> Array:
    try:
        return np.asarray(value)
    except ValueError as e:
        raise RunError(f"input {name!r} is no array: {e}") from e
