"""Small seeded torch nets in inference mode, one per thing that an exporter writes differently."""

from __future__ import annotations

import torch
from torch import nn

IMAGE, SIGNAL, ROW = (3, 12, 12), (3, 20), (10,)


def settle(net, seed):
    """Seeded parameters and running statistics that a wrong formula would notice; inference mode."""
    draw = torch.Generator().manual_seed(seed)
    for module in net.modules():
        for name, p in module.named_parameters(recurse=False):
            spread = 0.2 if p.ndim < 2 else (2 / p[0].numel()) ** 0.5
            p.data = spread * torch.randn(p.shape, generator=draw) + (1.0 if name == "weight" and p.ndim < 2 else 0.0)
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean = 0.3 * torch.randn(module.num_features, generator=draw)
            module.running_var = 0.5 + 1.5 * torch.rand(module.num_features, generator=draw)
        if isinstance(module, Block):
            module.norm2.weight.data *= 0.5
    return net.eval()


def samples(*shape, seed=0, n=2):
    """A batch whose values float32 and float64 hold alike."""
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1000 + seed))


class Block(nn.Module):
    """A residual block with normalised convolutions. `joined`: what adds up a stack of branches; None writes a + b."""

    def __init__(self, cin, cout, stride=1, joined=None):
        super().__init__()
        self.first = nn.Conv2d(cin, cout, 3, stride, padding=1, bias=False)
        self.norm1, self.relu1 = nn.BatchNorm2d(cout), nn.ReLU()
        self.second, self.norm2 = nn.Conv2d(cout, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout)
        self.down, self.norm3 = nn.Conv2d(cin, cout, 1, stride, bias=False), nn.BatchNorm2d(cout)
        self.plain = cin == cout and stride == 1
        self.joined, self.relu2 = joined() if joined else None, nn.ReLU()

    def forward(self, x):
        y = self.norm2(self.second(self.relu1(self.norm1(self.first(x)))))
        side = x if self.plain else self.norm3(self.down(x))
        return self.relu2(y + side if self.joined is None else self.joined(torch.stack([y, side], -1)))


class Attention(nn.Module):
    """Self-attention over five tokens in pre-norm form, then a norm and a mean over the tokens."""

    def __init__(self, size=8, heads=2):
        super().__init__()
        self.norm1, self.qkv, self.out = nn.LayerNorm(size), nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.norm2, self.up, self.down, self.act = (
            nn.LayerNorm(size),
            nn.Linear(size, 12),
            nn.Linear(12, size),
            nn.GELU(),
        )
        self.head, self.heads = nn.Linear(size, 4), heads

    def forward(self, x):
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * (d // self.heads) ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(n, t, d))
        x = x + self.down(self.act(self.up(self.norm2(x))))
        return self.head(x.mean(1))


class TwoInputs(nn.Module):
    """A picture gated and completed by a row of numbers."""

    def __init__(self):
        super().__init__()
        self.conv, self.gate, self.side, self.head = (
            nn.Conv2d(3, 6, 3, padding=1),
            nn.Linear(10, 6),
            nn.Linear(10, 5),
            nn.Linear(11, 4),
        )
        self.relu, self.tanh = nn.ReLU(), nn.Tanh()

    def forward(self, x, row):
        h = self.relu(self.conv(x)) * torch.sigmoid(self.gate(row))[:, :, None, None]
        return self.head(torch.cat([h.mean((2, 3)), self.tanh(self.side(row))], 1))


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(6, 8, 3, stride=2, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AvgPool2d(2, 1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def biased():
    """BatchNorm where it cannot be folded forward: on the input, behind an activation, between padded convolutions."""
    return nn.Sequential(
        nn.BatchNorm2d(3),
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.BatchNorm1d(6),
        nn.Linear(6, 4),
    )


def residual(joined=None):
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.MaxPool2d(2),
        Block(6, 6, 1, joined),
        Block(6, 8, 2, joined),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def grouped():
    """Depthwise, grouped, strided, dilated; activations of the mobile nets."""
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.ReLU6(),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6),
        nn.Hardswish(),
        nn.Conv2d(6, 8, 1),
        nn.SiLU(),
        nn.Conv2d(8, 8, (3, 1), groups=2, padding=(0, 1)),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def transposed():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1),
        nn.ReLU(),
        nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AvgPool2d(3),
        nn.Flatten(),
        nn.Linear(54, 4),
    )


