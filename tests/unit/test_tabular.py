"""Tables as people have them: .csv and .parquet give the same samples, names, classes and errors."""

from __future__ import annotations

import re
import sys
import tracemalloc

import numpy as np
import pytest

import graphattr
from graphattr.fit.data import open_data
from graphattr.preprocess import PRESETS, read_input
from graphattr.tabular import read_table, tables
from tests.unit.tiny import array, mlp, model, node

X, LABELS = array(30, 4, seed=4), np.arange(30) % 3
FLOAT, INT = np.dtype(np.float32), np.dtype(np.int64)


def parquet(path, columns, rows_per_group=7, **options):
    """A .parquet of {name: array, list or Arrow array}; arrays of several axes become lists of fixed size."""
    pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
    import pyarrow.parquet as pq

    def lists(a):
        held = pa.array(a.reshape(-1))
        for size in a.shape[:0:-1]:
            held = pa.FixedSizeListArray.from_arrays(held, size)
        return held

    made = {k: lists(v) if isinstance(v, np.ndarray) else v for k, v in columns.items()}
    pq.write_table(pa.table(made), path, row_group_size=rows_per_group, **options)
    return path


def as_csv(path, columns, mark=","):
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join(mark.join(map(repr, map(float, row))) for row in rows), "utf-8")
    path.write_text(mark.join(columns) + "\n" + path.read_text())
    return path


COLUMNS = {"age": X[:, 0], "height": X[:, 1], "label": LABELS, "income": X[:, 2], "smokes": X[:, 3]}


@pytest.fixture(params=["csv", "parquet"])
def table(request, tmp_path):
    return (as_csv if request.param == "csv" else parquet)(tmp_path / f"t.{request.param}", COLUMNS)


def test_columns_classes_and_names(table):
    item = read_input(table, PRESETS["none"], ("N", 4), "float32")
    np.testing.assert_array_equal(item.array, X)
    assert item.columns == ("age", "height", "income", "smokes")
    np.testing.assert_array_equal(read_table(table).classes, LABELS)


def test_batches_and_labels(table):
    """Rows come in batches of any size, with their classes; what is given counts before the column."""
    types = {"x": (FLOAT, ("N", 4))}
    for size in (4, 7, 64):
        batches = list(open_data(table, None, types, size))
        np.testing.assert_array_equal(np.concatenate([b.feeds["x"] for b in batches]), X)
        np.testing.assert_array_equal(np.concatenate([b.labels for b in batches]), LABELS)
        assert max(b.rows for b in batches) == min(size, 30)
    (given,) = open_data(table, LABELS + 1, types, 64)
    np.testing.assert_array_equal(given.labels, LABELS + 1)


def test_columns_that_are_inputs(table):
    """A model with an input per column, as scikit-learn's exporters write it, gets them by name; others are left alone."""
    types = {"income": (FLOAT, ("N", 1)), "age": (FLOAT, ("N",))}
    (batch,) = open_data(table, None, types, 64)
    np.testing.assert_array_equal(batch.feeds["income"], X[:, 2:3])
    np.testing.assert_array_equal(batch.feeds["age"], X[:, 0])
    item = read_input(table, PRESETS["none"], ("N", 1), FLOAT, ["income", "age"])
    np.testing.assert_array_equal(item.feeds(["age"])["age"].astype(np.float32), X[:, :1])
    with pytest.raises(graphattr.RunError, match=r"2 inputs \(income, weight\).*no columns of these names"):
        list(open_data(table, None, {"income": types["income"], "weight": types["age"]}, 64))


def test_audit_and_fit_and_explain_read_them_alike(table, tmp_path):
    pytest.importorskip("onnxruntime")
    report = graphattr.audit(mlp(), table, ["gradient"], "quick", target="labels")
    want = graphattr.audit(mlp(), {"x": X, "labels": LABELS}, ["gradient"], "quick", target="labels")
    assert report.data["samples"]["labels"] == want.data["samples"]["labels"]
    assert report.data["samples"]["sha256"] == want.data["samples"]["sha256"]
    same = graphattr.diff(mlp(), mlp(), table, "gradient")
    assert same["prediction"]["accuracy"] == graphattr.diff(mlp(), mlp(), X, "gradient", labels=LABELS)["prediction"]["accuracy"]
    with pytest.warns(graphattr.FitWarning):
        found = graphattr.fit(mlp(), table, "pattern.net")
    with pytest.warns(graphattr.FitWarning):
        learned = graphattr.fit(mlp(), X, "pattern.net")
    np.testing.assert_allclose(found.arrays["first"]["pattern"], learned.arrays["first"]["pattern"])


