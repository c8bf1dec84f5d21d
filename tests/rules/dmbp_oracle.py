"""DMBP of a Net in float64, by the closed form: a masked linearised forward pass gives what arrives at each rectifier."""

from __future__ import annotations

import numpy as np

from tests.rules.methods import derivative
from tests.rules.nets import unbroadcast


def sigmoid(t):
    return 1 / (1 + np.exp(-t))


class Masked:
    """A net of rectifiers, linear layers and max pooling, explained at `seed` for the tensor `wrt`; `mask`: one per what."""

    def __init__(self, net, seed, mask="element", wrt=None):
        self.net, self.seed, self.mask, self.wrt = net, seed, mask, wrt or net.input
        self.x, self.above = net.values[self.wrt], {self.wrt}
        for layer in net.layers:
            if self.above & set(layer.inputs) and layer.output != self.wrt:
                self.above.add(layer.output)
        self.relus = [l for l in net.layers if l.op == "Relu" and l.output in self.above - {self.wrt}]
        self.on = {l.name: 1.0 * (net.values[l.inputs[0]] > 0) for l in self.relus}
        self.free = self.score(self.forward({l.name: 0.0 for l in self.relus}, 0 * self.x))
        self.rest = self.score(net.values) - self.free

    def score(self, values):
        return (values[self.net.output] * self.seed).reshape(len(self.seed), -1).sum(1)

    def forward(self, s, x):
        """Every tensor above `wrt` where rectifiers multiply by D s and pooling keeps its winners; the others stay."""
        values = self.net.values | {self.wrt: x}
        for layer in self.net.layers:
            if layer.output in self.above - {self.wrt}:
                values[layer.output] = self.apply(layer, [values[i] for i in layer.inputs], s)
        return values

    def apply(self, layer, xs, s):
        x, n = xs[0], len(xs[0])
        if layer.op == "Relu":
            return self.on[layer.name] * s[layer.name] * x
        if layer.kind in ("linear", "mean"):
            return (x.reshape(n, -1) @ layer.w.T + layer.b).reshape(n, *layer.shape)
        if layer.kind in ("max", "index"):
            return np.append(np.concatenate([v.ravel() for v in xs]), 0.0)[layer.ids]
        if layer.kind == "sum":
            return xs[0] - xs[1] if layer.op == "Sub" else sum(xs)
        assert layer.kind in ("scale", "affine"), layer.op
        return layer.scale * x + layer.shift

    def backward(self, s):
        """The gradient at every tensor; a rectifier without a mask yet sends nothing on."""

        def pull(net, layer, r):
            on = self.on.get(layer.name, 0.0)
            return [on * s.get(layer.name, 0.0) * r] if layer.op == "Relu" else derivative(net, layer, r)

        return self.net.backward(self.seed, pull)

    def start(self):
        """Mask logits by the signs of both gradients, from the output down (B.1)."""
        thetas = {}
        for layer in self.relus[::-1]:
            both = [self.backward(s)[layer.output] for s in self.masks(thetas)]
            if self.mask == "channel":
                h = self.net.values[layer.output]
                both = [(g * h).sum(tuple(range(2, h.ndim)), keepdims=True) for g in both]
            up, down = (np.minimum(*both) > 0), (np.maximum(*both) < 0)
            thetas[layer.name] = 2.0 * up - 2.0 * down
        return thetas

    @staticmethod
    def masks(thetas):
        """The masks of the positive and of the negative pass."""
        return {k: sigmoid(t) for k, t in thetas.items()}, {k: 1 - sigmoid(t) for k, t in thetas.items()}

    def parts(self, thetas):
        """(y+, y-, nuisance)."""
        up, down = (self.score(self.forward(s, self.x)) - self.free for s in self.masks(thetas))
        return up, down, self.rest - up - down

    def loss(self, thetas):
        up, down, nuisance = self.parts(thetas)
        return down - up + np.abs(nuisance)

    def slopes(self, thetas):
        """dL/dtheta: dy/ds = g D p in each pass."""
        r, found = np.sign(self.parts(thetas)[2]), {}
        for s, weight in zip(self.masks(thetas), (-1 - r, r - 1)):
            p, g = self.forward(s, self.x), self.backward(s)
            for layer in self.relus:
                dy = g[layer.output] * self.on[layer.name] * p[layer.inputs[0]]
                dy = dy * weight.reshape(-1, *[1] * (dy.ndim - 1))
                s_ = sigmoid(thetas[layer.name])
                found[layer.name] = found.get(layer.name, 0.0) + unbroadcast(dy, s_.shape) * s_ * (1 - s_)
        return found

    def learn(self, n_steps, lr, optimizer):
        """(mask logits, loss before each step and behind the last)."""
        thetas, curve, m, v = self.start(), [], {}, {}
        for t in range(1, n_steps + 1):
            curve.append(self.loss(thetas))
            for k, d in self.slopes(thetas).items():
                if optimizer == "adam":
                    m[k] = 0.9 * m.get(k, 0.0) + 0.1 * d
                    v[k] = 0.999 * v.get(k, 0.0) + 0.001 * d * d
                    d = m[k] / (1 - 0.9**t) / (np.sqrt(v[k] / (1 - 0.999**t)) + 1e-8)
                thetas[k] = thetas[k] - lr * d
        return thetas, np.array([*curve, self.loss(thetas)])

    def explain(self, n_steps=50, lr=0.1, optimizer="adam"):
        """All outputs, by the names that the extras have."""
        thetas, curve = self.learn(n_steps, lr, optimizer)
        positive, negative = (self.x * self.backward(s)[self.wrt] for s in self.masks(thetas))
        names = ("y_positive", "y_negative", "nuisance")
        maps = {self.wrt: positive + negative, f"positive_{self.wrt}": positive, f"negative_{self.wrt}": negative}
        return maps | {"loss": curve} | dict(zip(names, self.parts(thetas)))


def masked(c, mask="element", wrt=None):
    """The oracle of a case of the zoo: one target per sample."""
    return Masked(c.net, np.eye(c.net.logits.shape[1])[c.target], mask, wrt)
