"""Patterns from explicit patches, unit by unit, in float64: slow, and of any operator that has a dense matrix."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from tests.rules import methods
from tests.rules.nets import Net

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def ids_of(model, shape):
    """Per linear node a dense matrix that says which element of the stored weight (from 1) stands where; 0 is none."""
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    weights = {i for n in marked.graph.node if n.op_type in LINEAR for i in n.input[:2]}
    for t in marked.graph.initializer:
        if t.name in weights:
            ids = np.arange(1.0, 1 + np.prod(t.dims)).reshape(t.dims)
            t.CopyFrom(numpy_helper.from_array(ids, t.name))
    with np.errstate(all="ignore"):
        net = Net(marked, np.zeros((1, *shape)), fold=False)
    return {l.name: np.rint(l.w / l.attrs.get("alpha", 1.0)).astype(int) for l in net.layers if l.kind == "linear"}


def rectified(net, layer):
    """Whether only rectifiers that let nothing negative pass read the layer's output, pooling and moving aside."""
    users = net.users(layer.output)
    return bool(users) and all(
        u is not None and (_is_relu(u) or (u.kind in ("max", "index") and rectified(net, u))) for u in users)


def _is_relu(layer):
    return layer.op == "Relu" or (layer.op == "Clip" and layer.const[0] >= 0)


def patches(net, layer, ids):
    """Per unit: ids of its weights, their values, the patches (places, weights), the pre-activations with bias."""
    x = net.values[layer.inputs[0]]
    x = np.append(x.reshape(len(x), -1), np.zeros((len(x), 1)), axis=1)
    units = np.indices(layer.shape)[layer.channel].ravel()
    for u in range(units.max() + 1):
        outs = np.flatnonzero(units == u)
        own = np.unique(ids[outs])
        own = own[own > 0]
        at = np.full((len(outs), len(own)), x.shape[1] - 1)  # what is padded reads the zero at the end
        w = np.zeros(len(own))
        for row, o in enumerate(outs):
            seen = np.flatnonzero(ids[o])
            place = np.searchsorted(own, ids[o, seen])
            at[row, place], w[place] = seen, layer.w[o, seen]
        found = x[:, at].reshape(-1, len(own))
        yield own, w, found, found @ w + np.tile(layer.b[outs], len(x))


def patterns(net, ids, kind="relu", mean_y="active"):
    """Per linear layer: the pattern by weight id, entry 0 being 0."""
    result = {}
    for layer in net.layers:
        if layer.kind != "linear":
            continue
        a = np.zeros(ids[layer.name].max() + 1)
        for own, w, x, z in patches(net, layer, ids[layer.name]):
            y = x @ w
            chosen = kind if rectified(net, layer) else "linear"
            m = {"relu": z > 0, "relu.negative": z <= 0, "linear": np.ones(len(z), bool)}[chosen]
            if m.any():
                mean = y[m].mean() if mean_y == "active" else y.mean()
                cov = (x[m] * y[m, None]).mean(0) - x[m].mean(0) * mean
                varies = w @ cov
                a[own] = cov / varies if abs(varies) > 1e-11 * (np.abs(x[m]).mean(0) @ np.abs(w)) * np.abs(y[m]).mean() else 0
        result[layer.name] = a
    return result


def explain(net, ids, learned, target, times_weight, project=False):
    """PatternNet, or PatternAttribution, of every tensor."""
    n = len(net.logits)
    seed = np.zeros_like(net.logits)
    seed.reshape(n, -1)[np.arange(n), target] = net.logits.reshape(n, -1)[np.arange(n), target]

    def pull(net, layer, r):
        if layer.kind != "linear":
            return methods.derivative(net, layer, r)
        if project:
            most = np.abs(r).reshape(n, -1).max(1).reshape(-1, *[1] * (r.ndim - 1))
            r = np.where(most > 0, r / np.where(most > 0, most, 1), 0)
        dense = learned[layer.name][ids[layer.name]] * (layer.w if times_weight else 1)
        return [(r.reshape(n, -1) @ dense).reshape(net.values[layer.inputs[0]].shape)]

    return net.backward(seed, pull)
