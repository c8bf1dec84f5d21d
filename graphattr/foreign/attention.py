"""com.microsoft attention of one kind of heads: Attention, QAttention, MultiHeadAttention, DecoderMaskedMultiHeadAttention."""

from __future__ import annotations

from onnx import NodeProto

from ..rewrite import Edit, Pen, Stay, attribute
from .heads import (
    attend,
    earlier,
    float_type,
    head_size,
    ints,
    padded,
    parts,
    penalty,
    rank_of,
    scale_of,
    split_heads,
    taken,
    unpadded,
    width_of,
)
from .quantised import dequantised

FILTER = -10000.0


def attention(pen: Pen, n: NodeProto) -> None:
    """q, k, v = x w + b in one product; mask, past and bias as in `_merged`."""
    x, w, b, mask, past, bias, length = padded(n.input, 7)
    refuse_buffers(n, length)
    float_type(pen, w)
    sizes = list(attribute(n, "qkv_hidden_sizes", [])) or thirds(width_of(pen, w, -1, "weights"))
    y = pen("MatMul", x, w)
    _merged(pen, n, w, pen("Add", y, b) if b else y, sizes, mask, past, bias)


def qattention(pen: Pen, n: NodeProto) -> None:
    """Attention of dequantised levels."""
    x, w, b, xs, ws, mask, xz, wz, past = padded(n.input, 9)
    refuse_buffers(n, "")
    sizes = thirds(width_of(pen, w, -1, "weights"))
    float_type(pen, b)
    y = pen("MatMul", dequantised(pen, x, xs, xz), dequantised(pen, w, ws, wz, -1))
    _merged(pen, n, b, pen("Add", y, b), sizes, mask, past, "")


def _merged(pen: Pen, n: NodeProto, typed: str, y: str, sizes: list[int], mask: str, past: str, bias: str) -> None:
    """Attention of [q, k, v] side by side; past and present are [2, B, N, P, H], keys and values."""
    heads = attribute(n, "num_heads")
    head = head_size(n, sizes[0], heads)
    rank = rank_of(pen, mask, "mask") if mask else 0
    present = n.output[1] if len(n.output) > 1 else ""
    q, k, v = (split_heads(pen, part, heads) for part in parts(pen, y, sizes))
    before = ""
    if past:
        before = taken(pen, past, 0)
        k, v = pen("Concat", before, k, axis=2), pen("Concat", taken(pen, past, 1), v, axis=2)
    if present:
        pen("Concat", *(pen("Unsqueeze", s, ints(pen, [0], "axes")) for s in (k, v)), out=present, axis=0)
    causal = earlier(pen, q, k, before) if attribute(n, "unidirectional", 0) else ""
    free = unpadded(pen, mask, rank, q, k) if mask else ""
    added = [bias, penalty(pen, free, causal, attribute(n, "mask_filter_value", FILTER), typed)]
    attend(pen, q, k, v, scale_of(n, head), typed, added, n.output[0])


def multi_head_attention(pen: Pen, n: NodeProto) -> None:
    query, key, value, b, mask, bias, past_k, past_v, *buffers = padded(n.input, 10)
    refuse_buffers(n, *buffers)
    float_type(pen, query)
    rank = rank_of(pen, mask, "mask") if mask else 0
    (q, k, v), head = projected(pen, n, query, key, value, b)
    _separate(pen, n, (q, k, v), head, (past_k, past_v), mask, rank, bias)


def decoder_attention(pen: Pen, n: NodeProto) -> None:
    """MultiHeadAttention of one query to keys and values that are split into heads."""
    query, key, value, mask, bias, past_k, past_v, length, beam, indirection, b = padded(n.input, 11)
    refuse_buffers(n, past_k, past_v, length, beam, indirection)
    float_type(pen, query)
    if not key or rank_of(pen, key, "key") != 4:
        raise Stay("only its cross attention is rewritten; its self attention works on buffers that past and present share")
    rank = rank_of(pen, mask, "mask") if mask else 0
    qkv, head = projected(pen, n, query, key, value, b)
    _separate(pen, n, qkv, head, ("", ""), mask, rank, bias)


