"""The graph seen as layers: kinds, biases, positions, gates, paths."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest

from graphattr.canonical import canonicalise
from graphattr.graph import Graph
from graphattr.layers import to_layers
from graphattr.method import Assign, Method
from graphattr.plan import plan
from graphattr.rule import KINDS, load_rules
from graphattr.source import read
from tests.unit.tiny import array, mlp, model, node

load_rules()


def start(shape=("N", 4, 6, 6), opset=20):
    g = Graph(opset)
    return g, g.input("x", np.float32, shape)


def kinds(g, *roots, keep=()):
    return [layer.kind for layer in to_layers(g, roots, keep).layers]


def layers_of(proto, wrt=None, keep=()):
    canonical = canonicalise(read(proto))
    g = canonical.graph
    roots = [canonical.value(n) for n in wrt] if wrt else g.inputs
    return to_layers(g, roots, [canonical.value(n) for n in keep])


W, ONES = np.ones((4, 4, 3, 3), np.float32), np.ones((4, 4, 1, 1), np.float32)
ONE = {
    "linear": [lambda g, x: g.Conv(x, W), lambda g, x: g.ConvTranspose(x, W),
               lambda g, x: g.MatMul(x, W[0, 0, :2, :1].repeat(3, 0)),
               lambda g, x: g.MatMul(np.ones((2, 6), np.float32), x),
               lambda g, x: g.Einsum(x, np.ones((4, 5), np.float32), equation="nchw,ck->nkhw")],
    "mean": [lambda g, x: g.AveragePool(x, kernel_shape=[2, 2]), lambda g, x: g.GlobalAveragePool(x),
             lambda g, x: g.ReduceMean(x, [2]), lambda g, x: g.ReduceSum(x, [1]), lambda g, x: g.CumSum(x, g.const(1, "int64")),
             lambda g, x: g.Resize(x, None, [1.0, 1.0, 2.0, 2.0], mode="linear"), lambda g, x: g.ReduceL2(x, [1])],
    "structure": [lambda g, x: g.Reshape(x, [0, -1]), lambda g, x: g.Transpose(x, perm=[0, 2, 3, 1]), lambda g, x: g.Flatten(x),
                  lambda g, x: g.Slice(x, [0], [2], [1]), lambda g, x: g.Concat(x, x, axis=1), lambda g, x: g.Pad(x, [0] * 8),
                  lambda g, x: g.Gather(x, g.const([0, 1], "int64"), axis=1), lambda g, x: g.Cast(x, to=11),
                  lambda g, x: g.Split(x, n_outputs=2, axis=1, num_outputs=2), lambda g, x: g.Expand(x, [1, 4, 6, 6]),
                  lambda g, x: g.DepthToSpace(x, blocksize=2), lambda g, x: g.Resize(x, None, [1.0, 1.0, 2.0, 2.0]),
                  lambda g, x: g.Tile(x, g.const([1, 1, 2, 1], "int64"))],
    "relu": [lambda g, x: g.Relu(x), lambda g, x: g.LeakyRelu(x), lambda g, x: g.Clip(x, 0.0, 6.0), lambda g, x: g.PRelu(x, 0.2),
             lambda g, x: g.Max(x, 0.0), lambda g, x: g.Min(x, 6.0)],
    "smooth": [lambda g, x: g.Sigmoid(x), lambda g, x: g.Tanh(x), lambda g, x: g.Gelu(x), lambda g, x: g.Softplus(x),
               lambda g, x: g.HardSwish(x), lambda g, x: g.Exp(x), lambda g, x: g.Pow(x, 2.0), lambda g, x: g.Erf(x),
               lambda g, x: 2.0 / x],
    "shift": [lambda g, x: x + 1.0, lambda g, x: 1.0 - x, lambda g, x: x + np.ones((4, 1, 1), np.float32)],
    "scale": [lambda g, x: x * 2.0, lambda g, x: x / 2.0, lambda g, x: x * np.ones((4, 1, 1), np.float32)],
    "sum": [lambda g, x: x + g.Relu(x), lambda g, x: x - g.Relu(x), lambda g, x: g.Sum(x, x), lambda g, x: g.Mean(x, g.Relu(x))],
    "product": [lambda g, x: x * g.Conv(x, ONES), lambda g, x: g.Relu(x) * g.MaxPool(x, kernel_shape=[1, 1])],
    "quotient": [lambda g, x: x / g.Conv(x, ONES)],
    "bilinear": [lambda g, x: g.MatMul(x, g.Relu(x)), lambda g, x: g.Einsum(x, g.Relu(x), equation="nchw,nchw->nc")],
    "softmax": [lambda g, x: g.Softmax(x)],
    "maxpool": [lambda g, x: g.MaxPool(x, kernel_shape=[2, 2]), lambda g, x: g.GlobalMaxPool(x), lambda g, x: g.ReduceMax(x, [1]),
                lambda g, x: g.Max(x, g.Relu(x)), lambda g, x: g.TopK(x, g.const([2], "int64"), n_outputs=2)],
    "norm": [lambda g, x: g.LayerNormalization(x, np.ones(6, np.float32)), lambda g, x: g.LRN(x, size=3),
             lambda g, x: g.InstanceNormalization(x, np.ones(4, np.float32), np.ones(4, np.float32))],
    "batchnorm": [lambda g, x: g.BatchNormalization(x, *[np.ones(4, np.float32)] * 4)],
    "other": [lambda g, x: g.LogSoftmax(x)],
    "unknown": [lambda g, x: g.record("Custom", [x], ["c"], {}, "n", "my.ops", {"c": (np.dtype(np.float32), (1,))})],
}
CASES = [pytest.param(k, f, id=f"{k}-{i}") for k, fs in ONE.items() for i, f in enumerate(fs)]


@pytest.mark.parametrize(("kind", "build"), CASES)
def test_kind_of_each_operator(kind, build):
    g, x = start()
    build(g, x)
    assert kinds(g, x)[-1] == kind


def test_every_kind_is_met():
    assert KINDS | {"unknown"} == set(ONE)


def test_operators_without_derivative_end_the_data():
    g, x = start()
    g.Relu(g.Cast(g.ArgMax(x, axis=1), to=1))
    assert kinds(g, x) == []


# -- linear layers ------------------------------------------------------------------------------------------------
def test_the_bias_of_a_product():
    g, x = start(("N", 4))
    w, b = np.ones((4, 5), np.float32), np.ones(5, np.float32)
    for y in (g.MatMul(x, w) + b, b + g.MatMul(x, w * 2)):
        layer = next(layer for layer in to_layers(g, [x]).layers if layer.ys == (y,))
        assert layer.kind == "linear"
        assert layer.op == "MatMul"
        assert layer.b.data.tolist() == b.tolist()
        assert layer.xs == (x,)
    g, x = start()
    y = g.Conv(x, W) + np.ones((1, 4, 1, 1), np.float32)
    assert to_layers(g, [x]).layers[-1].ys == (y,)
    assert len(to_layers(g, [x]).layers) == 1


def test_what_is_no_bias():
    """One value per element, a second reader, a tensor that is asked for, or data: none of these is a bias."""
    g, x = start(("N", 3, 4))
    g.MatMul(x, np.ones((4, 5), np.float32)) + np.ones((3, 5), np.float32)
    assert kinds(g, x) == ["linear", "shift"]
    g, x = start(("N", 4))
    z = g.MatMul(x, np.ones((4, 5), np.float32))
    z + np.ones(5, np.float32)
    assert kinds(g, x, keep=[z]) == ["linear", "shift"]
    g.Relu(z)
    assert kinds(g, x) == ["linear", "shift", "relu"]
    g, x = start(("N", 4))
    g.MatMul(x, np.ones((4, 4), np.float32)) + x
    assert kinds(g, x) == ["linear", "sum"]
    g, x = start()
    g.Conv(x, W, np.zeros(4, np.float32)) + np.ones((4, 1, 1), np.float32)
    assert kinds(g, x) == ["linear", "shift"]


def test_gemm_with_factors():
    g, x = start(("N", 4))
    w, b = np.full((5, 4), 3, np.float32), np.full(5, 7, np.float32)
    g.Gemm(x, w, b, alpha=2.0, beta=0.5, transB=1)
    (layer,) = to_layers(g, [x]).layers
    assert layer.kind == "linear"
    factors = {g.producer(v).inputs[0].data.flat[0]: g.producer(v).inputs[1].data for v in (layer.w, layer.b)}
    assert factors == {3: 2.0, 7: 0.5}


def test_a_weight_that_is_data_makes_it_bilinear():
    g, x = start(("N", 4, 6, 6))
    w = g.input("w", np.float32, (4, 4, 3, 3))
    g.Conv(x, w)
    assert kinds(g, x) == ["linear"]
    assert kinds(g, x, w) == ["bilinear"]
    assert kinds(g, w) == ["linear"]


# -- composites ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("build", [
    lambda g, x: x * g.Sigmoid(x),
    lambda g, x: x * g.Sigmoid(x * 1.702),
    lambda g, x: 0.5 * x * (1.0 + g.Erf(x / np.float32(np.sqrt(2)))),
    lambda g, x: 0.5 * (x * (1.0 + g.Erf(x * np.float32(1 / np.sqrt(2))))),
    lambda g, x: 0.5 * x * (1.0 + g.Tanh(np.float32(np.sqrt(2 / np.pi)) * (x + 0.044715 * g.Pow(x, 3.0)))),
    lambda g, x: x * g.Tanh(g.Softplus(x)),
    lambda g, x: x * g.Clip(x + 3.0, 0.0, 6.0) / 6.0,
], ids=["swish", "quick_gelu", "gelu", "gelu2", "gelu_tanh", "mish", "hard_swish"])
def test_activations_written_as_several_operators(build):
    g, x = start(("N", 4))
    h = g.Gemm(x, np.ones((4, 5), np.float32))
    y = build(g, h)
    g.Gemm(y, np.ones((5, 2), np.float32))
    found = to_layers(g, [x])
    inner = [layer.kind for layer in found.layers][1:-1]
    assert "product" not in inner, inner
    assert set(inner) <= {"smooth", "scale"}
    assert len(found.between([x], [found.layers[-1].y])) == len(found.layers)


def test_two_different_branches_are_no_activation():
    g, x = start(("N", 4))
    h = g.Gemm(x, np.ones((4, 5), np.float32))
    gate = g.Sigmoid(g.Gemm(x, np.ones((4, 5), np.float32) * 2))
    h * gate
    assert kinds(g, x)[-1] == "product"


# -- gates --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("gate", ["Sigmoid", "HardSigmoid", "Softmax"])
@pytest.mark.parametrize("first", [True, False])
def test_gates(gate, first):
    g, x = start(("N", 4, 6, 6))
    h = g.Conv(x, W)
    s = g.Reshape(g.emit(gate, g.GlobalAveragePool(h)), [0, 4, 1, 1])
    y = s * h if first else h * s
    found = to_layers(g, [x])
    product = found.made[y]
    assert product.kind == "product"
    assert found.gate(product) == (0 if first else 1)


def test_two_gates_or_none_are_undecided():
    g, x = start(("N", 4))
    a, b = g.Gemm(x, np.ones((4, 5), np.float32)), g.Gemm(x, np.ones((4, 5), np.float32) * 2)
    for y in (g.Sigmoid(a) * g.Sigmoid(b), a * b, g.Tanh(a) * b):
        found = to_layers(g, [x])
        assert found.gate(found.made[y]) is None


# -- positions ----------------------------------------------------------------------------------------------------
def chosen(graph, where, path=None):
    """Names of the layers that one table line matches."""
    method = Method("m", (Assign("line", "gradient", where), Assign("rest", "gradient", {})))
    bound = plan(graph, method, path or list(graph.layers))
    return [n for n, b in bound.items() if b.line == "line"]


def test_positions_in_a_line():
    graph = layers_of(mlp())
    assert chosen(graph, {"kind": "linear", "position": "first"}) == ["first"]
    assert chosen(graph, {"kind": "linear", "position": "last"}) == ["second"]
    assert chosen(graph, {"kind": "linear", "position": "input"}) == ["first"]
    assert chosen(graph, {"kind": "linear"}) == ["first", "second"]
    assert chosen(graph, {"op": "Relu", "position": "last"}) == ["relu"]
    assert chosen(graph, {"op": ["Relu", "Gemm"]}) == ["first", "relu", "second"]
    assert chosen(graph, {"name": "f*"}) == ["first"]
    assert chosen(graph, {"name": ["sec?nd", "relu"]}) == ["relu", "second"]
    assert chosen(graph, {"name": "F*"}) == []
    assert chosen(graph, {"kind": "linear", "name": "relu"}) == []


def test_every_branch_at_the_input_is_there_but_one_is_first():
    nodes = [node("Flatten", "x", "f", "flat"), node("Gemm", "f a", "p", "left"), node("Gemm", "f b", "q", "right"),
             node("Add", "p q", "s", "sum"), node("Gemm", "s c", "y", "last")]
    graph = layers_of(model(nodes, weights={"a": array(4, 5), "b": array(4, 5, seed=1), "c": array(5, 3)}))
    assert chosen(graph, {"kind": "linear", "position": "input"}) == ["left", "right"]
    assert chosen(graph, {"kind": "linear", "position": "first"}) == ["left"]
    assert chosen(graph, {"kind": "linear", "position": "last"}) == ["last"]


def test_last_is_last_below_the_explained_output():
    nodes = [*mlp().graph.node, node("Gemm", "a w2 b2", "other", "head")]
    proto = mlp()
    proto.graph.node.append(nodes[-1])
    from onnx import helper
    proto.graph.output.append(helper.make_tensor_value_info("other", 1, ["N", 3]))
    canonical = canonicalise(read(proto))
    graph = to_layers(canonical.graph, canonical.graph.inputs)
    for output, last in (("y", "second"), ("other", "head")):
        path = graph.between(canonical.graph.inputs, [canonical.value(output)])
        assert chosen(graph, {"kind": "linear", "position": "last"}, path) == [last]


def test_positions_do_not_move_with_the_attributed_tensor():
    """Asking for an inner tensor leaves the first layer the first, and does not put the next one at the input."""
    for wrt in (["x"], ["h"], ["a"], ["x", "a"]):
        canonical = canonicalise(read(mlp()))
        from graphattr.targets import data_roots
        values = [canonical.value(n) for n in wrt]
        graph = to_layers(canonical.graph, data_roots(canonical, values), values)
        path = graph.between(values, [canonical.value("y")])
        first = [] if "x" not in wrt else ["first"]
        assert chosen(graph, {"kind": "linear", "position": "first"}, path) == first
        assert chosen(graph, {"kind": "linear", "position": "input"}, path) == first


# -- paths and signs ----------------------------------------------------------------------------------------------
def test_between_is_what_lies_between():
    nodes = [node("Gemm", "x a", "h", "one"), node("Relu", "h", "r", "two"), node("Tanh", "x", "t", "side"),
             node("Gemm", "r b", "y", "three"), node("Gemm", "t b2", "z", "four")]
    proto = model(nodes, outputs={"y": ["N", 3], "z": ["N", 3]}, weights={"a": array(4, 5), "b": array(5, 3), "b2": array(4, 3)})
    canonical = canonicalise(read(proto))
    graph = to_layers(canonical.graph, canonical.graph.inputs)
    value = canonical.value

    def between(a, b):
        return [layer.name for layer in graph.between([value(a)], [value(b)])]

    assert between("x", "y") == ["one", "two", "three"]
    assert between("x", "z") == ["side", "four"]
    assert between("r", "y") == ["three"]
    assert between("t", "y") == []
    assert between("y", "x") == []
    assert between("y", "y") == []
    assert nx.is_frozen(graph.topology)
    assert list(graph.topology.edges(keys=True)) == [("one", "two", "h"), ("two", "three", "r"), ("side", "four", "t")]
    assert graph["two"].op == "Relu"


def test_names_are_unique():
    proto = mlp()
    for n in proto.graph.node:
        n.name = "same"
    names = [layer.name for layer in layers_of(proto).layers]
    assert len(set(names)) == 3
    assert names[0] == "same"


def test_values_that_cannot_be_negative():
    g, x = start()
    relu, pooled = g.Relu(x), g.MaxPool(g.Relu(x), kernel_shape=[2, 2])
    held = [relu, pooled, g.Sigmoid(x), g.Reshape(relu, [0, -1]), relu + g.Exp(x), relu * 2.0, g.Clip(x, 0.0, 6.0),
            g.Concat(relu, g.Abs(x), axis=1), g.ReduceMean(relu, [2]), g.Softmax(x), g.Max(relu, 0.0), g.Conv(relu, np.abs(W))]
    free = [g.Tanh(x), g.LeakyRelu(x), relu - 1.0, relu + x, relu * -2.0, g.Clip(x, -1.0, 6.0), g.Neg(relu), g.LogSoftmax(x),
            g.Conv(relu, W - 2), g.Pad(relu, [0] * 8, -1.0), x * relu]
    found = to_layers(g, [x]).nonnegative
    assert [v.name for v in held if v not in found] == []
    assert [v.name for v in free if v in found] == []
