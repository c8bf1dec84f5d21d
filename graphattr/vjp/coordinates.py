"""Operators that make coordinates: Range and AffineGrid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..graph import Graph, Node, Value
from .elementwise import operands, typed_like
from .reduce import steps
from .registry import vjp


@vjp("Range")
def range_(g: Graph, n: Node, dy: Value) -> Sequence[Value | None]:
    """y_i = start + i delta; the limit only says how many there are."""
    i = typed_like(g, steps(g, n.outputs[0], 0), dy)
    return g.ReduceSum(dy, [0], keepdims=0), None, g.ReduceSum(dy * i, [0], keepdims=0)


@vjp("AffineGrid")
def affine_grid(g: Graph, n: Node, dy: Value) -> Sequence[Value | None]:
    """y[n,p] = theta[n] (b[p], 1) with b the grid that theta = identity makes: dtheta[n] = sum over p of dy[n,p] (b[p], 1)^T."""
    theta, size = operands(n)
    axes = theta.dim(1)
    one = g.const(np.eye(axes, axes + 1)[None], theta.dtype)
    single = g.Concat(g.const([1, 1]), g.Slice(size, [2], [2 + axes]), axis=0)
    b = g.Reshape(g.AffineGrid(one, single, align_corners=n.attrs.get("align_corners", 0)), [-1, axes])
    b = g.Pad(b, [0, 0, 0, 1], g.const(1, theta.dtype))
    columns = g.Transpose(g.Reshape(dy, [0, -1, axes]), perm=[0, 2, 1])
    return (g.emit("MatMul", columns, b, out_shape=theta.shape),)
