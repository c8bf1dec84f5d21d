"""com.microsoft attention against ONNX Runtime's own kernels, and against slow replicas of the forms only GPUs have."""

import numpy as np
import pytest

import graphattr
from tests.unit.foreigners import conserved, model, ms, outcome, replica, same, slope, stays, symbolic, x

B, S, P, N, H, V = 2, 5, 3, 2, 4, 3     # batch, sequence, past, heads, head size, head size of values
D, I32 = N * H, np.int32
SEQ, PAST = x(B, S, 6), x(2, B, N, P, H)
PACKED = {"w": x(6, 3 * D), "b": x(3 * D)}
LENGTHS, STARTS = np.array([3, 5], I32), np.array([4, 5, 1, 0], I32)
RAW = np.array([[1, 1, 1, 0, 0], [0, 1, 0, 1, 1]], I32)
CUBE = (np.random.default_rng(3).random((B, S, S)) < 0.7).astype(I32)
WITH_PAST = np.array([[1, 1, 0, 1, 1, 1, 1, 0], [0] * 8], I32)      # the second row sees nothing at all
ATTENTION = {
    "plain": ("x,w,b", {}, {}),
    "scale": ("x,w,b", {"scale": 0.3}, {}),
    "unidirectional": ("x,w,b", {"unidirectional": 1}, {}),
    "lengths": ("x,w,b,m", {}, {"m": LENGTHS}),
    "ends and starts": ("x,w,b,m", {}, {"m": STARTS}),
    "raw": ("x,w,b,m", {}, {"m": RAW}),
    "raw filter": ("x,w,b,m", {"mask_filter_value": -3.0}, {"m": RAW}),
    "raw unidirectional": ("x,w,b,m", {"unidirectional": 1}, {"m": RAW}),
    "cube": ("x,w,b,m", {}, {"m": CUBE}),
    "cube unidirectional": ("x,w,b,m", {"unidirectional": 1}, {"m": CUBE}),
    "score bias": ("x,w,b,,,e", {}, {"e": x(B, N, S, S)}),
    "score bias of one": ("x,w,b,m,,e", {"unidirectional": 1}, {"e": x(1, 1, S, S), "m": RAW}),
    "past": ("x,w,b,,p", {}, {"p": PAST}),
    "past unidirectional": ("x,w,b,,p", {"unidirectional": 1}, {"p": PAST}),
    "past raw": ("x,w,b,m,p", {"unidirectional": 1}, {"p": PAST, "m": WITH_PAST}),
    "values of their own": ("x,w,b", {"qkv_hidden_sizes": [D, D, N * V]}, {"w": x(6, 2 * D + N * V), "b": x(2 * D + N * V)}),
}


@pytest.mark.parametrize("case", ATTENTION)
@pytest.mark.parametrize("opset", [17, 21])
def test_attention(case, opset):
    inputs, attrs, more = ATTENTION[case]
    outputs = "y,present" if "values" not in case and ("past" in case or case == "plain") else "y"
    weights = {**PACKED, **more}
    weights = {k: v for k, v in weights.items() if k in inputs.split(",")}
    m = model([ms("Attention", inputs, outputs, num_heads=N, **attrs)], {"x": SEQ}, weights, opset, outputs.split(","))
    same(m, {"x": SEQ}, rtol=2e-3 if "past raw" in case else 4e-6)
    slope(m, {"x": SEQ})


def heads(a, count=N):
    return a.reshape(*a.shape[:2], count, -1).transpose(0, 2, 1, 3)


def attended(q, k, v, added=0.0, scale=None):
    """Softmax(scale q k' + added) v of [B, N, S, H] each, in float64, heads merged."""
    scores = q.astype(float) @ k.astype(float).swapaxes(2, 3) * (scale or q.shape[3] ** -0.5) + added
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    y = (weights / weights.sum(-1, keepdims=True)) @ v.astype(float)
    return y.transpose(0, 2, 1, 3).reshape(y.shape[0], y.shape[2], -1).astype(np.float32)


def packed_heads(bias=0.0):
    return (heads(a) for a in np.split(SEQ @ PACKED["w"] + bias, 3, axis=-1))


def test_attention_without_bias():
    """ONNX Runtime's kernel for the CPU reads the absent bias and dies."""
    m = model([ms("Attention", "x,w", num_heads=N)], {"x": SEQ}, {"w": PACKED["w"]})
    replica(m, {"x": SEQ}, [attended(*packed_heads())])


def test_attention_with_a_mask_of_four_axes():
    mask = (np.random.default_rng(3).random((B, 1, 9, 9)) < 0.7).astype(I32)
    q, k, v = packed_heads(PACKED["b"])
    k, v = np.concatenate([PAST[0], k], 2), np.concatenate([PAST[1], v], 2)
    free = mask[:, :, P:P + S, :P + S] > 0
    m = model([ms("Attention", "x,w,b,m,p", "y,present", num_heads=N)], {"x": SEQ}, {**PACKED, "m": mask, "p": PAST},
              outputs=("y", "present"))
    replica(m, {"x": SEQ}, [attended(q, k, v, np.where(free, 0, -1e4)), np.stack([k, v])])


