"""The table of derivatives and the walk that uses it.

A VJP is a function `f(g, n, dy) -> (dx0, dx1, ...)`: for node n and the cotangent dy of its (first) output, emit the
cotangents of its inputs, None for an input that has none. The contract:

* `n.needs` holds the indices of the inputs whose cotangent is wanted; the others may be None (an expensive or
  impossible one should be skipped unless it is needed).
* Never think of broadcasting: a cotangent may have the shape of the output; `fit` sums it back here, once.
* Emit only operators that have a VJP or are listed in CONSTANT: then the derivative of a derivative is again a graph.
* A node with several differentiable outputs registers with `many=True` and gets a tuple dy, None where nothing arrives.
* Use `g.shape(x)`, never `x.shape`, for a value that enters the graph; use `x.dim(axis)` where only a static size will do.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UnsupportedOp, did_you_mean
from ..graph import Graph, Node, Value
from ..infer import schema_of
from .why import WHY

Vjp = Callable[..., Sequence[Value | None]]
Pairs = list[tuple[Value, Value]]  # (value, its cotangent)

VJPS: dict[str, Vjp] = {}
MANY: set[str] = set()
CONTROL = {"If", "Loop", "Scan"}  # operators with bodies: see `control.py`

# Operators with a derivative of zero (or none at all): said, not left out.
CONSTANT: set[str] = {
    "And",
    "ArgMax",
    "ArgMin",
    "Bernoulli",
    "BitCast",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "Ceil",
    "Constant",
    "ConstantOfShape",
    "Equal",
    "EyeLike",
    "Floor",
    "Greater",
    "GreaterOrEqual",
    "Hardmax",
    "IsInf",
    "IsNaN",
    "Less",
    "LessOrEqual",
    "MelWeightMatrix",
    "Multinomial",
    "NonMaxSuppression",
    "NonZero",
    "Not",
    "Or",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Round",
    "Shape",
    "Sign",
    "Size",
    "Xor",
}
# Outputs that count as constants though the operator has a derivative: the range that a dynamic quantisation chose.
CONSTANT_OUTPUTS = {"DynamicQuantizeLinear": (1, 2)}


def vjp(*ops: str, many: bool = False) -> Callable[[Vjp], Vjp]:
    """Register the function below as the VJP of these operators."""

    def register(f: Vjp) -> Vjp:
        for op in ops:
            assert op not in {*VJPS, *CONSTANT}, f"two derivatives for {op}"
            VJPS[op] = f
            if many:
                MANY.add(op)
        return f

    return register


def vjp_of(g: Graph, node: Node) -> Vjp:
    """The node's derivative: registered, or by way of the operator's ONNX function body; else UnsupportedOp."""
    if node.domain in ("", "ai.onnx"):
        if node.op in VJPS:
            return VJPS[node.op]
        schema = schema_of(node.op, "", g.opset)
        if schema is not None and (schema.has_function or schema.has_context_dependent_function):
            from .function import through_body

            return through_body
    domain = f"{node.domain}:" if node.domain not in ("", "ai.onnx") else ""
    known = WHY.get(f"{domain}{node.op}")
    hint = f": it {known}" if known else did_you_mean(node.op, VJPS)
    raise UnsupportedOp(f"no derivative for operator {domain}{node.op} (node {node.name!r}, opset {g.opset}){hint}")


def is_control(node: Node) -> bool:
    return node.op in CONTROL and node.domain in ("", "ai.onnx")


def has_vjp(g: Graph, node: Node) -> bool:
    """Whether a derivative is known; what the bodies of an If, Loop or Scan hold is not asked."""
    if is_control(node):
        return True
    try:
        vjp_of(g, node)
    except UnsupportedOp:
        return False
    return True


def is_constant(node: Node) -> bool:
    """No cotangent passes this node: its operator is listed, or none of its outputs is a float."""
    return (node.domain in ("", "ai.onnx") and node.op in CONSTANT) or not any(
        v.dtype is None or v.is_float or node.op == "QuantizeLinear" for v in node.outputs
    )


def depends(nodes: Iterable[Node], on: Iterable[Value]) -> set[Value]:
    """All values that depend on `on` through operators with a derivative."""
    reached = set(on)
    for node in nodes:
        if not is_constant(node) and any(v in reached for v in node.uses):
            reached.update(data_outputs(node))
    return reached


def data_outputs(node: Node) -> tuple[Value, ...]:
    """The node's outputs without those that count as constants."""
    held = CONSTANT_OUTPUTS.get(node.op, ()) if node.domain in ("", "ai.onnx") else ()
    return tuple(v for i, v in enumerate(node.outputs) if i not in held)


