"""MIP-IN, slowly and in float64: every inverse is fitted to a design matrix that is written out element by element.

`fit(net, ...)` goes down the layers of a Net (nets.py) that was evaluated at the fitting samples; `explain(net, inverses, ...)`
takes an attribution down the layers of a Net evaluated at the samples to explain. Least squares are solved by a singular value
decomposition of the design, its ridge as rows below it, so nothing is shared with normal equations.
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

RECTIFIERS = {"Relu", "LeakyRelu", "Clip"}


@dataclasses.dataclass
class Inverse:
    """g(S) = design(S) @ w + b. w: (unknowns, outputs) for a dense layer, (groups, unknowns, outputs) for a convolution."""

    w: np.ndarray
    b: np.ndarray


def ridge_fit(design, wanted, ridge, bias):
    """The w, b that minimise |wanted - design w - b|^2 + ridge |w|^2, the bias unpenalised."""
    middle, goal = (design.mean(0), wanted.mean(0)) if bias else (np.zeros(design.shape[1]), np.zeros(wanted.shape[1]))
    rows = np.vstack([design - middle, np.sqrt(ridge) * np.eye(design.shape[1])])
    sought = np.vstack([wanted - goal, np.zeros((design.shape[1], wanted.shape[1]))])
    w = np.linalg.lstsq(rows, sought, rcond=None)[0]
    return w, goal - middle @ w


def conv_design(s, space, kernel, strides, pads, dilations):
    """Phi[sample, position of the grid, channel, tap] = s[channel, (position + pad - dilation tap) / stride], else 0."""
    n, channels = s.shape[:2]
    phi = np.zeros((n, *space, channels, *kernel))
    for at in itertools.product(*map(range, space)):
        for tap in itertools.product(*map(range, kernel)):
            where = [i + p - d * k for i, p, d, k in zip(at, pads, dilations, tap)]
            if all(v % m == 0 and 0 <= v // m < size for v, m, size in zip(where, strides, s.shape[2:])):
                index = tuple(v // m for v, m in zip(where, strides))
                phi[(slice(None), *at, slice(None), *tap)] = s[(slice(None), slice(None), *index)]
    return phi.reshape(n, int(np.prod(space)), channels, -1)


def conv_inverse(s, x, kernel, strides, pads, dilations, groups, ridge, bias=False):
    """(K, b): the kernel (C_out, C_in / groups, *kernel) and the bias per input channel that reconstruct x best from s."""
    phi = conv_design(s, x.shape[2:], kernel, strides, pads, dilations)
    out, cin, taps = s.shape[1] // groups, x.shape[1] // groups, phi.shape[-1]
    found, shifts = [], []
    for g in range(groups):
        design = phi[:, :, g * out:(g + 1) * out].reshape(-1, out * taps)
        w, b = ridge_fit(design, np.moveaxis(x[:, g * cin:(g + 1) * cin], 1, -1).reshape(-1, cin), ridge, bias)
        found.append(w.reshape(out, taps, cin).swapaxes(1, 2).reshape(out, cin, *kernel))
        shifts.append(b)
    return np.concatenate(found), np.concatenate(shifts)


def conv_apply(s, k, space, strides, pads, dilations, groups):
    """ConvTranspose(s; k) onto a grid of that size."""
    phi = conv_design(s, space, k.shape[2:], strides, pads, dilations)
    out = s.shape[1] // groups
    parts = [np.einsum("npot,oct->ncp", phi[:, :, g * out:(g + 1) * out], k[g * out:(g + 1) * out].reshape(out, k.shape[1], -1))
             for g in range(groups)]
    return np.concatenate(parts, 1).reshape(len(s), -1, *space)


def geometry(net, layer):
    x = net.values[layer.inputs[0]]
    kernel, strides, pads, dilations = net._window(layer, x.shape[2:], layer.const[0].shape[2:])
    return x.shape[2:], kernel, strides, pads, dilations, layer.attrs.get("group", 1)


def learn(net, layer, s, ridge, conv_bias):
    """The inverse of one linear layer, from its signal s and the tensor x below it."""
    x = net.values[layer.inputs[0]]
    if layer.op == "Conv":
        _, *window, groups = geometry(net, layer)
        return Inverse(*conv_inverse(s, x, *window, groups, ridge, conv_bias))
    return Inverse(*ridge_fit(s.reshape(-1, s.shape[-1]), x.reshape(-1, x.shape[-1]), ridge, True))


def invert(net, layer, inverse, s, bias):
    """g(s), with its bias where a signal is reconstructed, without where an attribution goes down."""
    if layer.op == "Conv":
        space, _, *window, groups = geometry(net, layer)
        shift = inverse.b.reshape(-1, *[1] * len(space))
        return conv_apply(s, inverse.w, space, *window, groups) + bias * shift
    return s @ inverse.w + bias * inverse.b


def pull(net, layer, s, inverses, bias):
    """What a layer that is not fitted, or already is, makes of the signal."""
    x, y = net.values[layer.inputs[0]], net.values[layer.output]
    if layer.kind == "linear":
        return invert(net, layer, inverses[layer.name], s, bias)
    if layer.kind == "act":
        return s * (y != 0) if layer.op in RECTIFIERS else s
    if layer.kind in ("max", "index"):  # each element: the mean of what it became
        total, count = np.zeros(x.size + 1), np.zeros(x.size + 1)
        np.add.at(total, layer.ids, s)
        np.add.at(count, layer.ids, 1.0)
        return (total / np.maximum(count, 1))[:-1].reshape(x.shape)
    if layer.kind == "mean":  # each element: the mean of what its windows say, in proportion to its weight in them
        share = layer.w.sum(0)
        found = s.reshape(len(s), -1) @ layer.w / np.where(share == 0, 1, share)
        return found.reshape(x.shape)
    if layer.kind in ("affine", "scale"):
        return (s - bias * layer.shift) / layer.scale
    raise NotImplementedError(layer.op)


def top(net, target, signal):
    """S_L: the explained logit alone, or all of them."""
    return net.logits * (np.arange(net.logits.shape[1]) == target if signal == "scalar" else 1.0)


def fit(net, target, signal="scalar", ridge=1e-3, conv_bias=False):
    """Inverses by layer name, from the output down; each is fitted to the masked signal that those above it make."""
    s, inverses = top(net, target, signal), {}
    for layer in reversed(net.layers):
        if layer.kind == "linear":
            inverses[layer.name] = learn(net, layer, s, ridge, conv_bias)
        s = pull(net, layer, s, inverses, True)
    return inverses


def descend(net, s, inverses, bias):
    """Every tensor's signal (bias) or attribution, by name."""
    found = {net.output: s}
    for layer in reversed(net.layers):
        found[layer.inputs[0]] = pull(net, layer, found[layer.output], inverses, bias)
    return found


def explain(net, inverses, target, init="logit"):
    """A of every tensor: from e_c, times the logit where init="logit"."""
    one = np.broadcast_to(np.arange(net.logits.shape[1]) == target, net.logits.shape).astype(float)
    return descend(net, one * net.logits if init == "logit" else one, inverses, False)
