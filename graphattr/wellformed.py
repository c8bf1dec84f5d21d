"""Is this ModelProto a model at all? Names, order and versions, checked without `onnx.checker`.

The checker refuses models above 2 GB and much that ONNX Runtime accepts (unsorted nodes, doubled opset imports).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Set

from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from .errors import ModelError, did_you_mean

MAX_OPSET = 26
MAX_IR = 13
"""What ONNX Runtime 1.31 loads. The IR version only caps what we write: a newer one in a source says nothing by itself."""


def check_model(model: ModelProto) -> None:
    """ModelError unless there are nodes, imports and outputs, each tensor is written once, and the graph has no cycle."""
    graph = model.graph
    if not graph.node:
        raise ModelError("the model has no graph with nodes; is it an ONNX model, and was it exported completely?")
    if not model.opset_import:
        raise ModelError("the model has no opset import, so its operators have no meaning; export it again")
    _check_opsets(model)
    if not graph.output:
        raise ModelError(f"graph {graph.name!r} has no output: nothing to explain; export the model with its outputs")
    _check_texts(model)
    _check_graph(graph, frozenset(), "graph")
    for f in model.functions:
        _check_scope(list(f.input), list(f.node), list(f.output), frozenset(), f"function {f.domain}:{f.name}")


def default_opset(model: ModelProto) -> int | None:
    """The version of the default domain, or None; the last import counts, as in ONNX Runtime."""
    return next((o.version for o in reversed(model.opset_import) if o.domain in ("", "ai.onnx")), None)


def tensors_of(graph: GraphProto) -> Iterator[TensorProto]:
    """The initialisers of a graph and of all bodies in it."""
    yield from graph.initializer
    for s in graph.sparse_initializer:
        yield from (s.values, s.indices)
    for node in graph.node:
        for body in bodies_of(node):
            yield from tensors_of(body)


def attributes_of(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """(node, tensor) for the tensors that nodes hold as attributes, bodies included."""
    for i, node in enumerate(graph.node):
        for a in node.attribute:
            yield from ((label(node, i), t) for t in ([a.t] if a.HasField("t") else a.tensors))
        for body in bodies_of(node):
            yield from attributes_of(body)


def bodies_of(node: NodeProto) -> list[GraphProto]:
    """The graphs held by a node's attributes."""
    return [g for a in node.attribute for g in ([a.g] if a.HasField("g") else list(a.graphs))]


def label(node: NodeProto, index: int) -> str:
    return f"node {node.name!r} ({node.op_type})" if node.name else f"node {index} ({node.op_type})"


def _check_opsets(model: ModelProto) -> None:
    version = default_opset(model)
    if version is not None and version > MAX_OPSET:
        raise ModelError(f"the model is written in opset {version}, but ONNX Runtime runs at most opset {MAX_OPSET}; "
                         f"export it again with opset_version={MAX_OPSET} or lower")
    bad = [o for o in model.opset_import if o.version < 1 or not isinstance(o.domain, str)]
    if bad:
        raise ModelError(f"opset import {bad[0].domain!r} has version {bad[0].version}; export the model again")


def _check_texts(model: ModelProto) -> None:
    """ModelError where a text that we copy or print is not UTF-8 (protobuf then gives bytes)."""
    graph = model.graph
    texts = {"the producer": [model.producer_name, model.producer_version], "the model's domain": [model.domain],
             "the doc string": [model.doc_string, graph.doc_string], "the graph's name": [graph.name],
             "the metadata": [t for p in [*model.metadata_props, *graph.metadata_props] for t in (p.key, p.value)],
             "an axis of an input or output": [d.dim_param for v in [*graph.input, *graph.output, *graph.value_info]
                                               for d in v.type.tensor_type.shape.dim],
             "a function's name": [t for f in model.functions for t in (f.name, f.domain)]}
    for what, held in texts.items():
        if not all(isinstance(t, str) for t in held):
            raise ModelError(f"{what} is not UTF-8 text; the file is damaged: export or copy it again")


