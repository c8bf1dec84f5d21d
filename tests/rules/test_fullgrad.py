"""FullGrad against replicas that write every bias of the net down: its share of the score, its map."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphattr.errors import MethodError
from tests.rules import methods, zoo
from tests.rules.nets import ACTIVATIONS, Net

pytest.importorskip("onnxruntime")
from tests.rules import engine

PRODUCTS = ("gated", "squeeze_excite", "sums", "ratio")  # they multiply or divide data by data
ADDITIVE = [name for name in zoo.ZOO if name not in PRODUCTS]
PICTURES = [name for name in zoo.ZOO if zoo.case(name).x.ndim == 4]
TOLERANCE = 1e-4


def biases(net: Net, gradients, start=0):
    """b g_b of everything that is added anywhere: (tensor's name, array)."""
    for layer in net.layers[start:]:
        g = gradients.get(layer.output)
        if g is None:
            continue
        z = net.values[layer.inputs[0]]
        if layer.kind == "linear":
            yield layer.output, layer.b.reshape(layer.shape) * g
        elif layer.kind == "affine":
            yield layer.output, np.broadcast_to(layer.shift, g.shape) * g
        elif layer.kind == "act" and layer.op not in ("Relu", "LeakyRelu", "Neg"):
            f, slope = ACTIVATIONS[layer.op]
            yield layer.output, (f(z, layer.attrs, layer.const) - slope(z, layer.attrs, layer.const) * z) * g


def uniform(net: Net, target, wrt=None):
    wrt = wrt or net.input
    gradients = methods.explain(net, "gradient", target)
    n, x = len(target), net.values[wrt]
    after = next((i + 1 for i, l in enumerate(net.layers) if l.output == wrt), 0)
    share = sum(b.reshape(n, -1).sum(1) for _, b in biases(net, gradients, after)) / x[0].size
    return x * gradients[wrt] + share.reshape(-1, *[1] * (x.ndim - 1))


def psi(v):
    v = np.abs(v)
    v = v - v.min(axis=(1, 2, 3), keepdims=True)
    return v / (v.max(axis=(1, 2, 3), keepdims=True) + 1e-6)


def enlarged(v, size):
    """Bilinear, corners on corners."""
    for axis, n in zip((2, 3), size):
        m = v.shape[axis]
        at = np.arange(n) * (m - 1) / (n - 1)
        low = np.minimum(at.astype(int), max(m - 2, 0))
        high, t = np.minimum(low + 1, m - 1), (at - low).reshape([-1 if a == axis else 1 for a in range(4)])
        v = np.take(v, low, axis) * (1 - t) + np.take(v, high, axis) * t
    return v


def fullgrad(net: Net, target):
    gradients, x = methods.explain(net, "gradient", target), net.values[net.input]
    found = psi(x * gradients[net.input]).sum(1, keepdims=True)
    for _, b in biases(net, gradients):
        if b.ndim == 4:
            found = found + enlarged(psi(b), x.shape[2:]).sum(1, keepdims=True)
    return found


def scores(net, target):
    return net.logits[np.arange(len(target)), target]


def near(got, want, tolerance=TOLERANCE):
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max() + 1e-9)


@pytest.mark.parametrize("name", ADDITIVE)
def test_every_bias_is_found(name):
    c = zoo.case(name)
    want = uniform(c.net, c.target)
    np.testing.assert_allclose(want.reshape(3, -1).sum(1), scores(c.net, c.target), rtol=1e-9)
    near(engine.attribute(c.model, c.x, c.target, "fullgrad.uniform")["x"], want)


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_their_tangents_and_the_rest(name):
    c = zoo.case(name)
    found = engine.attribute(c.model, c.x, c.target, "fullgrad.uniform", delta=True)
    np.testing.assert_allclose(found["x"].reshape(3, -1).sum(1), scores(c.net, c.target), rtol=2e-5)
    delta = next(v for k, v in found.items() if k.endswith("_delta"))
    np.testing.assert_allclose(delta, 0, atol=2e-5 * np.abs(scores(c.net, c.target)).max())
    term = c.net.values["x"] * methods.explain(c.net, "gradient", c.target)["x"]
    apart = found["x"] - term
    near(apart, np.broadcast_to(apart.reshape(3, -1).mean(1).reshape(-1, *[1] * (term.ndim - 1)), term.shape))


@pytest.mark.parametrize("name", [n for n in PICTURES if n not in ("squeeze_excite", "sums")])
def test_map(name):
    c = zoo.case(name)
    near(engine.attribute(c.model, c.x, c.target, "fullgrad")["x"], fullgrad(c.net, c.target), 5e-4)


