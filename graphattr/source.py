"""Read a model from wherever it comes, and refuse with a reason whatever is not one."""

from __future__ import annotations

import hashlib
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto, TensorProto

from .errors import ModelError
from .tensors import array_of, check_tensor
from .wellformed import attributes_of, check_model, tensors_of
from .wire import outlined

__all__ = ["Source", "array_of", "read"]

LIMIT = (1 << 31) - 1
LARGE = 1 << 26  # bytes of a file from which on its weights are not read with it
KINDS = {b"PK\x03\x04": "a zip archive (a PyTorch checkpoint, a Keras file?)", b"\x89HDF": "an HDF5 file (Keras?)",
         b"version https://git-lfs": "a Git LFS pointer (run `git lfs pull`)", b"\x1f\x8b": "gzip-compressed",
         b"\x80\x02": "a Python pickle", b"\x80\x04": "a Python pickle", b"<": "a web page or XML", b"{": "JSON text"}


@dataclass(frozen=True)
class Source:
    """A model as it was read: external data, and the weights of a large file, are not loaded but lie in `folder`; `sha256` is of
    the file alone."""

    model: ModelProto
    folder: Path | None
    sha256: str
    path: Path | None


def read(model: str | os.PathLike[str] | bytes | ModelProto, allow_nonfinite: bool = False) -> Source:
    """The model, checked: structure, names, versions, weights. A ModelProto is taken over as it is, not copied.

    Raises ModelError, and nothing else, for anything that is not a sound ONNX model.
    """
    if isinstance(model, ModelProto):
        source = Source(model, None, _digest(model), None)
    elif isinstance(model, (bytes, bytearray, memoryview)):
        source = Source(_parse(memoryview(model), "the given bytes"), None, hashlib.sha256(model).hexdigest(), None)
    elif isinstance(model, (str, os.PathLike)):
        source = _open(model)
    else:
        raise ModelError(f"a model is a path, bytes or an onnx.ModelProto, not {type(model).__name__}")
    check_model(source.model)
    roots = _roots(source.path)
    for tensor in tensors_of(source.model.graph):
        check_tensor(tensor, source.folder, roots, allow_nonfinite)
    for where, tensor in attributes_of(source.model.graph):
        try:
            check_tensor(tensor, source.folder, roots, allow_nonfinite=True)
        except ModelError as e:
            raise ModelError(f"attribute of {where}: {e}") from e
    return source


def _open(given: str | os.PathLike[str]) -> Source:
    try:
        path = Path(given)
        if path.is_dir():
            raise ModelError(f"{str(path)!r} is a directory; pass the .onnx file in it")
        if not path.exists():
            raise ModelError(f"there is no file {str(path)!r}; check the path (the working directory is {str(Path.cwd())!r})")
        if not path.is_file():
            raise ModelError(f"{str(path)!r} is not a regular file; save the model to one first")
        if not path.stat().st_size:
            raise ModelError(f"{str(path)!r} is empty; export or copy the model again")
        with path.open("rb") as f:
            digest = hashlib.file_digest(f, "sha256").hexdigest()
            with mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
                return Source(_parse(_weights_apart(view, path), repr(str(path))), path.parent, digest, path)
    except (OSError, ValueError, TypeError) as e:
        raise ModelError(f"cannot read {given!r}: {e}") from e


def _weights_apart(view: memoryview, path: Path) -> memoryview:
    """A large file's bytes with its large weights as external data, which lie in the file itself; any other's as they are."""
    if not LARGE <= len(view) <= LIMIT:
        return view
    try:
        return memoryview(outlined(view, path.name))
    except ValueError:  # no protobuf: whoever parses it says so
        return view


def _parse(data: memoryview, what: str) -> ModelProto:
    if len(data) > LIMIT:
        raise ModelError(f"{what} has {len(data)} bytes, above the 2 GiB of a protobuf; save it with external data")
    head = bytes(data[:64])
    hint = next((f"; it looks like {kind}" for magic, kind in KINDS.items() if head.startswith(magic)), "")
    hint = "; it looks like a TFLite model (convert it with tf2onnx)" if head[4:8] == b"TFL3" else hint
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as e:       # protobuf's DecodeError, whose module has no types
        raise ModelError(f"{what} is not an ONNX model or is truncated ({e}){hint}") from e
    if not model.HasField("graph"):
        raise ModelError(f"{what} has no graph: not an ONNX model, or cut off{hint}")
    return model


def _roots(path: Path | None) -> tuple[Path, ...]:
    """Where external data may really lie: beside the path, or beside the file it links to (Hugging Face's cache)."""
    return () if path is None else (path.parent.resolve(), path.resolve().parent)


def _digest(model: ModelProto) -> str:
    """sha256 of the deterministic serialisation; of the model without its weights when that is above 2 GiB."""
    try:
        return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()
    except Exception:       # EncodeError, ValueError or MemoryError, by protobuf's version
        return hashlib.sha256(_bare(model).SerializeToString(deterministic=True)).hexdigest()


def _bare(model: ModelProto) -> ModelProto:
    bare = ModelProto(ir_version=model.ir_version, producer_name=model.producer_name)
    bare.opset_import.extend(model.opset_import)
    bare.functions.extend(model.functions)
    bare.graph.node.extend(model.graph.node)
    bare.graph.input.extend(model.graph.input)
    bare.graph.output.extend(model.graph.output)
    bare.graph.initializer.extend(TensorProto(name=t.name, data_type=t.data_type, dims=t.dims) for t in model.graph.initializer)
    return bare
