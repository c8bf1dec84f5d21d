"""Half-precision models: the explanation runs on a float32 twin of the graph, the model's own nodes stay as they came.

The twin has the tensors' and layers' names of the source, so nothing that works on it knows of half precision. `Twin.join`
puts both into one graph: the twin reads the model's inputs and weights through Cast, and what is no half precision is shared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from .canonical import Canonical
from .errors import MethodError, UnsupportedOp, did_you_mean
from .graph import Array, Graph, Node, Stored, Value
from .kinds import QUANTISERS
from .simplify import prune, with_nodes
from .targets import Explained, Target, indices

PRECISIONS = ("float32", "model")
HALF = {"float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}
BFLOAT16_SINCE = 20  # ConstantOfShape
TYPED = ("to", "dtype", "output_dtype", "stash_type")  # attributes that name a type


@dataclass(frozen=True)
class Widened:
    """A half-precision tensor, read as float32 on demand."""

    value: Value

    def array(self) -> Array:
        return np.asarray(self.value.data).astype(np.float32)

    @property
    def stored_bytes(self) -> int:
        return int(4 * np.prod([d for d in self.value.shape or () if isinstance(d, int)], dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Twin:
    """`own`: the model as it came. `wide`: its float32 twin. `held`: values of the twin that are, up to a Cast, own values."""

    own: Canonical
    wide: Canonical
    explained: Explained
    held: dict[Value, Value] = field(default_factory=dict)
    copies: set[Value] = field(default_factory=set)

    def added(self) -> Graph:
        """The twin with the outputs that an explanation added, and without the model's own."""
        g = self.wide.graph
        return with_nodes(g, g.nodes, g.outputs[len(self.own.graph.outputs) :])

    def join(
        self, g: Graph, wrt: Iterable[Value], index: Value | None = None, target: Target = "argmax"
    ) -> tuple[Graph, Value | None]:
        """(the model's own graph with the twin's nodes behind it, the indices explained): g is the twin, simplified and lowered.

        Attributed tensors are the model's own ones cast to float32, and the largest entries are those of the model's own output.
        """
        own, n_nodes = self.own.graph, len(self.own.graph.nodes)
        own._names.update(g._names)
        roots = {v.name: v for v in [*own.inputs, *(v for n in own.nodes for v in n.outputs)]}
        stands = {v: _wide(own, roots[v.name]) for v in wrt}
        stands |= {v: _wide(own, mine) for v, mine in self.held.items() if v not in stands}
        if index is not None and isinstance(target, str) and target != "input":
            mine = indices(own, _rounded(own, self.explained.y), target)
            stands[index], index = mine, mine
        start = own.nodes[n_nodes:]  # the Casts, and the argmax
        nodes = [n for node in g.nodes if (n := _moved(own, node, stands, self.copies)) is not None]
        outputs = [*own.outputs, *((name, stands.get(v, v)) for name, v in g.outputs)]
        joined = with_nodes(own, [*own.nodes[:n_nodes], *start, *nodes], outputs)
        held = {v.name for v in own.inputs}
        joined.inputs = [*own.inputs, *(v for v in g.inputs if v.name not in held)]
        return prune(joined), index


def check_precision(precision: str) -> None:
    """MethodError when there is no such precision."""
    if precision not in PRECISIONS:
        raise MethodError(
            f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}{did_you_mean(precision, PRECISIONS)}"
        )


def twin_of(canonical: Canonical, explained: Explained, wrt: Sequence[Value], precision: str) -> Twin | None:
    """The float32 twin of a half-precision model; None where the explanation is to have the model's own precision."""
    if precision == "float32":
        return in_float32(canonical, explained, wrt)
    if canonical.graph.opset < BFLOAT16_SINCE and _any_bfloat16(_between(canonical.graph, wrt, explained.y)):
        raise MethodError(
            f'precision="model" needs bfloat16 in operators that have it from opset {BFLOAT16_SINCE} on, and the model has opset '
            f"{canonical.graph.opset}; leave precision at float32, or export the model with a newer opset"
        )
    return None


