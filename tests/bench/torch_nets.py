"""The torch twins of two networks. zennit's Sum makes residual sums visible to its rules."""

from __future__ import annotations

import torch
from torch import nn
from zennit.layer import Sum


class Bottleneck(nn.Module):
    """1x1 (strided, as in the original network), 3x3, 1x1, and the sum with the shortcut."""

    def __init__(self, ins: int, width: int, stride: int) -> None:
        super().__init__()
        outs = 4 * width
        self.body = nn.Sequential(
            nn.Conv2d(ins, width, 1, stride),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(width, outs, 1),
        )
        self.shortcut = nn.Conv2d(ins, outs, 1, stride) if ins != outs else nn.Identity()
        self.sum, self.relu = Sum(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.sum(torch.stack([self.shortcut(x), self.body(x)], dim=-1)))


def resnet50() -> nn.Module:
    """ResNet-50 with its BatchNormalization folded, as exporters write it."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    ins = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(blocks):
            layers.append(Bottleneck(ins, width, stride if i == 0 else 1))
            ins = 4 * width
    return nn.Sequential(*layers, nn.AvgPool2d(7), nn.Flatten(), nn.Linear(2048, 1000))


def vgg19() -> nn.Module:
    layers: list[nn.Module] = []
    ins = 3
    for width, convolutions in ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4)):
        for _ in range(convolutions):
            layers += [nn.Conv2d(ins, width, 3, 1, 1), nn.ReLU()]
            ins = width
        layers.append(nn.MaxPool2d(2))
    dense = [nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers, nn.Flatten(), *dense)


NETS = {"resnet50": resnet50, "vgg19": vgg19}
