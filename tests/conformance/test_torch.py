"""The gradient family against torch's autograd in float64, on files that torch itself exported."""

from __future__ import annotations

import copy

import numpy as np
import pytest

pytest.importorskip("torch", reason="the reference is torch's autograd")
pytest.importorskip("onnxruntime")
import torch

from tests.conformance import nets, peers

TOLERANCE = 5e-6
SMALL = [n for n in nets.SHAPES if n != "deep"]


@pytest.mark.parametrize("fold", [False, True], ids=["as written", "folded by the exporter"])
@pytest.mark.parametrize("name", nets.SHAPES)
def test_gradient(name, fold):
    net, x = nets.make(name)
    found = peers.attribute(peers.export(net, x, fold=fold), x, "gradient")["x"]
    assert peers.distance(found, peers.gradient(net, [x])[0]) < (2e-5 if name == "deep" else TOLERANCE)


@pytest.mark.parametrize("name", SMALL)
def test_gradient_x_input(name):
    net, x = nets.make(name)
    found = peers.attribute(peers.export(net, x), x, "gradient_x_input")["x"]
    assert peers.distance(found, x.numpy() * peers.gradient(net, [x])[0]) < TOLERANCE


CHANNELS, OTHER = [0.5, -0.25, 0.125], nets.samples(*nets.IMAGE, seed=99)
BASELINES = {
    "number": (0.75, 0.75),
    "channels": (CHANNELS, torch.tensor(CHANNELS)[:, None, None]),
    "array": (OTHER[0].numpy(), OTHER[0]),
    "input": ("input", OTHER),
}


@pytest.mark.parametrize("kind", BASELINES)
def test_baselines_of_gradient_x_input(kind):
    net, x = nets.make("cnn")
    given, reference = BASELINES[kind]
    feeds = {"x": x} | ({"x_baseline": OTHER} if kind == "input" else {})
    found = peers.attribute(peers.export(net, x), feeds, "gradient_x_input", baselines=given)["x"]
    assert peers.distance(found, np.asarray(x - reference) * peers.gradient(net, [x])[0]) < TOLERANCE


def points(quadrature, n):
    """(position, weight) of each point on the path."""
    k = np.arange(n)
    if quadrature == "gausslegendre":
        at, weight = np.polynomial.legendre.leggauss(n)
        return (at + 1) / 2, weight / 2
    if quadrature == "riemann_trapezoid":
        return k / (n - 1), np.where((k == 0) | (k == n - 1), 0.5, 1.0) / (n - 1)
    return {"riemann_left": k, "riemann_middle": k + 0.5, "riemann_right": k + 1}[quadrature] / n, np.full(n, 1 / n)


def integrated(net, x, baseline, quadrature, n):
    x = x.double()
    along = [
        w * peers.gradient(net, [baseline + a * (x - baseline)])[0]
        for a, w in zip(*points(quadrature, n), strict=True)
    ]
    return (x - baseline).numpy() * sum(along)


HAS_PATHS = pytest.mark.skipif(
    not peers.registered("integrated_gradients"), reason="integrated_gradients is not registered"
)


@HAS_PATHS
@pytest.mark.parametrize("name", SMALL)
def test_integrated_gradients(name):
    net, x = nets.make(name)
    found = peers.attribute(peers.export(net, x), x, "integrated_gradients", n_steps=6)["x"]
    assert peers.distance(found, integrated(net, x, 0.0, "gausslegendre", 6)) < 10 * TOLERANCE


@HAS_PATHS
@pytest.mark.parametrize(
    "quadrature", ["gausslegendre", "riemann_left", "riemann_middle", "riemann_right", "riemann_trapezoid"]
)
def test_quadratures(quadrature):
    net, x = nets.make("cnn")
    found = peers.attribute(
        peers.export(net, x), x, "integrated_gradients", n_steps=5, quadrature=quadrature, baselines=0.25
    )["x"]
    assert peers.distance(found, integrated(net, x, 0.25, quadrature, 5)) < 10 * TOLERANCE


