"""Sequences and optionals whose members are known become operators on tensors; the values stay, and derivatives pass."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from tiny import D, I, array, model, node

import graphattr
from graphattr.errors import UnsupportedOp
from graphattr.sequences import EDITS, resolve

ort.set_default_logger_severity(4)
X = array(2, 6, seed=1, dtype=np.float64)


def ints(name, *values, scalar=True):
    return helper.make_node("Constant", [], [name], name=f"{name}/c", value=helper.make_tensor(
        name, TensorProto.INT64, [] if scalar else [len(values)], values))


def thirds(more, opset=17, weights=None, shape=("N", 6), last=2):
    """x [N, 6] -> a, b, c [N, 2] = the thirds of sin(x) -> more nodes -> t -> y = t w."""
    nodes = [node("Sin", "x", "s", "sin"), ints("two", 2, 2, 2, scalar=False),
             node("Split", "s two", "a b c", "split", axis=1), *more, node("MatMul", "t w", "y", "dense")]
    held = {"w": array(last, 3, dtype=np.float64), **(weights or {})}
    return model(nodes, {"x": (D, list(shape))}, {"y": (D, [None, 3])}, held, opset, ir=10)


def made(more, **options):
    """The same with the list [a, b, c] in hand."""
    return thirds([node("SequenceConstruct", "a b c", "list", "list"), *more], **options)


def at(position, out="t", sequence="list"):
    return [ints(f"{out}/p", position), node("SequenceAt", f"{sequence} {out}/p", out, f"at {out}")]


def split(sizes=None, keepdims=None, axis=1):
    attrs = {"axis": axis} if keepdims is None else {"axis": axis, "keepdims": keepdims}
    if sizes is None:
        return [node("SplitToSequence", "s", "list", "cut", **attrs)]
    constant = ints("n", sizes) if isinstance(sizes, int) else ints("n", *sizes, scalar=False)
    return [constant, node("SplitToSequence", "s n", "list", "cut", **attrs)]


def join(axis=1, sequence="list", **attrs):
    return [node("ConcatFromSequence", sequence, "t", "join", axis=axis, **attrs)]


def mean(x="u", axis=1):
    return [ints("axes", axis, scalar=False), node("ReduceSum", f"{x} axes", "t", "sum", keepdims=0)]


EMPTY = node("SequenceEmpty", "", "none", "none", dtype=D)
EMPTY.ClearField("input")
CASES = {
    **{f"at {i}": made(at(i)) for i in (0, 2, -1, -3)},
    "append": made([node("SequenceInsert", "list b", "more", "more"), *at(3, sequence="more")]),
    **{f"insert at {i}": made([ints("p", i), node("SequenceInsert", "list b p", "more", "more"), *at(1, sequence="more")])
       for i in (0, 1, 3, -1, -3)},
    "erase the last": made([node("SequenceErase", "list", "less", "less"), *at(-1, sequence="less")]),
    **{f"erase {i}": made([ints("p", i), node("SequenceErase", "list p", "less", "less"), *at(1, sequence="less")])
       for i in (0, 1, -1, -3)},
    "from empty": thirds([EMPTY, node("SequenceInsert", "none c", "one", "one"), node("SequenceInsert", "one a", "list", "two"),
                          *join()], last=4),
    "concat": made(join(), last=6),
    "concat the batch": made(join(0)),
    "stack": made([node("ConcatFromSequence", "list", "u", "join", axis=1, new_axis=1), *mean()]),
    "stack at the end": made([node("ConcatFromSequence", "list", "u", "join", axis=-1, new_axis=1), *mean(axis=-1)]),
    "length": made([node("SequenceLength", "list", "n", "length"), helper.make_node("Cast", ["n"], ["d"], to=D),
                    node("Mul", "a d", "t", "times")]),
    "identity": made([node("Identity", "list", "same", "same"), *at(1, sequence="same")]),
    "halves": thirds([*split(3), *at(1)], last=3),
    "with a rest": thirds([*split(4), *at(-1)]),
    "listed": thirds([*split([1, 3, 2]), *at(1)], last=3),
    "ones": thirds([*split(), *at(4)], last=1),
    "ones without their axis": thirds([*split(keepdims=0), *at(2, "r"), ints("p", 1, scalar=False),
                                       node("Unsqueeze", "r p", "t", "back")], last=1),
    "split and joined": thirds([*split([1, 3, 2]), *join()], last=6),
    "rows": thirds([*split(axis=0), *at(1)], last=6),
    "rows without their axis": thirds([*split(axis=0, keepdims=0), *at(-1, "r"), ints("p", 0, scalar=False),
                                      node("Unsqueeze", "r p", "t")], last=6),
    "rows joined": thirds([*split(axis=0), *join(0)], last=6),
    "rows stacked": thirds([*split(axis=0, keepdims=0), *join(0, new_axis=1)], last=6),
    "number of rows": thirds([*split(axis=0), node("SequenceLength", "list", "n"), helper.make_node("Cast", ["n"], ["d"], to=D),
                              node("Mul", "s d", "t", "times")], last=6),
    "optional": thirds([node("Optional", "a", "maybe", "maybe"), node("OptionalGetElement", "maybe", "t", "get")]),
    "optional list": made([node("Optional", "list", "maybe", "maybe"), node("OptionalGetElement", "maybe", "l", "get"),
                           *at(1, sequence="l")]),
    "optional of a tensor": thirds([node("OptionalGetElement", "a", "t", "get")], opset=18),
    "has": thirds([node("Optional", "a", "maybe", "maybe"), node("OptionalHasElement", "maybe", "h", "has"),
                   helper.make_node("Cast", ["h"], ["d"], to=D), node("Mul", "a d", "t", "times")]),
}


def run(proto, feeds):
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


def ops(graph):
    for n in graph.node:
        yield n.op_type
        for a in n.attribute:
            yield from ops(a.g)


def check(proto, feeds, tolerance=1e-6):
    """Equal values, no sequence left, and the gradient of the explanation against differences of the model as it came."""
    new = resolve(proto)
    onnx.checker.check_model(new, full_check=True)
    assert not set(ops(new.graph)) & set(EDITS)
    for a, b in zip(run(proto, feeds), run(new, feeds), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    a = graphattr.explain(proto, feeds, "gradient", target=1, output="y", wrt="x")
    u = array(*feeds["x"].shape, seed=9, dtype=np.float64)
    names = [o.name for o in proto.graph.output]
    ahead, back = (run(proto, {**feeds, "x": feeds["x"] + h * u})[names.index("y")][..., 1].sum() for h in (1e-5, -1e-5))
    np.testing.assert_allclose(np.sum(a.scores["x"] * u), (ahead - back) / 2e-5, rtol=tolerance, atol=1e-8)


@pytest.mark.parametrize("name", CASES)
def test_resolved(name):
    check(CASES[name], {"x": X})


@pytest.mark.parametrize("shape", [["N", 6], [2, 6]])
@pytest.mark.parametrize("position", [0, 1, -1])
def test_a_position_of_the_run(position, shape):
    """Members of one shape are stacked and gathered from."""
    for proto in (made([node("SequenceAt", "list p", "t", "at")], shape=shape),
                  thirds([*split(2), node("SequenceAt", "list p", "t", "at")], shape=shape),
                  thirds([*split(axis=0), node("SequenceAt", "list p", "t", "at")], shape=shape, last=6)):
        proto.graph.input.append(helper.make_tensor_value_info("p", I, []))
        check(proto, {"x": X, "p": np.array(position)})


def test_relevance_passes():
    proto = made(join(), last=6)
    flat = thirds([node("Concat", "a b c", "t", "join", axis=1)], last=6)
    got, want = (graphattr.explain(p, {"x": X}, "lrp.epsilon", target=0).scores["x"] for p in (proto, flat))
    np.testing.assert_array_equal(got, want)


def test_sizes_of_the_run():
    """A computed list of sizes: how many parts there are is known."""
    proto = thirds([node("SplitToSequence", "s n", "list", "cut", axis=1), *at(1)], last=3)
    proto.graph.input.append(helper.make_tensor_value_info("n", I, [3]))
    check(proto, {"x": X, "n": np.array([1, 3, 2])})


# -- bodies -------------------------------------------------------------------------------------------------------
def branch(nodes, out):
    return helper.make_graph(nodes, f"{out} body", [], [helper.make_tensor_value_info(out, D, None)])


@pytest.mark.parametrize("which", [True, False])
def test_inside_branches(which):
    """Branches read an outer list, and one of their own, under the same names."""
    then = branch([ints("q", 0), node("SequenceAt", "list q", "r", "at")], "r")
    mine = node("SequenceConstruct", "c b", "mine", "mine")
    other = branch([mine, ints("q", 1), node("SequenceAt", "mine q", "v", "at2")], "v")
    proto = made([helper.make_node("If", ["which"], ["t"], name="if", then_branch=then, else_branch=other)])
    proto.graph.input.append(helper.make_tensor_value_info("which", TensorProto.BOOL, []))
    new = resolve(proto)
    assert not set(ops(new.graph)) & set(EDITS)
    np.testing.assert_array_equal(run(proto, {"x": X, "which": np.array(which)}), run(new, {"x": X, "which": np.array(which)}))


def grown(join_attrs, steps=3, twice=False):
    """A Loop appends x (i + 1) per step, and carries a running sum beside; x [2, 6]."""
    info, scalar = helper.make_tensor_value_info, helper.make_tensor_sequence_value_info
    nodes = [helper.make_node("Cast", ["i"], ["f"], to=D), helper.make_node("Add", ["f", "one"], ["g"]),
             helper.make_node("Mul", ["s", "g"], ["m"]), helper.make_node("SequenceInsert", ["l", "m"], ["l2"], name="grow"),
             helper.make_node("Add", ["acc", "m"], ["acc2"]), helper.make_node("Identity", ["go"], ["go2"])]
    if twice:
        nodes[3:4] = [node("SequenceInsert", "l m", "l1"), node("SequenceInsert", "l1 m", "l2")]
    body = helper.make_graph(
        nodes, "body", [info("i", I, []), info("go", TensorProto.BOOL, []), scalar("l", D, None), info("acc", D, [2, 6])],
        [info("go2", TensorProto.BOOL, []), scalar("l2", D, None), info("acc2", D, [2, 6])])
    loop = helper.make_node("Loop", ["n", "true", "none", "s"], ["list", "total"], name="loop", body=body)
    joined = [node("ConcatFromSequence", "list", "u", "join", **join_attrs), node("ReduceSum", "u", "v", "sum", keepdims=0),
              node("Mul", "total v", "t", "times")]
    weights = {"n": np.array(steps), "true": np.array(True), "one": np.array(1.0), "w": array(6, 3, dtype=np.float64)}
    nodes = [EMPTY, node("Sin", "x", "s", "sin"), loop, *joined, node("MatMul", "t w", "y", "dense")]
    return model(nodes, {"x": (D, [2, 6])}, {"y": (D, [2, 3])}, weights, 17, ir=10)


@pytest.mark.parametrize("attrs", [{"axis": 0}, {"axis": 1}, {"axis": -1}, {"axis": 0, "new_axis": 1}, {"axis": 1, "new_axis": 1},
                                   {"axis": -1, "new_axis": 1}], ids=str)
def test_grown_in_a_loop(attrs):
    """One SequenceInsert per step is a scan output."""
    proto = grown(attrs)
    new = resolve(proto)
    assert not set(ops(new.graph)) & set(EDITS)
    for a, b in zip(run(proto, {"x": X}), run(new, {"x": X}), strict=True):
        np.testing.assert_array_equal(a, b)
    check(proto, {"x": X})


# -- what stays ---------------------------------------------------------------------------------------------------
def test_what_is_not_known_says_why():
    proto = thirds([node("SequenceInsert", "given a", "list", "into"), *at(0)])
    proto.graph.input.append(helper.make_tensor_sequence_value_info("given", D, None))
    assert "SequenceInsert" in set(ops(resolve(proto).graph))
    with pytest.raises(UnsupportedOp, match=r"SequenceInsert.*'into'.*known at run time only.*stack the members"):
        graphattr.convert(proto, method="lrp.epsilon")


def test_members_of_several_shapes_at_a_position_of_the_run():
    proto = thirds([*split([1, 3, 2]), node("SequenceAt", "list p", "t", "at")])
    proto.graph.input.append(helper.make_tensor_value_info("p", I, []))
    with pytest.raises(UnsupportedOp, match=r"SplitToSequence.*differ in shape"):
        graphattr.convert(proto, method="gradient")


def test_two_insertions_per_step_stay():
    proto = grown({"axis": 0}, twice=True)
    assert "SequenceInsert" in set(ops(resolve(proto).graph))


def test_models_without_sequences_are_the_same_object():
    proto = thirds([node("Identity", "a", "t", "same")])
    assert resolve(proto) is proto


def sequence_type(kind):
    return helper.make_sequence_type_proto(kind)


TENSOR = helper.make_tensor_type_proto(D, None)
MAP = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None))


@pytest.mark.parametrize("case", ["list out", "list in", "list in and out", "optional in", "map out"])
def test_off_the_path(case):
    """Inputs and outputs of such types pass unharmed."""
    proto, feeds, shown = thirds([node("Identity", "a", "t", "same")]), {"x": X}, None
    dense = proto.graph.node[-1]
    if case == "list out":
        proto.graph.node.append(node("SequenceConstruct", "y a", "z", "both"))
        shown = sequence_type(TENSOR)
    elif case == "list in":
        proto.graph.node.append(node("SequenceLength", "given", "z", "length"))
        shown = helper.make_tensor_type_proto(I, [])
    elif case == "list in and out":
        proto.graph.node.append(node("SequenceInsert", "given a", "z", "into"))
        shown = sequence_type(TENSOR)
    elif case == "optional in":
        proto.graph.node.append(node("OptionalHasElement", "maybe", "z", "has"))
        shown = helper.make_tensor_type_proto(TensorProto.BOOL, [])
        proto.graph.input.append(helper.make_value_info("maybe", helper.make_optional_type_proto(TENSOR)))
        feeds["maybe"] = X
    else:
        proto.graph.node.extend([helper.make_node("Cast", ["y"], ["f"], name="f", to=1), helper.make_node(
            "ZipMap", ["f"], ["z"], name="zip", domain="ai.onnx.ml", classlabels_int64s=[7, 8, 9])])
        proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
        shown = sequence_type(MAP)
    assert dense.op_type == "MatMul"
    if "in" in case.split():
        kind = sequence_type(TENSOR) if case.startswith("list") else None
        if kind is not None:
            proto.graph.input.append(helper.make_value_info("given", kind))
            feeds["given"] = [X, X]
    proto.graph.output.append(helper.make_value_info("z", shown))
    ex = graphattr.convert(proto, method="lrp.epsilon", output="y", target=0)
    onnx.checker.check_model(ex.model, full_check=True)
    got, want = run(ex.model, feeds), run(proto, feeds)
    assert np.array_equal(got[0], want[0])
    assert str(got[1]) == str(want[1])
    assert np.abs(got[2]).max() > 0
    a = graphattr.Explainer(ex)(feeds)
    assert np.array_equal(a.scores["x"], got[2])
    assert str(a.outputs["z"]) == str(want[1])
