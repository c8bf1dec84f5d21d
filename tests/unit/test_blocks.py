"""Blocks: what several layers are together, in every exporter's spelling; and what only looks like one, with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graphattr
from graphattr.blocks import recognise
from graphattr.graph import Graph
from graphattr.layers import to_layers
from tests.unit.test_composites import ACTIVATIONS
from tests.unit.tiny import F, I, array, mlp, model, node

EXPORTS = Path(__file__).resolve().parents[3] / "shared" / "exports"
T, D, HEADS = 5, 12, 3  # tokens, features, heads


def graph(*shape, opset=20):
    g = Graph(opset)
    return g, g.input("x", np.float32, shape or ("N", T, D))


def seen(g, x, y, roots=()):
    g.outputs.append(("y", y))
    return recognise(to_layers(g, [x, *roots], [y]))


def named(found, name):
    return [b for b in found[0] if b.name == name]


def only(found, name):
    (b,) = named(found, name)
    return b


def reasons(found, name):
    return " ".join(m.why for m in found[1] if m.name == name)


def dense(g, x, out=D, seed=0, bias=True):
    y = g.MatMul(x, array(x.shape[-1], out, seed=seed))
    return y + array(out, seed=seed + 1) if bias else y


# -- activations --------------------------------------------------------------------------------------------------
NAMES = {"silu": "SiLU", "quick gelu": "GELU (quick)", "gelu": "GELU (erf)", "tanh gelu": "GELU (tanh)", "mish": "Mish",
         "hard swish": "HardSwish", "softshrink": "softshrink (0.5)", "elu": "ELU", "square": "square", "softsign": "softsign"}


@pytest.mark.parametrize("name", [n for n in ACTIVATIONS if n.split(",")[0].split(" by")[0] in NAMES])
def test_an_activation_is_named_by_its_values(name):
    g, x = graph("N", 4, 6)
    blocks, misses = seen(g, x, ACTIVATIONS[name][0](g, x))
    assert [b.name for b in blocks] == [NAMES[name.split(",")[0].split(" by")[0]]]
    assert len(blocks[0].layers) == len(to_layers(g, [x]).layers), "its constant factors belong to it"
    assert not misses


@pytest.mark.parametrize(("build", "name"), [
    (lambda g, x: g.Relu(x), "ReLU"), (lambda g, x: g.Clip(x, 0.0, 6.0), "ReLU6"), (lambda g, x: g.Sigmoid(x), "sigmoid"),
    (lambda g, x: g.Gelu(x), "GELU (erf)"), (lambda g, x: g.Gelu(x, approximate="tanh"), "GELU (tanh)"),
    (lambda g, x: g.Clip(x + 3.0, 0.0, 6.0) / 6.0, "HardSigmoid"), (lambda g, x: g.HardSigmoid(x), "HardSigmoid (slope 0.2)"),
    (lambda g, x: 1.7159 * g.Tanh(x * np.float32(2 / 3)), "scaled tanh"), (lambda g, x: g.LeakyRelu(x, alpha=0.1), "LeakyRelu"),
    (lambda g, x: x * g.Sigmoid(1.6 * x), "elementwise: Mul+Sigmoid+Mul"),
    (lambda g, x: x * g.Sigmoid(x * array(4, 1)), "elementwise: Mul+Sigmoid+Mul")])
def test_names(build, name):
    g, x = graph("N", 4, 6)
    assert [b.name for b in seen(g, x, build(g, x))[0]] == [name]


@pytest.mark.parametrize("half", [0.4, 0.5005])
def test_almost_gelu_is_no_gelu(half):
    g, x = graph("N", 4, 6)
    blocks, _ = seen(g, x, x * (g.Erf(x / np.float32(np.sqrt(2))) + 1.0) * half)
    assert [b.name for b in blocks] == ["elementwise: Div+Erf+Add+Mul"]


# -- attention ----------------------------------------------------------------------------------------------------
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


# -- normalisations -----------------------------------------------------------------------------------------------
def grouped(g, x, groups=4, back=True, scale=True):
    y = g.InstanceNormalization(g.Reshape(x, [0, groups, -1]), np.ones(groups, np.float32), np.zeros(groups, np.float32))
    y = g.Reshape(y, g.Shape(x)) if back else y
    return y * array(8, 1, 1) + array(8, 1, 1, seed=1) if scale and back else y


def written_group_norm(g, x):
    """As for channels last: two axes of features, moments over positions and the second."""
    h = g.Reshape(x, [0, 5, 6, 4, 2])
    d = h - g.ReduceMean(h, [1, 2, 4], keepdims=1)
    v = g.ReduceMean(d * d, [1, 2, 4], keepdims=1)
    return g.Reshape(d / g.Sqrt(v + 1e-5), [-1, 5, 6, 8]) * array(8)


def test_group_norm():
    for shape in (("N", 8, 5, 6), ("N", 8, "H", "W"), ("N", 8, 12)):
        g, x = graph(*shape)
        b = only(seen(g, x, grouped(g, x, scale=len(shape) == 4)), "GroupNorm")
        assert b.facts == {"groups": 4}
        assert len(b.layers) == (5 if len(shape) == 4 else 3)
    g, x = graph("N", 5, 6, 8)
    assert only(seen(g, x, written_group_norm(g, x)), "GroupNorm").facts == {"groups": 4}


def test_no_group_norm():
    g, x = graph("N", 8, 5, 6)
    found = seen(g, x, grouped(g, x, back=False) * 2.0)
    assert "not put back" in reasons(found, "GroupNorm")
    assert only(found, "InstanceNorm")
    g, x = graph("N", 6, 4, 5)  # groups that cross channels
    y = g.InstanceNormalization(g.Reshape(x, [0, 4, -1]), np.ones(4, np.float32), np.zeros(4, np.float32))
    assert not named(seen(g, x, g.Reshape(y, [0, 6, 4, 5])), "GroupNorm")
    g, x = graph("N", 8, 5, 6)  # one channel per group
    assert not named(seen(g, x, grouped(g, x, groups=8)), "GroupNorm")


def test_layer_norm_and_what_is_none():
    g, x = graph()
    d = x - g.ReduceMean(x, [-1], keepdims=1)
    y = d / g.Sqrt(g.ReduceMean(d * d, [-1], keepdims=1) + 1e-5)
    assert only(seen(g, x, y), "LayerNorm").origin == "ReduceMean+Sub+Mul+ReduceMean+Add+Sqrt+Div"
    g, x = graph()
    found = seen(g, x, x / g.Sqrt(g.ReduceSum(x * x, [-1], keepdims=1)))
    assert not named(found, "RMSNorm")
    assert "no mean over constant axes" in reasons(found, "normalisation")
    g, x = graph()
    y = x / g.Sqrt(g.ReduceMean(x * x, [-1], keepdims=1) + 1e-5)
    assert only(seen(g, x, y), "RMSNorm")


# -- squeeze and excite -------------------------------------------------------------------------------------------
def conv(g, x, out, k=1, seed=0, **attrs):
    return g.Conv(x, array(out, x.shape[1], k, k, seed=seed), array(out, seed=seed + 1), **attrs)


def excite(g, x, pool=None, gate=None, times=None, layers=2):
    pooled = g.GlobalAveragePool(x) if pool is None else pool(g, x)
    h = g.Relu(conv(g, pooled, 2)) if layers == 2 else pooled
    s = conv(g, h, 8, seed=3)
    return (x if times is None else times(g, x)) * (g.Sigmoid(s) if gate is None else gate(g, s))


def flat(g, x):
    """As torchvision's: pooled, flattened, two dense layers, reshaped."""
    h = dense(g, g.Relu(dense(g, g.Flatten(g.GlobalAveragePool(x)), 2)), 8)
    return x * g.Reshape(g.Sigmoid(h), [-1, 8, 1, 1])


