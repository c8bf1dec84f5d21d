"""The command line: stdout is data, stderr is talk, exit codes 0, 1 and 2, and every command's JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import onnx
import pytest

import graphattr
from graphattr import arguments, cli
from tests.cli.calls import caller
from tests.unit.tiny import I, array, mlp, model, node, saved

pytest.importorskip("onnxruntime")
X = array(3, 4, seed=9)


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """`graphattr ARGS` in a folder that holds m.onnx (ends in a Softmax) and x.npy: (exit code, stdout, stderr)."""
    saved(mlp("Softmax"), tmp_path)
    np.save(tmp_path / "x.npy", X)
    monkeypatch.chdir(tmp_path)
    return caller(capfd)


def fails(result, *words):
    """Exit code 1, nothing on stdout, one line on stderr."""
    code, out, err = result
    assert (code, out) == (1, ""), result
    assert err.startswith("error: "), err
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err, err


# -- fit ---------------------------------------------------------------------------------------------------------------
def test_fit_and_convert(run):
    """DATA in, FITTED.npz out: its path on stdout, warnings and a summary on stderr; convert and explain take it."""
    np.savez("d.npz", x=array(300, 4, seed=5))
    code, out, err = run("fit", "m.onnx", "d.npz", "--method", "pattern.net", "-o", "f.npz", "--batch-size", 64)
    assert (code, out) == (0, "f.npz\n")
    assert err.endswith("pattern.net: 2 layers learned from 300 samples\n")
    code, out, err = run("convert", "m.onnx", "--method", "pattern.net", "--fitted", "f.npz", "-o", "e.onnx")
    assert (code, out) == (0, "e.onnx\n"), err
    made = graphattr.convert("m.onnx", "pattern.net", fitted=graphattr.fit("m.onnx", "d.npz", "pattern.net", batch_size=64))
    assert onnx.load("e.onnx").graph == made.model.graph
    code, out, _ = run("explain", "m.onnx", "x.npy", "--method", "pattern.net", "--fitted", "f.npz", "--json")
    assert code == 0
    fails(run("explain", "e.onnx", "x.npy", "--fitted", "f.npz"), "--fitted needs the source model")


def test_fit_warns_and_prints_json(run):
    """Too few samples are said on stderr, once per layer, and stand in the JSON."""
    code, out, err = run("fit", "m.onnx", "x.npy", "--method", "pattern.attribution", "-o", "f.npz", "--json", "--state", "s.npz",
                         "--set", "kind=linear", "--set", "mean_y=all")
    assert code == 0
    found = json.loads(out)
    assert found["path"] == "f.npz"
    assert found["manifest"]["params"] == {"kind": "linear", "mean_y": "all"}
    assert err.count("warning: layer 'first': 5 of 5 units were active at fewer than 30 places") == 1
    assert len(found["manifest"]["warnings"]) == err.count("warning: ") == 2
    assert not os.path.exists("s.npz")


def test_fit_fails(run):
    fails(run("fit", "m.onnx", "x.npy", "--method", "gradient", "-o", "f.npz"), "'gradient' learns nothing from data")
    fails(run("fit", "m.onnx", "x.npy", "-o", "f.npz"), "fit takes one method")
    fails(run("fit", "m.onnx", "no.npy", "--method", "pattern.net", "-o", "f.npz"), "no such file or folder: no.npy")
    fails(run("convert", "m.onnx", "--method", "pattern.net"), "graphattr fit m.onnx DATA --method pattern.net -o FITTED.npz")
    fails(run("convert", "m.onnx", "--method", "pattern.net", "--fitted", "x.npy"), "x.npy does not hold parameters")
    assert run("fit", "m.onnx", "x.npy", "--method", "pattern.net")[0] == 2


# -- convert ------------------------------------------------------------------------------------------------------
def test_convert_prints_the_path(run):
    code, out, err = run("convert", "m.onnx", "-o", "e.onnx")
    assert (code, out) == (0, "e.onnx\n")
    assert "lrp.epsilon_plus_flat" in err
    assert "x_attribution" in err
    code, out, _ = run("convert", "m.onnx")
    assert (code, out) == (0, "m.explained.onnx\n")
    assert onnx.load("e.onnx").graph == onnx.load("m.explained.onnx").graph


def test_convert_as_json(run):
    code, out, err = run("convert", "m.onnx", "-o", "e.onnx", "--json", "--delta", "--ledger", "--set", "eps=0.5")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["path"] == "e.onnx"
    assert found["outputs"] == ["y", "x_attribution", "y_delta", "y_ledger"]
    assert found["inputs"] == ["x"]
    assert found["manifest"]["params"] == {"eps": 0.5}
    assert graphattr.Explainer("e.onnx").manifest == found["manifest"]


def test_convert_is_what_python_does(run):
    run("convert", "m.onnx", "-o", "e.onnx", "--method", "lrp.zbox", "--target", "1", "--set", "low=-3.5",
        "--set", "high=4", "--wrt", "x", "--output", "y", "--no-strip", "--no-strict", "--delta")
    made = graphattr.convert("m.onnx", "lrp.zbox", 1, "y", ["x"], strict=False, strip=False, delta=True, low=-3.5, high=4)
    assert onnx.load("e.onnx") == made.model


@pytest.mark.parametrize(("text", "want"), [
    ("argmax", "argmax"), ("input", "input"), ("seed", "seed"), ("2", 2), ("1,", [1]), ("(1)", 1), ("(1,)", [1])])
def test_targets(run, text, want):
    code, out, _ = run("convert", "m.onnx", "-o", "e.onnx", "--json", "--method", "gradient", f"--target={text}")
    assert code == 0
    assert json.loads(out)["manifest"]["target"] == want


@pytest.mark.parametrize(("text", "words"), [
    ("3", ["0 to 2"]), ("-1", ["-1"]), ("1,2", ["2 indices"]), ("foo", ["'foo'"]), ("", ["''"]), ("1.5", ["'1.5'"]),
    ("seeds", ["did you mean 'seed'"])])
def test_targets_that_are_wrong(run, text, words):
    fails(run("convert", "m.onnx", "-o", "e.onnx", f"--target={text}"), *words)
    fails(run("convert", "m.onnx", "-o", "e.onnx", "--target", text), *words)
    assert not os.path.exists("e.onnx")


def test_set_reads_toml_values(run):
    read = arguments.params(["a=1", "b=0.5", "c=[1, 2.5]", "d=true", "e=text", 'f="quoted"', "g=a=b", "h=", "i=1e-6"])
    assert read == {"a": 1, "b": 0.5, "c": [1, 2.5], "d": True, "e": "text", "f": "quoted", "g": "a=b", "h": "", "i": 1e-6}
    for bad in ("eps", "=3", "e ps=1", "1=2"):
        fails(run("convert", "m.onnx", "--set", bad), "--set", "KEY=VALUE")
    for reserved in ("target=1", "wrt=x", "model=m", "ledger=true"):
        fails(run("convert", "m.onnx", "--set", reserved), f"use --{reserved.split('=')[0]}")
    fails(run("convert", "m.onnx", "--set", "epss=1"), "did you mean 'eps'")
    fails(run("convert", "m.onnx", "--set", "eps=high"), "'eps' must be a number", "'high'")


@pytest.mark.parametrize("argv", [["--method", "lrp.epsilon,gradient"], ["--method", "lrp.epsilon", "--method", "gradient"]])
def test_several_methods(run, argv):
    code, out, _ = run("convert", "m.onnx", "-o", "e.onnx", "--json", *argv)
    assert code == 0
    assert json.loads(out)["outputs"] == ["y", "x_attribution_lrp_epsilon", "x_attribution_gradient"]
    assert json.loads(out)["manifest"]["method"] == "lrp.epsilon,gradient"


def test_method_files(run, tmp_path):
    (tmp_path / "mine.toml").write_text('base = "gradient"\n')
    assert run("convert", "m.onnx", "-o", "e.onnx", "--method", "mine.toml")[0] == 0
    (tmp_path / "bad.toml").write_text("seed = ")
    fails(run("convert", "m.onnx", "--method", "bad.toml"), "bad.toml")
    fails(run("convert", "m.onnx", "--method", "lrp.epsilonn"), "did you mean 'lrp.epsilon'", "graphattr methods")
    fails(run("convert", "m.onnx", "--method", ""), "no method")
    fails(run("convert", "m.onnx", "--rules", "gone.py"), "gone.py")


@pytest.mark.parametrize("stage", cli.STAGES)
def test_stop_after(run, stage):
    code, out, err = run("convert", "m.onnx", "--stop-after", stage, "--method", "gradient")
    assert (code, err) == (0, "")
    assert {"load": "sha256", "canonicalise": "h = Gemm(x, w1, b1)", "layers": "relu  Relu  relu  h -> a",
            "plan": "second  gradient", "backward": "-> x_attribution", "simplify": "-> x_attribution",
            "lower": "-> x_attribution",
            "export": "x_attribution"}[stage] in out
    assert os.listdir(".") == [f for f in os.listdir(".") if f in ("m.onnx", "x.npy")], "nothing is written"


def test_stop_after_shows_several_plans(run):
    out = run("convert", "m.onnx", "--stop-after", "plan", "--method", "gradient,lrp.epsilon")[1]
    assert "gradient" in out
    assert "lrp.epsilon" in out


def test_convert_does_not_overwrite_the_model(run):
    before = open("m.onnx", "rb").read()  # noqa: SIM115
    fails(run("convert", "m.onnx", "-o", "m.onnx"), "overwritten", "-o")
    fails(run("convert", "m.onnx", "-o", os.path.abspath("m.onnx")), "overwritten")
    assert open("m.onnx", "rb").read() == before  # noqa: SIM115


def test_where_convert_cannot_write(run):
    fails(run("convert", "m.onnx", "-o", "gone/e.onnx"), "cannot write gone/e.onnx", "folder gone does not exist")
    fails(run("convert", "m.onnx", "-o", "."), "cannot write .", "directory")
    fails(run("convert", "gone.onnx"), "no file", "gone.onnx")
    fails(run("convert", "x.npy"), "x.npy")
    assert sorted(os.listdir(".")) == ["m.onnx", "x.npy"]


def test_convert_of_an_explanation(run):
    run("convert", "m.onnx", "-o", "e.onnx")
    fails(run("convert", "e.onnx"), "x_attribution", "explanation already")


# -- usage --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("argv", [
    [], ["nope"], ["convert"], ["convert", "m.onnx", "--nope"], ["convert", "m.onnx", "--stop-after", "x"], ["explain", "m.onnx"],
    ["explain", "m.onnx", "x.npy", "--top", "-1"], ["verify"], ["explain", "m.onnx", "x.npy", "--top", "a"],
    ["convert", "m.onnx", "--method"]])
def test_wrong_usage_is_2(run, argv):
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.startswith("usage: graphattr")


def test_help_and_version(run):
    assert run("--version")[:2] == (0, f"graphattr {graphattr.__version__}\n")
    code, out, _ = run("-h")
    assert code == 0
    for command in ("convert", "explain", "inspect", "verify", "methods", "rules", "operators", "demo"):
        assert command in out
        code, text, _ = run(command, "--help")
        assert code == 0
        assert text.startswith(f"usage: graphattr {command}")


def test_as_a_program(tmp_path):
    """python -m graphattr: the same, with clean streams."""
    path = saved(mlp(), tmp_path)

    def call(*argv):
        command = [sys.executable, "-m", "graphattr", *argv]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
        return done.returncode, done.stdout, done.stderr

    assert call("convert", str(path), "-o", "e.onnx")[:2] == (0, "e.onnx\n")
    fails(call("convert", "gone.onnx"), "gone.onnx")
    assert call("convert")[0] == 2


def test_a_closed_pipe_is_no_error(tmp_path):
    command = f"{sys.executable} -m graphattr operators | head -1"
    head = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=120)
    assert "operator" in head.stdout
    assert "Traceback" not in head.stderr
    assert "BrokenPipe" not in head.stderr


# -- inspect ------------------------------------------------------------------------------------------------------
def test_inspect(run):
    code, out, err = run("inspect", "m.onnx")
    assert (code, err) == (0, "")
    for word in ("x float32(N, 4)", "y float32(N, 3)", "before its Softmax", "first", "Gemm", "linear", "coverage: 3 of 3",
                 "off the path"):
        assert word in out
    code, out, _ = run("inspect", "m.onnx", "--json")
    assert json.loads(out) == graphattr.inspect("m.onnx")
    code, out, _ = run("inspect", "m.onnx", "--method", "lrp.zbox", "--json", "--set", "low=-1")
    assert json.loads(out)["coverage"]["covered"] == 1
    code, out, _ = run("inspect", "m.onnx", "--method", "lrp.zbox")
    assert code == 0
    assert "PROBLEM" in out
    assert "'low'" in out
    fails(run("inspect", "m.onnx", "--method", "gradient,lrp.epsilon"), "one method")
    fails(run("inspect", "m.onnx", "--method", "nope"), "unknown method")
    fails(run("inspect", "gone.onnx"), "gone.onnx")


def test_inspect_says_what_would_fail(run, tmp_path):
    unknown = model([node("Custom", "x", "c", "mine", domain="my.ops"), node("Gemm", "c w", "y", "last")],
                    weights={"w": array(4, 3)}, domains=["my.ops"])
    saved(unknown, tmp_path, "u.onnx")
    code, out, _ = run("inspect", "u.onnx")
    assert code == 0
    assert "problem: mine: no derivative for operator" in out
    saved(model([node("ArgMax", "x", "y", axis=1)], outputs={"y": (I, ["N", 1])}), tmp_path, "i.onnx")
    assert "problem: no output of the model is a float" in run("inspect", "i.onnx")[1]


# -- verify -------------------------------------------------------------------------------------------------------
def test_verify(run, tmp_path):
    run("convert", "m.onnx", "-o", "e.onnx", "--delta", "--ledger")
    code, out, err = run("verify", "e.onnx", "--model", "m.onnx")
    assert (code, err) == (0, "")
    for word in ("provenance", "output y", "conservation ledger", "second", "completeness", "sum of x"):
        assert word in out
    assert "FAILED" not in out
    code, out, _ = run("verify", "e.onnx", "--model", "m.onnx", "--json")
    found = json.loads(out)
    assert found["ok"]
    assert [r["layer"] for r in found["ledger"]] == ["second", "relu", "first"]
    saved(mlp(), tmp_path, "other.onnx")
    code, out, _ = run("verify", "e.onnx", "--model", "other.onnx")
    assert code == 1
    assert "FAILED" in out
    assert run("verify", "e.onnx", "--data", "x.npy")[0] == 0
    np.savez(tmp_path / "x.npz", x=X)
    assert run("verify", "e.onnx", "--data", "x.npz")[0] == 0
    np.save(tmp_path / "bad.npy", X[:, :2])
    code, out, _ = run("verify", "e.onnx", "--data", "bad.npy")
    assert code == 1
    assert "(N, 4)" in out
    fails(run("verify", "e.onnx", "--data", "gone.npy"), "gone.npy")
    fails(run("verify", "e.onnx", "--data", "m.onnx"), "m.onnx", ".npy or .npz")
    fails(run("verify", "m.onnx"), "not an explanation")
    fails(run("verify", "gone.onnx"), "gone.onnx")
    np.save(tmp_path / "scalar.npy", np.float32(3))
    assert run("verify", "e.onnx", "--data", "scalar.npy")[0] == 1
    np.savez(tmp_path / "empty.npz")
    assert run("verify", "e.onnx", "--data", "empty.npz")[0] == 1


# -- catalogues ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("what", ["methods", "rules", "operators"])
def test_catalogues(run, what):
    code, out, err = run(what)
    assert (code, err) == (0, "")
    entries = getattr(graphattr, what)()
    assert len(out.splitlines()) >= len(entries)
    for e in entries[:5]:
        assert e["name"] in out
    code, out, _ = run(what, "--json")
    assert json.loads(out) == entries


# -- explain ------------------------------------------------------------------------------------------------------
def test_explain(run):
    code, out, err = run("explain", "m.onnx", "x.npy", "-o", "res", "--top", "2")
    assert code == 0
    assert not err
    files = [line.strip() for line in out.splitlines() if line.strip().startswith("res")]
    assert "res/x.npz" in files
    assert sorted(os.listdir("res")) == sorted(os.path.basename(f) for f in files)
    held = np.load("res/x.npz")
    want = graphattr.explain("m.onnx", X)
    assert np.allclose(held["x_attribution"], want.scores["x"], rtol=1e-5, atol=1e-6)
    assert np.allclose(held["y"], want.outputs["y"], atol=1e-6)
    assert held["explained_index"].tolist() == want.target.tolist()


def test_explain_as_json(run):
    code, out, _ = run("explain", "m.onnx", "x.npy", "-o", "res", "--json", "--target", "1", "--method", "gradient", "--delta")
    assert code == 0
    found = json.loads(out)
    assert found["target"] == [1, 1, 1]
    assert found["samples"] == 3
    assert len(found["delta"]) == 3
    assert [t["index"] for t in found["top"]] == np.argsort(-graphattr.explain("m.onnx", X).outputs["y"][0]).tolist()


def test_explain_with_a_finished_explanation(run):
    run("convert", "m.onnx", "-o", "e.onnx")
    run("convert", "m.onnx", "-o", "i.onnx", "--target", "input")
    assert run("explain", "e.onnx", "x.npy", "-o", "res")[0] == 0
    assert run("explain", "i.onnx", "x.npy", "-o", "res", "--target", "1")[0] == 0
    assert np.load("res/x.npz")["explained_index"].tolist() == [1, 1, 1]
    fails(run("explain", "i.onnx", "x.npy"), "--target")
    fails(run("explain", "i.onnx", "x.npy", "--target", "9"), "0 to 2")
    fails(run("explain", "e.onnx", "x.npy", "--target", "1"), "already an explanation", "--target input")
    for option in (["--method", "gradient"], ["--delta"], ["--wrt", "h"], ["--set", "eps=1"], ["--no-strip"],
                   ["--output", "y"]):
        fails(run("explain", "e.onnx", "x.npy", *option), "already an explanation", option[0])


def test_explain_keeps_results_apart(run, tmp_path):
    """Files of one name in two folders, or of one stem, do not overwrite each other's results."""
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "x.npy", X if folder == "a" else X * 2)
    np.savez(tmp_path / "x.npz", x=X * 3)
    assert run("explain", "m.onnx", "a/x.npy", "b/x.npy", "x.npz", "-o", "res", "--method", "gradient_x_input")[0] == 0
    held = [np.load(tmp_path / "res" / f) for f in sorted(os.listdir("res")) if f.endswith(".npz")]
    assert len(held) == 3
    assert len({h["y"].tobytes() for h in held}) == 3


