"""A convolution's weight cotangents as matrix products: those of its derivative, for several cotangents at once."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from graphattr.graph import Graph
from graphattr.onnxio import write_graph
from graphattr.vjp import pull
from graphattr.vjp.taps import weight_cotangents

SHAPES = {  # operator, x [C, ...], w, attributes
    "plain": ("Conv", (3, 6, 5), (4, 3, 3, 2), {}),
    "pointwise": ("Conv", (6, 5, 4), (4, 6, 1, 1), {}),
    "padded": ("Conv", (3, 6, 5), (4, 3, 3, 3), {"pads": [1, 0, 2, 1]}),
    "strided": ("Conv", (3, 9, 8), (4, 3, 3, 2), {"strides": [2, 3], "dilations": [2, 1], "pads": [0, 1, 1, 0]}),
    "groups": ("Conv", (6, 7, 6), (9, 2, 3, 3), {"group": 3, "strides": [2, 1], "pads": [1, 1, 1, 1]}),
    "depthwise": ("Conv", (5, 7, 6), (10, 1, 3, 3), {"group": 5, "pads": [1] * 4}),
    "many taps": ("Conv", (40, 6, 6), (3, 40, 3, 3), {}),
    "line": ("Conv", (3, 12), (4, 3, 4), {"strides": [3], "pads": [2, 1]}),
    "volume": ("Conv", (2, 4, 5, 4), (3, 2, 2, 2, 3), {"strides": [1, 2, 1]}),
    "same upper": ("Conv", (2, 8, 7), (3, 2, 3, 2), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "same lower": ("Conv", (2, 8, 7), (3, 2, 3, 2), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "transposed": ("ConvTranspose", (3, 4, 3), (3, 4, 3, 2), {}),
    "transposed strided": ("ConvTranspose", (3, 4, 3), (3, 4, 3, 3), {"strides": [2, 3], "pads": [1, 0, 0, 1],
                                                                      "output_padding": [1, 0], "dilations": [1, 2]}),
    "transposed groups": ("ConvTranspose", (6, 4, 3), (6, 2, 2, 2), {"group": 3, "strides": [2, 2], "output_padding": [1, 1]}),
    "transposed same": ("ConvTranspose", (3, 4, 3), (3, 2, 3, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "transposed shape": ("ConvTranspose", (3, 4, 3), (3, 2, 3, 3), {"strides": [2, 2], "output_shape": [9, 6]}),
}


@pytest.mark.parametrize("free", [False, True], ids=["fixed", "symbolic"])
@pytest.mark.parametrize("name", SHAPES)
def test_taps_are_the_derivative(name, free):
    """In ONNX Runtime, at the same weights; sizes may be symbolic."""
    op, size, w_shape, attrs = SHAPES[name]
    rng = np.random.default_rng(len(name))
    x, w = rng.standard_normal((3, *size)).astype(np.float32), rng.standard_normal(w_shape).astype(np.float32)
    g = Graph(17)
    xv = g.input("x", np.float32, ("N", size[0], *(f"s{i}" for i in range(len(size) - 1))) if free else ("N", *size))
    y = g.emit(op, xv, g.const(w), **attrs)
    dys = [y * y, g.Sin(y)]
    found = weight_cotangents(g, g.producer(y), dys)
    if free and "output_shape" in attrs:
        assert found is None, "its pads are known at run time only"
        return
    slow = [pull(g, g.producer(y), [dy], [1])[1] for dy in dys]
    g.outputs = [*((f"fast{i}", v) for i, v in enumerate(found)), *((f"slow{i}", v) for i, v in enumerate(slow))]
    proto = helper.make_model(write_graph(g), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    made = dict(zip([n for n, _ in g.outputs], session.run(None, {"x": x})))
    for i in range(2):
        assert made[f"fast{i}"].shape == w.shape
        np.testing.assert_allclose(made[f"fast{i}"], made[f"slow{i}"], rtol=0, atol=2e-5 * np.abs(made[f"slow{i}"]).max())
        assert made[f"slow{i}"].std() > 0