def last(g, x):
    """Channels last."""
    h = g.ReduceMean(x, [1, 2], keepdims=1)
    return g.HardSigmoid(dense(g, g.Relu(dense(g, h, 2)), 6), alpha=1 / 6, beta=0.5) * x


EXCITES = {
    "convolutions": (lambda g, x: excite(g, x), "sigmoid", 8),
    "ReduceMean": (lambda g, x: excite(g, x, lambda g, x: g.ReduceMean(x, [2, 3], keepdims=1)), "sigmoid", 8),
    "AveragePool": (lambda g, x: excite(g, x, lambda g, x: g.AveragePool(x, kernel_shape=[5, 6])), "sigmoid", 8),
    "dense": (flat, "sigmoid", 8), "channels last": (last, "HardSigmoid", 6),
    "written out": (lambda g, x: excite(g, x, gate=lambda g, s: g.Clip(s + 3.0, 0.0, 6.0) / 6.0), "HardSigmoid", 8),
}


@pytest.mark.parametrize("name", EXCITES)
def test_squeeze_and_excite(name):
    build, gate, channels = EXCITES[name]
    g, x = graph("N", 8, 5, 6)
    found = seen(g, x, build(g, x))
    assert only(found, "squeeze-and-excite").facts == {"channels": channels, "hidden": 2, "gate": gate}
    assert not found[1]


