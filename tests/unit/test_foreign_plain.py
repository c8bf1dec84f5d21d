"""com.microsoft operators that ONNX has by now, or that a few of its operators say: against kernels, else replicas."""

import math

import numpy as np
import pytest

from tests.unit.foreigners import model, ms, replica, same, slope, stays, x

I32, I64 = np.int32, np.int64
ROWS, CUBE, IMAGE = x(4, 3), x(2, 3, 4), x(2, 3, 6, 5)
SQUARES = x(2, 3, 3) + 3 * np.eye(3, dtype=np.float32)
GRID = np.tanh(x(2, 4, 3, 2))
BOXES = np.array([[0.1, 0.2, 0.8, 0.7], [-0.3, 0.1, 0.5, 1.4], [0.9, 0.9, 0.2, 0.3]], np.float32)
CROPS = {"r": BOXES, "i": np.array([1, 0, 1], I32)}
KERNELS = {        # nodes, data, weights, whether the gradient is tested
    "trilu": (ms("Trilu", "x,k", upper=0), CUBE, {"k": np.array(-1, I64)}, True),
    "trilu upper": (ms("Trilu"), CUBE, {}, True),
    "pad": (ms("Pad", "x,n"), ROWS, {"n": np.array([[1, 0, 0, 2]], I64)}, True),
    "pad value": (ms("Pad", "x,n,v"), ROWS, {"n": np.array([1, -1, 0, 2], I64), "v": np.array([0.5], np.float32)}, True),
    "pad edge": (ms("Pad", "x,n", mode="edge"), ROWS, {"n": np.array([1, 0, 0, 2], I64)}, True),
    "pad reflect": (ms("Pad", "x,n", mode="reflect"), ROWS, {"n": np.array([1, 0, 0, 2], I64)}, True),
    "expand dims": (ms("ExpandDims", "x,a"), CUBE, {"a": np.array(-2, I32)}, True),
    "gather nd": (ms("GatherND", "x,i"), CUBE, {"i": np.array([[0, 2], [1, 0]], I32)}, True),
    "unique": (ms("Unique", "x", "y,i,c"), np.array([2, 1, 1, 3, 4, 3], np.float32), {}, False),
    "range": (ms("Range", "x,e"), np.array([1.5], np.float32), {"e": np.array([6], np.float32)}, False),
    "range step": (ms("Range", "x,e,d"), np.array(9, I64), {"e": np.array(2, I64), "d": np.array(-2, I64)}, False),
    "grid": (ms("GridSample", "x,g"), IMAGE, {"g": GRID}, True),
    "grid corners": (ms("GridSample", "x,g", align_corners=1, padding_mode="border", mode="nearest"), IMAGE, {"g": 2 * GRID},
                     True),
    "grid cubic": (ms("GridSample", "x,g", padding_mode="reflection", mode="bicubic"), IMAGE, {"g": 2 * GRID}, True),
    "crop": (ms("CropAndResize", "x,r,i,c"), IMAGE, {**CROPS, "c": np.array([4, 3], I32)}, True),
    "crop outside": (ms("CropAndResize", "x,r,i,c", extrapolation_value=2.5), IMAGE, {**CROPS, "c": np.array([5, 1], I32)},
                     True),
    "transposed": (ms("ConvTransposeWithDynamicPads", "x,w,p,b", strides=[2, 1]), IMAGE,
                   {"w": x(3, 2, 3, 3), "p": np.array([1, 0, 1, 1], I64), "b": x(2)}, True),
    "squares": (ms("CDist", "x,w", metric="sqeuclidean"), ROWS, {"w": x(5, 3)}, True),
    "distances": (ms("CDist", "x,w", metric="euclidean"), ROWS, {"w": x(5, 3)}, True),
    "inverse 1": (ms("Inverse"), SQUARES[:, :1, :1].copy(), {}, True),
    "inverse 2": (ms("Inverse"), SQUARES[:, :2, :2].copy(), {}, True),
    "inverse 3": (ms("Inverse"), SQUARES, {}, True),
    "batch of a": (ms("FusedMatMul", "x,w", transBatchA=1), CUBE, {"w": x(3, 4, 5)}, True),
    "silu": (ms("ScaledSiLU", alpha=1.7), CUBE, {}, True),
    "silu scale": (ms("ScaledSiLU", "x,s"), CUBE, {"s": np.float32(0.4)}, True),
    "gated add": (ms("GatedAdd", "x,w,g"), CUBE, {"w": x(2, 3, 4), "g": x(2, 3, 1)}, True),
}


@pytest.mark.parametrize("case", KERNELS)
@pytest.mark.parametrize("opset", [17, 21])
def test_like_the_kernel(case, opset):
    n, data, weights, smooth = KERNELS[case]
    m = model([n], {"x": data}, weights, opset, [o for o in n.output if o])
    same(m, {"x": data}, rtol=2e-5)
    if smooth:
        slope(m, {"x": data}, h=2e-3)


