"""Derivatives at the edges of a domain, at zeros, ties and far out: the values that torch returns (2.x, float64, for dy = 1).

Where torch has no number and ours has one (a power of a negative base with respect to the exponent, the tanh form of Gelu
beyond 1e100, x / |x| at 0), the test stands with the operator. Clip is 0 at its ends, as torch's relu6 and hardtanh are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.vjp.checking import gradient
from tests.vjp.windows import numpy_windows

__all__ = ["numpy_windows"]
INF = np.inf
THREE = np.ones(3), np.zeros(3)


def op(name: str, **attrs: Any) -> Callable[..., Any]:
    return lambda g, *x: g.emit(name, *x, **attrs)


# (name, build, opset, inputs, their cotangents)
UNARY: list[tuple[Any, ...]] = [
    ("Sqrt", op("Sqrt"), 17, [0, 1e-300, 4], [INF, 5e149, 0.25]),
    ("Log", op("Log"), 17, [0, 1e-300, 4], [INF, 1e300, 0.25]),
    ("Reciprocal", op("Reciprocal"), 17, [0, 1e-200, 4], [-INF, -INF, -0.0625]),
    ("Asin", op("Asin"), 17, [1, -1, 0.5], [INF, INF, 1.1547005383792517]),
    ("Acos", op("Acos"), 17, [1, -1, 0.5], [-INF, -INF, -1.1547005383792517]),
    ("Acosh", op("Acosh"), 17, [1, 1e200, 2], [INF, 0, 0.5773502691896258]),
    ("Atanh", op("Atanh"), 17, [1, -1, 0.5], [INF, INF, 4 / 3]),
    ("Asinh", op("Asinh"), 17, [1e200, -1e200, 0.5], [0, 0, 0.8944271909999159]),
    ("Atan", op("Atan"), 17, [1e200, -1e200, INF], [0, 0, 0]),
    ("Sinh", op("Sinh"), 17, [0, 800], [1, INF]),
    ("Exp", op("Exp"), 17, [-1e4, 0], [0, 1]),
    ("Erf", op("Erf"), 17, [-1e3, 1e3, INF, -1e200], [0, 0, 0, 0]),
    ("Sigmoid", op("Sigmoid"), 17, [-1e3, 1e3, INF, -INF], [0, 0, 0, 0]),
    ("Tanh", op("Tanh"), 17, [-1e3, 1e3, INF, -INF], [0, 0, 0, 0]),
    ("Softplus", op("Softplus"), 17, [-1e3, 1e3, INF, -INF], [0, 1, 1, 0]),
    ("Softsign", op("Softsign"), 17, [-1e200, 1e200, 0], [0, 0, 1]),
    ("Elu", op("Elu"), 17, [-1e3, 1e3, 0], [0, 1, 1]),
    ("Selu", op("Selu"), 17, [-1e3, 1e3, 0], [0, 1.0507009873554805, 1.7580993408473766]),
    ("HardSwish", op("HardSwish"), 17, [-1e200, 1e200, 0], [0, 1, 0.5]),
    ("Gelu", op("Gelu"), 20, [-1e3, 1e3, 1e200], [0, 1, 1]),
    ("Mish", op("Mish"), 18, [-1e3, 1e3, 1e200], [0, 1, 1]),
    ("Swish", op("Swish"), 24, [-1e3, 1e3, 1e200], [0, 1, 1]),
    ("Pow 0.5", lambda g, x: g.Pow(x, 0.5), 17, [0, 4], [INF, 0.25]),
    ("Pow 3", lambda g, x: g.Pow(x, 3.0), 17, [0, -4], [0, 48]),
]
ROWS: list[tuple[Any, ...]] = [
    ("Softmax", op("Softmax"), 17, [[-INF, 0, 1000], [0, -INF, -INF]], np.zeros((2, 3))),
    ("LogSoftmax", op("LogSoftmax"), 17, [[-INF, 0, 1000], [1e5, -1e5, 0]], [[1, 1, -2], [-2, 1, 1]]),
    ("SoftmaxCrossEntropyLoss", lambda g, x: g.SoftmaxCrossEntropyLoss(x, g.const([0, 1])), 17,
     [[0, 1000, -1000], [1000, 0, -INF]], [[-0.5, 0.5, 0], [0.5, -0.5, 0]]),
    ("ReduceLogSumExp", op("ReduceLogSumExp", axes=[1]), 17, [[-INF, 0, 1000], [1e5, 1e5, 0]], [[0, 0, 1], [0.5, 0.5, 0]]),
    ("ReduceLogSum", op("ReduceLogSum", axes=[1]), 17, [[0, 0, 0], [3, 4, 0]], [[INF] * 3, [1 / 7] * 3]),
    ("ReduceL2", op("ReduceL2", axes=[1]), 17, [[0, 0, 0], [3, 4, 0], [1e-200, 0, 0]], [[0, 0, 0], [0.6, 0.8, 0], [0, 0, 0]]),
    ("ReduceL1", op("ReduceL1", axes=[1]), 17, [[0, 0, 0], [3, -4, 0]], [[0, 0, 0], [1, -1, 0]]),
    ("ReduceSumSquare", op("ReduceSumSquare", axes=[1]), 17, [[0, 0, 0], [3, 4, 0]], [[0, 0, 0], [6, 8, 0]]),
    ("ReduceProd", op("ReduceProd", axes=[1]), 17, [[0, 0, 3], [3, 0, 2], [2, 3, 4]], [[0, 0, 0], [0, 6, 0], [12, 8, 6]]),
    ("CumProd", lambda g, x: g.CumProd(x, g.const(1)), 26, [[0, 0, 3], [3, 0, 2], [2, 3, 4]],
     [[1, 0, 0], [1, 9, 0], [16, 10, 6]]),
    ("GlobalLpPool", op("GlobalLpPool"), 17, [[[0, 0, 0], [0, 3, 4]]], [[[0, 0, 0], [0, 0.6, 0.8]]]),
    ("LpPool", op("LpPool", kernel_shape=[2]), 18, [[[0, 0, 3]]], [[[0, 0, 1]]]),
    ("LayerNormalization", lambda g, x: g.LayerNormalization(x, *THREE), 17, [[2, 2, 2], [1, 2, 3]], np.zeros((2, 3))),
    ("RMSNormalization", lambda g, x: g.RMSNormalization(x, THREE[0]), 23, [[0, 0, 0], [1, 2, 3]],
     [[316.2277660168379] * 3, [0.2645201702126905, 0.06613078651336152, -0.13225859718596744]]),
    ("InstanceNormalization", lambda g, x: g.InstanceNormalization(x, np.ones(1), np.zeros(1)), 17, [[[2, 2, 2]], [[1, 2, 3]]],
     np.zeros((2, 1, 3))),
]


@pytest.mark.filterwarnings("ignore:overflow", "ignore:divide by zero", "ignore:invalid value")  # in the reference
@pytest.mark.usefixtures("numpy_windows")
@pytest.mark.parametrize(("name", "build", "opset", "x", "want"), [*UNARY, *ROWS], ids=lambda v: v if isinstance(v, str) else "")
def test_one_input(name: str, build: Callable[..., Any], opset: int, x: Any, want: Any) -> None:
    np.testing.assert_allclose(gradient(build, np.array(x, float), opset=opset)[0], want, rtol=1e-7, atol=1e-7)


def test_powers() -> None:
    x, p = np.array([[0, 0, 0, 0, 2, -2, 1e-200, INF], [0, 0.5, 1, -1, 0, 2, 2, 0]])
    dx, dp = gradient(op("Pow"), x, p)
    np.testing.assert_allclose(dx, [0, INF, 1, -INF, 0, -4, 2e-200, 0])
    np.testing.assert_allclose(dp[[0, 1, 2, 4, 6]], [0, 0, 0, 0.6931471805599453, 0])


def test_quotients() -> None:
    dx, dy = gradient(op("Div"), np.array([0.0, 0, 1, 1]), np.array([0.0, 2, 0, INF]))
    np.testing.assert_allclose(dx, [INF, 0.5, INF, 0])
    np.testing.assert_allclose(dy[1:], [0, -INF, 0])
