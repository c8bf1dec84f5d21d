"""Blocks: what several layers are together, in every exporter's spelling; and what only looks like one, with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graphattr
from graphattr.layers import to_layers
from graphattr.tables import inspection_table
from tests.unit.seen import D, T, conv, dense, graph, named, only, reasons, seen
from tests.unit.test_blocks_attention import bert
from tests.unit.test_composites import ACTIVATIONS
from tests.unit.tiny import I, array, mlp, model, node

EXPORTS = Path(__file__).resolve().parents[3] / "shared" / "exports"


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
    (lambda g, x: g.Clip(x, 0.0, 20.0), "Clip"), (lambda g, x: g.Clip(x, 0.0), "ReLU"),
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
    (lambda g, x: x * g.Sigmoid(conv(g, conv(g, g.GlobalAveragePool(x), 2), 8)), "no activation between"),
    (lambda g, x: x * g.Sigmoid(conv(g, g.Relu(conv(g, g.Tanh(g.GlobalAveragePool(x)), 2)), 8)), "passes Tanh"),
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


def test_the_table_in_words(capsys):
    root = [node("Mul", "x x", "q"), node("ReduceSum", "q last", "s", keepdims=1), node("Sqrt", "s", "r", "root"),
            node("Div", "x r", "h", "divide"), node("MatMul", "h w", "y", "end")]
    inspection_table(graphattr.inspect(model(root, weights={"last": np.array([-1]), "w": array(4, 3)})))
    out = capsys.readouterr().out
    for words in ("blocks: 1 square, 1 Sqrt, 1 dense", "times", "no bias",
                  "looks like normalisation at 'root', but: 's' under the root"):
        assert words in out