def _separate(pen: Pen, n: NodeProto, qkv: tuple[str, ...], head: int, past: tuple[str, str], mask: str, rank: int,
              bias: str) -> None:
    """Attention of [B, N, S, H] each; past and present keys and values are tensors of their own."""
    q, *kv = qkv
    outputs = padded(n.output, 4)
    for i in (0, 1):
        name = outputs[1 + i]
        if past[i]:
            kv[i] = pen("Concat", past[i], kv[i], out=name or None, axis=2)
        elif name:
            kv[i] = pen("Identity", kv[i], out=name)
    k, v = kv
    causal = earlier(pen, q, k, past[0]) if attribute(n, "unidirectional", 0) else ""
    free = unpadded(pen, mask, rank, q, k) if mask else ""
    added = [bias, penalty(pen, free, causal, attribute(n, "mask_filter_value", FILTER), n.input[0])]
    attend(pen, q, k, v, scale_of(n, head), n.input[0], added, outputs[0], outputs[3])


def projected(pen: Pen, n: NodeProto, query: str, key: str, value: str, b: str) -> tuple[tuple[str, ...], int]:
    """([B, N, S, H] of query, key and value with the bias added, H).

    Query, key, value [B, S, N H]; key and value may be [B, N, S, H] already, or key [B, S, N, 2, H]; query [B, S, N, 3, H].
    """
    heads, rank = attribute(n, "num_heads"), rank_of(pen, query, "query")
    given = rank_of(pen, key, "key") if key else 0
    if rank == 5 and not key:
        head = width_of(pen, query, -1, "query")
        bias = pen("Transpose", pen("Reshape", b, ints(pen, [3, heads, head])), perm=[1, 0, 2]) if b else ""
        return _unpacked(pen, pen("Add", query, bias) if b else query, 3), head
    if rank != 3 or given not in (3, 4, 5) or (given == 5) == bool(value):
        raise Stay(f"a query of {rank} axes with a key of {given} is not known")
    if b and given != 3:
        raise Stay("a bias beside keys that are split into heads already is not known")
    width = width_of(pen, query, -1, "query")
    head = head_size(n, width, heads)
    if b:
        rest = width_of(pen, b, 0, "bias") - 2 * width
        query, key, value = (pen("Add", x, part) for x, part in zip((query, key, value), parts(pen, b, [width, width, rest], 0)))
    q = split_heads(pen, query, heads)
    if given == 5:
        return (q, *_unpacked(pen, key, 2)), head
    return (q, *((key, value) if given == 4 else (split_heads(pen, x, heads) for x in (key, value)))), head


def _unpacked(pen: Pen, x: str, count: int) -> tuple[str, ...]:
    """[B, S, N, count, H] -> count times [B, N, S, H]."""
    return tuple(pen("Transpose", taken(pen, x, i, 3), perm=[0, 2, 1, 3]) for i in range(count))


def thirds(width: int) -> list[int]:
    if width % 3:
        raise Stay(f"the width {width} of queries, keys and values side by side is no multiple of 3")
    return [width // 3] * 3


def refuse_buffers(n: NodeProto, *inputs: str) -> None:
    if attribute(n, "past_present_share_buffer", 0) or any(inputs):
        raise Stay("past and present share a buffer, whose content only the runtime knows")
    if attribute(n, "do_rotary", 0):
        raise Stay("it rotates by angles that are not in the file (do_rotary)")


MICROSOFT: dict[str, Edit] = {
    "Attention": attention,
    "DecoderMaskedMultiHeadAttention": decoder_attention,
    "MultiHeadAttention": multi_head_attention,
    "QAttention": qattention,
}
EDITS: dict[tuple[str, str], Edit] = {("com.microsoft", op): change for op, change in MICROSOFT.items()}
