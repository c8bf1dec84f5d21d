"""zennit's composites and rules, in float64, on the same nets: BatchNorm merged by hand, sums as zennit's Sum."""

from __future__ import annotations

import copy

import pytest

pytest.importorskip("torch", reason="zennit explains torch nets")
pytest.importorskip("zennit", reason="the reference is zennit")
pytest.importorskip("onnxruntime")
import torch
from zennit import canonizers, composites, layer, rules, types

from tests.conformance import nets, peers

TOLERANCE = 5e-6
# Left out: nets with layer or group normalisation, softmax and products: zennit has no rule and takes the gradient.
NETS = ["cnn", "residual", "grouped", "transposed", "pools", "included", "mlp", "signal", "volume"]
# zennit's Excitation Backprop, Guided Backprop and Deconvnet know no activation but nn.ReLU.
RECTIFIED = ["cnn", "residual", "transposed", "pools", "mlp", "signal", "volume"]
# Rules that give relevance to activations near 0, by which a pooling or a sum below divides: that amplifies rounding,
# and in float64 they agree as well as the others do.
AMPLIFIED = ("lrp.wsquare", "lrp.flat", "lrp.zbox", "lrp.alpha2_beta1", "lrp.alpha5_beta4")
LOOSE = {(n, m): 1e-3 if n == "residual" else 1e-4 for n in ("residual", "included") for m in AMPLIFIED}
BOX = {"low": -3.0, "high": 3.5}


def everywhere(rule):
    """A composite that applies one rule to each linear layer."""
    return composites.LayerMapComposite([((torch.nn.Linear, types.Convolution), rule), *composites.layer_map_base()])


def boxed(x):
    return {k: torch.full_like(x, v).double() for k, v in BOX.items()}


COMPOSITES = {
    "lrp.epsilon_plus": lambda x: composites.EpsilonPlus(),
    "lrp.epsilon_plus_flat": lambda x: composites.EpsilonPlusFlat(),
    "lrp.epsilon_alpha2_beta1": lambda x: composites.EpsilonAlpha2Beta1(),
    "lrp.epsilon_alpha2_beta1_flat": lambda x: composites.EpsilonAlpha2Beta1Flat(),
    "lrp.epsilon_gamma_box": lambda x: composites.EpsilonGammaBox(**boxed(x)),
    "excitation_backprop": lambda x: composites.ExcitationBackprop(zero_params=["bias"]),
    "guided_backprop": lambda x: composites.GuidedBackprop(),
    "deconvnet": lambda x: composites.DeconvNet(),
}
RULES = {
    "lrp.epsilon": lambda x: everywhere(rules.Epsilon()),
    "lrp.gamma": lambda x: everywhere(rules.Gamma()),
    "lrp.zplus": lambda x: everywhere(rules.ZPlus()),
    "lrp.alpha2_beta1": lambda x: everywhere(rules.AlphaBeta(alpha=2, beta=1)),
    "lrp.alpha5_beta4": lambda x: everywhere(rules.AlphaBeta(alpha=5, beta=4)),
    "lrp.wsquare": lambda x: everywhere(rules.WSquare()),
    "lrp.flat": lambda x: everywhere(rules.Flat()),
    "lrp.zbox": lambda x: everywhere(rules.ZBox(**BOX)),
}
PARAMS = {"lrp.epsilon_gamma_box": BOX, "lrp.zbox": BOX, "lrp.wsquare": {"bias": "absorb"}}
ONEHOT = ("excitation_backprop", "guided_backprop", "deconvnet")
CASES = [(n, m) for m in COMPOSITES | RULES for n in (RECTIFIED if m in ONEHOT else NETS)]


def relevance(net, x, composite, onehot=False, target=peers.TARGET):
    """zennit multiplies the output gradient that it is given: y_c e_c makes it start from the logit."""
    net, x = copy.deepcopy(net).double(), x.double().requires_grad_()
    with composite.context(net) as explained:
        y = explained(x)
        seed = torch.nn.functional.one_hot(torch.tensor(target), y.shape[1]).to(y)
        return torch.autograd.grad(y, x, seed if onehot else seed * y.detach())[0]