def test_lists_become_axes(tmp_path):
    signal, image = array(30, 2, 5), array(30, 3, 4, 4)
    path = parquet(tmp_path / "s.parquet", {"sound": signal, "labels": LABELS})
    np.testing.assert_array_equal(read_input(path, PRESETS["none"], ("N", 2, "T"), FLOAT).array, signal)
    assert read_input(path, PRESETS["none"], ("N", 10), FLOAT).array.shape == (30, 10)
    path = parquet(tmp_path / "i.parquet", {"pixels": image.reshape(30, -1)})
    np.testing.assert_array_equal(read_input(path, PRESETS["none"], ("N", 3, 4, 4), FLOAT).array, image)
    path = parquet(tmp_path / "m.parquet", {"age": X[:, 0], "embedding": X[:, 1:]})
    item = read_input(path, PRESETS["none"], ("N", 4), FLOAT)
    np.testing.assert_array_equal(item.array, X)
    assert item.columns == ("age", "embedding[0]", "embedding[1]", "embedding[2]")


def test_lists_without_a_declared_size_and_ids(tmp_path):
    """Tokenised data: two columns of ids under the names of the inputs, beside text that nobody asks for."""
    ids = np.arange(60).reshape(30, 2)
    path = parquet(tmp_path / "t.parquet", {"ids": ids.tolist(), "mask": np.ones_like(ids), "text": ["a"] * 30, "label": LABELS})
    types = {"ids": (INT, ("N", "L")), "mask": (INT, ("N", "L"))}
    batches = list(open_data(path, None, types, 8))
    np.testing.assert_array_equal(np.concatenate([b.feeds["ids"] for b in batches]), ids)
    assert open_data(path, None, types, 8).total == 30
    assert read_input(path, PRESETS["none"], ("N", "L"), INT, ["ids", "mask"]).feeds(["mask"])["mask"].dtype == INT


def test_ids_in_a_csv_are_whole_numbers(tmp_path):
    path = as_csv(tmp_path / "t.csv", {"i": LABELS, "x": X[:, 0]})
    (batch,) = open_data(path, None, {"i": (INT, ("N", 1)), "x": (FLOAT, ("N", 1))}, 64)
    np.testing.assert_array_equal(batch.feeds["i"][:, 0], LABELS)


def test_rows_are_pictures_of_two_axes(tmp_path):
    """(rows, 64) for a model of (N, 8, 8) is no single sample."""
    np.savetxt(tmp_path / "d.csv", np.arange(128).reshape(2, 64), delimiter=",")
    assert read_input(tmp_path / "d.csv", PRESETS["none"], ("N", 8, 8), FLOAT).array.shape == (2, 8, 8)


def test_types_of_columns(tmp_path):
    """Decimals, categories of numbers, truth values and half precision are numbers; the index that pandas stores is no column."""
    pa = pytest.importorskip("pyarrow")
    from decimal import Decimal

    columns = {
        "price": pa.array([Decimal("1.50"), Decimal("2.25")]), "kind": pa.array([3, 4]).dictionary_encode(),
        "old": pa.array([True, False]), "half": pa.array(np.array([1, 2], np.float16)), "__index_level_0__": pa.array([7, 8]),
    }
    import pyarrow.parquet as pq

    made = pa.table(columns).replace_schema_metadata({"pandas": '{"index_columns": ["__index_level_0__"], "columns": []}'})
    pq.write_table(made, tmp_path / "t.parquet")
    np.testing.assert_array_equal(read_table(tmp_path / "t.parquet").array, [[1.5, 3, 1, 1], [2.25, 4, 0, 2]])


@pytest.mark.parametrize(("columns", "said"), [
    ({"a": [1.0, None]}, r"column 'a' has no value in row 2"),
    ({"a": [[1.0, 2.0], [3.0, None]]}, r"column 'a' has no value in row 2"),
    ({"a": ["x", "y"]}, r"column 'a' is string: a table holds numbers"),
    ({"a": [[1.0], [1.0, 2.0]]}, r"its lists differ in length.*1 to 2 elements"),
    ({"a": [{"b": 1}]}, r"is struct<b: int64>"),
    ({"labels": [1, 2]}, r"no column but 'labels'"),
    ({"a": [1.0], "label": [0.5]}, r"classes, which are whole numbers"),
    ({"a": []}, r"is empty|is null"),
])
def test_what_is_no_table(tmp_path, columns, said):
    with pytest.raises(graphattr.RunError, match=said):
        read_table(parquet(tmp_path / "t.parquet", columns))


def test_lists_that_differ_between_batches(tmp_path):
    path = parquet(tmp_path / "t.parquet", {"a": [[1.0, 2.0]] * 7 + [[1.0]] * 7})
    with pytest.raises(graphattr.RunError, match=r"from row 8 on \(1,\)"):
        list(tables(path, 7))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1 no parquet PAR1", b"a,b\n1,2\n"])
def test_no_parquet(tmp_path, content):
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(content)
    with pytest.raises(graphattr.RunError, match=r"cannot read .*t\.parquet"):
        read_table(tmp_path / "t.parquet")


def test_a_cut_file_and_a_damaged_one(tmp_path):
    path = parquet(tmp_path / "t.parquet", COLUMNS, compression="zstd")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(graphattr.RunError, match="cannot read"):
        read_table(path)
    path.write_bytes(whole[:4] + bytes(200) + whole[204:])
    with pytest.raises(graphattr.RunError, match="cannot read"):
        read_table(path)


