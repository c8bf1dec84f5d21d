"""Activations that are written as several operators are one layer; gates, joins and masks are not."""

from __future__ import annotations

import time

import numpy as np
import pytest

from graphattr.composites import LARGEST
from graphattr.graph import Graph
from graphattr.layers import to_layers

pytest.importorskip("onnxruntime")
from tests.rules import engine
from tests.unit.tiny import array, model, node

ROOT, CUBE, LOW = np.float32(np.sqrt(2)), np.float32(0.044715), np.float32(np.sqrt(2 / np.pi))


def start(shape=("N", 4, 6), opset=20):
    g = Graph(opset)
    return g, g.input("x", np.float32, shape)


def pieces(g, x):
    """As torch writes Softshrink: one Where per side, added up."""
    return g.Where(x > 0.5, x - 0.5, 0.0) + g.Where(x < -0.5, x + 0.5, 0.0)


def nested(g, x):
    """One Where in the other."""
    return g.Where(x > 0.5, x - 0.5, g.Where(x < -0.5, x + 0.5, 0.0))


def cubed(power):
    return lambda g, x: 0.5 * x * (1.0 + g.Tanh(LOW * (x + CUBE * power(g, x))))


ACTIVATIONS = {  # activation, and how many scales by a constant are left in front of it or behind it
    "silu": (lambda g, x: x * g.Sigmoid(x), 0),
    "silu, gate first": (lambda g, x: g.Sigmoid(x) * x, 0),
    "quick gelu": (lambda g, x: x * g.Sigmoid(1.702 * x), 0),
    "gelu, Div": (lambda g, x: x * (g.Erf(x / ROOT) + 1.0) * 0.5, 1),
    "gelu, Mul": (lambda g, x: x * (1.0 + g.Erf(x * (1 / ROOT))) * 0.5, 1),
    "gelu, half first": (lambda g, x: 0.5 * x * (1.0 + g.Erf(x / ROOT)), 0),
    "gelu, half inside": (lambda g, x: x * (0.5 * (1.0 + g.Erf(x / ROOT))), 0),
    "gelu, half in front of the product": (lambda g, x: 0.5 * (x * (1.0 + g.Erf(x / ROOT))), 1),
    "tanh gelu, Pow": (cubed(lambda g, x: g.Pow(x, 3.0)), 0),
    "tanh gelu, x x x": (cubed(lambda g, x: x * x * x), 0),
    "tanh gelu, x (x x)": (cubed(lambda g, x: x * (x * x)), 0),
    "mish": (lambda g, x: x * g.Tanh(g.Softplus(x)), 0),
    "mish, written out": (lambda g, x: x * g.Tanh(g.Log(1.0 + g.Exp(x))), 0),
    "hard swish": (lambda g, x: x * g.Clip(x + 3.0, 0.0, 6.0) / 6.0, 1),
    "hard swish by HardSigmoid": (lambda g, x: x * g.HardSigmoid(x, alpha=1 / 6, beta=0.5), 0),
    "softshrink": (pieces, 0),
    "softshrink, nested": (nested, 0),
    "elu": (lambda g, x: g.Where(x > 0.0, x, g.Exp(x) - 1.0), 0),
    "square": (lambda g, x: x * x, 0),
    "softsign": (lambda g, x: x / (1.0 + g.Abs(x)), 0),
    "a slope for each channel": (lambda g, x: x * g.Sigmoid(x * array(4, 1, seed=8)), 0),
    "a sum in the middle": (lambda g, x: (x + g.Tanh(x)) * g.Sigmoid(x), 0),
    "two in a row": (lambda g, x: (y := x * g.Sigmoid(x)) * g.Tanh(y), 0),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_one_smooth_layer(name):
    build, scales = ACTIVATIONS[name]
    g, x = start()
    y = build(g, x)
    found = to_layers(g, [x], [y])
    assert sorted(layer.kind for layer in found.layers if layer.kind != "smooth") == ["scale"] * scales
    units = [layer for layer in found.layers if layer.kind == "smooth"]
    assert len(units) == (2 if name == "two in a row" else 1)
    assert units[0].xs == (x,)
    assert {n.op for n in g.nodes} - {"Greater", "Less"} == {op for layer in found.layers for op in layer.op.split("+")}


def written(build):
    """The activation as a file, y its result."""
    g, x = start()
    names = {build(g, x).name: "y"}
    held = {v.name: v.data for n in g.nodes for v in n.inputs if v.is_const}
    nodes = [node(n.op, *(" ".join(names.get(v.name, v.name) for v in some) for some in (n.inputs, n.outputs)), **n.attrs)
             for n in g.nodes]
    return model(nodes, {"x": list(x.shape)}, {"y": list(x.shape)}, held, opset=20, ir=10)


@pytest.mark.parametrize("method", ["lrp.epsilon", "lrp.zplus", "lrp.attention"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_relevance_passes(name, method):
    x, r = array(3, 4, 6, seed=1), array(3, 4, 6, seed=2)
    found = engine.run(engine.session(written(ACTIVATIONS[name][0]), method, target="seed"), x, seed=r)["x"]
    np.testing.assert_array_equal(found, r)


@pytest.mark.parametrize("shape", [("N", 4, 6), ("N", "T", 6), ("N", "C", "H", "W"), (1, "T")], ids=str)
@pytest.mark.parametrize("build", [ACTIVATIONS[n][0] for n in ("silu", "gelu, half first", "tanh gelu, x x x", "softshrink")])
def test_symbolic_axes(build, shape):
    g, x = start(shape)
    h = g.Relu(x)
    build(g, h)
    assert [layer.kind for layer in to_layers(g, [x]).layers] == ["relu", "smooth"]


# -- what is none -------------------------------------------------------------------------------------------------
def dense(g, x, seed=0):
    return g.MatMul(x, array(6, 6, seed=seed))


def squeeze_excite(g, x):
    return x * g.Sigmoid(dense(g, g.ReduceMean(x, [1], keepdims=1)))


def halves(g, x):
    a, b = g.Split(x, n_outputs=2, axis=2, num_outputs=2)
    return a * g.Sigmoid(b)


MASK = np.array([True, False, True, True, False, True])
NONE = {  # what is written, and the kind of the last layer
    "squeeze and excite": (squeeze_excite, "product"),
    "a gate of its own layer": (lambda g, x: x * g.Sigmoid(dense(g, x)), "product"),
    "gated linear unit": (lambda g, x: dense(g, x, 1) * g.Sigmoid(dense(g, x, 2)), "product"),
    "gated linear unit of halves": (halves, "product"),
    "residual": (lambda g, x: x + g.Tanh(x), "sum"),
    "residual around silu": (lambda g, x: x + x * g.Sigmoid(x), "sum"),
    "difference": (lambda g, x: x - g.Tanh(x), "sum"),
    "doubled": (lambda g, x: x + x, "sum"),
    "a sum of masked branches": (lambda g, x: g.Where(MASK, x, 0.0) + g.Where(MASK, g.Tanh(x), 0.0), "sum"),
    "a mask from elsewhere": (lambda g, x: (h := g.Relu(x)) * g.Where(g.ReduceMean(x, [2], keepdims=1) > 0.0, h, 0.0), "product"),
    "a mask of the file's": (lambda g, x: x * g.Where(MASK, g.Sigmoid(x), 0.0), "product"),
    "along an axis": (lambda g, x: x * g.Softmax(x), "product"),
    "a mean": (lambda g, x: x / g.Sqrt(g.ReduceMean(x * x, [2], keepdims=1)), "norm"),
    "a mean, by its reciprocal": (lambda g, x: x * (1.0 / g.Sqrt(g.ReduceMean(x * x, [2], keepdims=1))), "norm"),
    "moved": (lambda g, x: x * g.Sigmoid(g.Transpose(x, perm=[0, 1, 2])), "product"),
    "rectified twice": (lambda g, x: g.Max(x, g.Neg(x)), "maxpool"),
}


@pytest.mark.parametrize("name", NONE)
def test_no_activation(name):
    build, kind = NONE[name]
    g, x = start()
    y = build(g, x)
    found = to_layers(g, [x], [y])
    assert found.made[y].kind == kind
    assert kind == "norm" or found.made[y].nodes == (g.producer(y),)


def test_a_sum_is_a_sum_for_relevance():
    """x + tanh(x): both summands lead to x, so everything arrives, but in two parts."""
    g, x = start()
    x + g.Tanh(x)
    assert [layer.kind for layer in to_layers(g, [x]).layers] == ["smooth", "sum"]


@pytest.mark.parametrize("how", ["read elsewhere", "an output", "asked for"])
def test_an_inner_tensor_that_is_seen(how):
    g, x = start()
    s = g.Sigmoid(x)
    y = x * s
    keep = []
    if how == "read elsewhere":
        g.Conv(s, array(3, 4, 1))
    elif how == "an output":
        g.outputs.append(("s", s))
    else:
        keep = [s]
    found = to_layers(g, [x], keep)
    assert found.made[s].kind == "smooth"
    assert found.made[y].kind == "product"
    assert found.gate(found.made[y]) == 1


def test_an_inner_tensor_that_is_asked_for_by_name():
    proto = model([node("Sigmoid", "x", "s"), node("Mul", "x s", "y")], {"x": ["N", 4]}, {"y": ["N", 4]})
    x, r = array(2, 4), array(2, 4, seed=1)
    for wrt, want in ((["x"], {"x": r}), (["x", "s"], {"x": r, "s": r / 2})):
        found = engine.run(engine.session(proto, "lrp.epsilon", wrt, target="seed"), x, seed=r)
        for name, value in want.items():
            np.testing.assert_allclose(found[name], value, rtol=1e-6)


def test_the_smaller_unit_remains_where_the_larger_is_seen_into():
    g, x = start()
    h = x * g.Sigmoid(x)
    y = x * g.Tanh(h)
    assert [layer.op for layer in to_layers(g, [x]).layers] == ["Sigmoid+Mul+Tanh+Mul"]
    found = to_layers(g, [x], [h])
    assert found.made[h].op == "Sigmoid+Mul"
    assert found.made[y].kind == "product"


def test_an_input_of_the_unit_may_be_read_anywhere():
    g, x = start()
    h = g.Relu(x)
    y = h * g.Sigmoid(h)
    g.outputs += [("h", h), ("other", g.Tanh(h))]
    assert to_layers(g, [x], [h]).made[y].op == "Sigmoid+Mul"


@pytest.mark.parametrize(("shape", "other"), [(("N", 4, 6), (4, 1, 1)), (("N", 1, 6), (4, 1)), ((1, 6), (3, 4, 1))], ids=str)
def test_what_changes_the_shape_is_no_activation(shape, other):
    """x sigmoid(x + b) with more elements than x: a layer of kind product, and relevance adds up."""
    b = array(*other, seed=3)
    g, x = start(shape)
    x * g.Sigmoid(x + b)
    assert [layer.kind for layer in to_layers(g, [x]).layers] == ["shift", "smooth", "product"]


def test_units_of_other_domains_are_not_looked_into():
    g, x = start()
    s = g.record("Sigmoid", [x], ["s"], {}, "own", "my.domain", {"s": (np.dtype(np.float32), x.shape)})[0]
    y = x * s
    assert to_layers(g, [x]).made[y].kind == "product"


def test_units_are_small():
    """A long way apart is another branch."""
    for steps, kinds in ((LARGEST - 2, 1), (LARGEST + 2, LARGEST + 3)):
        g, x = start()
        h = x
        for _ in range(steps):
            h = g.Tanh(h)
        x * h
        assert len(to_layers(g, [x]).layers) == kinds


@pytest.mark.parametrize("step", [
    lambda g, h: h * h, lambda g, h: h * g.Sigmoid(h), lambda g, h: h + g.Tanh(h), lambda g, h: g.Where(h > 0.0, h, g.Exp(h))])
def test_long_chains(step):
    g, x = start(("N", 4))
    h = x
    while len(g.nodes) < 5000:
        h = step(g, h)
    begin = time.perf_counter()
    layers = to_layers(g, [x]).layers
    assert time.perf_counter() - begin < 5
    assert len(layers) >= 1600


def test_one_tensor_with_many_readers():
    g, x = start(("N", 4))
    for i in range(2500):
        g.emit("Mul", x, g.Tanh(x + float(i)))
    begin = time.perf_counter()
    assert {layer.kind for layer in to_layers(g, [x]).layers} == {"smooth"}
    assert time.perf_counter() - begin < 5


# -- gates --------------------------------------------------------------------------------------------------------
def test_a_gate_is_a_gate_and_a_unit_is_not():
    g, x = start()
    a, b = dense(g, x, 1), dense(g, x, 2)
    gated, unit = a * g.Sigmoid(b), a * (b * g.Sigmoid(b))
    found = to_layers(g, [x], [gated, unit])
    assert found.gate(found.made[gated]) == 1
    assert found.made[unit].kind == "product"
    assert found.gate(found.made[unit]) is None


@pytest.mark.parametrize(("gate", "share"), [("s", (1.0, 0.0)), ("u", (0.5, 0.5))])
def test_relevance_at_a_gate(gate, share):
    """With mul="gate" a sigmoid gets nothing; SiLU of the same tensor is a factor like any other, as in SwiGLU."""
    nodes = [node("MatMul", "x v", "a"), node("MatMul", "x w", "b"), node("Sigmoid", "b", "s"), node("Mul", "b s", "u"),
             node("Mul", f"a {gate}", "y")]
    proto = model(nodes if gate == "u" else [*nodes[:3], nodes[4]], {"x": ["N", 4]}, {"y": ["N", 4]},
                  {"v": array(4, 4), "w": array(4, 4, seed=1)})
    x, r = array(2, 4, seed=2), array(2, 4, seed=3)
    found = engine.run(engine.session(proto, "lrp.epsilon", ["a", "b"], target="seed", mul="gate"), x, seed=r)
    for name, part in zip("ab", share):
        np.testing.assert_allclose(found[name], part * r, rtol=1e-6)
    for name in "ab":
        found = engine.run(engine.session(proto, "lrp.epsilon", ["a", "b"], target="seed", mul="uniform"), x, seed=r)
        np.testing.assert_allclose(found[name], r / 2, rtol=1e-6)


def test_a_gate_behind_reshapes_of_a_mask():
    g, x = start()
    s = g.Transpose(g.Reshape(g.Sigmoid(dense(g, x)), [0, 6, 4]), perm=[0, 2, 1])
    y = g.Relu(x) * s
    found = to_layers(g, [x])
    assert found.gate(found.made[y]) == 1
    assert found.gate(found.made[y], {"Softmax"}) is None
