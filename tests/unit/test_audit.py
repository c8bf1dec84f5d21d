"""Audits of nets that are small enough to know the verdict; the gate, the state, the page and its sources."""

from __future__ import annotations

import inspect
import io
import json
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

import graphattr
from graphattr.audit import METHODS, Profile, load_profile
from graphattr.audit.charts import Curve, chart, png
from graphattr.audit.gate import parse
from graphattr.audit.measures import MEASURES
from graphattr.audit.profile import PROFILES, THRESHOLDS
from tests.unit.tiny import array, mlp, model, node, saved

pytest.importorskip("onnxruntime")
FEW = {"completeness": {}, "randomisation": {}, "random_logit": {}, "sparseness": {}}
QUICK = Profile("q", samples=4, gallery=2, measures=FEW, thresholds={"insensitive": 0.94})
LAYERS = ["dense", "conv3", "conv2", "conv1", "conv0"]


def cnn(depth=4, classes=10, batch="N", channels=1):
    """x [N, C, 12, 12] -> convolutions with Relu -> Gemm; random, with biases."""
    rng = np.random.Generator(np.random.PCG64(0))
    nodes, weights, tensor, c = [], {}, "x", channels
    for i in range(depth):
        weights |= {f"w{i}": (rng.standard_normal((8, c, 3, 3)) * np.sqrt(2 / (9 * c))).astype(np.float32),
                    f"b{i}": (rng.standard_normal(8) * 0.1).astype(np.float32)}
        nodes += [node("Conv", f"{tensor} w{i} b{i}", f"c{i}", f"conv{i}", pads=[1, 1, 1, 1]), node("Relu", f"c{i}", f"r{i}")]
        tensor, c = f"r{i}", 8
    nodes += [node("Flatten", tensor, "f"), node("Gemm", "f wd bd", "y", "dense")]
    weights |= {"wd": (rng.standard_normal((c * 144, classes)) * 0.1).astype(np.float32), "bd": np.zeros(classes, np.float32)}
    return model(nodes, {"x": [batch, channels, 12, 12]}, {"y": [batch, classes]}, weights)


X = array(4, 1, 12, 12, seed=1)
ODD = '<script>alert(1)</script> & "quoted"'


class Page(HTMLParser):
    """Tags in order, what they refer to, and whether every one of them is closed."""

    def __init__(self, html):
        super().__init__()
        self.open, self.links, self.tags, self.text = [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "data", "poster", "xlink:href", "action")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def alone(html):
    """The page, which is closed and refers to nothing outside."""
    page = Page(html)
    assert not page.open
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "http" not in html
    assert "url(" not in html
    assert "@import" not in html
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    return page


def said(report, method, check):
    return next(line for line in report.data["methods"][method]["verdict"] if line["check"] == check)


# -- the verdict ------------------------------------------------------------------------------------------------------
def test_zplus_ignores_layers_that_the_gradient_sees():
    """Sixt et al. 2020: positive rules converge, so upper layers and classes do not matter to them."""
    limit = 0.9
    report = graphattr.audit(cnn(), X, ["gradient", "lrp.zplus"], replace(QUICK, thresholds={"insensitive": limit}))
    seen, blind = (said(report, m, "randomisation") for m in ("gradient", "lrp.zplus"))
    assert seen["passed"] is True
    assert seen["text"].startswith("changes as soon as the last layer forgets what it learned")
    assert blind["passed"] is False
    found = report.data["methods"]["lrp.zplus"]["measures"]["randomisation"]
    similar = found["details"]["curve"]["middle"]
    layers = next(k for k, s in enumerate(similar) if s < limit)
    assert layers == 4
    assert blind["text"] == f"insensitive to the last 4 layers of 5 (SSIM still {similar[3]:.2f})"
    assert found["metrics"]["insensitive_layers"] == layers
    assert said(report, "gradient", "random_logit")["passed"] is True
    assert said(report, "lrp.zplus", "random_logit")["text"].startswith("gives nearly the same map for another class (SSIM 0.9")
    assert found["details"]["layers"] == LAYERS
    all_of_them = graphattr.audit(cnn(), X, ["lrp.zplus"], Profile("q", samples=4, measures=FEW, thresholds={"insensitive": 0.5}))
    assert said(all_of_them, "lrp.zplus", "randomisation")["text"].startswith("insensitive to all 5 layers with weights")
    assert "insensitive to the last" in report.data["methods"]["lrp.zplus"]["summary"]


