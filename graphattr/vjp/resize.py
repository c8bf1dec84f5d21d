"""Resize: a matrix per axis, and its adjoint is the transposed matrices."""

from __future__ import annotations

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
    """y = x A along each resized axis, so dx = dy A^T; nearest by a whole factor sums the copies instead."""
    x = operands(n)[0]
    if n.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise UnsupportedOp(f"{n!r}: no derivative for coordinate_transformation_mode 'tf_crop_and_resize'")
    if n.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise UnsupportedOp(f"{n!r}: no derivative for keep_aspect_ratio_policy; give the sizes it arrives at")
    targets = axis_targets(g, n, x, dy)
    factors = {a: whole_factor(x, dy, a, t) for a, t in targets.items()}
    if repeats(n) and all(factors.values()):
        return (sum_copies(g, dy, x, {a: f for a, f in factors.items() if f is not None}),)
    for a, target in targets.items():
        dy = contracted(g, dy, interpolation(g, n, x, dy, a, target), a)
    return (dy,)


def axis_targets(g: Graph, n: Node, x: Value, y: Value) -> dict[int, Value]:
    """Each resized axis with its scale (float) or its size (int64), one element."""
    scales, sizes = (*n.inputs[2:], None, None)[:2]
    by_scale = scales is not None and scales.shape != (0,)
    given = scales if by_scale else sizes
    if given is None:
        raise UnsupportedOp(f"{n!r} has neither scales nor sizes")
    axes = [a % x.rank for a in n.attrs.get("axes") or range(x.rank)]
    if by_scale and given.data is not None:
        return {a: g.const(given.data[i:i + 1]) for i, a in enumerate(axes) if given.data[i] != 1}
    return {a: g.Slice(given, [i], [i + 1]) for i, a in enumerate(axes) if dims(x)[a] != dims(y)[a]}


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
    return bool(a.get("mode", "nearest") == "nearest" and (centred or (mode == "asymmetric" and rounds == "floor")))


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
    size = extent(g, x, axis)
    kind = TensorProto.DOUBLE if x.dtype == np.float64 else TensorProto.FLOAT  # EyeLike has no float16
    eye = g.Unsqueeze(typed_like(g, g.EyeLike(g.ConstantOfShape(g.Concat(size, size, axis=0)), dtype=kind), x), [0, 1])
    attrs = {k: n.attrs[k] for k in SHARED if k in n.attrs}
    by_size = target.dtype == np.int64
    by = g.Concat(*([[1, 1], size] if by_size else [g.const([1, 1, 1], target.dtype)]), target, axis=0)
    made = g.emit("Resize", eye, None, *([None, by] if by_size else [by]), out_shape=(1, 1, dims(x)[axis], dims(y)[axis]),
                  **attrs)
    return g.emit("Squeeze", made, [0, 1], out_shape=(dims(x)[axis], dims(y)[axis]))


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
