"""A lowered file says the same as the portable one: same values, same forward nodes, one copy of the weights."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import graphattr
from graphattr import signs
from graphattr.errors import MethodError
from graphattr.graph import Graph
from graphattr.lower import TARGETS, lower, lowering_for
from graphattr.onnxio import write_model
from tests.unit.tiny import array, model, node

METHODS = [
    "gradient",
    "guided_backprop",
    "rectgrad",
    "lrp.epsilon",
    "lrp.gamma",
    "lrp.epsilon_plus_flat",
    "lrp.alpha2_beta1",
    "lrp.zplus",
]
OFF, ALL = ort.GraphOptimizationLevel.ORT_DISABLE_ALL, ort.GraphOptimizationLevel.ORT_ENABLE_ALL


def plain(batch="N", pads=(0, 0, 0, 0), kernel=2):
    """Convolutions, rectifiers and one pooling layer."""
    nodes = [
        node("Conv", "x w1 b1", "c1", "stem", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r1", "relu1"),
        node("MaxPool", "r1", "p1", "pool", kernel_shape=[kernel] * 2, strides=[2, 2], pads=list(pads)),
        node("Conv", "p1 w2", "c2", "middle", pads=[1, 1, 1, 1]),
        node("Relu", "c2", "r2", "relu2"),
        node("GlobalAveragePool", "r2", "g", "mean"),
        node("Flatten", "g", "f", "flat"),
        node("Gemm", "f w3 b3", "y", "head"),
    ]
    weights = {
        "w1": array(16, 3, 3, 3),
        "b1": array(16, seed=1),
        "w2": array(32, 16, 3, 3, seed=2) / 8,
        "w3": array(32, 3, seed=3),
        "b3": array(3, seed=4),
    }
    return model(nodes, {"x": [batch, 3, 8, 8]}, {"y": [batch, 3]}, weights)


def mobile(batch="N"):
    """An inverted residual: expansion, depthwise, linear bottleneck, sum; Clip as rectifier, stride 2 at the stem."""
    nodes = [
        node("Conv", "x w1 b1", "c1", "stem", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Conv", "c1 w2 b2", "c2", "expand"),
        node("Clip", "c2 low high", "r2", "relu6a"),
        node("Conv", "r2 w3 b3", "c3", "depthwise", group=48, pads=[1, 1, 1, 1]),
        node("Clip", "c3 low high", "r3", "relu6b"),
        node("Conv", "r3 w4 b4", "c4", "project"),
        node("Add", "c1 c4", "s", "sum"),
        node("GlobalAveragePool", "s", "g", "mean"),
        node("Flatten", "g", "f", "flat"),
        node("Gemm", "f w5", "y", "head"),
    ]
    weights = {
        "w1": array(16, 3, 3, 3),
        "b1": array(16, seed=1),
        "w2": array(48, 16, 1, 1, seed=2),
        "b2": array(48, seed=3),
        "w3": array(48, 1, 3, 3, seed=4),
        "b3": array(48, seed=5),
        "w4": array(16, 48, 1, 1, seed=6) / 4,
        "b4": array(16, seed=7),
        "w5": array(16, 3, seed=8),
        "low": np.float32(0),
        "high": np.float32(6),
    }
    return model(nodes, {"x": [batch, 3, 8, 8]}, {"y": [batch, 3]}, weights)


def scaled(batch="N"):
    """A factor per channel between two convolutions, in front of a rectifier (DenseNet)."""
    nodes = [
        node("Conv", "x w1", "c1", "stem", pads=[1, 1, 1, 1]),
        node("Relu", "c1", "r0", "relu0"),
        node("Mul", "r0 s", "m", "scale"),
        node("Add", "m t", "a", "shift"),
        node("Relu", "a", "r1", "relu"),
        node("Conv", "r1 w2 b2", "c2", "last", dilations=[2, 2]),
        node("Relu", "c2", "r2", "relu2"),
        node("ReduceMean", "r2", "f", "mean", axes=[2, 3], keepdims=0),
        node("Gemm", "f w3", "y", "head"),
    ]
    weights = {
        "w1": array(16, 3, 3, 3),
        "s": array(16, 1, 1, seed=1),
        "t": array(16, 1, 1, seed=2),
        "w2": array(20, 16, 3, 3, seed=3) / 8,
        "b2": array(20, seed=4),
        "w3": array(20, 3, seed=5),
    }
    return model(nodes, {"x": [batch, 3, 8, 8]}, {"y": [batch, 3]}, weights)


def silu(batch="N"):
    """x times its sigmoid, twice, with a skip connection."""
    proto = mobile(batch)
    nodes = []
    for n in proto.graph.node:
        if n.op_type == "Clip":
            x, y = n.input[0], n.output[0]
            nodes += [node("Sigmoid", x, f"{y}_s", f"{n.name}_s"), node("Mul", f"{x} {y}_s", y, n.name)]
        else:
            nodes.append(n)
    weights = [t for t in proto.graph.initializer if t.name not in ("low", "high")]
    return model(nodes, {"x": [batch, 3, 8, 8]}, {"y": [batch, 3]}, {t.name: t for t in weights})


def gelu(batch="N", curve="erf"):
    """Two dense layers over the rows of a picture, GELU as exporters write it, a skip connection."""
    if curve == "erf":  # h / 2 * (1 + erf(h / sqrt 2))
        nodes = [node("Div", "h root", "d", "d"), node("Erf", "d", "c", "curve"), node("Add", "c one", "p", "p")]
    else:  # h / 2 * (1 + tanh(sqrt(2 / pi) (h + 0.044715 h^3)))
        nodes = [
            node("Pow", "h three", "cube", "cube"),
            node("Mul", "cube small", "part", "part"),
            node("Add", "h part", "sum", "sum"),
            node("Mul", "sum slope", "d", "d"),
            node("Tanh", "d", "c", "curve"),
            node("Add", "c one", "p", "p"),
        ]
    nodes = [
        node("MatMul", "x w1", "m1", "first"),
        node("Add", "m1 b1", "h", "bias"),
        *nodes,
        node("Mul", "h p", "hp", "product"),
        node("Mul", "hp half", "a", "gelu"),
        node("MatMul", "a w2", "m2", "second"),
        node("Add", "m2 x", "s", "skip"),
        node("ReduceMean", "s", "f", "mean", axes=[1, 2], keepdims=0),
        node("MatMul", "f w3", "y", "head"),
    ]
    weights = {"w1": array(8, 12), "b1": array(12, seed=1), "w2": array(12, 8, seed=2) / 4, "w3": array(8, 3, seed=3)}
    numbers = {"root": 2**0.5, "one": 1, "half": 0.5, "three": 3, "small": 0.044715, "slope": (2 / np.pi) ** 0.5}
    return model(nodes, {"x": [batch, 3, 8, 8]}, {"y": [batch, 3]}, weights | {k: np.float32(v) for k, v in numbers.items()})


MODELS = {
    "plain": plain,
    "padded": lambda batch="N": plain(batch, (1, 1, 1, 1), 3),
    "hanging": lambda batch="N": plain(batch, (0, 0, 1, 1), 3),
    "mobile": mobile,
    "scaled": scaled,
    "silu": silu,
    "gelu": gelu,
    "gelu, tanh": lambda batch="N": gelu(batch, "tanh"),
}


def converted(name, method, target, batch="N"):
    return graphattr.convert(MODELS[name](batch), method, target=1, lowering=target)


def run(explanation, x, level=OFF):
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 3
    session = ort.InferenceSession(explanation.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(["y", "x_attribution"], {"x": x})


def inputs(rows):
    """Noise, and in every second sample coarse steps: windows with several equal maxima, and windows of zeros."""
    x = array(rows, 3, 8, 8, seed=9)
    x[::2] = np.round(x[::2])
    x[0, :, :4] = 0.5
    return x


def distance(a, b):
    return np.linalg.norm(a.astype(float) - b) / max(np.linalg.norm(b.astype(float)), 1e-30)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_same_values(name, method, target):
    x = inputs(3)
    portable = converted(name, method, "portable")
    y, expected = run(portable, x)
    lowered = converted(name, method, target)
    same_y, found = run(lowered, x)
    assert np.array_equal(same_y, y)
    assert distance(found, expected) < 2e-6
    assert distance(run(lowered, x, ALL)[1], expected) < 2e-5 + 3 * distance(run(portable, x, ALL)[1], expected)


@pytest.mark.parametrize("name", MODELS)
def test_static_batch(name):
    x = inputs(1)
    portable = converted(name, "lrp.epsilon_plus_flat", "portable", 1)
    lowered, expected = converted(name, "lrp.epsilon_plus_flat", "cpu", 1), run(portable, x)[1]
    assert distance(run(lowered, x)[1], expected) < 2e-6
    assert distance(run(lowered, x, ALL)[1], expected) < 5e-6 + 3 * distance(run(portable, x, ALL)[1], expected)


@pytest.mark.parametrize("name", MODELS)
def test_batch_is_sample_by_sample(name):
    x = inputs(4)
    lowered = converted(name, "gradient", "cpu")
    whole = run(lowered, x)[1]
    assert distance(np.concatenate([run(lowered, row[None])[1] for row in x]), whole) < 1e-6


def operators(explanation):
    return [n.op_type for n in explanation.model.graph.node]


def test_what_is_rewritten():
    portable, cpu = (operators(converted("plain", "gradient", t)) for t in ("portable", "cpu"))
    assert "Where" in portable
    assert "Where" not in cpu
    assert cpu.count("ConvTranspose") == 1  # to the three input channels
    pool = next(n for n in converted("plain", "gradient", "cpu").model.graph.node if n.op_type == "MaxPool")
    assert len(pool.output) == 1


def test_nonnegative_denominators_need_no_test_of_sign():
    found = operators(converted("plain", "lrp.zplus", "cuda"))
    assert "Where" not in found


@pytest.mark.parametrize("method", ["gradient", "lrp.epsilon_plus_flat"])
@pytest.mark.parametrize("name", MODELS)
def test_forward_nodes_stay(name, method):
    source = MODELS[name]().graph.node
    kept = {n.name: n for n in converted(name, method, "cpu").model.graph.node}
    for n in source:
        assert kept[n.name].input[:1] == n.input[:1]
        assert kept[n.name].output[:1] == n.output[:1]
        assert kept[n.name].attribute == n.attribute or n.op_type in ("Gemm", "Conv")


@pytest.mark.parametrize("name", MODELS)
def test_one_copy_of_the_weights(name):
    portable, cpu = (
        sum(
            onnx.numpy_helper.to_array(t).size
            for t in converted(name, "lrp.epsilon_plus_flat", t_).model.graph.initializer
            if len(t.dims) == 4 and t.dims[1] > 1 and t.dims[2:] != [1, 1] and t.name[0] == "w"
        )
        for t_ in ("portable", "cpu")
    )
    assert portable == cpu


def test_onnx_runtime_folds_what_is_done_to_weights(tmp_path):
    options = ort.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "o.onnx"), 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    explanation = converted("plain", "lrp.epsilon_plus_flat", "cpu")
    ort.InferenceSession(explanation.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    held = onnx.load(tmp_path / "o.onnx").graph
    constants = {t.name for t in held.initializer}
    assert [n.name for n in held.node if n.input and all(i in constants for i in n.input if i)] == []
    assert all(n.input[1] in constants for n in held.node if n.op_type == "Conv")


def test_portable_is_the_graph_itself_and_nonsense_is_refused():
    g = Graph(17)
    assert lower(g, "portable") is g
    with pytest.raises(MethodError, match="portable, cuda, cpu"):
        lower(g, "gpu")
    assert set(TARGETS) == {"portable", "cuda", "cpu"}


def test_the_manifest_names_the_lowering():
    assert converted("plain", "gradient", "cuda").manifest["lowering"] == "cuda"


def test_double_precision_is_left_alone():
    proto = plain()
    for t in proto.graph.initializer:
        t.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(t).astype(np.float64), t.name))
    for v in [*proto.graph.input, *proto.graph.output]:
        v.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    found = operators(graphattr.convert(proto, "gradient", target=1))
    assert "HardSigmoid" not in found


def test_signs():
    g = Graph(17)
    x = g.input("x", np.float32, (2, 4))
    up, down = g.Relu(x), g.Min(x, 0.0)
    values = {
        "x": x,
        "up": up,
        "down": down,
        "both": up * down,
        "square": down * down,
        "sum": up + down * down,
        "minus": -up,
        "matmul": g.MatMul(up, g.Relu(g.const(array(4, 3), name="w"))),
    }
    found = signs.signs(g)
    assert {k: found.get(v, signs.Sign.ANY).name for k, v in values.items() if v in found} == {
        "up": "NONNEGATIVE",
        "down": "NONPOSITIVE",
        "both": "NONPOSITIVE",
        "square": "NONNEGATIVE",
        "sum": "NONNEGATIVE",
        "minus": "NONPOSITIVE",
        "matmul": "NONNEGATIVE",
    }


@pytest.mark.parametrize(
    ("providers", "target"), [(None, "cpu"), ("tensorrt", "cuda"), (["CUDAExecutionProvider"], "cuda")]
)
def test_the_provider_decides(providers, target):
    assert lowering_for(providers) == target


EXTREMES = np.array(
    [
        0.0,
        -0.0,
        1.2e-38,
        -1.2e-38,
        1e-30,
        -1e-30,
        1.0,
        -1.0,
        6.0,
        5.9999995,
        6.0000005,
        1e30,
        -1e30,
        3.4e38,
        -3.4e38,
        8.0,
    ]
)


@pytest.mark.parametrize("level", [OFF, ALL])
@pytest.mark.parametrize("op", ["Relu", "Clip", "Relu6", "stabiliser"])
def test_masks_are_exact_at_the_edges(op, level):
    g = Graph(17)
    x = g.input("x", np.float32, (1, 16, 2, 8))
    if op == "stabiliser":
        y = g.Where(x >= 0.0, x + 0.25, x - 0.25)
    elif op == "Relu":
        y = g.Where(x > 0.0, x, 0.0)
    else:
        y = g.Where(x < 6.0, g.Where(x > 0.0, x, 0.0), 0.0)
        if op == "Relu6":  # both masks read its output
            g.outputs.append(("r", g.Clip(x, 0.0, 6.0)))
    g.outputs.append(("y", y))
    feeds = {"x": np.broadcast_to(EXTREMES.astype(np.float32).reshape(2, 8), (1, 16, 2, 8)).copy()}
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = level, 3
    found, expected = (
        ort.InferenceSession(write_model(h).SerializeToString(), options, providers=["CPUExecutionProvider"]).run(
            ["y"], feeds
        )[0]
        for h in (lower(g, "cpu"), g)
    )
    ops = [n.op for n in lower(g, "cpu").nodes]
    assert "Where" not in ops
    assert ops.count("Mul") == {"Relu": 1, "Relu6": 1, "Clip": 2, "stabiliser": 0}[op]
    assert np.array_equal(found, expected)


@pytest.mark.parametrize("curve", ["erf", "tanh"])
def test_pieces_of_gelu_are_computed_anew(curve, tmp_path):
    """Behind the network nobody reads them, also after ONNX Runtime has joined equal nodes; the copies give the same numbers."""
    explanation = graphattr.convert(gelu(curve=curve), "gradient", target=1)
    pieces = {"d", "c", "p", "cube", "part", "sum"}
    assert not [n.name for n in explanation.model.graph.node if "/" in n.output[0] and pieces & set(n.input)]
    options = ort.SessionOptions()
    options.graph_optimization_level, options.log_severity_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC, 3
    options.optimized_model_filepath = str(tmp_path / "seen.onnx")
    ort.InferenceSession(explanation.model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    seen = onnx.load(options.optimized_model_filepath)
    assert sum(n.op_type == {"erf": "Erf", "tanh": "Tanh"}[curve] for n in seen.graph.node) == 2


@pytest.mark.parametrize("name", MODELS)
def test_what_is_needed_late_stands_before_the_way_back(name):
    """ONNX Runtime looks first for what stands last: of two inputs that is the one with the longer way to it."""
    graph = converted(name, "lrp.epsilon_plus_flat", "cpu").model.graph
    at, depth = {}, {}
    for i, n in enumerate(graph.node):
        assert all(v in at for v in n.input if v in {o for m in graph.node for o in m.output})
        own = 1 + max((depth.get(v, 0) for v in n.input), default=0)
        at.update(dict.fromkeys(n.output, i))
        depth.update(dict.fromkeys(n.output, own))
        known = [v for v in n.input if v in at]
        assert sorted(known, key=at.get) == sorted(known, key=lambda v: (depth[v], at[v]))


def test_an_open_number_of_channels_stays_plain():
    """Such as behind a Pad whose widths the run decides."""
    g = Graph(17)
    x, w = g.input("x", np.float32, ("N", "C", 8, 8)), g.const(array(16, 16, 3, 3))
    g.outputs.append(("y", g.Relu(g.Conv(g.Conv(x, w), w))))
    assert [n.op for n in lower(g, "cpu").nodes] == ["Conv", "Conv", "Relu"]
