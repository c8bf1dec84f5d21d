"""Large files: weights stay where they are until somebody looks at them, and are written one at a time."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model

import graphattr
from graphattr import source, wire
from graphattr.errors import ModelError
from graphattr.fitted import fingerprint
from tests.unit.tiny import array, model, node


@pytest.fixture
def large(monkeypatch):
    """Every file counts as large, and every tensor of 160 bytes."""
    monkeypatch.setattr(source, "LARGE", 0)
    monkeypatch.setattr(wire, "LARGE", 160)


def net():
    """Weights as raw data, as floats, as 4-bit integers, as strings, small and large."""
    nodes = [node("MatMul", "x w", "h", "first"), node("Relu", "h", "r", "relu"), node("MatMul", "r v", "m", "second"),
             node("Add", "m b", "y", "bias")]
    proto = model(nodes, {"x": ["N", 16]}, {"y": ["N", 4]}, {"w": array(16, 24), "b": array(4, seed=1)})
    tensors = proto.graph.initializer
    tensors.append(helper.make_tensor("v", onnx.TensorProto.FLOAT, [24, 4], array(24, 4, seed=2).reshape(-1).tolist()))
    tensors.append(helper.make_tensor("names", onnx.TensorProto.STRING, [100], [b"name"] * 100))
    tensors[0].doc_string = "of the first layer"
    return proto


@pytest.fixture
def path(tmp_path):
    onnx.save(net(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def test_outlined_says_the_same(path, monkeypatch):
    monkeypatch.setattr(wire, "LARGE", 160)
    found = onnx.ModelProto.FromString(wire.outlined(memoryview(path.read_bytes()), path.name))
    where = {t.name: t.data_location == onnx.TensorProto.EXTERNAL for t in found.graph.initializer}
    assert where == {"w": True, "b": False, "v": False, "names": False}
    load_external_data_for_model(found, str(path.parent))
    for t in found.graph.initializer:  # onnx leaves the fields of the location
        t.ClearField("external_data")
        t.ClearField("data_location")
    assert found == net()


def test_chunks_are_the_file():
    proto = net()
    header = onnx.ModelProto()
    header.CopyFrom(proto)
    del header.graph.initializer[:]
    parts = list(wire.chunks(proto, header))
    assert onnx.ModelProto.FromString(b"".join(parts)) == proto
    assert numpy_helper.to_array(proto.graph.initializer[0]).tobytes() in parts


def test_chunks_refuse_what_the_dims_do_not_say(tmp_path, path):
    explanation = graphattr.convert(path)
    next(t for t in explanation.model.graph.initializer if t.name == "w").dims[0] = 15
    with pytest.raises(ModelError, match=r"initialiser 'w' of shape \[15, 24\] holds 1536 bytes, not 1440"):
        explanation.save(tmp_path / "e.onnx")
    assert not (tmp_path / "e.onnx").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.usefixtures("large")
def test_a_large_file_is_explained_as_a_small_one(path, tmp_path):
    read = source.read(path)
    assert read.model.graph.initializer[0].data_location == onnx.TensorProto.EXTERNAL
    explanation, expected = graphattr.convert(path), graphattr.convert(net())
    assert {t.name: numpy_helper.to_array(t).tolist() for t in explanation.model.graph.initializer} == {
        t.name: numpy_helper.to_array(t).tolist() for t in expected.model.graph.initializer
    }
    assert list(explanation.model.graph.node) == list(expected.model.graph.node)
    assert fingerprint(read) == fingerprint(source.read(net()))
    saved, x = explanation.save(tmp_path / "e.onnx"), array(3, 16, seed=3)
    onnx.checker.check_model(onnx.load(saved), full_check=True)
    assert onnx.load(saved) == explanation.model
    found, want = graphattr.Explainer(saved)(x), graphattr.explain(net(), x)
    assert np.array_equal(found.scores["x"], want.scores["x"])
    assert np.array_equal(found.target, want.target)


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("harm", ["cut", "cut more", "noise", "no graph", "endless number", "damaged weight"])
def test_damaged_files_are_refused_as_small_ones_are(path, harm):
    data = path.read_bytes()
    if harm == "damaged weight":
        proto = net()
        proto.graph.initializer[0].raw_data = proto.graph.initializer[0].raw_data[:-4]
        data = proto.SerializeToString()
    harmed = {
        "cut": data[:-3], "cut more": data[: len(data) // 2], "noise": bytes(range(256)) * 8, "no graph": b"\x08\x08",
        "endless number": b"\x3a" + b"\xff" * 40,
    }
    path.write_bytes(harmed.get(harm, data))
    with pytest.raises(ModelError, match=r"damaged|truncated|no graph"):
        source.read(path)
