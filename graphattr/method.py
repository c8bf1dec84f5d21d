"""Methods are tables: which rule on which layer (see `plan.py`), or a procedure of many passes. TOML -> Method."""

from __future__ import annotations

import dataclasses
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .errors import MethodError, did_you_mean
from .rule import KINDS, REGISTRY, MethodName, Rule, Step, describe, load_rules

POSITIONS = ("first", "last", "input")
WHERE = ("kind", "op", "name", "position", "given")
EXPECTS = ("seed", "difference", "score", "zero", "nothing")
HEAD = {"summary": "", "source": "", "seed": "onehot", "finish": "raw", "expects": "seed", "procedure": "", "fit": ""}
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
    """A table of rules, the seed that starts the backward pass and the finish that ends it; or a procedure of many passes.

    `expects` is what the attributions should add up to: the sum of the seed ("seed"), the change of the explained score
    from the baseline to the input ("difference"), the score itself ("score"), zero ("zero"), or nothing that is known
    ("nothing"). `fit`: what has to be learned from data first, if anything (see `fit/`).
    """

    name: str
    assign: tuple[Assign, ...]
    seed: str = "onehot"
    finish: str = "raw"
    params: Mapping[str, Any] = field(default_factory=dict)
    expects: str = "seed"
    summary: str = ""
    source: str = ""
    procedure: str = ""
    fit: str = ""

    @property
    def steps(self) -> list[Step]:
        """The registered parts besides the rules: the procedure, or seed and finish."""
        if self.procedure:
            return [_step("procedures", self.procedure)]
        return [_step("seeds", self.seed), _step("finishes", self.finish)]

    @property
    def asks(self) -> str | None:
        """The name of the method that a procedure asks: its `base`, or what it calls so; else the gradient."""
        if not self.procedure:
            return None
        step = _step("procedures", self.procedure)
        name = next((p.name for p in step.params.values() if p.type is MethodName), None)
        return "gradient" if name is None else str(self.params.get(name, step.params[name].default))

    @property
    def asked(self) -> Method | None:
        """That method, with those of the parameters that are its own."""
        if self.asks is None:
            return None
        chosen = load_method(self.asks)
        trail, last = [(self.name, self.asks)], chosen
        while last.asks is not None:
            if (last.name, last.asks) in trail:
                raise MethodError(f"method {self.name!r} asks {self.asks!r}, which asks itself in the end; name another one")
            trail.append((last.name, last.asks))
            last = load_method(last.asks)
        own = _step("procedures", self.procedure).params
        rest = {k: v for k, v in self.params.items() if k not in own}
        known = dataclasses.replace(chosen, params={**chosen.params, **rest}).parameters()
        return chosen.with_params({k: v for k, v in rest.items() if k in known})

    @property
    def forward_only(self) -> bool:
        """Whether it asks for no derivative."""
        return bool(self.procedure) and self.steps[0].forward_only

    @property
    def inner(self) -> Method:
        """The method whose rules the layers get: what the procedures ask in the end, or this one."""
        asked = self.asked
        return self if asked is None else asked.inner

    def parameters(self) -> dict[str, Any]:
        """Every parameter a caller may set: name -> (type in words, default)."""
        found: dict[str, Any] = {} if self.procedure else {"seed": ("the name of a seed", self.seed)}
        for line in self.assign:
            for p in _rule(line.rule, line.line).params.values():
                default = line.params.get(p.name, self.params.get(p.name, None if p.required else p.default))
                found.setdefault(p.name, (describe(p.type), default))
        for step in self.steps:
            for p in step.params.values():
                found.setdefault(p.name, (describe(p.type), self.params.get(p.name, None if p.required else p.default)))
        asked = self.asked if any(p.type is MethodName for step in self.steps for p in step.params.values()) else None
        return found if asked is None else {**asked.parameters(), **found}

    def with_params(self, params: Mapping[str, Any]) -> Method:
        """The method with the caller's parameters; MethodError on an unknown name or a wrong type."""
        known = dataclasses.replace(self, params={**self.params, **params}).parameters()
        for name, value in params.items():
            if name not in known:
                raise MethodError(
                    f"method {self.name!r} has no parameter {name!r}{did_you_mean(name, known)} "
                    f"(it has {', '.join(sorted(known))})"
                )
            for schema in [_rule(a.rule, a.line).params for a in self.assign] + [step.params for step in self.steps]:
                if name in schema:
                    schema[name].check(value, f"method {self.name!r}")
        chosen = dict(params)
        seed = self.seed if self.procedure else chosen.pop("seed", self.seed)
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
        return dataclasses.replace(self, assign=lines, seed=seed, params={**self.params, **chosen})


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
        head["procedure"],
        head["fit"],
    )
    if not lines and not method.procedure:
        raise MethodError(f'{path}: the table has no line; write [[assign]] with a rule, or a base such as base = "lrp.epsilon"')
    try:
        steps = method.steps
    except MethodError as e:
        raise MethodError(f"{path}: {e}") from e
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
        if not all(isinstance(v, str) for v in listed(value)):
            raise MethodError(f"{line}: the condition {key} must be a name or a list of names, not {value!r}")
    for kind in listed(where.get("kind", [])):
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


def _step(table: Literal["seeds", "finishes", "procedures"], name: str) -> Step:
    steps: Mapping[str, Step] = getattr(REGISTRY, table)
    if name not in steps:
        one = {"seeds": "seed", "finishes": "finish", "procedures": "procedure"}[table]
        raise MethodError(f"unknown {one} {name!r}{did_you_mean(str(name), steps)} (known: {', '.join(sorted(steps))})")
    return steps[name]


def listed(v: Any) -> list[Any]:
    return list(v) if isinstance(v, list) else [v]
