"""Layer and RMS normalisation that an exporter wrote out as means, squares, a root and products.

What lies under a root says which tensor x is normalised, over which axes. From there on each value is followed as a sum of terms
c x / s, c m / s, c / s, c x, c m and c (m the mean, s the deviation, c constants), whatever the spelling: the normalisation
ends where that sum is scale (x - m) / s + shift. It counts as one layer, with the derivative of its nodes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from .errors import UnsupportedOp
from .graph import Array, Graph, Node, Value
from .vjp.norm import mean
from .vjp.reduce import known_axes

Form: TypeAlias = dict[tuple[str, bool], Array]  # coefficients of (base, divided by s); base: "x", "m" (its mean) or "1"
Readers: TypeAlias = Mapping[Value, Sequence[Node]]

X, ONE = ("x", True), ("1", False)
M = ("m", True)
RESHAPES = {"Reshape", "Unsqueeze"}
AVERAGES = {"ReduceMean", "GlobalAveragePool"}
FOLLOWED = RESHAPES | {"Add", "Sub", "Mul", "Div", "Neg", "Reciprocal", "Cast"}


@dataclass(frozen=True)
class Moments:
    """What lies under a root: `under` = variance (or mean square) of x over the axes + epsilon."""

    x: Value
    axes: tuple[int, ...]
    epsilon: float
    centred: bool
    under: Value


@dataclass(frozen=True, eq=False)
class Norm:
    """y = scale (x - mean) / s + shift, or scale x / s + shift where the mean is not taken away."""

    nodes: tuple[Node, ...]
    moments: Moments
    scale: Array
    shift: Array

    @property
    def x(self) -> Value:
        return self.moments.x

    @property
    def op(self) -> str:
        """The operator that it spells out."""
        rank, axes = self.x.rank, self.moments.axes
        trailing = axes == tuple(range(rank - len(axes), rank))
        return ("LayerNormalization" if trailing else "MeanVarianceNormalization") if self.moments.centred else "RMSNormalization"

    def frozen(self, g: Graph, dy: Value) -> Value:
        """dx with the deviation held constant: (u - mean u) / s with u = scale dy; u / s without a mean."""
        u = dy if np.all(self.scale == 1) else dy * g.const(self.scale.astype(self.x.dtype))
        centred = u - mean(g, u, list(self.moments.axes)) if self.moments.centred else u
        return centred / g.Sqrt(self.moments.under)


def norm_regions(
    g: Graph, data: Collection[Value], kept: Collection[Value], readers: Readers
) -> tuple[list[Norm], dict[str, str]]:
    """Every normalisation that is written out, and by root node why it is none."""
    found: list[Norm] = []
    refused: dict[str, str] = {}
    for node in g.nodes:
        under = _root(node)[0]
        if under is None or under not in data:
            continue
        moments = moments_of(g, under)
        result = moments if isinstance(moments, str) else _norms(g, moments, data, kept, readers)
        if isinstance(result, str):
            refused[node.name] = result
        else:
            found.extend(result)
    return found, refused


# -- what lies under the root -------------------------------------------------------------------------------------
def moments_of(g: Graph, under: Value) -> Moments | str:
    """The statistic whose root is taken, or why it is none: [max(] variance [, 0)] [+ epsilon]."""
    variance, epsilon = _without_epsilon(g, under)
    variance = _unclamped(g, variance)
    node = g.producer(variance)
    if node is None:
        return f"{variance.name!r} under the root is not computed here"
    if node.op == "Sub" and not node.domain:
        return _by_second_moment(g, node, epsilon, under)
    averaged = average(g, variance)
    if averaged is None:
        return f"{variance.name!r} under the root, made by {node.op}, is no mean over constant axes that stay as axes of size 1"
    squared, axes = averaged
    d = square(g, squared)
    if d is None:
        return f"{squared.name!r}, whose mean is taken under the root, is no square"
    x = _minus_mean(g, d, axes)
    return Moments(d if x is None else x, axes, epsilon, x is not None, under)


def _by_second_moment(g: Graph, node: Node, epsilon: float, under: Value) -> Moments | str:
    """variance = mean x^2 - (mean x)^2."""
    first, second = (v for v in node.inputs if v is not None)
    of_squares, centre = average(g, first), square(g, second)
    x = None if of_squares is None else square(g, of_squares[0])
    if of_squares is None or x is None or centre is None:
        return f"{node.outputs[0].name!r} under the root is a difference, but not the mean of squares minus the square of a mean"
    if average(g, centre) != (x, of_squares[1]):
        return f"{centre.name!r}, whose square is subtracted under the root, is not the mean of {x.name!r} over the same axes"
    return Moments(x, of_squares[1], epsilon, True, under)


def average(g: Graph, v: Value) -> tuple[Value, tuple[int, ...]] | None:
    """(x, axes) when v is the mean of x over constant axes, which v has as axes of size 1."""
    node = g.producer(v)
    while node is not None and node.op in RESHAPES and node.inputs[0] is not None:
        node = g.producer(node.inputs[0])
    x = node.inputs[0] if node is not None and node.op in AVERAGES and not node.domain else None
    if node is None or x is None or x.shape is None:
        return None
    try:
        axes = tuple(range(2, x.rank)) if node.op == "GlobalAveragePool" else tuple(known_axes(node))
    except UnsupportedOp:
        return None
    return (x, axes) if v.shape == _reduced(x, axes) else None


def square(g: Graph, v: Value) -> Value | None:
    """d when v = d d or d^2."""
    node = g.producer(v)
    if node is None or node.domain or len(node.inputs) != 2:
        return None
    a, b = node.inputs
    if node.op == "Mul" and a is b:
        return a
    return a if node.op == "Pow" and b is not None and _scalar(b) == 2 else None


def _minus_mean(g: Graph, d: Value, axes: tuple[int, ...]) -> Value | None:
    """x when d = x - mean x over the axes."""
    node = g.producer(d)
    if node is None or node.op != "Sub" or node.domain:
        return None
    x, centre = node.inputs
    return x if x is not None and centre is not None and average(g, centre) == (x, axes) else None


def _without_epsilon(g: Graph, v: Value) -> tuple[Value, float]:
    """(a, epsilon) when v = a + epsilon, else (v, 0)."""
    node = g.producer(v)
    if node is not None and node.op == "Add" and not node.domain:
        for a, b in (node.inputs, node.inputs[::-1]):
            epsilon = _scalar(b)
            if a is not None and epsilon is not None:
                return a, epsilon
    return v, 0.0


def _unclamped(g: Graph, v: Value) -> Value:
    """a when v = max(a, 0): rounding may leave a variance below 0."""
    node = g.producer(v)
    if node is None or node.domain or node.inputs[0] is None:
        return v
    if node.op == "Relu":
        return node.inputs[0]
    if node.op == "Max" and len(node.inputs) == 2:
        for a, b in (node.inputs, node.inputs[::-1]):
            if a is not None and _scalar(b) == 0:
                return a
    return v


def _root(node: Node) -> tuple[Value | None, bool]:
    """(what the root is taken of, whether the node makes its reciprocal); None for any other node."""
    if node.domain or not node.inputs:
        return None, False
    if node.op == "Sqrt":
        return node.inputs[0], False
    power = _scalar(node.inputs[1]) if node.op == "Pow" else None
    return (node.inputs[0], power < 0) if power in (0.5, -0.5) and power is not None else (None, False)


def _scalar(v: Value | None) -> float | None:
    """A constant of one element."""
    held = v.data if v is not None and v.is_const and v.shape is not None and all(d == 1 for d in v.shape) else None
    return None if held is None else float(held.reshape(()))


def _reduced(x: Value, axes: Collection[int]) -> tuple[int | str | None, ...]:
    return tuple(1 if i in axes else d for i, d in enumerate(x.shape or ()))


# -- where the normalisation ends ---------------------------------------------------------------------------------
def _norms(
    g: Graph, m: Moments, data: Collection[Value], kept: Collection[Value], readers: Readers
) -> list[Norm] | str:
    """The normalisations of x that share this root: one, or several with scales of their own."""
    forms = _follow(g, m, kept, readers)
    ends = [v for v, f in forms.items() if _complete(f, m) and not _goes_on(v, forms, kept, readers)]
    if not ends:
        return f"nothing that is made of {m.x.name!r} and its deviation is scale (x - mean) / s + shift"
    inside = {v: _inside(g, v, m.x, data) for v in ends}
    every = {id(n): n for nodes in inside.values() for n in nodes}
    for node in every.values():
        for v in node.outputs:
            leak = next((r.name for r in readers.get(v, ()) if id(r) not in every), None)
            if v not in ends and (leak is not None or v in kept):
                return f"{v.name!r} inside the normalisation is {f'read by {leak!r}' if leak else 'asked for by name'}"
    if any(v.shape != m.x.shape for v in ends):
        return f"the result's shape differs from that of {m.x.name!r}"
    return [Norm(tuple(inside[v]), m, forms[v][X], forms[v].get(ONE, np.zeros(()))) for v in ends]


def _follow(g: Graph, m: Moments, kept: Collection[Value], readers: Readers) -> dict[Value, Form]:
    """The form of each value that has one. A finished normalisation goes on only into its sole reader, and finished."""
    forms: dict[Value, Form] = {m.x: {("x", False): np.ones(())}}
    roots: set[Value] = set()
    for node in g.nodes:
        under, reciprocal = _root(node)
        if under is m.under:
            (forms.update({node.outputs[0]: {("1", True): np.ones(())}}) if reciprocal else roots.add(node.outputs[0]))
            continue
        form = None if node.domain or len(node.outputs) != 1 else _form(g, node, forms, roots, m)
        done = [v for v in node.inputs if v in forms and _complete(forms[v], m)]
        if form is None or len(done) > 1 or any(not _complete(form, m) or v in kept or len(readers[v]) > 1 for v in done):
            continue
        forms[node.outputs[0]] = form
    return forms


def _goes_on(v: Value, forms: Mapping[Value, Form], kept: Collection[Value], readers: Readers) -> bool:
    after = readers.get(v, ())
    return v not in kept and len(after) == 1 and after[0].outputs[0] in forms


def _complete(f: Form, m: Moments) -> bool:
    """Whether the form is scale (x - m) / s + shift (scale x / s + shift where the mean is not taken away)."""
    if X not in f or not set(f) <= {X, M, ONE}:
        return False
    return (M in f and bool(np.all(f[X] == -f[M]))) if m.centred else M not in f


def _inside(g: Graph, end: Value, x: Value, data: Collection[Value]) -> list[Node]:
    """The nodes between x and the end, in order."""
    seen: set[int] = set()
    stack = [end]
    while stack:
        node = g.producer(stack.pop())
        if node is not None and id(node) not in seen:
            seen.add(id(node))
            stack.extend(v for v in node.inputs if v is not None and v in data and v is not x)
    return [n for n in g.nodes if id(n) in seen]


# -- sums of terms ------------------------------------------------------------------------------------------------
def _form(g: Graph, node: Node, forms: Mapping[Value, Form], roots: Collection[Value], m: Moments) -> Form | None:
    """The form of a node's output, from those of its inputs; None when it has none."""
    y = node.outputs[0]
    if node.op in AVERAGES | RESHAPES and average(g, y) == (m.x, m.axes):
        return {("m", False): np.ones(())}
    if node.op not in FOLLOWED or not any(v in forms or v in roots for v in node.inputs):
        return None
    if node.op == "Reciprocal":
        return {("1", True): np.ones(())} if node.inputs[0] in roots else None
    a, b = (_of(v, forms) for v in (*node.inputs, None)[:2])
    if a is None:
        return None
    if node.op == "Neg":
        return _times(a, {ONE: np.array(-1.0)})
    if node.op in RESHAPES:
        small = all(base != "x" and c.ndim == 0 for (base, _), c in a.items())
        return a if small and y.shape == _reduced(m.x, m.axes) else None
    if node.op == "Cast":
        return a if node.inputs[0] is not None and node.inputs[0].dtype == y.dtype else None
    if node.op == "Div" and node.inputs[1] in roots:
        return _times(a, {("1", True): np.ones(())})
    if b is None:
        return None
    if node.op == "Div":
        return _times(a, {ONE: 1 / b[ONE]}) if set(b) == {ONE} and np.all(b[ONE] != 0) else None
    if node.op in ("Add", "Sub"):
        return _plus(a, b if node.op == "Add" else _times(b, {ONE: np.array(-1.0)}))
    return _times(a, b) if node.op == "Mul" else None


def _of(v: Value | None, forms: Mapping[Value, Form]) -> Form | None:
    """The form of an operand; a constant is its own coefficient."""
    if v is None or v in forms:
        return None if v is None else forms[v]
    held = v.data if v.is_const and v.is_float else None
    return None if held is None else {ONE: held.astype(np.float64)}


def _plus(a: Form, b: Form | None) -> Form | None:
    if b is None:
        return None
    return {k: a[k] + b[k] if k in a and k in b else a[k] if k in a else b[k] for k in dict.fromkeys([*a, *b])}


def _times(a: Form, b: Form) -> Form | None:
    """The product; None where it has x or the mean twice, or the deviation."""
    product: Form = {}
    for (base, divided), c in a.items():
        for (other, again), d in b.items():
            if (base != "1" and other != "1") or (divided and again):
                return None
            key = (base if other == "1" else other, divided or again)
            product[key] = product[key] + c * d if key in product else c * d
    return product
