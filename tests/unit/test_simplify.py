"""Pruning, replaying and sharing keep what the outputs say."""

from __future__ import annotations

import dataclasses

import numpy as np

from graphattr.graph import Graph
from graphattr.simplify import prune, replay, simplify


def pooled():
    g = Graph(17)
    x = g.input("x", np.float32, ("N", 2, 4, 4))
    y = g.MaxPool(x, kernel_shape=[2, 2], strides=[2, 2])
    _, where = g.MaxPool(x, kernel_shape=[2, 2], strides=[2, 2], n_outputs=2)
    g.outputs += [("y", y), ("where", where)]
    return g


def test_prune_keeps_what_is_read_and_leaves_the_tape_alone():
    g = Graph(17)
    x = g.input("x", np.float32, ("N", 3))
    kept, unread = g.Relu(x), g.Exp(x)
    g.outputs.append(("y", kept))
    assert [n.op for n in prune(g).nodes] == ["Relu"]
    assert [n.outputs[0] for n in g.nodes] == [kept, unread]


def test_pools_are_shared():
    slim = simplify(pooled())
    assert [(n.op, len(n.outputs)) for n in slim.nodes] == [("MaxPool", 2)]
    assert {v for _, v in slim.outputs} == set(slim.nodes[0].outputs)


def test_replay_replaces_values_and_nodes():
    g = Graph(17)
    x = g.input("x", np.float32, ("N", 3))
    g.outputs.append(("y", g.Neg(g.Exp(g.Relu(x)))))

    def rewrite(new, node, stands):
        if node.op == "Relu":
            return [new.Abs(x)]
        return dataclasses.replace(node, op="Log", inputs=(stands[node.inputs[0]],)) if node.op == "Exp" else None

    made = replay(g, rewrite)
    assert [n.op for n in made.nodes] == ["Abs", "Log", "Neg"]
    assert [n.op for n in g.nodes] == ["Relu", "Exp", "Neg"]
    assert made.nodes[1].inputs[0] is made.nodes[0].outputs[0]


def test_what_a_body_reads_is_not_replaced():
    g = Graph(17)
    x = g.input("x", np.float32, ("N", 3))
    y = g.Relu(x)
    body = g.subgraph("then")
    body.outputs.append(("t", body.Neg(y)))
    z = g.If(g.input("c", np.bool_, ()), then_branch=body, else_branch=body, out_shape=("N", 3))
    g.outputs.append(("z", z))
    made = replay(g, lambda new, node, stands: [new.Abs(x)] if node.op == "Relu" else None)
    assert [n.op for n in made.nodes] == ["Relu", "If"]
