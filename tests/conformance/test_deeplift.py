"""captum's DeepLift (Rescale), in float64, where it is defined and exact: activations that are modules, every join a sum."""

from __future__ import annotations

import copy
import warnings

import pytest

pytest.importorskip("torch", reason="captum explains torch nets")
pytest.importorskip("captum", reason="the reference is captum")
pytest.importorskip("onnxruntime")
import captum.attr as captum
import torch

from tests.conformance import nets, peers

TOLERANCE = 2e-5
# Not here: PReLU, ReLU6, Hardswish and SiLU, which captum passes by the gradient; dilated and overhanging windows (it raises).
NETS = ["cnn", "biased", "transposed", "mlp", "signal", "volume"]


def reference(net, x, there):
    """Its rule for MaxPool, on windows as they come, sends everything to the winner at the input."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        explained = captum.DeepLift(copy.deepcopy(net).double())
        return explained.attribute(x.double().requires_grad_(), there.double(), target=list(peers.TARGET))


def ours(net, x, there, **params):
    feeds = {"x": x, "x_baseline": there}
    return peers.attribute(peers.export(net, x), feeds, "deeplift.rescale", baselines="input", maxpool="gradient", **params)["x"]


@pytest.mark.parametrize("name", NETS)
def test_rescale(name):
    net, x = nets.make(name)
    there = nets.samples(*x.shape[1:], seed=99)
    assert peers.distance(ours(net, x, there), reference(net, x, there)) < TOLERANCE


def test_several_references():
    net, x = nets.make("cnn")
    rows = nets.samples(*x.shape[1:], seed=98, n=3)
    each = [reference(net, x, row[None].expand_as(x)) for row in rows]
    found = peers.attribute(peers.export(net, x), x, "deeplift.rescale", baselines=rows.numpy(), maxpool="gradient")["x"]
    assert peers.distance(found, torch.stack(each).mean(0)) < TOLERANCE


def test_the_comparison_notices_the_gradient():
    net, x = nets.make("cnn")
    there = nets.samples(*x.shape[1:], seed=99)
    found = peers.attribute(peers.export(net, x), {"x": x, "x_baseline": there}, "gradient_x_input", baselines="input")["x"]
    assert peers.distance(found, reference(net, x, there)) > 100 * TOLERANCE
