"""What a fitter is given, and the table of fitters: `@fitter("pattern")` learns for methods whose table says fit = "pattern".

A fitter is a function `f(task, *, parameters) -> {layer: {name: array}}`; its keyword-only parameters are the ones that `fit`
takes. Rules read the arrays with `layer.learned(name)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from ..errors import MethodError, UnsupportedOp, did_you_mean
from ..fitted import Learned
from ..fn import Site
from ..graph import Array, Graph, Value
from ..layers import Layer, LayerGraph
from ..method import Method
from ..plan import Plan, with_bodies
from ..rule import Parameter, describe, parameters
from ..targets import Target
from .state import Pass
from .stream import Each, Stream

F = TypeVar("F", bound=Callable[..., Learned])


@dataclass(frozen=True)
class Fitter:
    """What learns for a family of methods. `targets`: whether it learns for certain targets, which must then be named."""

    name: str
    apply: Callable[..., Learned]
    params: Mapping[str, Parameter]
    targets: bool = False


FITTERS: dict[str, Fitter] = {}


def fitter(name: str, targets: bool = False) -> Callable[[F], F]:
    """Register the function below as what learns for methods with fit = `name`."""

    def register(f: F) -> F:
        assert name not in FITTERS, f"two fitters for {name}"
        FITTERS[name] = Fitter(name, f, parameters(f), targets)
        return f

    return register


def fitter_of(method: Method) -> Fitter:
    """What learns for a method; MethodError where nothing is learned."""
    if not method.fit:
        raise MethodError(f"method {method.name!r} learns nothing from data; convert it without a fit")
    if method.fit not in FITTERS:
        raise MethodError(f"method {method.name!r}: nothing is known to learn {method.fit!r}{did_you_mean(method.fit, FITTERS)} "
                          f"(known: {', '.join(sorted(FITTERS))})")
    return FITTERS[method.fit]


def checked_params(method: Method, found: Fitter, params: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of the fitter; MethodError on an unknown name or a wrong type."""
    for name in params:
        if name not in found.params:
            raise MethodError(f"fitting method {method.name!r} has no parameter {name!r}{did_you_mean(name, found.params)} "
                              f"(it has {', '.join(f'{p.name}: {describe(p.type)}' for p in found.params.values())})")
    chosen = {p.name: p.default for p in found.params.values()} | dict(params)
    return {k: found.params[k].check(v, f"fitting method {method.name!r}") for k, v in chosen.items()}


@dataclass(frozen=True)
class Task:
    """The model as layers, what is explained and attributed to, and the data behind `sums`. `plan`: the method's rules.

    `notes`: per layer what is worth knowing of the fit (condition number, samples). `warnings`: what may be wrong.
    """

    graph: LayerGraph
    y: Value
    xs: Sequence[Value]
    targets: Sequence[Target]
    stream: Stream
    plan: Plan = field(default_factory=dict)
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def g(self) -> Graph:
        return self.graph.graph

    @property
    def path(self) -> list[Layer]:
        """The layers between the attributed tensors and the explained one."""
        return self.graph.between(self.xs, [self.y])

    @property
    def linear(self) -> list[Layer]:
        """The linear layers of the path; UnsupportedOp where one is inside an If, Loop or Scan."""
        own = {layer.name for layer in self.path}
        found = [layer for layer in with_bodies(self.path) if layer.kind == "linear"]
        for layer in found:
            if layer.name not in own:
                raise UnsupportedOp(f"layer {layer.name!r} ({layer.op}) is in the body of an If, Loop or Scan, where nothing can "
                                    "be learned; explain a tensor behind it (wrt=), or export the model without it")
        return found

    def sums(self, name: str, outputs: Mapping[str, Value], each: Each | None = None, label: int | None = None) -> Pass:
        """One pass over the data: the sums over batches of `outputs` (or of what `each` makes of their values), in float64.

        name: of the pass. label: samples of that class only. The result's `samples` and `batches` count what was seen.
        """
        return self.stream.sums(name, outputs, each, label)

    def site(self, layer: Layer) -> Site:
        """The layer as a function."""
        return Site(self.g, layer, self.graph, frozenset(layer.xs))

    def constant(self, v: Value) -> Array:
        """The value of a tensor that depends on no input: a weight, or what is computed from weights."""
        if v.data is not None:
            return np.asarray(v.data, np.float64)
        reached, stack = set[Value](), [v]
        while stack:
            at = stack.pop()
            node = self.g.producer(at)
            if at in set(self.g.inputs):
                raise UnsupportedOp(f"weight {v.name!r} depends on the input {at.name!r}: nothing can be learned for its layer")
            for used in node.uses if node is not None else ():
                if used not in reached:
                    reached.add(used)
                    stack.append(used)
        return np.asarray(self.stream.runner({"weight": v})({})["weight"], np.float64)
