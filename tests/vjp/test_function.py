"""Operators whose derivative is that of their ONNX function body."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from graphattr.graph import Graph
from graphattr.vjp import VJPS
from tests.vjp.checking import Case, case, check_case, gradient, rows, sampler

draw = sampler(4)


def attention(**attrs: Any) -> Any:
    def build(g: Graph, q: Any, k: Any, v: Any, mask: Any = None) -> Any:
        return g.Attention(q, k, v, mask, **attrs)
    return build


QKV = draw(2, 2, 3, 4), draw(2, 2, 5, 4), draw(2, 2, 5, 4)
MASK = np.array([[1, 1, 0, 1, 1], [0, 0, 0, 0, 0], [1, 0, 0, 0, 0]], np.bool_)  # the second query sees nothing
PAST = draw(2, 2, 2, 4), draw(2, 2, 2, 4)


def hidden(g: Graph, q: Any, k: Any, v: Any) -> Any:
    return g.Attention(q, k, v, g.const(np.where(MASK, 0, -np.inf).astype(q.dtype)))


def scores(mode: int) -> Any:
    """Attention with its scores (before the cap, after mask and cap, or after the softmax) as a further output."""
    return lambda g, q, k, v, mask: g.emit("Attention", q, k, v, mask, n_outputs=4, qk_matmul_output_mode=mode, softcap=1.5)[::3]


def with_past(**attrs: Any) -> Any:
    return lambda g, q, k, v, *past: g.emit("Attention", q, k, v, None, *past, n_outputs=3, **attrs)


ATTENTIONS = [
    case("Attention with a boolean mask", attention(), *QKV, MASK, opsets=(23, 24, 25), dtype=np.float32),
    case("Attention with a mask of -inf", hidden, *QKV, opsets=(23, 24, 25), dtype=np.float32),
    case("Attention causal, with a boolean mask and a cap", attention(is_causal=1, softcap=2.0), *QKV, MASK, opsets=(23, 24),
         dtype=np.float32),
    case("Attention with a mask per sample", attention(), *QKV, draw(2, 1, 3, 5), opsets=(24,), dtype=np.float32),
    case("Attention, values of another size", attention(), *QKV[:2], draw(2, 2, 5, 3), opsets=(24,), dtype=np.float32),
    *(case(f"Attention and its scores, mode {mode}", scores(mode), *QKV, draw(3, 5), opsets=(23, 24), dtype=np.float32)
      for mode in range(4)),
    case("Attention with a past, causal", with_past(is_causal=1), *QKV, *PAST, opsets=(23, 24), dtype=np.float32),
    case("Attention of grouped heads with a past", with_past(), draw(2, 4, 3, 4), *QKV[1:], *PAST, opsets=(23,),
         dtype=np.float32),
    case("Attention of grouped heads in three dimensions", attention(q_num_heads=4, kv_num_heads=2, is_causal=1), draw(2, 3, 16),
         draw(2, 5, 8), draw(2, 5, 8), opsets=(23, 25), dtype=np.float32),
    case("Attention to sequences of several lengths", lambda g, *x: g.Attention(*x, None, None, None, np.array([3, 5])), *QKV,
         opsets=(24, 25), dynamic=(), dtype=np.float32),
    case("Attention within a window", attention(left_window_size=1, right_window_size=0), *QKV, opsets=(25,), dtype=np.float32),
]


def recurrence(rule: str, heads: int = 2) -> Case:
    """LinearAttention of 3 tokens with 2 states of 4 x 3; what the rule does not use is left out."""
    decay = draw(2, 3, 8, low=-1, high=0) if "gated" in rule else None
    beta = draw(2, 3, 2, low=0, high=1) if "delta" in rule else None
    given = [v for v in (decay, beta) if v is not None]

    def build(g: Graph, q: Any, k: Any, v: Any, state: Any, *more: Any) -> Any:
        rest = iter(more)
        return g.emit("LinearAttention", q, k, v, state, *(next(rest) if x is not None else None for x in (decay, beta)),
                      n_outputs=2, q_num_heads=heads, kv_num_heads=2, update_rule=rule)
    return case(f"LinearAttention {rule}", build, draw(2, 3, 4 * heads), draw(2, 3, 8), draw(2, 3, 6), draw(2, 2, 4, 3), *given,
                opsets=(27,), dynamic=(), dtype=np.float32)


def carried(*state: Any, **attrs: Any) -> Case:
    """CausalConvWithState, with or without the past."""
    def build(g: Graph, *x: Any) -> Any:
        return g.emit("CausalConvWithState", *x, n_outputs=2, **attrs)
    return case(f"CausalConvWithState {attrs}", build, draw(2, 3, 5), draw(3, 1, 3), draw(3), *state, opsets=(27,),
                dynamic=(0, 3) if state else (0,), dtype=np.float32)


RECURRENT = [*(recurrence(rule) for rule in ("linear", "gated", "delta")), recurrence("gated_delta", heads=4),
             carried(activation="silu"), carried(draw(2, 3, 2))]
ROTATED = draw(2, 2, 3, 4), draw(2, 3, 2), draw(2, 3, 2)
CASES = [
    *ATTENTIONS, *RECURRENT,
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
    case("RotaryEmbedding of positions", lambda g, *x: g.RotaryEmbedding(*x), ROTATED[0], draw(6, 2), draw(6, 2),
         np.array([[0, 2, 5], [1, 1, 4]]), opsets=(23,), dtype=np.float32),
    case("RotaryEmbedding in part, in three dimensions", lambda g, *x: g.RotaryEmbedding(*x, num_heads=2, rotary_embedding_dim=2),
         draw(2, 3, 8), draw(2, 3, 1), draw(2, 3, 1), opsets=(23,), dtype=np.float32),
    case("SwiGLU", lambda g, a, b: g.SwiGLU(a, b, alpha=1.5), draw(3, 4), draw(3, 4), opsets=(28,), dynamic=(0, 1),
         dtype=np.float32),
    case("CenterCropPad to a size of the run", lambda g, x, size: g.CenterCropPad(x, size, axes=[1, 2]), draw(2, 5, 4),
         np.array([3, 6]), opsets=(18,)),
    case("SoftmaxCrossEntropyLoss with weights", lambda g, x, t, w: g.SoftmaxCrossEntropyLoss(x, t, w, reduction="none"),
         draw(3, 4), np.array([0, 2, 1]), draw(4, low=0.5)),
    case("SoftmaxCrossEntropyLoss of pixels", lambda g, x, t: g.SoftmaxCrossEntropyLoss(x, t, reduction="sum", ignore_index=1),
         draw(3, 4, 2), np.array([[0, 2], [1, 1], [3, 0]])),
    case("SoftmaxCrossEntropyLoss and log probabilities", lambda g, x, t: g.emit("SoftmaxCrossEntropyLoss", x, t, n_outputs=2),
         draw(3, 4), np.array([0, 2, 1])),
    case("SoftmaxCrossEntropyLoss", lambda g, x, target: g.SoftmaxCrossEntropyLoss(x, target), draw(3, 4), np.array([0, 3, 1])),
    case("NegativeLogLikelihoodLoss", lambda g, x, target: g.NegativeLogLikelihoodLoss(x, target),
         draw(3, 4), np.array([0, 3, 1])),
]


@pytest.fixture(autouse=True)
def new_opsets(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime runs opsets it does not know for sure (27, 28) as well."""
    monkeypatch.setenv("ALLOW_RELEASED_ONNX_OPSET_ONLY", "0")


@pytest.mark.parametrize(("c", "opset"), rows(CASES))
def test_derivatives(c: Case, opset: int) -> None:
    check_case(c, opset)


def test_these_have_no_derivative_of_their_own() -> None:
    assert not {c.name.split()[0] for c in CASES} & set(VJPS)


@pytest.mark.parametrize("opset", [23, 24, 25])
@pytest.mark.parametrize("mask", ["boolean", "-inf"])
def test_a_query_that_sees_nothing(opset: int, mask: str) -> None:
    """Its gradient is 0 and it gives the keys none, as in torch's scaled_dot_product_attention; NumPy's Softmax is NaN there."""
    build = attention() if mask == "boolean" else hidden
    dq, dk, dv = gradient(build, *QKV, *([MASK] if mask == "boolean" else []), opset=opset)
    np.testing.assert_array_equal(dq[:, :, 1], 0)
    np.testing.assert_array_equal(dk[:, :, 2], 0)
    assert np.isfinite([np.abs(d).sum() for d in (dq, dk, dv)]).all()
    np.testing.assert_allclose(dv.sum(axis=(2, 3)), np.full((2, 2), 8.0), rtol=1e-6)  # two queries see, with weights of sum 1
