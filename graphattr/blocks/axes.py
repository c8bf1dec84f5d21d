"""Where the elements of an axis go when a tensor is reshaped, transposed and cut.

An axis is a list of digits (origin, stride, size), most significant first: the index along the origin, divided by the stride,
modulo the size. Reshape splits and joins digits, so an axis that was cut, moved and put together again is seen to be the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..graph import Node, Value
from .probe import Probe


@dataclass(frozen=True)
class Digit:
    """`origin`: the axis it belongs to, and after a cut which part of it."""

    origin: tuple[str, ...]
    stride: int
    size: int


Axis = tuple[Digit, ...]


def whole(origin: str, size: int) -> Axis:
    """An axis that nothing has happened to."""
    return part((origin,), size)


def size_of(axis: Sequence[Digit]) -> int:
    total = 1
    for d in axis:
        total *= d.size
    return total


def joined(axis: Sequence[Digit]) -> Axis:
    """Neighbouring digits of one origin become one."""
    found: list[Digit] = []
    for d in axis:
        if found and found[-1].origin == d.origin and found[-1].stride == d.stride * d.size:
            d = Digit(d.origin, d.stride, found.pop().size * d.size)
        found.append(d)
    return tuple(found)


def reshaped(axes: Sequence[Axis], shape: Sequence[int]) -> list[Axis] | None:
    """The digits in order, cut into axes of these sizes; None where a cut falls inside a digit that does not divide."""
    left = [d for axis in axes for d in axis]
    found: list[Axis] = []
    for need in shape:
        taken: list[Digit] = []
        while need > 1:
            if not left:
                return None
            d = left.pop(0)
            if need % d.size and d.size % need == 0:
                left.insert(0, Digit(d.origin, d.stride, d.size // need))
                d = Digit(d.origin, d.stride * (d.size // need), need)
            if need % d.size:
                return None
            taken.append(d)
            need //= d.size
        found.append(joined(taken))
    return None if left else found


def through(node: Node, x: Value, y: Value, axes: Sequence[Axis], probe: Probe) -> list[Axis] | None:
    """The axes of y that a node makes of x; None where it does more than move and leave out."""
    shape, before = probe.shape(y), probe.shape(x)
    if shape is None or before is None or [size_of(a) for a in axes] != list(before):
        return None
    if node.op == "Transpose":
        return [axes[i] for i in node.attrs.get("perm") or reversed(range(len(axes)))]
    if node.op in ("Slice", "Split", "Gather"):
        return _cut(node, y, axes, shape, probe)
    if node.op in ("Reshape", "Flatten", "Squeeze", "Unsqueeze"):
        return reshaped(axes, shape)
    return list(axes) if shape == before else None


def _cut(node: Node, y: Value, axes: Sequence[Axis], shape: tuple[int, ...], probe: Probe) -> list[Axis] | None:
    """An axis of which only a part is left is a new one, known by where it was cut from."""
    if node.op == "Gather":
        axis, index = node.attrs.get("axis", 0) % len(axes), probe.array(node.inputs[1])
        if index is None or index.ndim > 1:
            return None
        if index.ndim == 0:
            return [*axes[:axis], *axes[axis + 1 :]]
    steps = probe.array(node.inputs[4]) if node.op == "Slice" and len(node.inputs) > 4 else None
    if steps is not None and (steps != 1).any():
        return None
    found: list[Axis] = []
    for i, (a, size) in enumerate(zip(axes, shape, strict=True)):
        origin = a[0].origin if len(a) == 1 else ("mixed",)
        found.append(a if size == size_of(a) and node.op != "Gather" else part((*origin, f"{y.name}:{i}"), size))
    return found


def part(origin: tuple[str, ...], size: int) -> Axis:
    return (Digit(origin, 1, size),) if size > 1 else ()
