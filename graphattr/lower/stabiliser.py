"""The stabiliser of quotients, `Where(z >= 0, z + eps, z - eps)`: as it stands, four passes over z and four results."""

from __future__ import annotations

import numpy as np

from ..graph import Graph, Node, Value
from ..signs import Sign, signs
from .mask import STEEPEST
from .walk import Pass, Rewrite, is_image, number, per_channel


def stabilised(p: Pass, v: Value | None) -> tuple[Value, float] | None:
    """(z, eps) when v is z + eps sgn(z)."""
    node = p.made(v, "Where")
    parts = (
        [p.made(u, op) for u, op in zip(node.inputs, ("GreaterOrEqual", "Add", "Sub"), strict=True)]
        if node is not None
        else [None]
    )
    if None in parts:
        return None
    asked, up, down = (n.inputs for n in parts if n is not None)
    z, eps = asked[0], number(up[1])
    if (
        z is None
        or eps is None
        or number(asked[1]) != 0.0
        or up[0] is not z
        or down[0] is not z
        or number(down[1]) != eps
    ):
        return None
    return z, eps


def by_sign(g: Graph) -> Rewrite:
    """Where no term of z is negative: z + eps, by way of the bias of the convolution that makes z. No pass is left."""
    known = signs(g)

    def f(p: Pass, node: Node) -> Value | None:
        found = stabilised(p, node.outputs[0])
        if found is None or Sign.NONNEGATIVE not in known.get(found[0], Sign.ANY):
            return None
        z, eps = found
        readers = {id(n) for n in p.users[z]} - {id(p.made(v, "GreaterOrEqual", "Add", "Sub")) for v in node.inputs}
        shifted = None if readers or z in p.shown else _shifted(p, z, eps)
        return shifted if shifted is not None else p.g.emit("Add", p.now(z), eps, out_shape=z.shape)

    return f


def _shifted(p: Pass, z: Value, eps: float) -> Value | None:
    """z + eps by way of a bias, when z is a convolution of ours or a sum that begins with one."""
    node = p.made(z, "Conv", "Add")
    if node is None or not p.old.is_ours(z):
        return None
    first, second = node.inputs[:2]
    assert first is not None
    assert second is not None
    if node.op == "Add":
        term = _shifted(p, first, eps) if len(p.users[first]) == 1 and first not in p.shown else None
        return None if term is None else p.g.emit("Add", term, p.now(second), out_shape=z.shape)
    b = node.inputs[2] if len(node.inputs) > 2 else None
    if b is not None and not p.is_static(b):
        return None
    bias = p.g.const(np.full(second.dim(0), eps, z.dtype)) if b is None else p.g.emit("Add", p.now(b), eps)
    return p.g.emit("Conv", p.now(first), p.now(second), bias, out_shape=z.shape, **node.attrs)


def of_any_sign(p: Pass, node: Node) -> Value | None:
    """z + Where(z >= 0, eps, -eps): the same two sums with one result of z's size fewer."""
    found = stabilised(p, node.outputs[0])
    if found is None or node.inputs[0] is None:
        return None
    z, eps = found
    signed = p.g.emit(
        "Where", p.now(node.inputs[0]), p.g.const(eps, z.dtype), p.g.const(-eps, z.dtype), out_shape=z.shape
    )
    return p.g.emit("Add", p.now(z), signed, out_shape=z.shape)


def blocked(p: Pass, node: Node) -> Value | None:
    """z + (2 eps m - eps), m = HardSigmoid(2^127 z + 1): 1 for z >= 0, 0 for normal z < 0. Two blocked convolutions."""
    found = stabilised(p, node.outputs[0])
    if found is None or not is_image(found[0]):
        return None
    z, eps = p.now(found[0]), found[1]
    m = p.g.emit("HardSigmoid", per_channel(p.g, z, STEEPEST, 1.0), alpha=1.0, beta=0.0, out_shape=z.shape)
    return p.g.emit("Add", z, per_channel(p.g, m, 2 * eps, -eps), out_shape=z.shape)
