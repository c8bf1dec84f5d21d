"""Attention in the spellings of its exporters; and products round a softmax that are none, with the reason."""

from __future__ import annotations

import numpy as np
import pytest

import graphattr
from tests.unit.seen import HEADS, D, T, dense, graph, named, only, reasons, seen
from tests.unit.tiny import F, array, model, node


def cut(g, x, heads=HEADS):
    """(N, T, D) -> (N, heads, T, d)."""
    return g.Transpose(g.Reshape(x, [0, -1, heads, D // heads]), perm=[0, 2, 1, 3])


def merged(g, y):
    return dense(g, g.Reshape(g.Transpose(y, perm=[0, 2, 1, 3]), [0, -1, D]), seed=9)


def qkv(g, x):
    return (dense(g, x, seed=s) for s in (1, 2, 3))


def bert(g, x, mask=None, axis=-1):
    q, k, v = (cut(g, part) for part in qkv(g, x))
    scores = g.MatMul(q, g.Transpose(k, perm=[0, 1, 3, 2])) / 2.0
    return merged(g, g.MatMul(g.Softmax(scores if mask is None else mask(g, scores), axis=axis), v))


def torch_script(g, x):
    """One projection, Split, the root of the scale on both sides."""
    whole = g.Transpose(g.Reshape(dense(g, x, 3 * D), [0, -1, 3, HEADS, D // HEADS]), perm=[2, 0, 3, 1, 4])
    q, k, v = (g.Squeeze(p, [0]) for p in g.Split(whole, n_outputs=3, axis=0, num_outputs=3))
    root = np.float32(0.5**0.5)
    return merged(g, g.MatMul(g.Softmax(g.MatMul(q * root, g.Transpose(k, perm=[0, 1, 3, 2]) * root)), v))


def torch_dynamo(g, x):
    """One projection, slices, keys transposed with heads and batch as one axis."""
    whole = g.Transpose(g.Reshape(dense(g, x, 3 * D), [0, -1, 3, HEADS, D // HEADS]), perm=[2, 0, 3, 1, 4])
    q, k, v = (g.Squeeze(g.Slice(whole, [i], [i + 1], [0]), [0]) for i in range(3))
    turned = g.Reshape(g.Transpose(g.Reshape(k, [-1, T, D // HEADS]), perm=[0, 2, 1]), [-1, HEADS, D // HEADS, T])
    return merged(g, g.MatMul(g.Softmax(g.MatMul(q * 0.5, turned)), v))


def gpt(g, x):
    """Split of the features, a scale computed from the shape."""
    q, k, v = (cut(g, p) for p in g.Split(dense(g, x, 3 * D), n_outputs=3, axis=-1, num_outputs=3))
    size = g.Cast(g.Gather(g.Shape(q), 3), to=F)
    return merged(g, g.MatMul(g.Softmax(g.MatMul(q, g.Transpose(k, perm=[0, 1, 3, 2])) / g.Sqrt(size)), v))


def stacked(g, x):
    """Batch and heads as one axis, as for bmm."""
    q, k, v = (g.Reshape(cut(g, p), [-1, T, D // HEADS]) for p in qkv(g, x))
    y = g.MatMul(g.Softmax(g.MatMul(q * 0.5, g.Transpose(k, perm=[0, 2, 1]))), v)
    return merged(g, g.Reshape(y, [-1, HEADS, T, D // HEADS]))


def keras(g, x):
    """As Keras' MultiHeadAttention: projections and products by Einsum, keys first."""
    q, k, v = (g.Reshape(dense(g, x, seed=s, bias=False), [0, -1, HEADS, D // HEADS]) + array(HEADS, D // HEADS, seed=s)
               for s in (1, 2, 3))
    weights = g.Softmax(g.Einsum(k, q * 0.5, equation="aecd,abcd->acbe"))
    y = g.Einsum(weights, v, equation="acbe,aecd->abcd")
    return g.Einsum(y, array(HEADS, D // HEADS, D), equation="abcd,cde->abe")


def paddle(g, x):
    """Softmax of a matrix, as opset 11 has it, between Flatten and Reshape."""
    q, k, v = (cut(g, part) for part in qkv(g, x))
    scores = g.MatMul(q * 0.5, g.Transpose(k, perm=[0, 1, 3, 2]))
    return merged(g, g.MatMul(g.Reshape(g.Softmax(g.Flatten(scores, axis=3), axis=1), g.Shape(scores)), v))


def queries_last(g, x):
    """The scores transposed, softmax over their first axis, values on the left."""
    q, k, v = (cut(g, part) for part in qkv(g, x))
    weights = g.Softmax(g.MatMul(k, g.Transpose(q * 0.5, perm=[0, 1, 3, 2])), axis=-2)
    return merged(g, g.Transpose(g.MatMul(g.Transpose(v, perm=[0, 1, 3, 2]), weights), perm=[0, 1, 3, 2]))


SPELLINGS = {"bert": bert, "torch script": torch_script, "torch dynamo": torch_dynamo, "gpt": gpt, "bmm": stacked,
             "keras": keras, "paddle": paddle, "queries last": queries_last}


@pytest.mark.parametrize("name", SPELLINGS)
def test_attention(name):
    g, x = graph("N", T, D)
    found = seen(g, x, SPELLINGS[name](g, x))
    b = only(found, "attention")
    wide = {"heads": HEADS, "width": D // HEADS, "scale": 0.5}
    assert {k: b.facts.get(k) for k in wide} == wide
    one = name in ("torch script", "torch dynamo", "gpt")
    assert b.facts["projections"] == ("one layer" if one else "q, k, v")
    assert set(b.parts) == {"query", "key", "value"}
    assert b.x == "x"
    assert "mask" not in b.facts
    assert not found[1]


@pytest.mark.parametrize("tokens", ["T", T])
def test_open_lengths(tokens):
    g, x = graph("N", tokens, D)
    b = only(seen(g, x, bert(g, x)), "attention")
    assert (b.facts["heads"], b.facts["scale"]) == (HEADS, 0.5)


def later(g, scores):
    return g.Where(g.const(np.tri(T, dtype=bool)), scores, np.float32(-1e9))


MASKS = {
    "added": (lambda g, s: s + np.triu(np.full((T, T), -1e9, np.float32), 1), {"mask": True, "causal": True}),
    "chosen": (later, {"mask": True, "causal": True}),
    "chosen the other way": (lambda g, s: g.Where(g.const(~np.tri(T, dtype=bool)), np.float32(-1e9), s),
                             {"mask": True, "causal": True}),
    "from the shape": (lambda g, s: s + g.Trilu(g.Expand(g.const(np.float32(-1e9)), g.Shape(g.Gather(s, 0, axis=0))), 1, upper=1),
                       {"mask": True, "causal": True}),
    "no later key": (lambda g, s: s + np.tril(np.full((T, T), -1e9, np.float32), -1), {"mask": True}),
    "some keys": (lambda g, s: s + np.float32([0, 0, 0, -1e9, -1e9]), {"mask": True}),
    "at run time": (lambda g, s: s + g.input("m", np.float32, ("N", 1, 1, T)), {"mask": True}),
    "positions": (lambda g, s: s + array(1, HEADS, T, T), {"bias": True}),
}


@pytest.mark.parametrize("name", MASKS)
def test_masks(name):
    g, x = graph("N", T, D)
    b = only(seen(g, x, bert(g, x, MASKS[name][0])), "attention")
    assert {k: v for k, v in b.facts.items() if k in ("mask", "causal", "bias")} == MASKS[name][1]
    assert b.facts["scale"] == 0.5


def test_a_mask_that_is_data_too():
    g, x = graph("N", T, D)
    m = g.input("m", np.float32, ("N", 1, 1, T))
    b = only(seen(g, x, bert(g, x, lambda g, s: g.Neg(m) * 1e4 + s), [m]), "attention")
    assert b.facts["mask"]


def summed(g, x):
    q, k, v = (cut(g, part) for part in qkv(g, x))
    return g.MatMul(g.Softmax(dense(g, q, T) + dense(g, k, T, seed=4)), v)


def unvalued(g, x):
    q, k, _ = (cut(g, part) for part in qkv(g, x))
    return g.Softmax(g.MatMul(q, g.Transpose(k, perm=[0, 1, 3, 2]))) * 2.0


def over_queries(g, x):
    """Sums over the queries what was normalised over the keys."""
    q, k, v = (cut(g, part) for part in qkv(g, x))
    weights = g.Softmax(g.MatMul(q, g.Transpose(k, perm=[0, 1, 3, 2])))
    return g.MatMul(g.Transpose(weights, perm=[0, 1, 3, 2]), v)


def mixed(g, x):
    """Softmax over keys and heads together."""
    q, k, v = (cut(g, part) for part in qkv(g, x))
    scores = g.Transpose(g.MatMul(q, g.Transpose(k, perm=[0, 1, 3, 2])), perm=[0, 2, 1, 3])
    weights = g.Reshape(g.Softmax(g.Reshape(scores, [0, 0, -1])), [0, T, HEADS, T])
    return g.MatMul(g.Transpose(weights, perm=[0, 2, 1, 3]), v)


def added_to(g, x):
    """A weight per token alone: attention pooling with a learned query."""
    return g.MatMul(g.Transpose(g.Softmax(dense(g, x, 1), axis=1), perm=[0, 2, 1]), x)


@pytest.mark.parametrize(("build", "why"), [
    (summed, "not a product of two data tensors"), (unvalued, "not multiplied with values"),
    (lambda g, x: bert(g, x, axis=-2), "does not sum over the axis that the softmax runs over"),
    (over_queries, "does not sum over the axis"), (mixed, "does not run over the keys"),
    (added_to, "made by MatMul"),
    (lambda g, x: bert(g, x, lambda g, s: g.Relu(s)), "made by Relu"),
])
def test_no_attention(build, why):
    g, x = graph("N", T, D)
    found = seen(g, x, build(g, x))
    assert not named(found, "attention")
    assert why in reasons(found, "attention")


def test_a_class_softmax_is_not_even_a_near_miss():
    g, x = graph("N", D)
    assert not seen(g, x, g.Softmax(dense(g, x, 3)))[1]


def test_the_operator():
    nodes = [node("Attention", "q k v", "y", "a", q_num_heads=3, kv_num_heads=3, is_causal=1)]
    shape = ["N", T, D]
    proto = model(nodes, {"q": shape, "k": shape, "v": shape}, {"y": shape}, opset=23, ir=10)
    (b,) = [b for b in graphattr.inspect(proto)["blocks"] if b["name"] == "attention"]
    assert b["facts"] == {"heads": 3, "width": 4, "scale": 0.5, "mask": True, "causal": True}


def test_several_queries_share_a_key():
    g, x = graph("N", T, D)
    q = cut(g, dense(g, x))
    k, v = (g.Transpose(g.Reshape(dense(g, x, 4, seed=s), [0, -1, 1, 4]), perm=[0, 2, 1, 3]) for s in (2, 3))
    k, v = (g.Reshape(g.Expand(g.Unsqueeze(p, [2]), [1, 1, HEADS, 1, 1]), [-1, HEADS, T, 4]) for p in (k, v))
    y = merged(g, g.MatMul(g.Softmax(g.MatMul(q, g.Transpose(k, perm=[0, 1, 3, 2])) * 0.5), v))
    facts = only(seen(g, x, y), "attention").facts
    assert facts == {"heads": HEADS, "width": 4, "scale": 0.5, "key heads": 1, "projections": "q, k, v"}


def rounded(g, x):
    step, zero = g.const(np.float32(0.05)), g.const(np.int8(0))
    return g.DequantizeLinear(g.QuantizeLinear(x, step, zero), step, zero)


def test_quantised_inside():
    g, x = graph("N", T, D)
    q, k, v = (cut(g, rounded(g, part)) for part in qkv(g, x))
    scores = rounded(g, g.MatMul(q, rounded(g, g.Transpose(k, perm=[0, 1, 3, 2])))) / 2.0
    y = merged(g, rounded(g, g.MatMul(rounded(g, g.Softmax(scores)), v)))
    facts = only(seen(g, x, y), "attention").facts
    assert facts == {"heads": HEADS, "width": 4, "scale": 0.5, "projections": "q, k, v"}


def test_sizes_that_only_the_run_knows():
    """The number of axes is not in the file, but follows from sizes."""
    g, x = graph("N", T, D)
    target = g.Compress(g.Concat(g.Slice(g.Shape(x), [0], [2]), [HEADS, D // HEADS, 7], axis=0), np.arange(5) < 4, axis=0)
    q, k, v = (g.Transpose(g.Reshape(part, target), perm=[0, 2, 1, 3]) for part in qkv(g, x))
    y = merged(g, g.MatMul(g.Softmax(g.MatMul(q, g.Transpose(k, perm=[0, 1, 3, 2]))), v))
    assert only(seen(g, x, y), "attention").facts["heads"] == HEADS


def test_axes_that_nobody_knows():
    g, x = graph("N", T, D)
    shape = g.input("shape", np.int64, ("R",))
    q, k, v = (g.Reshape(part, shape) for part in qkv(g, x))
    found = seen(g, x, g.MatMul(g.Softmax(g.MatMul(q, k)), v))
    assert not named(found, "attention")
    assert "are not known" in reasons(found, "attention")
