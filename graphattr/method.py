"""Methods are tables: which rule on which layer, first match wins. TOML -> Method; (LayerGraph, Method) -> Plan."""

from __future__ import annotations

import fnmatch
import os
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import networkx as nx

from . import sequences
from .errors import MethodError, UnsupportedOp, did_you_mean
from .foreign import why_foreign
from .layers import Layer, LayerGraph
from .recurrent import obstacle
from .rule import KINDS, REGISTRY, Rule, Step, describe, load_rules
from .vjp.why import WHY

POSITIONS = ("first", "last", "input")
WHERE = ("kind", "op", "name", "position", "given")
EXPECTS = ("seed", "difference", "zero")
HEAD = {"summary": "", "source": "", "seed": "onehot", "finish": "raw", "expects": "seed"}
KEYS = (*HEAD, "with", "base", "assign")


@dataclass(frozen=True)
class Assign:
    """One line of a table: the layers it speaks of, the rule they get, and the rule's parameters."""

    line: str
    rule: str
    where: Mapping[str, Any] = field(default_factory=dict)
    params: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A table of rules, the seed that starts the backward pass and the finish that ends it.

    `expects` is what the attributions should add up to: the sum of the seed ("seed"), the change of the explained score
    from the baseline to the input ("difference"), or nothing ("zero").
    """

    name: str
    assign: tuple[Assign, ...]
    seed: str = "onehot"
    finish: str = "raw"
    params: Mapping[str, Any] = field(default_factory=dict)
    expects: str = "seed"
    summary: str = ""
    source: str = ""

    def parameters(self) -> dict[str, Any]:
        """Every parameter a caller may set: name -> (type in words, default)."""
        found: dict[str, Any] = {"seed": ("the name of a seed", self.seed)}
        for line in self.assign:
            for p in _rule(line.rule, line.line).params.values():
                default = line.params.get(p.name, self.params.get(p.name, None if p.required else p.default))
                found.setdefault(p.name, (describe(p.type), default))
        for step in (_step("seeds", self.seed), _step("finishes", self.finish)):
            for p in step.params.values():
                found.setdefault(p.name, (describe(p.type), self.params.get(p.name, None if p.required else p.default)))
        return found

    def with_params(self, params: Mapping[str, Any]) -> Method:
        """The method with the caller's parameters; MethodError on an unknown name or a wrong type."""
        known = self.parameters()
        for name, value in params.items():
            if name not in known:
                raise MethodError(
                    f"method {self.name!r} has no parameter {name!r}{did_you_mean(name, known)} "
                    f"(it has {', '.join(sorted(known))})"
                )
            for schema in [_rule(a.rule, a.line).params for a in self.assign] + [_step("finishes", self.finish).params]:
                if name in schema:
                    schema[name].check(value, f"method {self.name!r}")
        chosen = dict(params)
        seed = chosen.pop("seed", self.seed)
        _step("seeds", seed)
        lines = tuple(
            Assign(
                a.line,
                a.rule,
                a.where,
                {**a.params, **{k: v for k, v in chosen.items() if k in _rule(a.rule, a.line).params}},
            )
            for a in self.assign
        )
        return Method(self.name, lines, seed, self.finish, {**self.params, **chosen}, self.expects, self.summary, self.source)


@dataclass(frozen=True)
class Bound:
    """What one layer got: the rule, its parameters, and the table line that matched. `fallback`: by strict=False."""

    rule: Rule
    params: Mapping[str, Any]
    line: str
    fallback: bool = False


Plan = Mapping[str, Bound]

BODY = Rule("body", frozenset({"control"}), lambda g, layer, r: layer.vjps(r), {}, "An If, Loop or Scan: rules inside.", __name__)


# -- tables -------------------------------------------------------------------------------------------------------
def method_names() -> list[str]:
    """Names of the installed methods, sorted."""
    load_rules()
    return sorted(p.stem for folder in REGISTRY.folders for p in folder.glob("*.toml") if not p.stem.startswith("_"))


