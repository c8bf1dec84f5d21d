"""Graph -> Explanation: plain ONNX with the source's metadata and a manifest of what was done to each layer."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

from .errors import ModelError, TargetError, WriteError
from .files import write_atomically
from .graph import Graph, Value
from .onnxio import Tensor, named_axes, stored_tensors, write_graph
from .source import Source
from .tensors import bytes_of, external
from .upgrade import MAX_IR
from .wire import chunks

PREFIX = "graphattr."
INLINE_LIMIT = 1024  # bytes up to which a tensor stays inside a model that has its weights outside
EMBED_LIMIT = 1_800_000_000  # bytes of weights above which they stay outside the protobuf (its limit is 2 GiB)


@dataclass(frozen=True)
class Explanation:
    """An ONNX model that also explains. `inputs` and `outputs` are names; `manifest` says what was done, layer by layer."""

    model: onnx.ModelProto
    manifest: Mapping[str, Any]
    folder: Path | None = field(default=None, repr=False)  # where the external data of `model` lies, if it has any

    @property
    def inputs(self) -> list[str]:
        return [i.name for i in self.model.graph.input]

    @property
    def outputs(self) -> list[str]:
        return [o.name for o in self.model.graph.output]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the model, whole or not at all, else WriteError; weights beyond the protobuf limit go to `<path>.data`."""
        path = Path(path)
        try:
            if path.is_dir():
                raise WriteError(f"cannot write {path}: it is a directory; give the name of a file in it")
            if not path.parent.is_dir():
                raise WriteError(f"cannot write {path}: the folder {path.parent} does not exist")
            weights = self.model.graph.initializer
            if any(map(external, weights)) or sum(bytes_of(t) for t in weights if t.HasField("raw_data")) > EMBED_LIMIT:
                _save_with_data(self.model, self.folder, path)
            else:
                write_atomically(path, chunks(self.model, _without_weights(self.model)))
        except OSError as e:
            raise WriteError(f"cannot write {path}: {e.strerror or e}") from e
        return path

    def __repr__(self) -> str:
        return f"Explanation({self.manifest['method']}: {', '.join(self.inputs)} -> {', '.join(self.outputs)})"


def export(g: Graph, source: Source, model: onnx.ModelProto, manifest: Mapping[str, Any]) -> Explanation:
    """Write the graph as a model that keeps the source's metadata, domains, doc strings and quantisation annotations."""
    proto = proto_of(g, model)
    proto.graph.value_info.extend(named_axes(g))
    _carry_over(proto.graph, model.graph)
    proto.metadata_props.extend(p for p in model.metadata_props if not p.key.startswith(PREFIX))
    for key in ("version", "source_sha256", "method", "params", "target", "output"):
        proto.metadata_props.add(key=PREFIX + key, value=_text(manifest[key]))
    proto.metadata_props.add(key=PREFIX + "manifest", value=json.dumps(manifest, separators=(",", ":"), default=_plain))
    return Explanation(proto, manifest, source.folder)


def proto_of(g: Graph, model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph as a model with the header and the domains of the one it was made of."""
    proto = _header(model)
    write_graph(g, proto.graph, sum(t.stored_bytes for t in stored_tensors(g)) <= EMBED_LIMIT)
    used = {n.domain for n in proto.graph.node}
    imports = [helper.make_opsetid("", g.opset)] + [
        o for o in model.opset_import if o.domain not in ("", "ai.onnx") and o.domain in used
    ]
    proto.opset_import.extend(imports)
    wanted = max(8, model.ir_version, helper.find_min_ir_version_for([imports[0]], ignore_unknown=True))
    proto.ir_version = min(wanted, MAX_IR)
    return proto


def name_outputs(g: Graph, added: Sequence[tuple[str, Value]]) -> None:
    """Append outputs under new names; TargetError when the model already uses one."""
    taken = {*g.names, *(name for name, _ in g.outputs)}
    for name, value in added:
        if name in taken:
            raise TargetError(
                f"the model already has a tensor named {name!r}, which graphattr needs for its own output; "
                "rename it in the model, or explain with other wrt or method names (is this file an explanation already?)"
            )
        taken.add(name)
        g.outputs.append((name, value))


def _header(model: onnx.ModelProto) -> onnx.ModelProto:
    """What a model says of itself: producer, domain, version, doc string."""
    return onnx.ModelProto(
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
    )


def read_manifest(model: onnx.ModelProto) -> dict[str, Any] | None:
    """The manifest inside an explanation, None for any other model."""
    text = next((p.value for p in model.metadata_props if p.key == PREFIX + "manifest"), None)
    if text is None:
        return None
    try:
        manifest = json.loads(text)
    except ValueError as e:
        raise ModelError(f"the manifest in the metadata of this explanation is damaged ({e}); make the explanation again") from e
    return manifest if isinstance(manifest, dict) else None


# -- what the surgeon could not hold ------------------------------------------------------------------------------
def _carry_over(graph: onnx.GraphProto, source: onnx.GraphProto) -> None:
    """Doc strings and metadata of graph, nodes and inputs; output types; quantisation annotations."""
    graph.doc_string = source.doc_string
    graph.quantization_annotation.extend(source.quantization_annotation)
    graph.metadata_props.extend(source.metadata_props)
    said = {n.output[0]: n for n in source.node if n.output and (n.doc_string or n.metadata_props)}
    for node in graph.node:
        held = said.get(node.output[0]) if node.output else None
        if held is not None:
            node.doc_string = held.doc_string
            node.metadata_props.extend(held.metadata_props)
    types = {v.name: v for v in [*source.input, *source.output]}
    for info in [*graph.input, *graph.output]:
        if info.name in types:
            info.CopyFrom(types[info.name])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    """A JSON form of arrays and values: short arrays whole, long ones by their shape."""
    if isinstance(value, np.ndarray):
        return value.tolist() if value.size <= 64 else f"array of shape {value.shape}"
    if isinstance(value, np.generic):
        return value.item()
    return str(value)


# -- files --------------------------------------------------------------------------------------------------------
def _save_with_data(model: onnx.ModelProto, folder: Path | None, path: Path) -> None:
    """The weights into `<path>.data`, one after the other, and a model that refers to them.

    Small tensors stay inside: they may be shapes and axes, which ONNX Runtime must see while it loads the model.
    """
    data = path.with_name(path.name + ".data")
    header = _without_weights(model)

    def outside() -> Iterator[bytes]:
        at = 0
        for t in model.graph.initializer:
            encoded = onnx.numpy_helper.from_array(Tensor(t, folder).array(), t.name) if external(t) else t
            content = encoded.raw_data if encoded.HasField("raw_data") else b""
            if len(content) <= INLINE_LIMIT:
                header.graph.initializer.append(encoded)
                continue
            entry = header.graph.initializer.add(name=t.name, data_type=t.data_type, dims=t.dims)
            entry.data_location = onnx.TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", at), ("length", len(content))):
                entry.external_data.add(key=key, value=str(value))
            at += len(content)
            yield content

    write_atomically(data, outside())
    try:
        write_atomically(path, [header.SerializeToString()])
    except BaseException:
        data.unlink(missing_ok=True)
        raise


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    header = _header(model)
    header.ir_version = model.ir_version
    header.opset_import.extend(model.opset_import)
    header.metadata_props.extend(model.metadata_props)
    graph = header.graph
    graph.name, graph.doc_string = model.graph.name, model.graph.doc_string
    for part in ("node", "input", "output", "value_info", "quantization_annotation", "metadata_props"):
        getattr(graph, part).extend(getattr(model.graph, part))
    return header
