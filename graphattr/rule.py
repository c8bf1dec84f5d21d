"""What a rule file needs, and nothing else: `from graphattr.rule import rule, Site, ...`.

A rule is a function `f(g, layer, r, *, parameters) -> relevance`: `layer` (a Site) holds the forward values and is the
layer's function, `r` is what arrives at its output (a tuple where the layer has several outputs). It returns the
relevance of the layer's data input, or a tuple with one entry per entry of `layer.xs`. Parameters are keyword-only with
a type and a default; they are the schema that tables and the command line are checked against.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NewType, Protocol, TypeVar

import numpy as np

from .errors import MethodError, did_you_mean
from .fn import Flows, Out, Site
from .graph import Graph, Value
from .infer import shape_text
from .layers import Layer, LayerGraph
from .pair import Flow, Pair, added, fitted, paired, sides
from .vjp import fit, pullback, total
from .vjp.reduce import reduction

__all__ = [
    "SIGMA",
    "Baselines",
    "Flow",
    "Flows",
    "Found",
    "Graph",
    "Job",
    "Layer",
    "LayerGraph",
    "MethodName",
    "Operand",
    "Out",
    "Pair",
    "Site",
    "Value",
    "added",
    "constant_like",
    "finish",
    "fit",
    "fitted",
    "load_rules",
    "paired",
    "per_sample",
    "per_sample_sum",
    "procedure",
    "pullback",
    "reduction",
    "rule",
    "seed",
    "sides",
    "total",
]

Operand = float | Sequence[float] | np.ndarray[Any, Any]  # a number, one number per channel, or an array that broadcasts
Baselines = Operand | Literal["input", "blur"]  # or rows of them; a graph input; a Gaussian of `sigma` pixels
SIGMA = 10.0
MethodName = NewType("MethodName", str)  # the type of a procedure's parameter that names the method it asks again and again
F = TypeVar("F", bound=Callable[..., Any])
KINDS = {
    "linear",
    "sum",
    "mean",
    "shift",
    "scale",
    "batchnorm",
    "norm",
    "product",
    "quotient",
    "bilinear",
    "softmax",
    "relu",
    "smooth",
    "maxpool",
    "structure",
    "other",
}
ENTRY_POINTS = "graphattr.rules"


@dataclass(frozen=True)
class Parameter:
    """A named option: its type, and its default (`required` when there is none)."""

    name: str
    type: Any
    default: Any = inspect.Parameter.empty

    @property
    def required(self) -> bool:
        return self.default is inspect.Parameter.empty

    def check(self, value: Any, where: str) -> Any:
        """The value, converted where that is certain; MethodError otherwise."""
        ok, value = _matches(value, self.type)
        if not ok:
            raise MethodError(f"{where}: parameter {self.name!r} must be {describe(self.type)}, not {value!r}")
        return value


@dataclass(frozen=True)
class Rule:
    """The modified backward of a layer, by name. `source` says where it was registered.

    `compares`: it reads the values at the references. `pairs`: it takes a Pair as one; else it is applied to either value.
    """

    name: str
    kinds: frozenset[str]
    apply: Callable[..., Any]
    params: Mapping[str, Parameter]
    summary: str
    source: str
    compares: bool = False
    pairs: bool = False


@dataclass(frozen=True)
class Step:
    """A seed (what starts the backward pass), a finish (what ends it) or a procedure (many passes), by name."""

    name: str
    apply: Callable[..., Any]
    params: Mapping[str, Parameter]
    summary: str
    source: str
    forward_only: bool = False  # a procedure that asks for no derivative, so that layers need no rules


@dataclass
class Found:
    """What a method found: one map per attributed tensor, extra outputs by name, and the references it compared with."""

    maps: list[Value]
    extras: dict[str, Value] = field(default_factory=dict)
    references: dict[Value, Value] = field(default_factory=dict)


class References(Protocol):
    """What the attributed tensors are compared with, `count` times (see `references.py`)."""

    @property
    def values(self) -> Mapping[Value, Value]: ...
    @property
    def count(self) -> int: ...
    def row(self, g: Graph, i: Value | None) -> Mapping[Value, Value]: ...


class Job(Protocol):
    """What a procedure is given (see `procedure.py`): the model in one graph, explained at `y` for `xs`."""

    @property
    def g(self) -> Graph: ...
    @property
    def graph(self) -> LayerGraph: ...
    @property
    def path(self) -> Sequence[Layer]: ...
    @property
    def xs(self) -> Sequence[Value]: ...
    @property
    def y(self) -> Value: ...
    @property
    def onehot(self) -> Value: ...
    @property
    def score(self) -> Value: ...
    def at(self, step: Graph, xs: Sequence[Value]) -> Job: ...
    def repeat(
        self, n: int | Value, states: Sequence[Value], body: Callable[[Graph, Value, list[Value]], Sequence[Value]]
    ) -> list[Value]: ...
    def passed(
        self, step: Graph, seeds: Sequence[Value], rule: Callable[[Site, Sequence[Any]], Sequence[Out]]
    ) -> Mapping[Value, Sequence[Value]]: ...
    def explained_by(self, method: str) -> list[Value]: ...
    def gradients(self, wrt: Sequence[Value], seed: Value | None = None) -> list[Value]: ...
    def references(self, baselines: Any, sigma: float = SIGMA) -> References: ...
    def input(self, x: Value, what: str, lead: tuple[Any, ...] = ()) -> Value: ...
    def name_of(self, x: Value) -> str: ...
    def tensor(self, name: str) -> Value: ...


@dataclass
class Registry:
    rules: dict[str, Rule] = field(default_factory=dict)
    seeds: dict[str, Step] = field(default_factory=dict)
    finishes: dict[str, Step] = field(default_factory=dict)
    procedures: dict[str, Step] = field(default_factory=dict)
    folders: list[Path] = field(default_factory=list)  # where named methods (*.toml) lie
    loaded: set[str] = field(default_factory=set)


REGISTRY = Registry()


def rule(name: str, kinds: set[str] | None = None, compares: bool = False, pairs: bool = False) -> Callable[[F], F]:
    """Register the function below as the rule `name` for layers of these kinds (default: all); see `Rule`."""
    unknown = (kinds or set()) - KINDS
    if unknown:
        raise MethodError(f"rule {name!r}: unknown kind {min(unknown)!r}{did_you_mean(min(unknown), KINDS)}")

    def register(f: F) -> F:
        made = Rule(name, frozenset(kinds or KINDS), f, parameters(f), _summary(f), _where(f), compares, pairs)
        _add(REGISTRY.rules, made)
        return f

    return register


def seed(name: str) -> Callable[[F], F]:
    """Register `f(g, y, onehot) -> seeds`: one Value per backward pass."""

    def register(f: F) -> F:
        _add(REGISTRY.seeds, Step(name, f, parameters(f), _summary(f), _where(f)))
        return f

    return register


def finish(name: str) -> Callable[[F], F]:
    """Register `f(g, x, maps, *, baselines...) -> attribution`: what is made of the backward passes' results at x."""

    def register(f: F) -> F:
        _add(REGISTRY.finishes, Step(name, f, parameters(f), _summary(f), _where(f)))
        return f

    return register