def load_method(method: str | os.PathLike[str] | Method) -> Method:
    """A registered name, the path of a .toml, or a Method as it is."""
    load_rules()
    if isinstance(method, Method):
        return method
    if not isinstance(method, (str, os.PathLike)):
        raise MethodError(f"a method is a name, the path of a .toml, or a graphattr.Method, not {method!r}")
    method = os.fspath(method)
    for folder in REGISTRY.folders:
        if method in method_names() and (folder / f"{method}.toml").is_file():
            return read_method(folder / f"{method}.toml", method)
    if method.endswith(".toml"):
        if not Path(method).is_file():
            raise MethodError(f"no such method file: {method}")
        return read_method(Path(method), Path(method).stem)
    raise MethodError(
        f"unknown method {str(method)!r}{did_you_mean(str(method), method_names())} "
        "(`graphattr methods` lists them; a path to a .toml is accepted too)"
    )


def read_method(path: Path, name: str) -> Method:
    """Read and check a table; errors name the file and the line of the table."""
    lines, defaults, head = _read(path)
    method = Method(
        name,
        tuple(_with_defaults(a, defaults) for a in lines),
        head["seed"],
        head["finish"],
        defaults,
        head["expects"],
        head["summary"],
        head["source"],
    )
    if not lines:
        raise MethodError(f'{path}: the table has no line; write [[assign]] with a rule, or a base such as base = "lrp.epsilon"')
    steps = [_step("seeds", method.seed, f"{path}: "), _step("finishes", method.finish, f"{path}: ")]
    schemas = [*(_rule(a.rule, a.line).params for a in lines), *(step.params for step in steps)]
    known = {key for schema in schemas for key in schema}
    for key, value in defaults.items():
        if key not in known:
            raise MethodError(f"{path} [with]: no rule of this table has a parameter {key!r}{did_you_mean(key, known)}")
        for schema in schemas:
            if key in schema:
                schema[key].check(value, f"{path} [with]")
    return method


