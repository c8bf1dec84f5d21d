"""ONNX files as protobuf writes them, as far as large weights need it: they are read and written one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from onnx import ModelProto, TensorProto

from .errors import ModelError
from .tensors import bytes_of, external

GRAPH: Final = ModelProto.GRAPH_FIELD_NUMBER
INITIALIZER: Final = 5
RAW: Final = TensorProto.RAW_DATA_FIELD_NUMBER
LARGE = 1 << 16  # bytes of a tensor from which on it is worth it


def outlined(data: memoryview, location: str) -> bytes:
    """The model whose large initialisers are external data in the file `location`: the very file that `data` maps.

    ValueError where the bytes are no protobuf; what they mean is not looked at.
    """
    parts: list[bytes] = []
    for number, start, value, end in _fields(data, 0, len(data)):
        if number == GRAPH:
            graph = b"".join(_graph(data, value, end, location))
            parts += [_tag(GRAPH), _varint(len(graph)), graph]
        else:
            parts.append(bytes(data[start:end]))
    return b"".join(parts)


def _graph(data: memoryview, begin: int, stop: int, location: str) -> Iterator[bytes]:
    for number, start, value, end in _fields(data, begin, stop):
        tensor = _outside(data, value, end, location) if number == INITIALIZER and end - value > LARGE else None
        if tensor is None:
            yield bytes(data[start:end])
        else:
            yield from (_tag(INITIALIZER), _varint(len(tensor)), tensor)


def _outside(data: memoryview, begin: int, stop: int, location: str) -> bytes | None:
    """The tensor with its raw data left where they are; None when it is to stay as it is."""
    fields = list(_fields(data, begin, stop))
    raw = [(value, end) for number, _, value, end in fields if number == RAW]
    tensor = TensorProto()
    try:
        tensor.ParseFromString(b"".join(bytes(data[start:end]) for number, start, _, end in fields if number != RAW))
        whole = len(raw) == 1 and not external(tensor) and bytes_of(tensor) == raw[0][1] - raw[0][0]
    except Exception:  # protobuf's DecodeError, whose module has no types, or a ModelError: whoever reads the tensor says it
        return None
    if not whole:
        return None
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", raw[0][0]), ("length", raw[0][1] - raw[0][0])):
        tensor.external_data.add(key=key, value=str(value))
    return bytes(tensor.SerializeToString())


def chunks(model: ModelProto, header: ModelProto) -> Iterator[bytes]:
    """The bytes of the model, an initialiser at a time. `header`: the model without its initialisers."""
    graph, rest = header.graph.SerializeToString(), ModelProto()
    rest.CopyFrom(header)
    rest.ClearField("graph")
    heads = [_head(t) for t in model.graph.initializer]
    lengths = [len(head) + (bytes_of(t) if t.HasField("raw_data") else 0) for t, head in zip(model.graph.initializer, heads)]
    total = len(graph) + sum(len(_tag(INITIALIZER)) + len(_varint(n)) + n for n in lengths)
    yield rest.SerializeToString() + _tag(GRAPH) + _varint(total) + graph
    for t, head, length in zip(model.graph.initializer, heads, lengths):
        yield _tag(INITIALIZER) + _varint(length) + head
        if t.HasField("raw_data"):
            raw = t.raw_data
            if len(raw) != bytes_of(t):
                raise ModelError(f"initialiser {t.name!r} of shape {list(t.dims)} holds {len(raw)} bytes, not {bytes_of(t)}")
            yield raw


def _head(t: TensorProto) -> bytes:
    """The tensor without its raw data, up to where they begin."""
    if not t.HasField("raw_data"):
        return bytes(t.SerializeToString())
    head = TensorProto(name=t.name, data_type=t.data_type, dims=t.dims, doc_string=t.doc_string or None)
    head.metadata_props.extend(t.metadata_props)
    return bytes(head.SerializeToString()) + _tag(RAW) + _varint(bytes_of(t))


# -- the format ---------------------------------------------------------------------------------------------------
def _fields(data: memoryview, at: int, stop: int) -> Iterator[tuple[int, int, int, int]]:
    """(number, where its tag begins, where its value begins, where it ends) of each field."""
    while at < stop:
        start = at
        key, at = _read_varint(data, at, stop)
        kind, value = key & 7, at
        if kind == 0:
            _, at = _read_varint(data, at, stop)
        elif kind == 2:
            length, value = _read_varint(data, at, stop)
            at = value + length
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError(f"no field of a protobuf begins at byte {start}")
        if at > stop:
            raise ValueError(f"the field at byte {start} goes beyond the end")
        yield key >> 3, start, value, at


def _read_varint(data: memoryview, at: int, stop: int) -> tuple[int, int]:
    value = 0
    for i in range(min(10, stop - at)):
        value |= (data[at + i] & 127) << (7 * i)
        if data[at + i] < 128:
            return value, at + i + 1
    raise ValueError(f"no number at byte {at}")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _tag(number: int) -> bytes:
    return _varint(number << 3 | 2)
