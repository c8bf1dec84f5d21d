"""com.microsoft EmbedLayerNormalization and QEmbedLayerNormalization against ONNX Runtime's kernels."""

import numpy as np
import pytest
from onnx import helper

import graphattr
from tests.unit.foreigners import model, ms, outcome, same, x

I32 = np.int32
IDS = {"i": np.array([[3, 0, 5, 1], [2, 2, 6, 4]], I32), "t": np.array([[0, 0, 1, 1], [1, 0, 0, 1]], I32)}
TABLES = {"w": x(7, 6), "p": x(9, 6), "s": x(2, 6), "g": x(6), "b": x(6)}
MASK = {"m": np.array([[1, 1, 1, 0], [1, 1, 0, 0]], I32)}
PLACES = {"at": np.array([[4, 3, 8, 0], [0, 1, 2, 3]], I32)}
EMBED = {
    "all": ("i,t,w,p,s,g,b,m,at", "y,mask,sum", {**IDS, **MASK, **PLACES}),
    "one row of places": ("i,t,w,p,s,g,b,,at", "y,mask,sum", {**IDS, "at": PLACES["at"][:1]}),
    "no places": ("i,t,w,p,s,g,b,m", "y,mask", {**IDS, **MASK}),
    "no segments": ("i,,w,p,,g,b", "y,,sum", {"i": IDS["i"]}),
    "no mask": ("i,t,w,p,s,g,b", "y,mask", IDS),
}


@pytest.mark.parametrize("case", EMBED)
@pytest.mark.parametrize("opset", [17, 21])
def test_embed_layer_normalization(case, opset):
    inputs, outputs, feeds = EMBED[case]
    weights = {k: v for k, v in TABLES.items() if k in inputs.split(",")}
    n = ms("EmbedLayerNormalization", inputs, outputs, epsilon=1e-4)
    same(model([n], feeds, weights, opset, [o for o in n.output if o]), feeds, rtol=1e-5)


def test_relevance_of_words():
    """The sum of the embeddings is a tensor that can be attributed to: gradient x input of a norm's input sums to about 0."""
    inputs, _, feeds = EMBED["no mask"]
    nodes = [ms("EmbedLayerNormalization", inputs, "h,,sum", epsilon=1e-12), helper.make_node("Relu", ["h"], ["y"])]
    m = model(nodes, feeds, TABLES)
    made = graphattr.convert(m, method="gradient_x_input", target="seed", wrt=["sum"]).model
    found = outcome(made, {**feeds, "seed": x(2, 4, 6)})
    assert found[1].shape == (2, 4, 6)
    assert np.abs(found[1]).max() > 0.1


def levels(*shape, dtype=np.uint8):
    info = np.iinfo(dtype)
    return np.random.default_rng(7).integers(info.min, info.max + 1, shape).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
@pytest.mark.parametrize("segments", [True, False])
def test_quantised(dtype, segments):
    tables = {k: levels(*v.shape, dtype=dtype) for k, v in TABLES.items()}
    scales = {f"{k}s": np.float32(0.01 + 0.003 * i) for i, k in enumerate(TABLES)}
    zeros = {f"{k}z": dtype(3 + i) for i, k in enumerate(TABLES)}
    inputs = "i,t,w,p,s,g,b,m,ws,ps,ss,gs,bs,wz,pz,sz,gz,bz"
    inputs = inputs if segments else ",".join("" if k in ("t", "s", "ss", "sz") else k for k in inputs.split(","))
    weights = {k: v for k, v in {**tables, **scales, **zeros}.items() if k in inputs.split(",")}
    feeds = {k: v for k, v in {**IDS, **MASK}.items() if k in inputs.split(",")}
    n = ms("QEmbedLayerNormalization", inputs, "y,mask")
    same(model([n], feeds, weights, outputs=("y", "mask")), feeds, rtol=1e-5)
