"""wrt="tokens": the relevance of ids is that of the rows they fetch, wherever moved, shifted or joined ids fetch them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import graphattr
from tests.unit.tiny import H, I, array, mlp, model, node

pytest.importorskip("onnxruntime")
IDS = np.array([[0, 1, 2, 3, 6], [1, 1, 1, 1, 1], [6, 5, 4, 0, 0]])
TABLE, WEIGHT, PLACES, TYPES = array(7, 4), array(4, 3, seed=1), array(9, 4, seed=2), array(2, 4, seed=3)


def end(x="e"):
    """[N, T, 4] -> the mean over tokens of tanh -> y [N, 3]."""
    return [node("Tanh", x, "t"), node("ReduceMean", "t", "m", axes=[1], keepdims=0), node("Gemm", "m w", "y", "head")]


def lookup(*way, ids="ids", shape=("N", "T"), dtype=I, table=TABLE, rows="e", after=(), axis=0, **weights):
    """A model that fetches rows e [.., 4] by `ids`, as the nodes of `way` change it into i, and goes on with `after`."""
    index = "i" if way else ids
    nodes = [*way, node("Gather", f"table {index}", rows, "lookup", axis=axis), *after, *end()]
    return model(nodes, {ids: (dtype, list(shape))}, weights={"table": table, "w": WEIGHT, **weights})


def run(proto, feeds, **options):
    options.setdefault("method", "gradient_x_input")
    return graphattr.Explainer(graphattr.convert(proto, target=1, **options))(feeds)


def rows_of(proto, feeds, **options):
    """What the rows get when they are named: the tensor e."""
    return run(proto, feeds, wrt=["e"], **options).scores["e"].astype(float)


@pytest.mark.parametrize("method", ["gradient", "gradient_x_input", "lrp.epsilon", "lrp.attention", "excitation_backprop"])
def test_the_sum_over_the_embedding(method):
    proto = lookup()
    explanation = graphattr.convert(proto, method=method, wrt="tokens")
    assert explanation.outputs == ["y", "ids_attribution"]
    assert explanation.manifest["tokens"] == {"ids": ["e"]}
    a = run(proto, IDS, method=method, wrt="tokens", delta=True)
    named = run(proto, IDS, method=method, wrt="e", delta=True)
    assert a.scores["ids"].shape == IDS.shape
    assert np.allclose(a.scores["ids"], named.scores["e"].sum(-1), atol=1e-6)
    assert np.allclose(a.delta, named.delta, atol=1e-6)
    assert np.abs(a.scores["ids"]).max() > 0


def test_against_the_formula():
    e = TABLE[IDS].astype(float)
    want = ((1 - np.tanh(e) ** 2) * e * WEIGHT[:, 1]).sum(-1) / 5
    assert np.allclose(run(lookup(), IDS, wrt="tokens").scores["ids"], want, atol=1e-6)


ONE, TWO, THREE, FIVE, ZERO = ({name: np.array([n])} for name, n in
                               (("one", 1), ("two", 2), ("three", 3), ("five", 5), ("zero", 0)))
NAMES = np.arange(IDS.size).reshape(IDS.shape)
WAYS = {  # nodes, weights, and which id each row is fetched by
    "Cast": ([node("Cast", "ids", "i", to=onnx.TensorProto.INT32)], {}, NAMES),
    "Identity": ([node("Identity", "ids", "i")], {}, NAMES),
    "Reshape": ([node("Reshape", "ids all", "r"), node("Reshape", "r five", "i")],
                {"all": np.array([-1]), "five": np.array([-1, 5])}, NAMES),
    "Slice": ([node("Slice", "ids one five one", "i")], ONE | FIVE, NAMES[:, 1:]),
    "Slice with a step": ([node("Slice", "ids zero five one two", "i")], ZERO | ONE | FIVE | TWO, NAMES[:, ::2]),
    "there and back": ([node("Unsqueeze", "ids one", "u"), node("Squeeze", "u one", "i")], ONE, NAMES),
    "Transpose": ([node("Transpose", "ids", "t0"), node("Transpose", "t0", "i")], {}, NAMES),
    "an offset": ([node("Add", "ids zero", "i")], ZERO, NAMES),
    "Clip": ([node("Clip", "ids low high", "i")], {"low": np.array(1), "high": np.array(5)}, NAMES),
    "Where": ([node("Less", "ids zero", "n"), node("Where", "n zero ids", "i")], ZERO, NAMES),
    "Concat": ([node("Slice", "ids zero two one", "a"), node("Slice", "ids two five one", "b"),
                node("Concat", "b a", "i", axis=1)], ZERO | ONE | TWO | FIVE,
               np.concatenate([NAMES[:, 2:], NAMES[:, :2]], 1)),
    "Split": ([node("Split", "ids parts", "i rest", axis=1)], {"parts": np.array([3, 2])}, NAMES[:, :3]),
    "Gather": ([node("Gather", "ids some", "i", axis=1)], {"some": np.array([4, 0, 0])}, NAMES[:, [4, 0, 0]]),
}


@pytest.mark.parametrize("way", WAYS)
def test_moved_ids(way):
    """The relevance of a row goes to the id that fetched it."""
    nodes, weights, fetched_by = WAYS[way]
    proto = lookup(*nodes, shape=("N", 5), **weights)
    want = np.zeros(IDS.size)
    np.add.at(want, fetched_by.ravel(), rows_of(proto, IDS).sum(-1).ravel())
    assert np.allclose(run(proto, IDS, wrt="tokens").scores["ids"], want.reshape(IDS.shape), atol=1e-6)
    assert want.any()


def test_offsets_that_are_broadcast():
    """One column of ids and a table per field: ids [N, 1] + offsets [1, 3] -> [N, 3]; the fields' relevance is summed."""
    proto = lookup(node("Add", "ids offsets", "i"), shape=("N", 1), offsets=np.array([[0, 1, 2]]))
    ids = np.array([[0], [3]])
    assert np.allclose(run(proto, ids, wrt="tokens").scores["ids"], rows_of(proto, ids).sum((1, 2))[:, None], atol=1e-6)


