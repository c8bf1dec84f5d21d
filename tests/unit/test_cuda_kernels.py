"""What runs on a GPU, without one: all that is written for CUDA has kernels there, and no step of a Loop waits.

The table (graphattr/cuda_kernels.txt) is that of one release. The last test asks ONNX Runtime itself, where it has CUDA, or
believes so: `python tests/bench/without_gpu.py run -m pytest tests/unit/test_cuda_kernels.py`.
"""

from __future__ import annotations

import numpy as np
import pytest
from onnx import AttributeProto, TensorProto

import graphattr
from graphattr.kernels import SHAPES, kernels
from tests.unit.cuda_nets import NETS, half
from tests.unit.tiny import F, array, model, node

METHODS = {
    "gradient": {}, "guided_backprop": {}, "lrp.epsilon_plus_flat": {}, "lrp.epsilon_alpha2_beta1_flat": {},
    "lrp.epsilon_gamma_box": {"low": -2.0, "high": 2.0}, "excitation_backprop.contrastive": {}, "integrated_gradients": {},
    "guided_ig": {}, "smoothgrad": {}, "deeplift.rescale": {}, "deeplift.reveal_cancel": {}, "dga": {}, "fullgrad": {},
    "grad_cam": {}, "rise": {}, "occlusion": {}, "lrp.attention": {}, "dmbp": {},
}
REFUSED = {  # what a method does not explain at all
    ("lstm", "fullgrad"), ("lstm", "grad_cam"), ("long_lstm", "fullgrad"), ("long_lstm", "grad_cam"),
    ("long_lstm", "deeplift.rescale"), ("long_lstm", "deeplift.reveal_cancel"), ("mobilenet", "dmbp"), ("transformer", "dmbp"),
    ("lstm", "dmbp"), ("long_lstm", "dmbp"),
}
CASES = [(n, m) for n in NETS for m in METHODS if (n, m) not in REFUSED and not (n == "lstm" and "reveal" in m)]
# Inputs that CUDA kernels read on the host: sizes, axes, positions.
ON_HOST = {"Slice": (1, 2, 3, 4), "Reshape": (1,), "Expand": (1,), "Tile": (1,), "Pad": (1,), "TopK": (1,), "Range": (0, 1, 2),
           "ConstantOfShape": (0,), "Squeeze": (1,), "Unsqueeze": (1,), "Resize": (1, 2, 3), "OneHot": (1,), "Split": (1,),
           "ReduceSum": (1,), "CumSum": (1,), "Loop": (0, 1), "If": (0,), "Trilu": (1,)}
LOOPED = ("integrated_gradients", "guided_ig", "smoothgrad", "rise", "dga", "dmbp")
ASKED = ("gradient", "lrp.epsilon_plus_flat", "integrated_gradients", "dga")
STEP = {"rise": {"Slice"}, "dga": {"Slice", "TopK"}}  # the step's number decides what is sliced, and how much: 8 bytes each


def explained(net, method, opset=17, lowering="cuda"):
    return graphattr.convert(NETS[net](opset), method, lowering=lowering, **METHODS[method])


def left(found):
    return {(row["op"], row["why"]): row["count"] for row in found["cpu"]}


@pytest.mark.parametrize(("net", "method"), CASES)
def test_every_node_has_a_kernel(net, method):
    made = explained(net, method)
    found = graphattr.placement(made)
    assert left(found) == {}
    assert found["opset"] == 17
    assert found["cuda"] > len(NETS[net](17).graph.node) / 2


@pytest.mark.parametrize("opset", [18, 21, 22, 24])
@pytest.mark.parametrize("net", NETS)
def test_opsets_whose_kernels_are_missing_are_told(net, opset):
    """From opset 22 on only MaxPool has none: its open-ended kernel 12+ serves definition 12 alone."""
    for method in ("lrp.epsilon_plus_flat", "integrated_gradients"):
        found = set(left(graphattr.placement(explained(net, method, opset))))
        missing = {("MaxPool", "no kernel for its definition of opset 22")} if net == "resnet" and opset >= 22 else set()
        assert found == missing


