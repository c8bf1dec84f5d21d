"""Abuse: whatever is wrong ends in exactly one GraphattrError.

On the command line: one `error:` line, exit code 1, and no file.
"""

from __future__ import annotations

import contextlib
import os
import random
import time

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import graphattr
from graphattr.cli import main
from tests.unit.tiny import B, F, I, S, array, mlp, model, node, renamed, saved

pytest.importorskip("onnxruntime")
X = array(2, 4, seed=9)


@pytest.fixture
def refused(tmp_path, capfd):
    """`convert` refuses the model, in Python and on the command line, with all these words; nothing is left in the folder."""
    def check(what, *words, **options):
        if isinstance(what, (onnx.ModelProto, bytes)):
            what = saved(what, tmp_path)
        before = sorted(os.listdir(tmp_path))
        with pytest.raises(graphattr.GraphattrError) as e:
            graphattr.convert(what, **options)
        for word in words:
            assert word in str(e.value), str(e.value)
        capfd.readouterr()
        argv = [f"--{k}={v if isinstance(v, str) else ','.join(v)}" for k, v in options.items() if v is not True]
        argv += [f"--{k}" for k, v in options.items() if v is True]
        assert main(["convert", str(what), "-o", str(tmp_path / "out.onnx"), *argv]) == 1
        out, err = capfd.readouterr()
        assert not out
        assert err.startswith("error: "), err
        assert err.count("\n") == 1, err
        assert "Traceback" not in err
        assert sorted(os.listdir(tmp_path)) == before
        return str(e.value)
    return check


def run(proto, feeds=X, **options):
    """Attribution of a model that must work, checked against the plain model's outputs."""
    import onnxruntime
    explanation = graphattr.convert(proto, **options)
    a = graphattr.Explainer(explanation)(feeds)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = session.run(None, feeds if isinstance(feeds, dict) else {"x": feeds})
    for info, want in zip(session.get_outputs(), wanted, strict=True):
        got = a.outputs[info.name]
        assert np.array_equal(got, want) if np.asarray(want).dtype.kind in "OUS" else np.allclose(got, want, rtol=1e-5, atol=1e-6)
    return a, explanation


def added(nodes, outputs=None, weights=None, domains=(), inputs=None, base=None):
    """The multilayer perceptron with more nodes, outputs and inputs beside it."""
    made = onnx.ModelProto()
    made.CopyFrom(base or mlp())
    made.graph.node.extend(nodes)
    for name, (kind, shape) in (outputs or {}).items():
        made.graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    for name, (kind, shape) in (inputs or {}).items():
        made.graph.input.append(helper.make_tensor_value_info(name, kind, shape))
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(w), k) for k, w in (weights or {}).items())
    made.opset_import.extend(helper.make_opsetid(d, 1) for d in domains)
    return made


# -- damaged files ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.99])
def test_truncated(refused, share):
    data = mlp().SerializeToString()
    refused(data[:int(len(data) * share)])


def test_no_model(refused, tmp_path):
    refused(b"\x89PNG\r\n\x1a\n" + bytes(100))
    refused(b"hello world, this is no model" * 9)
    refused(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull")
    refused(tmp_path / "gone.onnx", "gone.onnx", "no file")
    refused(tmp_path, "directory")


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.binary(max_size=400))
def test_random_bytes(data):
    with pytest.raises(graphattr.GraphattrError):
        graphattr.convert(data)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_flipped_bytes(seed, flips):
    """A model with some bytes changed is converted, or refused with one of our errors: nothing else may come out."""
    data = bytearray(mlp("Softmax").SerializeToString())
    dice = random.Random(seed)
    for _ in range(flips):
        data[dice.randrange(len(data))] = dice.randrange(256)
    with contextlib.suppress(graphattr.GraphattrError):
        graphattr.convert(bytes(data), target=dice.choice(["argmax", "input", 1]), delta=True, ledger=True)


