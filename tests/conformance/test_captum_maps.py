"""captum's class activation maps and occlusion."""

from __future__ import annotations

import copy

import numpy as np
import pytest

pytest.importorskip("torch", reason="captum explains torch nets")
pytest.importorskip("captum", reason="the reference is captum")
pytest.importorskip("onnxruntime")
import captum.attr as captum

from tests.conformance import nets, peers

pytestmark = pytest.mark.filterwarnings("ignore:Setting:UserWarning", "ignore:.*hooks:UserWarning")
TOLERANCE = 5e-6
LAYERS = [("cnn", "2"), ("cnn", "6"), ("cnn", "4"), ("biased", "2"), ("biased", "5"), ("residual", "5.relu1"),
          ("residual", "5.relu2")]
DEFAULTS = {"cnn": "6", "biased": "5"}


def torch_side(name):
    net, x = nets.make(name)
    return net, x, copy.deepcopy(net).double(), x.double().requires_grad_()


def module_of(net, path):
    return dict(net.named_modules())[path]


@pytest.mark.parametrize(("name", "path"), LAYERS)
def test_grad_cam(name, path):
    net, x, double, leaf = torch_side(name)
    model = peers.export(net, x)
    layer = peers.tensor_of(model, path)
    if path == "4":  # a convolution whose normalisation is folded into it: its own output is gone
        layer, path = peers.tensor_of(model, "5"), "5"
    want = captum.LayerGradCam(double, module_of(double, path)).attribute(leaf, target=list(peers.TARGET), relu_attributions=True)
    found = peers.attribute(model, x, "grad_cam", layer=layer, upsample=False)["x"]
    assert peers.distance(found, want) < TOLERANCE
    large = captum.LayerAttribution.interpolate(want, tuple(x.shape[2:]), "bilinear")
    assert peers.distance(peers.attribute(model, x, "grad_cam", layer=layer)["x"], large) < TOLERANCE


@pytest.mark.parametrize("name", ["cnn", "biased"])
def test_the_default_layer(name):
    net, x, double, leaf = torch_side(name)
    module = module_of(double, DEFAULTS[name])
    want = captum.LayerGradCam(double, module).attribute(leaf, target=list(peers.TARGET), relu_attributions=True)
    assert peers.distance(peers.attribute(peers.export(net, x), x, "grad_cam", upsample=False)["x"], want) < TOLERANCE


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize("name", ["cnn", "biased"])
def test_guided_grad_cam(name, mode):
    net, x, double, leaf = torch_side(name)
    guided = captum.GuidedGradCam(double, module_of(double, DEFAULTS[name]))
    want = guided.attribute(leaf, target=list(peers.TARGET), interpolate_mode=mode)
    found = peers.attribute(peers.export(net, x), x, "guided_grad_cam", interpolate_mode=mode)["x"]
    assert peers.distance(found, want) < TOLERANCE


@pytest.mark.parametrize(("name", "patch", "stride", "baseline"), [
    ("cnn", 4, 2, 0.0), ("cnn", 5, 3, 0.5), ("residual", 3, 3, -0.2), ("signal", 4, 3, 0.0), ("mlp", 1, 1, 0.0),
    ("mlp", 3, 2, 1.0)])
def test_occlusion(name, patch, stride, baseline):
    net, x, double, leaf = torch_side(name)
    spatial = x.ndim - 2 if x.ndim > 2 else 1
    channels = tuple(x.shape[1:2]) if x.ndim > 2 else ()
    want = captum.Occlusion(double).attribute(
        leaf, (*channels, *[patch] * spatial), strides=(*channels, *[stride] * spatial), baselines=baseline,
        target=list(peers.TARGET))
    found = peers.attribute(peers.export(net, x), x, "occlusion", patch=patch, stride=stride, baselines=baseline)["x"]
    assert found.shape == tuple(x.shape)
    assert peers.distance(found, want) < 2e-5  # a difference of two scores in float32
    assert np.ptp(found) > 0
