"""com.microsoft RotaryEmbedding and its kin: pairs of a head's elements turned by an angle that grows with the position."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import NodeProto

from ..rewrite import Edit, Pen, Stay, attribute
from .heads import index_range, ints, parts, rank_of, size, width_of


def rotary_embedding(pen: Pen, n: NodeProto) -> None:
    """x [B, S, N H] or [B, N, S, H]; positions [1], that of the first token, or [B, S]."""
    x, positions, cos, sin = n.input
    rank, given = rank_of(pen, x, "input"), rank_of(pen, positions, "positions")
    if given not in (1, 2):
        raise Stay(f"positions of {given} axes are not known")
    if given == 1:
        one = size(pen, x, 1 if rank == 3 else 2)
        positions = pen("Add", pen("Reshape", positions, ints(pen, [1, 1])),
                        pen("Unsqueeze", index_range(pen, ints(pen, [0], "zero"), one), ints(pen, [0], "axes")))
    _turned(pen, n, rank, [pen("Gather", table, positions, axis=0) for table in (cos, sin)])


def sectioned(pen: Pen, n: NodeProto) -> None:
    """MRotaryEmbedding: three positions per token, [3, B, S]; each pair of elements follows one of them.

    Layout 0 gives each position a section of the pairs; layout 1 deals them out in turn, the rest to the first.
    """
    x, positions, cos, sin = n.input
    first, second, third = attribute(n, "mrope_section")
    stream = np.repeat([0, 1, 2], [first, second, third])
    if attribute(n, "mrope_layout", 0):
        pairs = np.arange(len(stream))
        stream = np.where((pairs % 3 == 1) & (pairs < 3 * second), 1, np.where((pairs % 3 == 2) & (pairs < 3 * third), 2, 0))
    found = []
    for table in (cos, sin):
        every = pen("Gather", table, positions, axis=0)
        each = [pen("Gather", every, ints(pen, i, "index"), axis=0) for i in range(3)]
        rest = pen("Where", pen.const(stream == 1, "second"), each[1], each[2])
        found.append(pen("Where", pen.const(stream == 0, "first"), each[0], rest))
    _turned(pen, n, rank_of(pen, x, "input"), found)


def gemma(pen: Pen, n: NodeProto) -> None:
    """q cos + q' sin and k cos + k' sin of angles [B, S, D], where q' and k' are turned by a quarter already."""
    angles, *pairs = n.input
    c, s = (pen("Unsqueeze", pen("CastLike", pen(op, angles), pairs[0]), ints(pen, [1], "axes")) for op in ("Cos", "Sin"))
    for (x, quarter), out in zip((pairs[:2], pairs[2:]), n.output):
        if out:
            pen("Add", pen("Mul", x, c), pen("Mul", quarter, s), out=out)


def _turned(pen: Pen, n: NodeProto, rank: int, tables: Sequence[str]) -> None:
    """The heads of the node's input turned by angles whose cosines and sines are [B or 1, S, half of what turns]."""
    x, cos = n.input[0], n.input[2]
    if attribute(n, "is_packed_batching", 0) or attribute(n, "scale", 1.0) != 1:
        raise Stay("packed batches and a scale of its own are not known")
    if rank not in (3, 4):
        raise Stay(f"an input of {rank} axes is not known")
    turning = 2 * width_of(pen, cos, 1, "cosines")
    split, whole = attribute(n, "rotary_embedding_dim", 0), width_of(pen, x, -1, "input")
    heads = attribute(n, "num_heads", 0) or whole // turning
    head = whole if rank == 4 else whole // max(heads, 1)
    if (split and split != turning) or head < turning or (rank == 3 and heads * head != whole):
        raise Stay(f"heads of {head} elements of which {turning} turn do not fit its input of {whole}")
    split_x = pen("Reshape", x, ints(pen, [0, 0, heads, head])) if rank == 3 else x
    c, s = (pen("Unsqueeze", table, ints(pen, [2 if rank == 3 else 1], "axes")) for table in tables)
    y = turned(pen, split_x, c, s, turning, head, bool(attribute(n, "interleaved", 0)), None if rank == 3 else n.output[0])
    if rank == 3:
        pen("Reshape", y, ints(pen, [0, 0, whole]), out=n.output[0])


def turned(pen: Pen, x: str, c: str, s: str, turning: int, head: int, interleaved: bool, out: str | None = None) -> str:
    """a cos - b sin and a sin + b cos for the pairs (a, b) of the first `turning` of a head's elements, of four axes.

    Pairs are neighbours when interleaved, else halves.
    """
    rest = ""
    if turning < head:
        x, rest = parts(pen, x, [turning, head - turning])
    if interleaved:
        pairs = pen("Reshape", x, ints(pen, [0, 0, 0, turning // 2, 2]))
        a, b = (pen("Gather", pairs, ints(pen, i, "index"), axis=4) for i in (0, 1))
    else:
        a, b = parts(pen, x, [turning // 2] * 2)
    new = [pen("Sub", pen("Mul", a, c), pen("Mul", b, s)), pen("Add", pen("Mul", a, s), pen("Mul", b, c))]
    if interleaved:
        both = pen("Concat", *(pen("Unsqueeze", v, ints(pen, [4], "axes")) for v in new), axis=4)
        y = pen("Reshape", both, ints(pen, [0, 0, 0, turning]), out=None if rest else out)
        return pen("Concat", y, rest, out=out, axis=-1) if rest else y
    return pen("Concat", *new, *([rest] if rest else []), out=out, axis=-1)


MICROSOFT: dict[str, Edit] = {"GemmaRotaryEmbedding": gemma, "MRotaryEmbedding": sectioned, "RotaryEmbedding": rotary_embedding}
EDITS: dict[tuple[str, str], Edit] = {("com.microsoft", op): change for op, change in MICROSOFT.items()}