def _read(path: Path, above: tuple[Path, ...] = ()) -> tuple[list[Assign], dict[str, Any], dict[str, str]]:
    """(lines, [with] defaults, head) of a table and of the tables it is based on."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as e:
        raise MethodError(f"{path}: not a readable TOML table: {e}") from e
    for key in table:
        if key not in KEYS:
            raise MethodError(f"{path}: unknown key {key!r}{did_you_mean(key, KEYS)}")
    lines = [_assign(entry, f"{path.name} [[assign]] {i + 1}") for i, entry in enumerate(_tables(table.get("assign", []), path))]
    if table.get("expects", "seed") not in EXPECTS:
        raise MethodError(f"{path}: expects must be one of {', '.join(EXPECTS)}, not {table['expects']!r}")
    for key in HEAD:
        if not isinstance(table.get(key, ""), str):
            raise MethodError(f"{path}: {key} must be a string, not {table[key]!r}")
    defaults, head = _table(table.get("with", {}), f"{path}: with"), {k: table[k] for k in HEAD if k in table}
    below: tuple[list[Assign], dict[str, Any], dict[str, str]] = ([], {}, dict(HEAD))
    if "base" in table:
        base = _base(str(table["base"]), path)
        if base.resolve() in above:
            raise MethodError(f"{path}: base {table['base']!r} is based on this table itself")
        below = _read(base, (*above, path.resolve()))
    return lines + below[0], {**below[1], **defaults}, {**below[2], **head}


def _tables(entries: Any, path: Path) -> list[Any]:
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise MethodError(f"{path}: 'assign' must be written as [[assign]] tables")
    return entries


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MethodError(f"{where} must be a table such as {{ key = value }}, not {value!r}")
    return dict(value)


def _base(name: str, path: Path) -> Path:
    for folder in [path.parent, *REGISTRY.folders]:
        if (folder / f"{name}.toml").is_file() and (folder / f"{name}.toml").resolve() != path.resolve():
            return folder / f"{name}.toml"
    raise MethodError(f"{path}: base {name!r} is not an installed table{did_you_mean(name, [*method_names(), '_relevance'])}")


def _assign(entry: Mapping[str, Any], line: str) -> Assign:
    """Check one [[assign]] table."""
    for key in entry:
        if key not in ("where", "rule", "with"):
            raise MethodError(f"{line}: unknown key {key!r}{did_you_mean(key, ('where', 'rule', 'with'))}")
    where, params = _table(entry.get("where", {}), f"{line}: where"), _table(entry.get("with", {}), f"{line}: with")
    for key, value in where.items():
        if key not in WHERE:
            raise MethodError(f"{line}: unknown condition {key!r}{did_you_mean(key, WHERE)}")
        if not all(isinstance(v, str) for v in _listed(value)):
            raise MethodError(f"{line}: the condition {key} must be a name or a list of names, not {value!r}")
    for kind in _listed(where.get("kind", [])):
        if kind not in KINDS:
            raise MethodError(f"{line}: unknown kind {kind!r}{did_you_mean(kind, KINDS)}")
    if where.get("position", "first") not in POSITIONS:
        raise MethodError(f"{line}: position must be one of {', '.join(POSITIONS)}, not {where['position']!r}")
    if not isinstance(entry.get("rule"), str):
        raise MethodError(f'{line}: a line needs a rule, such as rule = "lrp.epsilon"')
    rule = _rule(entry["rule"], line)
    for key, value in params.items():
        if key not in rule.params:
            raise MethodError(f"{line}: rule {rule.name!r} has no parameter {key!r}{did_you_mean(key, rule.params)}")
        rule.params[key].check(value, line)
    return Assign(line, rule.name, dict(where), dict(params))


def _with_defaults(a: Assign, defaults: Mapping[str, Any]) -> Assign:
    rule = _rule(a.rule, a.line)
    return Assign(a.line, a.rule, a.where, {**{k: v for k, v in defaults.items() if k in rule.params}, **a.params})


def _rule(name: str, line: str) -> Rule:
    if name not in REGISTRY.rules:
        raise MethodError(f"{line}: unknown rule {name!r}{did_you_mean(name, REGISTRY.rules)} (`graphattr rules` lists them)")
    return REGISTRY.rules[name]


def _step(table: str, name: str, where: str = "") -> Step:
    steps: Mapping[str, Step] = getattr(REGISTRY, table)
    if name not in steps:
        raise MethodError(
            f"{where}unknown {table[:-1] if table == 'seeds' else 'finish'} {name!r}{did_you_mean(str(name), steps)} "
            f"(known: {', '.join(sorted(steps))})"
        )
    return steps[name]


def _listed(v: Any) -> list[Any]:
    return list(v) if isinstance(v, list) else [v]


# -- plan ---------------------------------------------------------------------------------------------------------
def plan(graph: LayerGraph, method: Method, path: Sequence[Layer], strict: bool = True) -> dict[str, Bound]:
    """The rule of each layer on the path. What has none raises, unless strict=False falls back to the gradient and says so."""
    bind = binder(graph, method, path)
    return {layer.name: bind(layer, strict) for layer in with_bodies(path)}


def with_bodies(path: Iterable[Layer]) -> Iterator[Layer]:
    """The layers of a path, each before those on the path through its bodies."""
    for layer in path:
        yield layer
        for body in layer.bodies.values():
            yield from with_bodies(body.path)


def binder(graph: LayerGraph, method: Method, path: Sequence[Layer]) -> Callable[[Layer, bool], Bound]:
    """A function that finds the rule of one layer of the path (or raises); positions count up to the path's end."""
    below = {*(p.name for p in path), *(nx.ancestors(graph.topology, path[-1].name) if path else ())}
    layers = [pair for layer in graph.layers if layer.name in below for pair in graph.inside(layer)]
    matched = [(line, _matching(layers, line, method.params)) for line in method.assign]
    owners = {layer.name: (owner, path if owner is graph else owner.path) for owner, layer in layers}

    def bind(layer: Layer, strict: bool) -> Bound:
        if layer.bodies:
            return Bound(BODY, {}, "its bodies' layers have rules of their own")
        if layer.kind == "unknown":
            raise UnsupportedOp(_unsupported(*owners.get(layer.name, (graph, path)), layer))
        line = next((a for a, names in matched if layer.name in names and layer.kind in REGISTRY.rules[a.rule].kinds), None)
        if line is not None:
            rule = REGISTRY.rules[line.rule]
            for p in rule.params.values():
                if p.required and p.name not in line.params:
                    raise MethodError(
                        f"method {method.name!r} needs a value for {p.name!r} ({describe(p.type)}): rule {rule.name!r} "
                        f"at layer {layer.name!r} ({line.line}) has no default; pass {p.name}=..., or --set {p.name}=..."
                    )
            return Bound(rule, dict(line.params), line.line)
        if strict:
            trail = _trail(*owners.get(layer.name, (graph, path)), layer)
            raise UnsupportedOp(
                f"method {method.name!r} has no rule for layer {layer.name!r} (operator {layer.op}, kind {layer.kind}) "
                f"on the path {trail}. Add a line for it in a table of your own (base = {method.name!r}), "
                "or pass strict=False (--no-strict) to let the plain gradient pass there; the manifest will list it"
            )
        return Bound(REGISTRY.rules["gradient"], {}, "no line matched; strict=False", True)

    return bind