@pytest.mark.parametrize(("argv", "words"), [
    (["gone.npy"], ["gone.npy"]), (["m.onnx"], ["m.onnx"]), (["."], ["."]), (["x.npy", "--labels", "gone.txt"], ["gone.txt"]),
    (["x.npy", "-o", "m.onnx"], ["m.onnx"]), (["x.npy", "--target", "5"], ["0 to 2"]),
    (["x.npy", "--target", "input"], ["--target"]),
    (["x.npy", "--target", "seed"], ["'seed'"]), (["x.npy", "--preprocess", "nope"], ["'nope'"]),
    (["x.npy", "--provider", "nope"], ["'nope'"]), (["nan.npy"], ["NaN", "(0, 0)"]), (["wide.npy"], ["(N, 4)"])])
def test_explain_refuses(run, tmp_path, argv, words):
    np.save(tmp_path / "nan.npy", X * np.nan)
    np.save(tmp_path / "wide.npy", np.ones((3, 5), np.float32))
    fails(run("explain", "m.onnx", *argv), *words)


def test_debug_shows_where(run, tmp_path):
    with pytest.raises(graphattr.MethodError):
        cli.main(["convert", "m.onnx", "--debug", "--set", "eps=a"])


def test_interrupted(run, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt
    monkeypatch.setattr(cli.api, "verify", interrupted)
    assert run("verify", "m.onnx") == (130, "", "interrupted\n")
