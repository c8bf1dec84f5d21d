"""Normalisations by name: native operators, those written out, and group normalisation spelled with a Reshape on both sides."""

from __future__ import annotations

from collections.abc import Iterator

from ..layers import Layer
from .axes import through, whole
from .block import Block, Miss, View, block

NAMES = {
    "LayerNormalization": "LayerNorm",
    "RMSNormalization": "RMSNorm",
    "InstanceNormalization": "InstanceNorm",
    "GroupNormalization": "GroupNorm",
    "BatchNormalization": "BatchNorm",
    "MeanVarianceNormalization": "mean and variance normalisation",
    "LRN": "local response normalisation",
    "LpNormalization": "Lp normalisation",
}


def norms(view: View) -> Iterator[Block | Miss]:
    """Every layer of kind norm or batchnorm; a GroupNorm with the Reshapes round it and the scale and shift behind it."""
    for layer in view.graph.layers:
        if layer.kind not in ("norm", "batchnorm"):
            continue
        grouped = _groups(view, layer)
        if isinstance(grouped, Block):
            yield grouped
            continue
        if grouped is not None:
            yield Miss("GroupNorm", layer.name, grouped)
        groups = layer.nodes[0].attrs.get("num_groups") if layer.norm is None else None
        spelled = "+".join(n.op for n in layer.nodes)
        yield block(
            NAMES.get(layer.op, layer.op),
            [layer],
            layer.x,
            layer.y,
            {"groups": groups, "axes": _axes(view, layer)},
            origin=spelled,
        )


def _axes(view: View, layer: Layer) -> str | None:
    """Which axes, where it is not the last."""
    axes, size = layer.norm.moments.axes if layer.norm is not None else (), view.probe.shape(layer.x)
    usual = layer.norm is None or size is None or axes == (len(size) - 1,)
    return None if usual else ", ".join(map(str, axes))


def _groups(view: View, layer: Layer) -> Block | str | None:
    """Reshape that cuts the channels into groups, normalisation of each group, Reshape back (scale, shift per channel)."""
    before, after = view.made(layer.x), view.sole(layer.y)
    if before is None or after is None or before.op != "Reshape":
        return None
    start, end = view.probe.shape(before.x), view.probe.shape(layer.x)
    if start is None or end is None or len(start) < 3 or (len(end) < 3):
        return None
    axes = through(before.nodes[0], before.x, layer.x, [whole(str(i), s) for i, s in enumerate(start)], view.probe)
    normed = _normed(layer, len(end))
    if axes is None or normed is None:
        return None
    kept = [d for i, a in enumerate(axes) if i not in normed for d in a]
    heads = [d for d in kept if d.origin != ("0",)]
    channel = next((i for i in (1, len(start) - 1) if len(heads) == 1 and heads[0].origin == (str(i),)), None)
    batched = [d for d in kept if d.origin == ("0",)] == list(whole("0", start[0]))
    if channel is None or not batched:
        return None
    groups = heads[0].size
    if heads[0].stride * groups != start[channel] or heads[0].stride == 1:
        return None
    if after.op != "Reshape" or view.probe.shape(after.y) != start:
        return f"its {groups} groups are not put back into the shape of {before.x.name!r} by a Reshape"
    layers, y = [before, layer, after], after.y
    while (more := view.sole(y)) is not None and _per_channel(view, more, channel, start) and len(layers) < 5:
        layers, y = [*layers, more], more.y
    return block("GroupNorm", layers, before.x, y, {"groups": groups})


def _normed(layer: Layer, rank: int) -> list[int] | None:
    """The axes that a normalisation takes its mean over."""
    if layer.norm is not None:
        return list(layer.norm.moments.axes) if layer.norm.moments.centred else None
    node = layer.nodes[0]
    if node.op == "InstanceNormalization":
        return list(range(2, rank))
    return list(range(node.attrs.get("axis", -1) % rank, rank)) if node.op == "LayerNormalization" else None


def _per_channel(view: View, layer: Layer, channel: int, shape: tuple[int, ...]) -> bool:
    """Whether a scale or shift has one number per channel."""
    if layer.kind not in ("scale", "shift") or len(layer.nodes) != 1:
        return False
    other = next((v for v in layer.nodes[0].inputs if v is not layer.x), None)
    size = None if other is None else view.probe.shape(other)
    if size is None or len(size) > len(shape):
        return False
    return all(d == 1 or (i == channel and d == shape[i]) for i, d in enumerate(size, len(shape) - len(size)))
