"""Bodies of Loops are rewritten like the graph around them, and own the weights of their convolutions."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")
import onnxruntime as ort

import graphattr
from graphattr.lower import inside
from tests.unit.test_lower import ALL, MODELS, OFF, distance, inputs, plain, run

BASES = ["gradient", "lrp.epsilon_plus_flat", "lrp.gamma", "guided_backprop"]


def converted(name, target, base="gradient", method="integrated_gradients", **params):
    return graphattr.convert(MODELS[name](), method, target=1, lowering=target, base=base, **params)


def bodies(graph):
    """Every body below a graph, the outer ones first."""
    for node in graph.node:
        for a in node.attribute:
            if a.type == onnx.AttributeProto.GRAPH:
                yield a.g
                yield from bodies(a.g)


def own_weights(graph):
    """Elements of the kernels among a graph's own initialisers; the depthwise ones of the blocked layout aside."""
    return sum(int(np.prod(t.dims)) for t in graph.initializer if len(t.dims) == 4 and t.dims[1] > 1)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_same_values(name, base, target):
    x = inputs(2)
    portable = converted(name, "portable", base, n_steps=3)
    y, expected = run(portable, x)
    lowered = converted(name, target, base, n_steps=3)
    same_y, found = run(lowered, x)
    assert np.array_equal(same_y, y)
    assert distance(found, expected) < 3e-6
    assert distance(run(lowered, x, ALL)[1], expected) < 3e-4  # blocked kernels round in another order


def test_the_weights_are_the_bodys_own():
    held = own_weights(plain().graph)
    (body,) = bodies(converted("plain", "cpu", n_steps=2).model.graph)
    assert own_weights(body) == held
    (body,) = bodies(converted("plain", "cuda", n_steps=2).model.graph)
    assert own_weights(body) == 0


def test_a_body_inside_a_body():
    made = converted("plain", "cpu", "integrated_gradients", "smoothgrad", n_samples=2, n_steps=2).model
    _, inner = bodies(made.graph)
    assert own_weights(inner) == own_weights(plain().graph)
    portable = converted("plain", "portable", "integrated_gradients", "smoothgrad", n_samples=2, n_steps=2)
    x = inputs(2)
    found, expected = (run(e, x, OFF)[1] for e in (converted("plain", "cpu", "integrated_gradients", "smoothgrad",
                                                             n_samples=2, n_steps=2), portable))
    assert distance(found, expected) < 3e-6


@pytest.mark.parametrize("limit", [0, 24_000])
def test_no_copies_beyond_the_limit(limit, monkeypatch):
    """Two methods share the room; a file that is large already has none."""
    one = own_weights(plain().graph) * 4
    assert one < 24_000 < 2 * one
    monkeypatch.setattr(inside, "LIMIT", limit)
    made = graphattr.convert(plain(), ["integrated_gradients", "smoothgrad"], target=1, n_steps=2, n_samples=2).model
    assert sorted(4 * own_weights(b) for b in bodies(made.graph)) == ([0, 0] if limit == 0 else [0, one])
    monkeypatch.setattr(inside, "LIMIT", one / 2.5)
    assert own_weights(next(bodies(converted("plain", "cpu", n_steps=2).model.graph))) == 0


@pytest.mark.parametrize("base", ["gradient", "lrp.zplus"])
def test_onnx_runtime_lays_the_body_out_in_blocks(base, tmp_path):
    """As many blocked convolutions in a step as in the graph that takes one."""

    def blocked(explanation):
        options = ort.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "o.onnx"), 3
        ort.InferenceSession(explanation.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        held = onnx.load(tmp_path / "o.onnx").graph
        return [sum(n.domain == "com.microsoft.nchwc" and n.op_type == "Conv" for n in g.node) for g in (held, *bodies(held))]

    (alone,) = blocked(graphattr.convert(plain(1), base, target=1))
    if alone == 0:
        pytest.skip("this machine has no blocked kernels")
    forward, inner = blocked(graphattr.convert(plain(1), "integrated_gradients", target=1, base=base, n_steps=2))
    assert inner == alone > forward


def test_small_files_have_no_copies():
    """`size="small"` shares the kernels with the model: the same values, and a file that the model's weights do not grow."""
    x, kernels = inputs(2), own_weights(plain().graph) * 4
    fast, small = (graphattr.convert(plain(), "integrated_gradients", target=1, n_steps=3, size=s) for s in ("fast", "small"))
    assert own_weights(next(bodies(small.model.graph))) == 0
    assert kernels < fast.model.ByteSize() - small.model.ByteSize() < 1.2 * kernels
    assert distance(run(small, x)[1], run(fast, x)[1]) < 3e-6
    assert [e.manifest["size"] for e in (fast, small)] == ["fast", "small"]
    with pytest.raises(graphattr.MethodError, match="size must be one of fast, small, not 'tiny'"):
        graphattr.convert(plain(), "integrated_gradients", size="tiny")
