"""Layers that together have a name: attention, LayerNorm, GELU, squeeze-and-excite, residual joins ...

A view only: layers keep their kinds, and rules never see a block. A recogniser claims a block where its mathematics is right,
and says why not where it nearly is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..canonical import Canonical
from ..layers import LayerGraph
from .activation import activations
from .attention import attentions
from .block import Block, Miss, View
from .embedding import embeddings
from .gate import squeeze_and_excite
from .join import residuals
from .linear import channels_last, convolutions, dense, patches
from .norm import norms
from .recurrent import recurrent

__all__ = ["Block", "Miss", "labels", "recognise", "summary"]

RECOGNISERS: tuple[Callable[[View], Iterator[Block | Miss]], ...] = (
    embeddings,
    patches,
    attentions,
    norms,
    squeeze_and_excite,
    residuals,
    dense,
    convolutions,
    activations,
    channels_last,
)


SAID = {"hidden_size": "hidden", "direction": "direction"}  # attributes of recurrent nodes


def recognise(graph: LayerGraph, canonical: Canonical | None = None) -> tuple[list[Block], list[Miss]]:
    """Every block of the graph in order of its last layer, and every near miss.

    `canonical` tells which layers hold a folded normalisation, and which recurrent nodes were written out.
    """
    folded, written_out = ({}, {}) if canonical is None else (folded_into(canonical), written_out_nodes(canonical))
    found = [f for g in _graphs(graph) for f in _recognise(View(g, folded, written_out))]
    places = {layer.name: i for i, (_, layer) in enumerate(graph.walk())}
    blocks = [f for f in found if isinstance(f, Block)]
    blocks.sort(key=lambda b: max((places[name] for name in b.layers), default=-1))
    return blocks, [f for f in found if isinstance(f, Miss)]


def _graphs(graph: LayerGraph) -> Iterator[LayerGraph]:
    """The graph and the bodies of its If, Loop and Scan."""
    yield graph
    for layer in graph.layers:
        for body in layer.bodies.values():
            yield from _graphs(body)


def _recognise(view: View) -> Iterator[Block | Miss]:
    """What the recognisers find; of a recurrent node's layers only the whole."""
    whole = [f for f in recurrent(view) if isinstance(f, Block)]
    inside = {name for b in whole for name in b.layers}
    yield from whole
    for recogniser in RECOGNISERS:
        for f in recogniser(view):
            if isinstance(f, Miss) or not f.layers or not inside.issuperset(f.layers):
                yield f
    yield from (Miss("normalisation", at, why) for at, why in view.graph.refused.items())


def written_out_nodes(canonical: Canonical) -> dict[str, tuple[str, dict[str, Any]]]:
    """The recurrent nodes of the file by name: operator, and what is worth saying of them."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for node in canonical.model.graph.node:
        if node.op_type in ("LSTM", "GRU", "RNN") and not node.domain and node.name:
            held = {a.name: a.i if a.name == "hidden_size" else a.s.decode() for a in node.attribute if a.name in SAID}
            found[node.name] = (node.op_type, {SAID[k]: v for k, v in held.items() if v != "forward"})
    return found


def folded_into(canonical: Canonical) -> dict[str, str]:
    """By the name of the tensor that a linear layer makes: what was folded into the layer."""
    made = {name: node.op_type for node in canonical.model.graph.node for name in node.output}
    ops: dict[str, set[str]] = {}
    for name in canonical.removed:
        taken, end = {made.get(name, "")}, name
        while end in canonical.removed:
            end = canonical.removed[end]
            taken.add(made.get(end, ""))
        ops.setdefault(end, set()).update(taken)
    scaled = {"Mul": "scale and shift folded", "Div": "scale and shift folded"}
    said = {**scaled, "BatchNormalization": "BatchNormalization folded"}  # the last one counts
    return {end: text for end, taken in ops.items() for op, text in said.items() if op in taken}


def summary(blocks: Sequence[Block]) -> str:
    """In one line: 12 attention (12 heads), 25 LayerNorm, 12 GELU (erf)."""
    heads: dict[str, set[int]] = {}
    counts: dict[str, int] = {}
    for b in blocks:
        counts[b.name] = counts.get(b.name, 0) + 1
        if "heads" in b.facts:
            heads.setdefault(b.name, set()).add(b.facts["heads"])
    return ", ".join(f"{n} {name}{_heads(heads.get(name, set()))}" for name, n in counts.items())


def _heads(found: set[int]) -> str:
    return f" ({', '.join(map(str, sorted(found)))} heads)" if found else ""


def labels(blocks: Sequence[Block]) -> dict[str, str]:
    """By layer the largest block it belongs to: attention 3; GELU (erf)."""
    counts: dict[str, int] = {}
    best: dict[str, tuple[int, str]] = {}
    for b in blocks:
        counts[b.name] = counts.get(b.name, 0) + 1
        short = b.name.partition(" (")[0] if b.name.endswith(" folded)") else b.name
        text = f"{short} {counts[b.name]}" if len(b.layers) > 1 else short
        best.update({name: (len(b.layers), text) for name in b.layers if best.get(name, (0, ""))[0] < len(b.layers)})
    return {name: text for name, (_, text) in best.items()}
