"""Resize: a matrix per axis, and its adjoint is the transposed matrices. What they are, the operator itself says."""

from __future__ import annotations

import math

import numpy as np
from onnx import TensorProto

from ..errors import UnsupportedOp
from ..graph import Graph, Node, Value
from .elementwise import operands, typed_like
from .geometry import dims, extent
from .registry import vjp

SHARED = ("antialias", "coordinate_transformation_mode", "cubic_coeff_a", "exclude_outside", "mode", "nearest_mode")


@vjp("Resize")
def resize(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """y = x A along each resized axis, so dx = dy A^T; nearest by a whole factor sums the copies instead.

    Scales and roi are settings: as inputs of the model they have no cotangent, computed from one they are refused.
    """
    x = operands(n)[0]
    for i, what in ((1, "roi"), (2, "scales")):
        if i in n.needs and (setting := n.inputs[i]) is not None and g.producer(setting) is not None:
            raise UnsupportedOp(f"{n!r}: no derivative with respect to its {what}, computed from an input; make it a constant")
    targets = axis_targets(g, n, x, dy)
    factors = {a: whole_factor(x, dy, a, t) for a, t in targets.items()}
    if repeats(n) and all(factors.values()):
        return (sum_copies(g, dy, x, {a: f for a, f in factors.items() if f is not None}),)
    for a, target in targets.items():
        dy = contracted(g, dy, interpolation(g, n, x, dy, a, target), a)
    return (dy,)


def axis_targets(g: Graph, n: Node, x: Value, y: Value) -> dict[int, Value]:
    """Each resized axis with its scale (float) or its size (int64), one element.

    An axis that keeps its size is not resized: ONNX Runtime does not crop it either (tf_crop_and_resize).
    """
    (scales, sizes), axes = settings(n), axes_of(n, x)
    given = scales if scales is not None else sizes
    if given is None:
        raise UnsupportedOp(f"{n!r} has neither scales nor sizes")
    if scales is not None and scales.data is not None:
        return {a: g.const(scales.data[i:i + 1]) for i, a in enumerate(axes) if scales.data[i] != 1}
    return {a: g.Slice(given, [i], [i + 1]) for i, a in enumerate(axes) if keeps_aspect(n) or dims(x)[a] != dims(y)[a]}


def settings(n: Node) -> tuple[Value | None, Value | None]:
    """(scales, sizes), of which one is used."""
    scales, sizes = (*n.inputs[2:], None, None)[:2]
    return (scales, None) if scales is not None and scales.shape != (0,) else (None, sizes)


def axes_of(n: Node, x: Value) -> list[int]:
    return [a % x.rank for a in n.attrs.get("axes") or range(x.rank)]


def keeps_aspect(n: Node) -> bool:
    """Whether the sizes are bounds, and all axes have one scale."""
    return settings(n)[0] is None and n.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch"


def whole_factor(x: Value, y: Value, axis: int, target: Value) -> int | None:
    """The whole number by which an axis grows, if it is known to."""
    size, out, factor = dims(x)[axis], dims(y)[axis], 0.0
    if target.dtype != np.int64:
        factor = 0.0 if target.data is None else float(target.data[0])
    elif isinstance(size, int) and isinstance(out, int) and size:
        factor = out / size
    return int(factor) if factor >= 1 and factor == int(factor) else None


def repeats(n: Node) -> bool:
    """Whether a whole factor f makes f copies of each element: output j reads input floor(j / f)."""
    mode, a = n.attrs.get("coordinate_transformation_mode", "half_pixel"), n.attrs
    rounds = a.get("nearest_mode", "round_prefer_floor")
    centred = mode in ("half_pixel", "pytorch_half_pixel") and rounds.startswith("round")
    copies = a.get("mode", "nearest") == "nearest" and (centred or (mode == "asymmetric" and rounds == "floor"))
    return bool(copies and not keeps_aspect(n))


def sum_copies(g: Graph, dy: Value, x: Value, factors: dict[int, int]) -> Value:
    """Each resized axis of dy is taken as (size, factor), and summed over the factor."""
    split, copies = [], []
    for a in range(x.rank):
        split.append(extent(g, x, a))
        if a in factors:
            copies.append(len(split))
            split.append(g.const([factors[a]]))
    if not copies:
        return dy
    return g.emit("ReduceSum", g.Reshape(dy, g.Concat(*split, axis=0)), copies, keepdims=0, out_shape=x.shape)


def interpolation(g: Graph, n: Node, x: Value, y: Value, axis: int, target: Value) -> Value:
    """A, (size, new size): what the very same Resize makes of the identity."""
    size, shape = extent(g, x, axis), (dims(x)[axis], dims(y)[axis])
    kind = TensorProto.DOUBLE if x.dtype == np.float64 else TensorProto.FLOAT  # EyeLike has no float16
    eye = typed_like(g, g.EyeLike(g.ConstantOfShape(g.Concat(size, size, axis=0)), dtype=kind), x)
    attrs = {k: n.attrs[k] for k in SHARED if k in n.attrs}
    if keeps_aspect(n):
        was, becomes = decisive(g, n, x)
        planes = g.Expand(g.Unsqueeze(eye, [0, 2]), g.Concat([1], size, was, size, axis=0))
        made = g.Resize(planes, crop(g, n, x, axis, 1), None, g.Concat(becomes, target, axis=0), axes=[2, 3],
                        keep_aspect_ratio_policy=n.attrs["keep_aspect_ratio_policy"], **attrs)
        return g.emit("Squeeze", g.Slice(made, [0], [1], [2]), [0, 2], out_shape=shape)
    by_size = target.dtype == np.int64
    by = g.Concat(*([[1, 1], size] if by_size else [g.const([1, 1, 1], target.dtype)]), target, axis=0)
    made = g.emit("Resize", g.Unsqueeze(eye, [0, 1]), crop(g, n, x, axis, 3), *([None, by] if by_size else [by]),
                  out_shape=(1, 1, *shape), **attrs)
    return g.emit("Squeeze", made, [0, 1], out_shape=shape)


def crop(g: Graph, n: Node, x: Value, axis: int, others: int) -> Value | None:
    """The roi for the axis behind `others` that are whole; None where no roi is read."""
    if n.attrs.get("coordinate_transformation_mode") != "tf_crop_and_resize":
        return None
    roi, axes = n.inputs[1], axes_of(n, x)
    if roi is None:
        raise UnsupportedOp(f"{n!r}: coordinate_transformation_mode 'tf_crop_and_resize' needs a roi")
    i = axes.index(axis)
    start, end = (g.Slice(roi, [j], [j + 1]) for j in (i, i + len(axes)))
    return g.Concat(g.const([0] * others, roi.dtype), start, g.const([1] * others, roi.dtype), end, axis=0)


def decisive(g: Graph, n: Node, x: Value) -> tuple[Value, Value]:
    """Size and new size along the axis that decides the scale of all; in lowest terms where they are known."""
    sizes, lowest = settings(n)[1], n.attrs["keep_aspect_ratio_policy"] == "not_larger"
    assert sizes is not None
    was = g.Concat(*(extent(g, x, a) for a in axes_of(n, x)), axis=0)
    if was.data is not None and sizes.data is not None:
        ratios = sizes.data.astype(np.float32) / was.data.astype(np.float32)
        i = int(np.argmin(ratios) if lowest else np.argmax(ratios))
        q, p = int(was.data[i]), int(sizes.data[i])
        return g.const([q // math.gcd(q, p)]), g.const([p // math.gcd(q, p)])
    ratio = g.Cast(sizes, to=TensorProto.FLOAT) / g.Cast(was, to=TensorProto.FLOAT)
    which = g.emit("ArgMin" if lowest else "ArgMax", ratio, axis=0)
    return g.Gather(was, which), g.Gather(sizes, which)


def contracted(g: Graph, dy: Value, matrix: Value, axis: int) -> Value:
    """dy A^T along an axis."""
    rank, shape = dy.rank, list(dims(dy))
    shape[axis] = dims(matrix)[0]
    if axis == rank - 2:
        return g.emit("MatMul", matrix, dy, out_shape=tuple(shape))
    swap = list(range(rank))
    swap[axis], swap[-1] = rank - 1, axis
    turned = dy if axis == rank - 1 else g.Transpose(dy, perm=swap)
    made = g.emit("MatMul", turned, g.Transpose(matrix, perm=[1, 0]), out_shape=tuple(shape[a] for a in swap))
    return made if axis == rank - 1 else g.emit("Transpose", made, perm=swap, out_shape=tuple(shape))
