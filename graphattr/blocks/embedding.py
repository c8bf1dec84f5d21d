"""Token embeddings: rows of a constant table, fetched by the numbers of an integer input."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..graph import Node, Value
from .block import Block, Miss, View


def embeddings(view: View) -> Iterator[Block | Miss]:
    """Gather of rows of a constant float matrix; of positions where the numbers do not come from an input."""
    g = view.graph.graph
    read = set(g.inputs)
    for node in g.nodes:
        if node.op != "Shape" and any(v in read for v in node.uses):
            read.update(node.outputs)
    for node in g.nodes:
        table, indices = (*node.inputs, None, None)[:2]
        if node.op != "Gather" or node.domain or table is None or indices is None or not table.is_float or indices.is_const:
            continue
        if not table.is_const:
            continue
        why = _no_table(node, table)
        if why is not None:
            yield Miss("token embedding", node.name, why)
            continue
        assert table.shape is not None
        own = [layer.name for layer in view.graph.layers if node in layer.nodes]
        name = "token embedding" if indices in read else _of_sizes(view, indices)
        facts = {"rows": table.shape[0], "width": table.shape[1]}
        yield Block(name, tuple(own), indices.name, node.outputs[0].name, facts, {}, node.op)


def _of_sizes(view: View, indices: Value) -> str:
    """What is fetched by numbers that do not depend on the input's elements: 0, 1, 2 ... are positions."""
    held = view.probe.array(indices)
    counted = held is not None and held.ndim > 0 and bool((held == np.arange(held.shape[-1])).all())
    return "position embedding" if counted else "embedding of constants"


def _no_table(node: Node, table: Value) -> str | None:
    if table.shape is None or len(table.shape) != 2:
        return f"its table has {len(table.shape or ())} axes, not 2 (tokens, features)"
    axis = node.attrs.get("axis", 0)
    return None if axis in (0, -2) else f"it fetches columns (axis {axis}) of its table, not rows"
