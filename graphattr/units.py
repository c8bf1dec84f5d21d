"""A linear layer's weight as a matrix: one row per unit, its weights in the order of the patch that the unit reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .errors import UnsupportedOp
from .graph import Array, Node
from .layers import Layer
from .vjp.linear import subscripts


@dataclass(frozen=True)
class Units:
    """`axes`: the axes of the layer's product that number the units, counted from the end. `rows`: a weight -> (units, weights
    of a unit); `back`: the other way."""

    axes: tuple[int, ...]
    rows: Callable[[Array], Array]
    back: Callable[[Array], Array]


def units_of(layer: Layer) -> Units:
    """Which axes of a linear layer's output number its units, and how its weight becomes one row per unit."""
    node = layer.nodes[0]
    at = next(i for i, v in enumerate(node.inputs) if v is layer.x)
    w, y = layer.w, node.outputs[0]
    if w is None or w.shape is None or not all(isinstance(d, int) for d in w.shape) or y.shape is None or layer.x.shape is None:
        raise UnsupportedOp(f"layer {layer.name!r} ({layer.op}): its weight or output has no known shape, so it has no patterns")
    shape = tuple(d for d in w.shape if isinstance(d, int))
    if node.op == "ConvTranspose":
        return _transposed(shape, int(node.attrs.get("group", 1)), y.rank)
    unit = dict(sorted(_unit_axes(node, at, len(shape), y.rank).items(), key=lambda pair: pair[1]))
    patch = [a for a in range(len(shape)) if a not in unit]
    order = [*unit, *patch]
    sizes = [shape[a] for a in order]
    count = math.prod(sizes[: len(unit)])
    return Units(
        tuple(a - y.rank for a in unit.values()),
        lambda v: v.transpose(order).reshape(count, -1),
        lambda m: m.reshape(sizes).transpose(_inverse(order)),
    )


def _unit_axes(node: Node, at: int, rank: int, y_rank: int) -> dict[int, int]:
    """Axis of the weight -> axis of the output, for the axes that number units. `at`: which operand is the data."""
    if node.op == "Conv":
        return {0: 1}
    if node.op == "Gemm":
        turned = bool(node.attrs.get("transA" if at == 1 else "transB", 0))
        return {int(not turned): y_rank - 1} if at == 0 else {int(turned): y_rank - 2}
    if node.op == "MatMul":
        return _of_product(node, at, rank, y_rank)
    terms, out = subscripts(node)
    letters = terms[1 - at]
    if len(set(letters)) < len(letters):
        raise UnsupportedOp(f"{node!r}: the weight repeats an index in {node.attrs['equation']!r}; patterns of it are not known")
    return {a: out.index(c) for a, c in enumerate(letters) if c in out}


def _of_product(node: Node, at: int, rank: int, y_rank: int) -> dict[int, int]:
    """x W: columns of W; W x: rows of W; leading axes of W number units, too, where they are longer than 1."""
    x, w = node.inputs[at], node.inputs[1 - at]
    assert x is not None
    assert w is not None
    assert w.shape is not None
    if x.rank < 2:
        raise UnsupportedOp(f"{node!r}: its data {x.name!r} has one axis, so there are no samples to learn from")
    own = {} if rank < 2 else {rank - 1 if at == 0 else rank - 2: y_rank - 1 if at == 0 else y_rank - 2}
    return {a: y_rank - rank + a for a in range(rank - 2) if w.shape[a] != 1} | own


def _transposed(shape: Sequence[int], group: int, y_rank: int) -> Units:
    """ConvTranspose, w [C, M/g, k]: unit m of group i reads the channels of group i, so a row is [C/g, k]."""
    c, m, *kernel = shape
    split = (group, c // group, m, *kernel)
    axes = [0, 2, 1, *range(3, len(split))]
    sizes = [split[a] for a in axes]
    return Units(
        (1 - y_rank,),
        lambda v: v.reshape(split).transpose(axes).reshape(group * m, -1),
        lambda r: r.reshape(sizes).transpose(_inverse(axes)).reshape(shape),
    )


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)
