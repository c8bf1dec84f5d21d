"""A foreign node that stays and lies on the path: the error says why."""

import numpy as np
import pytest
from onnx import helper

import graphattr
from graphattr.errors import UnsupportedOp
from graphattr.foreign import EDITS
from graphattr.foreign.staying import REFUSED
from tests.unit.foreigners import model, ms, x

SEQ = x(2, 5, 6)
PACKED = {"w": x(6, 24), "b": x(24)}
CASES = {
    "rotary": (ms("Attention", "x,w,b", num_heads=2, do_rotary=1), PACKED, "angles that are not in the file"),
    "heads": (ms("Attention", "x,w,b", num_heads=3), PACKED, "8 is no multiple of its 3 heads"),
    "mask": (ms("Attention", "x,w,b,m", num_heads=2), {**PACKED, "m": np.ones(8, np.int32)}, "neither the batch size 2"),
    "matrix": (ms("Inverse"), {}, "up to 3 x 3"),
    "experts": (ms("MoE", "x,w,b"), {**PACKED}, "chooses its experts"),
    "bits": (ms("MatMulNBits", "x,w,s", K=6, N=4, block_size=16, bits=3), {"w": np.zeros((4, 1, 6), np.uint8), "s": x(4, 1)},
             "3 bits"),
    "pads": (ms("ConvTransposeWithDynamicPads", "x,w,p"), {"w": x(5, 2, 3)}, "no constant"),
    "read": (ms("SkipLayerNormalization", "x,s,g", "y,mean"), {"s": SEQ, "g": x(6)}, "does not know this combination"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_error_says_why(case):
    n, weights, text = CASES[case]
    feeds = {"x": x(2, 4, 4) if case == "matrix" else SEQ}
    if case == "pads":
        feeds["p"] = np.zeros(2, np.int64)
    nodes = [n, helper.make_node("Relu", ["y"], ["z"])]
    outputs = ["z"]
    if case == "read":
        outputs.append("mean")
    m = model(nodes, feeds, weights, outputs=outputs)
    m.graph.value_info.append(helper.make_tensor_value_info("y", 1, SEQ.shape))
    with pytest.raises(UnsupportedOp, match=f"com.microsoft:{n.op_type} .*{text}"):
        graphattr.convert(m, method="gradient", target="seed", output="z", wrt=["x"])


def test_what_is_refused_has_no_rewrite():
    assert not {("com.microsoft", op) for op in REFUSED} & set(EDITS)
