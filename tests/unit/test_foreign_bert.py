"""A small BERT as ONNX Runtime's optimiser leaves it, and as the exporter wrote it: one explanation."""

import numpy as np
import pytest
from onnx import helper

import graphattr
from graphattr import foreign
from graphattr.foreign import standardise
from tests.unit.foreigners import model, outcome

B, S, N, H, D, FLAT = 2, 5, 2, 4, 8, 12
I64 = np.int64
RNG = np.random.default_rng(11)
IDS = {"ids": np.array([[3, 0, 5, 1, 1], [2, 2, 6, 4, 0]], np.int32), "kinds": np.array([[0, 0, 1, 1, 0]] * 2, np.int32),
       "mask": np.array([[1] * 5, [1, 1, 1, 0, 0]], np.int32)}


def w(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def weights():
    held = {"words": w(7, D), "places": w(9, D), "segments": w(2, D), "g": 1 + w(D) / 5, "b": w(D), "last": w(D, 3)}
    for layer in "01":
        held |= {f"{k}{layer}": w(*shape) / 2 for k, shape in (
            ("q", (D, D)), ("k", (D, D)), ("v", (D, D)), ("bq", (D,)), ("bk", (D,)), ("bv", (D,)), ("o", (D, D)), ("bo", (D,)),
            ("i", (D, FLAT)), ("bi", (FLAT,)), ("f", (FLAT, D)), ("bf", (D,)))}
    return held


def op(kind, inputs, y, **attrs):
    return helper.make_node(kind, inputs.split(","), [y], y, **attrs)


def micro(kind, inputs, y, **attrs):
    return helper.make_node(kind, inputs.split(","), y.split(","), y, domain="com.microsoft", **attrs)


def fused():
    """EmbedLayerNormalization, Attention of packed weights, SkipLayerNormalization with a bias, BiasGelu."""
    held = weights()
    nodes = [micro("EmbedLayerNormalization", "ids,kinds,words,places,segments,g,b,mask", "h0,index", epsilon=1e-12)]
    for i in "01":
        held[f"w{i}"] = np.concatenate([held.pop(f"{k}{i}") for k in "qkv"], 1)
        held[f"bw{i}"] = np.concatenate([held.pop(f"b{k}{i}") for k in "qkv"])
        nodes += [micro("Attention", f"h{i},w{i},bw{i},mask", f"a{i}", num_heads=N), op("MatMul", f"a{i},o{i}", f"p{i}"),
                  micro("SkipLayerNormalization", f"p{i},h{i},g,b,bo{i}", f"n{i}", epsilon=1e-12),
                  op("MatMul", f"n{i},i{i}", f"m{i}"), micro("BiasGelu", f"m{i},bi{i}", f"e{i}"),
                  op("MatMul", f"e{i},f{i}", f"r{i}"),
                  micro("SkipLayerNormalization", f"r{i},n{i},g,b,bf{i}", f"h{int(i) + 1}", epsilon=1e-12)]
    return model([*nodes, *tail()], IDS, held)


def written_out():
    held = weights() | {"axes": np.array([1, 2], I64), "zero": np.int32(0), "none": np.float32(0), "far": np.float32(-1e4),
                        "heads": np.array([0, 0, N, H], I64), "flat": np.array([0, 0, D], I64), "root": np.float32(H**0.5),
                        "two": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5), "row": np.arange(S)}
    nodes = [op("Gather", "words,ids", "x1"), op("Gather", "segments,kinds", "x2"), op("Gather", "places,row", "x3"),
             op("Add", "x1,x2", "x4"), op("Add", "x4,x3", "x5"), op("LayerNormalization", "x5,g,b", "h0", epsilon=1e-12),
             op("Unsqueeze", "mask,axes", "wide"), op("Greater", "wide,zero", "free"), op("Where", "free,none,far", "added")]
    for i in "01":
        for k in "qkv":
            nodes += [op("MatMul", f"h{i},{k}{i}", f"x{k}{i}"), op("Add", f"x{k}{i},b{k}{i}", f"y{k}{i}"),
                      op("Reshape", f"y{k}{i},heads", f"z{k}{i}"),
                      op("Transpose", f"z{k}{i}", f"t{k}{i}", perm=[0, 2, 3, 1] if k == "k" else [0, 2, 1, 3])]
        nodes += [op("MatMul", f"tq{i},tk{i}", f"s{i}"), op("Div", f"s{i},root", f"d{i}"), op("Add", f"d{i},added", f"l{i}"),
                  op("Softmax", f"l{i}", f"u{i}"), op("MatMul", f"u{i},tv{i}", f"c{i}"),
                  op("Transpose", f"c{i}", f"ct{i}", perm=[0, 2, 1, 3]), op("Reshape", f"ct{i},flat", f"a{i}"),
                  op("MatMul", f"a{i},o{i}", f"p{i}"), op("Add", f"p{i},bo{i}", f"pb{i}"), op("Add", f"pb{i},h{i}", f"ps{i}"),
                  op("LayerNormalization", f"ps{i},g,b", f"n{i}", epsilon=1e-12), op("MatMul", f"n{i},i{i}", f"m{i}"),
                  op("Add", f"m{i},bi{i}", f"mb{i}"), op("Div", f"mb{i},two", f"v1{i}"), op("Erf", f"v1{i}", f"v2{i}"),
                  op("Add", f"v2{i},one", f"v3{i}"), op("Mul", f"mb{i},v3{i}", f"v4{i}"), op("Mul", f"v4{i},half", f"e{i}"),
                  op("MatMul", f"e{i},f{i}", f"r{i}"), op("Add", f"r{i},bf{i}", f"rb{i}"), op("Add", f"rb{i},n{i}", f"rs{i}"),
                  op("LayerNormalization", f"rs{i},g,b", f"h{int(i) + 1}", epsilon=1e-12)]
    return model([*nodes, *tail()], IDS, held)


def tail():
    return [op("ReduceMean", "h2", "pooled", axes=[1], keepdims=0), op("MatMul", "pooled,last", "y")]


@pytest.fixture
def both(monkeypatch):
    made = []
    for build in (fused, written_out):
        monkeypatch.setattr(f"{__name__}.RNG", np.random.default_rng(11))
        made.append(build())
    return made


def test_outputs(both):
    one, other = both
    new = standardise(one)
    assert not [n.op_type for n in new.graph.node if n.domain or n.op_type == "CastLike"]
    for m in (new, other):
        np.testing.assert_allclose(outcome(m, IDS)[0], outcome(one, IDS)[0], rtol=2e-5, atol=2e-5)


def test_one_pass_sees_through_all_layers(both, monkeypatch):
    """What was rewritten has a type at once, so that the number of passes does not grow with the depth."""
    passes, before = [], foreign._pass
    monkeypatch.setattr(foreign, "_pass", lambda *given: passes.append(before(*given)) or passes[-1])
    standardise(both[0])
    assert passes == [True, False]


@pytest.mark.parametrize("method", ["gradient_x_input", "lrp.epsilon", "lrp.attention", "lrp.attention_cp"])
def test_explanations(both, method):
    found = []
    for m in both:
        made = graphattr.convert(m, method=method, target=1).model
        names = [v.name for v in made.graph.output]
        found.append({k: v for k, v in zip(names, outcome(made, IDS), strict=True) if "attribution" in k})
    assert set(found[0]) == set(found[1]) == {"ids_attribution", "kinds_attribution"}
    for k, want in found[1].items():
        assert np.isfinite(want).all()
        np.testing.assert_allclose(found[0][k], want, rtol=0, atol=2e-4 * np.abs(want).max())
