"""Memory: cheap functions of values that the way back reads anyway are computed anew there, and nobody keeps their results."""

from __future__ import annotations

from collections.abc import Mapping

from ..graph import Array, Graph, Node, Value
from ..simplify import with_nodes
from .walk import Pass, Rewrite, number

CURVES = {"Erf", "Tanh"}
CHEAP = CURVES | {"Add", "Sub", "Mul", "Div", "Pow", "Neg"}


def cheap(g: Graph) -> Rewrite:
    """Where nodes of ours read h and c(h), c the pieces of a GELU, they read a copy of c's nodes instead.

    1 + erf(h / sqrt 2) and h / sqrt 2 then last for one layer's way back, not from the way forward on; and as nobody else reads
    them, ONNX Runtime fuses GELU again. It joins equal nodes: the copies' constants have one axis more.
    """
    roots = _roots(Pass(g))

    def f(p: Pass, node: Node) -> Value | None:
        if node.subgraphs or not any(v in roots for v in node.uses):
            return None
        inputs = [None if v is None else _again(p, v, roots) if v in roots else p.now(v) for v in node.inputs]
        return p.g.emit(node.op, *inputs, out_shape=node.outputs[0].shape, **node.attrs)

    return f


def _roots(p: Pass) -> dict[Value, Value]:
    """The kept value that a piece of a GELU is a function of. (The GELU itself, which the next layer reads, is no piece.)"""
    g = p.old
    kept = {v for n in g.nodes if n.outputs and g.is_ours(n.outputs[0]) for v in n.uses}
    found: dict[Value, Value] = {}
    for node in g.nodes:
        if node.op not in CHEAP or node.domain or g.is_ours(node.outputs[0]):
            continue
        data = [v for v in node.inputs if v is not None and not v.is_const]
        roots = {found.get(v, v) for v in data}
        if len(roots) == 1 and roots <= kept and (any(v in found for v in data) or _restated(node, *roots)):
            found[node.outputs[0]] = roots.pop()
    curved = {v for v in found if _has_curve(p, v, found)}
    whole = {v for n in g.nodes if n.op not in CHEAP or n.domain for v in n.uses if not g.is_ours(n.outputs[0])}
    return {v: u for v, u in found.items() if u in {found[c] for c in curved} and v not in whole}


def _restated(node: Node, u: Value) -> bool:
    """Whether the node has a constant that can be written with one axis more."""
    return any(_widened(v, u) is not None for v in node.inputs)


def _widened(v: Value | None, u: Value) -> Array | None:
    """A number with one axis more, if u has as many."""
    if v is None or v.data is None or number(v) is None or v.rank >= len(u.shape or ()):
        return None
    return v.data.reshape((1,) * (v.rank + 1))


def _has_curve(p: Pass, v: Value, roots: Mapping[Value, Value]) -> bool:
    node = p.made(v, *CHEAP)
    return node is not None and v in roots and (node.op in CURVES or any(_has_curve(p, u, roots) for u in node.uses))


def _again(p: Pass, v: Value, roots: Mapping[Value, Value]) -> Value:
    """v, from its root, by nodes of their own."""
    if v not in roots:
        return p.now(v)
    node = p.old._producer[v]
    inputs = []
    for u in node.inputs:
        assert u is not None
        wide = _widened(u, roots[v])
        inputs.append(_again(p, u, roots) if wide is None else p.g.const(wide, u.dtype))
    return p.g.emit(node.op, *inputs, out_shape=v.shape, **node.attrs)


def by_depth(g: Graph) -> Graph:
    """Nodes by the length of the longest way to them.

    ONNX Runtime goes from the outputs upwards, at each node along the input that comes last in the file first. So the way back is
    walked before what it needs of the way forward only, such as z + eps, which then is made when it is read.
    """
    depth: dict[Value, int] = {}
    for node in g.nodes:
        own = 1 + max((depth.get(v, 0) for v in node.uses), default=0)
        depth.update(dict.fromkeys(node.outputs, own))
    return with_nodes(g, sorted(g.nodes, key=lambda n: depth[n.outputs[0]]))