def test_what_adds_up_passes_and_what_does_not_is_off():
    report = graphattr.audit(mlp(), array(6, 4), ["gradient"], Profile("c", samples=6, measures={"completeness": {}}))
    assert said(report, "gradient", "completeness")["text"].startswith("does not sum to")
    net = model([node("MatMul", "x w", "y", "only")], weights={"w": array(4, 3)})
    exact = graphattr.audit(net, array(6, 4), ["gradient_x_input"], Profile("c", samples=6, measures={"completeness": {}}))
    line = said(exact, "gradient_x_input", "completeness")
    assert line["passed"] is True
    assert line["text"].startswith("sums to the score's change from the baseline within ")
    values = exact.data["methods"]["gradient_x_input"]["measures"]["completeness"]["values"]
    assert max(values) < 1e-4


def test_convergence_where_tokens_are_vectors():
    """(N, T, E): what a dense layer reads has its channels last."""
    nodes = [node("MatMul", "x w", "h", "first"), node("Relu", "h", "r", "relu"), node("MatMul", "r v", "m", "second"),
             node("ReduceMean", "m", "y", "mean", axes=[1], keepdims=0)]
    net = model(nodes, {"x": ["N", 5, 4]}, {"y": ["N", 3]}, {"w": array(4, 6), "v": array(6, 3, seed=1)})
    x, asked = array(2, 5, 4, seed=2), Profile("c", samples=2, measures={"convergence": {"vectors": 3}})
    found = graphattr.audit(net, x, ["gradient"], asked).data["methods"]["gradient"]["measures"]["convergence"]
    assert found["details"]["tensors"] == ["r", "x"]
    assert found["details"]["channels"] == [6, 4]
    v = array(2, 3, 3, seed=3)
    held = graphattr.measure.cosine_convergence(net, x, "gradient", tensors=["x"], vectors=v, channels=-1)["x"]
    open_ = (x @ array(4, 6) > 0)[:, None]
    r = (v[:, :, None] @ array(6, 3, seed=1).T * open_) @ array(4, 6).T  # (N, vectors, T, E)
    sizes = np.linalg.norm(r, axis=-1)
    pairs = ((0, 1), (0, 2), (1, 2))
    with np.errstate(invalid="ignore"):  # a token behind which no unit is active has no direction
        expected = np.stack([np.abs((r[:, i] * r[:, j]).sum(-1)) / sizes[:, i] / sizes[:, j] for i, j in pairs], 1)
    np.testing.assert_allclose(held.values, expected.reshape(-1), atol=1e-5)


def test_convergence_names_the_tensor_and_the_baseline():
    """Two channels of input: the cosine has something to compare down to the input."""
    asked = Profile("c", samples=2, measures={"convergence": {"vectors": 3}})
    report = graphattr.audit(cnn(channels=2), array(2, 2, 12, 12), ["gradient", "lrp.zplus"], asked)
    found = report.data["methods"]["lrp.zplus"]["measures"]["convergence"]
    assert found["details"]["tensors"] == ["f", "r2", "r1", "r0", "x"]
    assert found["details"]["channels"] == [8 * 144, 8, 8, 8, 2]
    assert found["details"]["baseline"][1] == pytest.approx(0.25, abs=0.05)
    gradient = report.data["methods"]["gradient"]["measures"]["convergence"]["metrics"]["convergence"]
    assert found["metrics"]["convergence"] > max(0.9, gradient)
    assert "becomes one direction from 'r" in said(report, "lrp.zplus", "convergence")["text"]


def test_every_measure_runs_and_says_a_number():
    every = {name: {} for name in MEASURES if name not in ("localisation", "grid_pointing")}  # these need photos: test_boxes.py
    asked = Profile("all", samples=4, measures=every | {"flipping": {"steps": 5}})
    report = graphattr.audit(cnn(2, channels=2), array(4, 2, 12, 12), ["gradient_x_input"], asked)
    for name, found in report.data["methods"]["gradient_x_input"]["measures"].items():
        assert found["skipped"] is None, name
        assert all(isinstance(found["metrics"][m], float) for m in MEASURES[name].metrics), name
    alone(report.html)


