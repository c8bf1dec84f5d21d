"""One pass of rewriting over a finished graph: what a rewrite may look at, and how its replacement is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..graph import RANDOM, Graph, Node, Value
from ..simplify import replay

Rewrite = Callable[["Pass", Node], Value | None]


class Pass:
    """The graph as it was (`made`, `users`, `static` look there) and the one being written (`g`; `now` leads over)."""

    def __init__(self, old: Graph) -> None:
        self.old = old
        self.g: Graph = old
        self.stands: dict[Value, Value] = {}

    def now(self, v: Value) -> Value:
        """What stands for v in the new graph."""
        return self.stands.get(v, v)

    def made(self, v: Value | None, *ops: str) -> Node | None:
        """The node that makes v, if its operator is one of `ops`."""
        node = self.old._producer.get(v) if v is not None else None
        return node if node is not None and node.op in ops and not node.domain else None

    def first(self, node: Node) -> Value:
        x = node.inputs[0]
        assert x is not None
        return x

    @cached_property
    def users(self) -> dict[Value, list[Node]]:
        """Who reads a value."""
        found: dict[Value, list[Node]] = {}
        for node in self.old.nodes:
            for v in dict.fromkeys(node.uses):
                found.setdefault(v, []).append(node)
        return found

    @cached_property
    def shown(self) -> set[Value]:
        """The graph's outputs."""
        return {v for _, v in self.old.outputs}

    @cached_property
    def static(self) -> set[Value]:
        """Values made from constants alone: ONNX Runtime computes them when it opens the model."""
        found: set[Value] = set()
        for node in self.old.nodes:
            if node.op not in RANDOM and not node.subgraphs and all(v.is_const or v in found for v in node.uses):
                found.update(node.outputs)
        return found

    def is_static(self, v: Value) -> bool:
        return v.is_const or v in self.static


def rewrite(g: Graph, f: Rewrite) -> Graph:
    """`f(pass, node)` for every node that graphattr wrote: the value in place of its output, or None to keep it."""
    walk = Pass(g)

    def at(new: Graph, node: Node, stands: dict[Value, Value]) -> Sequence[Value] | None:
        if len(node.outputs) != 1 or node.domain or not g.is_ours(node.outputs[0]):
            return None
        walk.g, walk.stands = new, stands
        with new.scope(node.outputs[0].name.rpartition("/")[0]):
            result = f(walk, node)
        return None if result is None else (result,)

    return replay(g, at)


def number(v: Value | None) -> float | None:
    """The value of a constant with one element."""
    if v is None or not v.is_const or v.shape not in ((), (1,)):
        return None
    data = v.data
    return None if data is None else float(data.reshape(-1)[0])


def is_image(v: Value) -> bool:
    """Float32 of shape (N, C, H, W), C known and a multiple of 4: what ONNX Runtime's blocked layout (NCHWc) takes."""
    return (
        v.dtype == np.float32
        and v.shape is not None
        and len(v.shape) == 4
        and isinstance(v.shape[1], int)
        and v.shape[1] % 4 == 0
    )


def per_channel(g: Graph, x: Value, weight: float, bias: float | None = None) -> Value:
    """weight x + bias as a depthwise 1x1 convolution: the same number as Mul and Add, in the blocked layout."""
    c = x.dim(1)
    operands: list[Any] = [np.full((c, 1, 1, 1), weight, np.float32)]
    if bias is not None:
        operands.append(np.full(c, bias, np.float32))
    return g.emit("Conv", x, *operands, group=c, kernel_shape=[1, 1], out_shape=x.shape)
