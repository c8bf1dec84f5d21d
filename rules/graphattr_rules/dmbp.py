"""DMBP: masks at the rectifiers, learned for each input, that part what speaks for the class from what speaks against it.

A network of linear layers and rectifiers is y = x . dy/dx + sum b . dy/db + b_out. With masks, a rectifier of slope D passes
s D back: s = sigmoid(theta) in the positive pass, 1 - sigmoid(theta) in the negative one. theta is learned so that the positive
pass gives much, the negative one little, and both together y. Yang et al. 2021.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from graphattr.errors import MethodError
from graphattr.rule import Found, Graph, Job, Layer, Out, Site, Value, per_sample_sum, procedure, pullback, total

LINEAR = {"linear", "sum", "mean", "shift", "scale", "batchnorm", "maxpool", "structure"}
POWERS = {"ReduceL1", "ReduceL2"}  # of kind mean, and not linear
FIRST = 2.0  # |theta| where both passes agree at the start
B1, B2, TINY = 0.9, 0.999, 1e-8

Pair = tuple[Value, Value]  # of the positive and of the negative pass
Arrived = Mapping[Value, Sequence[Value]]  # what both passes bring to each tensor


@procedure("dmbp")
def dmbp(
    job: Job,
    *,
    n_steps: int = 50,
    lr: float = 0.1,
    optimizer: Literal["adam", "gd"] = "adam",
    mask: Literal["element", "channel"] = "element",
    extras: bool = False,
) -> Found:
    """x dy+/dx + x dy-/dx behind n_steps updates of the masks. mask="channel": one per channel (axis 1), else one per element.

    extras=True adds the outputs `positive_<x>` and `negative_<x>` (the two maps), `y_positive`, `y_negative`, `nuisance` (N),
    and `loss` (n_steps + 1, N).
    """
    if n_steps < 0 or lr <= 0:
        raise MethodError(f"dmbp needs n_steps >= 0 and lr > 0, not n_steps={n_steps} and lr={lr}")
    net = Net.of(job, mask)
    thetas = list(net.thetas)
    moments = [t * 0.0 for t in thetas for _ in range(2)] if optimizer == "adam" else []

    def step(body: Graph, i: Value, state: list[Value]) -> list[Value]:
        old, held = state[: len(thetas)], state[len(thetas) :]
        loss = net.loss(body, net.passes(body, old))[0]
        slopes = pullback(body, {loss: body.Expand(1.0, body.Shape(loss))}, old)
        pairs = [(t, slopes[t]) for t in old]
        if optimizer == "gd":
            return [*(t - lr * d for t, d in pairs), loss]
        rates = [body.Gather(job.g.const(table, loss.dtype), i, axis=0) for table in corrections(n_steps, lr)]
        made = [adam(body, t, d, m, v, *rates) for (t, d), m, v in zip(pairs, held[::2], held[1::2], strict=True)]
        return [*(new[0] for new in made), *(moment for new in made for moment in new[1:]), loss]

    found = job.repeat(n_steps, [*thetas, *moments], step)
    arrived = net.passes(job.g, found[: len(thetas)])
    loss, *parts = net.loss(job.g, arrived)
    maps = [[x * r for r in arrived[x]] for x in job.xs]
    result = Found([positive + negative for positive, negative in maps])
    if extras:
        curve = [*found[len(thetas) + len(moments) :], job.g.Unsqueeze(loss, [0])]
        result.extras["loss"] = job.g.Concat(*curve, axis=0)
        result.extras |= dict(zip(("y_positive", "y_negative", "nuisance"), parts, strict=True))
        for i, way in enumerate(("positive", "negative")):
            result.extras |= {f"{way}_{job.name_of(x)}": pair[i] for x, pair in zip(job.xs, maps, strict=True)}
    return result


def corrections(n: int, lr: float) -> tuple[np.ndarray, np.ndarray]:
    """(step size / (1 - b1^t), 1 / sqrt(1 - b2^t)) for t = 1 .. n."""
    t = np.arange(1, n + 1)
    return lr / (1 - B1**t), 1 / np.sqrt(1 - B2**t)


def adam(g: Graph, t: Value, d: Value, m: Value, v: Value, rate: Value, root: Value) -> tuple[Value, Value, Value]:
    """(theta, m, v) behind a step of Adam. Kingma and Ba 2015."""
    m, v = B1 * m + (1 - B1) * d, B2 * v + (1 - B2) * (d * d)
    return t - rate * m / (root * g.Sqrt(v) + TINY), m, v


@dataclass(frozen=True)
class Net:
    """What all steps share: slopes and first mask logits of the rectifiers, and the constants that the layers add."""

    job: Job
    slopes: Mapping[str, Value]  # by the rectifier's name, from the output down
    thetas: Sequence[Value]
    entering: Sequence[Value]  # what comes from outside: the attributed tensors, and others that they do not reach
    added: Sequence[tuple[Layer, Value]]  # those that some rectifier passes
    rest: Value  # what is explained, without the constants that none passes

    @classmethod
    def of(cls, job: Job, mask: str) -> "Net":
        """Starting masks (B.1), from the output down: +2 where both passes bring something positive, -2 negative, else 0."""
        g, below = job.g, below_rectifiers(job)
        slopes, thetas = dict[str, Value](), list[Value]()
        added = list[tuple[Layer, Value]]()

        def rule(site: Site, rs: Sequence[Value]) -> Sequence[Out]:
            if site.layer.kind != "relu":
                constant = offset(site)
                if constant is not None:
                    added.append((site.layer, constant))
                return [site.vjps(r) for r in rs]
            signs = [per_channel(g, r * site.y) for r in rs] if mask == "channel" else rs
            up, down = (g.And(*(compare(s, 0.0) for s in signs)) for compare in (g.Greater, g.Less))
            thetas.append(g.Where(up, FIRST, g.Where(down, -FIRST, g.const(0.0, site.y.dtype))))
            slopes[site.layer.name] = g.CastLike(site.y > 0, site.y)
            return masked(g, rs, thetas[-1], slopes[site.layer.name])

        arrived = job.passed(g, [job.onehot, job.onehot], rule)
        free = [dot(g, layer, arrived[layer.y][0], c) for layer, c in added if layer.y not in below]
        free += [per_sample_sum(g, x * arrived[x][0]) for x in sources(job) if x not in below and x not in job.xs]
        output = total(g, free)
        rest = job.score if output is None else job.score - output
        entering = [x for x in sources(job) if x in below or x in job.xs]
        return cls(job, slopes, thetas, entering, [(layer, c) for layer, c in added if layer.y in below], rest)

    def passes(self, g: Graph, thetas: Sequence[Value]) -> Arrived:
        """What the positive and the negative pass bring to each tensor, written in g."""
        held = dict(zip(self.slopes, thetas, strict=True))

        def rule(site: Site, rs: Sequence[Value]) -> Sequence[Out]:
            name = site.layer.name
            return masked(g, rs, held[name], self.slopes[name]) if name in held else [site.vjps(r) for r in rs]

        return self.job.passed(g, [self.job.onehot, self.job.onehot], rule)

    def loss(self, g: Graph, arrived: Arrived) -> tuple[Value, Value, Value, Value]:
        """(y- - y+ + |rest - y+ - y-|, y+, y-, rest - y+ - y-), each (N)."""
        up, down = (
            total(g, [*(per_sample_sum(g, x * arrived[x][i]) for x in self.entering),
                      *(dot(g, layer, arrived[layer.y][i], c) for layer, c in self.added)])
            for i in range(2)
        )
        assert up is not None
        assert down is not None
        nuisance = self.rest - up - down
        return down - up + g.Abs(nuisance), up, down, nuisance


def masked(g: Graph, rs: Sequence[Value], theta: Value, slope: Value) -> list[Value]:
    """s D r with s = sigmoid(theta) in the positive pass, 1 - sigmoid(theta) in the negative one."""
    up = g.Sigmoid(theta) * slope
    return [up * rs[0], (slope - up) * rs[1]]


def per_channel(g: Graph, v: Value) -> Value:
    """Summed over all axes but the first two, which stay with size 1."""
    return g.ReduceSum(v, list(range(2, v.rank)), keepdims=1) if v.rank > 2 else v


def dot(g: Graph, layer: Layer, r: Value, c: Value) -> Value:
    """r . c per sample; a convolution's bias meets r summed over space."""
    if layer.nodes[0].op in ("Conv", "ConvTranspose"):
        return per_sample_sum(g, g.ReduceSum(r, list(range(2, r.rank)), keepdims=0) * g.Reshape(c, [-1]))
    return per_sample_sum(g, r * c)


