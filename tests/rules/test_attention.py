"""Norms, softmax, products of two data tensors and a whole attention block, against slow float64 replicas of their formulas.

Every model is explained twice: in float64 by the ONNX reference, which must agree closely, and in float32 by ONNX Runtime.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tests.rules import oracles as o
from tests.unit.tiny import model, node

pytest.importorskip("onnxruntime")
import graphattr
from tests.rules import engine
from tests.rules.test_mutation import mutated

EPS = (1e-6, 1e-2)


class Erf(OpRun):
    """ONNX's own is good to 1e-7 only."""

    def _run(self, x):
        return (np.vectorize(math.erf)(x),)


def draw(*shape, seed=0, away=0.0):
    """Seeded values that float32 holds exactly; `away` moves them from 0."""
    v = np.random.default_rng([seed, *shape]).standard_normal(shape)
    return (v + away * np.where(v < 0, -1, 1)).astype(np.float32).astype(float)


def ints(*values):
    return np.array(values, np.int64)


def written(nodes, inputs, weights, r, dtype, opset, symbols):
    """The model in that dtype; `symbols` names axes per input and for y."""
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    shapes = {k: (elem, (symbols or {}).get(k, v.shape)) for k, v in {**inputs, "y": r}.items()}
    cast = {k: v.astype(dtype) if v.dtype.kind == "f" else v for k, v in weights.items()}
    return model(nodes, {k: shapes[k] for k in inputs}, {"y": shapes["y"]}, cast, opset, ir=10)


def explained(proto, inputs, r, dtype, wrt, method="lrp.attention", **params):
    made = graphattr.convert(proto, method=method, target="seed", wrt=wrt, **params).model
    feeds = {k: v.astype(dtype) for k, v in inputs.items()}
    feeds["seed"] = r.astype(np.float32 if dtype is np.float16 and "precision" not in params else dtype)
    if dtype is np.float64:
        return dict(zip((f"{v.name}" for v in made.graph.output), ReferenceEvaluator(made, new_ops=[Erf]).run(None, feeds)))
    session = engine.onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip((v.name for v in session.get_outputs()), session.run(None, feeds)))


def close(found, want, tolerance):
    for name, value in want.items():
        got = found[f"{name}_attribution"]
        assert got.shape == value.shape, (name, got.shape, value.shape)
        np.testing.assert_allclose(got, value, rtol=0, atol=tolerance * np.abs(value).max() + 1e-12, err_msg=name)


def check(nodes, inputs, weights, r, want, *, opset=17, symbols=None, exact=True, **how):
    """The engine sends the wanted relevance to the tensors named in `want`. exact=False where ONNX's reference is wrong."""
    for dtype, tolerance in ((np.float64, 1e-8), (np.float32, 3e-4))[not exact:]:
        proto = written(nodes, inputs, weights, r, dtype, opset, symbols)
        close(explained(proto, inputs, r, dtype, list(want), **how), want, tolerance)


# -- normalisations -----------------------------------------------------------------------------------------------
def frozen(x, scale, shift, epsilon, r, eps):
    """Rows of x, each sent through its own dense matrix scale/s (1 - 1/n) and the bias shift; then the epsilon rule."""
    found = []
    for row, gain, offset, arriving in zip(x, scale, shift, r, strict=True):
        n = len(row)
        w = (gain / math.sqrt(row.var() + epsilon))[:, None] * (np.eye(n) - 1 / n)
        found.append(o.epsilon(row[None], w, offset, arriving[None], eps=eps)[0])
    return np.array(found)


def by_rows(x, scale, shift, epsilon, r, eps, rows):
    scale, shift = np.broadcast_to(scale, x.shape), np.broadcast_to(shift, x.shape)
    return frozen(*(v.reshape(rows, -1) for v in (x, scale, shift)), epsilon, r.reshape(rows, -1), eps).reshape(x.shape)


