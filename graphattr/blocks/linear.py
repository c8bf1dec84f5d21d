"""Dense layers, convolutions, and what stands round them for the sake of shapes."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..graph import Value
from ..layers import Layer
from .axes import Axis, through, whole
from .block import Block, Miss, View, block

POOLS = {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
WINDOWS = {*POOLS, "Conv", "ConvTranspose", "BatchNormalization", "Resize"}
CARRIED = {"relu", "smooth", "scale", "shift", "batchnorm", "sum", "product"}
MOST_LAYERS = 64  # looked at around a Transpose


def dense(view: View) -> Iterator[Block | Miss]:
    """x W + b over one axis: Gemm, MatMul, MatMul + Add, an Einsum with a weight; also Reshape + MatMul + Reshape + Add."""
    for layer in view.graph.layers:
        if layer.kind != "linear" or layer.op not in ("Gemm", "MatMul", "Einsum"):
            continue
        why = _no_dense(layer)
        if why is not None:
            yield Miss("dense layer", layer.name, why)
            continue
        front, y, behind = _flattened(view, layer)
        end, more = view.ahead(y, (), {"Reshape"})
        bias = view.sole(end) if layer.b is None else None
        if bias is not None and _adds_bias(view, layer, bias, [*behind, *more]):
            behind, y = [*behind, *more, bias], bias.y
        layers = [*front, layer, *behind]
        folded = view.folded.get(layer.y.name)
        named = f"dense ({folded})" if folded else "dense"
        left = layer.op == "MatMul" and layer.nodes[0].inputs[0] is layer.w
        biased = layer.b is not None or any(step.kind == "shift" for step in behind)
        facts = {"over": "the axis before the last" if left else None, "bias": None if biased else False}
        spelled = "+".join([*(n.op for x in layers for n in x.nodes)])
        yield block(named, layers, layers[0].x, y, facts, origin=spelled)


def _no_dense(layer: Layer) -> str | None:
    """Why an Einsum is no dense layer: an axis of the weight that stays, and that x has, too, is a weight per element."""
    node = layer.nodes[0]
    if node.op != "Einsum":
        return None
    terms, _, out = str(node.attrs["equation"]).replace(" ", "").partition("->")
    first, _, second = terms.partition(",")
    shared = [c for c in out if c in first and c in second and c.isalpha()]
    return f"its equation {node.attrs['equation']!r} has a weight of its own for each {', '.join(shared)}" if shared else None


def _flattened(view: View, layer: Layer) -> tuple[list[Layer], Value, list[Layer]]:
    """Reshapes in front and behind that only put the leading axes together, and take them apart again."""
    before, after = view.made(layer.x), view.sole(layer.y)
    if before is None or after is None or before.op != "Reshape" or after.op != "Reshape":
        return [], layer.y, []
    given, taken = view.probe.shape(before.x), view.probe.shape(after.y)
    inner = view.probe.shape(layer.x)
    if given is None or taken is None or inner is None or given[:-1] != taken[:-1] or inner[-1] != given[-1]:
        return [], layer.y, []
    return [before], after.y, [after]


def _adds_bias(view: View, layer: Layer, bias: Layer, path: list[Layer]) -> bool:
    """Whether a shift behind Reshapes adds one number per output feature."""
    shape, w = view.probe.shape(layer.y), next((v for v in bias.nodes[0].inputs if v is not bias.x), None)
    if bias.kind != "shift" or bias.op != "Add" or shape is None or w is None or w.shape is None or layer.nodes[0].op == "Einsum":
        return False
    axes: list[Axis] | None = [whole("feature" if i == len(shape) - 1 else f"{i}", s) for i, s in enumerate(shape)]
    for step in path:
        axes = None if axes is None else through(step.nodes[0], step.x, step.y, axes, view.probe)
    if axes is None or len(w.shape) > len(axes):
        return False
    own = [d for axis, size in zip(axes[len(axes) - len(w.shape) :], w.shape, strict=True) if size != 1 for d in axis]
    return all(d.origin == ("feature",) for d in own) and math.prod(d.size for d in own) == shape[-1]


def convolutions(view: View) -> Iterator[Block | Miss]:
    """Conv and ConvTranspose with their geometry, and what was folded into them."""
    for layer in view.graph.layers:
        if layer.kind != "linear" or layer.op not in ("Conv", "ConvTranspose") or layer.w is None or layer.w.shape is None:
            continue
        attrs, kernel, channels = layer.nodes[0].attrs, layer.w.shape[2:], layer.y.shape
        groups, wide = attrs.get("group", 1), channels[1] if channels is not None and len(channels) > 1 else None
        alone = groups > 1 and layer.w.shape[0] % groups == 0 and layer.w.shape[1] == 1 and layer.op == "Conv"
        name = "transposed convolution" if layer.op == "ConvTranspose" else "depthwise convolution" if alone else "convolution"
        folded = view.folded.get(layer.y.name)
        strides, dilations = attrs.get("strides") or [1], attrs.get("dilations") or [1]
        facts = {
            "kernel": times(kernel),
            "stride": times(strides) if max(strides) > 1 else None,
            "dilation": times(dilations) if max(dilations) > 1 else None,
            "groups": groups if groups > 1 and not alone and wide != groups else None,
        }
        yield block(f"{name} ({folded})" if folded else name, [layer], layer.x, layer.y, facts)


def times(sizes: object) -> str:
    """3x3."""
    return "x".join(str(s) for s in sizes) if isinstance(sizes, (tuple, list)) else str(sizes)


def patches(view: View) -> Iterator[Block | Miss]:
    """A convolution of the input whose windows touch but do not overlap, as a sequence of tokens with the channels last."""
    for layer in view.graph.layers:
        if layer.op != "Conv" or layer.kind != "linear" or layer.w is None or not view.graph.at_input(layer):
            continue
        attrs, kernel = layer.nodes[0].attrs, [d for d in (layer.w.shape or ())[2:] if isinstance(d, int)]
        end, path = view.ahead(layer.y, (), {"Reshape", "Flatten", "Transpose"})
        tokens = _tokens(view, layer, path)
        touching = list(attrs.get("strides") or [1] * len(kernel)) == kernel and not any(attrs.get("pads") or [])
        plain = max(attrs.get("dilations") or [1]) == 1 and attrs.get("group", 1) == 1 and max(kernel, default=1) > 1
        if touching and plain and tokens:
            wide = layer.y.shape[1] if layer.y.shape is not None else None
            more, facts = _positions(view, end)
            layers = [layer, *path, *more]
            yield block("patch embedding", layers, layer.x, layers[-1].y, {"patch": times(kernel), "width": wide, **facts})
        elif tokens and plain:
            stride, pads = times(attrs.get("strides") or [1]), times(attrs.get("pads") or [0])
            why = f"its windows overlap or are padded: kernel {times(kernel)}, stride {stride}, pads {pads}"
            yield Miss("patch embedding", layer.name, why)
        elif touching and plain:
            yield Miss("patch embedding", layer.name, "its result is not made a sequence of tokens (positions, channels)")


def _positions(view: View, tokens: Value) -> tuple[list[Layer], dict[str, bool]]:
    """The class token put in front of the sequence, and the position embedding that is added to it."""
    layers, facts = list[Layer](), dict[str, bool]()
    join = view.sole(tokens)
    if join is not None and join.op == "Concat" and len(join.xs) == 1 and join.nodes[0].attrs["axis"] in (1, -2):
        layers, tokens, facts = [join], join.y, {"class token": True}
    added, size = view.sole(tokens), view.probe.shape(tokens)
    if added is not None and added.kind == "shift" and added.op == "Add" and size is not None:
        other = next((v for v in added.nodes[0].inputs if v is not tokens), None)
        own = view.probe.shape(other) if other is not None else None
        if own is not None and own[-2:] == size[-2:]:
            layers, facts = [*layers, added], {**facts, "positions": True}
    return layers, facts


def _tokens(view: View, layer: Layer, path: list[Layer]) -> bool:
    """Whether the path makes (N, positions, channels) of (N, channels, height, width)."""
    shape = view.probe.shape(layer.y)
    axes: list[Axis] | None = None if shape is None else [whole("nchwd"[i], s) for i, s in enumerate(shape[:5])]
    for step in path:
        axes = None if axes is None else through(step.nodes[0], step.x, step.y, axes, view.probe)
    if axes is None or len(axes) != 3 or shape is None or not path:
        return False
    places = tuple(d for i, s in enumerate(shape[2:5], 2) for d in whole("nchwd"[i], s))
    return axes[2] == whole("c", shape[1]) and axes[1] == places


def channels_last(view: View) -> Iterator[Block | Miss]:
    """The Transposes between channels last (N, H, W, C) and the channels first that convolutions want."""
    for layer in view.graph.layers:
        perm = list(layer.nodes[0].attrs.get("perm") or []) if layer.op == "Transpose" else []
        rank = len(perm)
        if rank < 3:
            continue
        if perm == [0, rank - 1, *range(1, rank - 1)] and _windowed(view, layer, ahead=True):
            yield block("channels last to first", [layer], layer.x, layer.y)
        elif perm == [0, *range(2, rank), 1] and _windowed(view, layer, ahead=False):
            yield block("channels first to last", [layer], layer.x, layer.y)


def _windowed(view: View, layer: Layer, ahead: bool) -> bool:
    """Whether the Transpose serves a convolution or pooling, past layers that do not ask where the channels are."""
    seen, stack = {layer.name}, [layer]
    while stack and len(seen) < MOST_LAYERS:
        here = stack.pop(0)
        for name in view.graph.topology.successors(here.name) if ahead else view.graph.topology.predecessors(here.name):
            other = view.graph[name]
            if other.op in WINDOWS:
                return True
            if name not in seen and other.kind in CARRIED:
                seen.add(name)
                stack.append(other)
    return False
