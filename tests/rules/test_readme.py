"""rules/README.md is true: its rule and its table run as they stand there."""

import re
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphattr

README = Path(__file__).parents[2] / "rules" / "README.md"


def _files(folder: Path) -> tuple[Path, Path]:
    """The page's Python and TOML blocks, written under the names in their first lines."""
    text = README.read_text(encoding="utf-8")
    for block in re.findall(r"```(?:python|toml)\n(# (\S+)\n.*?)```", text, re.S):
        (folder / block[1]).write_text(block[0], encoding="utf-8")
    return folder / "my_rules.py", folder / "mine.toml"


@pytest.fixture
def model():
    rng = np.random.default_rng(0)
    w, v = rng.normal(size=(4, 2, 3, 3)).astype("f4"), rng.normal(size=(3, 4)).astype("f4")
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], "conv"), helper.make_node("Relu", ["c"], ["r"], "relu"),
             helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"), helper.make_node("Flatten", ["p"], ["f"], "flat"),
             helper.make_node("Gemm", ["f", "v"], ["y"], "fc", transB=1)]
    graph = helper.make_graph(nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2, 6, 6])],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
                              [numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_the_rule_and_the_table_of_the_page_run(tmp_path, model):
    rules, table = _files(tmp_path)
    explanation = graphattr.convert(model, method=str(table), rules=[rules])
    bound = {e["layer"]: (e["rule"], e["params"].get("eps")) for e in explanation.manifest["layers"]["mine"]}
    assert bound["conv"] == ("mine.absolute", 1e-9)
    assert bound["fc"][0] == "lrp.epsilon"
    x = np.random.default_rng(1).normal(size=(2, 2, 6, 6)).astype("f4")
    a = graphattr.Explainer(explanation)({"x": x})
    relevance = np.take_along_axis(a.outputs["y"], a.target[:, None], 1)[:, 0]
    assert np.allclose(a.scores["x"].sum((1, 2, 3)), relevance, rtol=1e-3)  # no bias: everything arrives
    plain = graphattr.explain(model, x, method="lrp.epsilon").scores["x"]
    assert not np.allclose(a.scores["x"], plain, atol=1e-3 * np.abs(plain).max())


def test_the_procedure_of_the_page_runs(tmp_path, model):
    _files(tmp_path)
    x = np.random.default_rng(1).normal(size=(2, 2, 6, 6)).astype("f4")
    for base in ("gradient", "lrp.zplus"):
        made = graphattr.convert(model, str(tmp_path / "dimmed.toml"), 1, rules=[tmp_path / "my_passes.py"], n_steps=4, base=base)
        one = graphattr.Explainer(graphattr.convert(model, base, 1))
        want = np.mean([one({"x": x * np.float32(k / 4)}).scores["x"] for k in (1, 2, 3, 4)], 0)
        assert np.allclose(graphattr.Explainer(made)({"x": x}).scores["x"], want, atol=1e-5 * np.abs(want).max())
