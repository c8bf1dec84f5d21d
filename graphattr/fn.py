"""A layer as a function that can be applied again and pulled back: `f(x, w, b)` and `f.vjp(r, x, w)`.

With these two the whole LRP, Deep Taylor and Excitation family is one helper plus a list of parts per rule.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import MethodError, MissingFit, UnsupportedOp
from .graph import Array, Graph, Node, Value
from .kinds import CONVOLUTIONS
from .layers import Layer, LayerGraph, single
from .pair import Flow
from .spelled import spelled_out
from .vjp import FROZEN, pull, pullback, total
from .vjp.index import zeros_like
from .vjp.taps import weight_cotangents

Out = Value | tuple[Value | None, ...]  # None where nothing is sent to a data input
SHAPES = {"Shape", "Size"}
Flows = Flow | tuple[Flow | None, ...]  # of a rule that tells the two values of a Pair apart


@dataclass(frozen=True, eq=False)
class Context:
    """What a backward pass brings along: the attributed tensors' references, learned arrays by layer name, notes of its rules."""

    references: Mapping[Value, Value] = field(default_factory=dict)
    learned: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    notes: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Site:
    """A layer where a rule is applied: its forward values, its function, and the ledger of what the rule absorbs."""

    g: Graph
    layer: Layer
    graph: LayerGraph
    wanted: frozenset[Value]  # the data inputs to which relevance must flow
    ledger: dict[str, list[Value]] | None = field(default=None)
    context: Context = field(default_factory=Context)
    plan: Mapping[str, Any] = field(default_factory=dict)  # what each layer on the path is bound to

    @property
    def x(self) -> Value:
        return self.layer.x

    @property
    def xs(self) -> tuple[Value, ...]:
        return self.layer.xs

    @property
    def y(self) -> Value:
        return self.layer.y

    @property
    def b(self) -> Value | None:
        return self.layer.b

    @property
    def w(self) -> Value:
        assert self.layer.w is not None, f"layer {self.layer.name} has no weight"
        return self.layer.w

    @property
    def gate(self) -> int | None:
        """Index of the operand of a product that is a gate, if exactly one is."""
        return self.graph.gate(self.layer)

    def reference(self, v: Value) -> Value:
        """The value that a tensor has where the attributed ones have their references."""
        references = self.context.references
        if not references:
            raise MethodError("the rule compares with references, and this method has none: its finish must take `baselines`")
        if "reference" not in self.context.notes:
            self.context.notes["reference"] = Again(self.g, {x: x * 0.0 + r for x, r in references.items()})
        again: Again = self.context.notes["reference"]
        return again(v)

    def maker(self, v: Value) -> Site | None:
        """The layer that makes v of the attributed tensors; None for these themselves and for what does not depend on them."""
        layer = None if v in self.context.references else self.graph.made.get(v)
        if layer is None or layer.name not in self.plan:
            return None
        return dataclasses.replace(self, layer=layer, ledger=None)

    @property
    def bound(self) -> Any:
        """What the layer is bound to: `.rule` and `.params`."""
        return self.plan[self.layer.name]

    def learned(self, name: str) -> Value:
        """An array that was learned for this layer; MissingFit when there is none."""
        held = self.context.learned.get(self.layer.name, {})
        if name not in held:
            raise MissingFit(f"layer {self.layer.name!r} has no learned {name!r}; make one with `graphattr fit` and pass fitted=")
        return self.g.const(held[name], self.w.dtype)

    def nonnegative(self, x: Value) -> bool:
        return x in self.graph.nonnegative

    def __call__(self, x: Value, w: Value | None = None, b: Value | None = None) -> Value:
        """The layer's operator at other inputs: f(x; w) + b. Without b there is no bias."""
        main = self.layer.nodes[0]
        if self.layer.kind != "linear":
            return self._emit(dataclasses.replace(main, inputs=tuple(x if v is self.x else v for v in main.inputs)))
        return self._through_tail(self._product(x, self.w if w is None else w, b))

    def _product(self, x: Value, w: Value, b: Value | None) -> Value:
        main, node = self.layer.nodes[0], self._linear(x, w)
        if b is None:
            return self._emit(node)
        if len(self.layer.nodes) - len(self.layer.tail) == 2:
            add = self.layer.nodes[1]
            z = self._emit(node)
            return self.g.Add(*(z if v is main.outputs[0] else b for v in add.inputs))
        return self._emit(dataclasses.replace(node, inputs=(*node.inputs, b))) if main.op != "Einsum" else self._emit(node) + b

    def at(self, values: Mapping[Value, Value]) -> Value:
        """The layer's output where its data inputs have other values."""
        if len(self.layer.nodes) > 1:
            return reapply(self.g, self.y, values)
        stands = dict(values)
        _emit_anew(self.g, self.layer.nodes[0], stands)
        return stands[self.y]

    def at_zero(self) -> Value:
        """The layer where all its data inputs are zero: what it adds, if it is affine."""
        stands = {x: zeros_like(self.g, x) for x in self.xs}
        for node in self.layer.nodes:
            _emit_anew(self.g, node, stands)
        return stands[self.y]

    def slope(self, x: Value) -> Value:
        """The derivative of a function of one element, elsewhere."""
        y = self.at({self.x: x})
        dtype = y.dtype if y.is_float else x.dtype  # levels of a quantiser count as numbers
        one = self.g.emit("ConstantOfShape", self.g.shape(y), value=np.ones(1, dtype), out_shape=y.shape)
        found = pullback(self.g, {y: one}, [x], between(self.g, [x], [y]))
        return found[x] if x in found else zeros_like(self.g, x)

    def pieces(self) -> tuple[Value, list[Site]]:
        """The layer in elementary operators, each as a layer of its own, and what they make in place of its first output."""
        nodes, y = self.layer.nodes, self.y
        if len(nodes) == 1:
            y = spelled_out(self.g, nodes[0])
            nodes = tuple(between(self.g, self.xs, [y]))
        return y, [dataclasses.replace(self, layer=layer, ledger=None) for layer in single(self.g, nodes, self.xs)]

    def vjp(self, r: Value, x: Value, w: Value | None = None) -> Value:
        """r pulled back through a linear layer at (x, w): the cotangent of x."""
        made = self.g.producer(self._emit(self._linear(x, self.w if w is None else w)))
        assert made is not None
        if self.layer.tail:  # linear, with coefficients that stay: pulled back at the values it has
            r = pullback(self.g, {self.y: r}, [self.z], self.layer.tail)[self.z]
        found = pull(self.g, made, [r], [self._data_at])[self._data_at]
        assert found is not None
        return found

    def weight_vjps(self, rs: Sequence[Value], x: Value, w: Value) -> list[Value]:
        """Each r, at what the linear operator makes (`z`), pulled back to the weight at (x, w): sums over samples and places."""
        made, at = self.g.producer(self._emit(self._linear(x, w))), 1 - self._data_at
        assert made is not None
        found = weight_cotangents(self.g, made, rs) if made.op in CONVOLUTIONS else None
        return found or [v for r in rs if (v := pull(self.g, made, [r], [at])[at]) is not None]

    def vjps(self, r: Out | Sequence[Value | None]) -> tuple[Value, ...]:
        """r pulled back through the layer as it stands: the cotangents of its data inputs, zeros where none arrives."""
        if self.layer.kind == "linear" and not self.layer.tail:
            assert isinstance(r, Value)
            return (self.vjp(r, self.x),)
        seeds = dict(zip(self.layer.ys, [r] if isinstance(r, Value) else r, strict=False))
        found = pullback(self.g, {y: v for y, v in seeds.items() if v is not None}, self.xs, self.layer.nodes)
        return tuple(found[x] if x in found else zeros_like(self.g, x) for x in self.xs)

    def vjps_at_reference(self, r: Value) -> tuple[Value, ...]:
        """r pulled back through the layer's one node as it stands where the attributed tensors have their references."""
        (node,), again = self.layer.nodes, self.g.producer(self.reference(self.y))
        assert again is not None
        needs = [i for i, v in enumerate(node.inputs) if v in self.xs]
        found = pull(self.g, again, [r, *[None] * (len(again.outputs) - 1)], needs)
        sent = [(v, s) for v, s in zip(node.inputs, found, strict=True) if s is not None]
        sums = [total(self.g, [s for v, s in sent if v is x]) for x in self.xs]
        return tuple(zeros_like(self.g, x) if s is None else s for x, s in zip(self.xs, sums, strict=True))

    def frozen(self, r: Value) -> Value:
        """r pulled back through a normalisation whose deviation counts as a constant: u - mean(u) with u = scale r / s."""
        if self.layer.norm is not None:
            return self.layer.norm.frozen(self.g, r)
        node = self.layer.nodes[0]
        if node.op not in FROZEN:
            raise UnsupportedOp(f"no derivative with frozen statistics for operator {node.op} (node {node.name!r})")
        return FROZEN[node.op](self.g, node, r)

    def absorbed(self, **shares: Callable[[], Value]) -> None:
        """Note in the ledger what is kept back here (bias=..., stabiliser=...); each share has the layer output's shape."""
        if self.ledger is not None:
            for name, share in shares.items():
                self.ledger.setdefault(name, []).append(share())

    @property
    def z(self) -> Value:
        """What the linear operator with its bias makes, before the tail."""
        return self.layer.nodes[len(self.layer.nodes) - len(self.layer.tail) - 1].outputs[0]

    def _through_tail(self, z: Value) -> Value:
        """The tail at z instead of the layer's own product; the coefficients stay."""
        stands = {self.z: z}
        for node in self.layer.tail:
            _emit_anew(self.g, node, stands)
            z = stands[node.outputs[0]]
        return z

    @property
    def _data_at(self) -> int:
        return next(i for i, v in enumerate(self.layer.nodes[0].inputs) if v is self.x)

    def _linear(self, x: Value, w: Value) -> Node:
        """The layer's linear operator at (x, w), bias and scale factors left out."""
        main = self.layer.nodes[0]
        attrs = {k: v for k, v in main.attrs.items() if not (main.op == "Gemm" and k in ("alpha", "beta"))}
        return dataclasses.replace(main, inputs=(x, w) if self._data_at == 0 else (w, x), attrs=attrs)

    def _emit(self, node: Node) -> Value:
        out: Value = self.g.emit(
            node.op, *node.inputs, out_shape=node.outputs[0].shape if node.inputs[0] is not None else None, **node.attrs
        )
        return out