@pytest.mark.parametrize("why", ["do_rotary", "past_present_share_buffer", "rank", "lengths"])
def test_attention_stays(why):
    attrs = {why: 1} if "_" in why else {}
    m = model([ms("Attention", "x,w,b,m", num_heads=N, **attrs)], {"x": SEQ, "m": np.ones(8, I32)}, PACKED)
    if why == "rank":
        m.graph.input[1].type.tensor_type.ClearField("shape")
    stays(m)


def test_attention_of_symbolic_sizes():
    """Nothing but the widths is known before the run."""
    m = model([ms("Attention", "x,w,b,m", num_heads=N, unidirectional=1)], {"x": SEQ, "m": LENGTHS}, PACKED)
    symbolic(m, x=("B", "S"), m=("M",))
    for mask in (LENGTHS, STARTS):
        same(m, {"x": SEQ, "m": mask}, rtol=4e-6)
    slope(m, {"x": SEQ, "m": STARTS})


def test_half_precision():
    """ONNX Runtime has no such kernel for the CPU; the rewritten model runs, and its float32 twin is explained."""
    weights = {**PACKED, "m": RAW}
    half = {k: v.astype(np.float16) if k != "m" else v for k, v in weights.items()}
    n = ms("Attention", "x,w,b,m", num_heads=N, unidirectional=1)
    rounded = {k: v.astype(np.float32) if k != "m" else v for k, v in half.items()}
    data, wide = SEQ.astype(np.float16), SEQ.astype(np.float16).astype(np.float32)
    seed, found = x(B, S, D), []
    for held, feed in ((half, data), (rounded, wide)):
        made = graphattr.convert(model([n], {"x": feed}, held), method="gradient", target="seed").model
        found.append(outcome(made, {"x": feed, "seed": seed}))
    assert found[0][0].dtype == np.float16
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=3e-3 * np.abs(b).max())


def levels(*shape, dtype=np.uint8):
    info = np.iinfo(dtype)
    return np.random.default_rng(7).integers(info.min, info.max + 1, shape).astype(dtype)


QUANTISED = {"w": levels(6, 3 * D, dtype=np.int8), "b": PACKED["b"],
             "xs": np.float32(0.02), "ws": np.float32(0.01), "xz": np.uint8(120)}
COLUMNS = {"ws": np.linspace(0.005, 0.02, 3 * D).astype(np.float32), "wz": np.zeros(3 * D, np.int8)}
QATTENTION = {
    "plain": ("q,w,b,xs,ws,,xz", {}, {}),
    "columns": ("q,w,b,xs,ws,,xz,wz", {}, COLUMNS),
    "lengths": ("q,w,b,xs,ws,m,xz", {}, {"m": LENGTHS}),
    "unidirectional past": ("q,w,b,xs,ws,,xz,wz,p", {"unidirectional": 1}, {"p": PAST, "wz": np.int8(0)}),
}


@pytest.mark.parametrize("case", QATTENTION)
def test_qattention(case):
    inputs, attrs, more = QATTENTION[case]
    weights = {k: v for k, v in {**QUANTISED, **more}.items() if k in inputs.split(",")}
    outputs = ["y", "present"] if "past" in case else ["y"]
    data = levels(B, S, 6)
    m = model([ms("QAttention", inputs, ",".join(outputs), num_heads=N, **attrs)], {"q": data}, weights, outputs=outputs)
    same(m, {"q": data}, rtol=1e-5)


def test_qattention_lets_the_gradient_pass():
    """Rounding counts as the identity: the slope is that of attention to the dequantised weights."""
    w = (QUANTISED["w"] * QUANTISED["ws"]).astype(np.float32)
    nodes = [ms("QuantizeLinear", "x,xs,xz", "q", domain=""), ms("QAttention", "q,w,b,xs,ws,,xz", num_heads=N)]
    smooth = model([ms("Attention", "x,w,b", num_heads=N)], {"x": SEQ}, {"w": w, "b": PACKED["b"]})
    slope(model(nodes, {"x": SEQ}, QUANTISED), {"x": np.tanh(SEQ)}, runs=smooth, tolerance=2e-2)


# -- MultiHeadAttention -----------------------------------------------------------------------------------------------
L = 4                                   # keys
Q3, K3, V3 = x(B, S, D), x(B, L, D), x(B, L, N * V)
BIAS = x(2 * D + N * V)
KEYS = {"k": K3, "v": V3}
OLD = {"pk": x(B, N, P, H), "pv": x(B, N, P, H)}
PADDED = np.array([[1, 1, 0, 1], [0, 0, 0, 0]], I32)
MULTI = {
    "plain": ("x,k,v", {}, KEYS),
    "bias": ("x,k,v,b", {"scale": 0.2}, {**KEYS, "b": BIAS}),
    "lengths": ("x,k,v,,m", {}, {**KEYS, "m": np.array([2, 4], I32)}),
    "padded": ("x,k,v,,m", {"mask_filter_value": -50.0}, {**KEYS, "m": PADDED}),
    "cube": ("x,k,v,,m", {}, {**KEYS, "m": np.repeat(PADDED[:, None], S, 1)}),
    "score bias": ("x,k,v,b,m,e", {}, {**KEYS, "b": BIAS, "m": PADDED, "e": x(1, N, S, L)}),
    "unidirectional": ("x,k,v", {"unidirectional": 1}, KEYS),
    "heads of keys": ("x,k,v", {}, {"k": heads(K3).copy(), "v": heads(x(B, L, D)).copy()}),
    "past": ("x,k,v,b,,,pk,pv", {}, {"k": K3, "v": -K3, **OLD, "b": x(3 * D)}),
    "past unidirectional": ("x,k,v,,m,,pk,pv", {"unidirectional": 1},
                            {"k": K3, "v": -K3, **OLD, "m": np.tile(PADDED, (1, 2))[:, :L + P]}),
}