@pytest.mark.parametrize(("build", "why"), [
    (lambda g, x: excite(g, x, gate=lambda g, s: g.Tanh(s)), "but by tanh"),
    (lambda g, x: excite(g, x, gate=lambda g, s: g.Sigmoid(s) * 2.0), "not made by a sigmoid"),
    (lambda g, x: excite(g, x, layers=1), "1 linear layer"),
    (lambda g, x: excite(g, x, times=lambda g, x: conv(g, x, 8)), "the mean is of 'x'"),
    (lambda g, x: x * g.Sigmoid(conv(g, g.Relu(conv(g, g.GlobalAveragePool(x), 2)), 1)), "not (2, 8, 1, 1)"),
])
def test_no_squeeze_and_excite(build, why):
    g, x = graph("N", 8, 5, 6)
    found = seen(g, x, build(g, x))
    assert not named(found, "squeeze-and-excite")
    assert why in reasons(found, "squeeze-and-excite")


def test_a_gate_without_a_mean_over_all_positions_is_nothing():
    for pool in (lambda g, x: g.AveragePool(x, kernel_shape=[5, 1]), lambda g, x: g.GlobalMaxPool(x)):
        g, x = graph("N", 8, 5, 6)
        found = seen(g, x, excite(g, x, pool))
        assert not named(found, "squeeze-and-excite")


# -- joins --------------------------------------------------------------------------------------------------------
def stack(g, parts, keep):
    joined = g.Concat(*(g.Unsqueeze(p, [0]) for p in parts), axis=0)
    y = g.ReduceSum(joined, [0], keepdims=keep)
    return g.Squeeze(y, [0]) if keep else y


@pytest.mark.parametrize(("build", "projected"), [
    (lambda g, x: x + g.Relu(conv(g, x, 8)), False), (lambda g, x: g.Sum(g.Relu(conv(g, x, 8)), x), False),
    (lambda g, x: conv(g, x, 8) + conv(g, g.Relu(conv(g, x, 8, 3, 2, pads=[1] * 4)), 8, 1, 4), True),
    (lambda g, x: stack(g, (x, g.Relu(x)), 0), False), (lambda g, x: stack(g, (x, g.Relu(x)), 1), False),
])
def test_residual_join(build, projected):
    g, x = graph("N", 8, 5, 6)
    b = only(seen(g, x, build(g, x)), "residual join")
    assert b.parts["skip"] == "x"
    assert bool(b.facts.get("projected")) == projected


def test_no_residual_join():
    g, x = graph("N", 8, 5, 6)
    assert not named(seen(g, x, conv(g, x, 8) + conv(g, x, 8, seed=5)), "residual join"), "two branches of one length"
    g, x = graph("N", 8, 5, 6)
    assert not named(seen(g, x, x - g.Relu(x)), "residual join"), "a difference"
    g, x = graph("N", 8, 5, 6)
    found = seen(g, x, stack(g, (g.Relu(x), g.Tanh(x)), 0))
    assert "computed from another" in reasons(found, "residual join")
    g, x = graph("N", 8, 5, 6)
    assert not named(seen(g, x, g.ReduceSum(g.Concat(x, g.Relu(x), axis=1), [1])), "residual join"), "no stack"


