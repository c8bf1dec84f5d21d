"""Drop what no output needs, and let one MaxPool serve both its value and its switches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

from .graph import Graph, Node, Value, needed
from .vjp.control import without_twins


def prune(g: Graph) -> Graph:
    """The same graph with only the nodes that its outputs read."""
    return with_nodes(g, needed(g.nodes, [v for _, v in g.outputs]))


def with_nodes(g: Graph, nodes: Sequence[Node], outputs: Iterable[tuple[str, Value]] | None = None) -> Graph:
    """A graph with these nodes and g's inputs, outputs and names."""
    new = dataclasses.replace(
        g, nodes=list(nodes), outputs=list(g.outputs if outputs is None else outputs), inputs=list(g.inputs)
    )
    new._names, new._counter, new._source_names, new.stacked = g._names, g._counter, g._source_names, g.stacked
    new._producer = {v: n for n in nodes for v in n.outputs}
    return new


def replay(g: Graph, rewrite: Callable[[Graph, Node, dict[Value, Value]], Sequence[Value] | Node | None]) -> Graph:
    """Walk the nodes in order and write a new graph. What a subgraph reads is kept.

    `rewrite(new, node, stands)` gives values that stand for the node's outputs, a node in its place, or None to keep
    it; `stands` maps what was replaced so far.
    """
    new = with_nodes(g, [])
    stands: dict[Value, Value] = {}
    held = {v for n in g.nodes for sub in n.subgraphs for v in sub.captured()}
    for node in g.nodes:
        result = None if any(v in held for v in node.outputs) else rewrite(new, node, stands)
        if result is None:
            result = moved(node, stands)
        if isinstance(result, Node):
            new.nodes.append(result)
            new._producer.update(dict.fromkeys(result.outputs, result))
            stands.update((a, b) for a, b in zip(node.outputs, result.outputs, strict=False) if a is not b)
        else:
            stands.update(zip(node.outputs, result, strict=True))
    new.outputs = [(name, stands.get(v, v)) for name, v in g.outputs]
    return new


def moved(node: Node, stands: Mapping[Value, Value]) -> Node:
    """The node reading what stands for its inputs now."""
    inputs = tuple(stands.get(v, v) if v is not None else None for v in node.inputs)
    return node if inputs == node.inputs else dataclasses.replace(node, inputs=inputs)


def share_pools(g: Graph) -> Graph:
    """A MaxPool whose switches are wanted too is computed once, where it stands first."""
    with_switches = {_key(n): n for n in g.nodes if n.op == "MaxPool" and len(n.outputs) == 2}
    done: dict[object, tuple[Value, ...]] = {}

    def rewrite(new: Graph, node: Node, stands: dict[Value, Value]) -> Sequence[Value] | Node | None:
        both = with_switches.get(_key(node)) if node.op == "MaxPool" else None
        if both is None:
            return None
        if _key(node) in done:
            return done[_key(node)][: len(node.outputs)]
        done[_key(node)] = (node.outputs[0], both.outputs[1])
        return dataclasses.replace(moved(node, stands), outputs=done[_key(node)])

    return replay(g, rewrite) if with_switches else g


def _key(n: Node) -> object:
    return n.op, n.inputs, tuple(sorted((k, tuple(v) if isinstance(v, list) else v) for k, v in n.attrs.items()))


def share_loops(g: Graph) -> Graph:
    """A Loop or Scan that was written once more to show its states takes the first one's place."""
    nodes = without_twins(g, g.nodes)
    return g if nodes == g.nodes else with_nodes(g, nodes)


def simplify(g: Graph) -> Graph:
    """All of the above."""
    return prune(share_pools(share_loops(prune(g))))
