"""Initialisers as arrays, without loading or copying more than is looked at; and what is wrong with them."""

from __future__ import annotations

import math
from pathlib import Path, PureWindowsPath
from typing import Any, TypeAlias

import numpy as np
from onnx import SparseTensorProto, TensorProto, helper, numpy_helper

from .errors import ModelError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
CHUNK = 1 << 22
"""Elements looked at together when a tensor is scanned for NaN."""


def array_of(tensor: TensorProto, folder: Path | None = None) -> Array:
    """The tensor's elements: a view of raw_data, a memory map of external data, or the decoded typed field.

    Raises ModelError when the data is missing, too short, or the location leaves `folder`.
    """
    bits = bits_of(tensor)
    if bits is None or bits % 8:
        return _decoded(tensor, folder)
    dtype, shape = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)), tuple(tensor.dims)
    if external(tensor):
        file, offset, length = _extent(tensor, folder)
        if length == 0:
            return np.empty(shape, dtype)
        return np.memmap(file, dtype, "r", offset, shape)
    if tensor.HasField("raw_data"):
        raw = tensor.raw_data           # each access copies
        _agree(tensor, bytes_of(tensor), len(raw), "bytes")
        return np.frombuffer(raw, dtype).reshape(shape)
    return _decoded(tensor, folder)


def embedded(tensor: TensorProto, folder: Path | None) -> TensorProto:
    """A tensor with external data, with them inside."""
    file, offset, length = _extent(tensor, folder)
    local = TensorProto(data_type=tensor.data_type, dims=tensor.dims, name=tensor.name)
    local.raw_data = np.fromfile(file, np.uint8, length, offset=offset).tobytes()
    return local


def dense(sparse: SparseTensorProto, folder: Path | None = None) -> TensorProto:
    """A sparse tensor with all its elements; ModelError when its indices do not fit its dims."""
    values, indices = array_of(sparse.values, folder), array_of(sparse.indices, folder)
    shape = tuple(sparse.dims)
    full = np.zeros(shape, values.dtype)
    try:
        if indices.ndim == 1:
            full.reshape(-1)[indices] = values
        else:
            full[tuple(indices.T)] = values
    except (IndexError, ValueError) as e:
        raise ModelError(f"sparse initialiser {sparse.values.name!r} of shape {list(shape)}: {e}; export the model again") from e
    return numpy_helper.from_array(full, sparse.values.name)


