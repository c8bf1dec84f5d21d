"""The tape: Node and Graph. `g.Conv(x, w, strides=[2, 2])` emits one ONNX node and returns its output.

A graph is append-only and hash-consed: emitting the same node twice returns the first one, so common
subexpressions come out once. Types and shapes are ONNX's own (see `infer.py`).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast, overload

import numpy as np
import onnx

from .contents import Dim, content_of
from .errors import BuildError, did_you_mean
from .infer import Shape, infer, schema_of
from .value import Array, Attr, Emit, Operand, Stored, Value

__all__ = ["Array", "Attr", "Graph", "Node", "Operand", "Stored", "Value", "needed"]

SHARED = 4096  # bytes up to which equal constants are one
RANDOM = {
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
    "Dropout",
}


@dataclass(frozen=True, eq=False, slots=True)
class Node:
    """One operator application. `needs` is set by the backward walk: indices of the inputs whose cotangent is wanted."""

    op: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attrs: Mapping[str, Attr]
    name: str
    domain: str = ""
    needs: frozenset[int] = frozenset()

    @property
    def subgraphs(self) -> list[Graph]:
        return [a for a in self.attrs.values() if isinstance(a, Graph)]

    @property
    def uses(self) -> Iterator[Value]:
        """Every value read here, outer values captured by subgraphs included."""
        yield from (v for v in self.inputs if v is not None)
        for sub in self.subgraphs:
            yield from sub.captured()

    def __repr__(self) -> str:
        return f"{self.op} node {self.name!r}"


@dataclass(eq=False)
class Graph:
    """An append-only tape of nodes. `outputs` pairs each output name with its value."""

    opset: int
    name: str = "graph"
    parent: Graph | None = None
    inputs: list[Value] = field(default_factory=list)
    outputs: list[tuple[str, Value]] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._producer: dict[Value, Node] = {}
        self._seen: dict[Any, tuple[Value, ...]] = {}
        self._names: set[str] = set() if self.parent is None else self.parent._names
        self._counter: Iterator[int] = itertools.count() if self.parent is None else self.parent._counter
        self.depth: int = 0 if self.parent is None else self.parent.depth + 1
        self._scope: str = ""
        self._source_names: set[str] = set()
        # what a linear operator makes -> the nodes behind it that belong to its layer (see `Layer.tail`)
        self.tails: dict[Value, tuple[Node, ...]] = {}
        # a Loop or Scan -> the same one that also shows the state before each step (see `vjp/control.py`)
        self.stacked: dict[Node, Node] = {}

    # -- names ------------------------------------------------------------------------------------------------
    def fresh(self, base: str) -> str:
        """An unused name that starts with `base`, below the current scope."""
        name = base = f"{self._scope}/{base}" if self._scope else base
        while name in self._names:
            name = f"{base}_{next(self._counter)}"
        self._names.add(name)
        return name

    @property
    def names(self) -> frozenset[str]:
        """Every name in use: inputs, constants, nodes' outputs, those inside bodies too."""
        return frozenset(self._names)

    def reserve(self, names: Sequence[str]) -> None:
        self._names.update(names)
        self._source_names.update(names)

    def is_ours(self, v: Value) -> bool:
        """Whether the name of a node's output was made here, not read from a file."""
        return v.name not in self._source_names

    @contextlib.contextmanager
    def scope(self, prefix: str) -> Iterator[None]:
        """Names of nodes emitted inside start with `prefix/`."""
        before, self._scope = self._scope, prefix
        try:
            yield
        finally:
            self._scope = before

    # -- values -----------------------------------------------------------------------------------------------
    def input(self, name: str, dtype: Any, shape: Shape | None) -> Value:
        self._names.add(name)
        value = Value(name, np.dtype(dtype) if dtype is not None else None, shape, self)
        self.inputs.append(value)
        return value

    def const(self, data: Any, dtype: Any = None, name: str | None = None) -> Value:
        """A constant. Small unnamed ones are shared."""
        array = np.asarray(data, dtype=dtype)
        key = ("const", array.dtype, array.shape, array.tobytes()) if name is None and array.nbytes <= SHARED else None
        if key is None or key not in self._seen:
            if name is None:
                name = self.fresh("const")
            self._names.add(name)
            value = Value(name, array.dtype, array.shape, self, array, content_of(array))
            if key is None:
                return value
            self._seen[key] = (value,)
        return self._seen[key][0]

    def stored(self, name: str, dtype: Any, shape: Shape, stored: Stored) -> Value:
        """A constant whose elements are read on demand (small integer ones are read now: shapes need them)."""
        self._names.add(name)
        small = np.dtype(dtype).kind in "iu" and len(shape) <= 1 and all(isinstance(d, int) and d <= 64 for d in shape)
        return Value(name, np.dtype(dtype), shape, self, stored, content_of(stored.array()) if small else None)

    def shape(self, x: Value) -> Value:
        """The shape of x as an int64 tensor: a constant when it is static, else a Shape node."""
        return self.emit("Shape", x)

    def producer(self, value: Value) -> Node | None:
        return value.graph._producer.get(value)

    # -- nodes ------------------------------------------------------------------------------------------------
    def __getattr__(self, op: str) -> Emit:
        if op[:1].isupper():
            return cast(Emit, functools.partial(self.emit, op))
        raise AttributeError(op)

    @overload
    def emit(
        self, op: str, *inputs: Operand, n_outputs: Literal[1] = 1, out_shape: Shape | None = None, **attrs: Attr
    ) -> Value: ...
    @overload
    def emit(
        self, op: str, *inputs: Operand, n_outputs: int, out_shape: Shape | None = None, **attrs: Attr
    ) -> tuple[Value, ...]: ...

    def emit(
        self, op: str, *inputs: Operand, n_outputs: int = 1, out_shape: Shape | None = None, **attrs: Attr
    ) -> Value | tuple[Value, ...]:
        """Append `op` and return its output, or a tuple when `n_outputs` > 1. `out_shape` fills in what inference leaves open."""
        values = self._coerce(op, inputs)
        attrs = {k: v for k, v in attrs.items() if v is not None}
        key = (op, n_outputs, values, tuple(sorted((k, _frozen(v)) for k, v in attrs.items())))
        outputs = self._seen.get(key) if op not in RANDOM else None
        if outputs is None:
            outputs = self._append(op, values, attrs, [None] * n_outputs, None, "", out_shape)
            self._seen[key] = outputs
        return outputs[0] if n_outputs == 1 else outputs

    def record(
        self,
        op: str,
        inputs: Sequence[Value | None],
        outputs: Sequence[str],
        attrs: Mapping[str, Attr],
        name: str,
        domain: str = "",
        types: Mapping[str, tuple[Any, Shape | None]] | None = None,
    ) -> tuple[Value, ...]:
        """Append a node of a source model under its own names; `types` are those the file declares."""
        values = self._append(op, tuple(inputs), dict(attrs), list(outputs), name, domain, None, types or {})
        if not domain and op not in RANDOM and all(outputs):
            key = (op, len(outputs), tuple(inputs), tuple(sorted((k, _frozen(v)) for k, v in attrs.items())))
            self._seen.setdefault(key, values)
        return values

    def _append(
        self,
        op: str,
        inputs: tuple[Value | None, ...],
        attrs: dict[str, Attr],
        outputs: list[str | None],
        name: str | None,
        domain: str,
        out_shape: Shape | None,
        declared: Mapping[str, tuple[Any, Shape | None]] = {},
    ) -> tuple[Value, ...]:
        types = infer(op, domain, self.opset, inputs, attrs, len(outputs), strict=name is None)
        values: list[Value] = []
        for i, (out, inferred) in enumerate(zip(outputs, types, strict=True)):
            out = out if out is not None else self.fresh(op)
            self._names.add(out)
            dtype, shape, content = inferred
            if out in declared:
                dtype, shape = dtype or declared[out][0], _refine(shape, declared[out][1], out)
            if out_shape is not None and i == 0:
                shape = _refine(out_shape, shape, out)
            values.append(Value(out, dtype, _refine(shape, None, out), self, None, content))
        if name is None and len(values) == 1 and _known(values[0].content):
            self._names.discard(values[0].name)
            return (self.const(values[0].content, values[0].dtype),)
        node = Node(
            op,
            inputs,
            tuple(values),
            attrs,
            (values[0].name if values else self.fresh(op)) if name is None else name,
            domain,
        )
        self.nodes.append(node)
        self._producer.update(dict.fromkeys(values, node))
        return node.outputs

    def _coerce(self, op: str, inputs: Sequence[Operand]) -> tuple[Value | None, ...]:
        schema = schema_of(op, "", self.opset)
        if schema is None:
            raise BuildError(f"ONNX has no operator {op!r} at opset {self.opset}" + did_you_mean(op, _op_names()))
        formal = [schema.inputs[min(i, len(schema.inputs) - 1)].type_str if schema.inputs else "" for i in range(len(inputs))]
        dtypes = {t: v.dtype for t, v in zip(formal, inputs, strict=True) if isinstance(v, Value)}
        return tuple(
            v if v is None or isinstance(v, Value) else self.const(v, _dtype_for(v, t, dtypes))
            for v, t in zip(inputs, formal, strict=True)
        )

    # -- subgraphs --------------------------------------------------------------------------------------------
    def subgraph(self, name: str) -> Graph:
        """A body (Loop, If, Scan) that may read this graph's values."""
        return Graph(self.opset, self.fresh(name), self)

    def captured(self) -> Iterator[Value]:
        """Values of enclosing graphs that this body reads."""
        for node in self.nodes:
            yield from (v for v in node.uses if v.graph is not self)
        yield from (v for _, v in self.outputs if v.graph is not self)

    def copy(self, nodes: Sequence[Node], stands: dict[Value, Value]) -> list[Node]:
        """Nodes of another tape written here as they are, with their tails, reading what stands for their inputs; `stands` learns
        their outputs."""
        made: dict[Node, Node] = {}
        for node in nodes:
            outputs = tuple(
                Value(self.fresh(v.name) if v.name else "", v.dtype, v.shape, self, None, v.content) for v in node.outputs
            )
            inputs = tuple(None if v is None else self._here(v, stands) for v in node.inputs)
            new = replace(node, inputs=inputs, outputs=outputs, attrs=self.rebound(node.attrs, stands))
            stands.update(zip(node.outputs, outputs, strict=True))
            self.nodes.append(new)
            self._producer.update(dict.fromkeys(outputs, new))
            made[node] = new
        for v in [v for node in made for v in node.outputs]:
            tail = v.graph.tails.get(v, ())
            if tail and all(n in made for n in tail):
                self.tails[stands[v]] = tuple(made[n] for n in tail)
        return list(made.values())

    def share(self, node: Node, stands: dict[Value, Value]) -> None:
        """As `copy` of one node; where an equal one without a body stands here already, that is read."""
        for v in [v for v in node.inputs if v is not None]:
            inner = v.graph.parent is not None and v.graph is not self and v not in stands
            if inner and isinstance(v.stored, np.ndarray) and v.stored.nbytes <= SHARED:
                stands[v] = self.const(v.stored, v.dtype)
        if node.domain or node.subgraphs or node.op in RANDOM:
            self.copy([node], stands)
            return
        inputs = tuple(None if v is None else stands.get(v, v) for v in node.inputs)
        key = (node.op, len(node.outputs), inputs, tuple(sorted((k, _frozen(v)) for k, v in node.attrs.items())))
        if key not in self._seen:
            self.copy([node], stands)
            self._seen[key] = tuple(stands[v] for v in node.outputs)
        stands.update(zip(node.outputs, self._seen[key], strict=True))

    def copy_of_body(self, body: Graph, stands: Mapping[Value, Value]) -> Graph:
        """A body for a node of this graph that does what `body` does, reading what stands for the values around it."""
        new, inner = self.subgraph(body.name), dict(stands)
        inner.update((v, new.input(new.fresh(v.name), v.dtype, v.shape)) for v in body.inputs)
        new.copy(body.nodes, inner)
        new.outputs = [(name, new._here(v, inner)) for name, v in body.outputs]
        return new

    def _here(self, v: Value, stands: dict[Value, Value]) -> Value:
        """What stands for v; a constant of another body is written anew."""
        if v not in stands and v.is_const and v.graph.parent is not None and v.graph is not self:
            stands[v] = replace(v, graph=self, name=self.fresh(v.name))
        return stands.get(v, v)

    def rebound(self, attrs: Mapping[str, Attr], stands: Mapping[Value, Value]) -> Mapping[str, Attr]:
        """Attributes of a node, its bodies written anew to read what stands for the values around them."""
        if not any(isinstance(a, Graph) for a in attrs.values()):
            return attrs
        return {k: self.copy_of_body(a, stands) if isinstance(a, Graph) else a for k, a in attrs.items()}


