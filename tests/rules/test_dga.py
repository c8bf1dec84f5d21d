"""DGA against a replica that sorts and writes every step down, and its quantiles against NumPy's, ties included."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import onnx
import pytest
from graphattr_rules.dga import LARGEST, quantile

from graphattr.errors import MethodError
from graphattr.graph import Graph
from graphattr.onnxio import write_model
from tests.rules import methods, zoo
from tests.rules.nets import Net
from tests.rules.test_fullgrad import near, uniform

pytest.importorskip("onnxruntime")
import onnxruntime

from tests.rules import engine

LOCAL = {
    "fullgrad.uniform": uniform,
    "gradient_x_input": lambda net, target: methods.explain(net, "gradient_x_input", target)["x"],
    "lrp.epsilon": lambda net, target: methods.explain(net, "lrp.epsilon", target)["x"],
    "guided_backprop": lambda net, target: methods.explain(net, "guided_backprop", target)["x"],
}


def at(v, top, bottom):
    """The top/bottom quantile of v, the index in whole numbers."""
    v, low = np.sort(v), top * (len(v) - 1) // bottom
    return v[low] + (top * (len(v) - 1) % bottom) / bottom * (v[min(low + 1, len(v) - 1)] - v[low])


def dga(model, x, target, local, n_steps, q):
    """The listing, sample by sample."""
    found = []
    share = Fraction(str(q))
    for one, c in zip(x.astype(float), target):
        total, now = np.zeros_like(one), one
        for t in range(1, n_steps + 1):
            phi = LOCAL[local](Net(model, now[None]), np.array([c]))[0]
            weak, strong = at(np.abs(phi).ravel(), t, n_steps), at(phi.ravel(), share.numerator, share.denominator)
            total += np.maximum(phi, 0)
            now = one * (t / n_steps * (1 - (np.abs(phi) <= weak)) + (1 - t / n_steps) * (1 - (phi >= strong)))
        found.append(total / n_steps)
    return np.array(found)


CASES = [
    *[(name, "fullgrad.uniform", 6, 0.9) for name in ("cnn", "residual", "mlp", "mobile", "tokens", "scaled")],
    *[("cnn", local, 5, q) for local in LOCAL for q in (0.7, 0.9)],
    ("cnn", "fullgrad.uniform", 30, 0.9),
    ("deep", "lrp.epsilon", 7, 1.0),
    ("mlp", "fullgrad.uniform", 4, 0.0),
    ("cnn", "fullgrad.uniform", 1, 0.5),
]


@pytest.mark.parametrize(("name", "local", "n_steps", "q"), CASES)
def test_every_step(name, local, n_steps, q):
    c = zoo.case(name)
    found = engine.attribute(c.model, c.x, c.target, "dga", local=local, n_steps=n_steps, q=q)["x"]
    near(found, dga(c.model, c.x, c.target, local, n_steps, q), 2e-4)
    assert (found >= 0).all()


def test_defaults():
    c = zoo.case("residual")
    near(engine.attribute(c.model, c.x, c.target, "dga")["x"], dga(c.model, c.x, c.target, "fullgrad.uniform", 30, 0.9), 2e-4)


def test_sizes_of_the_run_and_one_by_one():
    c = zoo.case("cnn")
    model = onnx.ModelProto.FromString(c.model.SerializeToString())
    for dim, free in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "HW", strict=True):
        dim.dim_param = free
    explainer = engine.session(model, "dga", n_steps=5, q=0.7)
    want = dga(c.model, c.x, c.target, "fullgrad.uniform", 5, 0.7)
    near(engine.run(explainer, c.x, target=c.target)["x"], want, 2e-4)
    for i in range(3):
        near(engine.run(explainer, c.x[i:i + 1], target=c.target[i:i + 1])["x"], want[i:i + 1], 2e-4)


def test_the_methods_own_parameters_reach_it():
    c = zoo.case("cnn")
    one, two = (engine.attribute(c.model, c.x, c.target, "dga", local="lrp.epsilon", n_steps=1, eps=e)["x"] for e in (1e-6, 0.3))
    want = engine.attribute(c.model, c.x, c.target, "lrp.epsilon", eps=0.3)["x"]
    near(two, np.maximum(want, 0))
    assert np.abs(one - two).max() > 1e-2 * np.abs(two).max()


def test_inner_tensors():
    c = zoo.case("cnn")
    inner = next(l.output for l in c.net.layers if l.kind == "max")
    both = engine.attribute(c.model, c.x, c.target, "dga", n_steps=4, wrt=["x", inner])
    near(both["x"], dga(c.model, c.x, c.target, "fullgrad.uniform", 4, 0.9), 2e-4)
    near(both[inner], engine.attribute(c.model, c.x, c.target, "dga", n_steps=4, wrt=inner)[inner])


@pytest.mark.parametrize(("params", "text"), [({"q": 1.5}, "q a share from 0 to 1"), ({"n_steps": 0}, "at least 1"),
                                              ({"local": "fullgrad"}, "map of local='fullgrad' has shape"),
                                              ({"local": "gradiant"}, "did you mean 'gradient'")])
def test_errors(params, text):
    with pytest.raises(MethodError, match=text):
        engine.session(zoo.case("cnn").model, "dga", **params)


def test_one_number_per_sample():
    """(N,), made a column by the model: its one entry is at every quantile, so that it is gone after the first step."""
    b = zoo.Build(70, out=3)
    model = b.done(b.gemm(b.relu(b.gemm(b.op("Unsqueeze", "x", b.ints(1)), 1, 6)), 6, 3))
    x, target = np.array([0.5, -1.5, 2.0, 0.1], np.float32), np.array([0, 1, 2, 0])
    one = engine.attribute(model, x, target, "fullgrad.uniform")["x"]
    none = engine.attribute(model, 0 * x, target, "fullgrad.uniform")["x"]
    near(engine.attribute(model, x, target, "dga", n_steps=2, q=1.0)["x"], (np.maximum(one, 0) + np.maximum(none, 0)) / 2)


# -- quantiles ----------------------------------------------------------------------------------------------------
def quantiles(rows, top, bottom, static):
    g = Graph(17)
    v = g.input("v", np.float32, (len(rows), rows.shape[1]) if static else ("N", "M"))
    g.outputs = [("q", quantile(g, v, top, bottom))]
    held = onnxruntime.InferenceSession(write_model(g).SerializeToString(), providers=["CPUExecutionProvider"])
    return held.run(None, {"v": rows})[0]


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 11, 301])
def test_quantile(n, static):
    rng = np.random.default_rng(n)
    rows = np.stack([rng.standard_normal(n), rng.integers(-2, 3, n), np.full(n, 0.7)]).astype(np.float32)
    for top, bottom in ((0, 1), (1, 1), (1, 3), (9, 10), (29, 30), (1, 2), (99, 100)):
        found = quantiles(rows, top, bottom, static)[:, 0]
        want = [at(row.astype(float), top, bottom) for row in rows]
        np.testing.assert_allclose(found, want, rtol=1e-6, atol=1e-7)
        if top * (n - 1) % bottom == 0:  # an entry itself, bit by bit
            np.testing.assert_array_equal(found, [np.sort(row)[top * (n - 1) // bottom] for row in rows])


@pytest.mark.parametrize(("q", "index", "n"), [(0.9, 9, 11), (0.7, 7, 11), (0.3, 30, 101), (1 / 3, 10, 31),
                                               (0.333333333333, 10, 31)])
def test_an_index_that_is_nearly_whole_is_whole(q, index, n):
    """0.7 * 10 is 7, whatever floats say."""
    share = Fraction(repr(q)).limit_denominator(LARGEST)
    rows = np.random.default_rng(0).standard_normal((1, n)).astype(np.float32)
    assert quantiles(rows, share.numerator, share.denominator, True)[0, 0] == np.sort(rows[0])[index]
