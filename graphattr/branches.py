"""An If whose condition is known while the file is read: only the branch that is taken stays."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .graph import Graph, Value


def decided(condition: Value | None) -> bool | None:
    """The value of a condition, where it follows from constants and static shapes."""
    if condition is None:
        return None
    known = condition.content if not condition.is_const else np.asarray(condition.data).tolist()
    while isinstance(known, (tuple, list)) and len(known) == 1:
        known = known[0]
    return known if isinstance(known, bool) else None


def taken(g: Graph, branch: Graph, outputs: Sequence[str]) -> list[Value]:
    """The branch's nodes as nodes of g, its outputs under the names of the If's."""
    named = {v: name for (_, v), name in zip(branch.outputs, outputs, strict=False) if v.graph is branch and name}
    stands: dict[Value, Value] = {}
    for node in branch.nodes:
        inputs = [None if v is None else stands.get(v, v) for v in node.inputs]
        names = [named.get(v, v.name) for v in node.outputs]
        types = {name: (v.dtype, v.shape) for name, v in zip(names, node.outputs, strict=True)}
        made = g.record(node.op, inputs, names, g.rebound(node.attrs, stands), node.name, node.domain, types)
        stands.update(zip(node.outputs, made, strict=True))
    found = [stands.get(v, v) for _, v in branch.outputs]
    return [v if v.name == o or not o else g.record("Identity", [v], [o], {}, o)[0] for v, o in zip(found, outputs, strict=False)]
