"""com.microsoft RotaryEmbedding: pairs of a head's elements turned by an angle that grows with the position."""

from __future__ import annotations

from onnx import NodeProto

from ..rewrite import Edit, Pen, Stay, attribute
from .heads import index_range, ints, parts, rank_of, size, width_of


def rotary_embedding(pen: Pen, n: NodeProto) -> None:
    """x [B, S, N H] or [B, N, S, H]; positions [1], that of the first token, or [B, S]."""
    x, positions, cos, sin = n.input
    if attribute(n, "is_packed_batching", 0) or attribute(n, "scale", 1.0) != 1:
        raise Stay("packed batches and a scale of its own are not known")
    rank, given = rank_of(pen, x, "input"), rank_of(pen, positions, "positions")
    if rank not in (3, 4) or given not in (1, 2):
        raise Stay(f"an input of {rank} axes with positions of {given} is not known")
    turning = 2 * width_of(pen, cos, 1, "cosines")
    split, whole = attribute(n, "rotary_embedding_dim", 0), width_of(pen, x, -1, "input")
    heads = attribute(n, "num_heads", 0) if split else whole // turning
    head = whole if rank == 4 else whole // max(heads, 1)
    if (split and split != turning) or head < turning or (rank == 3 and heads * head != whole):
        raise Stay(f"heads of {head} elements of which {turning} turn do not fit its input of {whole}")
    if given == 1:
        one = size(pen, x, 1 if rank == 3 else 2)
        positions = pen("Add", pen("Reshape", positions, ints(pen, [1, 1])),
                        pen("Unsqueeze", index_range(pen, ints(pen, [0], "zero"), one), ints(pen, [0], "axes")))
    split_x = pen("Reshape", x, ints(pen, [0, 0, heads, head])) if rank == 3 else x
    y = turned(pen, split_x, positions, cos, sin, turning, head, 2 if rank == 3 else 1, bool(attribute(n, "interleaved", 0)),
               out=None if rank == 3 else n.output[0])
    if rank == 3:
        pen("Reshape", y, ints(pen, [0, 0, whole]), out=n.output[0])


def turned(pen: Pen, x: str, positions: str, cos: str, sin: str, turning: int, head: int, axis: int, interleaved: bool,
           out: str | None = None) -> str:
    """a cos - b sin and a sin + b cos for the pairs (a, b) of the first `turning` of a head's elements, of four axes.

    `axis` is that of the heads. Pairs are neighbours when interleaved, else halves.
    """
    c, s = (pen("Unsqueeze", pen("Gather", table, positions, axis=0), ints(pen, [axis], "axes")) for table in (cos, sin))
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


EDITS: dict[tuple[str, str], Edit] = {("com.microsoft", "RotaryEmbedding"): rotary_embedding}
