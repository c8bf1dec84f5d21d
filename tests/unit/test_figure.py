"""`attribution.plot`: the picture that `explain` writes, as a figure that no state of pyplot knows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import graphattr
from graphattr.errors import RunError
from graphattr.gallery import explain_files
from tests.unit.test_audit import cnn
from tests.unit.test_compare import channels_last
from tests.unit.tiny import I, array, mlp, model, node

pytest.importorskip("onnxruntime")
pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image", reason="needs Pillow")
ROOT = Path(__file__).resolve().parents[2]


def shown(figure):
    """The pixels of the figure's only picture."""
    return np.asarray(figure.axes[0].images[0].get_array())


def signals(length="T"):
    nodes = [node("Conv", "x w", "h"), node("Relu", "h", "r"), node("GlobalAveragePool", "r", "p"), node("Flatten", "p", "f"),
             node("Gemm", "f v", "y")]
    return model(nodes, {"x": ["N", 2, length]}, {"y": ["N", 3]}, {"w": array(4, 2, 9), "v": array(4, 3)})


def tokens():
    nodes = [node("Gather", "table ids", "e"), node("MatMul", "e w", "h"), node("Relu", "h", "r"),
             node("ReduceMean", "r", "p", axes=[1], keepdims=0), node("MatMul", "p v", "y")]
    return model(nodes, {"ids": (I, ["N", "T"])}, {"y": ["N", 2]}, {"table": array(9, 8), "w": array(8, 8), "v": array(8, 2)})


@pytest.mark.parametrize(("net", "x"), [
    pytest.param(cnn(1), array(1, 1, 12, 12), id="grey picture"),
    pytest.param(cnn(1, channels=3), array(1, 3, 12, 12), id="picture"),
    pytest.param(channels_last(), array(1, 12, 12, 3), id="channels last"),
    pytest.param(mlp(), array(1, 4), id="table"),
    pytest.param(signals(), array(1, 2, 90), id="signal"),
])
def test_it_is_what_explain_writes(net, x, tmp_path):
    np.save(tmp_path / "x.npy", x)
    made = graphattr.convert(net, "gradient_x_input")
    (report,) = explain_files(made, [str(tmp_path / "x.npy")], tmp_path)
    written = np.asarray(Image.open(next(f for f in report["files"] if f.endswith(".png"))))
    np.testing.assert_array_equal(shown(graphattr.explain(made, x).plot(x)), written)


def test_a_sample_is_shown_as_if_it_were_alone():
    x = array(3, 1, 12, 12)
    a = graphattr.explain(cnn(1), x, "gradient")
    alone = graphattr.explain(cnn(1), x[2:], "gradient").plot(x[2:])
    np.testing.assert_array_equal(shown(a.plot(x, sample=2)), shown(alone))
    np.testing.assert_array_equal(shown(a.plot(x, sample=-1)), shown(alone))
    assert (shown(a.plot(x)) != shown(alone)).any()


def test_names_change_what_is_written_and_nothing_else():
    x = array(2, 4)
    a = graphattr.explain(mlp(), x, "gradient_x_input", target=1)
    bare, named = shown(a.plot(x)), shown(a.plot(x, labels=["", "yes"], columns=["age", "income", "height", "debt"]))
    assert bare.shape == named.shape
    assert (bare != named).any()
    assert graphattr.plot(a, x).get_size_inches().tolist() == a.plot(x).get_size_inches().tolist()


def test_any_key_of_the_scores():
    x = array(1, 1, 12, 12)
    a = graphattr.explain(cnn(1), x, ["gradient", "lrp.zplus"])
    first, second = (shown(a.plot(x, tensor=name)) for name in a.scores)
    np.testing.assert_array_equal(shown(a.plot(x)), first)
    assert (first[:80] != second[:80]).any(), "the headings name the methods"


def test_words_are_on_their_colours():
    ids = np.arange(6)[None]
    a = graphattr.explain(tokens(), ids, "gradient_x_input")
    plain, spelled = shown(a.plot(ids)), shown(a.plot(ids, words=[["the", "act", "##ing", "was", "so", "good"]]))
    assert plain.shape == spelled.shape
    assert (plain != spelled).any()
    strongest = a.scores["ids"][0][np.abs(a.scores["ids"][0]).argmax()]
    reds = [int(((p[..., 0].astype(int) - p[..., 2]) > 60).sum()) for p in (spelled[:150], spelled[:150, :, ::-1])]
    assert (reds[0] > reds[1]) == (strongest > 0)
    long = graphattr.explain(tokens(), np.arange(300)[None] % 9, "gradient_x_input")
    assert shown(long.plot(np.arange(300)[None] % 9)).shape[0] > plain.shape[0]


def test_notebooks_and_files_show_it(tmp_path):
    x = array(1, 1, 12, 12)
    figure = graphattr.explain(cnn(1), x, "gradient").plot(x)
    from matplotlib.figure import Figure
    assert isinstance(figure, Figure)
    assert figure._repr_png_().startswith(b"\x89PNG")
    figure.savefig(tmp_path / "a.png")
    np.testing.assert_allclose(np.asarray(Image.open(tmp_path / "a.png"))[..., :3].astype(int), shown(figure), atol=1)
    figure.savefig(tmp_path / "a.pdf")
    assert (tmp_path / "a.pdf").stat().st_size > 1000


@pytest.mark.parametrize(("call", "said"), [
    (lambda a, x: a.plot(x[:2]), "3 samples were explained"),
    (lambda a, x: a.plot(x, sample=3), "no sample 3"),
    (lambda a, x: a.plot(x, sample=-4), "no sample -4"),
    (lambda a, x: a.plot(x, tensor="z"), "no attribution of 'z'"),
    (lambda a, x: a.plot(x[:, :3]), r"shape \(3,\)"),
    (lambda a, x: a.plot(x, columns=["a"]), "1 columns are named"),
    (lambda a, x: a.plot(columns=["a"]), "give x"),
])
def test_what_does_not_fit_is_said(call, said):
    x = array(3, 4)
    with pytest.raises(RunError, match=said):
        call(graphattr.explain(mlp(), x, "gradient"), x)


def test_what_cannot_be_drawn_alone_asks_for_x():
    with pytest.raises(RunError, match=r"plot\(x\)"):
        graphattr.explain(signals(), array(1, 2, 90), "gradient").plot()
    with pytest.raises(RunError, match=r"plot\(x\)"):
        graphattr.explain(tokens(), np.arange(4)[None], "gradient").plot()


@pytest.mark.parametrize(("before", "after"), [
    ("", "assert 'matplotlib.pyplot' not in sys.modules"),
    ("sys.modules['matplotlib'] = None", "sys.exit('no error')"),
])
def test_pyplot_stays_untouched_and_the_extra_is_named(before, after):
    code = f"""import sys, numpy as np
{before}
import graphattr
a = graphattr.runtime.Attribution({{"x": np.ones((1, 4))}}, {{}}, np.zeros(1, np.int64))
a.plot(np.ones((1, 4)))
{after}"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    if before:
        assert 'pip install "graphattr[images]"' in done.stderr
        assert done.returncode == 1
    else:
        assert done.returncode == 0, done.stderr