@pytest.mark.parametrize("precision", ["float32", "model"])
@pytest.mark.parametrize("net", ["resnet", "mobilenet", "transformer"])
def test_half_precision_has_kernels(net, precision):
    refused = (net, precision) == ("transformer", "model")  # IsInf, which lrp.softmax needs, takes no float16 before opset 20
    for method in ("gradient",) if refused else ("gradient", "lrp.epsilon_plus_flat"):
        made = graphattr.convert(half(NETS[net](17)), method, lowering="cuda", precision=precision)
        assert left(graphattr.placement(made)) == {}


def test_what_the_rewrite_is_for():
    """As the derivative says it, the backward of a strided convolution would run on the CPU."""
    found = left(graphattr.placement(explained("resnet", "gradient", lowering="portable")))
    assert found == {("ConvTranspose", "pads differ between the two ends"): 2}


def test_open_ended_kernels_serve_one_definition():
    (pool,) = [k for k in kernels()["MaxPool"] if k.first == 12]
    assert pool.last == 12
    assert {(k.first, k.last) for k in kernels()["Conv"]} == {(1, 10), (11, 21), (22, 22)}
    assert "MaxUnpool" not in kernels()


@pytest.mark.parametrize(
    ("dtype", "has"), [(F, True), (TensorProto.BOOL, False), (TensorProto.INT64, True), (TensorProto.INT8, False)]
)
def test_types_count(dtype, has):
    made = model([node("Where", "c a b", "y")], {"c": (TensorProto.BOOL, [3]), "a": (dtype, [3]), "b": (dtype, [3])},
                 {"y": (dtype, [3])})
    assert (not graphattr.placement(made)["cpu"]) == has


def test_shapes_are_counted_apart():
    nodes = [node("Shape", "x", "s"), node("Gather", "s at", "n"), node("ReduceProd", "s", "p"), node("Reshape", "x p", "y")]
    found = graphattr.placement(model(nodes, {"x": [2, 4]}, {"y": None}, {"at": np.int64(0)}))
    assert (found["shapes"], found["cuda"], found["cpu"]) == (3, 1, [])


# -- the rewrite --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kernel", "stride", "pads", "dilation", "size"),
    [(3, 2, (1, 1), 1, 8), (3, 2, (1, 1), 1, 9), (1, 2, (0, 0), 1, 8), (7, 2, (3, 3), 1, 11), (3, 2, (0, 1), 1, 8),
     (2, 3, (0, 0), 1, 10), (3, 1, (0, 2), 1, 8), (3, 1, (2, 0), 1, 8), (3, 3, (2, 0), 2, 12), (2, 4, (1, 0), 1, 13)],
)
@pytest.mark.parametrize("open_axes", [False, True])
def test_even_pads_change_no_value(kernel, stride, pads, dilation, size, open_axes):
    weights = {"w": array(3, 2, kernel, kernel)}
    conv = node("Conv", "x w", "y", strides=[stride] * 2, pads=[pads[0], pads[0], pads[1], pads[1]], dilations=[dilation] * 2)
    sizes = ["H", "W"] if open_axes else [size, size]
    source = model([conv, node("ReduceSum", "y axes", "z", keepdims=0)], {"x": ["N", 2, *sizes]}, {"z": ["N", 3]},
                   {**weights, "axes": np.int64([2, 3])})
    x = array(2, 2, size, size, seed=1)
    made = graphattr.convert(source, "gradient", lowering="cuda")
    for n in made.model.graph.node:
        if n.op_type == "ConvTranspose":
            held = {a.name: list(a.ints) for a in n.attribute if a.ints}
            half = len(held["pads"]) // 2
            assert held["pads"][:half] == held["pads"][half:]
            assert all(e < s for e, s in zip(held.get("output_padding", [0, 0]), held["strides"], strict=True))
    want = graphattr.Explainer(graphattr.convert(source, "gradient", lowering="portable"))(x)
    np.testing.assert_allclose(graphattr.Explainer(made)(x).scores["x"], want.scores["x"], rtol=1e-6, atol=1e-6)
    assert left(graphattr.placement(made)) == {}