def pull(g: Graph, node: Node, cotangents: Sequence[Value | None], needs: Iterable[int]) -> list[Value | None]:
    """Cotangents of the node's inputs from those of its outputs, each of its input's shape."""
    node = dataclasses.replace(node, needs=frozenset(needs))
    f = vjp_of(g, node)
    many = node.op in MANY or f.__name__ == "through_body"
    beyond = [v.name for v, dy in zip(node.outputs[1:], cotangents[1:], strict=True) if dy is not None]
    if beyond and not many:
        raise UnsupportedOp(
            f"{node!r}: no derivative of its output {beyond[0]!r}, only of the first; explain an output that does not use it"
        )
    if not many and cotangents[0] is None:
        return [None] * len(node.inputs)
    if all(_is_empty(node.inputs[i]) for i in node.needs):
        return [_zeros(g, x) if x is not None and i in node.needs else None for i, x in enumerate(node.inputs)]
    found = list(f(g, node, tuple(cotangents) if many else cotangents[0]))
    found = (found + [None] * len(node.inputs))[: len(node.inputs)]
    return [
        fit(g, dx, x) if dx is not None and x is not None and i in node.needs else None
        for i, (dx, x) in enumerate(zip(found, node.inputs, strict=True))
    ]


def _is_empty(x: Value | None) -> bool:
    return x is not None and x.shape is not None and 0 in x.shape


def _zeros(g: Graph, x: Value) -> Value:
    return g.emit("ConstantOfShape", g.shape(x), value=np.zeros(1, x.dtype), out_shape=x.shape)


def pullback(
    g: Graph,
    seeds: Mapping[Value, Value],
    wrt: Iterable[Value],
    nodes: Sequence[Node] | None = None,
) -> dict[Value, Value]:
    """Reverse-mode derivative: cotangents of `wrt` from the cotangents `seeds`. A value without one is absent (zero)."""
    nodes = list(g.nodes) if nodes is None else list(nodes)
    wrt = list(wrt)
    reached = depends(nodes, wrt)
    arriving: dict[Value, list[Value]] = {v: [dv] for v, dv in seeds.items()}
    for node in reversed(nodes):
        dys = [total(g, arriving.get(v, [])) for v in node.outputs]
        if all(dy is None for dy in dys) or is_constant(node):
            continue
        for x, dx in _pulled(g, node, dys, reached):
            arriving.setdefault(x, []).append(dx)
    return {v: dv for v in wrt if (dv := total(g, arriving.get(v, []))) is not None}


def _pulled(g: Graph, node: Node, dys: Sequence[Value | None], wanted: set[Value]) -> Pairs:
    """(value, cotangent) of each wanted value that the node reads."""
    if is_control(node):
        from .control import pull_control

        return pull_control(g, node, dys, wanted)
    needs = [i for i, x in enumerate(node.inputs) if x in wanted]
    dxs = pull(g, node, dys, needs) if needs else []
    return [(x, dx) for x, dx in zip(node.inputs, dxs, strict=False) if x is not None and dx is not None]


def total(g: Graph, values: Sequence[Value]) -> Value | None:
    """The sum of the values that arrive at one tensor; None when nothing does."""
    if not values:
        return None
    result = values[0]
    for v in values[1:]:
        result = g.emit("Add", result, v, out_shape=result.shape)
    return result


def fit(g: Graph, dx: Value, x: Value) -> Value:
    """Sum dx over the axes along which x was broadcast, and give it x's dtype: the one place that knows of broadcasting."""
    if x.is_float and dx.dtype != x.dtype:
        dx = g.Cast(dx, to=_elem(x))
    if dx.shape is None or x.shape is None:
        return _reduce_at_run_time(g, dx, x) if x.is_float else dx
    if dx.shape == x.shape:
        return dx
    lead = len(dx.shape) - len(x.shape)
    if lead > 0:
        dx = g.ReduceSum(dx, list(range(lead)), keepdims=0)
    assert dx.shape is not None
    pairs = list(zip(dx.shape, x.shape, strict=True))
    axes = [i for i, (d, s) in enumerate(pairs) if s == 1 and d != 1]
    if axes:
        dx = g.ReduceSum(dx, axes, keepdims=1)
    if any(isinstance(s, str) and d not in (s, 1, None) for d, s in pairs):
        dx = _reduce_at_run_time(g, dx, x)
    return dx


def _reduce_at_run_time(g: Graph, dx: Value, x: Value) -> Value:
    """As `fit`, where only the run can tell which of two symbolic axes is 1, or how many axes there are."""
    one, have, want = g.const(1, "int64"), g.shape(dx), g.shape(x)
    if dx.shape is None or x.shape is None:
        want = g.Concat(g.ConstantOfShape(g.Sub(g.Shape(have), g.Shape(want)), value=np.ones(1, np.int64)), want, axis=0)
    broadcast = g.And(g.Equal(want, one), g.Not(g.Equal(have, one)))
    dx = g.emit(
        "ReduceSum",
        dx,
        g.Reshape(g.NonZero(broadcast), [-1]),
        keepdims=1,
        noop_with_empty_axes=1,
        out_shape=x.shape if dx.shape is not None else None,
    )
    return dx if want is g.shape(x) else g.Reshape(dx, g.shape(x))


def _elem(x: Value) -> Any:
    from onnx import helper

    assert x.dtype is not None
    return helper.np_dtype_to_tensor_dtype(x.dtype)
