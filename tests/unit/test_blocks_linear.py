"""Dense layers, convolutions, patch embeddings and channels last by name."""

from __future__ import annotations

import numpy as np
import pytest

import graphattr
from tests.unit.seen import D, T, conv, dense, graph, named, only, reasons, seen
from tests.unit.tiny import array, model, node


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
    g, x = graph()
    assert only(seen(g, x, g.MatMul(array(7, T), x)), "dense").facts == {"over": "the axis before the last", "bias": False}


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
    assert [r["block"] for r in graphattr.inspect(proto)["layers"]] == [b["name"].partition(" (")[0] for b in found]
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
