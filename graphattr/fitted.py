"""What was learned from data for one model and one method: arrays by layer, and a manifest of how they came about."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, NodeProto, TensorProto

from .errors import MethodError, MissingFit, RunError, WriteError, did_you_mean
from .files import whole_file
from .graph import Array
from .method import Method
from .source import Source
from .tensors import array_of
from .wellformed import bodies_of, default_opset

Learned = Mapping[str, Mapping[str, NDArray[Any]]]  # layer -> name -> array
MANIFEST = "graphattr.manifest"


@dataclass(frozen=True, eq=False)
class Fitted:
    """Learned arrays by layer and name. `manifest`: fingerprint of the model, method, parameters, samples, targets, per layer
    condition number and samples, and warnings. On disk an .npz whose arrays are named `<layer>::<name>`."""

    arrays: Learned
    manifest: Mapping[str, Any] = field(default_factory=dict)

    @property
    def warnings(self) -> list[str]:
        """What may be wrong with it: too few samples, systems close to singular."""
        return list(self.manifest.get("warnings", []))

    def __getitem__(self, layer: str) -> Mapping[str, Array]:
        if layer not in self.arrays:
            raise MissingFit(f"nothing was learned for layer {layer!r}{did_you_mean(layer, self.arrays)}")
        return self.arrays[layer]

    def __repr__(self) -> str:
        return f"Fitted({self.manifest.get('method')}: {len(self.arrays)} layers, {self.manifest.get('samples')} samples)"

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write an .npz, whole or not at all, else WriteError."""
        flat = {f"{layer}::{name}": array for layer, held in self.arrays.items() for name, array in held.items()}
        return save_npz(path, flat, self.manifest)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Fitted:
        """Read what `save` wrote; RunError when it is something else."""
        flat, manifest = load_npz(path, "parameters that graphattr learned; make them with `graphattr fit`")
        if "fingerprint" not in manifest or "method" not in manifest:
            raise RunError(f"{os.fspath(path)} was not written by `graphattr fit`: its manifest names no model and no method")
        arrays: dict[str, dict[str, Array]] = {}
        for key, array in flat.items():
            layer, _, name = key.rpartition("::")
            arrays.setdefault(layer, {})[name] = array
        return cls(arrays, manifest)


def save_npz(path: str | os.PathLike[str], arrays: Mapping[str, Array], manifest: Mapping[str, Any]) -> Path:
    """Arrays and a manifest in one .npz."""
    path = Path(path)
    text = np.frombuffer(json.dumps(manifest).encode(), np.uint8)
    try:
        with whole_file(path) as f:
            np.savez(f, **{MANIFEST: text}, **arrays)  # type: ignore[arg-type]
    except OSError as e:
        raise WriteError(f"cannot write {path}: {e.strerror or e}") from e
    return path


