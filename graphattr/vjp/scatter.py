"""Writing at indices: a cell is overwritten, or combined with all updates that go there."""

from __future__ import annotations

import dataclasses

from ..graph import Graph, Node, Value
from .elementwise import operands
from .geometry import dims, extent
from .index import Cotangents, ones_like, zeros_like
from .reduce import along, steps
from .registry import vjp


@dataclasses.dataclass(frozen=True)
class Cells:
    """Where the updates go: one index per element (ScatterElements) or index tuples (ScatterND)."""

    g: Graph
    op: str
    where: Value
    axis: int

    def read(self, v: Value) -> Value:
        """For each update, v at its cell."""
        if self.op == "ScatterND":
            return self.g.GatherND(v, self.where)
        return self.g.GatherElements(v, self.where, axis=self.axis)

    def write(self, base: Value, updates: Value, reduction: str) -> Value:
        axis = self.axis if self.op == "ScatterElements" else None
        return self.g.emit(self.op, base, self.where, updates, axis=axis, reduction=reduction, out_shape=base.shape)


@vjp("ScatterElements", "ScatterND")
def scatter(g: Graph, n: Node, dy: Value) -> Cotangents:
    """none: d updates = dy read at the indices, dx = dy, 0 where it was overwritten.  add: the same, dx = dy everywhere."""
    _, where, updates = operands(n)
    cells, reduction = Cells(g, n.op, where, n.attrs.get("axis", 0)), n.attrs.get("reduction", "none")
    if reduction == "mul":
        return scatter_mul(g, n, dy, cells)
    if reduction in ("max", "min"):
        return scatter_extremum(g, n, dy, cells)
    dx = cells.write(dy, zeros_like(g, updates), "none") if reduction == "none" and 0 in n.needs else dy
    return dx, None, cells.read(dy) if 2 in n.needs else None


def scatter_extremum(g: Graph, n: Node, dy: Value, cells: Cells) -> Cotangents:
    """All that are equal to y in a cell, x and updates alike, share dy evenly (as torch's scatter_reduce does)."""
    (x, _, updates), y = operands(n), n.outputs[0]
    own, theirs = g.Equal(x, y), g.Equal(updates, cells.read(y))
    one, none = ones_like(g, updates), zeros_like(g, x)
    winners = cells.write(g.Where(own, 1.0, none), g.Where(theirs, one, 0.0), "add")
    share = dy / winners
    return g.Where(own, share, 0.0), None, g.Where(theirs, cells.read(share), 0.0)


def scatter_mul(g: Graph, n: Node, dy: Value, cells: Cells) -> Cotangents:
    """y = x prod u in each cell: dx = dy prod u, du = dy x prod of the other u. A lone zero in a cell is taken out of
    its product, so that nothing is divided by zero; of two zeros in one cell, second derivatives are 0."""
    x, _, updates = operands(n)
    ones, zero = ones_like(g, x), g.Equal(updates, 0.0)
    product = cells.write(ones, updates, "mul")
    if 2 not in n.needs:
        return dy * product, None, None
    zeros = cells.write(zeros_like(g, x), g.Where(zero, ones_like(g, updates), 0.0), "add")
    lone = g.And(zero, g.Equal(cells.read(zeros), 1.0))
    without = cells.write(ones, g.Where(lone, 1.0, updates), "mul")
    others = g.Where(lone, cells.read(without), cells.read(product) / g.Where(zero, 1.0, updates))
    return dy * product, None, cells.read(dy * x) * others


@vjp("TensorScatter")
def tensor_scatter(g: Graph, n: Node, dy: Value) -> Cotangents:
    """A piece of the cache, from write_indices on, is overwritten: dupdate = dy there, dcache = dy elsewhere."""
    cache, update, starts = (*n.inputs, None)[:3]
    assert cache is not None
    assert update is not None
    axis = n.attrs.get("axis", -2) % cache.rank
    dcache = g.TensorScatter(dy, zeros_like(g, update), starts, **n.attrs) if 0 in n.needs else None
    where = along(g, steps(g, update, axis), axis, update.rank)
    if starts is not None:
        where = where + along(g, starts, 0, update.rank)
    if n.attrs.get("mode", "linear") == "circular":
        where = g.Mod(where, extent(g, cache, axis))
    where = g.emit("Expand", where, g.shape(update), out_shape=dims(update))
    return dcache, g.GatherElements(dy, where, axis=axis)
