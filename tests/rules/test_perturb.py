"""RISE against a replica that draws its masks with Python's integers; occlusion against one patch at a time."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphattr
from graphattr.errors import MethodError
from tests.rules import zoo
from tests.rules.nets import Net
from tests.rules.test_fullgrad import channels_last, near

pytest.importorskip("onnxruntime")
from tests.rules import engine

P = 2**29 - 3
CONSTANTS = (0x243F6A88 % P, 0x85A308D3 % P, 0x13198A2E % P)
NAMES = ("cnn", "dilated", "gated", "volume", "mlp", "tokens")


# -- replicas -----------------------------------------------------------------------------------------------------
def numbers(count, random_state, step, stream):
    """The generator of noise.py in Python's own integers."""
    key = pow(pow(step + (random_state * 0x9E3779B1 + stream * 0x7F4A7C15) % P, 3, P) + CONSTANTS[0], 3, P)
    found = []
    for x in range(count):
        for constant in CONSTANTS:
            x = pow(x + key + constant, 3, P)
        found.append(x)
    return np.array(found)


def axes_of(name, x):
    return {"mlp": [1], "tokens": [1]}.get(name, list(range(2, x.ndim)))


def enlarged(v, sizes):
    """Linear along every axis, half pixels."""
    for axis, n in enumerate(sizes):
        m = v.shape[axis]
        at = np.clip((np.arange(n) + 0.5) * m / n - 0.5, 0, m - 1)
        low = np.minimum(at.astype(int), max(m - 2, 0))
        high, t = np.minimum(low + 1, m - 1), (at - low).reshape([-1 if a == axis else 1 for a in range(v.ndim)])
        v = np.take(v, low, axis) * (1 - t) + np.take(v, high, axis) * t
    return v


