"""Types and shapes of a node's outputs, by `onnx.shape_inference.infer_node_outputs`.

Two things are added where ONNX leaves an axis open and the answer is certain: the elements of small integer
tensors are followed through shape arithmetic (Shape, Gather, Concat ...), and a convolution or pooling over a symbolic
axis names its result after the input axis, so that two equal paths have equal names.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import onnx
from onnx import helper, numpy_helper

from .contents import Content, Dim, content_after
from .errors import BuildError

if TYPE_CHECKING:
    from .value import Value

Shape: TypeAlias = tuple[Dim, ...]
Inferred: TypeAlias = tuple[np.dtype[Any] | None, Shape | None, Content]

SIMILAR_OUTPUTS = {"MaxPool", "Split"}
WINDOWED = {"Conv", "MaxPool", "AveragePool", "LpPool"}
_cache: dict[Any, list[tuple[np.dtype[Any] | None, Shape | None]]] = {}


@functools.cache
def schema_of(op: str, domain: str, opset: int) -> Any:
    """The operator's schema, or None when ONNX does not know it."""
    try:
        return onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return None


def infer(
    op: str,
    domain: str,
    opset: int,
    inputs: Sequence[Value | None],
    attrs: Mapping[str, Any],
    n_outputs: int,
    strict: bool,
) -> list[Inferred]:
    """(dtype, shape, content) per output. `strict` raises BuildError on an illegal node; otherwise it stays unknown."""
    unknown: list[Inferred] = [(None, None, None)] * n_outputs
    schema = schema_of(op, "" if domain == "ai.onnx" else domain, opset) if domain in ("", "ai.onnx") else None
    if schema is None or any(v is not None and v.dtype is None for v in inputs):
        return unknown
    if any(_is_body(a) for a in attrs.values()):
        return _of_bodies(op, inputs, attrs, n_outputs)
    key = _key(op, opset, inputs, attrs, n_outputs)
    if key is None or key not in _cache:
        try:
            types = _infer(schema, op, opset, inputs, attrs, n_outputs)
        except Exception as e:
            if not strict:
                return unknown
            listing = ", ".join(repr(v) for v in inputs)
            raise BuildError(f"{op}({listing}; {dict(attrs)}) is not legal ONNX at opset {opset}: {e}") from e
        if key is not None:
            _cache[key] = types
    else:
        types = _cache[key]
    content = content_after(op, inputs, attrs)
    return [
        (dtype, _certain(op, inputs, attrs, shape) if i == 0 or op in SIMILAR_OUTPUTS else shape, content if i == 0 else None)
        for i, (dtype, shape) in enumerate(types)
    ]


def _key(op: str, opset: int, inputs: Sequence[Value | None], attrs: Mapping[str, Any], n_outputs: int) -> Any:
    """What the result depends on; None when it is not worth remembering."""
    try:
        items = tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in attrs.items()))
        key = (
            op,
            opset,
            n_outputs,
            items,
            tuple(None if v is None else (v.dtype, v.shape, v.content, _small(v)) for v in inputs),
        )
        hash(key)
    except TypeError:
        return None
    return key


def _small(v: Value) -> bytes | None:
    """Elements of a constant that a shape may depend on (axes, scales, sizes)."""
    if v.is_const and v.shape is not None and len(v.shape) <= 1 and all(isinstance(d, int) and d <= 64 for d in v.shape):
        data = v.data
        return None if data is None else bytes(data.tobytes())
    return None


def _numbers(v: Value) -> np.ndarray[Any, Any] | None:
    """The elements of a computed integer tensor where shape arithmetic knows them all."""
    held = v.content if isinstance(v.content, tuple) else (v.content,)
    return np.asarray(v.content, v.dtype) if all(isinstance(d, int) for d in held) else None