def pools():
    return nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1, ceil_mode=True),
        nn.Conv2d(5, 6, 1),
        nn.ReLU(),
        nn.AvgPool2d(3, 2, 1, count_include_pad=False),
        nn.Conv2d(6, 6, 1),
        nn.ReLU(),
        nn.MaxPool2d(2, 1, dilation=2),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


def included():
    return nn.Sequential(
        nn.Conv2d(3, 5, 3),
        nn.LeakyReLU(0.25),
        nn.AvgPool2d(3, 2, 1),
        nn.Conv2d(5, 6, 3),
        nn.PReLU(6),
        nn.AdaptiveMaxPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )


def deep(joined=None):
    """A residual net of 34 layers; the branches are weak, as those of a trained net are."""
    blocks, width = [], 12
    for i, (size, n) in enumerate(((12, 3), (16, 4), (24, 6), (32, 3))):
        for k in range(n):
            blocks.append(Block(width, size, 1 if k or not i else 2, joined))
            width = size
    return nn.Sequential(
        nn.Conv2d(3, 12, 7, 2, padding=3, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 5),
    )


def mlp():
    return nn.Sequential(
        nn.Linear(10, 14), nn.ReLU(), nn.Linear(14, 12, bias=False), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 4)
    )


def activations():
    """One of each; the widths are equal so that a swapped pair of layers would go unnoticed by shapes alone."""
    kinds = (
        nn.GELU(),
        nn.GELU("tanh"),
        nn.SiLU(),
        nn.Tanh(),
        nn.Sigmoid(),
        nn.ELU(0.7),
        nn.SELU(),
        nn.CELU(1.3),
        nn.Softplus(),
        nn.Softsign(),
        nn.Hardswish(),
        nn.Hardsigmoid(),
        nn.Mish(),
        nn.LeakyReLU(0.3),
        nn.Hardtanh(-0.8, 0.9),
    )
    return nn.Sequential(*(m for kind in kinds for m in (nn.Linear(10, 10), kind)), nn.Linear(10, 4))


def norms():
    return nn.Sequential(
        nn.Linear(10, 12),
        nn.LayerNorm(12),
        nn.GELU(),
        nn.Linear(12, 12),
        nn.LayerNorm(12, bias=False),
        nn.ReLU(),
        nn.Linear(12, 4),
    )


def groupnorm():
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.GroupNorm(3, 6),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3),
        nn.InstanceNorm2d(8, affine=True),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def signal():
    return nn.Sequential(
        nn.Conv1d(3, 6, 5, padding=4, dilation=2),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Conv1d(6, 8, 3, stride=2, bias=False),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.AvgPool1d(3),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def volume():
    return nn.Sequential(
        nn.Conv3d(2, 4, 3, padding=1),
        nn.BatchNorm3d(4),
        nn.ReLU(),
        nn.MaxPool3d(2),
        nn.Conv3d(4, 5, 2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5, 4),
    )


SHAPES = {
    "cnn": IMAGE,
    "biased": IMAGE,
    "residual": IMAGE,
    "grouped": IMAGE,
    "transposed": IMAGE,
    "pools": IMAGE,
    "included": IMAGE,
    "mlp": ROW,
    "activations": ROW,
    "norms": ROW,
    "groupnorm": IMAGE,
    "signal": SIGNAL,
    "volume": (2, 4, 5, 5),
    "deep": (3, 48, 48),
    "attention": (5, 8),
}
MAKERS = {n: f for n, f in list(globals().items()) if n in SHAPES} | {"attention": Attention}
# Chosen so that no explained logit is near 0 and something arrives at the input.
SEEDS = {name: i for i, name in enumerate(SHAPES)} | {"pools": 9, "volume": 19, "mlp": 8, "signal": 11, "included": 8}


def make(name, **options):
    """(net, inputs) by name; the same parameters whatever the options."""
    return settle(MAKERS[name](**options), SEEDS[name]), samples(*SHAPES[name], seed=SEEDS[name])