def test_tables_are_compared_by_ranks():
    report = graphattr.audit(mlp("Softmax"), array(8, 4), ["gradient_x_input"], "quick")
    found = report.data["methods"]["gradient_x_input"]["measures"]
    assert found["randomisation"]["settings"]["compare"] == "|spearman|"
    assert not [f["skipped"] for f in found.values() if f["skipped"]]
    assert "absolute rank correlation" in report.html


def test_what_cannot_be_measured_says_why():
    """Maps of a layer have no value per element; guided Grad-CAM promises no sum."""
    asked = Profile("s", samples=2, measures={"completeness": {}, "sensitivity_n": {}})
    report = graphattr.audit(cnn(2, channels=2), array(2, 2, 12, 12), ["grad_cam"], asked, layer="conv1")
    lines = {line["check"]: line for line in report.data["methods"]["grad_cam"]["verdict"]}
    assert lines["completeness"]["passed"] is None
    assert "not measured: it does not say what its attributions add up to" in lines["completeness"]["text"]
    assert "its maps have the shape" in lines["sensitivity_n"]["text"]


def test_signals_are_strips_and_dead_models_have_no_numbers():
    """A net that says 0 for everything has maps of zeros: what would divide by them is not measured, and nothing breaks."""
    nodes = [node("Conv", "x w", "c", pads=[1, 1]), node("Relu", "c", "r"), node("Flatten", "r", "f"), node("Gemm", "f v", "y")]
    net = model(nodes, {"x": ["N", 2, 100]}, {"y": ["N", 3]}, {"w": array(4, 2, 3), "v": array(400, 3)})
    report = graphattr.audit(net, array(5, 2, 100), ["gradient_x_input"], QUICK)
    assert said(report, "gradient_x_input", "randomisation")["passed"] is True
    assert len(alone(report.html).links) == 2 * 2
    dead = model([node("MatMul", "x w", "h"), node("Relu", "h", "y")], weights={"w": -np.ones((4, 3), np.float32)})
    with np.errstate(all="raise"):
        report = graphattr.audit(dead, np.ones((3, 4), np.float32), ["gradient"], "standard")
    assert said(report, "gradient", "max_sensitivity")["passed"] is None
    json.dumps(report.data, allow_nan=False)
    alone(report.html)


def test_a_model_with_a_fixed_batch():
    """Five samples fill two batches of two; the findings are those of the same four in an open batch."""
    report = graphattr.audit(cnn(1, batch=2), array(5, 1, 12, 12), ["gradient"], Profile("f", samples=5, measures=FEW))
    free = graphattr.audit(cnn(1), array(5, 1, 12, 12)[:4], ["gradient"], Profile("f", samples=4, measures=FEW))
    assert report.data["samples"]["number"] == 4
    for name, found in free.data["methods"]["gradient"]["measures"].items():
        fixed = report.data["methods"]["gradient"]["measures"][name]
        assert fixed["skipped"] is None
        assert fixed["metrics"] == pytest.approx(found["metrics"], rel=1e-4), name