def rise_mask(x, axes, step, cells=8, p=0.5, random_state=0, stream=0):
    """One mask, with the axes of x."""
    sizes = [x.shape[a] for a in axes]
    if x.ndim == 2:
        return (numbers(sizes[0], random_state, step, stream) < round(p * P)).astype(float)[None]
    d = len(axes)
    drawn = numbers(cells**d + d, random_state, step, stream)
    cell = [-(-n // cells) for n in sizes]
    large = enlarged((drawn[:cells**d] < round(p * P)).astype(float).reshape([cells] * d), [c * (cells + 1) for c in cell])
    cut = tuple(slice(s, s + n) for s, n in zip(drawn[cells**d:] % cell, sizes))
    return large[cut].reshape([x.shape[a] if a in axes else 1 for a in range(x.ndim)])


def said(model, x, target, weight="softmax"):
    y = Net(model, x).logits.reshape(len(x), -1)
    if weight == "softmax":
        y = np.exp(y - y.max(1, keepdims=True))
        y = y / y.sum(1, keepdims=True)
    return (1 / (1 + np.exp(-y)) if weight == "sigmoid" else y)[np.arange(len(x)), target].reshape(-1, *[1] * (x.ndim - 1))


def rise(model, x, axes, target, n, weight="softmax", **params):
    masks = [rise_mask(x, axes, i, **params) for i in range(n)]
    found = sum(said(model, x * m, target, weight) * m for m in masks) / (n * params.get("p", 0.5))
    return np.broadcast_to(found, x.shape)


def occlusion(model, x, axes, target, patch, stride, baseline=0.0):
    """Every element asks every patch that covers it."""
    s, spans = said(model, x, target, "score"), []
    for a, p, step in zip(axes, patch, stride):
        starts = range(0, max(-(-(x.shape[a] - p) // step), 0) * step + 1, step)
        spans.append([slice(i, i + p) for i in starts])
    total, count = np.zeros_like(x, float), np.zeros_like(x, float)
    for cut in itertools.product(*spans):
        where = tuple(cut[axes.index(a)] if a in axes else slice(None) for a in range(x.ndim))
        hidden = x.copy()
        hidden[where] = np.broadcast_to(baseline, x.shape)[where]
        total[where] += np.broadcast_to(s - said(model, hidden, target, "score"), x.shape)[where]
        count[where] += 1
    return total / count


# -- RISE ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("params", [{}, {"cells": 3, "p": 0.3, "random_state": 7}])
@pytest.mark.parametrize("name", NAMES)
def test_rise(name, params):
    c = zoo.case(name)
    found = engine.attribute(c.model, c.x, c.target, "rise", n_samples=20, **params)["x"]
    near(found, rise(c.model, c.x, axes_of(name, c.x), c.target, 20, **params))


@pytest.mark.parametrize("weight", ["sigmoid", "score"])
def test_other_weights(weight):
    c = zoo.case("cnn")
    found = engine.attribute(c.model, c.x, c.target, "rise", n_samples=9, weight=weight)["x"]
    near(found, rise(c.model, c.x, [2, 3], c.target, 9, weight))


def test_masks_are_fair_and_independent():
    x = np.zeros((1, 3, 64, 64))
    grids = np.array([numbers(64, 0, step, 0) < round(0.5 * P) for step in range(2000)]).astype(float)
    assert abs(grids.mean() - 0.5) < 4 * 0.5 / np.sqrt(grids.size)
    assert np.abs(grids.mean(0) - 0.5).max() < 4.5 * 0.5 / np.sqrt(2000)
    between = np.corrcoef(grids.T) - np.eye(64)
    assert np.abs(between).max() < 5 / np.sqrt(2000)
    after = (grids[1:] - 0.5) * (grids[:-1] - 0.5) * 4
    assert np.abs(after.mean(0)).max() < 4.5 / np.sqrt(1999)
    shifts = np.array([numbers(66, 0, step, 0)[64:] % 8 for step in range(2000)])
    for axis in (0, 1):
        counts = np.bincount(shifts[:, axis], minlength=8)
        assert ((counts - 250) ** 2 / 250).sum() < 24.3  # chi squared with 7 degrees of freedom, 99.9 %
    masks = np.mean([rise_mask(x, [2, 3], i) for i in range(400)], 0)
    assert np.abs(masks - 0.5).max() < 0.13


def test_a_linear_model_gives_its_weights():
    """E[w(x M) M] - E[w] E[M] is proportional to x w for independent entries: RISE of a table finds the features that matter."""
    w = np.array([3.0, -2.0, 0.0, 1.0, 0.5, 0.0], np.float32)
    nodes = [helper.make_node("Gemm", ["x", "w"], ["y"], "fc")]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", k]) for n, k in (("x", 6), ("y", 1))]
    graph = helper.make_graph(nodes, "linear", ends[:1], ends[1:], [numpy_helper.from_array(w[:, None], "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = engine.attribute(model, np.ones((1, 6)), [0], "rise", n_samples=6000, weight="score")["x"][0]
    np.testing.assert_allclose(found - found[2], w / 2, atol=0.15)
    with pytest.raises(MethodError, match="softmax is always 1; choose weight='sigmoid'"):
        engine.session(model, "rise")


# -- occlusion ----------------------------------------------------------------------------------------------------
OCCLUSIONS = [
    *[(name, 2, 1, 0.0) for name in NAMES],
    *[(name, 3, 2, 0.4) for name in NAMES],
    ("cnn", [3, 2], [1, 2], 0.0),
    ("cnn", 9, 9, 0.0),
    ("mlp", 1, 1, 0.0),
    ("cnn", 2, 2, [0.1, -0.2, 0.3]),
]


@pytest.mark.parametrize(("name", "patch", "stride", "baseline"), OCCLUSIONS, ids=repr)
def test_occlusion(name, patch, stride, baseline):
    c = zoo.case(name)
    axes = axes_of(name, c.x)
    found = engine.attribute(c.model, c.x, c.target, "occlusion", patch=patch, stride=stride, baselines=baseline)["x"]
    sides = [v if isinstance(v, list) else [v] * len(axes) for v in (patch, stride)]
    wide = np.reshape(baseline, (-1, 1, 1)) if isinstance(baseline, list) else baseline
    near(found, occlusion(c.model, c.x, axes, c.target, *sides, wide))


def test_default_patches():
    """An eighth of each axis, half a patch apart; single features of a table."""
    c = zoo.case("dilated")
    near(engine.attribute(c.model, c.x, c.target, "occlusion")["x"],
         occlusion(c.model, c.x, [2, 3], c.target, [2, 1], [1, 1]))
    m = zoo.case("mlp")
    near(engine.attribute(m.model, m.x, m.target, "occlusion")["x"], occlusion(m.model, m.x, [1], m.target, [1], [1]))


def test_baselines_at_run_time_and_rows():
    c = zoo.case("cnn")
    rng = np.random.default_rng(0)
    given = rng.standard_normal(c.x.shape).astype(np.float32)
    explainer = engine.session(c.model, "occlusion", patch=3, stride=2, baselines="input")
    found = engine.run(explainer, c.x, target=c.target, x_baseline=given)["x"]
    near(found, occlusion(c.model, c.x, [2, 3], c.target, [3, 3], [2, 2], given))
    rows = rng.standard_normal((2, *c.x.shape[1:])).astype(np.float32)
    found = engine.attribute(c.model, c.x, c.target, "occlusion", patch=3, stride=2, baselines=rows)["x"]
    near(found, np.mean([occlusion(c.model, c.x, [2, 3], c.target, [3, 3], [2, 2], row[None]) for row in rows], 0))


@pytest.mark.parametrize(("params", "text"), [
    ({"patch": 2, "stride": 3}, "leave gaps in axis 2"),
    ({"patch": [2, 2, 2]}, "one number of at least 1, or 2 of them"),
    ({"patch": 0}, "at least 1"),
    ({"patch": "big"}, "parameter 'patch' must be"),
])
def test_errors_of_occlusion(params, text):
    with pytest.raises(MethodError, match=text):
        engine.session(zoo.case("cnn").model, "occlusion", **params)


@pytest.mark.parametrize("params", [{"n_samples": 0}, {"cells": 0}, {"p": 0.0}, {"p": 1.5}])
def test_errors_of_rise(params):
    with pytest.raises(MethodError, match="rise: n_samples and cells are at least 1"):
        engine.session(zoo.case("cnn").model, "rise", **params)


# -- both ---------------------------------------------------------------------------------------------------------
BOTH = [("rise", {"n_samples": 12}), ("occlusion", {"patch": 3, "stride": 2})]


@pytest.mark.parametrize(("method", "params"), BOTH)
def test_sizes_of_the_run_and_one_by_one(method, params):
    c = zoo.case("cnn")
    model = onnx.ModelProto.FromString(c.model.SerializeToString())
    for dim, free in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "HW", strict=True):
        dim.dim_param = free
    explainer = engine.session(model, method, **params)
    want = engine.attribute(c.model, c.x, c.target, method, **params)["x"]
    near(engine.run(explainer, c.x, target=c.target)["x"], want, 1e-6)
    for i in (2, 0):
        near(engine.run(explainer, c.x[i:i + 1], target=c.target[i:i + 1])["x"], want[i:i + 1], 1e-6)
    near(engine.run(explainer, c.x[::-1], target=c.target[::-1])["x"], want[::-1], 1e-6)


@pytest.mark.parametrize(("method", "params"), BOTH)
def test_channels_last(method, params):
    c = zoo.case("dilated")
    found = engine.attribute(channels_last(c), c.x.transpose(0, 2, 3, 1), c.target, method, **params)["x"]
    near(found.transpose(0, 3, 1, 2), engine.attribute(c.model, c.x, c.target, method, **params)["x"])


@pytest.mark.parametrize(("method", "params"), BOTH)
def test_inner_tensors(method, params):
    c = zoo.case("cnn")
    inner = next(l.output for l in c.net.layers if l.kind == "max")
    both = engine.attribute(c.model, c.x, c.target, method, wrt=["x", inner], **params)
    for tensor in ("x", inner):
        near(both[tensor], engine.attribute(c.model, c.x, c.target, method, wrt=tensor, **params)[tensor], 1e-6)


@pytest.mark.parametrize(("method", "params"), [("rise", {"n_samples": 30, "weight": "score"}), ("occlusion", {})])
def test_models_without_derivatives(method, params):
    """A forest is explained, too: no rule is asked for."""
    forest = helper.make_node(
        "TreeEnsembleRegressor", ["x"], ["y"], "forest", domain="ai.onnx.ml", n_targets=1, post_transform="NONE",
        nodes_treeids=[0, 0, 0], nodes_nodeids=[0, 1, 2], nodes_featureids=[1, 0, 0], nodes_values=[0.5, 0.0, 0.0],
        nodes_modes=["BRANCH_LEQ", "LEAF", "LEAF"], nodes_truenodeids=[1, 0, 0], nodes_falsenodeids=[2, 0, 0],
        target_treeids=[0, 0], target_nodeids=[1, 2], target_ids=[0, 0], target_weights=[-1.0, 2.0])
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", k]) for n, k in (("x", 3), ("y", 1))]
    graph = helper.make_graph([forest], "trees", ends[:1], ends[1:])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
    found = engine.attribute(model, np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]]), [0, 0], method, **params)["x"]
    if method == "occlusion":
        np.testing.assert_allclose(found, [[0, 3, 0], [0, 0, 0]])
    else:
        assert found[0].argmax() == 1


def test_a_token_is_hidden_once():
    """The attribution of an id is what the score loses without its row, not once for each of the row's entries."""
    b = zoo.Build(50, 4, out=3)
    table = b.const(np.random.default_rng(2).standard_normal((9, 5)).astype(np.float32), "table")
    rows = b.op("Gather", table, "x")
    y = b.gemm(b.op("ReduceMean", b.relu(b.matmul(rows, 5, 6)), axes=[1], keepdims=0), 6, 3)
    ends = [helper.make_tensor_value_info("x", TensorProto.INT64, ["N", 4]), helper.make_tensor_value_info(y, 1, ["N", 3])]
    graph = helper.make_graph(b.nodes, "ids", ends[:1], ends[1:], b.init)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    ids, target = np.array([[1, 2, 3, 4], [8, 8, 0, 5]]), np.array([0, 2])
    found = engine.session(model, "occlusion").run(["x_attribution"], {"x": ids, "target": target})[0]
    held = engine.session(model, "occlusion", wrt=[rows]).run([f"{rows}_attribution"], {"x": ids, "target": target})[0]
    assert found.shape == (2, 4)
    np.testing.assert_allclose(found, held[:, :, 0], rtol=1e-5, atol=1e-7)


def test_a_signal_without_channels_is_no_table():
    """(N, T) that a convolution reads behind an Unsqueeze is hidden in pieces, as (N, 1, T) is."""
    b = zoo.Build(51, 24, out=3)
    wide = b.op("Unsqueeze", "x", b.ints(1))
    model = b.head(b.relu(b.conv(wide, 1, 4, (5,), strides=[2])), 40)
    x, target = np.random.default_rng(1).standard_normal((2, 24)).astype(np.float32), [0, 1]
    held = engine.attribute(model, x, target, "occlusion", wrt=["x", wide])
    near(held["x"], held[wide][:, 0])
    near(held["x"], occlusion(model, x, [1], target, [3], [2]))
    held = engine.attribute(model, x, target, "rise", wrt=["x", wide], n_samples=9)
    near(held["x"], held[wide][:, 0])


@pytest.mark.parametrize(("method", "params"), [("rise", "n_samples"), ("dga", "n_steps")])
def test_files_and_memory_do_not_grow_with_the_number_of_passes(method, params):
    few, many = (graphattr.convert(zoo.case("cnn").model, method=method, **{params: n}).model for n in (2, 200))
    assert [n.op_type for n in few.graph.node] == [n.op_type for n in many.graph.node]
    assert abs(few.ByteSize() - many.ByteSize()) < 100


@pytest.mark.parametrize("method", ["occlusion", "rise", "dga", "grad_cam"])
def test_inspect_says_what_would_run(method):
    report = graphattr.inspect(zoo.case("cnn").model, method=method)
    assert not report["problems"]
    assert report["coverage"]["covered"] == report["coverage"]["on_path"]