EXACT = {"stash_type": 11}  # statistics in float64
NORMS = {  # op, opset, attributes, shape of x, shape of scale, what scale is to x, rows that are normalised
    "layer": ("LayerNormalization", 17, {}, (2, 3, 5), (5,), (5,), 6),
    "layer, axis 1": ("LayerNormalization", 17, {"axis": 1, "epsilon": 0.125}, (2, 3, 5), (3, 5), (3, 5), 2),
    "layer, axis -2": ("LayerNormalization", 17, {"axis": -2}, (2, 4, 3, 2), (3, 2), (3, 2), 8),
    "layer, scale of one axis": ("LayerNormalization", 17, {"axis": 1}, (2, 3, 5), (5,), (5,), 2),
    "instance": ("InstanceNormalization", 17, {"epsilon": 0.125}, (2, 3, 2, 4), (3,), (3, 1, 1), 6),
    "instance of sequences": ("InstanceNormalization", 22, {}, (2, 3, 6), (3,), (3, 1), 6),
    "group": ("GroupNormalization", 21, {"num_groups": 2, **EXACT}, (2, 4, 3, 2), (4,), (4, 1, 1), 4),
    "one group": ("GroupNormalization", 21, {"num_groups": 1, "epsilon": 0.125, **EXACT}, (2, 4, 3), (4,), (4, 1), 2),
    "a channel a group": ("GroupNormalization", 21, {"num_groups": 4, **EXACT}, (2, 4, 3), (4,), (4, 1), 8),
    "group, scale per group": ("GroupNormalization", 18, {"num_groups": 2}, (2, 6, 3), (2,), (2, 1, 1), 4),
}


def norm_case(name, eps):
    op, opset, attrs, shape, held, against, rows = NORMS[name]
    x, scale, shift, r = draw(*shape), draw(*held, seed=1, away=0.3), draw(*held, seed=2, away=0.2), draw(*shape, seed=3)
    wide = x.reshape(2, held[0], -1, *shape[2:]) if name.endswith("per group") else x
    parts = (wide, scale.reshape(against), shift.reshape(against), attrs.get("epsilon", 1e-5), r.reshape(wide.shape))
    want = by_rows(*parts, eps, rows)
    nodes = [node(op, "x scale shift", "y", "norm", **attrs)]
    return nodes, {"x": x}, {"scale": scale, "shift": shift}, r, {"x": want.reshape(shape)}, opset


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("name", NORMS)
def test_normalisation(name, eps):
    *case, opset = norm_case(name, eps)
    check(*case, opset=opset, eps=eps)


@pytest.mark.parametrize("name", NORMS)
def test_normalisation_as_identity(name):
    nodes, inputs, weights, r, _, opset = norm_case(name, 1e-6)
    check(nodes, inputs, weights, r, {"x": r}, opset=opset, layernorm="identity")


def test_layer_norm_without_bias():
    x, scale, r = draw(2, 3, 5), draw(5, seed=1, away=0.3), draw(2, 3, 5, seed=3)
    want = by_rows(x, scale, 0.0, 1e-5, r, 1e-6, 6)
    check([node("LayerNormalization", "x scale", "y")], {"x": x}, {"scale": scale}, r, {"x": want})


@pytest.mark.parametrize("eps", EPS)
def test_mean_variance_normalisation(eps):
    x, r = draw(2, 3, 2, 4), draw(2, 3, 2, 4, seed=3)
    rows = [v.transpose(1, 0, 2, 3).reshape(3, -1) for v in (x, r)]
    want = frozen(rows[0], np.ones((3, 16)), np.zeros((3, 16)), 0.0, rows[1], eps)
    want = want.reshape(3, 2, 2, 4).transpose(1, 0, 2, 3)
    check([node("MeanVarianceNormalization", "x", "y")], {"x": x}, {}, r, {"x": want}, eps=eps, exact=False)


@pytest.mark.parametrize(("op", "opset", "attrs", "weights"), [
    ("RMSNormalization", 23, {"epsilon": 0.125}, {"scale": draw(5, seed=1, away=0.3)}),
    ("RMSNormalization", 23, {"axis": 1}, {"scale": draw(3, 5, seed=1, away=0.3)}),
    ("LpNormalization", 17, {}, {}), ("LpNormalization", 17, {"p": 1, "axis": 1}, {})])
@pytest.mark.parametrize("eps", EPS)
def test_what_only_divides_is_the_identity(op, opset, attrs, weights, eps):
    """R_x = R up to eps: all of R where y is large, R y / stab(y) in general."""
    x, r = draw(2, 3, 5, away=0.1), draw(2, 3, 5, seed=3)
    if op[0] == "R":
        axes = tuple(range(attrs.get("axis", -1) % 3, 3))
        y = weights["scale"] * x / np.sqrt((x**2).mean(axes, keepdims=True) + attrs.get("epsilon", 1e-5))
    else:
        y = x / np.linalg.norm(x, ord=attrs.get("p", 2), axis=attrs.get("axis", -1), keepdims=True)
    want = {"x": y * o.divide(r, y, eps)}
    assert np.abs(want["x"] - r).max() < 50 * eps
    nodes, exact = [node(op, " ".join(["x", *weights]), "y", **attrs)], attrs.get("p") != 1
    check(nodes, {"x": x}, weights, r, want, opset=opset, eps=eps, exact=exact)
    check(nodes, {"x": x}, weights, r, {"x": r}, opset=opset, layernorm="identity", exact=exact)


