"""The pages of audit and diff in a browser: they load, ask for nothing, complain of nothing, and fit a phone."""

from __future__ import annotations

import numpy as np
import pytest

import graphattr
from graphattr.audit import Profile
from graphattr.audit.measures import MEASURES
from tests.unit.browser import CHROMIUM, Browser
from tests.unit.test_audit import cnn
from tests.unit.test_audit_inputs import IDS, tokens
from tests.unit.tiny import array, mlp, saved

pytest.importorskip("onnxruntime")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH")
LONG = "a_layer_or_a_model_of_a_name_that_nobody_would_write_by_hand_but_exporters_do" * 2
FOUR = ["gradient", "gradient_x_input", "lrp.zplus", "lrp.epsilon_plus_flat"]
EVERY = Profile("all", samples=3, gallery=2, measures={name: {} for name in MEASURES} | {"flipping": {"steps": 5}})
CUT = """[...document.querySelectorAll("svg text")].filter(t => {
    const a = t.getBoundingClientRect(), b = t.closest("svg").getBoundingClientRect()
    return a.width && (a.left < b.left - 1 || a.right > b.right + 1 || a.bottom > b.bottom + 1)
}).map(t => t.textContent).join()"""


@pytest.fixture(scope="module")
def browser():
    with Browser() as held:
        yield held


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Pages by name: pictures, ids and a table audited, two models compared."""
    folder = tmp_path_factory.mktemp("pages")
    model, x = saved(cnn(2, channels=3), folder, f"{LONG}.onnx"), array(3, 3, 12, 12)
    graphattr.audit(model, x, FOUR, EVERY, folder / "pictures", fail_on=["completeness > 1e-9"], class_names=[LONG] * 10)
    graphattr.audit(tokens(length=60), np.tile(IDS, 12), ["gradient_x_input", "occlusion"], EVERY, folder / "ids")
    graphattr.audit(mlp("Softmax"), array(5, 4), FOUR, EVERY, folder / "table")
    graphattr.diff(model, cnn(2, channels=3), x, "gradient", folder / "diff.html", class_names=[LONG] * 10)
    return {"diff": folder / "diff.html"} | {n: folder / n / "report.html" for n in ("pictures", "ids", "table")}


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["pictures", "ids", "table", "diff"])
def test_a_page_fits_and_asks_for_nothing(browser, pages, name, width):
    browser.open(pages[name], width)
    assert browser.value("document.readyState") == "complete"
    assert [r for r in browser.requests if not r.startswith("data:image/png;base64,")] == [pages[name].resolve().as_uri()]
    assert browser.complaints == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    assert browser.value("[...document.images].every(i => i.complete && i.naturalWidth > 0)") is True
    assert browser.value(CUT) == "", "words stick out of a chart"


def test_this_test_sees_what_is_wrong(browser, tmp_path):
    wrong = '<div style="width:900px">x</div><img src="beside.png"><script>console.log(1); no()</script>'
    (tmp_path / "p.html").write_text(wrong)
    browser.open(tmp_path / "p.html", 390)
    assert browser.value("document.documentElement.scrollWidth") > 390
    assert len(browser.requests) == 2
    assert len(browser.complaints) >= 2