# -- the report -------------------------------------------------------------------------------------------------------
def test_json_has_its_schema_and_no_nan(tmp_path):
    path = saved(cnn(2), tmp_path)
    graphattr.audit(path, {"x": X, "labels": np.array([0, 1, 2, 3])}, list(METHODS), QUICK, tmp_path / "r")
    data = json.loads((tmp_path / "r" / "report.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert list(data) == ["version", "graphattr", "ok", "model", "samples", "settings", "methods", "gate"]
    assert data["version"] == 1
    assert data["model"]["name"] == "m.onnx"
    assert data["model"]["sha256"] == graphattr.inspect(path)["sha256"]
    assert set(data["samples"]) == {"number", "sha256", "inputs", "output", "target", "labelled", "accuracy", "labels",
                                    "predicted", "explained", "probability"}
    assert (data["samples"]["inputs"], data["samples"]["output"]) == (["x"], "y")
    assert data["samples"]["labels"] == [0, 1, 2, 3]
    assert data["settings"]["thresholds"] == {**THRESHOLDS, "insensitive": 0.94}
    for method in data["methods"].values():
        assert set(method) == {"summary", "params", "expects", "source", "verdict", "measures"}
        assert list(method["measures"]) == list(QUICK.measures)
        for found in method["measures"].values():
            assert set(found) == {"names", "metrics", "skipped", "values", "interval", "details", "settings"}
            assert list(found["metrics"]) == found["names"]
        assert all(set(line) == {"check", "question", "passed", "text"} for line in method["verdict"])
    assert str(tmp_path) not in json.dumps(data)


def test_the_page_stands_alone_and_escapes(tmp_path):
    path = saved(cnn(2), tmp_path, "a&b.onnx")
    report = graphattr.audit(path, X, ["gradient"], QUICK, class_names=[ODD] * 10)
    page = alone(report.html)
    assert ODD in "".join(page.text)
    places = [report.html.index(part) for part in ("Does it add up?", "<svg", "<img", "sha256")]
    assert places == sorted(places)
    assert len(page.links) == 2 * 2
    assert str(tmp_path) not in report.html


def test_the_same_seed_gives_the_same_report():
    first, second = (graphattr.audit(cnn(2), X, ["gradient"], "quick") for _ in range(2))
    assert first.data == second.data
    assert first.html == second.html
    other = graphattr.audit(cnn(2), X, ["gradient"], replace(PROFILES["quick"], seed=1))
    drawn = [r.data["methods"]["gradient"]["measures"]["random_logit"]["values"] for r in (first, other)]
    assert drawn[0] != drawn[1]


def test_a_killed_audit_goes_on(tmp_path, monkeypatch):
    """What was measured is read, not measured again; the report is that of a run in one piece."""
    out, whole = tmp_path / "r", graphattr.audit(cnn(2), X, ["gradient", "lrp.zplus"], QUICK)
    ran = []

    def counting(name, run, stop):
        def measured(s, **settings):
            ran.append((s.method.name, name))
            if stop and (s.method.name, name) == ("lrp.zplus", "random_logit"):
                raise KeyboardInterrupt
            return run(s, **settings)

        measured.__signature__ = inspect.signature(run)
        return measured

    def patched(stop):
        for name, asked in list(originals.items()):
            monkeypatch.setitem(MEASURES, name, type(asked)(counting(name, asked.run, stop), asked.metrics))

    originals = dict(MEASURES)
    patched(True)
    with pytest.raises(KeyboardInterrupt):
        graphattr.audit(cnn(2), X, ["gradient", "lrp.zplus"], QUICK, out)
    assert not (out / "report.json").exists()
    assert not list(out.rglob("*.part"))
    ran.clear()
    patched(False)
    again = graphattr.audit(cnn(2), X, ["gradient", "lrp.zplus"], QUICK, out)
    assert ran == [("lrp.zplus", "random_logit"), ("lrp.zplus", "sparseness")]
    assert again.data == whole.data
    assert again.html == whole.html
    ran.clear()
    graphattr.audit(cnn(2), X + 1, ["gradient"], QUICK, out)
    assert len(ran) == len(QUICK.measures), "other data are measured anew"


# -- the gate and the profile -----------------------------------------------------------------------------------------
def test_the_gate():
    rules = ["completeness>0.01", "lrp.zplus: insensitive_layers >= 1"]
    report = graphattr.audit(cnn(2), X, ["gradient", "lrp.zplus"], QUICK, fail_on=rules)
    assert not report.ok
    assert [f.split(":")[0] for f in report.failures][:1] == ["gradient fails 'completeness>0.01'"]
    assert "The gate fails" in report.html
    assert len([line for line in report.data["gate"] if line["rule"] == rules[1]]) == 1
    assert graphattr.audit(cnn(2), X, ["gradient"], QUICK, fail_on=["sparseness > 2"]).ok


def test_a_gate_fails_on_what_could_not_be_measured():
    asked = Profile("s", samples=2, measures={"completeness": {}})
    report = graphattr.audit(cnn(2), X, ["grad_cam"], asked, fail_on=["completeness > 9"], layer="conv1")
    assert not report.ok
    assert "not measured" in report.failures[0]


@pytest.mark.parametrize(("rule", "word"), [
    ("completeness", "METRIC > NUMBER"), ("completeness > much", "METRIC > NUMBER"),
    ("completness > 1", "did you mean 'completeness'"),
    ("infidelity > 1", "does not measure it"), ("lrp.zero: completeness > 1", "is not audited"),
])
def test_rules_of_the_gate_are_checked(rule, word):
    with pytest.raises(graphattr.RunError, match=word):
        parse([rule], ["gradient"], QUICK.measures)


def test_profiles_are_read_and_checked(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('samples = 3\nseed = 7\nfail_on = ["sparseness > 0.999"]\n[measures.sparseness]\n[measures.flipping]\n'
                    "steps = 4\n[thresholds]\ninsensitive = 0.5\n")
    mine = load_profile(path)
    assert (mine.name, mine.samples, mine.seed, mine.threshold("insensitive")) == ("mine", 3, 7, 0.5)
    report = graphattr.audit(cnn(1), X, ["gradient"], path)
    assert report.ok
    assert report.data["settings"]["measures"] == {"sparseness": {}, "flipping": {"steps": 4}}
    curve = report.data["methods"]["gradient"]["measures"]["flipping"]["details"]["morf"]["middle"]
    assert len(curve) == 5


@pytest.mark.parametrize(("text", "word"), [
    ("sample = 3", "unknown key 'sample'; did you mean 'samples'"), ("samples = 0", "at least 1"),
    ("[thresholds]\nx = 1", "unknown key"),
    ("[measures.sparsenes]", "did you mean 'sparseness'"), ("[measures.flipping]\nsteps = 'x'", "does not fit"),
    ("[measures.flipping]\nstep = 2", "did you mean 'steps'"), ("samples = ", "cannot read"), ("[measures]", "names no measure"),
])
def test_bad_profiles_say_what_is_wrong(tmp_path, text, word):
    (tmp_path / "p.toml").write_text(text)
    with pytest.raises(graphattr.RunError, match=word):
        graphattr.audit(cnn(1), X, ["gradient"], tmp_path / "p.toml")


def test_an_unknown_profile():
    with pytest.raises(graphattr.RunError, match="did you mean 'quick'"):
        load_profile("quik")


# -- data -------------------------------------------------------------------------------------------------------------
def test_pictures_with_a_table_of_labels(tmp_path):
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "p"
    folder.mkdir()
    for i in range(6):
        image.fromarray(np.full((12, 12), 40 * i, np.uint8)).save(folder / f"{i}.png")
    (tmp_path / "l.csv").write_text("file,class\n" + "".join(f"{i}.png,{i}\n" for i in range(6)))
    few = Profile("f", samples=3, measures={"sparseness": {}})
    report = graphattr.audit(cnn(1), folder, ["gradient"], few, labels=tmp_path / "l.csv", target="labels")
    assert report.data["samples"]["explained"] == [0, 2, 4]
    assert "2.png" in report.html
    (tmp_path / "l.csv").write_text("0.png,1\n")
    with pytest.raises(graphattr.RunError, match=r"names no class for 1\.png"):
        graphattr.audit(cnn(1), folder, ["gradient"], few, labels=tmp_path / "l.csv")


def test_samples_are_spread_over_folders_of_classes(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for c in (3, 5):
        (tmp_path / str(c)).mkdir()
        for i in range(4):
            image.fromarray(np.full((12, 12), 9 * i + c, np.uint8)).save(tmp_path / str(c) / f"{i}.png")
    report = graphattr.audit(cnn(1), tmp_path, ["gradient"], Profile("f", samples=4, measures={"sparseness": {}}))
    assert report.data["samples"]["labels"] == [3, 3, 5, 5]
    assert isinstance(report.data["samples"]["accuracy"], float)


def test_a_table_of_numbers(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,c,d\n1,2,3,4\n-1,0,2,1\n0.5,1,1,0\n")
    report = graphattr.audit(mlp(), tmp_path / "t.csv", ["gradient_x_input"], QUICK)
    assert report.data["samples"]["number"] == 3
    assert "x0 = 1" in report.html


def test_target_labels_needs_labels():
    with pytest.raises(graphattr.RunError, match="needs labels"):
        graphattr.audit(cnn(1), X, ["gradient"], QUICK, target="labels")


# -- charts -----------------------------------------------------------------------------------------------------------
def test_a_chart_leaves_gaps_and_escapes():
    svg = chart([Curve("<a>", [0, 1, 2], [0.1, None, 0.3], [0.0, None, 0.2], [0.2, None, 0.4])], [(0, "&")], "x", "y")
    Page(svg)
    assert "<a>" not in svg
    assert svg.count("<circle") == 2


def test_a_png_is_what_was_drawn():
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(np.asarray(image.open(io.BytesIO(png(pixels)))), pixels)