def needed(nodes: Sequence[Node], values: Iterable[Value], stop: Collection[Value] = ()) -> list[Node]:
    """Those of the nodes that the values are made by, directly or not; what is behind a value in `stop` does not count."""
    wanted, kept = {v for v in values if v not in stop}, list[Node]()
    for node in reversed(nodes):
        if any(v in wanted for v in node.outputs):
            wanted.update(v for v in node.uses if v not in stop)
            kept.append(node)
    return kept[::-1]


def _refine(shape: Shape | None, other: Shape | None, name: str) -> Shape | None:
    """`shape` with its unknown axes taken from `other`; an axis unknown to both gets a name of its own."""
    if shape is None:
        shape = other
    if shape is None:
        return None
    if other is None or len(other) != len(shape):
        other = (None,) * len(shape)
    best: list[Dim] = []
    for axis, (a, b) in enumerate(zip(shape, other, strict=True)):
        known = b if a is None or (isinstance(a, str) and isinstance(b, int)) else a
        best.append(known if known is not None else f"_{name}_{axis}")
    return tuple(best)


def _known(content: Any) -> bool:
    return isinstance(content, int) or (isinstance(content, tuple) and all(isinstance(c, int) for c in content))


def _dtype_for(value: Any, type_var: str, dtypes: Mapping[str, Any]) -> Any:
    """A literal takes the dtype of its neighbours of the same schema type; arrays keep theirs."""
    if isinstance(value, np.ndarray):
        return value.dtype
    if type_var == "tensor(int64)" or type_var == "tensor(bool)":
        return type_var[7:-1]
    if type_var in dtypes:
        return dtypes[type_var]
    first = value[0] if isinstance(value, (list, tuple)) and value else value
    return np.float32 if isinstance(first, float) else np.int64


def _frozen(attr: Attr) -> Any:
    if isinstance(attr, (list, tuple)):
        return tuple(map(_frozen, attr))
    if isinstance(attr, np.ndarray):
        return (attr.dtype, attr.shape, attr.tobytes())
    if isinstance(attr, onnx.AttributeProto):
        return attr.SerializeToString(deterministic=True)
    return attr


@functools.cache
def _op_names() -> list[str]:
    return sorted({s.name for s in onnx.defs.get_all_schemas() if not s.domain})