def _matching(layers: Sequence[tuple[LayerGraph, Layer]], line: Assign, params: Mapping[str, Any]) -> set[str]:
    """Names of those layers that a line speaks of."""
    where = line.where
    if any(params.get(name) is None for name in _listed(where.get("given", []))):
        return set()
    found = [
        (graph, layer)
        for graph, layer in layers
        if ("kind" not in where or layer.kind in _listed(where["kind"]))
        and ("op" not in where or layer.op in _listed(where["op"]))
        and ("name" not in where or any(fnmatch.fnmatchcase(layer.name, p) for p in _listed(where["name"])))
    ]
    position = where.get("position")
    if position == "input":
        found = [(graph, layer) for graph, layer in found if graph.at_input(layer)]
    elif position is not None:
        found = found[:1] if position == "first" else found[-1:]
    return {layer.name for _, layer in found}


def _unsupported(graph: LayerGraph, path: Sequence[Layer], layer: Layer) -> str:
    node = layer.nodes[0]
    domain = f"{node.domain}:" if node.domain not in ("", "ai.onnx") else ""
    reason = None if domain else obstacle(node.op, node.inputs, node.attrs) or sequences.obstacle(node.op)
    reason = why_foreign(graph.graph, node) if domain else reason
    known = WHY.get(f"{domain}{node.op}")
    reason = reason or (f"it {known}" if known else None)
    reason = f": {reason}" if reason else ""
    return (
        f"no derivative for operator {domain}{node.op} (node {layer.name!r}, opset {graph.graph.opset}), which lies on the path "
        f"{_trail(graph, path, layer)}{reason}. Explain another output (output=..., --output), attribute to a tensor behind it "
        f"(such as wrt=[{layer.y.name!r}], --wrt {layer.y.name}), or add a derivative in graphattr/vjp"
    )


def _trail(graph: LayerGraph, path: Iterable[Layer], layer: Layer, around: int = 2) -> str:
    """Some layers before and after this one, along one way from the attributed tensors to the output."""
    on = {p.name for p in path}

    def walk(step: Callable[[str], Iterable[str]]) -> list[str]:
        names = [layer.name]
        while len(names) < around + 2 and (after := next((n for n in step(names[-1]) if n in on), None)) is not None:
            names.append(after)
        return [repr(n) for n in names[1 : around + 1]] + ["..."] * (len(names) > around + 1)

    return " -> ".join([*walk(graph.topology.predecessors)[::-1], repr(layer.name), *walk(graph.topology.successors)])