@pytest.mark.parametrize("method", ["gradient", "lrp.epsilon_plus_flat", "integrated_gradients"])
@pytest.mark.parametrize("net", ["resnet", "mobilenet"])
def test_cuda_files_say_the_same(net, method):
    x = array(2, 3, 32, 32)
    a, b = (graphattr.Explainer(explained(net, method, lowering=t))(x) for t in ("cuda", "portable"))
    np.testing.assert_allclose(a.scores["image"], b.scores["image"], rtol=1e-4, atol=1e-6)


# -- Loops --------------------------------------------------------------------------------------------------------
def host_reads(graph, light, inside=False):
    """Nodes of bodies that read on the host what the device computed. `light`: constants and shapes."""
    light = {*light, *(t.name for t in graph.initializer), ""}
    for n in graph.node:
        if n.op_type in SHAPES or n.op_type == "Constant" or all(i in light for i in n.input):
            light.update(n.output)
        elif inside:
            yield from (n for i in ON_HOST.get(n.op_type, ()) if i < len(n.input) and n.input[i] not in light)
        for a in n.attribute:
            if a.type == AttributeProto.GRAPH:
                yield from host_reads(a.g, light, True)


@pytest.mark.parametrize(("net", "method"), [c for c in CASES if c[1] in LOOPED])
def test_steps_do_not_wait_for_the_host(net, method):
    graph = explained(net, method).model.graph
    reads = [n.op_type for n in host_reads(graph, set())]
    assert set(reads) <= STEP.get(method, set())


# -- the command line's line --------------------------------------------------------------------------------------
def test_verify_says_where_nodes_go(tmp_path):
    made = explained("resnet", "gradient", 22)
    line = next(c for c in graphattr.verify(made)["checks"] if c["name"] == "cuda")
    assert line["ok"] is None
    assert "1 MaxPool (no kernel for its definition of opset 22) is left to the CPU" in line["detail"]
    plain = graphattr.verify(explained("resnet", "gradient", lowering="cpu"))
    assert "cuda" not in {c["name"] for c in plain["checks"]}


# -- ONNX Runtime's own word --------------------------------------------------------------------------------------
@pytest.mark.parametrize("opset", [17, 22])
@pytest.mark.parametrize(("net", "method"), [c for c in CASES if c[1] in ASKED])
def test_onnx_runtime_places_them_there(net, method, opset):
    ort = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        pytest.skip("this ONNX Runtime has no CUDA")
    options = ort.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    made = explained(net, method, opset)
    session = ort.InferenceSession(made.model.SerializeToString(), options, ["CUDAExecutionProvider", "CPUExecutionProvider"])
    if "CUDAExecutionProvider" not in session.get_providers() or not hasattr(session, "get_provider_graph_assignment_info"):
        pytest.skip("no GPU, or an ONNX Runtime before 1.24, which tells nobody where its nodes are")
    onto = [(n.op_type, part.ep_name) for part in session.get_provider_graph_assignment_info() for n in part.get_nodes()]
    shapes = {"Slice", "Concat", "Gather", "ReduceProd", "Unsqueeze", "Squeeze", "Cast"}
    shapes |= {"Sub", "Mul", "Div", "Min", "Max", "Add", "Mod"}
    told = {row["op"] for row in graphattr.placement(made)["cpu"]}
    assert told <= {op for op, provider in onto if "CUDA" not in provider} <= shapes | told
    assert sum("CUDA" in provider for _, provider in onto) > 0.9 * len(onto)