def test_all_lookups_of_one_input_count():
    """Word and bias tables by the same ids: their relevance is summed."""
    proto = lookup(rows="p", after=[node("Gather", "other ids", "q"), node("Add", "p q", "e")], other=PLACES)
    explanation = graphattr.convert(proto, method="gradient_x_input", wrt="tokens")
    assert explanation.manifest["tokens"] == {"ids": ["p", "q"]}
    named = run(proto, IDS, wrt=["p", "q"]).scores
    assert np.allclose(run(proto, IDS, wrt="tokens").scores["ids"], (named["p"] + named["q"]).sum(-1), atol=1e-6)


def bert():
    """Word, position and type embeddings, added; positions are made from the shape, a mask is read and looks nothing up."""
    nodes = [node("Gather", "table input_ids", "words", "words"), node("Shape", "input_ids", "s"),
             node("Gather", "s one", "length"), node("Range", "zero length one", "positions"),
             node("Gather", "places positions", "placed", "placed"), node("Gather", "types token_type_ids", "typed", "typed"),
             node("Add", "words placed", "a"), node("Add", "a typed", "b"),
             node("Cast", "attention_mask", "f", to=1), node("Unsqueeze", "f last", "u"), node("Mul", "b u", "e"), *end()]
    return model(nodes, {k: (I, ["N", "T"]) for k in ("input_ids", "attention_mask", "token_type_ids")},
                 weights={"table": TABLE, "places": PLACES, "types": TYPES, "w": WEIGHT, "zero": np.array(0), "one": np.array(1),
                          "last": np.array([-1])})


def bert_feeds(ids=IDS):
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(int), "token_type_ids": ids % 2}


def test_every_input_with_a_lookup_has_an_output():
    explanation = graphattr.convert(bert(), method="gradient_x_input", wrt="tokens")
    assert explanation.outputs == ["y", "input_ids_attribution", "token_type_ids_attribution"]
    assert explanation.manifest["tokens"] == {"input_ids": ["words"], "token_type_ids": ["typed"]}
    a, named = run(bert(), bert_feeds(), wrt="tokens"), run(bert(), bert_feeds(), wrt=["words", "typed"])
    assert np.allclose(a.scores["input_ids"], named.scores["words"].sum(-1), atol=1e-6)
    assert np.allclose(a.scores["token_type_ids"], named.scores["typed"].sum(-1), atol=1e-6)
    assert not a.scores["input_ids"][IDS == 0].any(), "masked"


def test_one_input_by_name_and_names_beside_tokens():
    assert graphattr.convert(bert(), wrt="input_ids").outputs == ["y", "input_ids_attribution"]
    both = graphattr.convert(bert(), wrt=["tokens", "words", "input_ids"])
    assert both.outputs == ["y", "input_ids_attribution", "token_type_ids_attribution", "words_attribution"]
    floats = lookup(after=[], rows="p")
    floats.graph.input.append(onnx.helper.make_tensor_value_info("x", 1, ["N", "T", 4]))
    floats.graph.node.insert(1, node("Add", "p x", "e"))
    assert graphattr.convert(floats).outputs == ["y", "x_attribution"], "all float inputs are the default"
    assert graphattr.convert(floats, wrt=["x", "tokens"]).outputs == ["y", "x_attribution", "ids_attribution"]
    feeds = {"ids": IDS, "x": array(3, 5, 4, seed=5)}
    a, named = run(floats, feeds, wrt=["tokens", "x"]), run(floats, feeds, wrt=["p", "x"])
    assert np.allclose(a.scores["ids"], named.scores["p"].sum(-1), atol=1e-6)
    assert np.array_equal(a.scores["x"], named.scores["x"])


