"""Slow float64 replicas of every rule, written from the papers on explicit contributions instead of modified layers.

A linear layer is a dense matrix w (O, I); c[n, j, i] = x[n, i] w[j, i] is what input i contributes to output j. A rule says which
contributions it counts and what else stands in the denominator; `share` does the rest. Everything is per sample and flattened.
"""

from __future__ import annotations

import itertools

import numpy as np


def pos(a):
    return np.maximum(a, 0.0)


def neg(a):
    return np.minimum(a, 0.0)


def divide(r, z, eps):
    """r / (z + eps sgn(z)) with sgn(0) = 1; for eps = 0, r / z where z is not 0, else 0."""
    if eps == 0:
        return np.divide(r, z, out=np.zeros(np.broadcast(r, z).shape), where=z != 0)
    return r / np.where(z >= 0, z + eps, z - eps)


# --- the linear rules ---


def contributions(x, w):
    return x[:, None, :] * w[None]


def share(c, rest, r, eps):
    """Input i receives r_j c_ij / (sum_i c_ij + rest_j), summed over the outputs j."""
    return np.einsum("nji,nj->ni", c, divide(r, c.sum(2) + rest, eps))


def epsilon(x, w, b, r, *, eps=1e-6, bias="absorb", **_):
    """Bach et al. 2015, Eq. 58; eps = 0 is LRP-0."""
    return share(contributions(x, w), b * (bias == "absorb"), r, eps)


def gamma(x, w, b, r, *, gamma=0.25, eps=1e-6, bias="absorb", **_):
    """Montavon et al. 2019, generalised to inputs and outputs of either sign."""
    c, rest, z = contributions(x, w), b * (bias == "absorb"), x @ w.T + b
    up = share(c + gamma * pos(c), rest + gamma * pos(rest), r * (z > 0), eps)
    return up + share(c + gamma * neg(c), rest + gamma * neg(rest), r * (z < 0), eps)


def alpha_beta(x, w, b, r, *, alpha=2.0, beta=1.0, eps=1e-6, bias="absorb", **_):
    """Bach et al. 2015, Eq. 60: alpha times the share among positive contributions minus beta times that among negative ones."""
    c, rest = contributions(x, w), b * (bias == "absorb")
    return alpha * share(pos(c), pos(rest), r, eps) - beta * share(neg(c), neg(rest), r, eps)


def zplus(x, w, b, r, *, eps=1e-6, bias="absorb", **_):
    """Montavon et al. 2017: share among positive contributions."""
    return share(pos(contributions(x, w)), pos(b) * (bias == "absorb"), r, eps)


def contrastive(x, w, b, r, *, eps=1e-6, **_):
    """Zhang et al. 2016: the share among positive contributions minus that of the layer with -w."""
    c = contributions(x, w)
    return share(pos(c), 0 * b, r, eps) - share(pos(-c), 0 * b, r, eps)


def wsquare(x, w, b, r, *, eps=1e-6, bias="ignore", **_):
    """Montavon et al. 2017: contributions w**2, whatever the input."""
    return share(np.broadcast_to(w**2, (len(x), *w.shape)), b**2 * (bias == "absorb"), r, eps)


def flat(x, w, b, r, *, support, eps=1e-6, **_):
    """Lapuschkin et al. 2019: every connected input contributes alike."""
    return share(np.broadcast_to(support, (len(x), *w.shape)), 0 * b, r, eps)


def zbox(x, w, b, r, *, low, high, eps=1e-6, **_):
    """Montavon et al. 2017: contributions x w - low w+ - high w-; low and high broadcast to x."""
    low, high = np.broadcast_to(low, x.shape), np.broadcast_to(high, x.shape)
    c = contributions(x, w) - contributions(low, pos(w)) - contributions(high, neg(w))
    return share(c, 0 * b, r, eps)


def gradient(x, w, b, r, **_):
    return r @ w


LINEAR = {f.__name__: f for f in (epsilon, gamma, alpha_beta, zplus, contrastive, wsquare, flat, zbox, gradient)}


# --- the other layers ---


def add(terms, r, *, mode="z", eps=1e-6):
    """Relevance of each term of a sum, in the shape of the sum."""
    if mode == "z":
        return [t * divide(r, sum(terms), eps) for t in terms]
    return [r if mode == "gradient" else r / len(terms)] * len(terms)


def affine(x, scale, y, r, *, eps=1e-6):
    """y = scale x + shift keeps the part of r that is not the shift's."""
    return scale * x * divide(r, y, eps)


def guided(r, a, slope):
    """Springenberg et al. 2015."""
    return slope * pos(r)


def deconvnet(r, a, slope):
    """Zeiler and Fergus 2014."""
    return pos(r)


def rectgrad(r, a, slope, *, q=98.0, interpolation="linear"):
    """Kim et al. 2019: only where a r exceeds its q-th percentile of that sample; a is the activation's output."""
    t = (a * r).reshape(len(r), -1)
    tau = np.percentile(t, q, axis=1, method=interpolation, keepdims=True)
    return slope * (t > tau).reshape(r.shape) * r


RECTIFIER = {f.__name__: f for f in (guided, deconvnet, rectgrad)}


def normalised(r):
    """r / sum(r) per sample, 0 where the sum is."""
    total = r.reshape(len(r), -1).sum(1).reshape(-1, *[1] * (r.ndim - 1))
    return divide(r, total + 0 * r, 0)