def load_npz(path: str | os.PathLike[str], what: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """(arrays, manifest) of such a file; `what` says in errors what it should hold."""
    try:
        opened = np.load(path, allow_pickle=False)
        if MANIFEST not in getattr(opened, "files", []):
            raise RunError(f"{os.fspath(path)} does not hold {what}")
        with opened as held:
            manifest = json.loads(held[MANIFEST].tobytes())
            return {k: held[k] for k in held.files if k != MANIFEST}, manifest
    except RunError:
        raise
    except Exception as e:  # zipfile, zlib, json and numpy each have their own
        raise RunError(f"cannot read {os.fspath(path)}: {e}; it should hold {what}") from e


def opened(fitted: Any) -> tuple[Fitted, ...]:
    """None, a Fitted, a path, or several of these."""
    if fitted is None:
        return ()
    several = fitted if isinstance(fitted, (list, tuple)) else [fitted]
    for one in several:
        if not isinstance(one, (Fitted, str, os.PathLike)):
            raise MethodError(f"fitted must be a graphattr.Fitted or the path of one, not {type(one).__name__}")
    return tuple(one if isinstance(one, Fitted) else Fitted.load(one) for one in several)


# -- which model it is of -----------------------------------------------------------------------------------------
def fingerprint(source: Source) -> str:
    """sha256 over opset, nodes and initialisers: the same for a path, bytes and a ModelProto, wherever the weights lie."""
    found = hashlib.sha256(str(default_opset(source.model)).encode())
    _graph(found, source.model.graph, source.folder)
    for f in source.model.functions:
        _update(found, f.domain, f.name, *f.input, *f.output)
        _nodes(found, f.node, source.folder)
    return found.hexdigest()


def _graph(found: Any, graph: GraphProto, folder: Path | None) -> None:
    _nodes(found, graph.node, folder)
    for t in sorted(graph.initializer, key=lambda t: t.name):
        _tensor(found, t, folder)
    for s in graph.sparse_initializer:
        _tensor(found, s.values, folder)
        _tensor(found, s.indices, folder)
    _update(found, *(o.name for o in graph.output))


def _nodes(found: Any, nodes: Iterable[NodeProto], folder: Path | None) -> None:
    for node in nodes:
        _update(found, node.domain, node.op_type, *node.input, "", *node.output)
        for a in sorted(node.attribute, key=lambda a: a.name):
            if a.HasField("g") or a.graphs:
                continue
            bare = type(a)()
            bare.CopyFrom(a)
            for part in ("doc_string", "t", "tensors"):
                bare.ClearField(part)
            found.update(bare.SerializeToString(deterministic=True))
            for t in [a.t] if a.HasField("t") else a.tensors:
                _tensor(found, t, folder)
        for body in bodies_of(node):
            _graph(found, body, folder)


def _tensor(found: Any, t: TensorProto, folder: Path | None) -> None:
    array = array_of(t, folder)
    _update(found, t.name, str(array.dtype), str(array.shape))
    flat = np.ascontiguousarray(array).reshape(-1)
    found.update(b"".join(str(v).encode() + b"\0" for v in flat) if flat.dtype.kind == "O" else flat.view(np.uint8).data)


def _update(found: Any, *words: str) -> None:
    found.update("\0".join(words).encode() + b"\1")


def learned_name(name: str, target: Any, targets: Sequence[Any]) -> str:
    """What an array is called that was learned for one of several targets: with one target it keeps its name."""
    return name if len(targets) == 1 else f"{name}@{','.join(map(str, target)) if isinstance(target, (tuple, list)) else target}"


def _of_target(one: Fitted, target: Any) -> Learned:
    """The arrays of one target, under their own names, and those that are for all targets."""
    targets = one.manifest.get("targets") or []
    if len(targets) < 2:
        return one.arrays
    end = learned_name("", target, targets)
    return {
        layer: {k.removesuffix(end): v for k, v in held.items() if k.endswith(end) or "@" not in k}
        for layer, held in one.arrays.items()
    }


# -- whether it fits ----------------------------------------------------------------------------------------------
def needing(method: Method) -> Method | None:
    """The method that has to be learned: this one, or one that its procedure asks; None where nothing is learned."""
    return method if method.fit else None if method.inner is method else needing(method.inner)


def learned_for(methods: Sequence[Method], held: Sequence[Fitted], source: Source, target: Any) -> list[Learned]:
    """What was learned for each method; MissingFit where that is nothing, MethodError where something given belongs to none."""
    wanted = [needing(m) for m in methods]
    names = [m.name for m in wanted if m is not None]
    for one in held:
        _check(one, names, methods, source, target)
    by_name = {one.manifest["method"]: _of_target(one, target) for one in held}
    for m in wanted:
        if m is not None and m.name not in by_name:
            raise MissingFit(_missing(m.name, source))
    return [{} if m is None else by_name[m.name] for m in wanted]


def _check(one: Fitted, names: Sequence[str], methods: Sequence[Method], source: Source, target: Any) -> None:
    made = one.manifest["method"]
    if not names:
        raise MethodError(f"fitted= was given, but method {methods[0].name!r} learns nothing from data; leave it out")
    if made not in names:
        raise MethodError(f"these parameters were learned for method {made!r}, and {' and '.join(map(repr, names))} was asked "
                          f"for; {_command(names[0], source)}")
    if one.manifest["fingerprint"] != fingerprint(source):
        raise MethodError(f"these parameters were learned for another model ({one.manifest.get('model')}, "
                          f"fingerprint {one.manifest['fingerprint'][:12]}; this one has {fingerprint(source)[:12]}): its nodes "
                          f"or weights differ; {_command(made, source)}")
    targets = one.manifest.get("targets")
    asked = list(target) if isinstance(target, tuple) else target
    if targets and asked not in targets:
        raise MethodError(f"these parameters were learned for target {' and '.join(map(str, targets))}, not for {target!r}; pass "
                          f"target={targets[0]} (--target {targets[0]}), or {_command(made, source)}")


def _missing(name: str, source: Source) -> str:
    return f"method {name!r} needs parameters learned from data; {_command(name, source)}, and pass fitted= (--fitted FITTED.npz)"


def _command(name: str, source: Source) -> str:
    return f"make them with `graphattr fit {source.path or 'MODEL'} DATA --method {name} -o FITTED.npz`"
