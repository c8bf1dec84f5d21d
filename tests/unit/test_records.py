"""Results as plain rows: what `pandas.DataFrame`, a database or a spreadsheet takes as it is."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import numpy as np
import pytest

import graphattr
from graphattr import measure
from graphattr.errors import RunError
from graphattr.files import csv_text
from tests.unit.test_audit import QUICK, X, cnn
from tests.unit.test_compare import shaken
from tests.unit.tiny import array, mlp

pytest.importorskip("onnxruntime")


def flat(rows):
    """Rows of one set of keys, each value a plain scalar: what a table is."""
    assert rows
    assert len({tuple(row) for row in rows}) == 1
    assert {type(v) for row in rows for v in row.values()} <= {str, int, float, bool, type(None)}
    return rows


def test_a_measure_has_a_row_per_sample():
    found = measure.sparseness(np.array([[1.0, 0], [0, 0]]))
    rows = flat(found.records())
    assert rows[0] == {"measure": "sparseness", "sample": 0, "value": 0.5}
    assert math.isnan(rows[1]["value"])


def test_a_cascade_has_a_row_per_layer_and_sample():
    rows = flat(measure.cascading_randomisation(cnn(1), X, "gradient").records())
    assert [(r["layer"], r["depth"], r["sample"]) for r in rows] == [(n, d, i) for d, n in enumerate(["dense", "conv0"], 1)
                                                                     for i in range(4)]


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit")
    labels = np.array([0, 1, 2, 3])
    return graphattr.audit(cnn(1), X, ["gradient", "lrp.zplus"], replace(QUICK, gallery=0), folder, labels=labels), folder


def test_an_audit_has_a_row_per_method_measure_and_sample(audited):
    report, _ = audited
    rows, data = flat(report.records()), report.data
    assert {(r["method"], r["measure"]) for r in rows} == {(m, k) for m in ("gradient", "lrp.zplus")
                                                           for k in ("completeness", "random_logit", "sparseness")}
    assert len(rows) == 2 * 3 * 4
    for r in rows:
        held = data["methods"][r["method"]]["measures"][r["measure"]]
        assert r["value"] == held["values"][r["sample"]]
        assert (r["metric"], r["label"]) == (held["names"][0], r["sample"])
        assert r["explained"] == data["samples"]["explained"][r["sample"]]


def test_an_audit_has_a_row_per_metric(audited):
    report, _ = audited
    rows = flat(report.records(by="metric"))
    held = {(r["method"], r["metric"]): r for r in rows}
    assert len(held) == len(rows) == 2 * 5
    zplus = report.data["methods"]["lrp.zplus"]
    blind = held["lrp.zplus", "insensitive_layers"]
    assert blind["value"] == zplus["measures"]["randomisation"]["metrics"]["insensitive_layers"]
    assert blind["passed"] == next(v["passed"] for v in zplus["verdict"] if v["check"] == "randomisation")
    few = held["gradient", "sparseness"]
    assert few["low"] <= few["value"] <= few["high"]
    assert math.isnan(blind["low"])
    with pytest.raises(RunError, match='by "sample" or by "metric"'):
        report.records(by="layer")


def test_the_same_rows_are_on_the_disk(audited):
    report, folder = audited
    with (folder / "report.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    rows = report.records()
    assert [list(r) for r in read] == [list(r) for r in rows]
    assert [float(r["value"]) for r in read] == [r["value"] for r in rows]


def test_what_is_no_number_is_an_empty_field():
    assert csv_text([{"a": 'x, "y"', "b": math.nan}, {"a": None, "b": 1e-300}], ["a", "b"]) == 'a,b\n"x, ""y""",\n,1e-300\n'


def test_what_was_not_measured_says_why():
    report = graphattr.audit(cnn(1, classes=2), X, ["gradient"], QUICK)
    row = next(r for r in report.records(by="metric") if r["measure"] == "random_logit")
    assert math.isnan(row["value"])
    assert "two classes" in row["skipped"]
    assert row["passed"] is None
    assert not [r for r in report.records() if r["measure"] == "random_logit"]


def test_a_difference_has_a_row_per_sample():
    found = graphattr.diff(cnn(2), shaken(cnn(2), 1.0), X, "gradient_x_input")
    rows = flat(found.records())
    assert [r["sample"] for r in rows] == list(range(4))
    assert [r["ssim"] for r in rows] == found["explanation"]["ssim"]["values"]
    same = np.mean([r["predicted_a"] == r["predicted_b"] for r in rows])
    assert found["prediction"]["agreement"] == same
    assert [r["explained"] for r in rows] == [r["predicted_a"] for r in rows]
    table = graphattr.diff(cnn(2), cnn(2), X[:, :, :, :], "gradient").records()
    assert all(r["spearman"] == pytest.approx(1) for r in table)


# -- attributions of tables -------------------------------------------------------------------------------------------
def test_a_table_has_a_row_per_sample_and_column():
    x = array(3, 4)
    a = graphattr.explain(mlp(), x, "gradient_x_input")
    rows = flat(a.records(x, ["age", "income", "height", "debt"]))
    assert list(rows[0]) == ["tensor", "method", "sample", "target", "column", "value", "attribution"]
    assert len(rows) == 12
    assert {(r["tensor"], r["method"]) for r in rows} == {("x", "gradient_x_input")}
    row = rows[4 * 2 + 1]
    assert (row["sample"], row["column"], row["target"]) == (2, "income", a.target[2])
    assert (np.float32(row["value"]), np.float32(row["attribution"])) == (x[2, 1], a.scores["x"][2, 1])
    assert a.records(x, np.array(["age", "income", "height", "debt"])) == rows
    assert [r["column"] for r in a.records()[:4]] == ["x0", "x1", "x2", "x3"]
    assert "value" not in a.records()[0]


def test_several_methods_and_tensors_have_rows_of_their_own():
    x = array(2, 4)
    a = graphattr.explain(mlp(), x, ["gradient", "lrp.epsilon"], wrt=["x", "a"])
    rows = flat(a.records({"x": x}))
    assert {(r["tensor"], r["method"]) for r in rows} == {(t, m) for t in ("x", "a") for m in ("gradient", "lrp.epsilon")}
    assert all(math.isnan(r["value"]) == (r["tensor"] == "a") for r in rows)


def test_what_is_no_table_is_refused():
    x = array(2, 4)
    a = graphattr.explain(mlp(), x, "gradient")
    with pytest.raises(RunError, match=r"tables \(N, F\)"):
        graphattr.explain(cnn(1), X, "gradient").records()
    with pytest.raises(RunError, match="3 names for the 4 columns"):
        a.records(x, ["a", "b", "c"])
    with pytest.raises(RunError, match=r"x has the shape \(1, 4\)"):
        a.records(x[:1])