# -- linear layers ------------------------------------------------------------------------------------------------
def test_dense():
    g, x = graph()
    assert only(seen(g, x, dense(g, x)), "dense").facts == {}
    g, x = graph()
    assert only(seen(g, x, dense(g, x, bias=False)), "dense").facts == {"bias": False}
    g, x = graph()
    y = g.Reshape(dense(g, g.Reshape(x, [-1, D]), 6, bias=False), [-1, T, 6]) + array(6)
    b = only(seen(g, x, y), "dense")
    assert (b.facts, len(b.layers)) == ({}, 4)
    g, x = graph()
    y = g.Reshape(dense(g, g.Reshape(x, [-1, D]), 6, bias=False), [-1, T, 6]) + array(T, 1)
    assert only(seen(g, x, y), "dense").facts == {"bias": False}, "a number per token is no bias"


def test_einsum_with_a_weight():
    g, x = graph("N", T, 3, 4)
    assert only(seen(g, x, g.Einsum(x, array(3, 4, 6), equation="abcd,cde->abe")), "dense")
    g, x = graph("N", T, 3, 4)
    found = seen(g, x, g.Einsum(x, array(3, 4, 6), equation="abcd,cde->abce"))
    assert not named(found, "dense")
    assert "a weight of its own for each c" in reasons(found, "dense layer")


def bn(x, y, channels=8):
    weights = {k: np.abs(array(channels, seed=i)) + 0.5 for i, k in enumerate(("s", "b", "m", "v"))}
    return [node("BatchNormalization", f"{x} s b m v", y, "bn")], weights


def test_convolutions():
    w = {"w": array(8, 3, 3, 3), "d": array(8, 1, 3, 3), "t": array(8, 2, 2, 2)}
    nodes, held = bn("c", "h")
    nodes = [node("Conv", "x w", "c", "conv", strides=[2, 2]), *nodes, node("Conv", "h d", "e", "deep", group=8),
             node("ConvTranspose", "e t", "y", "up", strides=[2, 2])]
    proto = model(nodes, {"x": ["N", 3, 17, 17]}, {"y": ["N", 2, 12, 12]}, {**w, **held})
    found = graphattr.inspect(proto)["blocks"]
    assert [(b["name"], b["facts"]) for b in found] == [
        ("convolution (BatchNormalization folded)", {"kernel": "3x3", "stride": "2x2"}),
        ("depthwise convolution", {"kernel": "3x3"}), ("transposed convolution", {"kernel": "2x2", "stride": "2x2"})]
    kept = graphattr.inspect(proto, "lrp.epsilon", bn="pass")["blocks"]
    assert [b["name"] for b in kept][:2] == ["convolution", "BatchNorm"]


def test_what_is_folded():
    """A bias that was added is no normalisation; a BatchNormalization in front of the convolution is one."""
    w = {"w": array(8, 3, 1, 1), "bias": array(8, 1, 1)}
    proto = model([node("Conv", "x w", "c", "conv"), node("Add", "c bias", "y", "add")], {"x": ["N", 3, 4, 4]},
                  {"y": ["N", 8, 4, 4]}, w)
    assert [b["name"] for b in graphattr.inspect(proto)["blocks"]] == ["convolution"]
    nodes, held = bn("x", "h", 3)
    proto = model([*nodes, node("Conv", "h w", "y", "conv")], {"x": ["N", 3, 4, 4]}, {"y": ["N", 8, 4, 4]}, {**w, **held})
    assert [b["name"] for b in graphattr.inspect(proto)["blocks"]] == ["convolution (BatchNormalization folded)"]


def patched(g, x, k=4, stride=4, tokens=True, **attrs):
    y = conv(g, x, 6, k, strides=[stride, stride], **attrs)
    return g.Transpose(g.Reshape(y, [0, 6, -1]), perm=[0, 2, 1]) if tokens else y


