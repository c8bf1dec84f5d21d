"""Loops of as many steps that do not need one another run abreast, as one: what their bodies have in common is computed once.

Several targets of a method of many passes (`attribute`) then share each step's forward pass, and its kernels in the file.
"""

from __future__ import annotations

import dataclasses

from .graph import Graph, Node, Value
from .simplify import with_nodes


def abreast(g: Graph) -> Graph:
    """The graph with those of its Loops that graphattr wrote joined."""
    done: set[Node] = set()
    while (group := _group(g, done)) is not None:
        g = _joined(g, group, done)
    return g


def _steps(g: Graph, node: Node) -> tuple[Value, ...] | None:
    """(trip count, condition) of a Loop of ours that never ends early; None of anything else."""
    if node.op != "Loop" or node.domain or not g.is_ours(node.outputs[0]):
        return None
    trips, go = node.inputs[:2]
    (body,) = node.subgraphs
    never = go is not None and go.is_const and body.outputs[0][1] is body.inputs[1]
    return (trips, go) if never and trips is not None and go is not None else None


def _group(g: Graph, done: set[Node]) -> list[Node] | None:
    """Two or more Loops of the same steps, none behind another."""
    loops = [n for n in g.nodes if n not in done and _steps(g, n) is not None]
    for k, first in enumerate(loops):
        group, behind = [first], set(first.outputs)
        rest = set(loops[k + 1 :])
        for node in g.nodes:
            if any(v in behind for v in node.uses):
                behind.update(node.outputs)
            elif node in rest and _steps(g, node) == _steps(g, first):
                group.append(node)
                behind.update(node.outputs)
        if len(group) > 1:
            return group
    return None


def _joined(g: Graph, group: list[Node], done: set[Node]) -> Graph:
    """The graph with one Loop where the last of the group stands, and what reads any of them behind it."""
    bodies = [n.subgraphs[0] for n in group]
    states = [len(n.inputs) - 2 for n in group]
    body = g.copy_of_body(abreast(_one_body(g, bodies, states)), {})
    parts = list(zip(group, states, strict=True))
    outputs = [v for n, k in parts for v in n.outputs[:k]] + [v for n, k in parts for v in n.outputs[k:]]
    inputs = (*group[0].inputs[:2], *(v for n in group for v in n.inputs[2:]))
    loop = dataclasses.replace(group[-1], inputs=inputs, outputs=tuple(outputs), attrs={**group[-1].attrs, "body": body})
    done.add(loop)
    nodes: list[Node] = []
    late: list[Node] = []
    waiting = {v for n in group[:-1] for v in n.outputs}
    for node in g.nodes:
        if node is group[-1]:
            nodes += [loop, *late]
            waiting, late = set(), []
        elif node in group:
            continue
        elif any(v in waiting for v in node.uses):
            late.append(node)
            waiting.update(node.outputs)
        else:
            nodes.append(node)
    return with_nodes(g, nodes)


def _one_body(g: Graph, bodies: list[Graph], states: list[int]) -> Graph:
    """What the bodies do, in one; equal nodes are written once. States first, then what is collected."""
    new = g.subgraph(bodies[0].name)

    def given(v: Value) -> Value:
        return new.input(new.fresh(v.name), v.dtype, v.shape)

    i, go = (given(v) for v in bodies[0].inputs[:2])
    kept: list[tuple[str, Value]] = []
    collected: list[tuple[str, Value]] = []
    for body, k in zip(bodies, states, strict=True):
        stands = {body.inputs[0]: i, body.inputs[1]: go, **{v: given(v) for v in body.inputs[2:]}}
        for node in body.nodes:
            new.share(node, stands)
        shown = [(new.fresh(name), new._here(v, stands)) for name, v in body.outputs[1:]]
        kept, collected = kept + shown[:k], collected + shown[k:]
    new.outputs = [(new.fresh("go"), go), *kept, *collected]
    return new