def _infer(
    schema: Any, op: str, opset: int, inputs: Sequence[Value | None], attrs: Mapping[str, Any], n_outputs: int
) -> list[tuple[np.dtype[Any] | None, Shape | None]]:
    names = [f"i{i}" if v is not None else "" for i, v in enumerate(inputs)]
    node = helper.make_node(op, names, [f"o{i}" for i in range(n_outputs)])
    for k, v in attrs.items():
        node.attribute.append(v if isinstance(v, onnx.AttributeProto) else make_attribute(k, v, schema))
    types, data = {}, {}
    for name, v in zip(names, inputs, strict=True):
        if v is not None:
            assert v.dtype is not None
            shape = (
                None if v.shape is None else [d if isinstance(d, int) or (d and not d.startswith("?")) else None for d in v.shape]
            )
            types[name] = helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(v.dtype), shape)
            known = np.asarray(v.data) if _small(v) is not None else _numbers(v)
            if known is not None:
                data[name] = numpy_helper.from_array(known, name)
    found = onnx.shape_inference.infer_node_outputs(schema, node, types, data or None, None, [helper.make_opsetid("", opset)], 10)
    return [read_type(found.get(o)) for o in node.output]


def _is_body(attr: Any) -> bool:
    return hasattr(attr, "captured")


def _of_bodies(op: str, inputs: Sequence[Value | None], attrs: Mapping[str, Any], n_outputs: int) -> list[Inferred]:
    """An If has what both branches agree on; a Loop's and a Scan's state what its first value and the body agree on."""
    bodies = [[v for _, v in a.outputs] for a in attrs.values() if _is_body(a)]
    if op == "If":
        found = [_agreed(same) for same in zip(*bodies, strict=False)]
        return (found + [(None, None, None)] * n_outputs)[:n_outputs]
    shown = bodies[0][1:] if op == "Loop" else bodies[0]
    inits = [v for v in (inputs[2:] if op == "Loop" else inputs[: len(inputs) - attrs["num_scan_inputs"]]) if v is not None]
    axes = attrs.get("scan_output_axes") or [0] * len(shown)
    steps = None if op == "Loop" else _steps(inputs[len(inits) :], attrs)
    return [
        _agreed([v, inits[i]]) if i < len(inits) else (v.dtype, _with_axis(v.shape, axes[i - len(inits)], steps), None)
        for i, v in enumerate(shown[:n_outputs])
    ]


def _agreed(same: Sequence[Value]) -> Inferred:
    """The type that several values have in common."""
    dtypes, shapes = {v.dtype for v in same}, [v.shape for v in same if v.shape is not None]
    shape: Shape | None = None
    if len(shapes) == len(same) and len({len(s) for s in shapes}) == 1:
        shape = tuple(dims[0] if len(set(dims)) == 1 else None for dims in zip(*shapes, strict=True))
    return dtypes.pop() if len(dtypes) == 1 else None, shape, None


def _steps(xs: Sequence[Value | None], attrs: Mapping[str, Any]) -> Dim:
    """The number of steps of a Scan."""
    axes = attrs.get("scan_input_axes") or [0] * len(xs)
    found = [v.shape[axis] for v, axis in zip(xs, axes, strict=True) if v is not None and v.shape is not None]
    return next((d for d in found if isinstance(d, int)), found[0] if found else None)


def _with_axis(shape: Shape | None, axis: int, size: Dim) -> Shape | None:
    if shape is None:
        return None
    at = axis % (len(shape) + 1)
    return (*shape[:at], size, *shape[at:])


def make_attribute(name: str, value: Any, schema: Any = None) -> onnx.AttributeProto:
    """An AttributeProto; the schema decides the type of empty lists and of ints given for floats."""
    if isinstance(value, np.ndarray):
        return helper.make_attribute(name, numpy_helper.from_array(value))
    kind = None
    if schema is not None:
        if name not in schema.attributes:
            raise BuildError(f"unrecognised attribute {name!r} for operator {schema.name!r}")
        kind = int(schema.attributes[name].type)
    if isinstance(value, tuple):
        value = list(value)
    if kind == onnx.AttributeProto.FLOAT or kind == onnx.AttributeProto.FLOATS:
        value = [float(v) for v in value] if isinstance(value, list) else float(value)
    return helper.make_attribute(name, value, attr_type=kind)