def test_tokens_are_the_default_of_models_of_integers():
    assert graphattr.convert(lookup()).outputs == ["y", "ids_attribution"]
    assert graphattr.convert(bert()).outputs[1:] == ["input_ids_attribution", "token_type_ids_attribution"]


def test_several_methods_ledger_and_open_axes():
    explanation = graphattr.convert(bert(), ["gradient_x_input", "lrp.epsilon"], "input", wrt="tokens", delta=True, ledger=True)
    assert "input_ids_attribution_lrp_epsilon" in explanation.outputs
    explainer = graphattr.Explainer(explanation)
    whole = explainer(bert_feeds(), [0, 1, 2])
    for i in range(3):
        one = explainer(bert_feeds(IDS[i:i + 1]), [i])
        for name, score in whole.scores.items():
            assert np.allclose(one.scores[name][0], score[i], atol=1e-6), name
    longer = explainer(bert_feeds(np.tile(IDS, (2, 1))[:, :3]), 1)
    assert longer.scores["input_ids/gradient_x_input"].shape == (6, 3)
    assert explanation.model.graph.output[1].type.tensor_type.shape.dim[1].dim_param == "T"


def test_completeness_with_tokens():
    """Linear without bias: the relevance of all tokens is the score."""
    proto = lookup()
    proto.graph.node[1].op_type = "Identity"
    a = run(proto, IDS, wrt="tokens", delta=True)
    assert np.allclose(a.scores["ids"].sum(1), a.outputs["y"][:, 1], atol=1e-6)
    assert np.allclose(a.delta, 0, atol=1e-6)


def test_baselines_are_those_of_the_rows():
    explanation = graphattr.convert(lookup(), "gradient_x_input", 1, wrt="tokens", baselines="input")
    assert explanation.inputs == ["ids", "e_baseline"]
    base = array(3, 5, 4, seed=8)
    a = graphattr.Explainer(explanation)({"ids": IDS, "e_baseline": base})
    e = TABLE[IDS].astype(float)
    assert np.allclose(a.scores["ids"], ((1 - np.tanh(e) ** 2) * (e - base) * WEIGHT[:, 1]).sum(-1) / 5, atol=1e-6)


def test_half_precision():
    proto = model([node("Gather", "table ids", "e"), node("Tanh", "e", "t"), node("ReduceMean", "t", "m", axes=[1], keepdims=0),
                   node("Gemm", "m w", "y", "head")], {"ids": (I, ["N", "T"])}, {"y": (H, ["N", 3])},
                  weights={"table": TABLE.astype(np.float16), "w": WEIGHT.astype(np.float16)})
    a = run(proto, IDS, wrt="tokens")
    assert a.scores["ids"].dtype == np.float32
    assert np.allclose(a.scores["ids"], run(lookup(), IDS, wrt="tokens").scores["ids"], atol=2e-3)


@pytest.mark.parametrize("axis", [1, -1])
def test_tables_on_their_side(axis):
    """A table (4, 7) read along its last axis: rows [4, N, T], turned afterwards."""
    proto = lookup(table=np.ascontiguousarray(TABLE.T), rows="p", axis=axis, after=[node("Transpose", "p", "e", perm=[1, 2, 0])])
    assert np.allclose(run(proto, IDS, wrt="tokens").scores["ids"], run(lookup(), IDS, wrt="tokens").scores["ids"], atol=1e-6)


def test_tables_of_numbers_and_of_integers():
    """One number per token; rows stored as integers, decoded behind the Gather or before it."""
    numbers = model([node("Gather", "table ids", "e"), node("Tanh", "e", "t"), node("ReduceMean", "t", "m", axes=[1], keepdims=1),
                     node("Gemm", "m w", "y", "head")], {"ids": (I, ["N", 5])}, weights={"table": array(7), "w": WEIGHT[:1]})
    assert np.allclose(run(numbers, IDS, wrt="tokens").scores["ids"], rows_of(numbers, IDS), atol=1e-6)
    small = {"table": np.round(TABLE * 20).astype(np.int8), "scale": np.float32(0.05)}
    for nodes in ([node("Gather", "table ids", "q"), node("DequantizeLinear", "q scale", "e")],
                  [node("DequantizeLinear", "table scale", "d"), node("Gather", "d ids", "e")]):
        proto = model([*nodes, *end()], {"ids": (I, ["N", "T"])}, weights={**small, "w": WEIGHT})
        assert np.allclose(run(proto, IDS, wrt="tokens").scores["ids"], rows_of(proto, IDS).sum(-1), atol=1e-6)


