"""MIP-IN: an attribution goes back through inverses that were learned to reconstruct each layer's input.  Deng et al. 2021.

The inverses leave out their biases, so A is linear in what it starts from; the forward pass says which elements may get anything.
With reconstruct=True the biases are there and all logits go down: the signal S, which reconstructs each tensor from the output.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from graphattr.errors import MethodError
from graphattr.rule import Graph, Out, Site, Value, finish, rule, seed

from .spatial import resized, sizes_of


@seed("mip_in")
def start(
    g: Graph, y: Value, onehot: Value, *, init: Literal["logit", "one"] = "logit", reconstruct: bool = False
) -> tuple[Value]:
    """A = y_c e_c, or e_c with init="one"; S = y, of which an inverse of one logit reads that one only."""
    return (y if reconstruct else onehot if init == "one" else y * onehot,)


@rule("mip_in.inverse", kinds={"linear"})
def inverse(g: Graph, layer: Site, r: Value, *, reconstruct: bool = False) -> Value:
    """A_x = f.vjp(A; V): the learned inverse V has the place of the weight; S_x = f.vjp(S; V) + its bias."""
    back = layer.vjp(r, layer.x, layer.learned("inverse"))
    return indicated(g, layer, layer.x, back + layer.learned("inverse_bias") if reconstruct else back)


@rule("mip_in.indication", kinds={"relu"})
def indication(g: Graph, layer: Site, r: Value) -> Value:
    """A_z = A where the activation is not 0, else 0."""
    return where_not_zero(g, layer.y, r)


@rule("mip_in.move", kinds={"structure"})
def move(g: Graph, layer: Site, r: Out) -> Out:
    """Elements go back to where they came from."""
    return tuple(indicated(g, layer, x, back) for x, back in zip(layer.xs, layer.vjps(r), strict=True))


@rule("mip_in.spread", kinds={"mean", "maxpool", "structure"})
def spread(g: Graph, layer: Site, r: Out) -> Out:
    """A_x = f.vjp(A) / f.vjp(1): each element gets the mean of what is made of it, in proportion to its share; pools without
    overlap are undone by MaxUnpool or by repetition."""
    rs = r if isinstance(r, tuple) else (r,)
    ones = tuple(None if v is None else ones_like(g, v) for v in rs)
    shares = layer.vjps(ones if isinstance(r, tuple) else ones[0])  # type: ignore[arg-type]
    found = zip(layer.xs, layer.vjps(r), shares, strict=True)
    return tuple(indicated(g, layer, x, quotient(g, back, share)) for x, back, share in found)


@rule("mip_in.rescale", kinds={"scale", "shift", "batchnorm"})
def rescale(g: Graph, layer: Site, r: Value, *, reconstruct: bool = False) -> Value:
    """A_x = A / k for y = k x + c, 0 where k is 0; S_x = (S - c) / k."""
    back = r - layer.at_zero() if reconstruct else r
    return indicated(g, layer, layer.x, quotient(g, back, layer.vjps(ones_like(g, r))[0]))


@finish("mip_in")
def finished(g: Graph, x: Value, maps: tuple[Value, ...], *, upsample: bool = False) -> Value:
    """What arrived at x; upsample: max(0, mean over channels), resized to the picture that x is made of: (N, 1, H, W)."""
    if not upsample:
        return maps[0]
    if x.rank != 4:
        raise MethodError(f"upsample=True makes maps of (N, C, H, W), and {x.name!r} has {x.rank} axes; choose a tensor of "
                          "pictures with wrt (--wrt), or leave upsample out")
    picture, axes = picture_behind(g, x)
    channels = g.CastLike(g.emit("Shape", x, start=1, end=2), x)
    return resized(g, g.Relu(g.ReduceSum(maps[0], [1], keepdims=1) / channels), sizes_of(g, picture, axes))


def picture_behind(g: Graph, x: Value) -> tuple[Value, Sequence[int]]:
    """The one input of pictures that x depends on, and its axes of height and width."""
    reached, stack = {x}, [x]
    while stack:
        node = g.producer(stack.pop())
        for v in node.uses if node is not None else ():
            if v not in reached:
                reached.add(v)
                stack.append(v)
    found = [v for v in g.inputs if v in reached and v.is_float and v.rank == 4]
    if len(found) != 1:
        names = ", ".join(repr(v.name) for v in found) or "none"
        raise MethodError(f"upsample=True needs one input of pictures (N, C, H, W) behind {x.name!r}, and there is {names}; "
                          "leave upsample out")
    last = any(n.op == "Transpose" and found[0] in n.inputs and tuple(n.attrs.get("perm", ())) == (0, 3, 1, 2) for n in g.nodes)
    return found[0], (1, 2) if last else (2, 3)


# -- helpers ------------------------------------------------------------------------------------------------------
def indicated(g: Graph, layer: Site, x: Value, r: Value) -> Value:
    """The indication at a tensor inside the network that is attributed to, whose own rectifier is not passed."""
    return where_not_zero(g, x, r) if x in layer.graph.roots and x in layer.graph.made else r


def where_not_zero(g: Graph, x: Value, r: Value) -> Value:
    return g.Where(g.Equal(x, 0.0), 0.0, r)


def quotient(g: Graph, a: Value, b: Value) -> Value:
    """a / b, 0 where b is 0."""
    vanishes = g.Equal(b, 0.0)
    return g.Where(vanishes, 0.0, a / g.Where(vanishes, 1.0, b))


def ones_like(g: Graph, v: Value) -> Value:
    return g.emit("ConstantOfShape", g.shape(v), value=np.ones(1, v.dtype), out_shape=v.shape)