def read_type(proto: Any) -> tuple[np.dtype[Any] | None, Shape | None]:
    """(dtype, shape) of a TypeProto; a non-tensor or missing one is (None, None)."""
    if proto is None or not proto.HasField("tensor_type") or not proto.tensor_type.elem_type:
        return None, None
    t = proto.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(t.elem_type)
    if not t.HasField("shape"):
        return dtype, None
    return dtype, tuple(_size(d) for d in t.shape.dim)


def _size(dim: Any) -> int | str | None:
    """A number, a name, or None; Paddle writes -1 for what it does not know."""
    if dim.HasField("dim_value"):
        return int(dim.dim_value) if dim.dim_value >= 0 else None
    return str(dim.dim_param) or None


def shape_text(shape: Shape | None) -> str:
    """A shape for people: (N, 3, ?, ?)."""
    if shape is None:
        return "?"
    dims = [str(d) if isinstance(d, int) or (d and not d.startswith("_")) else "?" for d in shape]
    return f"({dims[0]},)" if len(dims) == 1 else f"({', '.join(dims)})"


# -- what ONNX leaves open ----------------------------------------------------------------------------------------
def _certain(op: str, inputs: Sequence[Value | None], attrs: Mapping[str, Any], shape: Shape | None) -> Shape | None:
    """Fill in axes that follow from contents (Reshape, Expand, ConstantOfShape) or from a named input axis (windows)."""
    if op == "ConstantOfShape" and inputs[0] is not None and isinstance(inputs[0].content, tuple):
        return inputs[0].content
    x = inputs[0] if inputs else None
    if x is None or x.shape is None:
        return shape
    target = inputs[1].content if len(inputs) > 1 and inputs[1] is not None else None
    if op == "Reshape" and isinstance(target, tuple):
        return _reshaped(x.shape, target, bool(attrs.get("allowzero", 0)), shape)
    if op == "Expand" and isinstance(target, tuple):
        return _broadcast(x.shape, target)
    if shape is None and (rank := _rank(op, len(x.shape), inputs, attrs)) is not None:
        shape = (None,) * rank
    if op == "DFT" and (shape is None or (not isinstance(target, int) and any(v is not None for v in inputs[1:2]))):
        return (None,) * (len(x.shape) - 1) + (1 if attrs.get("inverse") and attrs.get("onesided") else 2,)
    if op == "STFT":  # ONNX's inference takes a missing `onesided` for 0, and above ignores a length of the run
        return (x.shape[0], shape[1] if shape else None, shape[2] if shape and "onesided" in attrs else None, 2)
    if op == "Resize" and shape is not None:
        return _resized(x.shape, inputs, attrs, shape)
    if op in WINDOWED and shape is not None and (None in shape or attrs.get("ceil_mode")):
        kernel = attrs.get("kernel_shape") or (
            inputs[1].shape[2:] if op == "Conv" and inputs[1] is not None and inputs[1].shape else None
        )
        if kernel and all(isinstance(k, int) for k in kernel):
            return tuple(_window(x.shape[i], d, i - 2, kernel, attrs) if i >= 2 else d for i, d in enumerate(shape))
    return shape


def _rank(op: str, rank: int, inputs: Sequence[Value | None], attrs: Mapping[str, Any]) -> int | None:
    """The rank of the result where the axes are known by their number only."""
    reduces = op.startswith("Reduce")
    if op in ("CenterCropPad", "Pad", "Split") or (reduces and attrs.get("keepdims", 1)):
        return rank
    axes = inputs[1] if len(inputs) > 1 else None
    count = axes.shape[0] if axes is not None and axes.shape else None
    if not isinstance(count, int) or not count or not (reduces or op in ("Squeeze", "Unsqueeze")):
        return None
    return rank + count if op == "Unsqueeze" else rank - count