def test_an_input_that_is_called_tokens():
    """The tensor of that name is meant, and no other input."""
    proto = bert()
    for n in proto.graph.node:
        n.input[:] = ["tokens" if i == "input_ids" else i for i in n.input]
    proto.graph.input[0].name = "tokens"
    assert graphattr.convert(proto, wrt="tokens").outputs == ["y", "tokens_attribution"]


def refused(proto, *words, **options):
    with pytest.raises(graphattr.TargetError) as e:
        graphattr.convert(proto, **options)
    for word in words:
        assert word in str(e.value), str(e.value)


def test_models_without_lookups():
    refused(mlp(), "tokens", "no integer input", "x float32", wrt="tokens")
    counts = model([node("Cast", "ids", "e", "as_float", to=1), node("Gemm", "e w", "y")], {"ids": (I, ["N", 4])},
                   weights={"w": WEIGHT})
    refused(counts, "tokens", "'ids' is read by Cast 'as_float'", "floats at 'e'", wrt=["tokens"])
    refused(counts, "no float input", "wrt=['e']")
    refused(counts, "cannot attribute to 'ids'", "wrt=['e']", wrt="ids")
    moving = model([node("Gather", "x ids", "y", axis=1)], {"x": ["N", 4], "ids": (I, [2])}, {"y": ["N", 2]})
    refused(moving, "tokens", "Gather", wrt="tokens")
    refused(bert(), "'attention_mask'", "int64", wrt="attention_mask")


def test_an_input_that_does_not_matter():
    proto = bert()
    proto.graph.node[7].CopyFrom(node("Identity", "a", "b"))
    assert graphattr.convert(proto, wrt="tokens").outputs == ["y", "input_ids_attribution"], "nobody reads what it fetches"
    proto.graph.output.append(onnx.helper.make_tensor_value_info("typed", 1, ["N", "T", 4]))
    explanation = graphattr.convert(proto, method="gradient", wrt="tokens")
    assert explanation.manifest["unaffected"] == ["token_type_ids"]
    assert not graphattr.Explainer(explanation)(bert_feeds()).scores["token_type_ids"].any()
    refused(proto, "'token_type_ids'", "does not depend on", wrt="token_type_ids")


def test_behind_a_fused_embedding():
    """EmbedLayerNormalization is taken apart when the model is read: words and segments are looked up by inputs."""
    fused = onnx.helper.make_node(
        "EmbedLayerNormalization", ["ids", "segments", "table", "places", "types", "one", "zero", "mask"],
        ["h", "counts"], "embed", domain="com.microsoft")
    proto = model([fused, node("Tanh", "h", "t"), node("ReduceMean", "t", "m", axes=[1], keepdims=0), node("Gemm", "m w", "y")],
                  {k: (onnx.TensorProto.INT32, ["N", "T"]) for k in ("ids", "segments", "mask")}, domains=["com.microsoft"],
                  weights={"table": TABLE, "places": PLACES, "types": TYPES, "w": WEIGHT, "one": np.ones(4, np.float32),
                           "zero": np.zeros(4, np.float32)})
    feeds = {"ids": IDS, "segments": IDS % 2, "mask": IDS * 0 + 1}
    made = graphattr.convert(proto, "gradient_x_input", 1, wrt="tokens").manifest["tokens"]
    assert list(made) == ["ids", "segments"]
    named = run(proto, feeds, wrt=[made["ids"][0], made["segments"][0]])
    for name, score in run(proto, feeds, wrt="tokens").scores.items():
        assert np.allclose(score, named.scores[made[name][0]].sum(-1), atol=1e-6)
        assert score.any()


@pytest.mark.parametrize("precision", ["float32", "model"])
@pytest.mark.parametrize("way", ["Slice", "Slice with a step", "Concat", "Split", "Gather", "Where", "Clip"])
def test_moved_ids_in_half_precision(way, precision):
    nodes, weights, _ = WAYS[way]
    proto, full = (lookup(*nodes, shape=("N", 5), table=TABLE.astype(kind), **weights) for kind in (np.float16, np.float32))
    proto.graph.node.insert(len(nodes) + 1, node("Cast", "e", "wide", to=1))
    proto.graph.node[len(nodes) + 2].input[0] = "wide"
    a = run(proto, IDS, wrt="tokens", precision=precision)
    assert a.scores["ids"].dtype == np.float32
    assert np.allclose(a.scores["ids"], run(full, IDS, wrt="tokens").scores["ids"], atol=3e-3)