def offset(site: Site) -> Value | None:
    """What a layer adds whatever its data is: a bias, or the layer at zero; None where there is nothing."""
    layer = site.layer
    if layer.kind == "linear":
        return layer.b
    constants = [v for v in layer.nodes[0].inputs if v is not None and v.is_float and v not in layer.xs]
    return site.at_zero() if layer.kind in ("shift", "batchnorm", "structure") and constants else None


def below_rectifiers(job: Job) -> set[Value]:
    """The tensors that reach the output through some rectifier; MethodError where DMBP cannot be said of a layer."""
    below, seen = set[Value](), False
    for layer in reversed(job.path):
        check(layer)
        seen = seen or layer.kind == "relu"
        if layer.kind == "relu" or any(y in below for y in layer.ys):
            below.update(layer.xs)
    if not seen:
        raise MethodError("dmbp masks rectifiers, and there is none between what is attributed to and the explained output")
    return below


def sources(job: Job) -> list[Value]:
    """What the path reads and does not make."""
    made = {y for layer in job.path for y in layer.ys}
    return list(dict.fromkeys(x for layer in job.path for x in layer.xs if x not in made))


def check(layer: Layer) -> None:
    """MethodError for a layer that is neither affine, nor a rectifier max(x, 0), nor a maximum."""
    affine = layer.kind in LINEAR and not layer.tail and layer.op not in POWERS
    if not affine and not is_relu(layer):
        raise MethodError(
            f"dmbp needs a network of linear layers, rectifiers max(x, 0) and max pooling, and layer {layer.name!r} (operator "
            f"{layer.op}, kind {layer.kind}) on the path is none of these; attribute to a tensor behind it "
            f"(such as wrt=[{layer.y.name!r}], --wrt {layer.y.name}), or choose another method"
        )


def is_relu(layer: Layer) -> bool:
    """max(x, 0): Relu, Clip from 0 up, Max with 0."""
    inputs = layer.nodes[0].inputs
    if layer.op == "Clip":
        return len(inputs) > 1 and vanishes(inputs[1]) and not any(inputs[2:])
    return layer.op == "Relu" or (layer.op == "Max" and all(vanishes(v) for v in inputs if v not in layer.xs))


def vanishes(v: Value | None) -> bool:
    """Whether v is a constant of zeros."""
    return v is not None and v.data is not None and not v.data.any()
