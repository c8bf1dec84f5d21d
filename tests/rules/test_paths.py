"""Integrated gradients and guided IG against float64 host loops, and what must hold of them on any model."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

pytest.importorskip("onnxruntime")
import graphattr
from graphattr.errors import GraphattrError, MethodError
from tests.rules import engine, walks, zoo
from tests.rules.test_methods import inner
from tests.unit.test_lookups import IDS, lookup
from tests.unit.tiny import array, mlp, model, node, renamed

QUADRATURES = ["gausslegendre", "riemann_left", "riemann_right", "riemann_middle", "riemann_trapezoid"]


def near(got, want, tolerance=1e-4):
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max() + 1e-12)


def found(c, method="integrated_gradients", **params):
    return engine.attribute(c.model, c.x, c.target, method, **params)["x"]


def smooth(opset=17):
    """x [N, 6] -> tanh -> [N, 3]."""
    nodes = [node("Gemm", "x w b", "h", "first"), node("Tanh", "h", "t", "tanh"), node("MatMul", "t v", "y", "second")]
    weights = {"w": array(6, 8), "b": array(8, seed=1), "v": array(8, 3, seed=2)}
    return model(nodes, {"x": ["N", 6]}, {"y": ["N", 3]}, weights, opset)


def smooth_gradient(x, target):
    """d y_target / d x of one sample of `smooth`, in float64."""
    w, b, v = (a.astype(float) for a in (array(6, 8), array(8, seed=1), array(8, 3, seed=2)))
    return w @ ((1 - np.tanh(x @ w + b) ** 2) * v[:, target])


def rows_of(c, n, seed=3):
    return np.random.default_rng(seed).standard_normal((n, *c.x.shape[1:])).astype(np.float32)


# -- against the host loops ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("quadrature", QUADRATURES)
@pytest.mark.parametrize("name", ["cnn", "mlp"])
def test_quadratures(name, quadrature):
    c = zoo.case(name)
    near(found(c, n_steps=5, quadrature=quadrature), walks.integrated(c, [0.0], 5, quadrature))


@pytest.mark.parametrize("base", ["gradient", "lrp.epsilon_plus", "guided_backprop", "gradient_x_input", "lrp.gamma"])
@pytest.mark.parametrize("name", ["cnn", "residual", "gated", "tokens", "squeeze_excite"])
def test_what_is_integrated(name, base):
    c = zoo.case(name)
    near(found(c, n_steps=3, base=base), walks.integrated(c, [0.0], 3, base=base))


def test_parameters_of_the_base():
    c = zoo.case("cnn")
    want = walks.integrated(c, [0.0], 3, base="lrp.epsilon", eps=0.1, seed="onehot")
    near(found(c, n_steps=3, base="lrp.epsilon", eps=0.1, seed="onehot"), want)


@pytest.mark.parametrize("base", ["gradient", "lrp.epsilon_plus"])
def test_references(base):
    c = zoo.case("cnn")
    channel, rows = [0.5, -0.25, 1.0], rows_of(c, 3)
    near(found(c, n_steps=3, base=base, baselines=0.5), walks.integrated(c, [0.5], 3, base=base))
    near(found(c, n_steps=3, base=base, baselines=channel), walks.integrated(c, [np.reshape(channel, (-1, 1, 1))], 3, base=base))
    near(found(c, n_steps=3, base=base, baselines=rows[0]), walks.integrated(c, rows[:1], 3, base=base))
    near(found(c, n_steps=3, base=base, baselines=rows[:1]), walks.integrated(c, rows[:1], 3, base=base))
    near(found(c, n_steps=3, base=base, baselines=rows), walks.integrated(c, rows, 3, base=base))
    blurred = walks.blur(c.x.astype(float), 1.3)
    near(found(c, n_steps=3, base=base, baselines="blur", sigma=1.3), walks.integrated(c, [blurred], 3, base=base))


def test_a_reference_for_each_sample():
    c, start = zoo.case("cnn"), rows_of(zoo.case("cnn"), 3)
    session = engine.session(c.model, "integrated_gradients", n_steps=3, baselines="input", delta=True)
    got = engine.run(session, c.x, target=c.target, x_baseline=start)
    near(got["x"], walks.integrated(c, [start], 3))
    change = walks.score(c, c.x) - walks.score(c, start)
    near(got["gemm8_delta"], change - got["x"].sum((1, 2, 3)), 1e-5)


@pytest.mark.parametrize("name", ["cnn", "gated", "volume"])
def test_a_blurred_reference_along_every_spatial_axis(name):
    c = zoo.case(name)
    want = walks.explained(c, c.x) * (c.x - walks.blur(c.x.astype(float), 0.8))
    near(found(c, "gradient_x_input", baselines="blur", sigma=0.8), want)


def test_several_references_of_one_pass():
    """The mean, for the map and for what it should add up to; of methods that compare within the pass, too."""
    c, rows = zoo.case("residual"), rows_of(zoo.case("residual"), 4)
    got = engine.attribute(c.model, c.x, c.target, "gradient_x_input", baselines=rows, delta=True)
    want = walks.explained(c, c.x) * (c.x - rows.mean(0))
    near(got["x"], want)
    change = walks.score(c, c.x) - np.mean([walks.score(c, np.repeat(r[None], 3, 0)) for r in rows], 0)
    delta = next(v for k, v in got.items() if k.endswith("_delta"))
    near(delta, change - want.sum((1, 2, 3)), 1e-4)


@pytest.mark.parametrize("method", ["deeplift.rescale", "deeplift.reveal_cancel", "occlusion"])
def test_several_references_of_a_method_that_compares_inside(method):
    c, rows = zoo.case("cnn"), rows_of(zoo.case("cnn"), 3)
    many = engine.attribute(c.model, c.x, c.target, method, baselines=rows)["x"]
    near(many, np.mean([found(c, method, baselines=r) for r in rows], 0), 1e-5)
    with pytest.raises(GraphattrError, match="a ledger is of one"):
        graphattr.convert(c.model, method, baselines=rows, ledger=True)


@pytest.mark.parametrize("rectify", ["none", "integral", "steps"])
@pytest.mark.parametrize("n", [1, 7])
def test_guided_path(rectify, n):
    x, target, rows = array(3, 6, seed=7), np.array([0, 2, 1]), array(2, 6, seed=8)
    for start, held in ((0.5, [np.full(6, 0.5)]), (rows, rows), (rows[1], rows[1:])):
        got = engine.attribute(smooth(), x, target, "guided_ig", n_steps=n, rectify=rectify, baselines=start)["x"]
        want = [
            np.mean([walks.guided(functools.partial(smooth_gradient, target=t), row, s, n, "steps" if rectify == "steps" else "")
                     for s in held], 0)
            for row, t in zip(x, target, strict=True)
        ]
        near(got, np.maximum(want, 0) if rectify == "integral" else np.array(want))


def test_guided_path_of_a_net_with_kinks():
    c = zoo.case("mlp")
    want = [
        walks.guided(lambda p, i=i: walks.explained(c, np.repeat(p[None], 3, 0))[i], c.x[i], np.zeros_like(c.x[i]), 9)
        for i in range(3)
    ]
    near(found(c, "guided_ig", n_steps=9), np.array(want))


# -- what the attributions add up to ------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["cnn", "residual", "gated", "mlp", "squeeze_excite", "tokens"])
def test_the_gap_vanishes(name):
    c = zoo.case(name)
    change = walks.score(c, c.x) - walks.score(c, c.x * 0)
    sums = {n: found(c, n_steps=n).reshape(3, -1).sum(1) for n in (2, 300)}
    assert np.abs(sums[300] - change).max() < 3e-3 * np.abs(change).max()
    assert np.abs(sums[300] - change).max() < np.abs(sums[2] - change).max()
    got = engine.attribute(c.model, c.x, c.target, "integrated_gradients", n_steps=2, delta=True)
    delta = next(v for k, v in got.items() if k.endswith("_delta"))
    np.testing.assert_allclose(delta, change - sums[2], atol=1e-5 * np.abs(change).max())


def test_the_gap_of_the_guided_path_vanishes_with_one_over_n():
    x, target = array(3, 6, seed=7), [0, 2, 1]
    made = [engine.attribute(smooth(), x, target, "guided_ig", n_steps=n, delta=True) for n in (50, 500, 5000)]
    gaps = [np.abs(a["y_delta"]).max() for a in made]
    assert gaps[1] < 0.15 * gaps[0]
    assert gaps[2] < 0.15 * gaps[1]


def test_gauss_legendre_is_exact_for_polynomials():
    """y = w x^4: the gradient is of degree 3 = 2 n - 1 with two points."""
    nodes = [node("Mul", "x x", "a"), node("Mul", "a a", "q"), node("MatMul", "q w", "y")]
    quartic = model(nodes, {"x": ["N", 4]}, {"y": ["N", 3]}, {"w": array(4, 3)})
    x = array(2, 4, seed=5)
    got = engine.attribute(quartic, x, [0, 2], "integrated_gradients", n_steps=2)["x"]
    near(got, x.astype(float) ** 4 * array(4, 3).T[[0, 2]], 1e-6)
    rough = engine.attribute(quartic, x, [0, 2], "integrated_gradients", n_steps=2, quadrature="riemann_middle")["x"]
    assert np.abs(rough - got).max() > 1e-2 * np.abs(got).max()


# -- on any model -------------------------------------------------------------------------------------------------
CASES = [
    ("integrated_gradients", {"n_steps": 4}),
    ("integrated_gradients", {"n_steps": 2, "base": "lrp.epsilon_plus"}),
    ("integrated_gradients", {"n_steps": 2, "baselines": "blur", "sigma": 1.0}),
    ("guided_ig", {"n_steps": 5}),
    ("smoothgrad", {"n_samples": 3, "base": "integrated_gradients", "n_steps": 3, "random_state": 1}),
]


@pytest.mark.parametrize(("method", "params"), CASES)
@pytest.mark.parametrize("name", ["cnn", "gated"])
def test_a_batch_is_its_samples_one_by_one(name, method, params):
    c = zoo.case(name)
    session = engine.session(c.model, method, **params)
    whole = engine.run(session, c.x, target=c.target)["x"]
    single = [engine.run(session, c.x[i : i + 1], target=c.target[i : i + 1])["x"][0] for i in range(3)]
    near(whole, np.array(single), 1e-6)
    near(engine.run(session, c.x[::-1], target=c.target[::-1])["x"][::-1], whole, 1e-6)


@pytest.mark.parametrize(("method", "params"), CASES)
def test_symbolic_sizes(method, params):
    c = zoo.case("cnn")
    free = onnx.ModelProto.FromString(c.model.SerializeToString())
    for dim, name in zip(free.graph.input[0].type.tensor_type.shape.dim[2:], "HW", strict=True):
        dim.dim_param = name
    session = engine.session(free, method, **params)
    near(engine.run(session, c.x, target=c.target)["x"], found(c, method, **params), 1e-5)
    larger = np.repeat(c.x, 2, -1)
    assert engine.run(session, larger, target=c.target)["x"].shape == larger.shape


@pytest.mark.parametrize(("method", "params"), CASES)
def test_inner_tensors(method, params):
    """Each tensor has its own path: what one gets does not depend on what else is asked for."""
    c = zoo.case("residual")
    both = engine.attribute(c.model, c.x, c.target, method, wrt=["x", inner(c)], **params)
    for name in ("x", inner(c)):
        near(both[name], engine.attribute(c.model, c.x, c.target, method, wrt=[name], **params)[name], 1e-5)


def test_inner_tensor_against_the_same_tensor_as_an_input():
    got = engine.attribute(mlp(), array(2, 4, seed=6), [1, 2], "integrated_gradients", wrt=["h"], n_steps=4)["h"]
    tail = model(mlp().graph.node[1:], {"h": ["N", 5]}, {"y": ["N", 3]}, {"w2": array(5, 3, seed=2), "b2": array(3, seed=3)})
    h = array(2, 4, seed=6) @ array(4, 5) + array(5, seed=1)
    explainer = graphattr.Explainer(graphattr.convert(tail, "integrated_gradients", "input", n_steps=4))
    near(got, explainer({"h": h}, target=[1, 2]).scores["h"].astype(float), 1e-5)


def two_inputs():
    nodes = [node("Concat", "a b", "x", "join", axis=1), *smooth().graph.node]
    weights = {"w": array(6, 8), "b_": array(8, seed=1), "v": array(8, 3, seed=2)}
    nodes[1] = node("Gemm", "x w b_", "h", "first")
    return model(nodes, {"a": ["N", 2], "b": ["N", 4]}, {"y": ["N", 3]}, weights)


@pytest.mark.parametrize("method", ["integrated_gradients", "guided_ig"])
def test_several_inputs_move_together(method):
    x, target = array(3, 6, seed=7), [0, 2, 1]
    whole = engine.attribute(smooth(), x, target, method, n_steps=6)["x"]
    explainer = graphattr.Explainer(graphattr.convert(two_inputs(), method, "input", n_steps=6, delta=True))
    parts = explainer({"a": x[:, :2], "b": x[:, 2:]}, target=target)
    near(np.concatenate([parts.scores["a"], parts.scores["b"]], 1).astype(float), whole, 1e-5)
    same = engine.attribute(smooth(), x, target, method, n_steps=6, delta=True)["y_delta"]
    np.testing.assert_allclose(parts.delta, same, atol=1e-6 * np.abs(whole).max() * 6)


def test_one_feature():
    nodes = [node("Mul", "x x", "q"), node("MatMul", "q w", "y")]
    square = model(nodes, {"x": ["N", 1]}, {"y": ["N", 2]}, {"w": array(1, 2)})
    x = np.array([[2.0], [-1.0]], np.float32)
    for method, n in (("integrated_gradients", 1), ("guided_ig", 2000)):
        near(engine.attribute(square, x, [0, 1], method, n_steps=n)["x"], x**2 * array(1, 2).T, 1e-3)


def test_half_precision():
    """As the float32 model whose weights and inputs are those of the half-precision one."""
    c = zoo.case("cnn")
    half, full = (onnx.ModelProto.FromString(c.model.SerializeToString()) for _ in range(2))
    for t, wide in zip(half.graph.initializer, full.graph.initializer, strict=True):
        if t.data_type == TensorProto.FLOAT:
            rounded = onnx.numpy_helper.to_array(t).astype(np.float16)
            t.CopyFrom(onnx.numpy_helper.from_array(rounded, t.name))
            wide.CopyFrom(onnx.numpy_helper.from_array(rounded.astype(np.float32), t.name))
    for v in [*half.graph.input, *half.graph.output]:
        v.type.tensor_type.elem_type = TensorProto.FLOAT16
    del half.graph.value_info[:]
    x = c.x.astype(np.float16)
    for method, params in CASES:
        explainer = graphattr.Explainer(graphattr.convert(half, method, "input", **params))
        got = explainer({"x": x}, target=c.target).scores["x"]
        assert got.dtype == np.float32
        near(got.astype(float), engine.attribute(full, x.astype(np.float32), c.target, method, **params)["x"], 2e-3)


@pytest.mark.parametrize("method", ["integrated_gradients", "guided_ig"])
def test_tokens(method):
    """The rows that ids fetch move from the reference to where they are; ids get their sums."""
    explainer = graphattr.Explainer(graphattr.convert(lookup(), method, n_steps=300, delta=True))
    a = explainer({"ids": IDS})
    assert a.scores["ids"].shape == IDS.shape
    assert np.abs(a.delta).max() < 2e-2 * np.abs(a.scores["ids"]).sum(1).max()


def test_the_argmax_is_taken_once_where_the_input_is():
    """On the way the largest output is another one."""
    lines = model([node("Gemm", "x w b", "y")], {"x": ["N", 1]}, {"y": ["N", 2]},
                  {"w": np.array([[1.0, 2.0]], np.float32), "b": np.array([1.0, 0.0], np.float32)})
    for method in ("integrated_gradients", "guided_ig"):
        a = graphattr.explain(lines, np.array([[3.0], [0.5]], np.float32), method=method, n_steps=4)
        assert a.target.tolist() == [1, 0]
        np.testing.assert_allclose(a.scores["x"], [[6.0], [0.5]], rtol=1e-5)


def test_a_seed_of_the_callers():
    c = zoo.case("mlp")
    seed = np.random.default_rng(0).standard_normal((3, 4))
    explainer = graphattr.Explainer(graphattr.convert(c.model, "integrated_gradients", "seed", n_steps=3))
    got = explainer({"x": c.x, "seed": seed.astype(np.float32)}).scores["x"]
    one = [zoo.dataclasses.replace(c, target=np.full(3, k)) for k in range(4)]
    near(got.astype(float), sum(seed[:, k, None] * walks.integrated(one[k], [0.0], 3) for k in range(4)))


def test_two_methods_in_one_file():
    c = zoo.case("cnn")
    made = graphattr.convert(c.model, ["integrated_gradients", "guided_ig", "lrp.epsilon"], "input", n_steps=3, delta=True)
    a = graphattr.Explainer(made)({"x": c.x}, target=c.target)
    for method, params in (("integrated_gradients", {"n_steps": 3}), ("guided_ig", {"n_steps": 3}), ("lrp.epsilon", {})):
        near(a.scores[f"x/{method}"].astype(float), found(c, method, **params), 1e-5)


# -- what is written down, and what is refused --------------------------------------------------------------------
def test_the_manifest_and_the_catalogue():
    made = graphattr.convert(mlp(), "integrated_gradients", n_steps=3, base="lrp.epsilon", eps=0.1)
    assert made.manifest["params"] == {"n_steps": 3, "base": "lrp.epsilon", "eps": 0.1}
    used = made.manifest["parameters"]["integrated_gradients"]
    assert (used["n_steps"], used["quadrature"], used["eps"], used["seed"]) == (3, "gausslegendre", 0.1, "logit")
    assert {e["rule"] for e in made.manifest["layers"]["integrated_gradients"]} == {"lrp.epsilon", "lrp.pass"}
    stored = {p.key: p.value for p in made.model.metadata_props}
    assert json.loads(stored["graphattr.params"]) == made.manifest["params"]
    table = {m["name"]: m["parameters"] for m in graphattr.methods()}
    assert {"base", "baselines", "sigma", "n_steps", "quadrature", "seed"} <= set(table["integrated_gradients"])
    assert table["integrated_gradients"]["n_steps"]["default"] == 50
    assert {"baselines", "sigma", "n_steps", "rectify"} <= set(table["guided_ig"])


REFUSED = [
    ("integrated_gradients", {"n_steps": 0}, "n_steps must be at least 1"),
    ("integrated_gradients", {"n_steps": 1, "quadrature": "riemann_trapezoid"}, "at least 2 with quadrature"),
    ("integrated_gradients", {"n_steps": 2.5}, "'n_steps' must be an integer"),
    ("integrated_gradients", {"quadrature": "simpson"}, "one of 'gausslegendre'"),
    ("integrated_gradients", {"base": "lrp.epsilom"}, "did you mean 'lrp.epsilon'"),
    ("integrated_gradients", {"base": "lrp.epsilon", "epz": 1.0}, "no parameter 'epz'; did you mean 'eps'"),
    ("integrated_gradients", {"base": "lrp.epsilon", "eps": "small"}, "'eps' must be a number"),
    ("integrated_gradients", {"eps": 1.0}, "no parameter 'eps'"),
    ("integrated_gradients", {"base": "pattern.attribution"}, "fit"),
    ("integrated_gradients", {"baselines": "blurred"}, "'baselines' must be"),
    ("integrated_gradients", {"baselines": "blur"}, "axes behind the second"),
    ("integrated_gradients", {"baselines": [0.0, 1.0]}, "does not fit"),
    ("integrated_gradients", {"baselines": np.zeros((3, 5))}, "does not fit"),
    ("integrated_gradients", {"ledger": True}, "a ledger is of one"),
    ("integrated_gradients", {"base": "lrp.contrastive", "target": "seed"}, "makes its own 2 seeds"),
    ("integrated_gradients", {"seed": "logit", "target": "seed"}, "seed"),
    ("guided_ig", {"n_steps": 0}, "at least 1"),
    ("guided_ig", {"rectify": "all"}, "one of 'none'"),
    ("guided_ig", {"base": "lrp.epsilon"}, "no parameter 'base'"),
]


@pytest.mark.parametrize(("method", "params", "words"), REFUSED)
def test_refused(method, params, words):
    with pytest.raises(GraphattrError, match=words):
        graphattr.convert(mlp(), method, **params)


@pytest.mark.parametrize(("method", "params", "name"), [
    ("integrated_gradients", {"baselines": "input"}, "x_baseline"), ("smoothgrad", {"noise": "input"}, "x_noise")])
def test_a_name_that_is_taken(method, params, name):
    with pytest.raises(GraphattrError, match=name):
        graphattr.convert(renamed(mlp(), h=name), method, **params)


def test_a_blur_needs_a_width():
    with pytest.raises(MethodError, match="'sigma'"):
        graphattr.convert(zoo.case("cnn").model, "integrated_gradients", baselines="blur", sigma=0.0)


def test_a_method_that_asks_itself(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(f'procedure = "smoothgrad"\n[with]\nbase = "{path}"\n', encoding="utf-8")
    with pytest.raises(MethodError, match="asks itself"):
        graphattr.convert(mlp(), str(path))


# -- memory -------------------------------------------------------------------------------------------------------
PEAK = """
import sys
import numpy as np, onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads, options.log_severity_level = 1, 3
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"x": np.ones((8, 3, 96, 96), np.float32)})
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def wide():
    nodes = [node("Conv", "x w", "c", "first", pads=[1] * 4), node("Relu", "c", "r", "relu"),
             node("Conv", "r v", "d", "second", pads=[1] * 4), node("Relu", "d", "s", "relu2"),
             node("GlobalAveragePool", "s", "p"), node("Flatten", "p", "f"), node("Gemm", "f u", "y", "head")]
    weights = {"w": array(16, 3, 3, 3), "v": array(16, 16, 3, 3, seed=1), "u": array(16, 3, seed=2)}
    return model(nodes, {"x": ["N", 3, 96, 96]}, {"y": ["N", 3]}, weights)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process is read from /proc")
@pytest.mark.parametrize(("method", "steps"), [("integrated_gradients", "n_steps"), ("guided_ig", "n_steps"),
                                               ("smoothgrad", "n_samples"), ("vargrad", "n_samples")])
def test_memory_does_not_grow_with_the_steps(method, steps, tmp_path):
    peaks = []
    for n in (4, 40):
        path = graphattr.convert(wide(), method, 1, **{steps: n}).save(tmp_path / f"{n}.onnx")
        done = subprocess.run([sys.executable, "-c", PEAK, str(path)], capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout))
    assert peaks[1] < 1.05 * peaks[0], peaks  # maps of all steps would add 32 MB
