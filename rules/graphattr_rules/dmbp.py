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

from .piecewise import check, dot, offset

FIRST = 2.0  # |theta| where both passes agree at the start
B1, B2, TINY = 0.9, 0.999, 1e-8

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
    and `loss` (n_steps + 1, N). Without a rectifier there is nothing to learn: both passes are gradient x input.
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

    found = job.repeat(n_steps if thetas else 0, [*thetas, *moments], step)
    arrived = net.passes(job.g, found[: len(thetas)])
    loss, *parts = net.loss(job.g, arrived)
    maps = [[x * r for r in arrived.get(x, (0.0, 0.0))] for x in job.xs]  # none arrives at what y does not depend on
    result = Found([positive + negative for positive, negative in maps])
    if extras:
        curve = [*found[len(thetas) + len(moments) :], job.g.Unsqueeze(loss, [0])]
        result.extras["loss"] = job.g.Concat(*curve, axis=0)
        result.extras |= dict(zip(("y_positive", "y_negative", "nuisance"), parts, strict=True))
        for i, way in enumerate(("positive", "negative")):
            result.extras |= {f"{way}_{job.name_of(x)}": pair[i] for x, pair in zip(job.xs, maps, strict=True)}
    return result


def corrections(n: int, lr: float) -> tuple[np.ndarray, np.ndarray]:
    """(factor of m, what is added to sqrt v) for t = 1 .. n, where m and v are the plain sums b^(t-k) d_k and b^(t-k) d_k^2."""
    t = np.arange(1, n + 1)
    root = np.sqrt((1 - B2) / (1 - B2**t))
    return lr * (1 - B1) / (1 - B1**t) / root, TINY / root


def adam(g: Graph, t: Value, d: Value, m: Value, v: Value, rate: Value, tiny: Value) -> tuple[Value, Value, Value]:
    """(theta, m, v) behind a step of Adam. Kingma and Ba 2015."""
    m, v = B1 * m + d, B2 * v + d * d
    return t - rate * m / (g.Sqrt(v) + tiny), m, v


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
        sources = [x for x in arrived if x not in {y for layer in job.path for y in layer.ys}]
        entering = [x for x in sources if x in below or x in job.xs]
        free += [per_sample_sum(g, x * arrived[x][0]) for x in sources if x not in entering]
        output = total(g, free)
        rest = job.score if output is None else job.score - output
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
        up, down = self.gain(g, arrived, 0), self.gain(g, arrived, 1)
        nuisance = self.rest - up - down
        return down - up + g.Abs(nuisance), up, down, nuisance

    def gain(self, g: Graph, arrived: Arrived, i: int) -> Value:
        """x . dy/dx + sum b . dy/db of one pass."""
        parts = [per_sample_sum(g, x * arrived[x][i]) for x in self.entering]
        found = total(g, parts + [dot(g, layer, arrived[layer.y][i], c) for layer, c in self.added])
        assert found is not None
        return found


def masked(g: Graph, rs: Sequence[Value], theta: Value, slope: Value) -> list[Value]:
    """s D r with s = sigmoid(theta) in the positive pass, 1 - sigmoid(theta) in the negative one."""
    up = g.Sigmoid(theta) * slope
    return [up * rs[0], (slope - up) * rs[1]]


def per_channel(g: Graph, v: Value) -> Value:
    """Summed over all axes but the first two, which stay with size 1."""
    return g.ReduceSum(v, list(range(2, v.rank)), keepdims=1) if v.rank > 2 else v


def below_rectifiers(job: Job) -> set[Value]:
    """The tensors that reach the output through some rectifier; MethodError for a network that is not piecewise linear."""
    below = set[Value]()
    for layer in reversed(job.path):
        check(job, layer, "dmbp")
        if layer.kind == "relu" or any(y in below for y in layer.ys):
            below.update(layer.xs)
    return below
