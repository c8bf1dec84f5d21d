"""The street has one direction: a module imports lower floors only, and big borders are crossed in few places."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES = 400

# Every module of graphattr. One that belongs to a package (vjp, lower ...) stands on the package's floor.
FLOORS = {
    "errors": 0, "version": 0, "files": 0, "ahead": 0,
    "contents": 1, "infer": 1, "value": 1, "graph": 1, "tensors": 1, "wire": 1, "wellformed": 1, "rewrite": 1,
    "vjp": 2, "source": 2, "upgrade": 2, "foreign": 2, "growth": 2, "sequences": 2, "surgery": 2,
    "branches": 2, "onnxio": 2, "freeze": 2,
    "folding": 3, "recurrent": 3, "canonical": 3, "composites": 3, "normalisations": 3, "kinds": 3, "signs": 3, "layers": 3,
    "units": 3,
    "blocks": 3,
    "pair": 4, "spelled": 4, "fn": 4, "rule": 4,
    "method": 5, "plan": 5, "lookups": 5, "targets": 5, "fitted": 5,
    "simplify": 6, "abreast": 6, "precision": 6, "backward": 6, "references": 6, "procedure": 6, "attribute": 6, "lower": 6,
    "export": 7, "manifest": 7, "kernels": 7,
    "session": 8, "bound": 8, "runtime": 8, "street": 8,
    "tables": 9, "sound": 9, "tabular": 9, "preprocess": 9, "vocabulary": 9, "render": 9,
    "texts": 9, "view": 9, "sheet": 9, "look": 9, "measure": 9, "fit": 9,
    "figure": 10, "dataset": 10, "gallery": 10, "audit": 10, "compare": 10, "api": 10, "quantus": 10,
    "demo": 11, "arguments": 11, "commands": 11, "cli": 11, "__main__": 11, "__init__": 11,
}
ORDER = list(FLOORS)  # on one floor a module may import those to its left
OWNERS = {"onnx_graphsurgeon": {"surgery"}, "onnxruntime": {"session"}, "networkx": {"layers", "plan"}}
ABSENT = {"torch", "captum", "zennit", "tensorflow", "jax", "innvestigate", "onnxscript"}


def modules():
    """(module below graphattr, its floor's name, path)."""
    for path in sorted((ROOT / "graphattr").rglob("*.py")):
        parts = path.relative_to(ROOT / "graphattr").with_suffix("").parts
        yield ".".join(parts), parts[0], path


def imports(path, package):
    """Absolute names of everything a file imports; what stands under `if TYPE_CHECKING` is no import at run time."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    skipped = {id(n) for branch in typing_only for n in ast.walk(branch)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.split(".")[:len(package.split(".")) - node.level + 1]) if node.level else ""
            name = ".".join(p for p in (base, node.module or "") if p)
            yield from (f"{name}.{a.name}" for a in node.names)


def package_of(path):
    return ".".join(path.relative_to(ROOT).parent.parts)


def floor_of(name):
    """The floor's name of `graphattr.x.y`: x; None for anything outside."""
    parts = name.split(".")
    return parts[1] if parts[0] == "graphattr" and len(parts) > 1 else None


def test_every_module_is_listed():
    held = {top for _, top, _ in modules()}
    assert held <= set(FLOORS), f"give these a floor: {sorted(held - set(FLOORS))}"


@pytest.mark.parametrize(("name", "top", "path"), [pytest.param(*m, id=m[0]) for m in modules()])
def test_imports_lower_floors_only(name, top, path):
    for imported in imports(path, package_of(path)):
        other = floor_of(imported)
        if other is None or other == top or other not in FLOORS:
            continue
        assert ORDER.index(other) < ORDER.index(top), f"{name} (floor {FLOORS[top]}) imports {imported} (floor {FLOORS[other]})"


@pytest.mark.parametrize("library", OWNERS)
def test_borders_are_crossed_in_few_places(library):
    found = {top for _, top, path in modules() if any(i.split(".")[0] == library for i in imports(path, package_of(path)))}
    assert found <= OWNERS[library]
    assert found, f"nobody imports {library} any more: drop it here"


def test_training_frameworks_are_never_imported():
    for name, top, path in modules():
        used = {i.split(".")[0] for i in imports(path, package_of(path))} & ABSENT
        assert not used or top == "demo", f"{name} imports {used}"


@pytest.mark.parametrize("path", sorted((ROOT / "rules" / "graphattr_rules").rglob("*.py")), ids=lambda p: p.stem)
def test_rules_see_the_rule_interface_only(path):
    allowed = {"graphattr.rule", "graphattr.errors", "graphattr_rules"}
    package = ".".join(path.relative_to(ROOT / "rules").parent.parts)
    for imported in imports(path, package):
        if imported.split(".")[0] == "graphattr":
            assert ".".join(imported.split(".")[:2]) in allowed, f"{path.name} imports {imported}"


@pytest.mark.parametrize(("name", "top", "path"), [pytest.param(*m, id=m[0]) for m in modules()])
def test_no_module_is_long(name, top, path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


def test_operator_names_are_asked_in_few_places():
    """Branching on an operator's name belongs to vjp, the surgery, layers and what reads files."""
    allowed = {"vjp", "surgery", "folding", "canonical", "layers", "onnxio", "upgrade", "foreign", "rewrite", "wellformed",
               "composites", "normalisations", "kinds", "signs", "recurrent", "infer", "growth", "sequences", "lookups",
               "targets", "simplify", "abreast", "lower", "fn", "source", "spelled", "blocks", "units", "fit"}
    asks = re.compile(r"""\.op(_type)?\s*(==|!=|in|not in)\s*[(\[{]?\s*["']""")
    for name, top, path in modules():
        if asks.search(path.read_text(encoding="utf-8")):
            assert top in allowed, f"{name} branches on operator names"


def test_this_test_sees_imports(tmp_path):
    """The reader of imports finds relative, absolute and late ones."""
    (tmp_path / "graphattr").mkdir()
    file = tmp_path / "graphattr" / "m.py"
    file.write_text("from __future__ import annotations\nimport onnx\nfrom .graph import Graph\n"
                    "if TYPE_CHECKING:\n    from .api import convert\ndef f():\n    from graphattr.cli import main\n")
    found = set(imports(file, "graphattr"))
    assert {"onnx", "graphattr.graph.Graph", "graphattr.cli.main"} <= found
    assert "graphattr.api.convert" not in found
