"""Export a torch net, explain the file with graphattr, and measure how far that is from a float64 reference."""

from __future__ import annotations

import copy
import io
import itertools
import warnings

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

import graphattr

TARGET = (1, 3)  # of the two samples


def export(net, *inputs, names=("x",), fold=False, opset=17):
    """The file that torch writes for the net; `fold` lets the exporter merge BatchNorm itself."""
    file = io.BytesIO()
    mode = torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            inputs,
            file,
            dynamo=False,
            opset_version=opset,
            training=mode,
            do_constant_folding=fold,
            input_names=list(names),
            output_names=["y"],
            dynamic_axes={n: {0: "N"} for n in (*names, "y")},
        )
    return onnx.load_from_string(file.getvalue())


def tensor_of(model, module):
    """The name that the file gives to the output of a torch module, by the module's path."""
    held = [n.output[0] for n in model.graph.node if f"/{module.replace('.', '/')}/" in n.name]
    assert held, (module, [n.name for n in model.graph.node])
    return held[-1]


def attribute(model, inputs, method, target=TARGET, wrt=None, **params):
    """graphattr's attributions by tensor, in ONNX Runtime."""
    feeds = inputs if isinstance(inputs, dict) else {"x": inputs}
    explainer = graphattr.Explainer(graphattr.convert(model, method=method, target="input", wrt=wrt, **params))
    found = explainer(
        {k: np.asarray(v.detach() if torch.is_tensor(v) else v) for k, v in feeds.items()}, target=np.array(target)
    )
    return found.scores


def attribute64(net, x, method, target=TARGET, **params):
    """The attribution of x for the net exported in float64, evaluated in float64: what remains is not rounding."""
    net = copy.deepcopy(net).double()
    model = graphattr.convert(export(net, x.double()), method=method, target="input", **params).model
    names = [o.name for o in model.graph.output]
    found = ReferenceEvaluator(model).run(None, {"x": x.detach().double().numpy(), "target": np.array(target)})
    return dict(zip(names, found, strict=True))["x_attribution"]


def gradient(net, inputs, target=TARGET):
    """d y_c / d input in float64, for each input."""
    net = copy.deepcopy(net).double()
    leaves = [x.detach().double().requires_grad_() for x in inputs]
    y = net(*leaves)
    return [g.numpy() for g in torch.autograd.grad(y[range(len(target)), target].sum(), leaves)]


def distance(got, want):
    """Largest difference as a share of the largest value, for the worst sample."""
    got, want = np.asarray(got, np.float64), np.asarray(want.detach() if torch.is_tensor(want) else want, np.float64)
    assert got.shape == want.shape, (got.shape, want.shape)
    assert all(w.any() for w in want), "nothing arrives: choose another seed"
    return max(float(np.abs(g - w).max() / np.abs(w).max()) for g, w in zip(got, want, strict=True))


def folded(net):
    """The net with each BatchNorm merged into the linear layer before it, exactly."""
    net = copy.deepcopy(net)
    for parent in list(net.modules()):
        children = list(parent.named_children())
        for (_, linear), (name, norm) in itertools.pairwise(children):
            weighs = isinstance(linear, nn.Linear | nn.modules.conv._ConvNd)
            if weighs and isinstance(norm, nn.modules.batchnorm._BatchNorm):
                merge(linear, norm)
                setattr(parent, name, nn.Identity())
    return net.eval()


def merge(linear, norm):
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    w, b = linear.weight, 0 if linear.bias is None else linear.bias
    if getattr(linear, "transposed", False):
        by_group = w.reshape(linear.groups, -1, w.shape[1], w[0, 0].numel()) * scale.reshape(linear.groups, 1, -1, 1)
        linear.weight = nn.Parameter(by_group.reshape(w.shape))
    else:
        linear.weight = nn.Parameter(w * scale.reshape(-1, *[1] * (w.ndim - 1)))
    linear.bias = nn.Parameter((b - norm.running_mean) * scale + norm.bias)


def cosine(a, b):
    a, b = (np.asarray(v, np.float64).ravel() for v in (a, b))
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def spread(got, want):
    """Root mean square of the difference as a share of that of the values."""
    got, want = (np.asarray(v, np.float64) for v in (got, want))
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def registered(method):
    return any(m["name"] == method for m in graphattr.methods())