def test_cycle(refused):
    nodes = [node("Add", "x b", "a", "one"), node("Relu", "a", "y", "two"), node("Relu", "y", "b", "three")]
    refused(model(nodes, outputs={"y": ["N", 4]}), "cycle", "one", "two", "three")


def test_nodes_in_any_order():
    proto = mlp()
    shuffled = onnx.ModelProto()
    shuffled.CopyFrom(proto)
    del shuffled.graph.node[:]
    shuffled.graph.node.extend(reversed(proto.graph.node))
    assert np.allclose(run(shuffled)[0].scores["x"], run(proto)[0].scores["x"])


def test_duplicate_and_missing_names(refused):
    twice = [node("Relu", "x", "y", "one"), node("Tanh", "x", "y", "two")]
    refused(model(twice, outputs={"y": ["N", 4]}), "'y'", "one", "two")
    refused(model([node("Relu", "nothing", "y", "r")], outputs={"y": ["N", 4]}), "'nothing'", "nothing defines")
    refused(model([node("Relu", "x", "h", "r")], outputs={"y": ["N", 4]}), "'y'", "written by no node")
    with pytest.raises(graphattr.ModelError, match="no graph"):
        graphattr.convert(onnx.ModelProto())
    empty = mlp()
    del empty.graph.output[:]
    refused(empty, "no output")


def test_nodes_may_share_a_name():
    proto = mlp()
    for n in proto.graph.node:
        n.name = "same"
    explanation = graphattr.convert(proto, ledger=True)  # ONNX Runtime refuses the model itself
    assert len({e["layer"] for e in explanation.manifest["layers"]["lrp.epsilon_plus_flat"]}) == 3
    assert np.allclose(graphattr.Explainer(explanation)(X).scores["x"], run(mlp())[0].scores["x"])
    for n in proto.graph.node:
        n.name = ""
    run(proto)


# -- weights ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nonfinite_weights_are_named(refused, bad):
    proto = mlp()
    w = array(5, 3)
    w[2, 1] = bad
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(w, "w2"))
    refused(proto, "'w2'", "1 NaN" if np.isnan(bad) else "1 infinite")


def outside(folder, location, **more):
    """A model whose w1 lies in another file."""
    proto = mlp()
    t = proto.graph.initializer[0]
    content = t.raw_data
    t.ClearField("raw_data")
    t.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **more}.items():
        t.external_data.add(key=key, value=str(value))
    return saved(proto, folder), content


def test_external_data_missing_or_short(refused, tmp_path):
    path, content = outside(tmp_path, "w.bin")
    refused(path, "'w1'", "w.bin", "no file")
    (tmp_path / "w.bin").write_bytes(content[:-4])
    refused(path, "'w1'", "w.bin", "incomplete")
    (tmp_path / "w.bin").write_bytes(content)
    assert graphattr.convert(path).outputs == ["y", "x_attribution"]


def test_external_data_without_a_folder():
    proto = mlp()
    t = proto.graph.initializer[0]
    t.ClearField("raw_data")
    t.data_location = TensorProto.EXTERNAL
    t.external_data.add(key="location", value="w.bin")
    for given_ in (proto, proto.SerializeToString()):
        with pytest.raises(graphattr.ModelError, match=r"w\.bin.*folder"):
            graphattr.convert(given_)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "a/../../secret.bin", "..\\secret.bin", "C:\\s.bin", ""])
def test_external_data_that_escapes(refused, tmp_path, location):
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(80))
    refused(outside(folder, location)[0], "'w1'", "refused" if location else "location")


@pytest.mark.skipif(os.name != "posix", reason="needs symbolic links")
def test_external_data_that_escapes_by_a_link(refused, tmp_path):
    folder = tmp_path / "inner"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(80))
    (folder / "w.bin").symlink_to(tmp_path / "secret.bin")
    refused(outside(folder, "w.bin")[0], "'w1'", "link", "refused")