def test_local_response_normalisation_is_the_identity():
    x, r = draw(2, 5, 2, 3, away=0.3), draw(2, 5, 2, 3, seed=3)
    proto = written([node("LRN", "x", "y", size=3, alpha=0.5)], {"x": x}, {}, r, np.float32, 17, None)
    close(explained(proto, {"x": x}, r, np.float32, ["x"]), {"x": r}, 1e-4)


@pytest.mark.parametrize("name", ["layer", "group"])
def test_normalisation_in_half_precision(name):
    """Squares of a few hundred are too large for float16: statistics are formed in float32."""
    nodes, inputs, weights, r, _, opset = norm_case(name, 1e-6)
    want = norm_case(name, 1e-6)[4]
    inputs = {"x": 300 * inputs["x"]}
    proto = written(nodes, inputs, weights, r, np.float16, opset, None)
    found = explained(proto, inputs, r, np.float16, ["x"], precision="model")["x_attribution"].astype(float)
    assert np.abs(found - want["x"]).max() < 0.05 * np.abs(want["x"]).max()


def test_a_scale_that_is_data_counts_as_a_constant():
    x, scale, r = draw(2, 3, 5), draw(5, seed=1, away=0.3), draw(2, 3, 5, seed=3)
    want = {"x": by_rows(x, scale, 0.0, 1e-5, r, 1e-6, 6), "scale": np.zeros(5)}
    check([node("LayerNormalization", "x scale", "y")], {"x": x, "scale": scale}, {}, r, want)


SPREAD = [node("Pow", "d two", "d2"), node("ReduceMean", "d2", "var", axes=[-1]), node("Add", "var e", "ve"),
          node("Sqrt", "ve", "sd")]
SMALL = {"two": np.array(2.0), "e": np.array(1e-5)}


def test_layer_norm_written_out():
    """The divisor counts as a constant, so the parts do what the whole does, up to one eps for each."""
    x, scale, shift, r = draw(2, 3, 5), draw(5, seed=1, away=0.3), draw(5, seed=2, away=0.2), draw(2, 3, 5, seed=3)
    nodes = [node("ReduceMean", "x", "mean", axes=[-1]), node("Sub", "x mean", "d"), *SPREAD, node("Div", "d sd", "z"),
             node("Mul", "z scale", "zs"), node("Add", "zs shift", "y")]
    want = by_rows(x, scale, shift, 1e-5, r, 1e-12, 6)
    check(nodes, {"x": x}, SMALL | {"scale": scale, "shift": shift}, r, {"x": want}, eps=1e-12)


@pytest.mark.parametrize("end", [
    [node("Div", "d sd", "z")], [node("Reciprocal", "sd", "inverse"), node("Mul", "d inverse", "z")],
    [node("Div", "one sd", "inverse"), node("Mul", "inverse d", "z")]], ids=["over", "reciprocal", "one over"])
def test_rms_norm_written_out(end):
    x, r = draw(2, 3, 5, away=0.1), draw(2, 3, 5, seed=3)
    nodes = [node("Identity", "x", "d"), *SPREAD, *end, node("Mul", "z scale", "y")]
    weights = SMALL | {"one": np.array(1.0), "scale": draw(5, seed=1, away=0.3)}
    for dtype in (np.float64, np.float32):  # the identity, up to the stabiliser of lrp.norm
        close(explained(written(nodes, {"x": x}, weights, r, dtype, 17, None), {"x": x}, r, dtype, ["x"]), {"x": r}, 1e-4)


# -- softmax ------------------------------------------------------------------------------------------------------
def softmax(u):
    e = [math.exp(v - max(u)) for v in u]
    return np.array([v / sum(e) for v in e])


def softmax_relevance(u, r, axis=-1):
    """u_i (R_i - s_i sum R) along an axis, one row at a time; 0 where u is -inf."""
    rows, arriving = np.moveaxis(u, axis, -1), np.moveaxis(r, axis, -1)
    found = np.zeros(rows.shape)
    for at in np.ndindex(*rows.shape[:-1]):
        s, total = softmax(rows[at]), sum(arriving[at])
        for i, v in enumerate(rows[at]):
            found[(*at, i)] = 0.0 if v == -np.inf else v * (arriving[(*at, i)] - s[i] * total)
    return np.moveaxis(found, -1, axis)


def inner_softmax(x, r, want, axis, **how):
    """Softmax is not the last node, or it would be stripped."""
    check([node("Softmax", "x", "s", axis=axis), node("Mul", "s k", "y")], {"x": x}, {"k": np.array(0.5)}, r, {"x": want}, **how)


