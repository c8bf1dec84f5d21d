"""Sequences and optionals whose members are known, written as operators on tensors, in bodies too.

SequenceAt([a, b, c], 1) is b, ConcatFromSequence([a, b]) a Concat, SplitToSequence a Split, OptionalGetElement(Optional(x)) is x.
What is not known stays: a sequence that the caller feeds, one that an If chooses, one read at a position of the run whose
members differ in shape.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto

from .errors import ModelError
from .growth import stack_grown
from .rewrite import Book, Pen, attribute, refill, scopes
from .tensors import Array, array_of, elements, external
from .wellformed import bodies_of, default_opset

MOST = 1024  # parts into which a tensor is split
SMALL = 256
WHY = (
    "its sequence or optional is known at run time only: an input of the model, chosen by an If, grown in a Loop otherwise than "
    "by one SequenceInsert per step and a ConcatFromSequence behind it, or read at a computed position while members may differ "
    "in shape; export the model with tensors in its place: stack the members, or unroll the loop"
)


@dataclass(frozen=True)
class Parts:
    """A sequence of these tensors."""

    members: tuple[str, ...]


@dataclass(frozen=True)
class Rows:
    """The slices of length one of a tensor that may have any number of them."""

    x: str
    axis: int
    keepdims: bool


@dataclass(frozen=True)
class Maybe:
    """An optional, with or without its content."""

    content: str | None


Known: TypeAlias = "Parts | Rows | Maybe | Array"


def resolve(model: ModelProto) -> ModelProto:
    """The same model without the sequences that are known; the very object given when it has none."""
    if not any(n.op_type in EDITS and not n.domain for nodes, _ in scopes(model) for n in nodes):
        return model
    out = ModelProto()
    out.CopyFrom(model)
    world = World(out)
    _graph(world, out.graph, {})
    _sweep(out, world.aliases)
    return out


def obstacle(op: str) -> str | None:
    """Why a node with sequences is left, should it lie on the path."""
    return WHY if op in EDITS else None


class World:
    """The model that is edited, and the shapes of its tensors."""

    def __init__(self, model: ModelProto) -> None:
        self.book, self.to = Book(model), default_opset(model) or 17
        self.made: dict[str, tuple[Any, ...]] = {}
        self.aliases: set[str] = set()  # sequences that an Identity gives on

    @cached_property
    def shapes(self) -> dict[str, tuple[Any, ...]]:
        """Tensor -> sizes: a number, a name, or None."""
        found: dict[str, tuple[Any, ...]] = {t.name: tuple(t.dims) for t in self.book.model.graph.initializer}
        for _, graph in scopes(self.book.inferred):
            for v in (*graph.input, *graph.output, *graph.value_info) if graph is not None else ():
                if v.type.HasField("tensor_type") and v.type.tensor_type.HasField("shape"):
                    dims = v.type.tensor_type.shape.dim
                    found[v.name] = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in dims)
        return found

    def shape(self, name: str) -> tuple[Any, ...] | None:
        return self.made.get(name) or self.shapes.get(name)

    def alike(self, names: Sequence[str]) -> bool:
        """Whether the tensors certainly have one shape."""
        shapes = {self.shape(name) for name in names}
        return len(shapes) == 1 and all(s is not None and None not in s for s in shapes)


@dataclass
class Here:
    """One node in its scope: what is known there, and a pen for what replaces it."""

    world: World
    known: dict[str, Known]
    node: NodeProto
    pen: Pen

    @property
    def inputs(self) -> list[str]:
        return [*self.node.input, "", "", ""]

    def parts(self, i: int = 0) -> tuple[str, ...] | None:
        held = self.known.get(self.inputs[i])
        return held.members if isinstance(held, Parts) else None

    def constant(self, i: int) -> Array | None:
        held = self.known.get(self.inputs[i])
        return held if isinstance(held, np.ndarray) else None

    def position(self, i: int) -> int | None:
        held = self.constant(i)
        return int(held.reshape(())) if held is not None and held.size == 1 else None

    def ints(self, *values: int) -> str:
        return self.pen.const(np.array(values, np.int64), "sizes")

    def let(self, known: Known) -> None:
        self.known[self.node.output[0]] = known

    def become(self, op: str, *inputs: str, **attrs: Any) -> None:
        self.pen(op, *inputs, out=self.node.output[0], **attrs)


def _graph(world: World, graph: GraphProto, outer: dict[str, Known]) -> None:
    """Resolve one scope and those inside it. A node that makes a sequence stays: somebody else may read it."""
    known = {k: v for k, v in outer.items() if k not in {i.name for i in graph.input}}
    known.update({t.name: array_of(t) for t in graph.initializer if not external(t) and elements(t) <= SMALL})
    nodes: list[NodeProto] = []
    for node in stack_grown(graph, world.book, world.to):
        here = Here(world, known, node, Pen(world.book, node, world.to))
        edit = EDITS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        try:
            (edit or _other)(here)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as e:
            raise ModelError(f"{node.op_type} {node.name or ', '.join(node.output)!r}: its inputs or attributes do not fit the "
                             f"operator ({type(e).__name__}: {e}); check the file with onnx.checker or export it again") from e
        for body in bodies_of(node):
            _graph(world, body, known)
        nodes += here.pen.nodes or [node]
    refill(graph.node, nodes)


def _other(here: Here) -> None:
    """Constants are remembered, and what an Identity gives on."""
    node = here.node
    if node.op_type == "Constant" and node.attribute and node.attribute[0].name in ("value", "value_int", "value_ints"):
        value = onnx.helper.get_attribute_value(node.attribute[0])
        small = not isinstance(value, onnx.TensorProto) or (elements(value) <= SMALL and not external(value))
        if small:
            here.let(array_of(value) if isinstance(value, onnx.TensorProto) else np.asarray(value, np.int64))
    elif node.op_type == "Identity" and node.input[0] in here.known:
        here.let(here.known[node.input[0]])
        if not isinstance(here.known[node.input[0]], np.ndarray):
            here.world.aliases.add(node.output[0])


# -- making sequences ---------------------------------------------------------------------------------------------
def empty(here: Here) -> None:
    here.let(Parts(()))


def construct(here: Here) -> None:
    here.let(Parts(tuple(here.node.input)))


def insert(here: Here) -> None:
    """At its end, or before the position."""
    held, at = here.parts(), here.position(2)
    if held is None or (here.inputs[2] and at is None):
        return
    at = len(held) if at is None else at
    if -len(held) <= at <= len(held):
        at %= len(held) + 1 if at >= 0 else len(held)
        here.let(Parts((*held[:at], here.inputs[1], *held[at:])))


def erase(here: Here) -> None:
    """The last, or the one at the position."""
    held, at = here.parts(), here.position(1)
    if held is None or (here.inputs[1] and at is None):
        return
    at = -1 if at is None else at
    if -len(held) <= at < len(held):
        at %= len(held)
        here.let(Parts((*held[:at], *held[at + 1 :])))


def split(here: Here) -> None:
    """A Split of known sizes, or of a known number of them; without sizes rows, of which `keepdims` may keep the axis."""
    n, x = here.node, here.inputs[0]
    axis, keepdims = attribute(n, "axis", 0), bool(attribute(n, "keepdims", 1)) or bool(here.inputs[1])
    sizes = _sizes(here, x, axis)
    count = len(sizes) if sizes is not None else _count(here)
    if count is None or not 0 < count <= MOST:
        if not here.inputs[1]:
            here.let(Rows(x, axis, keepdims))
        return
    names = [here.pen.book.fresh(f"{n.output[0]}_{i}") for i in range(count)]
    here.pen("Split", x, here.ints(*sizes) if sizes is not None else here.inputs[1], out=names, axis=axis)
    if not keepdims:
        names = [here.pen("Squeeze", name, here.ints(axis)) for name in names]
    for i, name in enumerate(names):  # equal sizes are equal shapes, whatever they are
        here.world.made[name] = (x, axis, keepdims, sizes[i] if sizes is not None else name)
    here.pen.keep()
    here.let(Parts(tuple(names)))


def _sizes(here: Here, x: str, axis: int) -> list[int] | None:
    """The sizes of the parts: one each, equal ones with a rest, or those listed."""
    given = here.constant(1)
    if given is not None and given.ndim:
        return [int(v) for v in given]
    shape = here.world.shapes.get(x)
    length = shape[axis] if shape is not None else None
    if not isinstance(length, int) or (here.inputs[1] and given is None):
        return None
    step = 1 if given is None else int(given)
    return [min(step, length - at) for at in range(0, length, step)]


def _count(here: Here) -> int | None:
    """How many sizes are computed at run time."""
    shape = here.world.shapes.get(here.inputs[1]) if here.inputs[1] else None
    return shape[0] if shape is not None and len(shape) == 1 and isinstance(shape[0], int) else None


# -- reading them -------------------------------------------------------------------------------------------------
def at(here: Here) -> None:
    """The member; at a position of the run it is gathered from members of one shape, stacked."""
    held, where = here.known.get(here.inputs[0]), here.position(1)
    if isinstance(held, Rows):
        index = here.pen("Reshape", here.inputs[1], here.ints(1) if held.keepdims else here.ints())
        here.become("Gather", held.x, index, axis=held.axis)
    elif isinstance(held, Parts) and where is not None:
        if -len(held.members) <= where < len(held.members):
            here.become("Identity", held.members[where])
    elif isinstance(held, Parts) and here.world.alike(held.members):
        index = here.pen("Reshape", here.inputs[1], here.ints())
        here.become("Gather", _stacked(here, held.members, 0), index, axis=0)


def _stacked(here: Here, members: Sequence[str], axis: int, out: str | None = None) -> str:
    return here.pen("Concat", *(here.pen("Unsqueeze", m, here.ints(axis)) for m in members), out=out, axis=axis)


def concat(here: Here) -> None:
    """The members behind each other, or stacked; all rows of a tensor are the tensor."""
    held, axis, new = here.known.get(here.inputs[0]), attribute(here.node, "axis"), bool(attribute(here.node, "new_axis", 0))
    if isinstance(held, Rows) and held.axis == axis and held.keepdims != new:
        here.become("Identity", held.x)
    elif isinstance(held, Parts) and held.members and new:
        _stacked(here, held.members, axis, here.node.output[0])
    elif isinstance(held, Parts) and held.members:
        here.become("Concat", *held.members, axis=axis)


def length(here: Here) -> None:
    held = here.known.get(here.inputs[0])
    if isinstance(held, Parts):
        here.become("Identity", here.pen.const(len(held.members), "length", np.int64))
        here.let(np.asarray(len(held.members)))
    elif isinstance(held, Rows):
        here.become("Gather", here.pen("Shape", held.x), here.pen.const(held.axis, "axis", np.int64), axis=0)


# -- optionals ----------------------------------------------------------------------------------------------------
def optional(here: Here) -> None:
    here.let(Maybe(here.inputs[0] or None))


def has_element(here: Here) -> None:
    """A tensor or a sequence is its own content."""
    held, x = here.known.get(here.inputs[0]), here.inputs[0]
    if not x or isinstance(held, Maybe):
        here.become("Identity", here.pen.const(isinstance(held, Maybe) and held.content is not None, "has", np.bool_))
    elif held is not None or here.pen.book.dtype(x):
        here.become("Identity", here.pen.const(True, "has", np.bool_))


def get_element(here: Here) -> None:
    held, x = here.known.get(here.inputs[0]), here.inputs[0]
    content = held.content if isinstance(held, Maybe) else x
    if content is None:
        return
    inner = here.known.get(content)
    if isinstance(inner, (Parts, Rows)):
        here.let(inner)
    elif isinstance(held, Maybe) or here.pen.book.dtype(x):
        here.become("Identity", content)


EDITS: dict[str, Callable[[Here], None]] = {
    "ConcatFromSequence": concat,
    "Optional": optional,
    "OptionalGetElement": get_element,
    "OptionalHasElement": has_element,
    "SequenceAt": at,
    "SequenceConstruct": construct,
    "SequenceEmpty": empty,
    "SequenceErase": erase,
    "SequenceInsert": insert,
    "SequenceLength": length,
    "SplitToSequence": split,
}


def _sweep(model: ModelProto, aliases: set[str]) -> None:
    """Drop what makes sequences that nobody reads any more."""
    while True:
        read = {i for nodes, _ in scopes(model) for n in nodes for i in n.input}
        read |= {o.name for _, graph in scopes(model) if graph is not None for o in graph.output}
        dead = 0
        for nodes, _ in list(scopes(model)):
            kept = [n for n in nodes if any(o in read for o in n.output) or not (n.op_type in EDITS or aliases & set(n.output))]
            dead += len(nodes) - len(kept)
            if len(kept) < len(nodes):
                refill(nodes, kept)
        if not dead:
            return
