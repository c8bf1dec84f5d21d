"""The linear layers that MIP-IN inverts: the sums of their least squares, and the solution in the layout of their weights."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from ..errors import UnsupportedOp
from ..graph import Array
from ..layers import Layer
from ..units import units_of
from ..vjp.geometry import window
from .normal import Grid, conv_rows, dense_rows, sums_of


class Invertible(Protocol):
    """`has_bias`: whether its inverse always has one. Sums and solutions have a first axis of groups."""

    has_bias: bool

    def sums(self, s: Array, x: Array) -> dict[str, Array]: ...
    def weight(self, w: Array) -> Array: ...
    def bias(self, b: Array) -> Array: ...


def invertible(layer: Layer) -> Invertible:
    """The layer as one of the two kinds; UnsupportedOp where it is neither."""
    return Convolution(layer) if layer.op == "Conv" else Dense(layer)


class Dense:
    """X = W S + b along one axis; all other axes are rows."""

    has_bias = True

    def __init__(self, layer: Layer) -> None:
        node, w, x = layer.nodes[0], layer.w, layer.x
        at = next(i for i, v in enumerate(node.inputs) if v is x)
        self.units = units_of(layer)
        turned = node.attrs.get("transA" if at == 0 else "transB", 0)
        if layer.tail or w is None or w.rank != 2 or self.units.axes != (-1 - at,) or turned or x.rank < 2:
            raise UnsupportedOp(f"no inverse is known for layer {layer.name!r} ({layer.op}): MIP-IN inverts convolutions and "
                                "products with a matrix; attribute to a tensor behind it (wrt=, --wrt)")
        self.axis = -1 - at

    def sums(self, s: Array, x: Array) -> dict[str, Array]:
        found = sums_of(dense_rows(np.moveaxis(s, self.axis, -1), np.moveaxis(x, self.axis, -1)), s.shape[self.axis])
        return {k: v[None] for k, v in found.items()}

    def weight(self, w: Array) -> Array:
        found: Array = self.units.back(w[0])
        return found

    def bias(self, b: Array) -> Array:
        return np.asarray(b[0] if self.axis == -1 else b[0][:, None])


class Convolution:
    """X = ConvTranspose(S; K) (+ b), group by group."""

    has_bias = False

    def __init__(self, layer: Layer) -> None:
        assert layer.w is not None
        shape, node = layer.w.shape, layer.nodes[0]
        if shape is None or not all(isinstance(d, int) for d in shape):
            raise UnsupportedOp(f"layer {layer.name!r}: the shape of its kernel is unknown; run shape inference on the model")
        self.shape, self.groups = [d for d in shape if isinstance(d, int)], int(node.attrs.get("group", 1))
        self.window = window(node, self.shape[2:], (layer.x.shape or ())[2:])

    def sums(self, s: Array, x: Array) -> dict[str, Array]:
        grid, unknowns = self.grid(s.shape[2:], x.shape[2:]), self.shape[0] // self.groups * int(np.prod(self.shape[2:]))
        parts = zip(np.split(s, self.groups, 1), np.split(x, self.groups, 1), strict=True)
        made = [sums_of(conv_rows(a, b, grid), unknowns) for a, b in parts]
        return {k: np.stack([one[k] for one in made]) for k in made[0]}

    def grid(self, out: tuple[int, ...], sizes: tuple[int, ...]) -> Grid:
        """The window with its pads, which SAME_* leaves to the run where sizes are symbolic."""
        win = self.window
        spans = zip(out, win.strides, self.shape[2:], win.dilations, sizes, strict=True)
        totals = [max(0, (o - 1) * s + (k - 1) * d + 1 - n) for o, s, k, d, n in spans]
        begin = [(t + win.lower) // 2 if b is None else b for b, t in zip(win.begin, totals, strict=True)]
        return Grid(self.shape[2:], win.strides, begin, win.dilations)

    def weight(self, w: Array) -> Array:
        """(groups, taps times C_out / g, C_in / g) as a kernel (C_out, C_in / g, *kernel)."""
        split = w.reshape(self.groups, -1, self.shape[0] // self.groups, self.shape[1])
        return split.transpose(0, 2, 3, 1).reshape(self.shape)

    def bias(self, b: Array) -> Array:
        return b.reshape(-1, *[1] * len(self.shape[2:]))