def test_sparse_weights():
    proto = mlp()
    w = np.zeros((4, 5), np.float32)
    w[[0, 1, 3], [4, 2, 0]] = 1.5, -2, 3
    for indices in (np.array([4, 7, 15]), np.array([[0, 4], [1, 2], [3, 0]])):
        sparse = onnx.SparseTensorProto(dims=[4, 5])
        sparse.values.CopyFrom(numpy_helper.from_array(w[w != 0], "w1"))
        sparse.indices.CopyFrom(numpy_helper.from_array(indices, "w1_at"))
        held = onnx.ModelProto()
        held.CopyFrom(proto)
        del held.graph.initializer[0]
        held.graph.sparse_initializer.append(sparse)
        plain = onnx.ModelProto()
        plain.CopyFrom(proto)
        plain.graph.initializer[0].CopyFrom(numpy_helper.from_array(w, "w1"))
        a = graphattr.Explainer(graphattr.convert(held))(X)
        assert np.array_equal(a.scores["x"], run(plain)[0].scores["x"])
        sparse.indices.CopyFrom(numpy_helper.from_array(indices + 99, "w1_at"))
        held.graph.sparse_initializer[0].CopyFrom(sparse)
        with pytest.raises(graphattr.ModelError, match="'w1'"):
            graphattr.convert(held)


# -- operators we do not know -------------------------------------------------------------------------------------
def test_unknown_operator_on_the_path(refused):
    proto = added([node("Custom", "y", "extra", "mine", domain="my.ops")], {"extra": (F, ["N", 3])}, domains=["my.ops"])
    for options in ({}, {"method": "gradient"}):
        refused(proto, "my.ops:Custom", "'mine'", "'second' -> 'mine'", "--wrt", "--output", output="extra", **options)
    with pytest.raises(graphattr.UnsupportedOp, match=r"my\.ops:Custom"):
        graphattr.convert(proto, output="extra", strict=False)
    refused(added([node("Foo", "y", "extra", "mine")], {"extra": (F, ["N", 3])}), "Foo", "'mine'", output="extra")


def test_unknown_operator_off_the_path_is_carried_over():
    proto = added([node("Custom", "a", "extra", "mine", domain="my.ops", level=3, names=["p", "q"])], {"extra": (F, ["N", 5])},
                  domains=["my.ops"])
    proto.graph.node[-1].doc_string = "left alone"
    explanation = graphattr.convert(proto)
    assert explanation.outputs == ["y", "extra", "x_attribution"]
    kept = next(n for n in explanation.model.graph.node if n.domain == "my.ops")
    assert kept == proto.graph.node[-1]
    assert ("my.ops", 1) in {(o.domain, o.version) for o in explanation.model.opset_import}
    assert {n.domain for n in explanation.model.graph.node} == {"", "my.ops"}


def test_wrt_behind_an_unknown_operator():
    nodes = [node("Custom", "x", "c", "mine", domain="my.ops"), node("Gemm", "c w", "y", "last")]
    proto = model(nodes, weights={"w": array(4, 3)}, domains=["my.ops"], value_info={"c": ["N", 4]})
    with pytest.raises(graphattr.UnsupportedOp, match=r"wrt=.'c'."):
        graphattr.convert(proto)
    assert graphattr.convert(proto, wrt=["c"]).outputs == ["y", "c_attribution"]