@pytest.mark.parametrize("method", ["fullgrad", "fullgrad.uniform"])
@pytest.mark.parametrize("name", ["cnn", "residual", "mobile"])
def test_symbolic_height_and_width(name, method):
    c = zoo.case(name)
    model = onnx.ModelProto.FromString(c.model.SerializeToString())
    for dim, free in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "HW", strict=True):
        dim.dim_param = free
    near(engine.attribute(model, c.x, c.target, method)["x"], engine.attribute(c.model, c.x, c.target, method)["x"])


@pytest.mark.parametrize("method", ["fullgrad", "fullgrad.uniform"])
@pytest.mark.parametrize("name", ["cnn", "residual"])
def test_inner_tensors(name, method):
    """What a tensor receives depends on no other that is asked for; biases before it are none of its own."""
    c = zoo.case(name)
    inner = next(l.output for l in c.net.layers if l.kind in ("act", "max"))
    both = engine.attribute(c.model, c.x, c.target, method, wrt=["x", inner])
    for tensor in ("x", inner):
        near(both[tensor], engine.attribute(c.model, c.x, c.target, method, wrt=[tensor])[tensor])
    if method == "fullgrad.uniform":
        near(both[inner], uniform(c.net, c.target, inner))


def test_several_inputs_share_the_score():
    b = zoo.Build(40, 6)
    y = b.gemm(b.relu(b.op("Add", b.gemm("x", 6, 8), b.gemm("z", 4, 8))), 8, 4)
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", k]) for n, k in (("x", 6), ("z", 4), (y, 4))]
    graph = helper.make_graph(b.nodes, "two", ends[:2], ends[2:], b.init)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rng, target = np.random.default_rng(1), np.array([0, 3, 1])
    x, z = (rng.standard_normal((3, n)).astype(np.float32) for n in (6, 4))
    explainer = engine.session(model, "fullgrad.uniform")
    found = engine.run(explainer, x, z=z, target=target)
    score = found[y][np.arange(3), target]
    np.testing.assert_allclose(found["x"].sum(1) + found["z"].sum(1), score, rtol=1e-5)
    gradient = engine.run(engine.session(model, "gradient"), x, z=z, target=target)
    for name, held in (("x", x), ("z", z)):
        apart = found[name] - held * gradient[name]
        np.testing.assert_allclose(apart, np.broadcast_to((score - sum((h * gradient[k]).sum(1) for k, h in
                                   (("x", x), ("z", z))))[:, None] / 10, apart.shape), atol=1e-5)


def channels_last(c):
    """The same net, fed (N, H, W, C)."""
    model = onnx.ModelProto.FromString(c.model.SerializeToString())
    for node in model.graph.node:
        node.input[:] = ["turned" if i == "x" else i for i in node.input]
    model.graph.node.insert(0, helper.make_node("Transpose", ["x"], ["turned"], "turn", perm=[0, 3, 1, 2]))
    sizes = model.graph.input[0].type.tensor_type.shape.dim
    h, w, channels = (sizes[i].dim_value for i in (2, 3, 1))
    for dim, size in zip(sizes[1:], (h, w, channels), strict=False):
        dim.dim_value = size
    del model.graph.value_info[:]
    return model


def test_channels_last():
    c = zoo.case("dilated")
    model, x = channels_last(c), np.ascontiguousarray(c.x.transpose(0, 2, 3, 1))
    near(engine.attribute(model, x, c.target, "fullgrad")["x"], fullgrad(c.net, c.target), 5e-4)


def normalised(b, x, scale, shift, spelling):
    """Layer normalisation over the channels."""
    if spelling == "node":
        return b.op("LayerNormalization", x, b.const(scale), b.const(shift), axis=1)
    axes = [1, 2, 3]
    centred = b.op("Sub", x, b.op("ReduceMean", x, axes=axes))
    variance = b.op("ReduceMean", b.op("Mul", centred, centred), axes=axes)
    root = b.op("Sqrt", b.op("Add", variance, b.const(np.float32(1e-5))))
    return b.op("Add", b.op("Mul", b.op("Div", centred, root), b.const(scale)), b.const(shift))


@pytest.mark.parametrize("spelling", ["node", "pieces"])
def test_norms_add_their_shift(spelling):
    rng = np.random.default_rng(3)
    b = zoo.Build(41, 3, 6, 6)
    scale, shift = (rng.standard_normal((4, 4, 4)).astype(np.float32) for _ in range(2))
    h = normalised(b, b.conv("x", 3, 4), scale, shift, spelling)
    model = b.head(b.op("GlobalAveragePool", b.relu(h)), 4)
    x, target = rng.standard_normal((2, 3, 6, 6)).astype(np.float32), np.array([1, 2])
    found = engine.attribute(model, x, target, "fullgrad", wrt=["x", h])
    gradient = engine.attribute(model, x, target, "gradient", wrt=["x", h, "conv0"])
    bias = next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == model.graph.node[0].input[2])
    added = [shift * gradient[h], bias.reshape(-1, 1, 1) * gradient["conv0"]]
    near(found["x"], psi(x * gradient["x"]).sum(1, keepdims=True)
         + sum(enlarged(psi(v), (6, 6)).sum(1, keepdims=True) for v in added))


