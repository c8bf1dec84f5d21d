"""What attributed tensors are compared with: numbers, arrays, rows of arrays, graph inputs, blurred copies.

A reference is a Value that broadcasts against its tensor. Several of them (rows of `baselines`) lie one behind the other
along a first axis of their own, so their Value has one axis more than the tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import MethodError
from .graph import Graph, Value
from .rule import constant_like
from .vjp.reduce import reduction


@dataclass(frozen=True, eq=False)
class References:
    """The reference of each attributed tensor; `count` of them, the same number for all."""

    values: Mapping[Value, Value]

    def __post_init__(self) -> None:
        counts = {n for n in map(_count, self.values, self.values.values()) if n > 1}
        if len(counts) > 1:
            raise MethodError(f"parameter 'baselines': {' and '.join(map(str, sorted(counts)))} rows; every tensor needs as many")

    @property
    def count(self) -> int:
        return max(map(_count, self.values, self.values.values()), default=1)

    def row(self, g: Graph, i: Value | None) -> dict[Value, Value]:
        """The i-th reference of each tensor (i: an int64 scalar of g); the only one where there is one."""
        return {x: r if _count(x, r) == 1 else g.Gather(r, i, axis=0) for x, r in self.values.items()}

    def mean(self, g: Graph) -> dict[Value, Value]:
        """The mean reference of each tensor."""
        return {x: r if _count(x, r) == 1 else reduction(g, "ReduceMean", r, [0], keepdims=0) for x, r in self.values.items()}


def _count(x: Value, reference: Value) -> int:
    return reference.dim(0) if reference.shape is not None and len(reference.shape) > x.rank else 1


def constant_reference(g: Graph, x: Value, baselines: Any) -> Value:
    """A number, one per channel, an array that broadcasts against one sample, or rows (n, *shape of a sample) of these."""
    array = np.asarray(baselines)
    if array.ndim != x.rank or x.rank < 2 or len(array) < 2:
        return constant_like(g, x, baselines)
    one = constant_like(g, x, array[:1])
    return g.const(array[:, None], one.dtype)


def blurred(g: Graph, x: Value, sigma: float) -> Value:
    """x under a Gaussian of `sigma` pixels along every axis behind the second, its edges repeated outwards (cut at 4 sigma)."""
    if x.rank < 3:
        raise MethodError(f"'blur' runs along the axes behind the second, and {x.name!r} has {x.rank}; give numbers instead")
    if not sigma > 0:
        raise MethodError(f"parameter 'sigma': a Gaussian needs a width above 0, not {sigma}")
    reach, spatial = int(4 * sigma + 0.5), x.rank - 2
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    planes = g.Cast(x, to=1) if x.dtype != np.float32 else x
    planes = g.Reshape(planes, g.Concat([-1, 1], g.emit("Shape", x, start=2), axis=0))
    margin = [0, 0, *[reach] * spatial]
    planes = g.Pad(planes, [*margin, *margin], mode="edge")
    for axis in range(spatial):
        along = kernel.astype(np.float32).reshape(1, 1, *[-1 if a == axis else 1 for a in range(spatial)])
        planes = g.Conv(planes, along)
    made = g.emit("Reshape", planes, g.shape(x), out_shape=x.shape)
    return made if made.dtype == x.dtype else g.CastLike(made, x)
