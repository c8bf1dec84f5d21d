"""Operators whose derivative is that of their ONNX function body."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphattr.graph import Graph
from graphattr.vjp import VJPS
from tests.vjp.checking import Case, case, check_case, rows, sampler

draw = sampler(4)


def attention(**attrs: Any) -> Any:
    def build(g: Graph, q: Any, k: Any, v: Any, mask: Any = None) -> Any:
        return g.Attention(q, k, v, mask, **attrs)
    return build


QKV = draw(2, 2, 3, 4), draw(2, 2, 5, 4), draw(2, 2, 5, 4)
ROTATED = draw(2, 2, 3, 4), draw(2, 3, 2), draw(2, 3, 2)
CASES = [
    case("Attention", attention(), *QKV, opsets=(23, 24), dynamic=(0, 1, 2), dtype=np.float32),
    case("Attention with mask, scale and cap", attention(scale=0.5, softcap=2.0), *QKV, draw(3, 5),
         opsets=(23, 24), dtype=np.float32),
    case("Attention of grouped heads, causal", attention(is_causal=1), draw(2, 4, 3, 4), *QKV[1:],
         opsets=(23,), dtype=np.float32),
    case("Attention in three dimensions", attention(q_num_heads=2, kv_num_heads=2), draw(2, 3, 8), draw(2, 5, 8), draw(2, 5, 8),
         opsets=(23,), dtype=np.float32),
    case("Attention of one tensor", lambda g, x: g.Attention(x, x, x), QKV[0], opsets=(23,), dtype=np.float32),
    case("Attention to itself", lambda g, x: g.Attention(x, g.Tanh(x), g.Sin(x)), QKV[0], opsets=(23,), dtype=np.float32),
    case("RotaryEmbedding", lambda g, *x: g.RotaryEmbedding(*x), *ROTATED, opsets=(23,), dtype=np.float32),
    case("RotaryEmbedding interleaved", lambda g, *x: g.RotaryEmbedding(*x, interleaved=1), *ROTATED,
         opsets=(23,), dtype=np.float32),
    case("SoftmaxCrossEntropyLoss", lambda g, x, target: g.SoftmaxCrossEntropyLoss(x, target), draw(3, 4), np.array([0, 3, 1])),
    case("NegativeLogLikelihoodLoss", lambda g, x, target: g.NegativeLogLikelihoodLoss(x, target),
         draw(3, 4), np.array([0, 3, 1])),
]


@pytest.mark.parametrize(("c", "opset"), rows(CASES))
def test_derivatives(c: Case, opset: int) -> None:
    check_case(c, opset)


def test_these_have_no_derivative_of_their_own() -> None:
    assert not {c.name.split()[0] for c in CASES} & set(VJPS)