@pytest.mark.parametrize("kind", ["If", "Loop", "Scan"])
def test_control_flow_off_the_path(kind):
    def info(name, shape=None, dtype=F):
        return helper.make_tensor_value_info(name, dtype, shape)

    inputs, feeds, weights = {}, {"x": X}, {}
    if kind == "If":
        two = numpy_helper.from_array(np.float32(2), "two")
        yes = helper.make_graph([node("Mul", "a two", "t")], "yes", [], [info("t")], [two])
        no = helper.make_graph([node("Neg", "x", "e")], "no", [], [info("e")])
        extra = node("If", "cond", "extra", "flow", then_branch=yes, else_branch=no)
        inputs, feeds = {"cond": (B, [])}, {"x": X, "cond": np.array(True)}
    elif kind == "Loop":
        body = helper.make_graph([node("Add", "acc a", "acc2"), node("Identity", "c", "c2")], "body",
                                 [info("i", [], I), info("c", [], B), info("acc")], [info("c2", [], B), info("acc2")])
        extra = helper.make_node("Loop", ["trips", "", "a"], ["extra"], "flow", body=body)
        weights = {"trips": np.array(3)}
    else:
        body = helper.make_graph([node("Add", "s e", "s2"), node("Identity", "s2", "o")], "body",
                                 [info("s", [5]), info("e", [5])], [info("s2", [5]), info("o", [5])])
        extra = node("Scan", "z0 a", "fin extra", "flow", body=body, num_scan_inputs=1)
        weights = {"z0": np.zeros(5, np.float32)}
    proto = added([extra], {"extra": (F, ["N", 5] if kind == "Scan" else None)}, weights, inputs=inputs)
    a, explanation = run(proto, feeds)
    assert np.allclose(a.scores["x"], run(mlp())[0].scores["x"])
    assert sum(n.op_type == kind for n in explanation.model.graph.node) == 1
    inner, _ = run(proto, feeds, method="gradient", output="extra", target=0)  # and on the path it is differentiated
    assert np.isfinite(inner.scores["x"]).all()
    assert inner.scores["x"].any()


def test_bodies_may_read_tensors_of_nodes_written_later():
    """ONNX Runtime accepts nodes in any order, also where only a body reads them."""
    yes = helper.make_graph([node("Neg", "a", "t")], "yes", [], [helper.make_tensor_value_info("t", F, ["N", 5])])
    no = helper.make_graph([node("Abs", "a", "e")], "no", [], [helper.make_tensor_value_info("e", F, ["N", 5])])
    proto = added([], {"extra": (F, ["N", 5])}, inputs={"cond": (B, [])})
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend([node("If", "cond", "extra", "flow", then_branch=yes, else_branch=no), *nodes])
    explanation = graphattr.convert(proto)
    a = graphattr.Explainer(explanation)({"x": X, "cond": np.array(True)})
    assert np.allclose(a.scores["x"], run(mlp())[0].scores["x"])


# -- nothing to explain -------------------------------------------------------------------------------------------
def test_output_that_does_not_depend_on_the_input(refused):
    const = added([node("ConstantOfShape", "s", "c", value=numpy_helper.from_array(np.ones(1, np.float32)))], {"c": (F, [3])},
                  {"s": np.array([3])})
    refused(const, "'c'", "does not depend on 'x'", output="c")
    for op, more in (("Shape", {}), ("ArgMax", {"axis": 1})):
        proto = added([node(op, "x", "i", **more), node("Cast", "i", "c", to=1)], {"c": (F, None)})
        refused(proto, "'c'", "does not depend on 'x'", output="c")


def test_no_float_output(refused):
    proto = added([node("ArgMax", "y", "label", axis=1)], {"label": (I, ["N", 1])})
    refused(proto, "'label'", "int64", output="label")
    del proto.graph.output[0]
    refused(proto, "label: int64", "ArgMax")


def test_string_inputs_off_the_path():
    coded = node("LabelEncoder", "words", "extra", domain="ai.onnx.ml", keys_strings=["A", "b"], values_floats=[1.0, 2.0])
    proto = added([coded], {"extra": (F, ["M"])}, inputs={"words": (S, ["M"])}, domains=["ai.onnx.ml"])
    proto.opset_import[-1].version = 3
    for words in (np.array(["A", "b", "b"]), np.array(["A", "b", "b"], object)):
        a = graphattr.Explainer(graphattr.convert(proto))({"x": X, "words": words})
        assert a.outputs["extra"].tolist() == [1, 2, 2]
    with pytest.raises(graphattr.RunError, match="'words' must be strings"):
        graphattr.Explainer(graphattr.convert(proto))({"x": X, "words": np.ones(2)})
    with pytest.raises(graphattr.GraphattrError, match="words"):
        graphattr.convert(proto, wrt=["words"])


