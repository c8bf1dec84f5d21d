"""com.microsoft weights of few bits against ONNX Runtime's kernels."""

import numpy as np
import pytest
from onnx import TensorProto, helper

import graphattr
from tests.unit.foreigners import model, ms, outcome, same, slope, stays, x

N, K, BLOCK = 6, 40, 16
BLOCKS = 3
DATA = x(2, 3, K)
RNG = np.random.default_rng(4)


def packed(bits, block=BLOCK, k=K):
    blocks = -(-k // block)
    return {"w": RNG.integers(0, 256, (N, blocks, block * bits // 8)).astype(np.uint8),
            "s": RNG.uniform(0.01, 0.03, (N, blocks)).astype(np.float32)}


def zero_bytes(bits, blocks=BLOCKS):
    return {"z": RNG.integers(0, 256, (N, -(-blocks * bits // 8))).astype(np.uint8)}


NBITS = {
    "plain": ("x,w,s", {}),
    "zeros": ("x,w,s,z", zero_bytes),
    "zeros unpacked": ("x,w,s,z", {"z": x(N, BLOCKS) + 8}),
    "bias": ("x,w,s,,,b", {"b": x(N)}),
    "groups": ("x,w,s,,g", {"g": (np.arange(K) % BLOCKS).astype(np.int32)}),
}


ABSENT = [("groups", 2), ("groups", 8), ("zeros unpacked", 8)]     # ONNX Runtime's kernels for the CPU ignore or refuse these


@pytest.mark.parametrize(("case", "bits"), [(c, b) for c in NBITS for b in (2, 4, 8) if (c, b) not in ABSENT])
@pytest.mark.parametrize("opset", [17, 21])
def test_matmul_nbits(case, bits, opset):
    inputs, more = NBITS[case]
    weights = {**packed(bits), **(more(bits) if callable(more) else more)}
    m = model([ms("MatMulNBits", inputs, K=K, N=N, bits=bits, block_size=BLOCK)], {"x": DATA}, weights, opset)
    same(m, {"x": DATA}, rtol=1e-5)
    slope(m, {"x": DATA})


def test_rows_of_one_axis():
    """Older quantisers write scales and zeros flat."""
    weights = {**packed(4), **zero_bytes(4)}
    flat = {k: v.reshape(-1) if k in "sz" else v for k, v in weights.items()}
    for w in (weights, flat):
        m = model([ms("MatMulNBits", "x,w,s,z", K=K, N=N, bits=4, block_size=BLOCK)], {"x": DATA}, w)
        same(m, {"x": DATA}, rtol=1e-5)


def test_what_other_devices_pack_stays():
    stays(model([ms("MatMulNBits", "x,w,s", K=K, N=N, block_size=BLOCK, weight_prepacked=1)], {"x": DATA}, packed(4)))
    stays(model([ms("MatMulNBits", "x,w,s", K=K, N=N, block_size=BLOCK, bits=3)], {"x": DATA}, packed(4)))
    groups = {**packed(8), **NBITS["groups"][1]}
    stays(model([ms("MatMulNBits", "x,w,s,,g", K=K, N=N, block_size=BLOCK, bits=8)], {"x": DATA}, groups))


@pytest.mark.parametrize("method", ["lrp.epsilon", "lrp.zplus", "lrp.gamma", "lrp.flat", "lrp.wsquare"])
def test_relevance_through_unpacked_weights(method):
    """The same as through a MatMul that holds the dequantised weight."""
    weights = packed(4)
    m = model([ms("MatMulNBits", "x,w,s", K=K, N=N, block_size=BLOCK)], {"x": DATA}, weights)
    low = np.stack([weights["w"] & 15, weights["w"] >> 4], -1).reshape(N, -1)[:, :K].astype(np.float32)
    dense = (low - 8) * np.repeat(weights["s"], BLOCK, 1)[:, :K]
    plain = model([helper.make_node("MatMul", ["x", "w"], ["y"])], {"x": DATA}, {"w": np.ascontiguousarray(dense.T)})
    seed = x(2, 3, N)
    found = [outcome(graphattr.convert(k, method=method, target="seed").model, {"x": DATA, "seed": seed}) for k in (m, plain)]
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * np.abs(b).max())


@pytest.mark.parametrize("kind", [0, 1])
def test_matmul_bnb4(kind):
    weights = {"w": RNG.integers(0, 256, N * K // 2).astype(np.uint8), "m": RNG.uniform(0.1, 0.5, N * K // 16).astype(np.float32)}
    m = model([ms("MatMulBnb4", "x,w,m", K=K, N=N, block_size=16, quant_type=kind)], {"x": DATA}, weights)
    same(m, {"x": DATA}, rtol=1e-5)
    slope(m, {"x": DATA})


ROWS = {"i": np.array([[3, 0, 5], [-1, 2, 2]], np.int64)}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", [True, False])
def test_gather_block_quantized(bits, zeros):
    weights = {"w": RNG.integers(0, 256, (7, 40 * bits // 8)).astype(np.uint8), "s": x(7, BLOCKS)}
    if zeros:
        weights["z"] = RNG.integers(0, 256, (7, -(-BLOCKS * bits // 8))).astype(np.uint8)
    n = ms("GatherBlockQuantized", "w,i,s" + ",z" * zeros, bits=bits, block_size=16, quantize_axis=1)
    same(model([n], ROWS, weights), ROWS)


@pytest.mark.parametrize("kind", [TensorProto.INT4, TensorProto.UINT4])
@pytest.mark.parametrize("axis", [0, 1])
def test_gather_of_four_bit_types(kind, axis):
    low = -8 if kind == TensorProto.INT4 else 0
    shape, blocks = ((7, 20), (7, 2)) if axis == 0 else ((20, 7), (2, 7))
    values, zeros = (RNG.integers(low, low + 16, k) for k in (shape, blocks))
    n = ms("GatherBlockQuantized", "w,i,s,z", block_size=16, gather_axis=axis, quantize_axis=1 - axis)
    m = model([n], ROWS, {"s": x(*blocks)}, opset=21)
    m.graph.initializer.extend(helper.make_tensor(k, kind, v.shape, v.reshape(-1)) for k, v in (("w", values), ("z", zeros)))
    m.ir_version = 10
    same(m, ROWS)


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("columns", [False, True])
def test_dynamic_quantize_lstm(direction, columns):
    """Equal up to the rounding of inputs and states to 8 bits, which the float form leaves out."""
    count, size, hidden = 2 if direction == "bidirectional" else 1, 3, 4
    data = np.tanh(x(5, 2, size))
    shape = (count, 4 * hidden) if columns else (count,)
    weights = {"w": RNG.integers(-127, 128, (count, size, 4 * hidden)).astype(np.int8),
               "r": RNG.integers(-127, 128, (count, hidden, 4 * hidden)).astype(np.int8), "b": x(count, 8 * hidden),
               **{k: RNG.uniform(0.002, 0.005, shape).astype(np.float32) for k in ("ws", "rs")},
               "wz": np.zeros(shape, np.int8), "rz": np.zeros(shape, np.int8)}
    n = ms("DynamicQuantizeLSTM", "x,w,r,b,,,,,ws,wz,rs,rz", "y,h,c", hidden_size=hidden, direction=direction)
    m = model([n], {"x": data}, weights, outputs=("y", "h", "c"))
    same(m, {"x": data}, rtol=1e-2)
    w, r = ((weights[k] * weights[f"{k}s"].reshape(count, 1, -1)).transpose(0, 2, 1).astype(np.float32) for k in "wr")
    smooth = model([ms("LSTM", "x,w,r,b", "y,h,c", domain="", hidden_size=hidden, direction=direction)], {"x": data},
                   {"w": np.ascontiguousarray(w), "r": np.ascontiguousarray(r), "b": weights["b"]}, outputs=("y", "h", "c"))
    slope(m, {"x": data}, runs=smooth)
