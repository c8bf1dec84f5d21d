"""The oracle's own table of methods: which rule of oracles.py acts on which layer of a Net."""

from __future__ import annotations

import numpy as np

from tests.rules import oracles as o
from tests.rules.nets import ACTIVATIONS, GATES, RECTIFIERS, Net, unbroadcast

# --- plain derivative ---


def derivative(net: Net, layer, r):
    """The exact adjoint of one layer."""
    xs = [net.values[i] for i in layer.inputs]
    x, n = xs[0], len(xs[0])
    if layer.kind in ("linear", "mean"):
        return [(r.reshape(n, -1) @ layer.w).reshape(x.shape)]
    if layer.kind == "act":
        return [r * ACTIVATIONS[layer.op][1](x, layer.attrs, layer.const)]
    if layer.kind in ("max", "index"):
        return scatter(xs, layer.ids, r)
    if layer.kind == "sum":
        return [unbroadcast(-r if layer.op == "Sub" and i else r, v.shape) for i, v in enumerate(xs)]
    if layer.kind == "mul":
        a, b = xs
        both = (r * b, r * a) if layer.op == "Mul" else (r / b, -r * a / b**2)
        return [unbroadcast(v, s.shape) for v, s in zip(both, xs)]
    return [unbroadcast(layer.scale * r, x.shape)]


def scatter(xs, ids, r):
    """Send every element of r to the input element it came from."""
    flat = np.zeros(sum(v.size for v in xs) + 1)
    np.add.at(flat, ids, r)
    parts = np.split(flat[:-1], np.cumsum([v.size for v in xs])[:-1])
    return [p.reshape(v.shape) for p, v in zip(parts, xs)]


def rectified(rule, **kw):
    """The gradient, with a rule of its own at rectifiers."""

    def pull(net, layer, r):
        if layer.op not in RECTIFIERS:
            return derivative(net, layer, r)
        slope = ACTIVATIONS[layer.op][1](net.values[layer.inputs[0]], layer.attrs, layer.const)
        return [o.RECTIFIER[rule](r, net.values[layer.output], slope, **kw)]

    return pull


# --- layer-wise relevance propagation ---


def firsts(net: Net):
    """The names by which a table can select single linear layers."""
    linear = [l for l in net.layers if l.kind == "linear"]
    convs = [l for l in linear if l.conv]
    inputs = {net.input}
    for l in net.layers:
        if l.kind == "index" and set(l.inputs) <= inputs:
            inputs.add(l.output)
    return {"first_linear": linear[:1], "first_conv": convs[:1], "last": linear[-1:], "linear": linear, "conv": convs,
            "dense": [l for l in linear if not l.conv], "input": [l for l in linear if l.inputs[0] in inputs]}


def relevance(net: Net, table, *, eps=1e-6, add="z", mul="uniform", bn="affine", **kw):
    """The rule of the first line of the table that selects a linear layer; METHODS section 4 for every other layer."""
    where = firsts(net)

    def pull(net, layer, r):
        xs = [net.values[i] for i in layer.inputs]
        x, n = xs[0], len(xs[0])
        if layer.kind == "linear":
            rule, options = next((rule, dict(opt)) for name, rule, opt in table if any(l is layer for l in where[name]))
            options = {"eps": eps} | options | kw
            for side in ("low", "high"):
                if rule == "zbox":
                    value = np.asarray(options.pop(side), float)
                    value = value.reshape(-1, *[1] * (x.ndim - 2)) if value.ndim == 1 else value
                    options[side] = np.broadcast_to(value, x.shape).reshape(n, -1)
            options = {k: v for k, v in options.items() if rule == "zbox" or k not in ("low", "high")}
            found = o.LINEAR[rule](x.reshape(n, -1), layer.w, layer.b, r.reshape(n, -1), support=layer.support, **options)
            return [found.reshape(x.shape)]
        if layer.kind == "mean":
            return [o.epsilon(x.reshape(n, -1), layer.w, layer.b, r.reshape(n, -1), eps=eps).reshape(x.shape)]
        if layer.kind == "act":
            return [r]
        if layer.kind in ("max", "index"):
            return scatter(xs, layer.ids, r)
        if layer.kind == "sum":
            found = o.add([-v if layer.op == "Sub" and i else v for i, v in enumerate(xs)], r, mode=add, eps=eps)
            return [unbroadcast(v, s.shape) for v, s in zip(found, xs)]
        if layer.kind == "mul":
            return [unbroadcast(w * r, s.shape) for w, s in zip(mul_weights(net, layer, mul), xs)]
        if layer.kind == "scale":
            return [unbroadcast(r * (layer.scale != 0), x.shape)]
        if bn == "pass" and layer.op == "BatchNormalization":
            return [r]
        return [unbroadcast(o.affine(x, layer.scale, net.values[layer.output], r, eps=eps), x.shape)]

    return pull


def mul_weights(net, layer, mode):
    if layer.op == "Div":
        return 1.0, 0.0
    gates = [is_gate(net, i) for i in layer.inputs]
    if mode == "uniform" or gates[0] == gates[1]:
        return 0.5, 0.5
    return (0.0, 1.0) if gates[0] else (1.0, 0.0)