# -- names that clash with ours -----------------------------------------------------------------------------------
CLASHES = [("target", {"target": "input"}), ("seed", {"target": "seed", "method": "gradient"}), ("x_attribution", {}),
           ("x_baseline", {"method": "gradient_x_input", "baselines": "input"}), ("y_delta", {"delta": True}),
           ("y_ledger", {"ledger": True})]


@pytest.mark.parametrize("taken", ["h", "w1"])
@pytest.mark.parametrize(("name", "options"), CLASHES, ids=[n for n, _ in CLASHES])
def test_names_that_we_need_are_taken(refused, name, options, taken):
    """By an inner tensor or a weight: an error where the name is needed, no matter where it is not."""
    proto = renamed(mlp(), **{taken: name})
    if "baselines" in options:
        with pytest.raises(graphattr.TargetError, match=name):
            graphattr.convert(proto, **options)
    else:
        refused(proto, repr(name), "already has", **options)
    other = {"method": "gradient", "wrt": ["a"]} if name == "x_attribution" else {"method": "gradient"}
    assert np.allclose(run(proto, **other)[0].outputs["y"], run(mlp())[0].outputs["y"])


@pytest.mark.parametrize("name", ["target", "seed", "x_baseline", "x_attribution"])
def test_inputs_that_are_called_like_ours(name):
    proto, plain = renamed(mlp(), x=name), graphattr.Explainer(graphattr.convert(mlp(), method="gradient"))(X).scores["x"]
    explainer = graphattr.Explainer(graphattr.convert(proto, method="gradient"))
    for feeds in (X, {name: X}):
        assert np.array_equal(explainer(feeds).scores[name], plain)
    if name not in ("target", "seed"):
        return
    with pytest.raises(graphattr.TargetError, match=name):
        graphattr.convert(proto, target="input" if name == "target" else "seed", method="gradient")


def test_names_of_helpers_are_taken():
    """Our own helper tensors step aside."""
    plain = graphattr.convert(mlp())
    inner = [o for n in plain.model.graph.node for o in n.output if o not in ("h", "a", "y", "x_attribution")]
    proto = renamed(mlp(), h=inner[0], a=inner[-1])
    assert np.allclose(run(proto)[0].scores["x"], run(mlp())[0].scores["x"])


# -- large and deep -----------------------------------------------------------------------------------------------
def chain(op, n):
    return model([node(op, f"t{i}" if i else "x", f"t{i + 1}" if i < n - 1 else "y", f"n{i}") for i in range(n)],
                 {"x": ["N", 4]}, {"y": ["N", 4]})


def test_chain_of_5000_nodes(tmp_path):
    start = time.process_time()
    explanation = graphattr.convert(chain("Tanh", 5000), method="gradient", delta=True)
    found = graphattr.inspect(chain("Tanh", 5000), "gradient")
    assert time.process_time() - start < 30
    assert found["coverage"]["covered"] == found["coverage"]["on_path"] == 5000
    assert len(explanation.manifest["layers"]["gradient"]) == 5000
    backwards = chain("Relu", 3000)
    nodes = list(backwards.graph.node)[::-1]
    del backwards.graph.node[:]
    backwards.graph.node.extend(nodes)
    assert graphattr.convert(backwards, method="gradient").outputs == ["y", "x_attribution"]


def test_fan_out_does_not_explode():
    nodes = [node("Add", f"t{i} t{i}" if i else "x x", f"t{i + 1}", f"n{i}") for i in range(60)]
    explanation = graphattr.convert(model([*nodes, node("Relu", "t60", "y")], outputs={"y": ["N", 4]}), method="gradient")
    assert len(explanation.model.graph.node) < 500
    assert np.allclose(graphattr.Explainer(explanation)(np.ones((1, 4), np.float32)).scores["x"][0, 0], 2.0 ** 60)


