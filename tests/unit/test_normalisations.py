"""A normalisation that is written out is one layer, and is explained as the native operator is."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper
from tiny import F, H, array, model, node

import graphattr
from graphattr.canonical import canonicalise
from graphattr.layers import to_layers
from graphattr.normalisations import norm_regions
from graphattr.source import read
from graphattr.vjp import depends

E, TWO = np.float32(1e-3), np.float32(2)
WEIGHTS = {"w1": array(6, 8), "b1": array(8, seed=1), "w2": array(8, 3, seed=2), "gamma": array(8, seed=3),
           "beta": array(8, seed=4), "eps": E, "two": TWO, "zero": np.float32(0),
           "half": np.float32(0.5), "minus_half": np.float32(-0.5),
           "one": np.float32(1)}


def mean(x, y, opset):
    return [node("ReduceMean", x + (" last" if opset >= 18 else ""), y, y, **({"axes": [-1]} if opset < 18 else {}))]


def nodes_of(*lines):
    """Nodes as "op inputs -> output"."""
    made = []
    for line in lines:
        (op, inputs), output = line.split("->")[0].strip().split(" ", 1), line.split("->")[1].strip()
        made.append(node(op, inputs, output, output))
    return made


DEVIATION = ["Sub h m -> d", "Mul d d -> q"]
ROOT = ["Add v eps -> a", "Sqrt a -> s"]
SCALED = ["Mul z gamma -> zg", "Add zg beta -> n"]
TF = ["Mul r gamma -> k", "Mul h k -> hk"]

# what stands between the statistics (m: mean, v: mean of q) and the result
SPELLINGS = {
    "torch": [["Sub h m -> d", "Pow d two -> q"], [*ROOT, "Div d s -> z", *SCALED]],
    "product": [DEVIATION, [*ROOT, "Div d s -> z", *SCALED]],
    "subtracted_twice": [DEVIATION, [*ROOT, "Sub h m -> d2", "Div d2 s -> z", *SCALED]],
    "reciprocal": [DEVIATION, [*ROOT, "Reciprocal s -> r", "Mul d r -> z", *SCALED]],
    "one_over": [DEVIATION, [*ROOT, "Div one s -> r", "Mul r d -> z", "Mul gamma z -> zg", "Add beta zg -> n"]],
    "power": [DEVIATION, ["Add eps v -> a", "Pow a minus_half -> r", "Mul d r -> z", *SCALED]],
    "square_root_as_power": [DEVIATION, ["Add eps v -> a", "Pow a half -> s", "Div d s -> z", *SCALED]],
    "scale_over_deviation": [DEVIATION, [*ROOT, "Div gamma s -> k", "Mul k d -> zg", "Add zg beta -> n"]],
    "keras": [DEVIATION, [*ROOT, "Reciprocal s -> r", *TF, "Neg m -> mm", "Mul mm k -> mk", "Add mk beta -> o", "Add hk o -> n"]],
    "tensorflow": [DEVIATION, [*ROOT, "Reciprocal s -> r", *TF, "Mul m k -> mk", "Sub beta mk -> o", "Add hk o -> n"]],
    "clamped": [DEVIATION, ["Max v zero -> c", "Add c eps -> a", "Sqrt a -> s", "Div d s -> z", *SCALED]],
}


def net(nodes, weights=None, opset=17, hidden=()):
    """x -> Gemm -> h -> ... -> n -> Relu -> MatMul -> y; `hidden`: axes of h between the batch and the features."""
    shape = ["N", *hidden, 6]
    body = [node("MatMul", "x w1", "hm", "first"), node("Add", "hm b1", "h", "bias"), *nodes, node("Relu", "n", "a1", "relu"),
            node("MatMul", "a1 w2", "y", "last")]
    used = {i for n in body for i in n.input}
    held = {**WEIGHTS, "last": np.array([-1]), **(weights or {})}
    return model(body, {"x": (F, shape)}, {"y": (F, ["N", *hidden, 3])}, {k: v for k, v in held.items() if k in used}, opset)


def spelled(name, opset=17):
    before, after = SPELLINGS[name]
    return net([*mean("h", "m", opset), *nodes_of(*before), *mean("q", "v", opset), *nodes_of(*after)], opset=opset)


def native(opset=17, gamma="gamma", beta=" beta", **more):
    return net([node("LayerNormalization", f"h {gamma}{beta}", "n", "norm", axis=-1, epsilon=float(E))], opset=opset, **more)


def same(one, other, x=None, methods=("gradient", "lrp.epsilon"), target=1):
    x = array(4, 6, seed=9) if x is None else x
    for method in methods:
        a, b = (graphattr.explain(m, x, method, target=target).scores["x"] for m in (one, other))
        assert np.abs(a - b).max() <= 1e-4 * np.abs(b).max(), method


def norms(proto):
    return [r for r in graphattr.inspect(proto)["layers"] if r["kind"] == "norm"]


@pytest.mark.parametrize("opset", [17, 20])
@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings_equal_the_native_operator(name, opset):
    proto = spelled(name, opset)
    (row,) = norms(proto)
    assert (row["name"], row["op"]) == ("n", "LayerNormalization")
    assert not [r for r in graphattr.inspect(proto)["layers"] if r["kind"] in ("quotient", "product", "mean", "smooth")]
    same(proto, native(opset))


def test_second_moment_as_flax_writes_it():
    proto = net([*mean("h", "m", 17), *nodes_of("Sub h m -> d", "Mul h h -> hh"), *mean("hh", "e", 17),
                 *nodes_of("Mul m m -> mm", "Sub e mm -> v0", "Max v0 zero -> v", *ROOT, "Div d s -> z", *SCALED)])
    assert len(norms(proto)) == 1
    same(proto, native())


def test_pooled_statistics_of_a_sequence():
    """tf2onnx writes the mean over the last of three axes as GlobalAveragePool."""
    pooled = [node("GlobalAveragePool", "h", "m", "m"), *nodes_of(*DEVIATION), node("GlobalAveragePool", "q", "v", "v")]
    proto = net([*pooled, *nodes_of(*SPELLINGS["keras"][1])], hidden=(5,))
    assert len(norms(proto)) == 1
    same(proto, native(hidden=(5,)), array(2, 5, 6, seed=9), target=(2, 1))


def test_statistics_reshaped():
    """The mean without its axis, put back by Unsqueeze."""
    flat = [node("ReduceMean", "h", "m0", "m0", axes=[-1], keepdims=0), node("Unsqueeze", "m0 last", "m", "m"),
            *nodes_of(*DEVIATION), node("ReduceMean", "q", "v0", "v0", axes=[-1], keepdims=0),
            node("Unsqueeze", "v0 last", "v", "v")]
    proto = net([*flat, *nodes_of(*SPELLINGS["torch"][1])])
    assert len(norms(proto)) == 1
    same(proto, native())


def test_without_scale_and_shift():
    proto = net([*mean("h", "m", 17), *nodes_of(*DEVIATION), *mean("q", "v", 17), *nodes_of(*ROOT, "Div d s -> n")])
    assert len(norms(proto)) == 1
    same(proto, native(gamma="ones", beta="", weights={"ones": np.ones(8, np.float32)}))


@pytest.mark.parametrize("ending", [["Div h s -> z", "Mul z gamma -> n"],
                                    ["Reciprocal s -> r", "Mul h r -> z", "Mul gamma z -> n"],
                                    ["Reciprocal s -> r", "Mul r gamma -> k", "Mul h k -> n"]])
@pytest.mark.parametrize("squares", ["Mul h h -> q", "Pow h two -> q"])
def test_root_mean_square(ending, squares):
    proto = net([*nodes_of(squares), *mean("q", "v", 23), *nodes_of(*ROOT, *ending)], opset=23)
    (row,) = norms(proto)
    assert row["op"] == "RMSNormalization"
    same(proto, net([node("RMSNormalization", "h gamma", "n", "norm", axis=-1, epsilon=float(E))], opset=23))


def test_two_normalisations_share_their_statistics():
    nodes = [*mean("h", "m", 17), *nodes_of(*DEVIATION), *mean("q", "v", 17),
             *nodes_of(*ROOT, "Reciprocal s -> r", *TF, "Neg m -> mm", "Mul mm k -> mk", "Add mk beta -> o", "Add hk o -> n1",
                       "Mul r beta -> k2", "Mul h k2 -> hk2", "Mul mm k2 -> mk2", "Add hk2 mk2 -> n2", "Add n1 n2 -> n")]
    both = [node("LayerNormalization", "h gamma beta", "n1", "norm1", axis=-1, epsilon=float(E)),
            node("LayerNormalization", "h beta", "n2", "norm2", axis=-1, epsilon=float(E)), *nodes_of("Add n1 n2 -> n")]
    assert [r["name"] for r in norms(net(nodes))] == ["n1", "n2"]
    same(net(nodes), net(both))


def test_a_residual_after_it_is_a_sum():
    nodes = [*mean("h", "m", 17), *nodes_of(*DEVIATION), *mean("q", "v", 17),
             *nodes_of(*ROOT, "Div d s -> z", "Mul z gamma -> zg", "Add zg beta -> o", "Add h o -> n")]
    assert [r["name"] for r in norms(net(nodes))] == ["o"]
    same(net(nodes), net([node("LayerNormalization", "h gamma beta", "o", "norm", axis=-1, epsilon=float(E)),
                          *nodes_of("Add h o -> n")]))


def test_over_the_picture_of_a_channel():
    """An instance normalisation written out, with a scale per channel."""
    stats = [node("ReduceMean", "x", "m", "m", axes=[2, 3]), *nodes_of("Sub x m -> d", "Mul d d -> q"),
             node("ReduceMean", "q", "v", "v", axes=[2, 3]), *nodes_of(*ROOT, "Div d s -> z", "Mul z g -> zg", "Add zg b -> n")]
    end = [node("Relu", "n", "r", "relu"), node("Flatten", "r", "f", "flat"), node("MatMul", "f w", "y", "last")]
    g, b = array(2, seed=1), array(2, seed=2)
    weights = {"eps": E, "g": g.reshape(2, 1, 1), "b": b.reshape(2, 1, 1), "w": array(32, 3)}
    one = model([*stats, *end], {"x": ["N", 2, 4, 4]}, {"y": ["N", 3]}, weights)
    norm = [node("InstanceNormalization", "x g b", "n", "norm", epsilon=float(E))]
    other = model([*norm, *end], {"x": ["N", 2, 4, 4]}, {"y": ["N", 3]}, {"g": g, "b": b, "w": array(32, 3)})
    assert len(norms(one)) == 1
    same(one, other, array(2, 2, 4, 4, seed=5))


def test_in_half_precision():
    proto = spelled("torch")
    for v in [*proto.graph.input, *proto.graph.output]:
        v.type.tensor_type.elem_type = H
    for t in proto.graph.initializer:
        if t.data_type == F:
            t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(np.float16), t.name))
    x = array(4, 6, seed=9).astype(np.float16)
    a = graphattr.explain(proto, x, "lrp.epsilon", target=1).scores["x"]
    b = graphattr.explain(native(), x.astype(np.float32), "lrp.epsilon", target=1).scores["x"]
    assert np.abs(a - b).max() <= 2e-2 * np.abs(b).max()


def refusals(proto):
    g = canonicalise(read(proto)).graph
    readers = {}
    for n in g.nodes:
        for v in n.uses:
            readers.setdefault(v, []).append(n)
    kept = {v for _, v in g.outputs}
    found, refused = norm_regions(g, depends(g.nodes, g.inputs), kept, readers)
    assert not found
    to_layers(g, g.inputs)
    return " ".join(refused.values())


def test_what_is_no_normalisation_is_left_as_it_is():
    """Each with the reason."""
    stats = [*mean("h", "m", 17), *nodes_of("Sub h m -> d")]
    good = [*nodes_of("Mul d d -> q"), *mean("q", "v", 17), *nodes_of(*ROOT)]
    after = nodes_of("Div d s -> z", *SCALED)
    assert "is no square" in refusals(net([*stats, *nodes_of("Abs d -> q"), *mean("q", "v", 17), *nodes_of(*ROOT), *after]))
    kept = [*nodes_of("Mul d d -> q"), node("ReduceMax", "q", "v", "v", axes=[-1]), *nodes_of(*ROOT)]
    assert "made by ReduceMax" in refusals(net([*stats, *kept, *after]))
    assert "is read by 'tail'" in refusals(net([*stats, *good, *nodes_of("Div d s -> z", *SCALED[:1], "Add zg beta -> o"),
                                                node("Exp", "d", "t", "tail"), *nodes_of("Add o t -> n")]))
    assert "nothing that is made of 'h'" in refusals(net([*stats, *good, *nodes_of("Div h s -> z", *SCALED)]))
    assert "not the mean of squares" in refusals(net([*stats, *nodes_of("Sub h beta -> v", "Sqrt v -> s"), *after]))
    assert "over the same axes" in refusals(net([*stats, *nodes_of("Mul d d -> q"), *mean("q", "e", 17),
                                                 *nodes_of("Mul m m -> mm", "Sub e mm -> v", *ROOT), *after]))
