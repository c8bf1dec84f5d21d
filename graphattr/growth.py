"""Loops that grow a sequence by one member per step: the members are a scan output, and what joins them a Reshape of it."""

from __future__ import annotations

import numpy as np
from onnx import GraphProto, NodeProto, helper

from .rewrite import Book, Pen, attribute, refill
from .wellformed import bodies_of, reads

CARRIED = 2  # a Loop's inputs before those that it carries: trip count, condition


def stack_grown(graph: GraphProto, book: Book, to: int) -> list[NodeProto]:
    """The graph's nodes, with such Loops and their ConcatFromSequence written on tensors."""
    nodes = list(graph.node)
    for loop in [n for n in nodes if n.op_type == "Loop" and not n.domain]:
        for name in list(loop.output):
            at = list(loop.output).index(name)
            insert = _insertion(graph, loop, at)
            joins = _joins(graph, name)
            if insert is None or not joins or not all(_joinable(book, insert.input[1], n) for n in joins):
                continue
            member, stack = str(insert.input[1]), _scan(book, loop, at, insert)
            for join in joins:
                where = next(i for i, n in enumerate(nodes) if n is join)
                nodes[where : where + 1] = _written(book, join, stack, member, to)
    return nodes


def _insertion(graph: GraphProto, loop: NodeProto, at: int) -> NodeProto | None:
    """The SequenceInsert that alone grows what the loop carries at this place, from an empty sequence."""
    (body,) = bodies_of(loop)
    if CARRIED + at >= len(body.input) or CARRIED + at >= len(loop.input):
        return None
    start = next((n for n in graph.node if loop.input[CARRIED + at] in n.output), None)
    grown, held = body.output[1 + at].name, body.input[CARRIED + at].name
    insert = next((n for n in body.node if grown in n.output), None)
    if start is None or insert is None or (start.op_type, insert.op_type) != ("SequenceEmpty", "SequenceInsert"):
        return None
    readers = [n for n in body.node if reads(n) & {held, grown}]
    once = [o.name for o in body.output].count(grown) == 1 and held not in {o.name for o in body.output}
    at_end = len(insert.input) == 2 or not insert.input[2]
    return insert if insert.input[0] == held and at_end and once and readers == [insert] else None


def _joins(graph: GraphProto, name: str) -> list[NodeProto]:
    """The ConcatFromSequence nodes that read a sequence; none where anybody else does, or nobody."""
    readers = [n for n in graph.node if name in reads(n)]
    shown = name in {o.name for o in graph.output}
    return [] if shown or any(n.op_type != "ConcatFromSequence" for n in readers) else readers


def _joinable(book: Book, member: str, join: NodeProto) -> bool:
    """Stacking asks for equal members anyway; joining along an axis does not ask for equal sizes there, a scan output does."""
    dims, axis = book.dims(member), attribute(join, "axis")
    if attribute(join, "new_axis", 0):
        return axis == 0 or dims is not None
    return dims is not None and dims[axis] is not None


def _scan(book: Book, loop: NodeProto, at: int, insert: NodeProto) -> str:
    """Let the loop give out its members, stacked, in place of the sequence; the name of the stack."""
    (body,) = bodies_of(loop)
    member = book.fresh(f"{insert.output[0]}_member")
    body.node.append(helper.make_node("Identity", [insert.input[1]], [member], name=member))
    refill(body.node, [n for n in body.node if n.output[:1] != insert.output[:1]])
    shown = helper.make_tensor_value_info(member, book.dtype(insert.input[1]), book.dims(insert.input[1]))
    refill(body.input, [v for i, v in enumerate(body.input) if i != CARRIED + at])
    refill(body.output, [*(v for i, v in enumerate(body.output) if i != 1 + at), shown])
    refill(loop.input, [v for i, v in enumerate(loop.input) if i != CARRIED + at])
    stack = book.fresh(f"{loop.output[at]}_stack")
    refill(loop.output, [*(v for i, v in enumerate(loop.output) if i != at), stack])
    return stack


def _written(book: Book, join: NodeProto, stack: str, member: str, to: int) -> list[NodeProto]:
    """The stack's first axis moved to where the members are joined, and merged with theirs unless it is new."""
    pen, axis, new = Pen(book, join, to), attribute(join, "axis"), bool(attribute(join, "new_axis", 0))
    dims = book.dims(member)
    rank = 1 + (len(dims) if dims is not None else 0)
    axis %= rank if new else rank - 1
    if axis:
        others = list(range(1, rank))
        stack = pen("Transpose", stack, perm=[*others[:axis], 0, *others[axis:]])
    if new:
        pen("Identity", stack, out=join.output[0])
    else:
        before, after = pen("Shape", stack, start=0, end=axis), pen("Shape", stack, start=axis + 2)
        sizes = pen("Concat", before, pen.const(np.array([-1], np.int64), "joined"), after, axis=0)
        pen("Reshape", stack, sizes, out=join.output[0])
    return pen.nodes
