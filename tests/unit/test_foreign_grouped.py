"""com.microsoft RotaryEmbedding and GroupQueryAttention against ONNX Runtime's own kernels."""

import numpy as np
import pytest

from tests.unit.foreigners import conserved, model, ms, replica, same, slope, stays, symbolic, x

B, S, N, G, H, M = 2, 4, 4, 2, 16, 12       # batch, sequence, heads of queries, of keys, head size, positions known
I32, I64 = np.int32, np.int64
ANGLES = np.outer(np.arange(M), 0.7 ** np.arange(H // 2)).astype(np.float32)
TABLE = {"c": np.cos(ANGLES), "s": np.sin(ANGLES)}
SHORT = {k: v[:, :H // 4].copy() for k, v in TABLE.items()}
AT = {"p": np.array([[0, 1, 2, 3], [5, 4, 9, 2]], I64)}
ROTARY = {
    "sequence": (x(B, S, N * H), TABLE, {}),
    "heads": (x(B, N, S, H), TABLE, {}),
    "interleaved": (x(B, S, N * H), TABLE, {"interleaved": 1}),
    "heads interleaved": (x(B, N, S, H), TABLE, {"interleaved": 1}),
    "in part": (x(B, S, N * H), SHORT, {"rotary_embedding_dim": H // 2, "num_heads": N}),
    "in part interleaved": (x(B, N, S, H), SHORT, {"rotary_embedding_dim": H // 2, "num_heads": N, "interleaved": 1}),
}


@pytest.mark.parametrize("case", ROTARY)
@pytest.mark.parametrize("positions", [AT["p"], np.array([3], I64)], ids=["each", "first"])
def test_rotary_embedding(case, positions):
    data, table, attrs = ROTARY[case]
    m = model([ms("RotaryEmbedding", "x,p,c,s", **attrs)], {"x": data}, {**table, "p": positions})
    same(m, {"x": data})
    slope(m, {"x": data})


def test_rotary_embedding_stays():
    data = ROTARY["sequence"][0]
    stays(model([ms("RotaryEmbedding", "x,p,c,s", scale=0.5)], {"x": data}, {**TABLE, **AT}))
    stays(model([ms("RotaryEmbedding", "x,p,c,s", is_packed_batching=1)], {"x": data}, {**TABLE, **AT}))


SEQ = x(B, S, N * H)
NEW = {"k": x(B, S, G * H), "v": x(B, S, G * H)}
PROMPT = {"l": np.array([S - 1, S - 1], I32), "t": np.array(S, I32)}
PADDED = {"l": np.array([S - 1, 1], I32), "t": np.array(S, I32)}
ROOM = 6
CACHE = {"pk": x(B, G, ROOM, H), "pv": x(B, G, ROOM, H)}
STEP = {"x": x(B, 1, N * H), "k": x(B, 1, G * H), "v": x(B, 1, G * H), "l": np.array([6, 3], I32), "t": np.array(7, I32)}
CHUNK = {"l": np.array([9], I32), "t": np.array(10, I32), **{k: v[:1] for k, v in {**NEW, **CACHE, "x": SEQ}.items()}}
APART, WITH_PAST, ROTATED = "x,k,v,,,l,t", "x,k,v,pk,pv,l,t", "x,k,v,pk,pv,l,t,c,s"
GROUPED = {
    "prompt": (APART, {}, {**NEW, **PROMPT}),
    "prompt padded": (APART, {}, {**NEW, **PADDED}),
    "scale": (APART, {"scale": 0.4}, {**NEW, **PROMPT}),
    "softcap": (APART, {"softcap": 1.5}, {**NEW, **PROMPT}),
    "window": (APART, {"local_window_size": 2}, {**NEW, **PROMPT}),
    "smooth": (APART, {"smooth_softmax": 1}, {**NEW, **PROMPT}),
    "sink": (APART + ",,,,,h", {}, {**NEW, **PROMPT, "h": x(N)}),
    "bias": (APART + ",,,,e", {}, {**NEW, **PROMPT, "e": x(1, N, S, S)}),
    "not causal": (APART, {"causal": 0}, {**NEW, **PADDED}),
    "packed": ("x,,,,,l,t", {}, {"x": x(B, S, (N + 2 * G) * H), **PROMPT}),
    "packed rotary": ("x,,,,,l,t,c,s", {"do_rotary": 1}, {"x": x(B, S, (N + 2 * G) * H), **PROMPT, **TABLE}),
    "rotary": (APART + ",c,s", {"do_rotary": 1}, {**NEW, **PROMPT, **TABLE}),
    "rotary interleaved padded": (APART + ",c,s", {"do_rotary": 1, "rotary_interleaved": 1}, {**NEW, **PADDED, **TABLE}),
    "rotary placed": (APART + ",c,s,at", {"do_rotary": 1}, {**NEW, **PROMPT, **TABLE, "at": AT["p"] + 2}),
    "prompt with cache": (ROTATED, {"do_rotary": 1}, {**NEW, **PADDED, **TABLE, **CACHE}),
    "empty cache": (WITH_PAST, {}, {**NEW, **PROMPT, **{k: v[:, :, :0].copy() for k, v in CACHE.items()}}),
    "step": (ROTATED, {"do_rotary": 1}, {**STEP, **TABLE, **CACHE}),
    "step window": (WITH_PAST, {"local_window_size": 3}, {**STEP, **CACHE}),
    "step placed": (ROTATED + ",at", {"do_rotary": 1}, {**STEP, **TABLE, **CACHE, "at": np.array([[2], [7]], I64)}),
    "chunk": (ROTATED, {"do_rotary": 1}, {**CHUNK, **TABLE}),
    "one head each": (APART, {"kv_num_heads": N}, {"k": x(B, S, N * H), "v": x(B, S, N * H), **PROMPT}),
}


@pytest.mark.parametrize("case", GROUPED)
def test_grouped_query_attention(case):
    inputs, attrs, weights = GROUPED[case]
    data = weights.get("x", SEQ)
    weights = {k: v for k, v in weights.items() if k != "x" and k in inputs.split(",")}
    n = ms("GroupQueryAttention", inputs, "y,nk,nv", **{"num_heads": N, "kv_num_heads": G, **attrs})
    m = model([n], {"x": data}, weights, outputs=("y", "nk", "nv"))
    same(m, {"x": data}, rtol=1e-5)
    slope(m, {"x": data})


@pytest.mark.parametrize("name", ["k", "v", "pk", "pv"])
def test_slopes_of_keys_and_values(name):
    inputs, attrs, feeds = GROUPED["step"]
    n = ms("GroupQueryAttention", inputs, "y,nk,nv", num_heads=N, kv_num_heads=G, **attrs)
    weights = {k: feeds[k] for k in ("l", "t", "c", "s")}
    feeds = {k: v for k, v in feeds.items() if k not in weights}
    slope(model([n], feeds, weights, outputs=("y", "nk", "nv")), feeds, name)


@pytest.mark.parametrize(("inputs", "attrs", "outputs"), [
    (APART, {"qk_output": 1}, "y,nk,nv,qk"), (WITH_PAST, {"sliding_window_cache": 1, "local_window_size": 2}, "y,nk,nv"),
    (APART + ",,,,,,,,q,q", {}, "y,nk,nv")], ids=["scores", "sliding", "norms"])
def test_grouped_query_attention_stays(inputs, attrs, outputs):
    weights = {k: v for k, v in {**NEW, **PROMPT, **CACHE, "q": x(H)}.items() if k in inputs.split(",")}
    stays(model([ms("GroupQueryAttention", inputs, outputs, num_heads=N, kv_num_heads=G, **attrs)], {"x": SEQ}, weights,
                outputs=outputs.split(",")))


@pytest.mark.parametrize("case", ["prompt", "rotary interleaved padded", "packed rotary", "smooth", "softcap", "window"])
def test_relevance_is_conserved(case):
    """All of it goes to the values when the weights of the attention count as constants."""
    inputs, attrs, weights = GROUPED[case]
    feeds = {"x": SEQ, **{k: v for k, v in weights.items() if k in ("x", "k", "v") and k in inputs.split(",")}}
    held = {k: v for k, v in weights.items() if k not in feeds and k in inputs.split(",")}
    n = ms("GroupQueryAttention", inputs, "y,nk,nv", num_heads=N, kv_num_heads=G, **attrs)
    conserved(model([n], feeds, held, outputs=("y", "nk", "nv")), feeds)


STREAMS = np.stack([AT["p"], AT["p"][::-1], np.minimum(AT["p"] * 2, M - 1)])


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("case", ROTARY)
def test_three_positions_per_token(case, layout):
    data, table, attrs = ROTARY[case]
    half = table["c"].shape[1]
    sections = [half - 2 * (half // 4 or 1), half // 4 or 1, half // 4 or 1]
    n = ms("MRotaryEmbedding", "x,p,c,s", mrope_section=sections, mrope_layout=layout, **{"num_heads": N, **attrs})
    m = model([n], {"x": data}, {**table, "p": STREAMS})
    same(m, {"x": data})
    slope(m, {"x": data})


def test_gemma():
    """Only GPUs have it, and only in half precision."""
    angles, q, turned_q, k, turned_k = x(B, S, H), *(x(B, N, S, H) for _ in range(4))
    c, s = np.cos(angles)[:, None], np.sin(angles)[:, None]
    m = model([ms("GemmaRotaryEmbedding", "a,x,q,k,r", "y,z")], {"x": q}, {"a": angles, "q": turned_q, "k": k, "r": turned_k},
              outputs=("y", "z"))
    replica(m, {"x": q}, [q * c + turned_q * s, k * c + turned_k * s])


@pytest.mark.parametrize("case", ["rotary", "step", "prompt with cache"])
def test_symbolic_sizes(case):
    """Lengths of batch, sequence and cache are known to the run only."""
    inputs, attrs, weights = GROUPED[case]
    feeds = {"x": SEQ, **{k: v for k, v in weights.items() if k in inputs.split(",") and k not in "cs"}}
    n = ms("GroupQueryAttention", inputs, "y,nk,nv", num_heads=N, kv_num_heads=G, **attrs)
    m = model([n], feeds, TABLE, outputs=("y", "nk", "nv"))
    symbolic(m, **dict.fromkeys("xkv", ("B", "S")), l=("B",), pk=("B", "", "P"), pv=("B", "", "P"))
    same(m, feeds, rtol=1e-5)
    slope(m, feeds)
