"""com.microsoft GroupQueryAttention: several heads of queries share one of keys and values, past ones in a cache."""

from __future__ import annotations

from onnx import NodeProto, TensorProto

from ..rewrite import Edit, Pen, Stay, attribute
from .heads import (
    LOWEST,
    float_type,
    head_size,
    index_range,
    ints,
    merge_heads,
    padded,
    parts,
    scale_of,
    size,
    split_heads,
    taken,
    width_of,
)
from .rotary import turned

UNKNOWN = {"qk_output": 0, "sliding_window_cache": 0, "kv_cache_bit_width": 0, "k_quant_type": "NONE", "v_quant_type": "NONE"}


def grouped_query_attention(pen: Pen, n: NodeProto) -> None:
    """Causal attention of [q, k, v] side by side or apart. Sequence b has total[b] = seqlens_k[b] + 1 tokens, the last S new."""
    query, key, value, past_k, past_v, lengths, longest, cos, sin, places, bias, sink, *norms = padded(n.input, 16)
    strange = [k for k, v in UNKNOWN.items() if attribute(n, k, v) != v]
    if strange or any(norms) or (len(n.output) > 3 and n.output[3]):
        raise Stay(f"quantised or sliding caches, scores given out and normalised queries are not known ({', '.join(strange)})")
    float_type(pen, query)
    many, few = attribute(n, "num_heads"), attribute(n, "kv_num_heads")
    head = head_size(n, width_of(pen, query, -1, "query"), many if key else many + 2 * few)
    turning = 2 * width_of(pen, cos, 1, "cosines") if attribute(n, "do_rotary", 0) else 0
    if not key:
        query, key, value = parts(pen, query, [many * head, few * head, few * head])
    q, k, v = (split_heads(pen, x, h) for x, h in ((query, many), (key, few), (value, few)))
    time = Time(pen, q, lengths, longest, past_k)
    if turning:
        at = time.places(pen, places)
        c, s = (pen("Unsqueeze", pen("Gather", table, at, axis=0), ints(pen, [1], "axes")) for table in (cos, sin))
        q, k = (turned(pen, x, c, s, turning, head, bool(attribute(n, "rotary_interleaved", 0))) for x in (q, k))
    k, v = (time.joined(pen, old, new, name) for old, new, name in zip((past_k, past_v), (k, v), padded(n.output, 3)[1:]))
    if many != few:
        k, v = (taken(pen, x, [i // (many // few) for i in range(many)], 1) for x in (k, v))
    _attend(pen, n, (q, k, v), scale_of(n, head), time.free(pen, n, k), bias, sink)


def _attend(pen: Pen, n: NodeProto, qkv: tuple[str, str, str], scale: float, free: str, bias: str, sink: str) -> None:
    """Scores capped, biased and masked; a sink is one more score per head, whose share goes nowhere."""
    (q, k, v), typed, cap = qkv, n.input[0], attribute(n, "softcap", 0.0)
    scores = pen("Mul", pen("MatMul", q, pen("Transpose", k, perm=[0, 1, 3, 2])), pen.like(scale, "scale", typed))
    if cap > 0:
        bound = pen.like(cap, "cap", typed)
        scores = pen("Mul", pen("Tanh", pen("Div", scores, bound)), bound)
    if bias:
        scores = pen("Add", scores, bias)
    zero, lowest = pen.like(0.0, "zero", typed), pen.like(LOWEST[pen.book.dtype(typed)], "lowest", typed)
    scores = pen("Add", scores, pen("Where", free, zero, lowest))
    smooth = attribute(n, "smooth_softmax", -1) == 1
    if sink or smooth:
        column = pen("Reshape", sink, ints(pen, [1, -1, 1, 1])) if sink else pen("Reshape", zero, ints(pen, [1, 1, 1, 1]))
        last = pen("Concat", *(size(pen, q, i) for i in range(3)), ints(pen, [1], "one"), axis=0)
        scores = pen("Concat", scores, pen("Expand", column, last), axis=3)
    weights = pen("Softmax", scores, axis=-1)
    if sink or smooth:
        weights = pen("Slice", weights, ints(pen, [0], "start"), ints(pen, [-1], "end"), ints(pen, [3], "axes"))
    merge_heads(pen, pen("MatMul", weights, v), n.output[0])


class Time:
    """Where the tokens of each sequence are: `before` of them, [B, 1], are past, `total` in all, as int64."""

    def __init__(self, pen: Pen, q: str, lengths: str, longest: str, past: str) -> None:
        self.new, self.past = size(pen, q, 2), past
        self.longest = pen("Reshape", pen("Cast", longest, to=TensorProto.INT64), ints(pen, [1]))
        tokens = pen("Cast", pen("Reshape", lengths, ints(pen, [-1, 1])), to=TensorProto.INT64)
        self.total = pen("Add", tokens, ints(pen, 1, "one"))
        self.first = pen("Equal", self.longest, self.new)       # the first tokens of all: nothing is past, the cache is empty
        zero = ints(pen, 0, "zero")
        self.before = pen("Where", self.first, zero, pen("Sub", self.total, self.new)) if past else pen("Mul", self.total, zero)
        self.steps = pen("Unsqueeze", index_range(pen, ints(pen, [0], "zero"), self.new), ints(pen, [0], "axes"))

    def places(self, pen: Pen, given: str) -> str:
        """The positions of the new tokens, [B, S]: counted, or as given; of first tokens the very first counts."""
        if not given:
            return self._counted(pen)
        start = pen("Slice", pen("Reshape", given, ints(pen, [-1])), ints(pen, [0], "start"), ints(pen, [1], "end"))
        return pen("Where", self.first, pen("Add", start, self.steps), given)

    def _counted(self, pen: Pen) -> str:
        at = pen("Add", self.before, self.steps)
        held = pen("Or", self.first, pen("Less", at, self.total))
        return pen("Where", held, at, ints(pen, 1, "one"))

    def joined(self, pen: Pen, old: str, new: str, out: str) -> str:
        """The first `before` rows of the old ones, then the new ones, then zeros up to the longer of cache and sequence."""
        if not old:
            return pen("Identity", new, out=out) if out else new
        room = size(pen, old, 2)
        rows = index_range(pen, ints(pen, [0], "zero"), pen("Max", room, self.longest))
        beyond = pen("GreaterOrEqual", rows, pen("Add", self.before, self.new))
        shifted = pen("Add", pen("Sub", rows, self.before), room)
        index = pen("Where", pen("Less", rows, self.before), rows, shifted)
        index = pen("Where", beyond, ints(pen, 0, "zero"), index)
        index, beyond = (pen("Unsqueeze", x, ints(pen, [1, 3], "axes")) for x in (index, beyond))
        lengths = [size(pen, old, 0), size(pen, old, 1), pen("Shape", rows), size(pen, old, 3)]
        index = pen("Expand", index, pen("Concat", *lengths, axis=0))
        found = pen("GatherElements", pen("Concat", old, new, axis=2), index, axis=2)
        return pen("Where", beyond, pen.like(0.0, "nothing", pen.node.input[0]), found, out=out or None)

    def free(self, pen: Pen, n: NodeProto, k: str) -> str:
        """Which keys a query sees, [B, 1, S, T]: its own and earlier ones, not padding, within the window."""
        window, causal = attribute(n, "local_window_size", -1), attribute(n, "causal", 1)
        keys = index_range(pen, ints(pen, [0], "zero"), size(pen, k, 2))
        end = self.total
        if causal:
            end = pen("Min", self.total, pen("Add", pen("Add", self.before, self.steps), ints(pen, 1, "one")))
        end = pen("Unsqueeze", end, ints(pen, [1, 3], "axes"))
        free = pen("Less", keys, end)
        if window > 0:
            free = pen("And", free, pen("GreaterOrEqual", keys, pen("Sub", end, ints(pen, window, "window"))))
        return free


EDITS: dict[tuple[str, str], Edit] = {("com.microsoft", "GroupQueryAttention"): grouped_query_attention}