@pytest.mark.parametrize("axis", [-1, 1, -2])
@pytest.mark.parametrize("eps", EPS)
def test_softmax(axis, eps):
    x, r = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    inner_softmax(x, r, softmax_relevance(x, r, axis), axis, eps=eps)


@pytest.mark.parametrize("low", [-np.inf, -3e4, -120.0, -95.0])
def test_softmax_with_masked_entries(low):
    """Probabilities that are 0, and such that are next to it; the last row has none."""
    x, r = draw(2, 3, 4), draw(2, 3, 4, seed=1)
    x[:, 0, 2] = x[:, 1, :3] = low
    inner_softmax(x, r, softmax_relevance(x, r), -1)


# -- products -----------------------------------------------------------------------------------------------------
def product(equation, xs, r, eps, constant=None):
    """Relevance of each factor of an Einsum, term by term; axes of size 1 broadcast."""
    *terms, out = equation.replace("->", ",").split(",")
    size = {c: max(x.shape[i] for t, x in zip(terms, xs) for i, a in enumerate(t) if a == c) for c in "".join(terms)}

    def at(letters, x, index):
        return tuple(index[c] % x.shape[i] for i, c in enumerate(letters))

    indices = [dict(zip(size, v)) for v in itertools.product(*map(range, size.values()))]
    values = [math.prod(x[at(t, x, i)] for t, x in zip(terms, xs)) for i in indices]
    z = np.zeros([size[c] for c in out])
    for index, value in zip(indices, values):
        z[at(out, z, index)] += value
    q = o.divide(r, (len(xs) - (constant is not None)) * z, eps)
    found = [np.zeros(x.shape) for x in xs]
    for index, value in zip(indices, values):
        for k, (t, x) in enumerate(zip(terms, xs)):
            found[k][at(t, x, index)] += value * q[at(out, q, index)] * (k != constant)
    return found


