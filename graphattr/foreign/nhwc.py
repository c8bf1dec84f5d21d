"""com.microsoft operators whose channels come last: transposed, the standard operator, transposed back. And GroupNorm."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto

from ..rewrite import Edit, Pen, Stay, attribute
from .fused import ACTIVATIONS, activate, others, trim
from .heads import ints, padded, rank_of, width_of


def channels_first(pen: Pen, x: str, rank: int) -> str:
    return pen("Transpose", x, perm=[0, rank - 1, *range(1, rank - 1)])


def channels_last(pen: Pen, x: str, rank: int, out: str | None = None) -> str:
    return pen("Transpose", x, perm=[0, *range(2, rank), 1], out=out)


def nhwc_conv(pen: Pen, n: NodeProto) -> None:
    """activation(Conv(x, w, b) + z)."""
    x, w, b, z = padded(n.input, 4)
    kind, values = attribute(n, "activation", ""), attribute(n, "activation_params", [])
    if kind not in ("", "Clip", *ACTIVATIONS):
        raise Stay(f"its activation {kind!r} is not known")
    rank = rank_of(pen, x, "input")
    y = pen("Conv", *trim(channels_first(pen, x, rank), w, b), **others(n, "activation", "activation_params"))
    y = channels_last(pen, y, rank, None if z or kind else n.output[0])
    if z:
        y = pen("Add", y, z, out=None if kind else n.output[0])
    activate(pen, kind, list(values), y, n.output[0])


def nhwc_max_pool(pen: Pen, n: NodeProto) -> None:
    """Of levels; those that are activations pass as floats, as other operators on levels do."""
    rank = rank_of(pen, n.input[0], "input")
    channels_last(pen, pen("MaxPool", channels_first(pen, n.input[0], rank), **others(n)), rank, n.output[0])


def group_norm(pen: Pen, n: NodeProto) -> None:
    x, gamma, beta = n.input
    _normalised(pen, n, x, gamma, beta)


def skip_group_norm(pen: Pen, n: NodeProto) -> None:
    """GroupNorm of x + skip + bias, which is the second output; the skip is [N, H, W, C], [N, 1, 1, C] or [N, C]."""
    x, gamma, beta, skip, bias = padded(n.input, 5)
    if not attribute(n, "channels_last", 1):
        raise Stay("its channels do not come last")
    total = padded(n.output, 2)[1]
    if rank_of(pen, skip, "skip") == 2:
        skip = pen("Unsqueeze", skip, ints(pen, [1, 2], "axes"))
    s = pen("Add", x, skip, out=None if bias else total or None)
    _normalised(pen, n, pen("Add", s, bias, out=total or None) if bias else s, gamma, beta)


def _normalised(pen: Pen, n: NodeProto, x: str, gamma: str, beta: str) -> None:
    """Each group of channels as one instance: its deviation in units of the group, times gamma plus beta per channel."""
    last, groups, kind = attribute(n, "channels_last", 1), attribute(n, "groups"), attribute(n, "activation")
    rank, channels = rank_of(pen, n.input[0], "input"), width_of(pen, gamma, 0, "scale")
    if kind not in (0, 1):
        raise Stay(f"its activation {kind} is not known")
    x = channels_first(pen, x, rank) if last else x
    one, zero = (pen("CastLike", pen.const(np.full(groups, v, np.float32), k), x) for v, k in ((1, "ones"), (0, "zeros")))
    y = pen("Reshape", x, ints(pen, [0, groups, -1]))
    y = pen("InstanceNormalization", y, one, zero, epsilon=attribute(n, "epsilon", 1e-5))
    y = pen("Reshape", y, pen("Shape", x))
    gamma, beta = (pen("CastLike", pen("Reshape", v, ints(pen, [channels, *[1] * (rank - 2)])), x) for v in (gamma, beta))
    y = pen("Add", pen("Mul", y, gamma), beta, out=None if last or kind else n.output[0])
    if last:
        y = channels_last(pen, y, rank, None if kind else n.output[0])
    if kind:
        pen("Mul", y, pen("Sigmoid", y), out=n.output[0])


MICROSOFT: dict[str, Edit] = {
    "GroupNorm": group_norm,
    "NhwcConv": nhwc_conv,
    "NhwcFusedConv": nhwc_conv,
    "NhwcMaxPool": nhwc_max_pool,
    "SkipGroupNorm": skip_group_norm,
}
EDITS: dict[tuple[str, str], Edit] = {("com.microsoft", op): change for op, change in MICROSOFT.items()}
