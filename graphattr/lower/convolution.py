"""ConvTranspose of stride 1 -> Conv with the kernel turned by 180 degrees and its channel axes exchanged.

Equal: both are the sum over k of dy[o + p - d k] w[k]. ONNX Runtime has blocked kernels (NCHWc) for Conv only.
The kernel is turned inside the graph, so the file holds one copy of the weights; ONNX Runtime folds the turning
when it opens the model.

Tried and left: stride 2 as four convolutions and an interleaving copy (3x3, 512 channels, 7x7: 1.95 ms, else 2.4; but
128 channels, 28x28: 2.2, else 2.3), as one convolution and DepthToSpace (3.0 to 3.3), 1x1 as Resize times a comb
(2.2, else 2.4; 3.2, else 3.3); the stem's 7x7 as one convolution and DepthToSpace (4.0, else 3.6).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..graph import Graph, Node, Value
from .walk import Pass

FEW = 16  # channels of the result below which a blocked convolution would mostly compute padding


def turn_transposed(p: Pass, node: Node) -> Value | None:
    """A backward convolution then takes 1.0 times its forward one, before 1.2 to 1.5 (depthwise: before 4)."""
    if node.op != "ConvTranspose" or len(node.inputs) > 2:
        return None
    dy, w = node.inputs
    assert dy is not None
    assert w is not None
    pads = turned_pads(node, w)
    if pads is None or not p.is_static(w) or w.dtype != np.float32:
        return None
    group, ins, outs = int(node.attrs.get("group", 1)), w.dim(0), w.dim(1)
    depthwise = group == ins and outs == 1
    if not depthwise and (group > 1 or outs < FEW):
        return None
    made: Value = p.g.emit(
        "Conv",
        p.now(dy),
        turned(p.g, p.now(w), exchange=group == 1),
        strides=[1] * (len(pads) // 2),
        pads=pads,
        dilations=node.attrs.get("dilations"),
        group=group,
        out_shape=node.outputs[0].shape,
    )
    return made


def turned_pads(node: Node, w: Value) -> list[int] | None:
    """Pads of the equal Conv, or None when there is none."""
    a, shape = node.attrs, w.shape or ()
    if not shape or not all(isinstance(d, int) for d in shape):
        return None
    rank = len(shape) - 2
    if any(s != 1 for s in a.get("strides") or ()) or a.get("auto_pad", "NOTSET") != "NOTSET" or a.get("output_shape"):
        return None
    pads, extra = a.get("pads") or [0] * (2 * rank), a.get("output_padding") or [0] * rank
    reach = [d * (w.dim(2 + i) - 1) for i, d in enumerate(a.get("dilations") or [1] * rank)]
    found = [r - b for r, b in zip(reach, pads[:rank], strict=True)] + [
        r - e + x for r, e, x in zip(reach, pads[rank:], extra, strict=True)
    ]
    return found if min(found) >= 0 else None


def turned(g: Graph, w: Value, exchange: bool = True) -> Value:
    """The kernel with its first two axes exchanged and each spatial axis reversed."""
    rank = w.rank
    if exchange:
        w = g.Transpose(w, perm=[1, 0, *range(2, rank)])
    return reversed_axes(g, w, [i for i in range(2, rank) if w.dim(i) > 1])


def reversed_axes(g: Graph, v: Value, axes: Sequence[int]) -> Value:
    if not axes:
        return v
    n = len(axes)
    return g.emit("Slice", v, [-1] * n, [-(2**31)] * n, list(axes), [-1] * n, out_shape=v.shape)
