"""Grad-CAM and Guided Grad-CAM against a replica; which layer they take, and what they refuse."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from graphattr.errors import MethodError, TargetError
from tests.rules import methods, zoo
from tests.rules.test_fullgrad import channels_last, near

pytest.importorskip("onnxruntime")
from tests.rules import engine


def half_pixel(v, size):
    """Bilinear, edges repeated outwards."""
    for axis, n in zip((2, 3), size):
        m = v.shape[axis]
        at = np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1)
        low = np.minimum(at.astype(int), max(m - 2, 0))
        high, t = np.minimum(low + 1, m - 1), (at - low).reshape([-1 if a == axis else 1 for a in range(4)])
        v = np.take(v, low, axis) * (1 - t) + np.take(v, high, axis) * t
    return v


def activation_map(net, target, layer):
    weights = methods.explain(net, "gradient", target)[layer].mean((2, 3), keepdims=True)
    return np.maximum((weights * net.values[layer]).sum(1, keepdims=True), 0)


def last(name):
    """The replica's own reading of a net that is written down here as a list of layers."""
    c = zoo.case(name)
    convs = [i for i, l in enumerate(c.net.layers) if l.op == "Conv" and c.net.values[l.output][0, 0].size > 1]
    at = convs[-1]
    while True:
        users = [l for l in c.net.layers if c.net.layers[at].output in l.inputs]
        if len(users) != 1 or users[0].kind not in ("act", "affine", "scale"):
            return c.net.layers[at].output
        at = c.net.layers.index(users[0])


NETS = ("cnn", "residual", "mobile", "squeeze_excite", "dilated", "branches", "scaled", "prenorm", "automatic")


@pytest.mark.parametrize("name", NETS)
def test_default_layer(name):
    c = zoo.case(name)
    want = activation_map(c.net, c.target, last(name))
    near(engine.attribute(c.model, c.x, c.target, "grad_cam", upsample=False)["x"], want)
    near(engine.attribute(c.model, c.x, c.target, "grad_cam")["x"], half_pixel(want, c.x.shape[2:]))


@pytest.mark.parametrize("name", ["cnn", "residual", "branches"])
def test_named_layer(name):
    c = zoo.case(name)
    for layer in [l for l in c.net.layers if c.net.values[l.output].ndim == 4][:4]:
        want = activation_map(c.net, c.target, layer.output)
        near(engine.attribute(c.model, c.x, c.target, "grad_cam", layer=layer.output, upsample=False)["x"], want)


@pytest.mark.parametrize(("mode", "params"), [("bilinear", {}), ("nearest", {"interpolate_mode": "nearest"})])
@pytest.mark.parametrize("name", ["cnn", "dilated", "mobile"])
def test_guided(name, mode, params):
    c = zoo.case(name)
    m, (h, w) = activation_map(c.net, c.target, last(name)), c.x.shape[2:]
    if mode == "nearest":
        rows, columns = (np.arange(n) * k // n for n, k in zip((h, w), m.shape[2:]))
        m = m[:, :, rows][:, :, :, columns]
    else:
        m = half_pixel(m, (h, w))
    want = methods.explain(c.net, "guided_backprop", c.target)["x"] * m
    near(engine.attribute(c.model, c.x, c.target, "guided_grad_cam", **params)["x"], want)


def test_another_base():
    c = zoo.case("cnn")
    want = methods.explain(c.net, "lrp.epsilon", c.target)["x"] * half_pixel(activation_map(c.net, c.target, last("cnn")), (7, 7))
    near(engine.attribute(c.model, c.x, c.target, "guided_grad_cam", base="lrp.epsilon")["x"], want)


def test_sizes_of_the_run_and_channels_last():
    c = zoo.case("dilated")
    model = onnx.ModelProto.FromString(zoo.case("cnn").model.SerializeToString())
    for dim, free in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "HW", strict=True):
        dim.dim_param = free
    k = zoo.case("cnn")
    for method in ("grad_cam", "guided_grad_cam"):
        near(engine.attribute(model, k.x, k.target, method)["x"], engine.attribute(k.model, k.x, k.target, method)["x"])
    x = np.ascontiguousarray(c.x.transpose(0, 2, 3, 1))
    near(engine.attribute(channels_last(c), x, c.target, "grad_cam")["x"],
         half_pixel(activation_map(c.net, c.target, last("dilated")), c.x.shape[2:]))
    guided = engine.attribute(channels_last(c), x, c.target, "guided_grad_cam")["x"].transpose(0, 3, 1, 2)
    near(guided, engine.attribute(c.model, c.x, c.target, "guided_grad_cam")["x"])


def test_inside_another_method():
    """Layers have the same names wherever the model is written."""
    c = zoo.case("cnn")
    layer = next(l.output for l in c.net.layers if l.kind == "act")
    found = engine.attribute(c.model, c.x, c.target, "dga", local="guided_grad_cam", layer=layer, n_steps=1)["x"]
    near(found, np.maximum(engine.attribute(c.model, c.x, c.target, "guided_grad_cam", layer=layer)["x"], 0))


@pytest.mark.parametrize(("name", "params", "text"), [
    ("mlp", {}, "no convolution between 'x' and"),
    ("cnn", {"seed": "logit"}, "has no parameter 'seed'"),
    ("cnn", {"layer": "relu22"}, "no layer or tensor 'relu22'.*did you mean 'relu2'"),
    ("cnn", {"layer": "conv0"}, "'conv0' was folded away.*successor 'batchnormalization1'"),
    ("cnn", {"layer": "flatten7"}, "has 2 axes"),
    ("gated", {}, "has 3 axes"),
    ("tokens", {"layer": "tanh2"}, "has 3 axes"),
])
def test_errors(name, params, text):
    with pytest.raises((MethodError, TargetError), match=text):
        engine.session(zoo.case(name).model, "grad_cam", **params)


def test_a_layer_before_the_attributed_tensor_is_none():
    c = zoo.case("cnn")
    names = [l.output for l in c.net.layers if l.kind == "act"]
    with pytest.raises(TargetError, match=f"no layer or tensor '{names[0]}' between {names[1]} and"):
        engine.session(c.model, "grad_cam", wrt=[names[1]], layer=names[0])


def test_a_convolution_that_makes_the_scores_is_no_feature_map():
    """A segmenter's last convolution but one is taken."""
    b = zoo.Build(60, 3, 6, 6, out=4)
    last = b.relu(b.conv("x", 3, 5, pads=[1] * 4))
    y = b.conv(last, 5, 4, (1, 1))
    ends = [onnx.helper.make_tensor_value_info(n, 1, ["N", k, 6, 6]) for n, k in (("x", 3), (y, 4))]
    graph = onnx.helper.make_graph(b.nodes, "segmenter", ends[:1], ends[1:], b.init)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    x = np.random.default_rng(0).standard_normal((2, 3, 6, 6)).astype(np.float32)
    default = engine.attribute(model, x, [40, 100], "grad_cam", upsample=False)["x"]
    near(default, engine.attribute(model, x, [40, 100], "grad_cam", upsample=False, layer=last)["x"])
    assert default.any()
