"""Small graphs, and the blocks that are seen in them."""

from __future__ import annotations

import numpy as np

from graphattr.blocks import recognise
from graphattr.graph import Graph
from graphattr.layers import to_layers
from tests.unit.tiny import array

T, D, HEADS = 5, 12, 3  # tokens, features, heads


def graph(*shape, opset=20):
    g = Graph(opset)
    return g, g.input("x", np.float32, shape or ("N", T, D))


def seen(g, x, y, roots=()):
    g.outputs.append(("y", y))
    return recognise(to_layers(g, [x, *roots], [y]))


def named(found, name):
    return [b for b in found[0] if b.name == name]


def only(found, name):
    (b,) = named(found, name)
    return b


def reasons(found, name):
    return " ".join(m.why for m in found[1] if m.name == name)


def dense(g, x, out=D, seed=0, bias=True):
    y = g.MatMul(x, array(x.shape[-1], out, seed=seed))
    return y + array(out, seed=seed + 1) if bias else y


def conv(g, x, out, k=1, seed=0, **attrs):
    return g.Conv(x, array(out, x.shape[1], k, k, seed=seed), array(out, seed=seed + 1), **attrs)
