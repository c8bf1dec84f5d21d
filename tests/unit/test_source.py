"""Abuse of graphattr.source.read: each case ends in ModelError that names the culprit."""

import contextlib
import hashlib
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from graphattr.errors import ModelError
from graphattr.source import array_of, read

EXPORTS = Path(__file__).resolve().parents[3] / "shared" / "exports"


def model(nodes=None, weights=None, inputs=("x",), outputs=("y",), opset=17):
    nodes = nodes or [helper.make_node("MatMul", ["x", "w"], ["h"], name="product"), helper.make_node("Relu", ["h"], ["y"])]
    weights = {"w": np.arange(6, dtype=np.float32).reshape(3, 2)} if weights is None else weights
    tensors = [w if isinstance(w, TensorProto) else numpy_helper.from_array(w, k) for k, w in weights.items()]
    info = [[helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names] for names in (inputs, outputs)]
    graph = helper.make_graph(nodes, "g", *info, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def external(folder, location="w.bin", data=bytes(24), shape=(3, 2), **keys):
    if data is not None:
        (folder / "w.bin").write_bytes(data)
    t = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **keys}.items():
        t.external_data.add(key=key, value=str(value))
    path = folder / "m.onnx"
    path.write_bytes(model(weights={"w": t}).SerializeToString())
    return path


def refused(what, *words):
    with pytest.raises(ModelError) as e:
        read(what)
    for word in words:
        assert str(word) in str(e.value)


def test_reads_path_bytes_and_proto(tmp_path):
    m = model()
    path = tmp_path / "m.onnx"
    path.write_bytes(m.SerializeToString())
    for given_ in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), m):
        assert read(given_).model == m
    assert read(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest() == read(path.read_bytes()).sha256
    assert read(path).folder == tmp_path
    assert read(path).path == path
    assert read(m).model is m
    assert read(m).folder is None


def test_refuses_what_is_no_model(tmp_path):
    empty, text, pointer = tmp_path / "empty.onnx", tmp_path / "t.onnx", tmp_path / "lfs.onnx"
    empty.write_bytes(b"")
    text.write_bytes(b"hello world, this is no model" * 9)
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused(tmp_path / "gone.onnx", "gone.onnx", "no file")
    refused(tmp_path, "directory")
    refused(empty, "empty.onnx", "empty")
    refused(text, "t.onnx")
    refused(pointer, "git lfs pull")
    refused("a\0b")
    refused("x" * 5000)
    refused(b"", "bytes")
    refused(3, "int")
    refused(None, "NoneType")
    refused(onnx.ModelProto(), "no graph")
    refused(numpy_helper.from_array(np.ones(3, np.float32), "t").SerializeToString())


@pytest.mark.skipif(os.name != "posix", reason="needs a fifo")
def test_refuses_a_fifo(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "regular file")


def test_refuses_missing_parts():
    m = model()
    del m.opset_import[:]
    refused(m, "opset import")
    m = model()
    del m.graph.output[:]
    refused(m, "no output")
    refused(model(opset=27), "27", "26")
    refused(model(opset=0), "version 0")
    m = model()
    m.graph.node[1].op_type = ""
    refused(m, "node 1", "no operator")


@pytest.mark.parametrize(("nodes", "words"), [
    ([("Relu", "x", "y"), ("Tanh", "x", "y")], ["'y'", "Tanh", "Relu", "already"]),
    ([("Relu", "x", "w")], ["'w'", "initialiser"]),
    ([("Relu", "x", "h"), ("Tanh", "hh", "y")], ["'hh'", "Tanh", "input 0", "did you mean 'h'"]),
    ([("Relu", "x", "z")], ["output 'y'"]),
    ([("Add", "x b", "a"), ("Relu", "a", "b"), ("Tanh", "b", "y")], ["cycle", "node 0 (Add)", "node 1 (Relu)"]),
    ([("Add", "x y", "y")], ["cycle", "node 0 (Add)"]),
])
def test_refuses_bad_wiring(nodes, words):
    refused(model([helper.make_node(op, i.split(), o.split()) for op, i, o in nodes]), *words)


def test_cycle_does_not_blame_what_hangs_on_it():
    ops = [("Tanh", "b", "y"), ("Relu", "a", "b"), ("Add", "x b", "a")]
    with pytest.raises(ModelError, match=r"cycle") as e:
        read(model([helper.make_node(op, i.split(), o.split()) for op, i, o in ops]))
    assert "Tanh" not in str(e.value)


def test_unsorted_nodes_are_fine():
    ops = [("Tanh", "h", "y"), ("Relu", "x", "h")]
    read(model([helper.make_node(op, [i], [o]) for op, i, o in ops]))


def test_refuses_doubled_names():
    refused(model(inputs=("x", "x")), "input 'x'", "twice")
    refused(model(outputs=("y", "y")), "output 'y'", "twice")
    m = model()
    m.graph.initializer.append(m.graph.initializer[0])
    refused(m, "initialiser 'w'", "twice")
    read(model(inputs=("x", "w")))                       # IR 3: a weight is listed as an input too


def branch(name, output):
    return helper.make_graph([helper.make_node("Neg", [name], [output])], f"body_{output}", [],
                             [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)])


