"""Whole networks with seeded weights, and their gradient or relevance by torch and zennit.

zennit has no rules for attention, LayerNorm, or a BatchNorm that nothing takes in: they are hooks here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from zennit import composites, rules, types
from zennit.core import Composite, Hook, stabilize

from graphattr.demo import efficientnet
from tests.bench import torch_nets
from tests.conformance.trained import picture

Array = np.ndarray


def network(name: str, size: int) -> tuple[nn.Module, torch.Tensor, int]:
    """(net, picture, class of the largest logit). EfficientNet-Lite0 is the trained one of graphattr's demo."""
    net = torch_nets.NETS[name](size, norm=True)
    x = trained(net, size) if name == "efficientnet_lite0" else seeded(net, size)
    with torch.no_grad():
        return net, x, int(net.eval()(x).argmax())


def seeded(net: nn.Module, size: int) -> torch.Tensor:
    """He-normal weights, small biases, statistics of seeded pictures in each BatchNorm; a picture."""
    draw = torch.Generator().manual_seed(0)
    for module in net.modules():
        normalises = isinstance(module, nn.BatchNorm2d | nn.LayerNorm)
        for kind, p in module.named_parameters(recurse=False):
            spread = (2 / p[0].numel()) ** 0.5 if isinstance(module, nn.Conv2d | nn.Linear) and kind == "weight" else 0.2
            p.data = spread * torch.randn(p.shape, generator=draw) + float(normalises and kind == "weight")
        if normalises:  # an eps that float32, in which ONNX keeps it, holds exactly
            module.momentum, module.eps = None, 2.0**-17
    with torch.no_grad():
        net.train()(torch.randn(4, 3, size, size, generator=draw))
    return torch.randn(1, 3, size, size, generator=draw)


def trained(net: nn.Module, size: int) -> torch.Tensor:
    """The weights of the installed package, in the order of the file; a picture."""
    weights = efficientnet.read_pth(efficientnet.weights_path()).values()
    net.load_state_dict({k: torch.tensor(w) for k, w in zip(net.state_dict(), weights, strict=True)})
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = float(np.float32(efficientnet.EPSILON))
    return torch.tensor(picture(size, size)["x"])


def plain(net: nn.Module) -> nn.Module:
    """The net with its residual sums written a + b."""
    for module in net.modules():
        if isinstance(module, torch_nets.Join):
            module.plain = True
    return net


class Frozen(Hook):
    """LayerNorm as the linear map that its deviations make it: q = R / stab(y), u = weight q / s, R_x = x (u - mean u)."""

    def forward(self, module, input, output):
        x = input[0].detach()
        self.stored_tensors.update(x=x, y=output.detach(), s=torch.sqrt(x.var(-1, keepdim=True, correction=0) + module.eps))

    def backward(self, module, grad_input, grad_output):
        held = self.stored_tensors
        u = module.weight.detach() * grad_output[0] / stabilize(held["y"]) / held["s"]
        return (held["x"] * (u - u.mean(-1, keepdim=True)),)


class Taylor(Hook):
    """Softmax: R_u = u (R - s sum R) (Achtibat et al. 2024, proposition 3.1)."""

    def forward(self, module, input, output):
        self.stored_tensors.update(u=input[0].detach(), s=output.detach())

    def backward(self, module, grad_input, grad_output):
        u, s = self.stored_tensors["u"], self.stored_tensors["s"]
        return (u * (grad_output[0] - s * grad_output[0].sum(-1, keepdim=True)),)


class Shared(Hook):
    """A product of two: half of its relevance to each, by the epsilon rule (proposition 3.3)."""

    def forward(self, module, input, output):
        self.stored_tensors.update(a=input[0].detach(), b=input[1].detach(), y=output.detach())

    def backward(self, module, grad_input, grad_output):
        a, b = self.stored_tensors["a"], self.stored_tensors["b"]
        q = grad_output[0] / stabilize(2 * self.stored_tensors["y"])
        return a * (q @ b.transpose(-2, -1)), b * (a.transpose(-2, -1) @ q)


INNER = [
    (types.BatchNorm, rules.Norm()),  # one that nothing takes in: x a R / stab(y)
    (nn.LayerNorm, Frozen()),
    (nn.Softmax, Taylor()),
    (torch_nets.Product, Shared()),
    (torch_nets.Scale, rules.Pass()),
    (torch_nets.Shift, rules.Norm()),
]


def composite(method: str) -> Composite:
    """The method's rules, those of normalisations, attention and shifts included."""
    base = [*INNER, *composites.layer_map_base()]
    if method == "lrp.epsilon_plus_flat":
        return layered([(types.Convolution, rules.ZPlus()), (nn.Linear, rules.Epsilon()), *base], rules.Flat())
    rule = {"lrp.epsilon": rules.Epsilon(), "lrp.zplus": rules.ZPlus()}[method]
    return composites.LayerMapComposite([(types.Linear, rule), *base])


def layered(layers: list[Any], first: Hook) -> Composite:
    return composites.SpecialFirstLayerMapComposite(layers, [(types.Linear, first)])


def pulled(net: nn.Module, x: torch.Tensor, target: int, rules: Composite | None = None) -> Array:
    """The gradient of the logit, or its relevance by a composite, at x's precision."""
    x = x.clone().requires_grad_()
    if rules is None:
        return torch.autograd.grad(net(x)[0, target], x)[0].numpy()
    with rules.context(net) as explained:
        y = explained(x)
        seed = torch.zeros_like(y)
        seed[0, target] = y[0, target].detach()
        return torch.autograd.grad(y, x, seed)[0].detach().numpy()
