"""Token lookups: integer inputs (ids) that fetch rows of a constant table, and the relevance of ids from that of the rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .graph import Graph, Node, Value
from .vjp import fit, pull, total
from .vjp.reduce import reduction

MOVES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Transpose", "Expand", "Tile", "Split", "Gather"}  # of input 0
JOINS = {"Concat": 0, "Where": 1}  # operator: its first operand that is moved
SHIFTS = {"Cast", "Identity", "Add", "Sub", "Clip", "Max", "Min", "Mod"}  # another number for the same token
DECODES = {"Cast", "DequantizeLinear"}  # of rows that are stored as integers


@dataclass(frozen=True, eq=False)
class Lookup:
    """rows = Gather(table, indices); `way`: the nodes that make the indices from the input, in execution order."""

    gather: Node
    rows: Value
    way: tuple[Node, ...]

    @property
    def indices(self) -> Value:
        found = self.gather.inputs[1]
        assert found is not None
        return found

    @property
    def embedding_axes(self) -> list[int]:
        """The axes of `rows` that are the table's, not those of the indices."""
        axis, more = int(self.gather.attrs.get("axis", 0)), self.indices.rank - 1
        table_rank = self.rows.rank - more
        first = axis + table_rank if axis < 0 else axis
        return [a for a in range(self.rows.rank) if not first <= a <= first + more]


def lookups(g: Graph) -> dict[Value, list[Lookup]]:
    """The lookups of every integer input that has any: what its ids fetch, moved and shifted, from tables known beforehand."""
    moving = set(g.inputs)
    for node in g.nodes:
        if any(v in moving for v in node.uses):
            moving.update(node.outputs)
    found = {v: _lookups_of(g, v, moving) for v in g.inputs if v.dtype is not None and v.dtype.kind in "iu"}
    return {v: held for v, held in found.items() if held}


def _lookups_of(g: Graph, ids: Value, moving: set[Value]) -> list[Lookup]:
    made, way, found = {ids}, list[Node](), list[Lookup]()
    for node in g.nodes:
        if node.domain not in ("", "ai.onnx"):
            continue
        if node.op == "Gather" and node.inputs[0] not in moving and node.inputs[1] in made:
            found += [Lookup(node, rows, tuple(way)) for rows in _as_floats(g, node.outputs[0])]
        elif _carried(node, made, moving):
            made.update(node.outputs)
            way.append(node)
    return found


def _carried(node: Node, made: set[Value], moving: set[Value]) -> list[int]:
    """Which operands of the node are ids that it hands on."""
    held = [i for i, v in enumerate(node.inputs) if v in made]
    if node.op in MOVES:
        return [i for i in held if i == 0]
    if node.op in JOINS:
        return [i for i in held if i >= JOINS[node.op]]
    alone = node.op in SHIFTS and len(held) == 1 and not any(v in moving for v in node.uses if v not in made)
    return held if alone and not node.outputs[0].is_float else []


def _as_floats(g: Graph, rows: Value) -> list[Value]:
    """The rows, or what decodes them where the table holds integers."""
    if rows.is_float:
        return [rows]
    readers = [n for n in g.nodes if n.op in DECODES and n.inputs[0] is rows]
    return [n.outputs[0] for n in readers if n.outputs[0].is_float]


def of_ids(g: Graph, ids: Value, found: Sequence[Lookup], relevance: Mapping[Value, Value], alike: bool = False) -> Value:
    """r_ids[n, t] = sum over lookups and embedding axes of r_rows[n, t, :], of the shape of ids.

    `alike`: what a row gets is said once for each of its entries, so it is their mean.
    """
    arriving: dict[Value, list[Value]] = {}
    with g.scope(f"tokens/{ids.name}"):
        for one in found:
            r = relevance[one.rows]
            over = "ReduceMean" if alike else "ReduceSum"
            summed = reduction(g, over, r, one.embedding_axes, keepdims=0) if one.embedding_axes else r
            arriving.setdefault(one.indices, []).append(summed)
        way = {n: None for one in found for n in one.way}
        for node in reversed([n for n in g.nodes if n in way]):
            _move_back(g, node, arriving, {ids, *(v for n in way for v in n.outputs)})
        result = total(g, arriving[ids])
    assert result is not None
    return result if result.shape == ids.shape else g.emit("Reshape", result, g.shape(ids), out_shape=ids.shape)


def _move_back(g: Graph, node: Node, arriving: dict[Value, list[Value]], made: set[Value]) -> None:
    """What arrived at the node's outputs, at the ids it was made from."""
    rs, carried = [total(g, arriving.get(v, [])) for v in node.outputs], _carried(node, made, set())
    first = next((r for r in rs if r is not None), None)
    if first is None:
        return
    if node.op in SHIFTS:
        back = {i: fit(g, first, x) for i in carried if (x := node.inputs[i]) is not None}
    else:
        none = np.zeros(1, first.dtype)
        rs = [g.ConstantOfShape(g.shape(v), value=none) if r is None else r for r, v in zip(rs, node.outputs, strict=True)]
        back = {i: r for i, r in enumerate(pull(g, node, rs, carried)) if r is not None}
    for i, r in back.items():
        x = node.inputs[i]
        assert x is not None
        arriving.setdefault(x, []).append(r)