def test_patch_embedding():
    g, x = graph("N", 3, 16, 16)
    joined = g.Concat(g.Expand(array(1, 1, 6), g.Concat(g.Slice(g.Shape(x), [0], [1]), [1, 1], axis=0)), patched(g, x), axis=1)
    b = only(seen(g, x, joined + array(1, 17, 6)), "patch embedding")
    assert b.facts == {"patch": "4x4", "width": 6, "class token": True, "positions": True}
    g, x = graph("N", 3, 16, 16)
    assert only(seen(g, x, patched(g, x)), "patch embedding").facts == {"patch": "4x4", "width": 6}
    g, x = graph("N", 3, "H", "W")
    y = g.Reshape(g.Transpose(conv(g, x, 6, 4, strides=[4, 4]), perm=[0, 2, 3, 1]), [0, -1, 6])
    assert only(seen(g, x, y), "patch embedding")


@pytest.mark.parametrize(("attrs", "why"), [({"stride": 2}, "overlap"), ({"pads": [1] * 4}, "padded"),
                                            ({"tokens": False}, "not made a sequence")])
def test_no_patch_embedding(attrs, why):
    g, x = graph("N", 3, 16, 16)
    found = seen(g, x, patched(g, x, **attrs))
    assert not named(found, "patch embedding")
    assert why in reasons(found, "patch embedding")


def test_transposed_otherwise_is_no_sequence_of_tokens():
    g, x = graph("N", 3, 16, 16)
    y = conv(g, x, 6, 4, strides=[4, 4])
    mixed_up = g.Reshape(g.Reshape(y, [0, 6, -1]), [0, 16, 6])  # the right shape, the wrong elements
    assert not named(seen(g, x, mixed_up), "patch embedding")


def test_channels_last():
    g, x = graph("N", 6, 6, 3)
    y = g.Transpose(g.Relu(conv(g, g.Transpose(x, perm=[0, 3, 1, 2]), 4)), perm=[0, 2, 3, 1])
    found = seen(g, x, y)
    assert only(found, "channels last to first")
    assert only(found, "channels first to last")
    g, x = graph("N", 6, 6, 3)
    y = dense(g, g.Reshape(g.Transpose(x, perm=[0, 3, 1, 2]), [-1, 108]), 4)
    assert not named(seen(g, x, y), "channels last to first"), "no convolution behind it"


# -- embeddings and recurrent layers ------------------------------------------------------------------------------
def tokens(table=(7, 4), axis=0):
    nodes = [node("Gather", "table ids", "e", "words", axis=axis), node("Shape", "ids", "s"), node("Gather", "s one", "n"),
             node("Range", "zero n one", "places"), node("Gather", "more places", "p", "places"),
             node("Add", "e p", "h", "add") if axis == 0 else node("Transpose", "e", "h", "turn", perm=[1, 2, 0]),
             node("MatMul", "h w", "y", "last")]
    held = {"table": array(*table), "more": array(9, 4), "zero": np.int64(0), "one": np.int64(1), "w": array(4, 2)}
    return model(nodes, {"ids": (I, ["N", 5])}, {"y": ["N", 5, 2]}, held)


def test_embeddings():
    found = {b["name"]: b["facts"] for b in graphattr.inspect(tokens(), wrt="e")["blocks"]}
    assert found["token embedding"] == {"rows": 7, "width": 4}
    assert found["position embedding"] == {"rows": 9, "width": 4}
    turned = graphattr.inspect(tokens((4, 7), axis=1), wrt="e")
    assert not [b for b in turned["blocks"] if b["name"] == "token embedding"]
    assert [m["why"] for m in turned["misses"]] == ["it fetches columns (axis 1) of its table, not rows"]


def test_recurrent():
    held = {"w": array(1, 12, 4), "r": array(1, 12, 3, seed=1), "v": array(3, 2)}
    nodes = [node("LSTM", "x w r", "h", "lstm", hidden_size=3), node("MatMul", "h v", "y", "last")]
    proto = model(nodes, {"x": [6, "N", 4]}, {"y": [6, 1, "N", 2]}, held)
    found = graphattr.inspect(proto)
    assert [(b["name"], b["facts"]) for b in found["blocks"]] == [("LSTM", {"hidden": 3, "steps": 6}), ("dense", {"bias": False})]


