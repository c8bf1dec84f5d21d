"""DeepLIFT in float64 on explicit matrices: both multipliers and both parts of every change are always carried.

A change is a pair (rising part, falling part) from the forward pass, a multiplier a pair from the backward pass. Every rule is
written for pairs; that Rescale never tells them apart is found, not assumed.
"""

from __future__ import annotations

import numpy as np

from tests.rules.methods import scatter, seed
from tests.rules.nets import ACTIVATIONS, Net, unbroadcast
from tests.rules.oracles import neg, pos

TAU = 1e-7


def nudged(d, tau):
    """A part that is smaller than tau moves away from zero by tau."""
    return np.where(np.abs(d) < tau, d + tau * np.where(d >= 0, 1, -1), d)


class DeepLift:
    """A model at x compared with itself at x0."""

    def __init__(self, model, x, x0, mode="rescale", maxpool="completeness", ablation=None, tau=TAU):
        self.net, self.ref = Net(model, x), Net(model, np.broadcast_to(x0, x.shape))
        self.there = {layer.output: layer for layer in self.ref.layers}
        self.mode, self.maxpool, self.ablation, self.tau = mode, maxpool, ablation, tau
        d = self.change(self.net.input)
        self.parts = {self.net.input: (pos(d), neg(d))}
        for layer in self.net.layers:
            self.parts[layer.output] = self.forward(layer, *zip(*(self.parts[i] for i in layer.inputs)))

    def change(self, name):
        return self.net.values[name] - self.ref.values[name]

    def contributions(self, target, seeded=None, start=None):
        """m+ d+ + m- d- of every tensor."""
        e = seed(self.net, target, "onehot") if seeded is None else seeded
        found = {start or self.net.output: (e, e)}
        for layer in reversed(self.net.layers):
            if layer.output in found:
                for name, (m, n) in zip(layer.inputs, self.backward(layer, *found[layer.output]), strict=True):
                    old = found.get(name, (0, 0))
                    found[name] = old[0] + m, old[1] + n
        return {name: sum(m * d for m, d in zip(pair, self.parts[name])) for name, pair in found.items()}

    # --- functions of one element ---

    def reveals(self, layer):
        if self.mode != "genomics" or layer.op == "Neg":
            return self.mode == "reveal_cancel"
        nearest, stack = [], list(layer.inputs)
        while stack:
            below = self.net.producer(stack.pop())
            if below is not None and below.kind == "linear":
                nearest.append(below.conv)
            elif below is not None:
                stack += below.inputs
        return bool(nearest) and not any(nearest)

    def function(self, layer):
        value, slope = ACTIVATIONS[layer.op]
        return lambda z: value(z, layer.attrs, layer.const), lambda z: slope(z, layer.attrs, layer.const)

    def ratio(self, layer):
        z, z0 = self.net.values[layer.inputs[0]], self.ref.values[layer.inputs[0]]
        f, slope = self.function(layer)
        steep = np.abs(z - z0) >= self.tau
        return np.where(steep, (f(z) - f(z0)) / np.where(steep, z - z0, 1), slope(z0))

    def revealed(self, layer, up, down):
        """What the rising part adds to f, and the falling part."""
        z0, (f, _) = self.ref.values[layer.inputs[0]], self.function(layer)
        rise = 0.5 * (f(z0 + up) - f(z0)) + 0.5 * (f(z0 + up + down) - f(z0 + down))
        return rise, 0.5 * (f(z0 + down) - f(z0)) + 0.5 * (f(z0 + up + down) - f(z0 + up))

    # --- layers ---

    def averages(self, layer):
        """The factor of each operand of a product or quotient."""
        (a, b), (a0, b0) = ([net.values[i] for i in layer.inputs] for net in (self.net, self.ref))
        if layer.op == "Mul":
            return (b + b0) / 2, (a + a0) / 2
        return (1 / b + 1 / b0) / 2, (a + a0) / 2 * -1 / (b * b0)

    def factor(self, layer, i=0):
        if layer.kind == "sum":
            return -1.0 if layer.op == "Sub" and i else 1.0
        return -1.0 if layer.op == "Neg" else np.asarray(layer.scale)

    def forward(self, layer, ups, downs):
        up, down, n = ups[0], downs[0], len(ups[0])
        if layer.kind == "linear":
            d, shape = self.change(layer.inputs[0]).reshape(n, -1), (n, *layer.shape)
            wp, wn = pos(layer.w).T, neg(layer.w).T
            return (pos(d) @ wp + neg(d) @ wn).reshape(shape), (pos(d) @ wn + neg(d) @ wp).reshape(shape)
        if layer.kind == "mean":
            return tuple((v.reshape(n, -1) @ layer.w.T).reshape(n, *layer.shape) for v in (up, down))
        if layer.kind == "index":
            return tuple(np.append(np.concatenate([v.ravel() for v in vs]), 0.0)[layer.ids] for vs in (ups, downs))
        if layer.kind == "max":
            d = self.change(layer.output)
            return (pos(d), neg(d)) if self.maxpool == "completeness" else (up.ravel()[layer.ids], down.ravel()[layer.ids])
        if layer.kind == "mul":
            return tuple(sum(k * v for k, v in zip(self.averages(layer), vs)) for vs in (ups, downs))
        if layer.kind == "act" and layer.op != "Neg":
            k = None if self.reveals(layer) else self.ratio(layer)
            return self.revealed(layer, up, down) if k is None else (k * up, k * down)
        ks = [self.factor(layer, i) for i in range(len(ups))]
        chosen = [(np.where(k >= 0, u, d), np.where(k >= 0, d, u)) for k, u, d in zip(ks, ups, downs)]
        return tuple(sum(k * c[side] for k, c in zip(ks, chosen)) for side in (0, 1))

    def backward(self, layer, m, n):
        xs = [self.net.values[i] for i in layer.inputs]
        x, rows = xs[0], len(xs[0])
        if layer.kind == "linear":
            both = self.linear(layer, m.reshape(rows, -1), n.reshape(rows, -1)).reshape(x.shape)
            return [(both, both)]
        if layer.kind == "mean":
            return [tuple((v.reshape(rows, -1) @ layer.w).reshape(x.shape) for v in (m, n))]
        if layer.kind == "index":
            return list(zip(*(scatter(xs, layer.ids, v) for v in (m, n))))
        if layer.kind == "max":
            return [self.pool(layer, x, m, n)]
        if layer.kind == "mul":
            return [tuple(unbroadcast(k * v, v0.shape) for v in (m, n)) for k, v0 in zip(self.averages(layer), xs)]
        if layer.kind == "act" and layer.op != "Neg":
            if not self.reveals(layer):
                k = self.ratio(layer)
                return [(k * m, k * n)]
            up, down = (nudged(v, self.tau) for v in self.parts[layer.inputs[0]])
            rise, fall = self.revealed(layer, up, down)
            return [(m * rise / up, n * fall / down)]
        ks = [self.factor(layer, i) for i in range(len(xs))]
        pairs = [(k * np.where(k >= 0, m, n), k * np.where(k >= 0, n, m)) for k in ks]
        return [tuple(unbroadcast(v, s.shape) for v in pair) for pair, s in zip(pairs, xs)]

    def linear(self, layer, m, n):
        d, wp, wn = self.change(layer.inputs[0]).reshape(len(m), -1), pos(layer.w), neg(layer.w)
        still = 0.5 * (m + n) @ layer.w
        rising, falling = m @ wp + n @ wn, m @ wn + n @ wp
        if self.ablation:
            rising, falling = m @ wp, n @ (wp if self.ablation == "code" else wn)
        return np.where(d > 0, rising, np.where(d < 0, falling, still))

    def pool(self, layer, x, m, n):
        """A rise goes to the winner at the input, a fall to the winner at the reference."""
        here, there = layer.ids, self.there[layer.output].ids
        plain = [scatter([x], here, v)[0] for v in (m, n)]
        if self.maxpool == "gradient":
            return tuple(plain)
        d, dx = self.change(layer.output), self.change(layer.inputs[0])
        share = scatter([x], here, m * pos(d))[0] + scatter([x], there, n * neg(d))[0]
        moved = np.abs(dx) >= 1e-10
        return tuple(np.where(moved, share / np.where(moved, dx, 1), v) for v in plain)