def procedure(name: str, forward_only: bool = False) -> Callable[[F], F]:
    """Register `f(job, *, parameters) -> [map per attributed tensor] or Found`: a method of many passes (see `procedure.Job`)."""

    def register(f: F) -> F:
        _add(REGISTRY.procedures, Step(name, f, parameters(f), _summary(f), _where(f), forward_only))
        return f

    return register


def parameters(f: Callable[..., Any]) -> dict[str, Parameter]:
    """The keyword-only parameters of f."""
    hints = typing.get_type_hints(f)
    return {
        p.name: Parameter(p.name, hints.get(p.name, Any), p.default)
        for p in inspect.signature(f).parameters.values()
        if p.kind is p.KEYWORD_ONLY
    }


def load_rules(files: Sequence[str | Path] = ()) -> Registry:
    """Import every package behind the entry point `graphattr.rules`, and the given Python files, once."""
    for point in metadata.entry_points(group=ENTRY_POINTS):
        if point.value not in REGISTRY.loaded:
            module = point.load()
            REGISTRY.loaded.add(point.value)
            _methods_beside(module)
    if not REGISTRY.rules:
        raise MethodError(
            "no rules are installed: the entry point 'graphattr.rules' is empty; run `pip install -e .` in the checkout"
        )
    for file in files:
        _load_file(Path(file))
    return REGISTRY