def test_without_pyarrow(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"")
    with pytest.raises(graphattr.RunError, match=re.escape('pip install "graphattr[data]"')):
        read_table(tmp_path / "t.parquet")


def test_csv_says_where_columns_lack(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,label\n1,2\n")
    with pytest.raises(graphattr.RunError, match="line 1 names 3 columns, the rows have 2"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("a,label,label\n1,2,3\n")
    with pytest.raises(graphattr.RunError, match="several columns 'label'"):
        read_table(tmp_path / "t.csv")


def test_a_model_may_have_an_input_called_label(tmp_path):
    nodes = [node("Concat", "a label", "c", axis=1), node("ReduceSum", "c ax", "y", keepdims=1)]
    net = model(nodes, {"a": ["N", 1], "label": ["N", 1]}, {"y": ["N", 1]}, {"ax": np.array([1], np.int64)})
    path = as_csv(tmp_path / "t.csv", {"a": X[:, 0], "label": X[:, 1]})
    types = {v.name: (FLOAT, ("N", 1)) for v in net.graph.input}
    (batch,) = open_data(path, None, types, 64)
    assert batch.labels is None
    np.testing.assert_array_equal(batch.feeds["label"], X[:, 1:2])


def test_rows_are_streamed(tmp_path):
    """Batches of a file of 20 MB in one row group: what Python and Arrow hold is a batch and a page, not the file."""
    path = parquet(tmp_path / "t.parquet", {"x": array(80000, 64)}, rows_per_group=80000, use_dictionary=False)
    import pyarrow as pa

    pool, rows, most = pa.default_memory_pool(), 0, 0
    before = pool.bytes_allocated()
    tracemalloc.start()
    for table in tables(path, 1000):
        rows, most = rows + len(table.array), max(most, pool.bytes_allocated() - before)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == 80000
    assert path.stat().st_size > 20e6
    assert peak < 2e6
    assert most < 8e6


# -- classes of files -------------------------------------------------------------------------------------------------
@pytest.fixture
def arrays(tmp_path):
    """Files a/0.npy (4 rows), b/1.npy (6 rows), and what a model of them reads."""
    for name, n in (("a/0", 4), ("b/1", 6)):
        path = tmp_path / "d" / f"{name}.npy"
        path.parent.mkdir(parents=True)
        np.save(path, X[:n])
    return tmp_path / "d", {"x": (FLOAT, ("N", 4))}


@pytest.mark.parametrize("text", ["file,class\n0.npy,7\n1.npy,5\n", "a/0.npy,7\nb/1.npy,5", "train\\a\\0.npy,7\nold/b/1.npy,5",
                                  "\ufefffile,class\n 1.npy ,5\n0.npy, 7 \n"])
def test_a_table_of_files_and_classes(arrays, tmp_path, text):
    """Names, paths in the folder, paths from elsewhere that end alike; it counts before the folders."""
    folder, types = arrays
    (tmp_path / "l.csv").write_text(text, "utf-8")
    (batch,) = open_data(folder, tmp_path / "l.csv", types, 64)
    assert batch.labels.tolist() == [7] * 4 + [5] * 6


def test_a_table_counts_before_what_a_file_holds(tmp_path):
    np.savez(tmp_path / "0.npz", x=X, labels=LABELS)
    (tmp_path / "l.csv").write_text("0.npz,9")
    (batch,) = open_data(tmp_path / "0.npz", tmp_path / "l.csv", {"x": (FLOAT, ("N", 4))}, 64)
    assert set(batch.labels) == {9}


@pytest.mark.parametrize(("text", "said"), [
    ("0.npy,7\n", "names no class for 1.npy; it has lines for 1 files"), ("0.npy,7\n0.npy,8\n1.npy,1", "the classes 7 and 8"),
    ("file,class\n", "holds no labels"), ("0.npy,7\n1.npy,cat\n", "is not `file,class`"), ("0.npy,7\n3\n", "is not `file,class`"),
    ("x/0.npy,7\ny/0.npy,8\n1.npy,1", "names no class for 0.npy"),
])
def test_tables_of_classes_that_do_not_fit(arrays, tmp_path, text, said):
    folder, types = arrays
    (tmp_path / "l.csv").write_text(text)
    with pytest.raises(graphattr.RunError, match=said):
        open_data(folder, tmp_path / "l.csv", types, 64)


def test_a_csv_of_classes_alone(tmp_path):
    types = {"x": (FLOAT, ("N", 4))}
    (tmp_path / "l.csv").write_text("class\n" + "\n".join(map(str, LABELS)))
    np.save(tmp_path / "x.npy", X)
    for data in (X, tmp_path / "x.npy"):
        (batch,) = open_data(data, tmp_path / "l.csv", types, 64)
        np.testing.assert_array_equal(batch.labels, LABELS)
    (tmp_path / "l.csv").write_text("x.npy,1")
    with pytest.raises(graphattr.RunError, match="names files, and the data are arrays"):
        open_data(X, tmp_path / "l.csv", types, 64)