@pytest.mark.parametrize(("inner", "words"), [
    ("x", None), ("w", None), ("nowhere", ["'nowhere'", "body_e", "Neg"]), ("y", ["cycle"])])
def test_looks_into_bodies(inner, words):
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("x", "t"), else_branch=branch(inner, "e"), name="choice")
    m = model([node], weights={"c": np.array(True), "w": np.ones(2, np.float32)})
    if words is None:
        read(m)
    else:
        refused(m, *words)


def test_refuses_bad_tensors():
    t = TensorProto(name="w", data_type=1, dims=[-3, 2], raw_data=bytes(24))
    refused(model(weights={"w": t}), "'w'", "-3")
    t = TensorProto(name="w", data_type=1, dims=[1 << 40, 1 << 40], raw_data=bytes(24))
    refused(model(weights={"w": t}), "'w'", "24")
    t = TensorProto(name="w", data_type=1, dims=[3, 2], float_data=[1.0, 2.0])
    refused(model(weights={"w": t}), "'w'", "needs 6 entries")
    t = TensorProto(name="w", data_type=99, dims=[3, 2], raw_data=bytes(24))
    refused(model(weights={"w": t}), "'w'", "99")
    t = TensorProto(name="w", data_type=8, dims=[3], raw_data=bytes(24))
    refused(model(weights={"w": t}), "'w'", "strings")
    bad = TensorProto(name="v", data_type=7, dims=[2], raw_data=bytes(8))
    nodes = [helper.make_node("Constant", [], ["k"], name="konst", value=bad), helper.make_node("Reshape", ["x", "k"], ["y"])]
    refused(model(nodes), "'konst'", "'v'")


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_refuses_nonfinite_weights(dtype):
    w = np.ones((5, 4), dtype)
    w[1, 2], w[3, 1], w[4, 3] = np.nan, np.inf, -np.inf
    refused(model(weights={"w": w}), "'w'", "1 NaN", "2 infinite", "20")
    assert read(model(weights={"w": w}), allow_nonfinite=True)
    refused(model(weights={"w": np.array(np.nan, dtype)}), "1 NaN")


def test_accepts_masks_and_bounds():
    mask = np.triu(np.full((4, 4), -np.inf, np.float32), 1)
    read(model(weights={"w": mask, "limit": np.array(np.inf, np.float32), "int": np.array([1, 2])}))


def test_external_data(tmp_path):
    want = np.arange(6, dtype=np.float32).reshape(3, 2)
    source = read(external(tmp_path, data=bytes(8) + want.tobytes(), offset=8, length=24))
    got = array_of(source.model.graph.initializer[0], source.folder)
    assert isinstance(got, np.memmap)
    np.testing.assert_array_equal(got, want)
    refused(source.model, "'w'", "w.bin", "folder")
    refused(source.model.SerializeToString(), "'w'", "folder")