# -- inspect ------------------------------------------------------------------------------------------------------
def test_blocks_are_a_view():
    """Names and kinds of the layers stay what they are."""
    g, x = graph("N", T, D)
    y = bert(g, x)
    before = [(layer.name, layer.kind) for layer in to_layers(g, [x], [y]).layers]
    seen(g, x, y)
    assert [(layer.name, layer.kind) for layer in to_layers(g, [x], [y]).layers] == before


def test_inspect_says_what_it_sees():
    found = graphattr.inspect(mlp("Softmax"))
    assert found["summary"] == "2 dense, 1 ReLU"
    assert [row["block"] for row in found["layers"]] == ["dense", "ReLU", "dense", None]
    assert found["blocks"][1] == {"name": "ReLU", "layers": ["relu"], "x": "h", "y": "a", "facts": {}, "parts": {},
                                  "origin": "Relu"}
    assert found["misses"] == []


VIT = "1 convolution, 1 patch embedding, 2 LayerNorm, 5 dense, 1 attention (2 heads), 2 residual join, 1 GELU (erf)"
SEQUENCE = "6 dense, 2 LayerNorm, 1 attention (2 heads), 1 residual join"
CNN = "2 convolution, 2 ReLU, 1 dense"
KERAS = "1 ReLU, 1 depthwise convolution, 1 convolution, 1 ReLU6, 1 channels first to last, 1 dense"
FOLDED = "1 convolution (scale and shift folded)"
SUMMARIES = {
    "torch_ts_vit": VIT, "torch_dynamo_vit": VIT, "keras_export_attn": SEQUENCE, "tf2onnx_attn": SEQUENCE,
    "torch_ts_cnn": CNN, "torch_dynamo_cnn": CNN, "fp16_cnn": CNN, "fp16io32_cnn": CNN, "ort_optimized_cnn": CNN,
    "torch_ts_cnn_keepbn": "2 convolution (BatchNormalization folded), 2 ReLU, 1 dense",
    "paddle2onnx_cnn": "1 convolution (BatchNormalization folded), 1 HardSwish, 1 convolution, 1 ReLU, 1 dense",
    "jax2onnx_cnn": "1 channels last to first, 1 convolution (BatchNormalization folded), 2 ReLU, 1 convolution, "
                    "1 channels first to last, 1 dense",
    "keras_export_cnn": f"1 channels last to first, {FOLDED}, {KERAS}",
    "tf2onnx_cnn": f"1 channels last to first, {FOLDED}, {KERAS}", "tf2onnx_cnn_nchw": f"{FOLDED}, {KERAS}",
    "torch_ts_mlp": "2 dense, 1 LayerNorm, 1 GELU (erf)", "torch_dynamo_mlp": "2 dense, 1 LayerNorm, 1 GELU (erf)",
    "jax2onnx_mlp": "2 dense, 1 LayerNorm, 1 GELU (erf)", "ort_dynamic_mlp": "2 dense, 1 LayerNorm, 1 GELU (erf)",
    "tf2onnx_mlp": "2 dense, 1 LayerNorm, 1 GELU (tanh)", "keras_export_mlp": "2 dense, 1 LayerNorm, 1 GELU (tanh)",
    "torch_ts_bilstm": "1 LSTM, 1 dense", "torch_dynamo_bilstm": "1 LSTM, 1 dense", "keras_export_lstm": "1 LSTM, 1 dense",
    "ort_qdq_cnn": "2 convolution, 1 dense", "ort_qoperator_cnn": "2 convolution, 1 dense",
    "skl_mlp_digits": "2 dense, 1 ReLU", "skl_mlpreg_diabetes": "2 dense, 1 tanh",
}


@pytest.mark.skipif(not EXPORTS.is_dir(), reason="the exporters' models are not beside this checkout")
@pytest.mark.parametrize("name", SUMMARIES)
def test_what_exporters_write(name):
    found = graphattr.inspect(EXPORTS / f"{name}.onnx")
    assert found["summary"] == SUMMARIES[name]
    assert found["misses"] == []