def in_float32(canonical: Canonical, explained: Explained, wrt: Sequence[Value]) -> Twin:
    """The float32 twin of a model that computes in half precision between wrt and what is explained."""
    own, between = canonical.graph, _between(canonical.graph, wrt, explained.y)
    wide = Graph(own.opset, own.name)
    wide.reserve(sorted(own.names))
    twin = Twin(canonical, dataclasses.replace(canonical, graph=wide), explained)
    env = {v: wide.input(v.name, _dtype(v), v.shape) for v in own.inputs}
    twin.held.update((w, v) for v, w in env.items())
    for node in own.nodes:
        _copy(twin, node, env, between)
    wide.outputs.extend((name, _read(twin, v, env)) for name, v in own.outputs)
    return twin


def is_half(v: Value) -> bool:
    return v.dtype is not None and v.dtype.name in HALF


def computes_in_half(canonical: Canonical, explained: Explained, wrt: Sequence[Value]) -> bool:
    """Whether any tensor between wrt and what is explained is float16 or bfloat16."""
    return any(is_half(v) for v in _between(canonical.graph, wrt, explained.y))


def _any_bfloat16(values: Iterable[Value]) -> bool:
    return any(v.dtype is not None and v.dtype.name == "bfloat16" for v in values)


def _between(g: Graph, wrt: Iterable[Value], y: Value) -> set[Value]:
    """Tensors that depend on wrt and that y depends on."""
    ahead, back = set(wrt), {y}
    for node in g.nodes:
        if any(v in ahead for v in node.uses):
            ahead.update(node.outputs)
    for node in reversed(g.nodes):
        if any(v in back for v in node.outputs):
            back.update(v for v in node.uses if v in ahead)
    return ahead & back


# -- the twin -----------------------------------------------------------------------------------------------------
def _copy(twin: Twin, node: Node, env: dict[Value, Value], between: set[Value]) -> None:
    """The node in float32, under its own name; one that half precision does not reach is remembered as shared.

    A node with a body that does not lie between wrt and what is explained gives what the model itself computed.
    """
    g = twin.wide.graph
    touched = any(map(is_half, (*node.outputs, *node.uses))) or any(env.get(v, v) not in twin.held for v in node.uses if v in env)
    if node.subgraphs and not any(v in between for v in node.outputs):
        touched = False
        made = tuple(Value(v.name, _dtype(v), v.shape, g, None, v.content) for v in node.outputs)
    elif node.domain not in ("", "ai.onnx") and any(map(is_half, (*node.outputs, *node.uses))):
        made = _island(twin, node, env)
    else:
        made = _record(twin, g, node, env)
    env.update(zip(node.outputs, made, strict=True))
    (twin.copies.update(made) if touched else twin.held.update(zip(made, node.outputs, strict=True)))


def _record(twin: Twin, g: Graph, node: Node, env: dict[Value, Value]) -> tuple[Value, ...]:
    inputs = [None if v is None else _read(twin, v, env) for v in node.inputs]
    types = {v.name: (_dtype(v), v.shape) for v in node.outputs}
    attrs = {k: _body(twin, g, a, env) if isinstance(a, Graph) else _attribute(k, a) for k, a in node.attrs.items()}
    return g.record(node.op, inputs, [v.name for v in node.outputs], attrs, node.name, node.domain, types)


def _body(twin: Twin, g: Graph, body: Graph, env: dict[Value, Value]) -> Graph:
    """A body in float32, under its own names: it stands beside the model's own, not inside it."""
    new, inner = Graph(body.opset, body.name, g), dict(env)
    inner.update((v, new.input(v.name, _dtype(v), v.shape)) for v in body.inputs)
    nodes: dict[Node, Node] = {}
    for node in body.nodes:
        if node.domain not in ("", "ai.onnx") and any(map(is_half, (*node.outputs, *node.uses))):
            raise UnsupportedOp(
                f"{node.domain}:{node.op} (node {node.name!r}) computes in half precision in the body of an If, Loop or Scan, "
                'and it cannot be evaluated in float32; pass precision="model" (--precision model), or export in float32'
            )
        inner.update(zip(node.outputs, _record(twin, new, node, inner), strict=True))
        nodes[node] = new.nodes[-1]
    new.outputs = [(name, _read(twin, v, inner)) for name, v in body.outputs]
    new.tails = {inner[a]: tuple(nodes[n] for n in tail) for a, tail in body.tails.items()}
    return new


