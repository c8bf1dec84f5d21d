"""What is explained, and with respect to what: the output, its terminal activation, the target, the attributed tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .canonical import Canonical
from .errors import TargetError, did_you_mean
from .graph import Graph, Node, Value
from .infer import shape_text
from .lookups import Lookup, lookups
from .vjp import CONSTANT

TERMINAL = ("Softmax", "LogSoftmax", "Sigmoid")
LOOK_THROUGH = ("Identity", "Reshape", "Squeeze", "Flatten", "Unsqueeze", "Cast", "Dropout")
NO_RANK = "give the inputs of the model a shape (axes may be symbolic), or run onnx.shape_inference on it"
TOKENS = "tokens"
One = int | tuple[int, ...]
Target = str | One | list[One]
TOP = re.compile(r"top([1-9][0-9]*)")
CHOICE = "'argmax', 'top3', 'input', 'seed', an index, a tuple of indices or a list of these"


@dataclass(frozen=True)
class Explained:
    """The explained output: its name, the tensor y that is explained, and the terminal activation that was stripped (or '')."""

    name: str
    y: Value
    stripped: str = ""


# -- the output ---------------------------------------------------------------------------------------------------
def explained_output(canonical: Canonical, output: str | None, strip: bool) -> Explained:
    """The output to explain (default: the first float one); with strip, before its terminal Softmax, LogSoftmax or Sigmoid."""
    outputs = dict(canonical.graph.outputs)
    if output is None:
        output = next((name for name, v in outputs.items() if v.is_float), None)
        if output is None:
            raise TargetError(
                f"no output of the model is a float tensor ({_listing(canonical.graph.outputs)}); nothing can be differentiated. "
                "Cut the model before the operator that makes labels or maps (ZipMap, ArgMax)"
            )
    if output not in outputs:
        raise TargetError(f"the model has no output {output!r}{did_you_mean(output, outputs)} (outputs: {', '.join(outputs)})")
    y = outputs[output]
    if not y.is_float:
        raise TargetError(f"output {output!r} has dtype {y.dtype or 'unknown'}; only float outputs can be explained")
    node = _terminal(canonical.graph, y) if strip else None
    if node is None:
        return Explained(output, y)
    before = node.inputs[0]
    assert before is not None
    return Explained(output, _in_shape_of(canonical.graph, before, y), node.op)


def _in_shape_of(g: Graph, before: Value, y: Value) -> Value:
    """What a Softmax reads; where that is y's elements as a matrix, as before opset 13, what was made a matrix of y's shape."""
    node = g.producer(before)
    if node is None or node.op not in ("Flatten", "Reshape") or node.domain or before.shape == y.shape:
        return before
    whole = node.inputs[0]
    return whole if whole is not None and whole.shape is not None and whole.shape == y.shape else before


def _terminal(g: Graph, y: Value) -> Node | None:
    node = g.producer(y)
    while node is not None and node.op in LOOK_THROUGH and not node.domain and node.inputs[0] is not None:
        node = g.producer(node.inputs[0])
    return node if node is not None and node.op in TERMINAL and not node.domain else None


# -- the attributed tensors ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Wanted:
    """One attribution: of the tensor x or, where it has lookups, of the integer input x by the rows that these fetch."""

    x: Value
    lookups: tuple[Lookup, ...] = ()
    named: bool = True  # it must influence the output

    @property
    def tensors(self) -> list[Value]:
        return [one.rows for one in self.lookups] or [self.x]


def wanted(canonical: Canonical, wrt: str | Sequence[str] | None) -> list[Wanted]:
    """What to attribute to: the tensors named; else all float inputs, or without any the ids that are looked up ("tokens")."""
    if wrt is None:
        floats = [Wanted(v, named=False) for v in canonical.graph.inputs if v.is_float]
        found = floats or [Wanted(v, tuple(held), False) for v, held in lookups(canonical.graph).items()]
        if not found:
            raise TargetError(_integers_only(canonical))
    else:
        several: dict[Value, Wanted] = {}
        for name in _names(wrt):
            for one in _named(canonical, name):
                several[one.x] = one if one.named else several.get(one.x, one)
        found = list(several.values())
    _check_ranks(v for one in found for v in (one.x, *one.tensors))
    return found


def attributed(canonical: Canonical, wrt: str | Sequence[str] | None) -> list[Value]:
    """The float tensors that relevance has to reach for what is wanted."""
    return list(dict.fromkeys(v for one in wanted(canonical, wrt) for v in one.tensors))


def _names(wrt: str | Sequence[str]) -> list[str]:
    names = [wrt] if isinstance(wrt, str) else list(wrt) if isinstance(wrt, Iterable) else [wrt]
    if not all(isinstance(name, str) for name in names):
        raise TargetError(f"wrt must be names of tensors, not {wrt!r}")
    if not names:
        raise TargetError("wrt is empty; name at least one tensor, or leave it out for all float inputs")
    return names


def _named(canonical: Canonical, name: str) -> list[Wanted]:
    """The tensor of that name; for an integer input its lookups; for "tokens" (no tensor's name) every input that has lookups."""
    held = lookups(canonical.graph)
    if name == TOKENS and name not in canonical.graph.names:
        if not held:
            raise TargetError(_no_lookup(canonical))
        return [Wanted(v, tuple(found), False) for v, found in held.items()]
    v = canonical.value(name)
    if not v.is_float and v not in held:
        raise TargetError(
            f"cannot attribute to {v.name!r}: its dtype is {v.dtype or 'unknown'}, and only floats have derivatives. "
            + _integers_only(canonical, start="")
        )
    return [Wanted(v, tuple(held.get(v, ())))]


def _no_lookup(canonical: Canonical) -> str:
    """The message that names who reads the integer inputs instead."""
    g = canonical.graph
    integers = [v for v in g.inputs if v.dtype is not None and v.dtype.kind in "iu"]
    start = 'wrt="tokens" needs integer inputs that a Gather looks up in a constant table, and the model has none. '
    if not integers:
        return f"{start}It has no integer input at all (inputs: {', '.join(f'{v.name} {v.dtype}' for v in g.inputs)})"
    readers = {v: [f"{n.op} {n.name!r}" for n in g.nodes if v in set(n.uses)] for v in integers}
    said = "; ".join(f"{v.name!r} is read by {', '.join(found[:3]) or 'nothing'}" for v, found in readers.items())
    return f"{start}{said}. {_integers_only(canonical, start='')}"


def _check_ranks(values: Iterable[Value]) -> None:
    for v in values:
        if v.shape is None:
            raise TargetError(f"cannot attribute to {v.name!r}: its rank is unknown; {NO_RANK}")


def _integers_only(canonical: Canonical, start: str = "the model has no float input. ") -> str:
    """The message that names where integer inputs become floats."""
    g = canonical.graph
    reached, found = set(g.inputs), []
    for node in g.nodes:
        if any(v in reached for v in node.uses):
            floats = [v for v in node.outputs if v.is_float]
            (found.extend(floats) if floats else reached.update(node.outputs))
    names = ", ".join(repr(v.name) for v in found[:8]) or "(none found)"
    return (
        f"{start}Integer inputs become floats at {names}; attribute to one of these, such as wrt=[{found[0].name!r}]"
        if found
        else f"{start}No tensor was found where integers become floats."
    )


def data_roots(canonical: Canonical, wrt: Sequence[Value]) -> list[Value]:
    """Where data enters: the tensors attributed to, and the float inputs that lead to them; other inputs count as constants."""
    g = canonical.graph
    leads, stack = set(wrt), list(wrt)
    while stack:
        node = g.producer(stack.pop())
        for v in node.uses if node is not None else ():
            if v not in leads:
                leads.add(v)
                stack.append(v)
    return [*wrt, *(v for v in _where_floats_begin(g) if v in leads and v not in wrt)]


def _where_floats_begin(g: Graph) -> list[Value]:
    """Float inputs, and float tensors made from integer inputs alone (embeddings)."""
    reached, begin = set(g.inputs), [v for v in g.inputs if v.is_float]
    for node in g.nodes:
        if node.op not in CONSTANT and any(v in reached for v in node.uses):  # shapes and masks are no data
            reached.update(node.outputs)
            if not any(v in reached and v.is_float for v in node.uses):
                begin.extend(v for v in node.outputs if v.is_float)
    return begin


# -- the target ---------------------------------------------------------------------------------------------------
def check_target(target: Any, y: Value) -> Target:
    """The target in its canonical form, checked against y's static shape."""
    if isinstance(target, list):
        if not target or any(isinstance(t, (str, list)) for t in target):
            raise TargetError(f"a list of targets holds indices or tuples of indices, at least one, not {target!r}")
        return [_check_one(t, y) for t in target]
    if not isinstance(target, str):
        return _check_one(target, y)
    k, count = several(target), entries(y)
    if k is None and target not in ("argmax", "input", "seed"):
        raise TargetError(f"target must be {CHOICE}, not {target!r}{did_you_mean(target, ('argmax', 'top3', 'input', 'seed'))}")
    if k is not None and count is not None and k > count:
        raise TargetError(f"target {target!r} asks for {k} classes, and the explained output {y.name!r} of shape "
                          f"{shape_text(y.shape)} has {count}")
    return target


def several(target: Target) -> int | None:
    """How many targets of each sample are asked for, along an axis of their own behind the batch; None: one, and no such axis."""
    if isinstance(target, list):
        return len(target)
    found = TOP.fullmatch(target) if isinstance(target, str) else None
    return None if found is None else int(found[1])


def singly(target: Target) -> list[Target]:
    """What is asked for, a target at a time."""
    return list(target) if isinstance(target, list) else [target] * (several(target) or 1)


def _check_one(target: Any, y: Value) -> One:
    sizes = y.shape[1:] if y.shape is not None else ()
    if isinstance(target, (int, np.integer)) and not isinstance(target, bool):
        count = entries(y)
        if int(target) < 0 or (count is not None and int(target) >= count):
            raise TargetError(
                f"target {target} is out of range: the explained output {y.name!r} has shape "
                f"{shape_text(y.shape)}, so a target is " + ("0" if count == 1 else f"0 to {count - 1}" if count else "0 or more")
            )
        return int(target)
    if isinstance(target, tuple) and all(isinstance(t, (int, np.integer)) and not isinstance(t, bool) for t in target):
        if len(target) != len(sizes):
            raise TargetError(
                f"target {target} has {len(target)} indices, but the explained output {y.name!r} has "
                f"{len(sizes)} axes after the batch (shape {shape_text(y.shape)})"
            )
        for t, d in zip(target, sizes, strict=True):
            if t < 0 or (isinstance(d, int) and t >= d):
                raise TargetError(
                    f"target {target} is out of range for the explained output {y.name!r} of shape {shape_text(y.shape)}"
                )
        return tuple(int(t) for t in target)
    raise TargetError(f"target must be {CHOICE}, not {target!r}")


def entries(y: Value) -> int | None:
    """How many entries one sample of the explained output has; None when that is known only at run time."""
    sizes = y.shape[1:] if y.shape is not None else (None,)
    return math.prod(d for d in sizes if isinstance(d, int)) if all(isinstance(d, int) for d in sizes) else None


def one_hot(g: Graph, y: Value, target: Target) -> tuple[Value, Value]:
    """(e_c of y's shape, c as int64 [N, 1]) of one target."""
    column = indices(g, y, target)
    return hot_at(g, y, column), column


def indices(g: Graph, y: Value, target: Target) -> Value:
    """c as int64 [N, 1], of several targets [N, k]: the largest first, of equal ones the lower index."""
    rows, flat = _rows(g, y)
    k = several(target)
    if target == "argmax":
        return g.emit("ArgMax", flat, axis=1, keepdims=1)
    if target == "input":
        index = g.Reshape(g.input("target", np.int64, (y.shape[0] if y.shape else 1,)), [-1, 1])
        index = g.Where(index < 0, g.Slice(g.shape(flat), [1], [2]), index)  # ScatterElements counts negative ones from the end
    elif isinstance(target, str):
        return g.emit("TopK", flat, g.const([k], "int64"), n_outputs=2, axis=1, largest=1, sorted=1)[1]
    else:
        columns = [_index(g, y, one) for one in (target if isinstance(target, list) else [target])]
        index = columns[0] if len(columns) == 1 else g.Concat(*columns, axis=1)
    return g.Expand(index, g.Concat(rows, [k or 1], axis=0))


def hot_at(g: Graph, y: Value, column: Value) -> Value:
    """e_c of y's shape for c of shape [N, 1]. An index out of range at run time is an error of ONNX Runtime, no silent zero."""
    flat = _rows(g, y)[1]
    zeros = g.ConstantOfShape(g.shape(flat), value=np.zeros(1, y.dtype))
    ones = g.ConstantOfShape(g.shape(column), value=np.ones(1, y.dtype))
    return g.emit("Reshape", g.ScatterElements(zeros, column, ones, axis=1), g.shape(y), out_shape=y.shape)


def _rows(g: Graph, y: Value) -> tuple[Value, Value]:
    """(N as a shape, y as [N, entries])."""
    rows = g.Slice(g.shape(y), [0], [1]) if y.rank else g.const([1], "int64")
    return rows, g.Reshape(y, g.Concat(rows, [-1], axis=0) if y.rank > 1 else [-1, 1])


def _index(g: Graph, y: Value, target: One) -> Value:
    """The index into the flattened entries of a sample, [1, 1]."""
    if isinstance(target, int):
        return g.const([[target]], "int64")
    sizes = g.Slice(g.shape(y), [1], [2**31 - 1])
    index = g.const(0, "int64")
    for axis, t in enumerate(target):
        index = index * g.Gather(sizes, axis) + g.const(t, "int64")
    return g.Reshape(index, [1, 1])


def _listing(outputs: Sequence[tuple[str, Value]]) -> str:
    return ", ".join(f"{name}: {v.dtype or 'not a tensor'}" for name, v in outputs)