def _reshaped(source: Shape, target: tuple[Dim, ...], allowzero: bool, inferred: Shape | None) -> Shape:
    dims = [source[i] if d == 0 and not allowzero and i < len(source) else d for i, d in enumerate(target)]
    if -1 in dims:
        open_axes, rest = [d for d in source if not isinstance(d, int)], [d for d in dims if not isinstance(d, int)]
        have = int(np.prod([d for d in source if isinstance(d, int)], dtype=np.int64))
        fixed = int(np.prod([d for d in dims if isinstance(d, int) and d != -1], dtype=np.int64))
        at = dims.index(-1)
        for d in rest:
            if d in open_axes:
                open_axes.remove(d)
                rest = [r for r in rest if r is not d]
        if not open_axes and not rest and fixed:
            dims[at] = have // fixed
        elif len(open_axes) == 1 and not rest and have == fixed:
            dims[at] = open_axes[0]
        else:
            dims[at] = inferred[at] if inferred is not None and len(inferred) == len(dims) else None
    return tuple(dims)


def _broadcast(a: Shape, b: Shape) -> Shape:
    rank = max(len(a), len(b))
    a, b = (1,) * (rank - len(a)) + a, (1,) * (rank - len(b)) + b
    return tuple(
        q if p == 1 else p if q == 1 or p == q or isinstance(p, int) else q if isinstance(q, int) else None
        for p, q in zip(a, b, strict=True)
    )


def _resized(source: Shape, inputs: Sequence[Value | None], attrs: Mapping[str, Any], shape: Shape) -> Shape:
    """Axes of scale 1 keep their name; axes of a known size take it."""
    dims, (scales, sizes) = list(shape), (*inputs[2:], None, None)[:2]
    factors = scales.data.tolist() if scales is not None and scales.data is not None else []
    known = sizes.content if sizes is not None and isinstance(sizes.content, tuple) else ()
    for i, axis in enumerate(attrs.get("axes") or range(len(source))):
        if dims[axis] is None and i < len(factors):
            dims[axis] = source[axis] if factors[i] == 1 else None
        elif dims[axis] is None and i < len(known) and attrs.get("keep_aspect_ratio_policy", "stretch") == "stretch":
            dims[axis] = known[i]
    return tuple(dims)


def _window(size: Dim, inferred: Dim, axis: int, kernel: Sequence[Any], attrs: Mapping[str, Any]) -> Dim:
    """A windowed axis: the input's name when the size is kept, else one that spells the geometry.

    With ceil_mode no window starts behind the last element: ONNX's own inference says so only since opset 22.
    """
    rank = len(kernel)
    s, begin, end = (attrs.get("strides") or [1] * rank)[axis], *_pads(axis, rank, attrs)
    reach = (kernel[axis] - 1) * (attrs.get("dilations") or [1] * rank)[axis]
    same = attrs.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER")
    ceil = bool(attrs.get("ceil_mode")) and not same
    if isinstance(inferred, int) or not isinstance(size, str):
        return (
            min(inferred, (size + begin - 1) // s + 1)
            if ceil and isinstance(inferred, int) and isinstance(size, int)
            else inferred
        )
    if same:
        return size if s == 1 else f"ceil({size}/{s})"
    grow = begin + end - reach
    if s == 1:
        return size if grow == 0 else f"({size}{grow:+d})"
    name = f"{'ceil' if ceil else 'floor'}(({size}{grow - 1:+d})/{s})+1"
    return f"min({name},ceil(({size}{begin:+d})/{s}))" if ceil and end - reach > 1 - s else name


def _pads(axis: int, rank: int, attrs: Mapping[str, Any]) -> tuple[int, int]:
    pads = attrs.get("pads") or [0] * (2 * rank)
    return (0, 0) if attrs.get("auto_pad", "NOTSET") != "NOTSET" else (pads[axis], pads[axis + rank])