def inner_gradient(net, x, module):
    """d y_c / d output of a module, in float64."""
    net, held = copy.deepcopy(net).double(), []
    net.get_submodule(module).register_forward_hook(lambda m, a, out: held.append(out))
    y = net(x.double().requires_grad_())
    return torch.autograd.grad(y[range(len(x)), peers.TARGET].sum(), held[0])[0].numpy()


INNER = [
    ("cnn", "2"),
    ("cnn", "3"),
    ("cnn", "6"),
    ("residual", "4.relu1"),
    ("residual", "5"),
    ("grouped", "1"),
    ("transposed", "3"),
    ("mlp", "1"),
    ("norms", "2"),
    ("groupnorm", "4"),
    ("signal", "2"),
    ("attention", "norm1"),
    ("attention", "norm2"),
    ("attention", "up"),
]


@pytest.mark.parametrize(("name", "module"), INNER)
def test_gradient_at_an_inner_tensor(name, module):
    net, x = nets.make(name)
    model = peers.export(net, x)
    tensor = peers.tensor_of(model, module)
    found = peers.attribute(model, x, "gradient", wrt=[tensor])
    assert list(found) == [tensor]
    assert peers.distance(found[tensor], inner_gradient(net, x, module)) < TOLERANCE


@pytest.mark.parametrize("name", ["cnn", "residual", "attention"])
def test_several_tensors_at_once(name):
    net, x = nets.make(name)
    model = peers.export(net, x)
    modules = [m for n, m in INNER if n == name]
    tensors = {peers.tensor_of(model, m): m for m in modules}
    found = peers.attribute(model, x, "gradient", wrt=["x", *tensors])
    assert peers.distance(found["x"], peers.gradient(net, [x])[0]) < TOLERANCE
    for tensor, module in tensors.items():
        assert peers.distance(found[tensor], inner_gradient(net, x, module)) < TOLERANCE


@pytest.mark.parametrize("method", ["gradient", "gradient_x_input"])
def test_two_inputs(method):
    net = nets.settle(nets.TwoInputs(), 3)
    feeds = {"x": nets.samples(*nets.IMAGE), "row": nets.samples(*nets.ROW, seed=1)}
    model = peers.export(net, *feeds.values(), names=tuple(feeds))
    found = peers.attribute(model, feeds, method)
    for (name, x), g in zip(feeds.items(), peers.gradient(net, feeds.values()), strict=True):
        want = g if method == "gradient" else x.numpy() * g
        assert peers.distance(found[name], want) < TOLERANCE
        assert peers.distance(peers.attribute(model, feeds, method, wrt=[name])[name], want) < TOLERANCE


@pytest.mark.parametrize(("target", "at"), [((2, 1, 3), (2, 1, 3)), (30, (2, 1, 2))])
def test_a_target_in_a_picture(target, at):
    """The explained output is a picture (4, 3, 4); a target is a multi-index, or an index into it flattened."""
    net, x = (
        nets.settle(torch.nn.Sequential(torch.nn.Conv2d(3, 5, 3), torch.nn.Tanh(), torch.nn.Conv2d(5, 4, 3)), 4),
        nets.samples(3, 7, 8),
    )
    leaf = x.double().requires_grad_()
    (want,) = torch.autograd.grad(copy.deepcopy(net).double()(leaf)[(slice(None), *at)].sum(), leaf)
    found = peers.graphattr.explain(peers.export(net, x), x.numpy(), "gradient", target=target).scores["x"]
    assert peers.distance(found, want) < TOLERANCE


@pytest.mark.parametrize("name", SMALL)
def test_the_comparison_notices_another_method(name, monkeypatch):
    """Where the gradient is given out as gradient times input, the comparison fails."""
    attribute = peers.attribute
    monkeypatch.setattr(peers, "attribute", lambda model, x, method, **params: attribute(model, x, "gradient"))
    with pytest.raises(AssertionError):
        test_gradient_x_input(name)
