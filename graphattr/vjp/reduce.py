"""Reductions and running sums. A maximum belongs to its first element in row-major order."""

from __future__ import annotations

import dataclasses

import numpy as np

from ..errors import UnsupportedOp
from ..graph import Graph, Node, Operand, Value
from .elementwise import operands, typed_like
from .index import count, flat, is_empty, positions, reshaped, zeros_like
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
    axes, (x, *_) = axes_of(n), operands(n)
    return g.emit("Unsqueeze", v, list(range(x.rank)) if axes is None else axes, out_shape=(None,) * x.rank)


def reduction(g: Graph, op: str, x: Value, axes: list[int], keepdims: int = 1) -> Value:
    """A reduction in the spelling of the graph's opset: axes are an attribute before 18, an input of ReduceSum since 13."""
    if g.opset >= 18 or op == "ReduceSum":
        return g.emit(op, x, axes, keepdims=keepdims)
    return g.emit(op, x, axes=axes, keepdims=keepdims)


def extent_of(g: Graph, x: Value, axes: list[int] | None) -> Operand:
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


def along(g: Graph, v: Value, axis: int, rank: int) -> Value:
    """A vector as a tensor of `rank` axes, all of size 1 but one."""
    return g.Reshape(v, [-1 if a == axis else 1 for a in range(rank)])


# -- sums ---------------------------------------------------------------------------------------------------------
@vjp("ReduceSum")
def reduce_sum(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """dx = dy for every summand."""
    x, *_ = operands(n)
    return (g.Expand(restored(g, n, dy), g.shape(x)),)


@vjp("ReduceMean")
def reduce_mean(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """dx = dy / count."""
    (x, *_), axes = operands(n), axes_of(n)
    if is_noop(n):
        return (dy,)
    size = typed_like(g, g.Div(g.Size(x), g.Size(dy)), dy) if isinstance(axes, Value) else extent_of(g, x, axes)
    return (g.Expand(restored(g, n, dy / size), g.shape(x)),)


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


# -- extrema and products: what is reduced to one is brought into one row ------------------------------------------
@dataclasses.dataclass(frozen=True)
class Rows:
    """x as rows (.., K) that are reduced to one each, and back."""

    g: Graph
    x: Value
    axes: list[int]

    def flattened(self) -> Value:
        """The reduced axes are moved to the end and made one."""
        kept = [a for a in range(self.x.rank) if a not in self.axes]
        return self.g.Reshape(self.g.Transpose(self.x, perm=kept + self.axes), [0] * len(kept) + [-1])

    def unflattened(self, v: Value) -> Value:
        perm = [a for a in range(self.x.rank) if a not in self.axes] + self.axes
        v = self.g.Reshape(v, self.g.shape(self.g.Transpose(self.x, perm=perm)))
        return self.g.Transpose(v, perm=[perm.index(a) for a in range(self.x.rank)])


@dataclasses.dataclass(frozen=True)
class RowsOfTheRun:
    """As Rows, where only the run knows the axes: `order` lists the elements row by row."""

    g: Graph
    x: Value
    results: Value
    order: Value

    def flattened(self) -> Value:
        return self.g.Reshape(self.g.Gather(flat(self.g, self.x), self.order), self.g.Concat(self.results, [-1], axis=0))

    def unflattened(self, v: Value) -> Value:
        return reshaped(self.g, self.g.Gather(flat(self.g, v), argsort(self.g, self.order)), self.x)


def rows(g: Graph, n: Node) -> Rows | RowsOfTheRun:
    """Of the run: the elements are sorted by the number of the result they go to, then by their own."""
    (x, *_), y = operands(n), n.outputs[0]
    if not isinstance(axes_of(n), Value):
        return Rows(g, x, known_axes(n))
    results, size = count(g, y), count(g, x)
    result = g.Expand(reshaped(g, positions(g, results), restored(g, n, y)), g.shape(x))
    order = argsort(g, flat(g, result) * size + positions(g, size))
    return RowsOfTheRun(g, x, results, order)


def argsort(g: Graph, keys: Value) -> Value:
    return g.TopK(keys, count(g, keys), n_outputs=2, largest=0)[1]


@vjp("ReduceMax", "ReduceMin")
def reduce_extremum(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """dx = dy at the first element that is the maximum, else 0."""
    x = operands(n)[0]
    if is_noop(n) or x.shape == () or is_empty(x):
        return (zeros_like(g, x) if is_empty(x) else dy,)
    found = rows(g, n)
    flattened = found.flattened()
    first = g.emit("ArgMax" if n.op == "ReduceMax" else "ArgMin", flattened, axis=-1, keepdims=1)
    return (g.Where(found.unflattened(g.Equal(steps(g, flattened, -1), first)), restored(g, n, dy), 0.0),)


@vjp("ReduceProd")
def reduce_prod(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """dx = dy times the product of the other elements, which is formed for each element: exact at zeros, quadratic in size."""
    x = operands(n)[0]
    if is_noop(n) or x.shape == () or is_empty(x):
        return (zeros_like(g, x) if is_empty(x) else dy,)
    found = rows(g, n)
    flattened = found.flattened()
    k = steps(g, flattened, -1)
    others = g.Where(g.Equal(k, g.Unsqueeze(k, [1])), 1.0, g.Unsqueeze(flattened, [-2]))
    return (restored(g, n, dy) * found.unflattened(reduction(g, "ReduceProd", others, [-1], keepdims=0)),)