def reapply(g: Graph, y: Value, at: Mapping[Value, Value]) -> Value:
    """y evaluated anew with the values in `at` in place of their keys."""
    return Again(g, at)(y)


class Again:
    """Tensors evaluated anew with the values in `at` in place of their keys, each node once, however many are asked for.

    What stands for a tensor has its shape, so shapes stay what they are.
    """

    def __init__(self, g: Graph, at: Mapping[Value, Value]) -> None:
        self.g, self.given = g, at
        self.stands: dict[Value, Value] = dict(at)
        self.same: set[Value] = set()

    def __call__(self, y: Value) -> Value:
        stack = [y]
        while stack:
            node = self.g.producer(stack[-1])
            if stack[-1] in self.stands or stack[-1] in self.same or node is None:
                stack.pop()
                continue
            uses = [] if node.op in SHAPES else list(node.uses)
            missing = [v for v in uses if not (v in self.stands or v in self.same or self.g.producer(v) is None)]
            stack.extend(missing)
            if not missing and any(v in self.stands for v in uses):
                _emit_anew(self.g, node, self.stands)
                self.stands.update(self.given)
            elif not missing:
                self.same.update(node.outputs)
        return self.stands.get(y, y)


def between(g: Graph, starts: Sequence[Value], ends: Sequence[Value]) -> list[Node]:
    """The nodes that lead from the starts to the ends, each behind those that it reads."""
    order: dict[Node, None] = {}
    stack, stop = list(ends), set(starts)
    while stack:
        value = stack[-1]
        node = None if value in stop else g.producer(value)
        missing = [v for v in node.uses if v not in stop and g.producer(v) not in order] if node and node not in order else []
        missing = [v for v in missing if g.producer(v) is not None]
        stack.extend(missing)
        if not missing:
            stack.pop()
            if node is not None:
                order[node] = None
    return list(order)


def _emit_anew(g: Graph, node: Node, stands: dict[Value, Value]) -> None:
    """The node at what stands for its inputs; its new outputs then stand for the old ones."""
    inputs = (stands.get(v, v) if v is not None else None for v in node.inputs)
    attrs = g.rebound(node.attrs, stands)
    made = g.emit(node.op, *inputs, n_outputs=len(node.outputs), out_shape=node.outputs[0].shape, **attrs)
    stands.update(zip(node.outputs, made if isinstance(made, tuple) else (made,), strict=True))