@pytest.mark.parametrize(("keys", "words"), [
    ({"data": None}, ["no file", "w.bin"]),
    ({"data": bytes(23)}, ["23 bytes"]),
    ({"offset": 4}, ["24 bytes"]),
    ({"offset": -4}, ["offset -4"]),
    ({"offset": "x"}, ["no integers"]),
    ({"length": 20}, ["length 20"]),
    ({"location": ""}, ["refused"]),
    ({"location": "/etc/passwd"}, ["/etc/passwd", "refused"]),
    ({"location": "C:\\w.bin"}, ["refused"]),
    ({"location": "../w.bin"}, ["../w.bin", "refused"]),
    ({"location": "a/../../w.bin"}, ["refused"]),
    ({"location": "a\\..\\..\\w.bin"}, ["refused"]),
    ({"location": "."}, ["no file"]),
    ({"data": np.full(6, np.nan, np.float32).tobytes()}, ["6 NaN"]),
    ({"shape": (-1, 2)}, ["-1"]),
])
def test_refuses_external_data(tmp_path, keys, words):
    refused(external(tmp_path, **keys), "'w'", *words)


def test_refuses_a_link_out_of_the_folder(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(24))
    inside = tmp_path / "model"
    inside.mkdir()
    path = external(inside, data=None)
    (inside / "w.bin").symlink_to(tmp_path / "secret")
    refused(path, "'w'", "link", "secret")
    (inside / "w.bin").unlink()
    (inside / "d").symlink_to(tmp_path)
    refused(external(inside, location="d/secret", data=None), "'w'", "link")


def test_accepts_the_links_of_a_cache(tmp_path):
    """Hugging Face's cache: the model and its data are both links into one folder of blobs."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    external(tmp_path / "blobs").rename(tmp_path / "blobs" / "0a")
    (tmp_path / "blobs" / "w.bin").rename(tmp_path / "blobs" / "0b")
    (tmp_path / "snapshot" / "m.onnx").symlink_to(tmp_path / "blobs" / "0a")
    (tmp_path / "snapshot" / "w.bin").symlink_to(tmp_path / "blobs" / "0b")
    source = read(tmp_path / "snapshot" / "m.onnx")
    assert array_of(source.model.graph.initializer[0], source.folder).shape == (3, 2)


@pytest.mark.parametrize("name", ["FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT16", "INT64", "BOOL", "INT4", "UINT4",
                                  "FLOAT8E4M3FN", "STRING", "COMPLEX64", "UINT64"])
@pytest.mark.parametrize("how", ["raw", "typed", "external"])
def test_array_of_every_type(tmp_path, name, how):
    kind, values = getattr(TensorProto, name), [1, 0, 1, 1, 0]
    if name == "STRING" and how != "typed":
        pytest.skip("strings have no raw form")
    t = helper.make_tensor("w", kind, [5], [b"a"] * 5 if name == "STRING" else values)
    want = numpy_helper.to_array(t)
    if how != "typed":
        t = numpy_helper.from_array(want, "w")
    if how == "external":
        (tmp_path / "w.bin").write_bytes(t.raw_data)
        t = TensorProto(name="w", data_type=kind, dims=[5], data_location=TensorProto.EXTERNAL)
        t.external_data.add(key="location", value="w.bin")
    got = array_of(t, tmp_path)
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    assert got.tolist() == want.tolist()


VALID = model().SerializeToString()


def loads_or_refuses(data):
    with contextlib.suppress(ModelError):
        assert read(data).model.graph.node


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes(data):
    loads_or_refuses(data)


def test_truncations():
    for n in range(len(VALID)):
        loads_or_refuses(VALID[:n])


@settings(max_examples=500, deadline=None)
@given(st.lists(st.integers(0, 8 * len(VALID) - 1), min_size=1, max_size=6))
def test_bit_flips(bits):
    data = bytearray(VALID)
    for b in bits:
        data[b // 8] ^= 1 << b % 8
    loads_or_refuses(bytes(data))


@pytest.mark.skipif(not EXPORTS.is_dir(), reason="the shared exports are not here")
def test_reads_every_export():
    for path in EXPORTS.glob("*.onnx"):
        assert read(path).path == path