# -- versions and types -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("opset", [1, 6, 27, 99])
def test_opsets_out_of_range(refused, opset):
    refused(mlp(opset=opset), f"opset {opset}", "opset_version=")


@pytest.mark.parametrize("opset", range(7, 27))
def test_opsets_in_range(opset):
    proto = mlp("Softmax", opset=opset, ir=8 if opset < 21 else 10)
    a, explanation = run(proto, delta=True)
    assert np.allclose(a.scores["x"], run(mlp("Softmax"))[0].scores["x"], atol=1e-6)
    written = {o.domain: o.version for o in explanation.model.opset_import}
    assert written == {"": max(17, opset)}


@pytest.mark.parametrize("ir", [3, 4, 13, 14])
def test_ir_versions(ir):
    proto = mlp(ir=ir)
    if ir < 4:
        proto.graph.input.extend(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims))
                                 for t in proto.graph.initializer)
    explanation = graphattr.convert(proto)
    assert 8 <= explanation.model.ir_version <= 13
    assert explanation.inputs == ["x"] if ir < 4 else True
    assert graphattr.Explainer(explanation)({"x": X}).scores["x"].shape == (2, 4)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_float16_and_float64(dtype):
    proto = mlp()
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    for t in proto.graph.initializer:
        t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype(dtype), t.name))
    for v in [*proto.graph.input, *proto.graph.output]:
        v.type.tensor_type.elem_type = kind
    a, _ = run(proto, X.astype(dtype), delta=True, ledger=True)
    assert a.scores["x"].dtype == (np.float32 if dtype == np.float16 else np.float64)
    assert a.outputs["y"].dtype == dtype
    assert np.allclose(a.scores["x"], run(mlp())[0].scores["x"], atol=2e-2 if dtype == np.float16 else 1e-5)


@pytest.mark.parametrize(("method", "learns"), [(m["name"], m["fit"] is not None) for m in graphattr.methods()])
def test_models_without_layers(method, learns):
    """Identity and a lone Softmax: what arrives at the output is what the input gets; methods of pictures say what is missing."""
    box = {"low": -3.0, "high": 3.0} if method in ("lrp.zbox", "lrp.epsilon_gamma_box", "deep_taylor.bounded") else {}
    for op in ("Identity", "Softmax"):
        made = model([node(op, "x", "y")], outputs={"y": ["N", 4]})
        fitted = {"fitted": graphattr.fit(made, X, method, target=1)} if learns else {}
        if method in ("fullgrad", "grad_cam", "guided_grad_cam"):
            with pytest.raises(graphattr.MethodError, match=r"\(N, C, H, W\)|no convolution"):
                run(made, method=method, target=1)
            continue
        a, _ = run(made, method=method, target=1, **box, **fitted)
        assert a.scores["x"].shape == (2, 4)


# -- where to write -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("where", ["", "missing/out.onnx", "closed/out.onnx"])
def test_places_that_cannot_be_written(tmp_path, capfd, where):
    path = saved(mlp(), tmp_path)
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    if where.startswith("closed") and os.access(closed, os.W_OK):
        pytest.skip("root writes everywhere")
    target = tmp_path / where if where else tmp_path
    with pytest.raises(graphattr.WriteError, match="cannot write"):
        graphattr.convert(path).save(target)
    assert main(["convert", str(path), "-o", str(target)]) == 1
    out, err = capfd.readouterr()
    assert not out
    assert err.startswith(f"error: cannot write {target}")
    assert err.count("\n") == 1
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["closed", "m.onnx"]


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    explanation = graphattr.convert(mlp())
    old = saved(b"what was here before", tmp_path, "out.onnx")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(graphattr.WriteError, match="No space left"):
        explanation.save(old)
    assert old.read_bytes() == b"what was here before"
    assert os.listdir(tmp_path) == ["out.onnx"]