def _island(twin: Twin, node: Node, env: dict[Value, Value]) -> tuple[Value, ...]:
    """A node of a foreign domain, which may know half precision only, between Casts."""
    g = twin.wide.graph
    inputs = [None if v is None else _read(twin, v, env) for v in node.inputs]
    inputs = [
        g.Cast(w, to=HALF[v.dtype.name]) if v is not None and w is not None and v.dtype is not None and is_half(v) else w
        for v, w in zip(node.inputs, inputs, strict=True)
    ]
    names = [g.fresh(f"{v.name}/half") if is_half(v) else v.name for v in node.outputs]
    types = {name: (v.dtype, v.shape) for name, v in zip(names, node.outputs, strict=True)}
    made = g.record(node.op, inputs, names, node.attrs, node.name, node.domain, types)
    return tuple(
        g.record("Cast", [m], [v.name], {"to": 1}, v.name, types={v.name: (_dtype(v), v.shape)})[0] if is_half(v) else m
        for v, m in zip(node.outputs, made, strict=True)
    )


def _read(twin: Twin, v: Value, env: dict[Value, Value]) -> Value:
    """The twin's value of an own one; constants are made when they are first read."""
    if v not in env:
        stored: Array | Stored | None = Widened(v) if is_half(v) else v.stored
        wide, inner = twin.wide.graph, v.graph.parent is not None
        env[v] = Value(wide.fresh(v.name) if inner else v.name, _dtype(v), v.shape, wide, stored, v.content)
        if not inner:  # a constant of a body is seen there alone
            twin.held[env[v]] = v
    return env[v]


def _dtype(v: Value) -> Any:
    return np.dtype(np.float32) if is_half(v) else v.dtype


def _attribute(name: str, value: Any) -> Any:
    """A node's attribute, with float32 in place of half precision."""
    if name in TYPED and value in HALF.values():
        return TensorProto.FLOAT
    if isinstance(value, onnx.AttributeProto) and value.type == onnx.AttributeProto.TENSOR and value.t.data_type in HALF.values():
        wide = numpy_helper.to_array(value.t).astype(np.float32)
        return onnx.helper.make_attribute(value.name, numpy_helper.from_array(wide))
    return value


# -- both in one graph --------------------------------------------------------------------------------------------
def _wide(own: Graph, v: Value) -> Value:
    return own.Cast(v, to=TensorProto.FLOAT) if is_half(v) else v


def _rounded(own: Graph, y: Value) -> Value:
    """y as it leaves the model: ONNX Runtime computes on the CPU in float32 and skips the rounding between two such nodes; it
    rounds where two nodes in a row (here and in `targets.indices`) need no arithmetic."""
    if not is_half(y):
        return y
    made = own.producer(y)
    levels = made is not None and made.op in QUANTISERS  # behind a sum of one tensor: see `lower.levels`
    return own.Reshape(own.Sum(y) if levels else y, own.shape(y))


def _moved(own: Graph, node: Node, stands: dict[Value, Value], copies: set[Value]) -> Node | None:
    """The twin's node reading what stands for its inputs, its outputs under names of their own; None when it is not needed."""
    if all(v in stands for v in node.outputs):
        return None
    renamed = {v: dataclasses.replace(v, name=own.fresh(f"{v.name}/float32"), graph=own) for v in node.outputs if v in copies}
    for v, new in renamed.items():
        stands.setdefault(v, new)
    for body in node.subgraphs:
        _redirect(body, stands)
    return dataclasses.replace(
        node, inputs=_standing(node.inputs, stands), outputs=tuple(renamed.get(v, v) for v in node.outputs)
    )


def _standing(values: Iterable[Value | None], stands: Mapping[Value, Value]) -> tuple[Value | None, ...]:
    return tuple(stands.get(v, v) if v is not None else None for v in values)


def _redirect(body: Graph, stands: Mapping[Value, Value]) -> None:
    """Let a body that the explanation wrote read what stands for the twin's values."""
    for i, node in enumerate(body.nodes):
        for inner in node.subgraphs:
            _redirect(inner, stands)
        body.nodes[i] = dataclasses.replace(node, inputs=_standing(node.inputs, stands))
    body.outputs = [(name, stands.get(v, v)) for name, v in body.outputs]
