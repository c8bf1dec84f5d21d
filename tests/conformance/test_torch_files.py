"""One torch net, several files: other opsets, BatchNorm merged by the exporter or not, and a file written by hand."""

from __future__ import annotations

import functools

import numpy as np
import pytest

pytest.importorskip("torch", reason="the files are written by torch's exporter")
pytest.importorskip("onnxruntime")
import torch
from torch import nn

from tests.conformance import nets, peers
from tests.conformance.test_round_trip import attributions, same
from tests.rules.zoo import Build

NETS = [n for n in nets.SHAPES if n != "deep"]
SENSITIVE = {"residual": 1e-3}  # lrp.wsquare meets sums that nearly vanish: 2e-4 apart in float32, 1e-10 in float64


@functools.cache
def as_written(name):
    net, x = nets.make(name)
    return attributions(peers.export(net, x), x.numpy(), peers.TARGET)


@pytest.mark.parametrize("opset", [11, 13])
@pytest.mark.parametrize("name", NETS)
def test_opsets(name, opset):
    """LayerNorm is one operator from opset 17 on; Softmax, Clip, Squeeze and the reductions changed in between."""
    net, x = nets.make(name)
    try:
        old = peers.export(net, x, fold=True, opset=opset)
    except torch.onnx.errors.UnsupportedOperatorError as e:
        pytest.skip(str(e))
    same(as_written(name), attributions(old, x.numpy(), peers.TARGET), SENSITIVE.get(name, 1e-4))


def test_a_file_by_hand():
    """Convolution, BatchNorm, ReLU, pooling, a dense layer, with torch's parameters under nobody's names."""
    layers = [nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(180, 4)]
    net, x = nets.settle(nn.Sequential(*layers), 3), nets.samples(*nets.IMAGE)
    held = {k: v.detach().numpy() for k, v in net.state_dict().items()}
    b = Build(0, *nets.IMAGE)
    y = b.op("Conv", "x", *(b.const(held[f"0.{k}"]) for k in ("weight", "bias")), pads=[1] * 4)
    y = b.op("BatchNormalization", y, *(b.const(held[f"1.{k}"]) for k in ("weight", "bias", "running_mean", "running_var")))
    y = b.op("MaxPool", b.relu(y), kernel_shape=[2, 2], strides=[2, 2])
    y = b.op("MatMul", b.op("Flatten", y), b.const(np.ascontiguousarray(held["5.weight"].T)))
    model = b.done(b.op("Add", y, b.const(held["5.bias"])))
    (y,) = peers.graphattr.explain(model, x.numpy(), "gradient").outputs.values()
    assert peers.distance(y, net(x)) < 1e-5
    same(attributions(peers.export(net, x), x.numpy(), peers.TARGET), attributions(model, x.numpy(), peers.TARGET))
