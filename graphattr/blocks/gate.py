"""Squeeze-and-excite: x times a gate per channel that is computed from the mean of x over all positions."""

from __future__ import annotations

from collections.abc import Iterator

from ..graph import Value
from ..kinds import QUANTISERS
from ..layers import Layer
from ..normalisations import AVERAGES
from .activation import GATES, name_of
from .block import Block, Miss, View, block

MOVES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Dropout", "Expand", *QUANTISERS}


def squeeze_and_excite(view: View) -> Iterator[Block | Miss]:
    """Global mean, linear, activation, linear, sigmoid or HardSigmoid, and the product with what the mean was of."""
    for layer in view.graph.layers:
        if layer.kind != "product" or len(layer.xs) != 2:
            continue
        for gate, other in (layer.xs, layer.xs[::-1]):
            found = _gate(view, layer, gate, other)
            if isinstance(found, Block):
                yield found
                break
            if found is not None:
                yield Miss("squeeze-and-excite", layer.name, found)
                break


def _gate(view: View, product: Layer, gate: Value, x: Value) -> Block | str | None:
    """The block when `gate` is one; why it is none when there is a mean over positions behind it; else None."""
    v, steps, linears, acts = gate, list[Layer](), list[Layer](), list[list[Layer]]()
    run: list[Layer] = []
    while (layer := view.made(v)) is not None and len(layer.xs) == 1 and len(steps) < 24 and layer.kind != "mean":
        if layer.kind == "linear":
            linears.insert(0, layer)
            acts.insert(0, run)
            run = []
        elif layer.kind in ("relu", "smooth", "scale", "shift") and layer.op not in QUANTISERS:
            run.insert(0, layer)
        elif layer.op not in MOVES:
            return None
        steps.insert(0, layer)
        v = layer.x
    if layer is None or layer.kind != "mean" or not linears:
        return None
    pooled = _pooled(view, layer)
    if pooled is None or not acts[-1]:
        return None
    name = name_of(acts[-1], view)
    if name not in GATES:
        return f"the gate is not made by a sigmoid or HardSigmoid, but by {name or '+'.join(s.op for s in acts[-1])}"
    if len(linears) != 2:
        return f"{len(linears)} linear layer(s) between mean and gate, not 2"
    if not acts[0]:
        return "there is no activation between the two linear layers"
    if run:
        return f"the mean passes {'+'.join(s.op for s in run)} in front of the first linear layer"
    if view.back(layer.x, (), ())[0] is not view.back(x, (), ())[0]:
        return f"the mean is of {layer.x.name!r}, but the gate multiplies {x.name!r}"
    sizes, whole = view.probe.shape(gate), view.probe.shape(x)
    want = None if whole is None else tuple(1 if i in pooled else d for i, d in enumerate(whole))
    if sizes != want:
        return f"the gate has the shape {sizes}, not {want}: one number per channel"
    channel = next(i for i in range(1, len(want or ())) if i not in pooled)
    width = (whole or ())[channel]
    hidden = _features(view, linears[0])
    facts = {"channels": width, "hidden": hidden, "gate": name}
    return block("squeeze-and-excite", [layer, *steps, product], x, product.y, facts)


def _features(view: View, layer: Layer) -> int | None:
    """How many features a linear layer makes."""
    shape = view.probe.shape(layer.y)
    return None if shape is None else shape[1] if layer.op == "Conv" else shape[-1]


def _pooled(view: View, layer: Layer) -> tuple[int, ...] | None:
    """The axes of a mean over all positions, that is over all axes but the batch's and one more."""
    node, shape = layer.nodes[0], view.probe.shape(layer.x)
    if shape is None or len(shape) < 3:
        return None
    if node.op == "AveragePool":
        whole = list(node.attrs["kernel_shape"]) == list(shape[2:]) and not any(node.attrs.get("pads") or [])
        return tuple(range(2, len(shape))) if whole else None
    if node.op not in AVERAGES:
        return None
    axes = view.reduced(node)
    return axes if axes is not None and 0 not in axes and len(axes) == len(shape) - 2 else None
