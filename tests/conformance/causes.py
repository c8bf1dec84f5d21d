"""What zennit does otherwise than graphattr, one thing at a time, and how far that moves EpsilonPlusFlat of ResNet-50."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from zennit import canonizers, composites, rules, types
from zennit.core import Composite, Hook

from tests.conformance import peers
from tests.conformance.whole import Array, layered, network, plain, pulled

EPF, base = composites.EpsilonPlusFlat, composites.layer_map_base


class Neutral(canonizers.SequentialMergeBatchNorm):
    """zennit's, and the merged BatchNorm forgets its eps: it is the identity then."""

    def merge_batch_norm(self, modules: Any, batch_norm: nn.Module) -> None:
        super().merge_batch_norm(modules, batch_norm)
        batch_norm.eps = 0.0


def unsigned(z: torch.Tensor) -> torch.Tensor:
    return z + 1e-6


def padding_counts() -> Hook:
    """Flat whose denominator is the same everywhere."""
    rule = rules.Flat()
    rule.gradient_mapper = lambda out_grad, outputs: out_grad / outputs[0].amax((2, 3), keepdim=True)
    return rule


def stabilised(by: Any) -> Composite:
    """EpsilonPlusFlat with another stabiliser everywhere."""
    layers = [(types.Convolution, rules.ZPlus(by)), (nn.Linear, rules.Epsilon(by)), *base(by)]
    return layered(layers, rules.Flat(by))


def usual(first: Hook, left_out: Any = (), **biases: Any) -> Composite:
    """EpsilonPlusFlat with another first rule, without rules for some modules, or without biases."""
    layers = [(types.Convolution, rules.ZPlus(**biases)), (nn.Linear, rules.Epsilon(**biases)), *base()]
    return layered([(t, r) for t, r in layers if t is not left_out], first)


def causes(size: int) -> Iterator[tuple[str, Array, Array]]:
    """(what is done otherwise, its relevance, that of graphattr's rules), all in float64."""
    net, x, target = network("resnet50", size)
    net, x = net.double(), x.double()
    merged = peers.folded(net)

    def of(net: nn.Module, rules: Composite) -> Callable[[], Array]:
        return lambda: pulled(copy.deepcopy(net), x, target, rules)

    cases = {
        "zennit's canoniser: merged BatchNorms keep their eps": of(net, EPF(canonizers=[canonizers.SequentialMergeBatchNorm()])),
        "the same with that eps set to 0": of(net, EPF(canonizers=[Neutral()])),
        "no canoniser: relevance passes BatchNorm (bn='pass')": of(net, EPF()),
        "sums written a + b: both branches get all of R": of(plain(copy.deepcopy(merged)), EPF()),
        "global average pooling by its gradient": of(merged, usual(rules.Flat(), types.AvgPool)),
        "every stabiliser 1e-9, not 1e-6": of(merged, stabilised(1e-9)),
        "stabiliser z + 1e-6, without the sign of z": of(merged, stabilised(unsigned)),
        "biases left out of the denominators": of(merged, usual(rules.Flat(), zero_params=["bias"])),
        "z+ in the first layer, not flat": of(merged, usual(rules.ZPlus())),
        "flat: the padding counts in the denominator": of(merged, usual(padding_counts())),
    }
    want = of(merged, EPF())()
    for cause, run in cases.items():
        yield cause, run(), want
