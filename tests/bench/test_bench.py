"""The command `python -m tests.bench`: what it reads, what it measures of a tiny network, what it prints and writes."""

from __future__ import annotations

import io
import json
import sys

import pytest
from rich.console import Console

from tests.bench import __main__ as command
from tests.bench import goals, measure, nets, worker
from tests.unit.tiny import mlp, saved


@pytest.fixture(autouse=True)
def _alone(monkeypatch):
    monkeypatch.delenv("GRAPHATTR_PEERS", raising=False)


def test_everything_of_a_tiny_network(tmp_path, capsys, monkeypatch):
    def here(task, python=sys.executable, **order):  # what asks once and ends needs no process of its own
        return worker.TASKS[task](**json.loads(json.dumps(order)))

    monkeypatch.setattr(measure, "ask", here)
    monkeypatch.setattr(command, "ask", here)
    net, out = saved(mlp(), tmp_path, "small.onnx"), tmp_path / "bench.json"
    assert command.main(["--net", str(net), "--reps", "2", "--batch", "2", "--method", "gradient", "-o", str(out)]) == 0
    found = json.loads(out.read_text())
    (row,) = found["rows"]
    assert (row["net"], row["batch"], row["method"], found["failed"]) == (str(net), 2, "gradient", [])
    assert row["over_forward"] == row["ms"] / row["forward_ms"] > 0
    assert row["memory"] >= row["opened"] >= 0
    assert row["convert_seconds"] > 0
    assert {"cpu", "cores"} <= set(found["machine"])
    assert found["versions"]["onnxruntime"]
    assert found["date"].startswith("20")
    assert f"{row['over_forward']:.2f}" in capsys.readouterr().out


def test_what_fails_is_shown_and_the_rest_goes_on(tmp_path, capsys, monkeypatch):
    def fails(net, *rest):
        if net == "resnet50":
            raise measure.Failed("memory: no room")
        return []

    monkeypatch.setattr(command, "measure", fails)
    monkeypatch.setattr(command, "ask", lambda *_, **__: {"met": 1, "new": 2})
    assert command.main(["--quick", "-o", str(tmp_path / "b.json")]) == 1
    assert "resnet50 batch 1: memory: no room" in capsys.readouterr().out
    assert json.loads((tmp_path / "b.json").read_text())["failed"] == ["resnet50 batch 1: memory: no room"]


@pytest.mark.parametrize(("argv", "said"), [
    (["--net", "resnet5"], "did you mean"),
    (["--net", "absent.onnx"], "no network or file"),
    (["--method", "gradent"], "did you mean"),
    (["--batch", "0"], "--batch"),
    (["--quick", "--net", "resnet50"], "exclude each other"),
    (["--peers", "/nowhere/python"], "No such file"),
    (["-o", "/nowhere/bench.json"], "no folder"),
])
def test_refusals(argv, said, capsys):
    with pytest.raises(SystemExit) as e:
        command.parsed(argv)
    assert e.value.code == 2
    assert said in capsys.readouterr().err


def test_choices(monkeypatch):
    monkeypatch.setattr(command.subprocess, "run", lambda *_, **__: type("Done", (), {"returncode": 1}))

    def cells(*argv):
        return command.cells_of(command.parsed(argv))

    assert cells("--quick") == command.QUICK
    assert cells("--net", "vgg19,vit_s16", "--batch", "1,4") == [
        ("vgg19", 1, command.TWO), ("vit_s16", 1, ("gradient",)), ("vgg19", 4, command.TWO), ("vit_s16", 4, ("gradient",))]
    usual, every = cells(), {(n, b): set(methods) for n, b, methods in cells("--all")}
    assert all(set(methods) <= every[n, b] for n, b, methods in usual)
    asked = {(n, b, m) for n, b, methods in usual for m in methods}
    assert {(g.net, g.batch, g.method) for g in goals.GOALS} <= asked  # the usual run speaks of every goal
    assert {n for n, _ in every} == set(nets.NAMES)


def test_goals():
    row = {"net": "vgg16", "batch": 1, "method": "gradient", "prepacking": True, "over_forward": 2.31, "peer": "captum",
           "peer_over_ours": 1.21}
    slower, faster = goals.judged([row, row | {"batch": 8}])
    assert (slower["goal"], slower["met"], slower["what"]) == (2.1, False, "time / forward")
    assert slower["better_by"] == pytest.approx(-0.1)
    assert (faster["goal"], faster["met"], faster["what"]) == (1.1, True, "captum's time / ours")
    assert faster["better_by"] == pytest.approx(0.1)
    console = Console(width=170, record=True, file=io.StringIO())
    command.report([row], [], console)
    text = console.export_text()
    assert "missed by 10%" in text
    assert "met, 10% to spare" in text
    assert "1 of 2 met" in text


def test_turns():
    ran = []

    def process(ms):
        return lambda name: ran.append(name) or next(ms[name])

    ours = process({"a": iter([5.0, 1.0, 3.0]), "b": iter([2.0, 2.0, 2.0])})
    theirs = process({"c": iter([9.0, 7.0, 8.0])})
    assert measure.times([(ours, ["a", "b"]), (theirs, ["c"])], 3) == [{"a": 3.0, "b": 2.0}, {"c": 8.0}]
    assert ran == ["a", "b", "c"] * 3


def test_a_process_that_fails_says_why():
    with pytest.raises(measure.Failed, match="no_such_task"):
        measure.ask("no_such_task")
    with (
        pytest.raises(measure.Failed, match=r"No such file|not find|cannot read|no\.onnx"),
        measure.waiting(sys.executable, "timing", {"files": {"a": {"path": "no.onnx", "explains": False, "prepacking": True}},
                                                   "shape": [1, 4]}),
    ):
        pass


def test_peers_and_the_works_that_they_do():
    torch_nets = pytest.importorskip("tests.bench.torch_nets")
    assert set(torch_nets.NETS) == measure.TWINS
    x = worker.picture([1, 3, 32, 32])
    pytest.importorskip("captum")
    sys.path.insert(0, str(measure.WORKER.parent))
    try:
        calls = worker.peer_calls("squeezenet", x, [m for m, w in measure.WORKS.items() if w.peer], 2)
    finally:
        sys.path.pop(0)
    for call in calls.values():
        call()


def test_shapes_that_follow_the_batch_stay():
    """A Reshape that says 1 for the batch says -1 then; one that holds 0 or another -1 is as it was."""
    import numpy as np

    from tests.unit.tiny import model, node

    for shape, wanted in (([1, 4], [-1, 4]), ([1, -1], [1, -1]), ([0, 4], [0, 4]), ([1, 0], [1, 0])):
        proto = nets.with_batch(model([node("Reshape", "x s", "y")], weights={"s": np.array(shape)}, outputs={"y": ["N", 4]}), 8)
        assert nets.numpy_helper.to_array(proto.graph.initializer[0]).tolist() == wanted
        assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 8
