"""com.microsoft operators whose channels come last. ONNX Runtime's CPU has a kernel of the pooling; the others meet replicas."""

import numpy as np
import pytest
from onnx import helper

from tests.unit.foreigners import model, ms, outcome, replica, same, slope, stays, x

IMAGE = x(2, 6, 5, 4)
CONV = {"w": x(6, 2, 3, 3), "b": x(6)}
SPAN = {"group": 2, "pads": [1, 1, 1, 1], "strides": [2, 1]}


def conv(data, w, b=None):
    nodes = [helper.make_node("Conv", ["x", "w", "b"][:2 + (b is not None)], ["y"], **SPAN)]
    first = np.ascontiguousarray(data.transpose(0, 3, 1, 2))
    weights = {k: v for k, v in (("w", w), ("b", b)) if v is not None}
    return outcome(model(nodes, {"x": first}, weights), {"x": first})[0].transpose(0, 2, 3, 1)


def test_conv():
    m = model([ms("NhwcConv", "x,w,b", **SPAN)], {"x": IMAGE}, CONV)
    y = conv(IMAGE, **CONV)
    replica(m, {"x": IMAGE}, [y])
    m = model([ms("NhwcConv", "x,w", **SPAN)], {"x": IMAGE}, {"w": CONV["w"]})
    replica(m, {"x": IMAGE}, [conv(IMAGE, CONV["w"])])


@pytest.mark.parametrize(("attrs", "f"), [
    ({}, lambda y: y), ({"activation": "Relu"}, lambda y: np.maximum(y, 0)), ({"activation": "Tanh"}, np.tanh),
    ({"activation": "LeakyRelu", "activation_params": [0.3]}, lambda y: np.where(y > 0, y, 0.3 * y)),
    ({"activation": "Clip", "activation_params": [-0.5, 1.0]}, lambda y: np.clip(y, -0.5, 1.0))],
    ids=["none", "relu", "tanh", "leaky", "clip"])
@pytest.mark.parametrize("sums", [False, True])
def test_fused_conv(attrs, f, sums):
    y = conv(IMAGE, **CONV)
    weights = {**CONV, **({"z": x(*y.shape)} if sums else {})}
    m = model([ms("NhwcFusedConv", "x,w,b,z" if sums else "x,w,b", **SPAN, **attrs)], {"x": IMAGE}, weights)
    replica(m, {"x": IMAGE}, [f(y + weights.get("z", np.float32(0)))])


def test_fused_conv_stays():
    stays(model([ms("NhwcFusedConv", "x,w,b", **SPAN, activation="Mish")], {"x": IMAGE}, CONV))


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_max_pool(dtype):
    data = np.random.default_rng(1).integers(-100, 100, (2, 6, 5, 4)).astype(dtype)
    m = model([ms("NhwcMaxPool", kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])], {"x": data})
    same(m, {"x": data})


def test_max_pool_lets_the_gradient_pass():
    nodes = [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]), ms("NhwcMaxPool", "q", "p", kernel_shape=[2, 2]),
             helper.make_node("DequantizeLinear", ["p", "s", "z"], ["y"])]
    smooth = [helper.make_node("Transpose", ["x"], ["f"], perm=[0, 3, 1, 2]),
              helper.make_node("MaxPool", ["f"], ["p"], kernel_shape=[2, 2]),
              helper.make_node("Transpose", ["p"], ["y"], perm=[0, 2, 3, 1])]
    quantum = {"s": np.float32(0.05), "z": np.uint8(120)}
    slope(model(nodes, {"x": IMAGE}, quantum), {"x": IMAGE}, runs=model(smooth, {"x": IMAGE}), h=1e-4, tolerance=0.2)


NORM = {"g": x(4), "b": x(4)}


def grouped(data, groups, epsilon, last=True):
    first = data.transpose(0, 3, 1, 2) if last else data
    rows = first.astype(float).reshape(2, groups, -1)
    y = (rows - rows.mean(2, keepdims=True)) / np.sqrt(rows.var(2, keepdims=True) + epsilon)
    y = y.reshape(first.shape) * NORM["g"][:, None, None] + NORM["b"][:, None, None]
    return (y.transpose(0, 2, 3, 1) if last else y).astype(np.float32)


def silu(y):
    return y / (1 + np.exp(-y))


@pytest.mark.parametrize("last", [1, 0])
@pytest.mark.parametrize("activation", [0, 1])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_group_norm(last, activation, groups):
    data = IMAGE if last else np.ascontiguousarray(IMAGE.transpose(0, 3, 1, 2))
    attrs = {"groups": groups, "activation": activation, "channels_last": last, "epsilon": 1e-3}
    m = model([ms("GroupNorm", "x,g,b", **attrs)], {"x": data}, NORM)
    y = grouped(data, groups, 1e-3, last)
    new = replica(m, {"x": data}, [silu(y) if activation else y], rtol=1e-5)
    slope(m, {"x": data}, runs=new)


@pytest.mark.parametrize("shape", [(2, 6, 5, 4), (2, 1, 1, 4), (2, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_skip_group_norm(shape, bias):
    skip, more = x(*shape), {"c": x(4)} if bias else {}
    total = IMAGE + (skip if len(shape) == 4 else skip[:, None, None]) + more.get("c", np.float32(0))
    m = model([ms("SkipGroupNorm", "x,g,b,s" + ",c" * bias, "y,sum", groups=2, activation=1)], {"x": IMAGE},
              {**NORM, "s": skip, **more}, outputs=("y", "sum"))
    new = replica(m, {"x": IMAGE}, [silu(grouped(total, 2, 1e-5)), total], rtol=1e-5)
    slope(m, {"x": IMAGE}, runs=new)
    stays(model([ms("SkipGroupNorm", "x,g,b,s", groups=2, activation=1, channels_last=0)], {"x": IMAGE}, {**NORM, "s": skip}))