@pytest.mark.parametrize("case", MULTI)
def test_multi_head_attention(case):
    inputs, attrs, weights = MULTI[case]
    outputs = ["y", "present_k", "present_v"] if "past" in case or case == "bias" else ["y"]
    m = model([ms("MultiHeadAttention", inputs, ",".join(outputs), num_heads=N, **attrs)], {"x": Q3}, weights, outputs=outputs)
    same(m, {"x": Q3}, rtol=1e-3 if "m" in weights else 4e-6)
    slope(m, {"x": Q3})


@pytest.mark.parametrize("name", ["k", "v"])
def test_slopes_of_keys_and_values(name):
    m = model([ms("MultiHeadAttention", "x,k,v,b", num_heads=N)], {"x": Q3, **KEYS}, {"b": BIAS})
    slope(m, {"x": Q3, **KEYS}, name)


def test_scores_are_given_out():
    n = ms("MultiHeadAttention", "x,k,v,,m", "y,,,qk", num_heads=N)
    m = model([n], {"x": Q3}, {**KEYS, "m": PADDED}, outputs=("y", "qk"))
    m.graph.output[1].type.tensor_type.elem_type = 1        # ONNX Runtime cannot tell it
    same(m, {"x": Q3}, rtol=1e-3)


def test_packed_queries_keys_and_values():
    """Forms that only GPUs have."""
    packed, bias = x(B, S, N, 3, H), x(3 * D)
    q, k, v = (np.ascontiguousarray(packed[:, :, :, i].transpose(0, 2, 1, 3)) for i in range(3))
    m = model([ms("MultiHeadAttention", "x", num_heads=N)], {"x": packed})
    slope(m, {"x": packed}, runs=replica(m, {"x": packed}, [attended(q, k, v)]))
    m = model([ms("MultiHeadAttention", "x,,,b", num_heads=N)], {"x": packed}, {"b": bias})
    shifts = (b.reshape(1, N, 1, H) for b in np.split(bias, 3))
    replica(m, {"x": packed}, [attended(*(a + b for a, b in zip((q, k, v), shifts)))])
    m = model([ms("MultiHeadAttention", "x,kv", num_heads=N)], {"x": Q3}, {"kv": np.ascontiguousarray(packed[:, :, :, 1:])})
    replica(m, {"x": Q3}, [attended(heads(Q3), k, v)])


def test_multi_head_attention_stays():
    stays(model([ms("MultiHeadAttention", "x,k,v,,m", num_heads=N)], {"x": Q3}, {**KEYS, "m": np.ones(8, I32)}))
    stays(model([ms("MultiHeadAttention", "x,k,v,,,,pk,pv,l", num_heads=N)], {"x": Q3}, {**KEYS, **OLD, "l": np.array([3], I32)}))


def test_decoder_attention():
    """Self attention works on buffers that past and present share, and stays."""
    q, weights = x(B, 1, D), {"k": x(B, N, L, H), "v": x(B, N, L, H), "m": PADDED}
    attrs = {"num_heads": N, "scale": 0.4, "mask_filter_value": -50.0}
    for inputs in ("x,k,v", "x,k,v,m"):
        m = model([ms("DecoderMaskedMultiHeadAttention", inputs, **attrs)], {"x": q}, weights)
        same(m, {"x": q}, rtol=1e-3 if "m" in inputs else 4e-6)
        slope(m, {"x": q})
    stays(model([ms("DecoderMaskedMultiHeadAttention", "x", num_heads=N)], {"x": x(B, 1, 3 * D)}))


@pytest.mark.parametrize("case", ["plain", "raw", "raw unidirectional", "cube", "ends and starts", "score bias"])
def test_relevance_is_conserved(case):
    """All of it goes to the values when the weights of the attention count as constants."""
    inputs, attrs, more = ATTENTION[case]
    weights = {k: v for k, v in {**PACKED, **more}.items() if k in inputs.split(",")}
    weights["b"] = np.zeros_like(weights["b"])
    conserved(model([ms("Attention", inputs, num_heads=N, **attrs)], {"x": SEQ}, weights), {"x": SEQ})


def test_rows_that_see_nothing_stay_finite():
    feeds, nothing = {"x": Q3, **KEYS}, np.zeros((B, L), I32)
    conserved(model([ms("MultiHeadAttention", "x,k,v,,m", num_heads=N)], feeds, {"m": nothing}), feeds)
