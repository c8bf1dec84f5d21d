"""com.microsoft GatedRMSNorm and BranchwiseRMSNorm against ONNX Runtime's kernels."""

import pytest

from tests.unit.foreigners import model, ms, same, slope, stays, x

DATA, GROUPED = x(2, 3, 12), x(2, 3, 4, 5)
GATES = {"s": x(4), "g": x(2, 3, 12)}


@pytest.mark.parametrize("activation", ["silu", "swish", "sigmoid"])
@pytest.mark.parametrize("opset", [17, 21])
def test_gated(activation, opset):
    for scale in (x(4), x(12)):
        m = model([ms("GatedRMSNorm", "x,s,g", activation=activation, epsilon=1e-3)], {"x": DATA}, {**GATES, "s": scale}, opset)
        same(m, {"x": DATA})
        slope(m, {"x": DATA})


@pytest.mark.parametrize(("data", "branches", "shape"), [
    (GROUPED, 0, None), (GROUPED, 0, (20,)), (GROUPED, 0, (4, 5)), (GROUPED, 0, (5,)),
    (DATA, 3, None), (DATA, 3, (12,)), (DATA, 3, (3, 4)), (DATA, 3, (4,)), (DATA, 1, (12,))])
def test_branchwise(data, branches, shape):
    attrs = {"num_branches": branches} if branches else {}
    weights = {"s": x(*shape)} if shape else {}
    m = model([ms("BranchwiseRMSNorm", "x,s" if shape else "x", **attrs)], {"x": data}, weights)
    same(m, {"x": data})
    slope(m, {"x": data})


def test_gated_stays():
    stays(model([ms("GatedRMSNorm", "x,s,g", activation="tanh")], {"x": DATA}, GATES))


def test_slope_of_the_gate():
    feeds = {"x": DATA, "g": GATES["g"]}
    slope(model([ms("GatedRMSNorm", "x,s,g")], feeds, {"s": GATES["s"]}), feeds, "g")
