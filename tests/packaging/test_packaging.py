"""The wheel holds what it should and nothing else, and importing it is cheap."""

import importlib.util
import subprocess
import sys
import tomllib
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OPTIONAL = ("onnxruntime", "matplotlib", "PIL", "skimage", "torch")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    if not importlib.util.find_spec("hatchling"):
        pytest.skip("hatchling, the build backend, is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q"]
    built = subprocess.run([*pip, "-w", str(folder), str(ROOT)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return zipfile.ZipFile(next(folder.glob("*.whl")))


def test_top_level(wheel):
    top = {name.split("/")[0] for name in wheel.namelist()}
    assert {t for t in top if not t.endswith(".dist-info")} == {"graphattr", "graphattr_rules"}
    assert len(top) == 3


def test_contents(wheel):
    names = set(wheel.namelist())
    assert {"graphattr/py.typed", "graphattr_rules/py.typed", "graphattr/__init__.py", "graphattr/demo/run.py"} <= names
    tables = {p.name for p in (ROOT / "rules" / "graphattr_rules" / "methods").glob("*.toml")}
    assert {n.rsplit("/", 1)[1] for n in names if n.startswith("graphattr_rules/methods/") and n.endswith(".toml")} == tables
    assert tables
    assert not [n for n in names if n.endswith((".onnx", ".pyc")) or {"tests", "models"} & set(n.split("/"))]
    assert {"LICENSE", "NOTICE"} <= {n.rsplit("/", 1)[1] for n in names}


def test_modules_are_complete(wheel):
    """Nothing that git ignores or hatchling leaves out is missing."""
    source = {p.relative_to(ROOT).as_posix() for p in (ROOT / "graphattr").rglob("*.py")}
    source |= {p.relative_to(ROOT / "rules").as_posix() for p in (ROOT / "rules" / "graphattr_rules").rglob("*.py")}
    assert source <= set(wheel.namelist())


def test_entry_points(wheel):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    parser = ConfigParser()
    parser.optionxform = str
    parser.read_string(wheel.read(next(n for n in wheel.namelist() if n.endswith("entry_points.txt"))).decode())
    assert dict(parser["console_scripts"]) == declared["scripts"]
    assert dict(parser["graphattr.rules"]) == {"builtin": "graphattr_rules"}


def test_import_is_cheap():
    """Processor time, not wall time: other processes do not count."""
    code = f"import sys, time, graphattr; print(time.process_time(), *[m for m in {OPTIONAL} if m in sys.modules])"
    for _ in range(2):      # the first one may compile
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    seconds, *loaded = done.stdout.split()
    assert not loaded
    assert float(seconds) < 1.0


def test_import_works_without_the_extras():
    block = f"import sys; [sys.modules.__setitem__(m, None) for m in {OPTIONAL}]; import graphattr"
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_quantus_is_named_where_it_is_missing():
    code = "import sys; sys.modules['quantus'] = None; import graphattr.quantus"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert 'RunError: Quantus is not installed: pip install "graphattr[quantus]"' in done.stderr