def twins(name):
    """(our net, zennit's net, x): the same function."""
    net, x = nets.make(name)
    options = {"joined": layer.Sum} if name in ("residual", "deep") else {}
    twin = peers.folded(nets.make(name, **options)[0].double())
    torch.testing.assert_close(twin(x.double()), copy.deepcopy(net).double()(x.double()), rtol=1e-10, atol=1e-12)
    return net, twin, x


def compare(name, method):
    net, twin, x = twins(name)
    want = relevance(twin, x, (COMPOSITES | RULES)[method](x), method in ONEHOT)
    found = peers.attribute(peers.export(net, x), x, method, **PARAMS.get(method, {}))["x"]
    assert peers.distance(found, want) < LOOSE.get((name, method), TOLERANCE)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_method(name, method):
    compare(name, method)


@pytest.mark.parametrize("method", COMPOSITES | RULES)
def test_method_in_float64(method):
    net, twin, x = twins("residual")
    want = relevance(twin, x, (COMPOSITES | RULES)[method](x), method in ONEHOT)
    assert peers.distance(peers.attribute64(net, x, method, **PARAMS.get(method, {})), want) < 1e-9


IGNORING = {
    "lrp.epsilon": rules.Epsilon(zero_params=["bias"]),
    "lrp.zplus": rules.ZPlus(zero_params=["bias"]),
    "lrp.alpha2_beta1": rules.AlphaBeta(alpha=2, beta=1, zero_params=["bias"]),
    "lrp.wsquare": rules.WSquare(zero_params=["bias"]),
}


@pytest.mark.parametrize("method", IGNORING)
@pytest.mark.parametrize("name", ["cnn", "transposed", "signal"])
def test_biases_ignored(name, method):
    net, twin, x = twins(name)
    found = peers.attribute(peers.export(net, x), x, method, bias="ignore")["x"]
    assert peers.distance(found, relevance(twin, x, everywhere(IGNORING[method]))) < 10 * TOLERANCE


@pytest.mark.parametrize("eps", [0.5, 0.01])
@pytest.mark.parametrize("name", ["grouped", "mlp"])
def test_epsilon(name, eps):
    """On nets without pooling or sums: our eps holds for those too, zennit's only for the linear layers."""
    net, twin, x = twins(name)
    if name == "grouped":
        net, twin = (torch.nn.Sequential(*n[:-4], torch.nn.Flatten()) for n in (net, twin))
    found = peers.attribute(peers.export(net, x), x, "lrp.epsilon", eps=eps)["x"]
    assert peers.distance(found, relevance(twin, x, everywhere(rules.Epsilon(epsilon=eps)))) < TOLERANCE


@pytest.mark.parametrize("method", [m for m in COMPOSITES | RULES if m not in ONEHOT])
@pytest.mark.parametrize("name", ["cnn", "biased", "residual", "mlp"])
def test_normalisations_passed(name, method):
    """zennit without a canoniser lets relevance pass BatchNorm: our bn="pass"."""
    net, x = nets.make(name)
    twin = nets.make(name, **({"joined": layer.Sum} if name == "residual" else {}))[0]
    found = peers.attribute(peers.export(net, x), x, method, bn="pass", **PARAMS.get(method, {}))["x"]
    assert peers.distance(found, relevance(twin, x, (COMPOSITES | RULES)[method](x))) < 1e-3


def test_sums_as_zennit_wants_them():
    """A file exported from the net that was rewritten for zennit (a stack and a sum over it) is explained alike."""
    _, twin, x = twins("residual")
    found = peers.attribute(peers.export(twin.float(), x), x, "lrp.epsilon_plus_flat")["x"]
    assert peers.distance(found, relevance(twin, x, composites.EpsilonPlusFlat())) < TOLERANCE


