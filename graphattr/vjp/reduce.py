"""Reductions and running sums. A maximum belongs to its first element in row-major order."""

from __future__ import annotations

import numpy as np

from ..errors import UnsupportedOp
from ..graph import Graph, Node, Operand, Value
from .elementwise import operands, typed_like
from .registry import vjp


# -- axes ---------------------------------------------------------------------------------------------------------
def axes_of(n: Node) -> Value | list[int] | None:
    """The axes a reduction runs over, in either spelling: a list where they are known, None for all, or a value of the run."""
    if "axes" in n.attrs:
        return list(n.attrs["axes"]) or None
    axes = n.inputs[1] if len(n.inputs) > 1 else None
    return axes if axes is None or axes.data is None else axes.data.tolist() or None


def known_axes(n: Node) -> list[int]:
    """The axes as sorted non-negative numbers; UnsupportedOp where only the run can tell."""
    (x, *_), axes = operands(n), axes_of(n)
    if isinstance(axes, Value):
        raise UnsupportedOp(f"the axes of {n.op} node {n.name!r} are computed at run time; its derivative needs constant axes")
    return list(range(x.rank)) if axes is None else sorted(a % x.rank for a in axes)


def is_noop(n: Node) -> bool:
    """No axes are given, and the node asks for the identity then."""
    return bool(n.attrs.get("noop_with_empty_axes")) and axes_of(n) is None


def restored(g: Graph, n: Node, v: Value) -> Value:
    """A value shaped like the reduction's output, with the reduced axes back as axes of size 1."""
    if n.attrs.get("keepdims", 1) or is_noop(n):
        return v
    axes = axes_of(n)
    return g.Unsqueeze(v, known_axes(n) if axes is None else axes)


def reduction(g: Graph, op: str, x: Value, axes: list[int], keepdims: int = 1) -> Value:
    """A reduction in the spelling of the graph's opset: axes are an attribute before 18, an input of ReduceSum since 13."""
    if g.opset >= 18 or op == "ReduceSum":
        return g.emit(op, x, axes, keepdims=keepdims)
    return g.emit(op, x, axes=axes, keepdims=keepdims)


def count(g: Graph, x: Value, axes: Value | list[int] | None) -> Operand:
    """The number of elements that are reduced to one: a number where it is static."""
    sizes = g.shape(x) if axes is None else g.Gather(g.shape(x), axes)
    size = g.ReduceProd(sizes, keepdims=0)
    return float(size.content) if isinstance(size.content, int) else typed_like(g, size, x)


def steps(g: Graph, x: Value, axis: int) -> Value:
    """0, 1, 2, ... along an axis."""
    assert x.shape is not None
    size = x.shape[axis]
    if isinstance(size, int):
        return g.const(np.arange(size))
    return g.Range(0, g.Gather(g.shape(x), g.const(axis, "int64")), 1)


# -- sums ---------------------------------------------------------------------------------------------------------
@vjp("ReduceSum")
def reduce_sum(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """dx = dy for every summand."""
    x, *_ = operands(n)
    return (g.Expand(restored(g, n, dy), g.shape(x)),)


@vjp("ReduceMean")
def reduce_mean(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """dx = dy / count."""
    x, *_ = operands(n)
    if is_noop(n):
        return (dy,)
    return (g.Expand(restored(g, n, dy / count(g, x, axes_of(n))), g.shape(x)),)


@vjp("ReduceL1")
def reduce_l1(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """dx = dy sign(x)."""
    x, *_ = operands(n)
    return (restored(g, n, dy) * g.Sign(x),)


@vjp("ReduceL2")
def reduce_l2(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """dx = dy x / y, and 0 at x = 0."""
    (x, *_), y = operands(n), n.outputs[0]
    zero = g.Equal(y, 0.0)
    return (restored(g, n, g.Where(zero, 0.0, dy / g.Where(zero, 1.0, y))) * x,)


@vjp("ReduceSumSquare")
def reduce_sum_square(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """dx = 2 x dy."""
    x, *_ = operands(n)
    return (2.0 * restored(g, n, dy) * x,)


@vjp("ReduceLogSum")
def reduce_log_sum(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """dx = dy e^-y."""
    x, *_ = operands(n)
    return (g.Expand(restored(g, n, dy * g.Exp(-n.outputs[0])), g.shape(x)),)


@vjp("ReduceLogSumExp")
def reduce_log_sum_exp(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """dx = dy e^(x - y)."""
    x, *_ = operands(n)
    return (restored(g, n, dy) * g.Exp(x - restored(g, n, n.outputs[0])),)


@vjp("CumSum")
def cumsum(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """dx = the running sum of dy from the other end."""
    return (g.CumSum(dy, n.inputs[1], exclusive=n.attrs.get("exclusive", 0), reverse=1 - n.attrs.get("reverse", 0)),)


# -- extrema and products: the reduced axes are brought to the end and flattened into one ---------------------------
def flattened(g: Graph, x: Value, axes: list[int]) -> Value:
    """x (..., K) with the reduced axes moved to the end and made one."""
    kept = [a for a in range(x.rank) if a not in axes]
    return g.Reshape(g.Transpose(x, perm=kept + axes), [0] * len(kept) + [-1])


def unflattened(g: Graph, v: Value, x: Value, axes: list[int]) -> Value:
    """The inverse of `flattened`."""
    perm = [a for a in range(x.rank) if a not in axes] + axes
    v = g.Reshape(v, g.shape(g.Transpose(x, perm=perm)))
    return g.Transpose(v, perm=[perm.index(a) for a in range(x.rank)])


@vjp("ReduceMax", "ReduceMin")
def reduce_extremum(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """dx = dy at the first element that is the maximum, else 0."""
    (x, *_), axes = operands(n), known_axes(n)
    if is_noop(n) or not axes:
        return (dy,)
    flat = flattened(g, x, axes)
    first = g.emit("ArgMax" if n.op == "ReduceMax" else "ArgMin", flat, axis=-1, keepdims=1)
    wins = unflattened(g, g.Equal(steps(g, flat, -1), first), x, axes)
    return (g.Where(wins, restored(g, n, dy), 0.0),)


@vjp("ReduceProd")
def reduce_prod(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """dx = dy times the product of the other elements, which is formed for each element: exact at zeros, quadratic in size."""
    (x, *_), axes = operands(n), known_axes(n)
    if is_noop(n) or not axes:
        return (dy,)
    flat = flattened(g, x, axes)
    k = steps(g, flat, -1)
    others = g.Where(g.Equal(k, g.Unsqueeze(k, [1])), 1.0, g.Unsqueeze(flat, [-2]))
    return (restored(g, n, dy) * unflattened(g, reduction(g, "ReduceProd", others, [-1], keepdims=0), x, axes),)
