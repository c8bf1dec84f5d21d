"""Transposed convolutions that pad both ends alike: ONNX Runtime's CUDA provider leaves any other to the CPU.

A strided convolution seldom reads its input to the end, so its backward pads the beginning more. Equal: with p at both ends
and the difference as `output_padding`, the same positions are written and the same ones are cut off.
"""

from __future__ import annotations

from ..graph import Node, Value
from ..infer import Shape
from .walk import Pass


def paddings(p: Pass, node: Node) -> Value | None:
    """Pads (b, e) become (b, b) with b - e more of output_padding; (m, m), m = min(b, e), and a Slice where that is no less
    than the stride (or negative: cuDNN reads the difference as the backward of a convolution, whose remainder it is)."""
    a = node.attrs
    pads = list(a.get("pads") or ())
    rank = len(pads) // 2
    begin, end = pads[:rank], pads[rank:]
    if node.op != "ConvTranspose" or begin == end or a.get("auto_pad", "NOTSET") != "NOTSET" or a.get("output_shape"):
        return None
    strides, extra = a.get("strides") or [1] * rank, a.get("output_padding") or [0] * rank
    over = [x + b - e for x, b, e in zip(extra, begin, end, strict=True)]
    x, *weights = [v if v is None else p.now(v) for v in node.inputs]
    if all(0 <= o < s for o, s in zip(over, strides, strict=True)):
        return _transposed(p, node, x, weights, begin, over, node.outputs[0].shape)
    least = [min(b, e) for b, e in zip(begin, end, strict=True)]
    y = _transposed(p, node, x, weights, least, extra, None)
    cut = [(i, b - m, e - m) for i, (b, e, m) in enumerate(zip(begin, end, least, strict=True)) if b != e]
    starts, ends = [c[1] for c in cut], [-c[2] if c[2] else 2**31 - 1 for c in cut]
    return p.g.emit("Slice", y, starts, ends, [2 + c[0] for c in cut], out_shape=node.outputs[0].shape)


def _transposed(
    p: Pass, node: Node, x: Value | None, weights: list[Value | None], pad: list[int], extra: list[int], shape: Shape | None
) -> Value:
    attrs = {**node.attrs, "pads": pad * 2, "output_padding": extra if any(extra) else None}
    made: Value = p.g.emit("ConvTranspose", x, *weights, out_shape=shape, **attrs)
    return made