def test_smooth_activations_add_what_their_tangent_leaves():
    """Tanh, Softplus and x sigmoid(x) in two nodes: f(z) - f'(z) z, each resized to the input."""
    rng = np.random.default_rng(4)
    b = zoo.Build(42, 3, 8, 8)
    h = b.op("Softplus", b.conv(b.op("Tanh", b.conv("x", 3, 4)), 4, 5, strides=[2, 2]))
    z = b.conv(h, 5, 6, (1, 1))
    y = b.op("Mul", z, b.op("Sigmoid", z))
    model = b.head(b.op("GlobalAveragePool", y), 6)
    x, target = rng.standard_normal((2, 3, 8, 8)).astype(np.float32), np.array([1, 2])
    net = Net(model, x)
    gradients = methods.explain(net, "gradient", target)
    want = psi(x * gradients["x"]).sum(1, keepdims=True)
    for name, bias in biases(net, gradients):
        if bias.ndim == 4 and not name.startswith("sigmoid"):
            want = want + enlarged(psi(bias), (8, 8)).sum(1, keepdims=True)
    v, s = net.values[z], 1 / (1 + np.exp(-net.values[z]))
    want = want + enlarged(psi((v * s - (s + v * s * (1 - s)) * v) * gradients[y]), (8, 8)).sum(1, keepdims=True)
    near(engine.attribute(model, x, target, "fullgrad")["x"], want)
    whole = engine.attribute(model, x, target, "fullgrad.uniform")["x"]
    np.testing.assert_allclose(whole.sum((1, 2, 3)), scores(net, target), rtol=1e-5)


def test_biases_in_a_loop_are_refused_by_name():
    b = zoo.Build(43, 3, 6, 6)
    w, bias = b.weight(3, 3, 3, 3, spread=0.2), b.weight(3)
    state = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3, 6, 6]) for n in ("h", "after")]
    step = [helper.make_tensor_value_info("i", TensorProto.INT64, []), helper.make_tensor_value_info("go", TensorProto.BOOL, [])]
    stay = helper.make_tensor_value_info("stay", TensorProto.BOOL, [])
    nodes = [helper.make_node("Conv", ["h", w, bias], ["made"], pads=[1] * 4), helper.make_node("Relu", ["made"], ["after"]),
             helper.make_node("Identity", ["go"], ["stay"])]
    body = helper.make_graph(nodes, "body", [*step, state[0]], [stay, state[1]])
    looped = b.op("Loop", b.const(np.int64(3)), b.const(np.bool_(True)), "x", body=body)
    model = b.head(b.op("GlobalAveragePool", looped), 3)
    with pytest.raises(MethodError, match=r"cannot see the biases inside 'loop0'.*use fullgrad\.uniform"):
        engine.session(model, "fullgrad")
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)
    found = engine.attribute(model, x, [0, 3], "fullgrad.uniform")
    y = next(v for k, v in found.items() if k.startswith("gemm"))
    np.testing.assert_allclose(found["x"].sum((1, 2, 3)), y[[0, 1], [0, 3]], rtol=1e-5)


@pytest.mark.parametrize("method", ["fullgrad", "fullgrad.uniform", "grad_cam", "guided_grad_cam"])
def test_a_batch_is_its_samples_one_by_one(method):
    c = zoo.case("residual")
    explainer = engine.session(c.model, method)
    whole = engine.run(explainer, c.x, target=c.target)["x"]
    for i in range(3):
        near(engine.run(explainer, c.x[i:i + 1], target=c.target[i:i + 1])["x"], whole[i:i + 1], 1e-6)


def halved(model):
    model = onnx.ModelProto.FromString(model.SerializeToString())
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), tensor.name))
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.elem_type = TensorProto.FLOAT16
    del model.graph.value_info[:]
    return model


def test_half_precision():
    c = zoo.case("cnn")
    model = halved(c.model)
    explainer = engine.session(model, "fullgrad.uniform")
    found = explainer.run(["x_attribution"], {"x": c.x.astype(np.float16), "target": c.target})[0]
    assert found.dtype == np.float32
    near(found, uniform(c.net, c.target), 2e-2)


@pytest.mark.parametrize(("name", "text"), [("mlp", "2 axes"), ("gated", "3 axes"), ("volume", "5 axes")])
def test_a_map_needs_a_picture(name, text):
    c = zoo.case(name)
    with pytest.raises(MethodError, match=text):
        engine.session(c.model, "fullgrad")


def test_a_map_adds_up_to_nothing():
    with pytest.raises(MethodError, match="add up to nothing that is known: pass delta=False"):
        engine.session(zoo.case("cnn").model, "fullgrad", delta=True)