def _check_graph(graph: GraphProto, outer: Set[str], where: str) -> None:
    given = [v.name for v in graph.input]
    _once(given, f"{where}: input")
    weights = [t.name for t in graph.initializer] + [s.values.name for s in graph.sparse_initializer]
    _once(weights, f"{where}: initialiser")
    both = list(dict.fromkeys([*given, *weights]))       # an initialiser may be listed as an input too: IR 3 demands it
    _check_scope(both, list(graph.node), [v.name for v in graph.output], outer, where)


def _check_scope(given: list[str], nodes: list[NodeProto], results: list[str], outer: Set[str], where: str) -> None:
    writer = _writers(given, nodes, where)
    known = outer | set(given) | set(writer)
    for i, n in enumerate(nodes):
        for k, name in enumerate(n.input):
            if name not in known and name != "":
                raise ModelError(f"{where}: {label(n, i)} reads {name!r} as input {k}, which nothing defines"
                                 f"{did_you_mean(name, map(str, known))}")
        for body in bodies_of(n):
            _check_graph(body, known, f"{where}, body {body.name!r} of {label(n, i)}")
    for name in results:
        if name not in known or name == "":
            raise ModelError(f"{where}: output {name!r} is written by no node{did_you_mean(name, map(str, known))}")
    _once(results, f"{where}: output")
    _check_acyclic(nodes, writer, where)


def _once(names: Iterable[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str):
            raise ModelError(f"{what} {name!r}: the name is not UTF-8 text; the file is damaged")
        if name == "":
            raise ModelError(f"{what} without a name; export the model again")
        if name in seen:
            raise ModelError(f"{what} {name!r} appears twice; names must be unique: export the model again")
        seen.add(name)


def _writers(given: Iterable[str], nodes: Sequence[NodeProto], where: str) -> dict[str, int]:
    """Tensor -> the node that writes it, each once."""
    taken = set(given)
    writer: dict[str, int] = {}
    for i, n in enumerate(nodes):
        _check_node(n, i, where)
        for name in n.output:
            if name in taken or name in writer:
                first = label(nodes[writer[name]], writer[name]) if name in writer else "an input or initialiser of that name"
                raise ModelError(f"{where}: {name!r} is written by {label(n, i)} and already by {first}; "
                                 "each tensor is written once: export the model again")
            if name != "":
                writer[name] = i
    return writer


def _check_node(node: NodeProto, index: int, where: str) -> None:
    if not node.op_type:
        raise ModelError(f"{where}: node {index} has no operator; the file is damaged")
    texts = [node.op_type, node.name, node.domain, *node.input, *node.output, *(a.name for a in node.attribute)]
    if not all(isinstance(t, str) for t in texts):
        raise ModelError(f"{where}: {label(node, index)} has a name that is not UTF-8 text; the file is damaged")


def reads(node: NodeProto) -> set[str]:
    """Every tensor a node depends on: its inputs and what its bodies take from outside."""
    names = {n for n in node.input if n}
    for body in bodies_of(node):
        inside = {v.name for v in body.input} | {t.name for t in body.initializer} | {o for n in body.node for o in n.output}
        used = {v.name for v in body.output}.union(*(reads(n) for n in body.node))
        names |= used - inside
    return names


def _check_acyclic(nodes: Sequence[NodeProto], writer: dict[str, int], where: str) -> None:
    before = [{writer[r] for r in reads(n) if r in writer} for n in nodes]
    after: list[list[int]] = [[] for _ in nodes]
    for i, needs in enumerate(before):
        for j in needs:
            after[j].append(i)
    left = [len(needs) for needs in before]
    ready = [i for i, count in enumerate(left) if not count]
    while ready:
        for j in after[ready.pop()]:
            left[j] -= 1
            if not left[j]:
                ready.append(j)
    stuck = {i for i, count in enumerate(left) if count}
    if stuck:
        around = " -> ".join(label(nodes[i], i) for i in _cycle(before, stuck))
        raise ModelError(f"{where} has a cycle: {around}; an ONNX graph has none, so the file was written wrongly")


def _cycle(before: list[set[int]], stuck: set[int]) -> list[int]:
    path, at = [], min(stuck)
    while at not in path:
        path.append(at)
        at = min(before[at] & stuck)
    return [*path[path.index(at):], at][::-1]