def is_gate(net, name):
    layer = net.producer(name)
    while layer is not None and layer.kind == "index":
        layer = net.producer(layer.inputs[0])
    return layer is not None and layer.op in GATES


# --- seeds ---


def seed(net: Net, target, kind):
    """The relevance of the explained output."""
    y = net.logits.reshape(len(net.logits), -1)
    hot = np.zeros_like(y)
    hot[np.arange(len(y)), target] = 1
    soft = np.exp(y - y.max(1, keepdims=True))
    value = {"onehot": 1.0, "logit": y, "relu_logit": o.pos(y), "prob": soft / soft.sum(1, keepdims=True)}[kind]
    return (hot * value).reshape(net.logits.shape)


# --- the methods ---

A1B0, A2B1 = ("alpha_beta", {"alpha": 1.0, "beta": 0.0}), ("alpha_beta", {"alpha": 2.0, "beta": 1.0})
EPSILON, ZPLUS, FLAT, ZBOX = ("epsilon", {}), ("zplus", {}), ("flat", {}), ("zbox", {})
NOBIAS, TINY = ("zplus", {"bias": "ignore"}), ("epsilon", {"eps": 1e-10})

LRP = {
    "lrp.zero": [("linear", "epsilon", {"eps": 0.0})],
    "lrp.epsilon": [("linear", *EPSILON)],
    "lrp.gamma": [("linear", "gamma", {})],
    "lrp.zplus": [("linear", *ZPLUS)],
    "lrp.alpha2_beta1": [("linear", *A2B1)],
    "lrp.alpha5_beta4": [("linear", "alpha_beta", {"alpha": 5.0, "beta": 4.0})],
    "lrp.wsquare": [("linear", "wsquare", {})],
    "lrp.flat": [("linear", *FLAT)],
    "lrp.zbox": [("linear", *ZBOX)],
    "lrp.epsilon_plus": [("conv", *ZPLUS), ("dense", *EPSILON)],
    "lrp.epsilon_plus_flat": [("first_linear", *FLAT), ("conv", *ZPLUS), ("dense", *EPSILON)],
    "lrp.epsilon_alpha2_beta1": [("conv", *A2B1), ("dense", *EPSILON)],
    "lrp.epsilon_alpha2_beta1_flat": [("first_linear", *FLAT), ("conv", *A2B1), ("dense", *EPSILON)],
    "lrp.epsilon_gamma_box": [("first_conv", *ZBOX), ("conv", "gamma", {}), ("dense", *EPSILON)],
    "lrp.cmp_alpha1_beta0": [("conv", *A1B0), ("dense", *TINY)],
    "lrp.cmp_alpha2_beta1": [("conv", *A2B1), ("dense", *TINY)],
    "deep_taylor": [("input", "wsquare", {}), ("linear", *NOBIAS)],
    "deep_taylor.bounded": [("input", *ZBOX), ("linear", *NOBIAS)],
    "deep_taylor.positive": [("linear", *NOBIAS)],
    "excitation_backprop": [("linear", *NOBIAS)],
    "excitation_backprop.contrastive": [("last", "contrastive", {}), ("linear", *NOBIAS)],
    "lrp.contrastive": [("linear", *NOBIAS)],
}
SEEDS = {"deep_taylor": "relu_logit", "excitation_backprop": "onehot", "lrp": "logit"}
RECTIFIED = {"guided_backprop": "guided", "deconvnet": "deconvnet", "rectgrad": "rectgrad"}
GRADIENT = ("gradient", "gradient_x_input", *RECTIFIED)
METHODS = (*GRADIENT, *LRP)
BOXED = ("lrp.zbox", "lrp.epsilon_gamma_box", "deep_taylor.bounded")


def explain(net: Net, method, target, *, start=None, seeded=None, **params):
    """Attribution of every tensor; `seeded` replaces the seed (at the tensor `start`, if given)."""
    kind = params.pop("seed", None) or SEEDS.get(method.split(".")[0], "onehot")
    if method in GRADIENT:
        inputs = params.pop("times_input", method == "gradient_x_input")
        pull = rectified(RECTIFIED[method], **params) if method in RECTIFIED else derivative
        found = net.backward(seed(net, target, kind) if seeded is None else seeded, pull, start)
        return {k: net.values[k] * v for k, v in found.items()} if inputs else found
    rectify = params.pop("rectify", "first")
    if method == "lrp.zero":
        params["eps"] = 0.0
    if method.startswith("lrp.cmp"):
        params.pop("eps", None)
    pull = relevance(net, LRP[method], **params)
    if method == "lrp.contrastive" and seeded is None:
        chosen, whole = seed(net, target, "logit"), net.logits
        r1, r2 = net.backward(chosen, pull), net.backward(whole - chosen, pull)
        return {k: o.contrast(r1[k], r2[k], rectify) for k in r1}
    return net.backward(seed(net, target, kind) if seeded is None else seeded, pull, start)