def external(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL


def elements(tensor: TensorProto) -> int:
    return math.prod(tensor.dims)


def bits_of(tensor: TensorProto) -> int | None:
    """Bits per element; None for strings. ModelError for a type that onnx does not know."""
    if tensor.data_type == TensorProto.STRING:
        return None
    try:
        name, dtype = TensorProto.DataType.Name(tensor.data_type), np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except (KeyError, ValueError):
        raise ModelError(f"initialiser {tensor.name!r} has the unknown data type {tensor.data_type}; "
                         "is the file damaged?") from None
    small = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
    return small.get(name, dtype.itemsize * 8)


def check_tensor(tensor: TensorProto, folder: Path | None, roots: tuple[Path, ...], allow_nonfinite: bool) -> None:
    """ModelError unless dims, data and external file agree, and a float tensor is finite."""
    if any(d < 0 for d in tensor.dims):
        raise ModelError(f"initialiser {tensor.name!r} has a negative dimension: {list(tensor.dims)}; export the model again")
    bits_of(tensor)
    if external(tensor):
        _check_inside(tensor, _extent(tensor, folder)[0], roots)
    if not allow_nonfinite and tensor.data_type in FLOATS:
        _check_finite(tensor, array_of(tensor, folder).reshape(-1))
    elif not external(tensor):
        check_size(tensor)


def check_size(tensor: TensorProto) -> None:
    """ModelError unless the tensor carries as many bytes or entries as its dims say."""
    if tensor.HasField("raw_data"):
        _agree(tensor, bytes_of(tensor), len(tensor.raw_data), "bytes")
    else:
        field = helper.tensor_dtype_to_field(tensor.data_type)
        _agree(tensor, _entries(tensor), len(getattr(tensor, field)), f"entries in {field}")


def _agree(tensor: TensorProto, need: int, have: int, unit: str) -> None:
    if need != have:
        raise ModelError(f"initialiser {tensor.name!r} of shape {list(tensor.dims)} needs {need} {unit} but the file holds "
                         f"{have}; it is damaged or was written wrongly: export the model again")


def bytes_of(tensor: TensorProto) -> int:
    """How many bytes the tensor's raw data take, by its dims."""
    bits = bits_of(tensor)
    if bits is None:
        raise ModelError(f"initialiser {tensor.name!r} keeps strings in raw_data, which ONNX forbids; export the model again")
    return -(-elements(tensor) * bits // 8)


def _entries(tensor: TensorProto) -> int:
    bits = bits_of(tensor)
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return 2 * elements(tensor)
    return -(-elements(tensor) * bits // 8) if bits is not None and bits < 8 else elements(tensor)


def _extent(tensor: TensorProto, folder: Path | None) -> tuple[Path, int, int]:
    """(file, offset, length) of external data, checked against the file's size and the tensor's dims."""
    where = f"external data of initialiser {tensor.name!r}"
    info = {e.key: e.value for e in tensor.external_data}
    location = info.get("location", "")
    if folder is None:
        raise ModelError(f"{where} lies in the file {location!r}, but the model came without a folder; "
                         "pass the path of the .onnx file, or load the external data into the ModelProto first")
    file = folder / _relative(where, location)
    need = bytes_of(tensor)
    try:
        offset, length = int(info.get("offset") or 0), int(info.get("length") or need)
    except ValueError:
        raise ModelError(f"{where}: offset {info.get('offset')!r}, length {info.get('length')!r} are no integers") from None
    if offset < 0 or length != need:
        raise ModelError(f"{where}: offset {offset}, length {length}, but shape {list(tensor.dims)} needs {need} bytes")
    try:
        size = file.stat().st_size if file.is_file() else None
    except (OSError, ValueError) as e:
        raise ModelError(f"{where}: cannot read {str(file)!r}: {e}") from e
    if size is None:
        raise ModelError(f"{where}: there is no file {location!r} in {str(folder)!r}; copy it next to the model")
    if size < offset + need:
        raise ModelError(f"{where}: {location!r} has {size} bytes, but bytes {offset} to {offset + need} are asked for; "
                         "the copy is incomplete")
    return file, offset, need


def _relative(where: str, location: str) -> str:
    plain = PureWindowsPath(location)
    if not location or plain.is_absolute() or plain.drive or plain.root or ".." in plain.parts:
        raise ModelError(f"{where}: location {location!r} is not a path below the model's folder; refused. "
                         "Save the model with its data next to it")
    return location


def _check_inside(tensor: TensorProto, file: Path, roots: tuple[Path, ...]) -> None:
    real = file.resolve()
    if not any(real.is_relative_to(root) for root in roots):
        raise ModelError(f"external data of initialiser {tensor.name!r}: {file.name!r} is a link to {str(real)!r}, "
                         "outside the model's folder; refused. Replace the link by the file")


def _decoded(tensor: TensorProto, folder: Path | None) -> Array:
    if external(tensor):
        return _decoded(embedded(tensor, folder), None)
    check_size(tensor)
    try:
        return numpy_helper.to_array(tensor)
    except Exception as e:
        raise ModelError(f"initialiser {tensor.name!r} cannot be decoded: {e}; is the file damaged?") from e


def _check_finite(tensor: TensorProto, flat: Array) -> None:
    """NaN is always refused; infinities are not in a scalar (a Clip bound, a fill) or an additive mask of 0 and -inf."""
    nan = inf = 0
    mask = True
    with np.errstate(all="ignore"):
        for start in range(0, flat.size, CHUNK):
            part = flat[start:start + CHUNK]
            finite = np.isfinite(part)
            if finite.all():
                mask = mask and not part.any()
                continue
            nans = int(np.isnan(part).sum())
            nan, inf = nan + nans, inf + int(part.size - finite.sum()) - nans
            mask = mask and not part[finite].any() and not (part > 0).any()
    if nan or (inf and flat.size > 1 and not mask):
        raise ModelError(f"initialiser {tensor.name!r} has {nan} NaN and {inf} infinite values among {flat.size}; "
                         "its explanations would be NaN. Repair the weights, or pass allow_nonfinite=True")
