"""LSTM, GRU and RNN: their nodes are gone from the graph, but the layers that they were written out into carry their names."""

from __future__ import annotations

from collections.abc import Iterator

from ..layers import Layer
from .block import Block, Miss, View, block


def recurrent(view: View) -> Iterator[Block | Miss]:
    """The layers named <node>/..., for each recurrent node of the file that was written out."""
    for name, (op, facts) in view.written_out.items():
        layers: list[Layer] = [layer for layer in view.graph.layers if layer.name.startswith(f"{name}/")]
        if layers:
            words = {word for layer in layers for word in layer.name[len(name) :].split("/")}
            steps = sum(word[0] == "t" and word[1:].isdigit() for word in words if word)
            yield block(op, layers, layers[0].x, layers[-1].y, {**facts, "steps": steps or None}, origin=f"{op} written out")