def contrast(r1, r2, rectify="first"):
    """Gu et al. 2018 in three readings."""
    a, b = normalised(r1), normalised(r2)
    return {"first": pos(a) - b, "difference": pos(a - b), "none": a - b}[rectify]


# --- layers as dense matrices ---


def windows(space, kernel, strides, pads, dilations, ceil=False):
    """Per output position: the input positions it sees, row by row, each with its kernel offset; then its extent with padding."""
    dims = len(space)
    span = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    room = [n + pads[i] + pads[i + dims] - span[i] for i, n in enumerate(space)]
    out = [(-(-m // s) if ceil else m // s) + 1 for m, s in zip(room, strides)]
    out = [o - (ceil and (o - 1) * strides[i] >= space[i] + pads[i]) for i, o in enumerate(out)]
    for p in itertools.product(*map(range, out)):
        seen, extent = [], 0
        for k in itertools.product(*map(range, kernel)):
            q = tuple(a * s + b * d - pads[i] for i, (a, s, b, d) in enumerate(zip(p, strides, k, dilations)))
            seen += [(q, k)] * all(0 <= a < n for a, n in zip(q, space))
            extent += all(a < n + e for a, n, e in zip(q, space, pads[dims:]))
        yield p, seen, extent


def output_space(found):
    return tuple(n + 1 for n in found[-1][0])


def conv_matrix(w, in_shape, strides, pads, dilations, group=1):
    """The matrix of a convolution without bias, and the shape of its output: y[p] = sum_k w[k] x[p s + k d - pad]."""
    channels, *space = in_shape
    found = list(windows(space, w.shape[2:], strides, pads, dilations))
    m = np.zeros((len(w), *output_space(found), channels, *space))
    rows, cols = len(w) // group, channels // group
    for (p, seen, _), g in itertools.product(found, range(group)):
        to, of = slice(g * rows, (g + 1) * rows), slice(g * cols, (g + 1) * cols)
        for q, k in seen:
            m[(to, *p, of, *q)] += w[(to, slice(None), *k)]
    shape = m.shape[: 1 + len(space)]
    return m.reshape(np.prod(shape), -1), shape


def conv_transpose_matrix(w, in_shape, strides, pads, dilations, output_padding, group=1):
    """The matrix of a transposed convolution: x[p] is sent to y[p s + k d - pad] with weight w[k]."""
    channels, *space = in_shape
    dims, cols, rows = len(space), channels // group, w.shape[1]
    size = [(n - 1) * strides[i] + (w.shape[2 + i] - 1) * dilations[i] + 1 - pads[i] - pads[i + dims] + output_padding[i]
            for i, n in enumerate(space)]
    m = np.zeros((rows * group, *size, channels, *space))
    for p, k in itertools.product(np.ndindex(*space), np.ndindex(*w.shape[2:])):
        q = tuple(a * s + b * d - e for a, s, b, d, e in zip(p, strides, k, dilations, pads))
        if not all(0 <= a < n for a, n in zip(q, size)):
            continue
        for g in range(group):
            of = slice(g * cols, (g + 1) * cols)
            m[(slice(g * rows, (g + 1) * rows), *q, of, *p)] += w[(of, slice(None), *k)].T
    return m.reshape(rows * group * np.prod(size), -1), (rows * group, *size)


def pool_matrix(in_shape, kernel, strides, pads, dilations, ceil=False, include_pad=False):
    """The matrix of an average pooling."""
    channels, *space = in_shape
    found = list(windows(space, kernel, strides, pads, dilations, ceil))
    m = np.zeros((channels, *output_space(found), channels, *space))
    for (p, seen, extent), c in itertools.product(found, range(channels)):
        for q, _ in seen:
            m[(c, *p, c, *q)] = 1 / (extent if include_pad else len(seen))
    shape = m.shape[: 1 + len(space)]
    return m.reshape(np.prod(shape), -1), shape


def pool_winners(x, kernel, strides, pads, dilations, ceil=False):
    """Per output of a max pooling the flat index into x of the first maximum; and the gap to the runner-up."""
    n, c, *space = x.shape
    found = list(windows(space, kernel, strides, pads, dilations, ceil))
    out = np.zeros((n, c, *output_space(found)), int)
    gap = np.full(out.shape, np.inf)
    ids = np.arange(x.size).reshape(x.shape)
    for p, seen, _ in found:
        at = tuple(np.array([q for q, _ in seen]).T)
        seen_x, seen_ids = x[(..., *at)], ids[(..., *at)]
        best = seen_x.argmax(-1)[..., None]
        out[(..., *p)] = np.take_along_axis(seen_ids, best, -1)[..., 0]
        if len(seen) > 1:
            top = np.sort(seen_x, -1)
            gap[(..., *p)] = top[..., -1] - top[..., -2]
    return out, gap


def gemm_matrix(w, in_shape):
    """The matrix of x @ w applied to every row of x."""
    lead = in_shape[:-1]
    return np.kron(np.eye(int(np.prod(lead))), w.T), (*lead, w.shape[1])


def left_matrix(w, in_shape):
    """The matrix of w @ x for x (rows, columns)."""
    return np.kron(w, np.eye(in_shape[1])), (w.shape[0], in_shape[1])
