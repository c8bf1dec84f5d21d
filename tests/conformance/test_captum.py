"""captum, in float64, where its definition is ours."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("torch", reason="captum explains torch nets")
pytest.importorskip("captum", reason="the reference is captum")
pytest.importorskip("onnxruntime")
import captum.attr as captum
import torch
from captum.attr._utils.lrp_rules import EpsilonRule

from tests.conformance import nets, peers

pytestmark = pytest.mark.filterwarnings("ignore:Setting:UserWarning", "ignore:.*hooks:UserWarning")
TOLERANCE = 5e-6
# captum treats nn.ReLU only, we every rectifier: nets with LeakyReLU, ReLU6 or PReLU mean different things.
RECTIFIED = ["cnn", "biased", "residual", "transposed", "pools", "mlp", "signal", "volume"]
ANY = [*RECTIFIED, "grouped", "included", "activations", "attention"]
METHODS = {
    "gradient": lambda net: captum.Saliency(net),
    "gradient_x_input": lambda net: captum.InputXGradient(net),
    "guided_backprop": lambda net: captum.GuidedBackprop(net),
    "deconvnet": lambda net: captum.Deconvolution(net),
    "integrated_gradients": lambda net: captum.IntegratedGradients(net),
}
OPTIONS = {"gradient": {"abs": False}, "integrated_gradients": {"n_steps": 7}}
CASES = [(n, m) for m in METHODS for n in (RECTIFIED if m in ("guided_backprop", "deconvnet") else ANY)]


def reference(net, x, method):
    explained = METHODS[method](copy.deepcopy(net).double())
    return explained.attribute(x.double().requires_grad_(), target=list(peers.TARGET), **OPTIONS.get(method, {}))


@pytest.mark.parametrize(("name", "method"), CASES)
def test_method(name, method):
    if not peers.registered(method):
        pytest.skip(f"{method} is not registered")
    net, x = nets.make(name)
    params = {k: v for k, v in OPTIONS.get(method, {}).items() if k == "n_steps"}
    found = peers.attribute(peers.export(net, x), x, method, **params)["x"]
    assert peers.distance(found, reference(net, x, method)) < TOLERANCE


def noisy(net, x, kind, xi, monkeypatch, within=captum.Saliency, **options):
    """captum's NoiseTunnel, which draws its noise in one piece, sample after sample, given ours."""
    deviation = 0.2 * (x.amax(tuple(range(1, x.ndim)), keepdim=True) - x.amin(tuple(range(1, x.ndim)), keepdim=True))
    draws = iter((deviation * xi).double())
    real = torch.normal
    monkeypatch.setattr(torch, "normal", lambda mean, std: next(draws).reshape(std.shape))
    tunnel = captum.NoiseTunnel(within(copy.deepcopy(net).double()))
    try:
        return tunnel.attribute(x.double(), nt_type=kind, nt_samples=len(xi), nt_samples_batch_size=1, stdevs=1.0,
                                target=list(peers.TARGET), **options)
    finally:
        monkeypatch.setattr(torch, "normal", real)


@pytest.mark.parametrize("method", ["smoothgrad", "vargrad"])
@pytest.mark.parametrize("name", ANY)
def test_the_same_noise(name, method, monkeypatch):
    net, x = nets.make(name)
    xi = torch.randn(4, *x.shape, generator=torch.Generator().manual_seed(0))
    want = noisy(net, x, method, xi, monkeypatch, abs=False)
    explainer = peers.graphattr.Explainer(
        peers.graphattr.convert(peers.export(net, x), method, "input", n_samples=4, noise="input")
    )
    found = explainer({"x": x.numpy(), "x_noise": xi.numpy()}, target=peers.np.array(peers.TARGET)).scores["x"]
    assert peers.distance(found, want) < TOLERANCE
    other = explainer({"x": x.numpy(), "x_noise": -xi.numpy()}, target=peers.np.array(peers.TARGET)).scores["x"]
    assert peers.distance(other, want) > 100 * TOLERANCE


def test_a_base_on_the_path_and_under_noise(monkeypatch):
    """SmoothGrad of integrated gradients."""
    net, x = nets.make("cnn")
    xi = torch.randn(3, *x.shape, generator=torch.Generator().manual_seed(1))
    want = noisy(net, x, "smoothgrad", xi, monkeypatch, captum.IntegratedGradients, n_steps=5)
    explainer = peers.graphattr.Explainer(peers.graphattr.convert(
        peers.export(net, x), "smoothgrad", "input", n_samples=3, noise="input", base="integrated_gradients", n_steps=5))
    found = explainer({"x": x.numpy(), "x_noise": xi.numpy()}, target=peers.np.array(peers.TARGET)).scores["x"]
    assert peers.distance(found, want) < TOLERANCE


# captum's LRP wants modules only, and BatchNorm merged; it applies the rule to pooling and reshaping as well, which
# changes nothing but at activations that are 0, and those have no relevance.
@pytest.mark.parametrize("name", ["cnn", "pools", "transposed", "signal"])
def test_epsilon_rule(name):
    net, x = nets.make(name)
    held = peers.folded(copy.deepcopy(net).double())
    for module in held.modules():
        if not isinstance(module, torch.nn.ReLU | torch.nn.Sequential):
            module.rule = EpsilonRule(epsilon=1e-9)
    want = captum.LRP(held).attribute(x.double().requires_grad_(), target=list(peers.TARGET))
    found = peers.attribute(peers.export(net, x), x, "lrp.epsilon", eps=1e-9)["x"]
    assert peers.distance(found, want) < TOLERANCE


@pytest.mark.parametrize(("name", "method"), [c for c in CASES if c[1] != "gradient"])
def test_the_comparison_notices_the_gradient(name, method, monkeypatch):
    if not peers.registered(method):
        pytest.skip(f"{method} is not registered")
    attribute = peers.attribute
    monkeypatch.setattr(peers, "attribute", lambda model, x, method, **params: attribute(model, x, "gradient"))
    with pytest.raises(AssertionError):
        test_method(name, method)