PRODUCTS = {
    "matrices": ("MatMul", "bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
    "heads": ("MatMul", "bhij,bhjk->bhik", (2, 2, 3, 4), (2, 2, 4, 3)),
    "one matrix for all samples": ("MatMul", "ij,bjk->bik", (3, 4), (2, 4, 3)),
    "one head for all": ("MatMul", "bhij,bhjk->bhik", (2, 1, 3, 4), (2, 2, 4, 3)),
    "one head on the right": ("MatMul", "bhij,bhjk->bhik", (2, 3, 2, 4), (2, 1, 4, 3)),
    "a vector on the right": ("MatMul", "bij,j->bi", (2, 3, 4), (4,)),
    "a vector on the left": ("MatMul", "j,bjk->bk", (4,), (2, 4, 3)),
    "scores": ("Einsum", "bhid,bhjd->bhij", (2, 2, 3, 4), (2, 2, 5, 4)),
    "inner": ("Einsum", "bij,bij->b", (2, 3, 4), (2, 3, 4)),
    "outer": ("Einsum", "bi,bj->bij", (2, 3), (2, 4)),
    "turned": ("Einsum", "bij,kbj->kib", (2, 3, 4), (3, 2, 4)),
}


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_product_of_two_data_tensors(name, eps):
    op, equation, *shapes = PRODUCTS[name]
    a, b = draw(*shapes[0]), draw(*shapes[1], seed=1)
    r = draw(*np.einsum(equation, a, b).shape, seed=2) if 1 not in a.shape + b.shape else draw(*(a @ b).shape, seed=2)
    want = dict(zip("ab", product(equation, [a, b], r, eps)))
    if eps == 1e-6:
        np.testing.assert_allclose(want["a"].sum(), want["b"].sum(), rtol=1e-3)
    check([node(op, "a b", "y", **({"equation": equation} if op == "Einsum" else {}))], {"a": a, "b": b}, {}, r, want, eps=eps)


def test_a_tensor_times_itself_gets_both_shares():
    x, r = draw(2, 4, 4), draw(2, 4, 4, seed=1)
    want = sum(product("bij,bjk->bik", [x, x], r, 1e-6))
    check([node("MatMul", "x x", "y")], {"x": x}, {}, r, {"x": want})


@pytest.mark.parametrize("eps", EPS)
def test_einsum_of_any_number_of_factors(eps):
    a, b, c, w = draw(2, 3, 4), draw(2, 4, 3, seed=1), draw(3, 2, seed=2), draw(3, 5, seed=3)
    r = draw(2, 3, 2, seed=4)
    want = dict(zip("abc", product("bij,bjk,kl->bil", [a, b, c], r, eps)))
    check([node("Einsum", "a b c", "y", equation="bij,bjk,kl->bil")], {"a": a, "b": b, "c": c}, {}, r, want, eps=eps)
    fused = np.einsum("bjk,kl->bjl", b, w)
    r = draw(2, 3, 5, seed=5)
    first, second = product("bij,bjl->bil", [a, fused], r, eps)
    z = np.einsum("bij,bjl->bil", a, fused)
    second = np.einsum("bjk,kl,bij,bil->bjk", b, w, a, o.divide(r, 2 * z, eps))
    nodes = [node("Einsum", "a b w", "y", equation="bij,bjk,kl->bil")]
    check(nodes, {"a": a, "b": b}, {"w": w}, r, {"a": first, "b": second}, eps=eps)
    check([node("Einsum", "a", "y", equation="bij->bji")], {"a": a}, {}, r := draw(2, 4, 3, seed=6),
          {"a": a * o.divide(r.transpose(0, 2, 1), a, eps)}, eps=eps)


@pytest.mark.parametrize("eps", EPS)
def test_gemm_of_two_data_tensors(eps):
    """Its constant summand takes its part of the relevance."""
    a, b, c, r = draw(3, 4), draw(5, 4, seed=1), draw(5, seed=2), draw(3, 5, seed=3)
    z = 0.5 * a @ b.T + 2 * c
    q = 0.5 * o.divide(r, 2 * z, eps)
    want = {"a": a * (q @ b), "b": b * (q.T @ a)}
    check([node("Gemm", "a b c", "y", alpha=0.5, beta=2.0, transB=1)], {"a": a, "b": b}, {"c": c}, r, want, eps=eps)


@pytest.mark.parametrize(("one", "two"), [((2, 3, 4), (2, 3, 4)), ((2, 3, 4), (2, 1, 4)), ((2, 1, 4), (2, 3, 1))])
def test_quotient_of_two_data_tensors(one, two):
    """The divisor counts as a constant; where the dividend is broadcast its shares add up."""
    a, b = draw(*one), draw(*two, seed=1, away=0.5)
    r = draw(*(a / b).shape, seed=2)
    want = {"a": r if one[1] == 3 else r.sum(1, keepdims=True), "b": np.zeros(two)}
    check([node("Div", "a b", "y")], {"a": a, "b": b}, {}, r, want)


# -- probabilities as constants -----------------------------------------------------------------------------------
TURN = {"perm": [0, 2, 1]}
CP = {  # nodes between the softmax s and the product; the equation in terms of s and v
    "left": ([node("MatMul", "s v", "y")], "bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
    "right": ([node("MatMul", "v s", "y")], "bij,bki->bkj", (2, 3, 4), (2, 5, 3)),
    "left, turned": ([node("Transpose", "s", "t", **TURN), node("MatMul", "t v", "y")], "bji,bjk->bik", (2, 4, 3), (2, 4, 5)),
    "right, turned": ([node("Transpose", "s", "t", **TURN), node("MatMul", "v t", "y")], "bij,bkj->bki", (2, 3, 4), (2, 5, 4)),
    "reshaped": ([node("Reshape", "s one", "t"), node("MatMul", "t v", "h"), node("Reshape", "h two", "y")],
                 "bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
    "dropped out": ([node("Dropout", "s", "t"), node("MatMul", "t v", "y")], "bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
    "einsum": ([node("Einsum", "v s", "y", equation="bjk,bij->bik")], "bij,bjk->bik", (2, 3, 4), (2, 4, 5)),
}
SIZES = {"one": ints(2, 3, 4), "two": ints(2, 3, 5)}


@pytest.mark.parametrize("eps", EPS)
@pytest.mark.parametrize("name", CP)
def test_value_product(name, eps):
    nodes, equation, *shapes = CP[name]
    u, v = draw(*shapes[0]), draw(*shapes[1], seed=1)
    s = np.apply_along_axis(softmax, -1, u)
    r = draw(*np.einsum(equation, s, v).shape, seed=2)
    nodes, sizes = [node("Softmax", "u", "s"), *nodes], SIZES if name == "reshaped" else {}
    constant = product(equation, [s, v], r, eps, constant=0)[1]
    check(nodes, {"u": u, "v": v}, sizes, r, {"u": 0 * u, "v": constant}, method="lrp.attention_cp", eps=eps)
    shares = product(equation, [s, v], r, eps)
    check(nodes, {"u": u, "v": v}, sizes, r, {"u": softmax_relevance(u, shares[0]), "v": shares[1]}, eps=eps)


@pytest.mark.parametrize("op", ["Sigmoid", "Tanh"])
def test_other_products_are_shared_by_cp_as_well(op):
    """Queries times keys, and weights that no softmax has made."""
    u, v, r = draw(2, 3, 4, away=0.3), draw(2, 4, 5, seed=1), draw(2, 3, 5, seed=2)
    s = 1 / (1 + np.exp(-u)) if op == "Sigmoid" else np.tanh(u)
    want = dict(zip("uv", product("bij,bjk->bik", [s, v], r, 1e-6)))
    nodes = [node(op, "u", "s"), node("MatMul", "s v", "y")]
    check(nodes, {"u": u, "v": v}, {}, r, want, method="lrp.attention_cp")


def test_two_softmaxes_are_shared_by_cp():
    u, v, r = draw(2, 3, 4), draw(2, 4, 5, seed=1), draw(2, 3, 5, seed=2)
    s = [np.apply_along_axis(softmax, -1, x) for x in (u, v)]
    want = {k: softmax_relevance(x, share) for k, x, share in zip("uv", (u, v), product("bij,bjk->bik", s, r, 1e-6))}
    nodes = [node("Softmax", "u", "s"), node("Softmax", "v", "t"), node("MatMul", "s t", "y")]
    check(nodes, {"u": u, "v": v}, {}, r, want, method="lrp.attention_cp")


# -- a whole block ------------------------------------------------------------------------------------------------
HEADS, EACH, WIDE, HIDDEN = 2, 3, 6, 7
WEIGHTS = {f"w{n}": 0.6 * draw(*s, seed=10 + i) for i, (n, s) in enumerate(
    {**dict.fromkeys("qkvo", (WIDE, WIDE)), "1": (WIDE, HIDDEN), "2": (HIDDEN, WIDE)}.items())}
WEIGHTS |= {f"b{n[1]}": 0.3 * draw(w.shape[1], seed=20 + i) for i, (n, w) in enumerate(list(WEIGHTS.items()))}
WEIGHTS |= {f"{k}{i}": draw(WIDE, seed=30 + i, away=0.4) for i in (1, 2) for k in ("scale", "shift")}
FOLD = 1 / math.sqrt(EACH)


def attention_nodes(mask=None):
    """The block in ONNX; mask: None, "add" (scores + mask) or "where" (mask chooses scores or -inf)."""
    def dense(x, n, y):
        return [node("MatMul", f"{x} w{n}", f"{y}_"), node("Add", f"{y}_ b{n}", y)]

    def heads(x, y, *perm):
        return [node("Reshape", f"{x} apart", f"{x}r"), node("Transpose", f"{x}r", y, perm=perm)]
    masked = {None: [], "add": [node("Add", "scaled mask", "scores")], "where": [node("Where", "mask scaled low", "scores")]}
    scores = "scores" if mask else "scaled"
    return [
        node("LayerNormalization", "x scale1 shift1", "h"), *dense("h", "q", "q"), *dense("h", "k", "k"), *dense("h", "v", "v"),
        *heads("q", "qh", 0, 2, 1, 3), *heads("k", "kh", 0, 2, 3, 1), *heads("v", "vh", 0, 2, 1, 3),
        node("MatMul", "qh kh", "products"), node("Mul", "products fold", "scaled"), *masked[mask],
        node("Softmax", scores, "p", axis=-1), node("MatMul", "p vh", "mixed"),
        node("Transpose", "mixed", "back", perm=[0, 2, 1, 3]), node("Reshape", "back joined", "values"),
        *dense("values", "o", "out"), node("Add", "x out", "middle"),
        node("LayerNormalization", "middle scale2 shift2", "h2"), *dense("h2", "1", "f"),
        node("Div", "f root", "f1"), node("Erf", "f1", "f2"), node("Add", "f2 one", "f3"), node("Mul", "f f3", "f4"),
        node("Mul", "f4 half", "g"), *dense("g", "2", "m"), node("Add", "middle m", "y")]


def attention_weights(mask=None, tokens=0):
    more = {"apart": ints(0, 0, HEADS, EACH), "joined": ints(0, 0, WIDE), "root": np.array(math.sqrt(2)), "one": np.array(1.0),
            "half": np.array(0.5), "fold": np.array(FOLD)}
    causal = np.tril(np.ones((tokens, tokens), bool))
    if mask == "add":
        more["mask"] = np.where(causal, 0.0, -np.inf)
    elif mask == "where":
        more |= {"mask": causal, "low": np.array(-np.inf)}
    return WEIGHTS | more


def apart(x):
    return x.reshape(*x.shape[:2], HEADS, EACH).transpose(0, 2, 1, 3)


def joined(x):
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], WIDE)


def block(x, r, *, cp=False, eps=1e-6, layernorm="frozen", mask=None):
    """Relevance of x and of what lies inside, by hand: forwards, then backwards."""
    w, rows, tokens = WEIGHTS, len(x) * x.shape[1], x.shape[1]

    def norm(v, i):
        z = (v - v.mean(-1, keepdims=True)) / np.sqrt(v.var(-1, keepdims=True) + 1e-5)
        return z * w[f"scale{i}"] + w[f"shift{i}"]

    def norm_back(v, i, arriving):
        if layernorm == "identity":
            return arriving
        return by_rows(v, w[f"scale{i}"], w[f"shift{i}"], 1e-5, arriving, eps, rows)

    def dense(v, n):
        return v @ w[f"w{n}"] + w[f"b{n}"]

    def dense_back(v, n, arriving):
        flat = (a.reshape(rows, -1) for a in (v, arriving))
        v2, r2 = flat
        return o.epsilon(v2, w[f"w{n}"].T, w[f"b{n}"], r2, eps=eps).reshape(v.shape)

    h = norm(x, 1)
    q, k, v = (dense(h, n) for n in "qkv")
    qh, kh, vh = apart(q), apart(k), apart(v)
    scaled = FOLD * np.einsum("bhid,bhjd->bhij", qh, kh)
    hidden = ~np.tril(np.ones((tokens, tokens), bool)) if mask else np.zeros((tokens, tokens), bool)
    scores = np.where(hidden, -np.inf, scaled)
    p = np.apply_along_axis(softmax, -1, scores)
    values = joined(np.einsum("bhij,bhjd->bhid", p, vh))
    out = dense(values, "o")
    middle = x + out
    h2 = norm(middle, 2)
    f = dense(h2, "1")
    gelu = np.vectorize(lambda t: 0.5 * t * (1 + math.erf(t / math.sqrt(2))))(f)
    m = dense(gelu, "2")

    r_middle, r_m = o.add([middle, m], r, eps=eps)
    r_h2 = dense_back(h2, "1", dense_back(gelu, "2", r_m))
    r_middle = r_middle + norm_back(middle, 2, r_h2)
    r_x, r_out = o.add([x, out], r_middle, eps=eps)
    r_p, r_v = product("bhij,bhjd->bhid", [p, vh], apart(dense_back(values, "o", r_out)), eps, constant=0 if cp else None)
    r_scores = softmax_relevance(scores, r_p)
    r_scaled = np.where(hidden, 0.0, scaled * o.divide(r_scores, scaled, eps)) if mask == "add" else r_scores * ~hidden
    r_q, r_k = product("bhid,bhjd->bhij", [qh, kh], r_scaled, eps)
    found = {"q": joined(r_q), "k": joined(r_k), "v": joined(r_v)}
    r_h = sum(dense_back(h, n, found[n]) for n in "qkv")
    return found | {"h": r_h, "x": r_x + norm_back(x, 1, r_h)}


METHODS = {"lrp.attention": False, "lrp.attention_cp": True}
SYMBOLS = {"x": ["N", "T", WIDE], "y": ["N", "T", WIDE]}


def check_block(method="lrp.attention", tokens=4, names=("x",), mask=None, symbols=None, **params):
    x, r = draw(2, tokens, WIDE, seed=7), draw(2, tokens, WIDE, seed=8)
    want = block(x, r, cp=METHODS[method], mask=mask, **params)
    check(attention_nodes(mask), {"x": x}, attention_weights(mask, tokens), r, {k: want[k] for k in names}, symbols=symbols,
          method=method, **params)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("params", [{}, {"eps": 1e-2}, {"layernorm": "identity"}, {"mask": "add"}, {"mask": "where"}], ids=str)
def test_block(method, params):
    check_block(method, **params)


def test_block_without_stabiliser():
    """lrp.zero reaches every layer of the block; lrp.epsilon is AttnLRP where no gate or softmax product says otherwise."""
    x, r = draw(2, 4, WIDE, seed=7), draw(2, 4, WIDE, seed=8)
    check(attention_nodes(), {"x": x}, attention_weights(), r, {"x": block(x, r, eps=0.0)["x"]}, method="lrp.zero")
    check(attention_nodes(), {"x": x}, attention_weights(), r, {"x": block(x, r)["x"]}, method="lrp.epsilon")


def test_inside_the_block():
    """Tensors inside, asked for together and one by one, with and without the input."""
    for names in (("q", "k", "v", "h", "x"), ("q",), ("k", "v")):
        check_block(names=names)


@pytest.mark.parametrize("names", [("q",), ("k",), ("q", "k", "v"), ("x", "q", "k")], ids=str)
def test_nothing_flows_to_queries_and_keys_under_cp(names):
    check_block("lrp.attention_cp", names=names)
    found = block(draw(2, 4, WIDE, seed=7), draw(2, 4, WIDE, seed=8), cp=True)
    assert not found["q"].any()
    assert not found["k"].any()
    assert found["v"].any()


def test_where_nothing_arrives_the_map_is_zero():
    x = draw(2, 4, WIDE, seed=7)
    proto = written(attention_nodes(), {"x": x}, attention_weights(), x, np.float32, 17, None)
    made = graphattr.convert(proto, method="lrp.attention_cp", target=1, wrt=["q", "k"])
    found = graphattr.Explainer(made)({"x": x.astype(np.float32)}).scores
    assert not any(v.any() for v in found.values())


def test_asking_for_queries_alone_behind_a_table():
    """Relevance of a tensor does not depend on what else is asked for."""
    ids, table, r = np.array([[0, 3, 1, 2], [2, 2, 4, 0]]), draw(5, WIDE, seed=7), draw(2, 4, WIDE, seed=8)
    nodes, weights = [node("Gather", "table ids", "x"), *attention_nodes()], attention_weights() | {"table": table}
    cast = {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in weights.items()}
    proto = model(nodes, {"ids": (7, list(ids.shape))}, {"y": list(r.shape)}, cast)
    for wrt in (["x", "q"], ["q"]):
        made = graphattr.convert(proto, method="lrp.attention", target="seed", wrt=wrt)
        found = graphattr.Explainer(made).session.run(["q_attribution"], {"ids": ids, "seed": r.astype(np.float32)})[0]
        close({"q_attribution": found}, {"q": block(table[ids], r)["q"]}, 3e-4)


@pytest.mark.parametrize("method", METHODS)
def test_symbolic_axes_and_samples_alone(method):
    """One file for any number of samples and tokens; a sample's relevance is its own."""
    x, r = draw(3, 5, WIDE, seed=7), draw(3, 5, WIDE, seed=8)
    proto = written(attention_nodes(), {"x": x}, attention_weights(), r, np.float32, 17, SYMBOLS)
    made = graphattr.convert(proto, method=method, target="seed")
    run = graphattr.Explainer(made)
    for n, t in ((3, 5), (1, 5), (2, 3), (1, 1)):
        some = [v[:n, :t].astype(np.float32) for v in (x, r)]
        found = raw(run, *some)
        close({"x_attribution": found}, {"x": block(x[:n, :t], r[:n, :t], cp=METHODS[method])["x"]}, 3e-4)
        alone = np.concatenate([raw(run, some[0][i:i + 1], some[1][i:i + 1]) for i in range(n)])
        np.testing.assert_allclose(found, alone, rtol=0, atol=1e-5 * np.abs(alone).max())


def raw(explainer, x, r):
    return explainer.session.run(["x_attribution"], {"x": x, "seed": r})[0]


# -- what is promised ---------------------------------------------------------------------------------------------
def test_linear_layers_sums_and_products_conserve():
    x, r = draw(2, 4, 5), draw(2, 4, 4, seed=1)
    weights = {n: draw(5, 3, seed=i) for i, n in enumerate("abc")} | {"d": draw(4, 4, seed=9)}
    nodes = [*(node("MatMul", f"x {n}", f"x{n}") for n in "abc"), node("Add", "xa xb", "sum"),
             node("Transpose", "xc", "turned", perm=[0, 2, 1]), node("MatMul", "sum turned", "product"),
             node("MatMul", "product d", "y")]
    proto = written(nodes, {"x": x}, weights, r, np.float64, 17, None)
    for method in METHODS:
        found = explained(proto, {"x": x}, r, np.float64, ["x"], method, eps=1e-12)["x_attribution"]
        np.testing.assert_allclose(found.sum((1, 2)), r.sum((1, 2)), rtol=1e-8)


def test_cp_conserves_through_the_values():
    """Without biases nothing is lost on the way from the output to the values."""
    u, v, r = draw(2, 3, 4), draw(2, 4, 5, seed=1), draw(2, 3, 5, seed=2)
    nodes = [node("Softmax", "u", "s"), node("MatMul", "s v", "y")]
    proto = written(nodes, {"u": u, "v": v}, {}, r, np.float64, 17, None)
    found = explained(proto, {"u": u, "v": v}, r, np.float64, ["u", "v"], "lrp.attention_cp", eps=1e-12)
    np.testing.assert_allclose(found["v_attribution"].sum((1, 2)), r.sum((1, 2)), rtol=1e-8)


WATCHED = {"lrp.norm": "lrp.attention", "lrp.softmax": "lrp.attention", "lrp.bilinear": "lrp.attention",
           "lrp.bilinear_cp": "lrp.attention_cp"}


@pytest.mark.parametrize("rule", WATCHED)
def test_each_rule_is_watched(rule):
    check_block(WATCHED[rule])
    with mutated("rules", [rule]) as used, pytest.raises(AssertionError):
        check_block(WATCHED[rule])
    assert used == {rule}
