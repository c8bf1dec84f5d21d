"""`graphattr audit` and `graphattr diff`: text or JSON on stdout, failures of the gate on stderr, exit codes."""

from __future__ import annotations

import json

import numpy as np
import pytest

import graphattr
from tests.cli.calls import caller
from tests.unit.test_audit import cnn
from tests.unit.test_audit_inputs import FEEDS, two
from tests.unit.tiny import array, saved

pytest.importorskip("onnxruntime")


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """`graphattr ARGS` in a folder that holds m.onnx and d.npz: (exit code, stdout, stderr)."""
    saved(cnn(2), tmp_path)
    np.savez(tmp_path / "d.npz", x=array(4, 1, 12, 12), labels=np.arange(4))
    (tmp_path / "p.toml").write_text("samples = 4\ngallery = 1\n[measures.completeness]\n[measures.sparseness]\n")
    monkeypatch.chdir(tmp_path)
    return caller(capfd)


def test_audit_prints_the_verdict_and_the_page(run, tmp_path):
    code, out, err = run("audit", "m.onnx", "d.npz", "--profile", "p.toml", "--method", "gradient,lrp.zplus", "-o", "r")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].strip() == "gradient"
    assert "Does it add up?" in out
    assert out.splitlines()[-1] == str(tmp_path.joinpath("r", "report.html").relative_to(tmp_path))
    assert (tmp_path / "r" / "report.json").exists()


def test_audit_json_is_that_of_python(run, tmp_path):
    code, out, _ = run("audit", "m.onnx", "d.npz", "--profile", "p.toml", "--target", "labels", "-o", "r", "--json")
    want = graphattr.audit("m.onnx", "d.npz", profile="p.toml", target="labels")
    assert code == 0
    assert json.loads(out) == json.loads((tmp_path / "r" / "report.json").read_text())
    assert json.loads(out)["methods"] == json.loads(json.dumps(want.data))["methods"]
    assert list(want.data["methods"]) == ["gradient", "lrp.epsilon_plus_flat"]


def test_audit_of_one_input_and_output(run, tmp_path):
    saved(two(2), tmp_path, "two.onnx")
    np.savez(tmp_path / "two.npz", **FEEDS)
    argv = ("audit", "two.onnx", "two.npz", "--profile", "p.toml", "--method", "gradient", "-o", "r")
    code, out, err = run(*argv, "--output", "z", "--wrt", "a", "--json")
    assert (code, err) == (0, "")
    assert [json.loads(out)["samples"][k] for k in ("inputs", "output")] == [["a"], "z"]
    code, out, err = run(*argv, "--wrt", "a,c")
    assert (code, out) == (1, "")
    assert "'c'" in err


def test_the_gate_exits_1_with_the_list(run, tmp_path):
    argv = ("audit", "m.onnx", "d.npz", "--profile", "p.toml", "--method", "gradient", "-o", "r")
    code, out, err = run(*argv, "--fail-on", "completeness>0.01", "--fail-on", "sparseness>1")
    assert code == 1
    assert out
    assert err.count("\n") == 1
    assert err.startswith("gradient fails 'completeness>0.01': completeness is ")
    assert (tmp_path / "r" / "report.html").exists()
    assert run(*argv, "--fail-on", "sparseness>1")[0] == 0


@pytest.mark.parametrize(("argv", "word"), [
    (("--fail-on", "nothing>1"), "there is no such metric"), (("--profile", "slow"), "no profile is called 'slow'"),
    (("--method", "gradiant"), "gradient"), (("--set", "labels=3"), "is not a method's parameter"),
])
def test_audit_says_what_is_wrong(run, tmp_path, argv, word):
    code, out, err = run("audit", "m.onnx", "d.npz", "-o", "r", *argv)
    assert (code, out) == (1, "")
    assert err.startswith("error: ")
    assert word in err
    assert not (tmp_path / "r" / "report.json").exists()


def test_usage(run):
    assert run("audit", "m.onnx", "d.npz")[0] == 2
    assert run("diff", "m.onnx", "d.npz")[0] == 2


def test_diff(run, tmp_path):
    code, out, err = run("diff", "m.onnx", "m.onnx", "d.npz", "--method", "gradient", "-o", "d.html")
    assert (code, err) == (0, "")
    assert "4 of 4 (100 %)" in out
    assert out.splitlines()[-1] == "d.html"
    assert (tmp_path / "d.html").read_text().startswith("<!DOCTYPE html>")


def test_diff_json(run):
    code, out, _ = run("diff", "m.onnx", "m.onnx", "d.npz", "--method", "gradient", "--json")
    assert code == 0
    assert json.loads(out) == json.loads(json.dumps(graphattr.diff("m.onnx", "m.onnx", "d.npz", "gradient")))


def test_diff_takes_one_method(run):
    code, out, err = run("diff", "m.onnx", "m.onnx", "d.npz", "--method", "gradient,lrp.zplus")
    assert (code, out) == (1, "")
    assert "one method at a time" in err