@pytest.mark.parametrize("side", "AB")
@pytest.mark.parametrize("turned", [0, 1])
def test_batches_that_move(side, turned):
    """transBatch: [k, b1, b2, m] is the batch [b1, b2] of [k, m]."""
    flags = {f"transBatch{side}": 1, f"trans{side}": turned}
    a, b = x(2, 3, 5, 4), x(2, 3, 4, 6)
    moved = {"A": a, "B": b}
    inner = moved[side].swapaxes(-1, -2) if turned else moved[side]
    moved[side] = np.ascontiguousarray(inner.transpose(2, 0, 1, 3))
    m = model([ms("FusedMatMul", "x,w", alpha=0.5, **flags)], {"x": moved["A"]}, {"w": moved["B"]})
    same(m, {"x": moved["A"]})
    slope(m, {"x": moved["A"]})


@pytest.mark.parametrize(("n", "weights"), [
    (ms("Inverse"), {}), (ms("CDist", "x,w", metric="cityblock"), {"w": x(5, 4)}),
    (ms("CropAndResize", "x,r,i,c", mode="nearest"), {**CROPS, "c": np.array([2, 2], I32)}),
    (ms("Rfft", signal_ndim=2), {}), (ms("BiasSoftmax", "x,b", is_inner_broadcast=0, axis=1), {"b": x(4)})],
    ids=lambda v: getattr(v, "op_type", ""))
def test_stays(n, weights):
    data = x(4, 4)
    m = model([n], {"x": data}, weights)
    if n.op_type == "BiasSoftmax":
        m.graph.input[0].type.tensor_type.ClearField("shape")
    stays(m)


def gelu(v):
    return v * (1 + np.vectorize(math.erf)(v / math.sqrt(2))) / 2


def softmax(v):
    e = np.exp(v - v.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


BIAS, SKIP, W, C = x(4), x(2, 3, 4), x(4, 5), x(5)
ONE = SKIP[:, :1].copy()
PAIRS = x(2, 3, 2)
REPLICAS = {
    "bias add": (ms("BiasAdd", "x,b,s"), CUBE, {"b": BIAS, "s": SKIP}, CUBE + BIAS + SKIP),
    "bias dropout": (ms("BiasDropout", "x,b,s"), CUBE, {"b": BIAS, "s": SKIP}, CUBE + BIAS + SKIP),
    "bias dropout alone": (ms("BitmaskBiasDropout", "x,b"), CUBE, {"b": BIAS}, CUBE + BIAS),
    "bias split gelu": (ms("BiasSplitGelu", "x,b"), CUBE, {"b": BIAS}, (CUBE + BIAS)[..., :2] * gelu((CUBE + BIAS)[..., 2:])),
    "gemm fast gelu": (ms("GemmFastGelu", "x,w,b"), CUBE, {"w": W, "b": C}, gelu(CUBE @ W + C)),
    "bias softmax": (ms("BiasSoftmax", "x,b", axis=2, is_inner_broadcast=1), CUBE, {"b": ONE}, softmax(CUBE + ONE)),
    "bias softmax of all": (ms("BiasSoftmax", "x,b", axis=1, is_inner_broadcast=0), CUBE, {"b": SKIP[:1]},
                            softmax((CUBE + SKIP[:1]).reshape(2, -1)).reshape(CUBE.shape)),
    "matmul relu": (ms("FusedMatMulActivation", "x,w", activation="Relu", alpha=0.5), CUBE, {"w": W},
                    np.maximum(CUBE @ W / 2, 0)),
    "matmul leaky": (ms("FusedMatMulActivation", "x,w", activation="LeakyRelu", activation_alpha=0.3, transB=1), CUBE,
                     {"w": W.T.copy()}, np.where(CUBE @ W > 0, CUBE @ W, 0.3 * (CUBE @ W))),
    "rfft": (ms("Rfft"), CUBE, {}, np.stack([(f := np.fft.rfft(CUBE)).real, f.imag], -1)),
    "irfft": (ms("Irfft", signal_ndim=1), PAIRS, {}, np.fft.irfft(PAIRS[..., 0] + 1j * PAIRS[..., 1])),
    "complex": (ms("ComplexMul", "x,w"), PAIRS, {"w": PAIRS[::-1].copy()}, "product"),
    "conjugate": (ms("ComplexMulConj", "x,w"), PAIRS, {"w": PAIRS[::-1].copy()}, "conjugate"),
    "embedding": (ms("TorchEmbedding", "x,i"), ROWS, {"i": np.array([[2, 0], [1, 1]], I64)}, ROWS[[[2, 0], [1, 1]]]),
}


@pytest.mark.parametrize("case", REPLICAS)
@pytest.mark.parametrize("opset", [17, 21])
def test_like_a_replica(case, opset):
    n, data, weights, want = REPLICAS[case]
    if isinstance(want, str):
        a, b = (v[..., 0] + 1j * v[..., 1] for v in (data, weights["w"]))
        want = a * (b.conj() if want == "conjugate" else b)
        want = np.stack([want.real, want.imag], -1)
    m = model([n], {"x": data}, weights, opset)
    new = replica(m, {"x": data}, [want.astype(np.float32)], rtol=2e-3 if "fast" in case else 1e-5)
    slope(m, {"x": data}, runs=new)
