"""MIP-IN's inverses: what reconstructs a layer's input from the signal above it.  Deng et al. 2021.

From the output down, one pass over the data per linear layer: the signal S that the inverses above make, masked by what the
rectifiers let through, and the tensor X below the layer give the sums of a least squares with a ridge,

    X = W S + b  for a dense layer,    X = ConvTranspose(S; K) (+ b)  for a convolution.

The pass's sums are replaced by the solution, so that only one system is held at a time.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..backward import backward
from ..errors import MethodError, UnsupportedOp
from ..fitted import Learned, learned_name
from ..fn import Context
from ..graph import Array, Value
from ..layers import Layer
from ..plan import Bound
from ..targets import Target, one_hot
from .invertible import Invertible, invertible
from .normal import solve
from .state import Pass
from .task import Task, fitter

ENOUGH = 4  # rows per unknown


@fitter("mip_in", targets=True)
def inverses(
    task: Task,
    *,
    fit_on: Literal["class", "all"] = "class",
    signal: Literal["scalar", "vector"] = "scalar",
    ridge: float = 1e-3,
    conv_bias: bool = False,
) -> Learned:
    """The inverse of each linear layer, per target.

    fit_on: the samples of the target's class, or all. signal: what goes down from the output, the explained logit or all of them.
    ridge: what is added to the sums' diagonal. conv_bias: a bias per channel in convolutions, too.
    """
    if ridge < 0:
        raise MethodError(f"ridge must not be negative, but is {ridge}")
    _check_chain(task)
    learned: dict[str, dict[str, Array]] = {}
    few: list[str] = []
    held: dict[object, Learned] = {}
    for target in task.targets:
        label = _class_of(target) if fit_on == "class" else None
        key = "all" if label is None and signal == "vector" else target  # all logits of all samples are the same for every target
        if key not in held:
            held[key] = Descent(task, target, label, ridge, conv_bias, few).run(signal)
        for layer, arrays in held[key].items():
            learned.setdefault(layer, {}).update((learned_name(k, target, task.targets), v) for k, v in arrays.items())
    if few:
        task.warnings.append(
            f"these inverses rest on fewer than {ENOUGH} rows per unknown, so they may repeat the samples and say little of "
            f"others: {'; '.join(few)}. Fit on more samples (shifted copies help), on all classes (fit_on='all'), or with a "
            "larger ridge"
        )
    return learned


def _class_of(target: Target) -> int:
    """The class whose samples belong to a target."""
    if isinstance(target, tuple) and len(target) == 1:
        return target[0]
    if not isinstance(target, int):
        raise MethodError(f"target {target!r} is no class that samples have, so fit_on='class' finds none; pass fit_on='all'")
    return target


def _check_chain(task: Task) -> None:
    """UnsupportedOp where a tensor has two readers: each would reconstruct it."""
    readers: dict[Value, Layer] = {}
    for layer in task.path:
        for x in layer.xs:
            if x in readers:
                raise UnsupportedOp(
                    f"MIP-IN inverts a chain of layers, and {x.name!r} is read by {readers[x].name!r} and {layer.name!r}; "
                    f"attribute to a tensor behind the last branch (wrt=, --wrt), where a chain begins"
                )
            readers[x] = layer


def _reconstructing(bound: Bound) -> Bound:
    """The rule as it takes a signal down."""
    known = bound.rule.params
    return dataclasses.replace(bound, params={**bound.params, **({"reconstruct": True} if "reconstruct" in known else {})})


@dataclass
class Descent:
    """One target's way down. `few`: collects what rests on too few rows."""

    task: Task
    target: Target
    label: int | None
    ridge: float
    conv_bias: bool
    few: list[str]

    def run(self, signal: str) -> dict[str, dict[str, Array]]:
        """Each layer's inverse, fitted to the signal that those above it make."""
        task, g = self.task, self.task.g
        arriving = {task.y: task.y * one_hot(g, task.y, self.target)[0] if signal == "scalar" else task.y}
        plan = {name: _reconstructing(bound) for name, bound in task.plan.items()}
        learned: dict[str, dict[str, Array]] = {}
        for layer in reversed(task.path):
            seeds = {y: arriving[y] for y in layer.ys if y in arriving}
            if layer.kind == "linear":
                learned[layer.name] = self.fitted(layer, seeds[layer.y])
            arriving.update(backward(task.graph, plan, [layer], seeds, layer.xs, None, Context({}, learned)))
        return learned

    def fitted(self, layer: Layer, s: Value) -> dict[str, Array]:
        """{inverse, inverse_bias} of one layer, from a pass over the data."""
        name = learned_name(layer.name, self.target, self.task.targets)
        kind = invertible(layer)
        found = self.task.sums(name, {"s": s, "x": layer.x}, lambda v: kind.sums(v["s"], v["x"]), self.label)
        if "w" not in found.sums:
            self._solve(name, found, kind)
        self._note(name, found)
        w, b = found.sums["w"], found.sums["b"]
        return {"inverse": kind.weight(w).astype(np.float32), "inverse_bias": kind.bias(b).astype(np.float32)}

    def _solve(self, name: str, found: Pass, kind: Invertible) -> None:
        """The sums of a pass become its solution."""
        groups = [{k: v[i] for k, v in found.sums.items()} for i in range(len(found.sums["rows"]))]
        rows = found.sums["rows"].max()
        try:
            made = [solve(one, self.ridge, kind.has_bias or self.conv_bias) for one in groups]
        except MethodError as e:
            raise MethodError(f"layer {name!r}: {e}") from e
        found.sums = {
            "w": np.stack([m.w for m in made]),
            "b": np.stack([m.b for m in made]),
            "condition": np.array(max(m.condition for m in made)),
            "residual": np.array(max(m.residual for m in made)),
            "rows": rows,
        }

    def _note(self, name: str, found: Pass) -> None:
        rows, unknowns = int(found.sums["rows"]), found.sums["w"].shape[1]
        condition, residual = float(found.sums["condition"]), float(found.sums["residual"])
        self.task.notes[name] = {"condition": condition, "rows": rows, "unknowns": unknowns, "residual": residual}
        if rows < ENOUGH * unknowns:
            self.few.append(f"layer {name!r} has {rows} rows for {unknowns} unknowns (condition number {condition:.1e})")
