"""Operators of the preview domain: written out, they give what ONNX's reference gives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import graphattr
from graphattr.foreign import standardise

SHAPE = (1, 2, 3, 4)


def model(named: str = "attention", **attrs: object) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, SHAPE) for n in "qkvy"]
    node = helper.make_node("FlexAttention", ["q", "k", "v"], ["y"], name=named, domain="ai.onnx.preview", **attrs)
    graph = helper.make_graph([node], "g", ends[:3], ends[3:])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 25), helper.make_opsetid("ai.onnx.preview", 1)],
                             ir_version=10)


def modifier() -> onnx.GraphProto:
    """scores -> tanh(scores)."""
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["B", "H", "L", "S"]) for n in ("s", "t")]
    return helper.make_graph([helper.make_node("Tanh", ["s"], ["t"])], "mod", ends[:1], ends[1:])


@pytest.mark.parametrize("attrs", [{}, {"scale": 0.3}, {"score_mod": modifier()}, {"prob_mod": modifier(), "scale": 2.0}],
                         ids=" ".join)
def test_flex_attention_is_written_out(attrs: dict[str, object]) -> None:
    given = model(**attrs)
    plain = standardise(given)
    assert {n.domain for n in plain.graph.node} == {""}
    assert [n.name for n in plain.graph.node if n.name] == ["attention"]
    rng = np.random.default_rng(0)
    feeds = {n: rng.standard_normal(SHAPE).astype(np.float32) for n in "qkv"}
    want = ReferenceEvaluator(given).run(None, feeds)[0]
    found = graphattr.explain(given, feeds, "gradient", target=3)
    np.testing.assert_allclose(found.outputs["y"], want, rtol=1e-5, atol=1e-6)
    assert np.abs(found.scores["q"]).max() > 0


def test_two_of_them_do_not_share_names() -> None:
    given = model()
    given.graph.node.append(helper.make_node("FlexAttention", ["y", "k", "v"], ["z"], domain="ai.onnx.preview"))
    given.graph.output[0].name = "z"
    plain = standardise(given)
    written = [o for n in plain.graph.node for o in n.output]
    assert len(written) == len(set(written))
