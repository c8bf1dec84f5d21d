"""Networks in torch, spelled in modules so that zennit's rules see residual sums, products and shifts.

`norm=True` puts a BatchNorm behind each convolution of ResNet, MobileNet and DenseNet; without, it counts as folded, as
exporters write it. `size` is the height and width of the picture.
"""

from __future__ import annotations

import torch
from torch import nn
from zennit.layer import Sum


class Join(nn.Module):
    """a + b by zennit's Sum over a stack; with `plain` as it is usually written, which zennit does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.sum, self.plain = Sum(), False

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b if self.plain else self.sum(torch.stack([a, b], dim=-1))


class Same(nn.Conv2d):
    """Padded as TensorFlow pads: the odd row and column behind the picture."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k, stride = self.kernel_size[0], self.stride[0]
        pads = []
        for size in (int(x.shape[3]), int(x.shape[2])):
            both = max((-(-size // stride) - 1) * stride + k - size, 0)
            pads += [both // 2, both - both // 2]
        return super().forward(nn.functional.pad(x, pads))


def conv(
    ins: int, outs: int, k: int, stride: int = 1, groups: int = 1, norm: bool = False, same: bool = False
) -> list[nn.Module]:
    """A convolution that keeps the size up to its stride, and its normalisation."""
    kind, padding = (Same, 0) if same else (nn.Conv2d, k // 2)
    made = kind(ins, outs, k, stride, padding, groups=groups, bias=not norm)
    return [made, nn.BatchNorm2d(outs)] if norm else [made]


class Bottleneck(nn.Module):
    """1x1 (strided, as in the original network), 3x3, 1x1, and the sum with the shortcut."""

    def __init__(self, ins: int, width: int, stride: int, norm: bool = False) -> None:
        super().__init__()
        outs = 4 * width
        self.body = nn.Sequential(
            *conv(ins, width, 1, stride, norm=norm),
            nn.ReLU(),
            *conv(width, width, 3, norm=norm),
            nn.ReLU(),
            *conv(width, outs, 1, norm=norm),
        )
        self.shortcut = nn.Sequential(*conv(ins, outs, 1, stride, norm=norm) if ins != outs else [])
        self.join, self.relu = Join(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.join(self.shortcut(x), self.body(x)))


def resnet50(size: int = 224, norm: bool = False) -> nn.Module:
    layers: list[nn.Module] = [*conv(3, 64, 7, 2, norm=norm), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    ins = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for i in range(blocks):
            layers.append(Bottleneck(ins, width, stride if i == 0 else 1, norm))
            ins = 4 * width
    return nn.Sequential(*layers, *head(ins))


def head(ins: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(ins, 1000)]


def vgg(deep: int, size: int) -> nn.Module:
    """`deep` convolutions in each of the last three stages; the first two have two."""
    layers: list[nn.Module] = []
    ins = 3
    for width, convolutions in ((64, 2), (128, 2), (256, deep), (512, deep), (512, deep)):
        for _ in range(convolutions):
            layers += [*conv(ins, width, 3), nn.ReLU()]
            ins = width
        layers.append(nn.MaxPool2d(2))
    features = 512 * (size // 32) ** 2
    dense = [nn.Linear(features, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers, nn.Flatten(), *dense)


def vgg16(size: int = 224, norm: bool = False) -> nn.Module:
    return vgg(3, size)


def vgg19(size: int = 224, norm: bool = False) -> nn.Module:
    return vgg(4, size)


class Inverted(nn.Module):
    """Widen, filter each channel alone, narrow; add what came in where the shapes agree."""

    def __init__(
        self, ins: int, outs: int, expansion: int, stride: int, norm: bool, k: int = 3, same: bool = False
    ) -> None:
        super().__init__()
        wide = ins * expansion
        widen = [*conv(ins, wide, 1, norm=norm), nn.ReLU6()] if expansion > 1 else []
        alone = [*conv(wide, wide, k, stride, wide, norm, same), nn.ReLU6()]
        self.body = nn.Sequential(*widen, *alone, *conv(wide, outs, 1, norm=norm))
        self.join = Join() if stride == 1 and ins == outs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.body(x)
        return y if self.join is None else self.join(x, y)


def mobilenet_v2(size: int = 224, norm: bool = False) -> nn.Module:
    """Expansion, channels, blocks and stride of the first one: Sandler et al. 2018, table 2; as in nets.py."""
    layers, ins = [*conv(3, 32, 3, 2, norm=norm), nn.ReLU6()], 32
    stages = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, outs, blocks, stride in stages:
        for i in range(blocks):
            layers.append(Inverted(ins, outs, expansion, stride if i == 0 else 1, norm))
            ins = outs
    return nn.Sequential(*layers, *conv(ins, 1280, 1, norm=norm), nn.ReLU6(), *head(1280))


def efficientnet_lite0(size: int = 224, norm: bool = False) -> nn.Module:
    """Expansion, channels, blocks, stride of the first one, kernel; parameters in the order of the published weights."""
    layers, ins = [*conv(3, 32, 3, 2, norm=norm, same=True), nn.ReLU6()], 32
    stages = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5), (6, 192, 4, 2, 5),
              (6, 320, 1, 1, 3))
    for expansion, outs, blocks, stride, k in stages:
        for i in range(blocks):
            layers.append(Inverted(ins, outs, expansion, stride if i == 0 else 1, norm, k, same=True))
            ins = outs
    return nn.Sequential(*layers, *conv(ins, 1280, 1, norm=norm), nn.ReLU6(), *head(1280))


class Grown(nn.Module):
    """What came in, and 32 channels made of it."""

    def __init__(self, ins: int, norm: bool) -> None:
        super().__init__()
        reduce, add = [*conv(ins, 128, 1, norm=norm), nn.ReLU()], nn.Conv2d(128, 32, 3, padding=1, bias=False)
        self.body = nn.Sequential(nn.BatchNorm2d(ins), nn.ReLU(), *reduce, add)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.body(x)], 1)


def densenet121(size: int = 224, norm: bool = False) -> nn.Module:
    """Huang et al. 2017. Its normalisations in front of a ReLU stay, whatever `norm`: nothing takes them in."""
    layers, ins = [*conv(3, 64, 7, 2, norm=norm), nn.ReLU(), nn.MaxPool2d(3, 2, 1)], 64
    for stage, blocks in enumerate((6, 12, 24, 16)):
        if stage:
            layers += [nn.BatchNorm2d(ins), nn.ReLU(), nn.Conv2d(ins, ins // 2, 1, bias=False), nn.AvgPool2d(2)]
            ins //= 2
        for _ in range(blocks):
            layers.append(Grown(ins, norm))
            ins += 32
    return nn.Sequential(*layers, nn.BatchNorm2d(ins), nn.ReLU(), *head(ins))


class Scale(nn.Module):
    """A constant factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class Shift(nn.Module):
    """A learnt constant, added."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.shift


class Product(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out, self.heads = nn.Linear(width, 3 * width), nn.Linear(width, width), heads
        self.scores, self.scale = Product(), Scale((width // heads) ** -0.5)
        self.softmax, self.values = nn.Softmax(-1), Product()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = self.softmax(self.scale(self.scores(q, k.transpose(-2, -1))))
        return self.out(self.values(weights, v).transpose(1, 2).reshape(n, tokens, width))


class Residual(nn.Module):
    """x + body(norm(x))."""

    def __init__(self, width: int, *body: nn.Module) -> None:
        super().__init__()
        self.body, self.join = nn.Sequential(nn.LayerNorm(width, 1e-6), *body), Join()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.join(x, self.body(x))


class Tokens(nn.Module):
    """Patches of 16 x 16 behind a class token, and positions added."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.patches, self.first = nn.Conv2d(3, width, 16, 16), nn.Parameter(torch.zeros(1, 1, width))
        self.positions = Shift(1 + (size // 16) ** 2, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = self.patches(x).flatten(2).transpose(1, 2)
        return self.positions(torch.cat([self.first.expand(len(x), -1, -1), rows], 1))


class First(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, 0]


def vit(width: int, heads: int, size: int) -> nn.Module:
    """12 blocks (Dosovitskiy et al. 2021)."""
    layers: list[nn.Module] = [Tokens(width, size)]
    for _ in range(12):
        layers.append(Residual(width, Attention(width, heads)))
        layers.append(Residual(width, nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)))
    return nn.Sequential(*layers, nn.LayerNorm(width, 1e-6), First(), nn.Linear(width, 1000))


def vit_s16(size: int = 224, norm: bool = False) -> nn.Module:
    """ViT-S/16; the size is DeiT's."""
    return vit(384, 6, size)


def vit_b16(size: int = 224, norm: bool = False) -> nn.Module:
    return vit(768, 12, size)


class Fire(nn.Module):
    """A 1x1 convolution, and beside each other a 1x1 and a 3x3 of what it gives."""

    def __init__(self, ins: int, narrow: int, outs: int) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.Conv2d(ins, narrow, 1), nn.ReLU())
        self.left = nn.Sequential(nn.Conv2d(narrow, outs // 2, 1), nn.ReLU())
        self.right = nn.Sequential(nn.Conv2d(narrow, outs // 2, 3, padding=1), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.squeeze(x)
        return torch.cat([self.left(x), self.right(x)], 1)


def squeezenet(size: int = 224, norm: bool = False) -> nn.Module:
    """SqueezeNet 1.1 (Iandola et al. 2016), as the onnx package carries it but for its softmax."""
    layers, ins = [nn.Conv2d(3, 64, 3, 2), nn.ReLU()], 64
    for narrow, outs, blocks in ((16, 128, 2), (32, 256, 2), (48, 384, 2), (64, 512, 2)):
        layers += [nn.MaxPool2d(3, 2)] if narrow < 64 else []
        for _ in range(blocks):
            layers.append(Fire(ins, narrow, outs))
            ins = outs
    return nn.Sequential(*layers, nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


NETS = {
    "resnet50": resnet50,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "mobilenet_v2": mobilenet_v2,
    "densenet121": densenet121,
    "squeezenet": squeezenet,
    "efficientnet_lite0": efficientnet_lite0,
    "vit_s16": vit_s16,
    "vit_b16": vit_b16,
}