def _load_file(path: Path) -> None:
    key = str(path.resolve())
    if key in REGISTRY.loaded:
        return
    if not path.is_file():
        raise MethodError(f"no such rule file: {path}")
    spec = importlib.util.spec_from_file_location(f"graphattr_rules_file_{len(REGISTRY.loaded)}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except MethodError:
        raise
    except Exception as e:
        raise MethodError(f"the rule file {path} raised {type(e).__name__}: {e}") from e
    REGISTRY.loaded.add(key)


def _methods_beside(module: types.ModuleType) -> None:
    folder = Path(module.__file__ or "").parent / "methods"
    if folder.is_dir():
        REGISTRY.folders.append(folder)


def _add(table: dict[str, Any], entry: Rule | Step) -> None:
    held = table.get(entry.name)
    if held is not None and held.source != entry.source:
        raise MethodError(f"{entry.name!r} is registered twice: in {held.source} and in {entry.source}; rename one")
    table[entry.name] = entry


def _summary(f: Callable[..., Any]) -> str:
    return " ".join((f.__doc__ or "").strip().split("\n\n")[0].split())


def _where(f: Callable[..., Any]) -> str:
    return f"{sys.modules[f.__module__].__file__ if f.__module__ in sys.modules else f.__code__.co_filename}:{f.__name__}"


# -- parameter types ----------------------------------------------------------------------------------------------
def _matches(value: Any, kind: Any) -> tuple[bool, Any]:
    origin = typing.get_origin(kind)
    if kind is Any:
        return True, value
    if origin is Literal:
        return isinstance(value, (str, int, float)) and value in typing.get_args(kind), value
    if origin in (typing.Union, types.UnionType):
        return next((m for k in typing.get_args(kind) if (m := _matches(value, k))[0]), (False, value))
    if kind is MethodName:
        return isinstance(value, str), value
    if kind is float:
        ok = isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool) and bool(np.isfinite(value))
        return ok, float(value) if ok else value
    if kind is int:
        return isinstance(value, (int, np.integer)) and not isinstance(value, bool), value
    if kind in (bool, str) or kind is type(None):
        return isinstance(value, kind), value
    if origin is np.ndarray or kind is np.ndarray:
        return isinstance(value, np.ndarray), value
    if isinstance(origin, type) and issubclass(origin, Sequence):
        ok = isinstance(value, (list, tuple)) and all(_matches(v, typing.get_args(kind)[0])[0] for v in value)
        return ok, [_matches(v, typing.get_args(kind)[0])[1] for v in value] if ok else value
    return isinstance(value, origin or kind), value


def describe(kind: Any) -> str:
    """A type in words, for messages and catalogues."""
    origin = typing.get_origin(kind)
    if origin is Literal:
        names = [repr(v) for v in typing.get_args(kind)]
        return names[0] if len(names) == 1 else "one of " + ", ".join(names)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(describe(k) for k in typing.get_args(kind) if k is not Value)
    if isinstance(origin, type) and issubclass(origin, Sequence):
        items = {float: "numbers", int: "integers", str: "strings", bool: "true or false"}
        return f"a list of {items.get(typing.get_args(kind)[0], describe(typing.get_args(kind)[0]))}"
    words = {float: "a number", int: "an integer", bool: "true or false", str: "a string", type(None): "none", Any: "anything"}
    words[MethodName] = "the name of a method"
    return words.get(kind, "an array" if origin is np.ndarray or kind is np.ndarray else getattr(kind, "__name__", str(kind)))


# -- helpers that rules share -------------------------------------------------------------------------------------
def constant_like(g: Graph, x: Value, value: Operand) -> Value:
    """A number, a number per channel (axis 1) or an array, as a constant that broadcasts against x."""
    array = np.asarray(value, dtype=x.dtype)
    if array.ndim == 1 and x.rank > 2:
        array = array.reshape(-1, *[1] * (x.rank - 2))
    sizes = zip((x.shape or ())[::-1], array.shape[::-1], strict=False)
    if array.ndim > x.rank or any(isinstance(d, int) and s not in (1, d) for d, s in sizes):
        raise MethodError(f"a value of shape {np.shape(value)} does not fit {x.name!r} of shape {shape_text(x.shape)}: "
                          "give a number, one number per channel, or an array that broadcasts")
    return g.const(array)


def per_sample(g: Graph, op: str, x: Value) -> Value:
    """ReduceMax, ReduceMin ... over all axes but the first, which stay with size 1."""
    return reduction(g, op, x, list(range(1, x.rank)), keepdims=1) if x.rank > 1 else x


def per_sample_sum(g: Graph, x: Value, keepdims: bool = False) -> Value:
    """The sum over all axes but the first: [N], or [N, 1, ...] with keepdims."""
    if x.rank <= 1:
        return x if x.rank == 1 else g.Reshape(x, [1])
    return g.ReduceSum(x, list(range(1, x.rank)), keepdims=int(keepdims))