def test_zennits_own_canoniser():
    """It leaves eps in each BatchNorm that it merged: 5e-6 apiece in the forward pass, so it is no exact reference."""
    net, twin, x = twins("cnn")
    canonised = composites.EpsilonPlusFlat(canonizers=[canonizers.SequentialMergeBatchNorm()])
    want, exact = relevance(net, x, canonised), relevance(twin, x, composites.EpsilonPlusFlat())
    found = peers.attribute(peers.export(net, x), x, "lrp.epsilon_plus_flat")["x"]
    assert TOLERANCE < peers.distance(exact, want) < 1e-4
    assert peers.distance(found, want) < 1e-4


@pytest.mark.parametrize(
    "method", ["lrp.epsilon_plus_flat", "lrp.epsilon_gamma_box", "lrp.epsilon_alpha2_beta1_flat", "lrp.gamma"]
)
def test_deep_residual_net(method):
    """34 layers. In float32 one changed sign weighs more than all rounding, so the map is compared as a whole."""
    net, twin, x = twins("deep")
    want = relevance(twin, x, (COMPOSITES | RULES)[method](x))
    found = peers.attribute(peers.export(net, x), x, method, **PARAMS.get(method, {}))["x"]
    assert peers.cosine(found, want) > 1 - 1e-7
    assert peers.spread(found, want) < 1e-3


def test_deep_residual_net_in_float64():
    net, twin, x = twins("deep")
    want = relevance(twin, x[:1], composites.EpsilonPlusFlat(), target=peers.TARGET[:1])
    assert peers.distance(peers.attribute64(net, x[:1], "lrp.epsilon_plus_flat", peers.TARGET[:1]), want) < 1e-9


@pytest.mark.parametrize("method", COMPOSITES | RULES)
def test_the_comparison_notices_the_gradient(method, monkeypatch):
    """Also where the gradient comes with the seed that the method has."""
    attribute = peers.attribute
    for seed in ("onehot", "logit"):
        scale = 1.0 if seed == "onehot" else logits("residual")
        monkeypatch.setattr(
            peers,
            "attribute",
            lambda model, x, method, scale=scale, **params: {"x": attribute(model, x, "gradient")["x"] * scale},
        )
        with pytest.raises(AssertionError):
            compare("residual", method)


def logits(name):
    net, x = nets.make(name)
    return net(x)[range(len(x)), peers.TARGET].detach().numpy().reshape(-1, 1, 1, 1)


def activated(kind):
    """(net, x): the activation between two dense layers."""
    return nets.settle(torch.nn.Sequential(torch.nn.Linear(10, 12), kind, torch.nn.Linear(12, 4)), 3), nets.samples(
        10
    )


ACTIVATIONS = [
    *(
        torch.nn.Tanh(),
        torch.nn.Sigmoid(),
        torch.nn.SiLU(),
        torch.nn.Hardswish(),
        torch.nn.Softplus(),
        torch.nn.Softsign(),
    ),
    *(torch.nn.ELU(0.7), torch.nn.SELU(), torch.nn.CELU(1.3), torch.nn.LeakyReLU(0.3), torch.nn.Hardtanh(-0.8, 0.9)),
    *(torch.nn.Hardsigmoid(), torch.nn.LogSigmoid(), torch.nn.Hardshrink(), torch.nn.Softshrink()),
    *(torch.nn.GELU(k) for k in ("none", "tanh")),
]


@pytest.mark.parametrize("method", ["lrp.epsilon", "lrp.zplus", "lrp.gamma"])
@pytest.mark.parametrize("kind", ACTIVATIONS, ids=lambda k: str(k))
def test_activations_are_passed(kind, method):
    net, x = activated(kind)
    found = peers.attribute(peers.export(net, x), x, method)["x"]
    assert peers.distance(found, relevance(net, x, RULES[method](x))) < TOLERANCE
