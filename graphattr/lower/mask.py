"""The masks of rectifiers, `Where(x > c, dy, 0)`, in forms that cost less and say the same."""

from __future__ import annotations

from ..graph import Node, Value
from .walk import Pass, is_image, number, per_channel

STEEPEST = 2.0**127  # times a normal number: at least 2 in size
STEEP = 2.0**100  # times the difference of two floats near c, 2^-60 <= |c| <= 2^20: at least 2^17


def read_output(p: Pass, node: Node) -> Value | None:
    """Relu(x) > 0 says x > 0, Clip(x) > low says x > low: nobody then keeps x, and Conv fuses with Relu again."""
    c = number(node.inputs[1]) if node.op in ("Greater", "Less") else None
    y = None if c is None else _rectified(p, p.first(node), c, node.op)
    return None if y is None else p.g.emit(node.op, p.now(y), node.inputs[1])


def _rectified(p: Pass, x: Value, c: float, comparison: str) -> Value | None:
    """The output of the rectifier whose kink at x = c decides the comparison."""
    for user in p.users.get(x, ()):
        if user.domain or user.inputs[0] is not x:
            continue
        if user.op == "Relu" and c == 0.0 and comparison == "Greater":
            return user.outputs[0]
        if user.op == "Clip" and len(user.inputs) == 3:
            low, high = number(user.inputs[1]), number(user.inputs[2])
            if low is not None and high is not None and low < high and c == (low if comparison == "Greater" else high):
                return user.outputs[0]
    return None


def blocked(p: Pass, node: Node) -> Value | None:
    """dy * HardSigmoid(2^127 x), the scaling as a depthwise convolution: one blocked kernel and a blocked product.

    Equal: the sigmoid is 0 or 1 for every normal x. 64 x 112 x 112 floats: 1.1 ms, else 1.7; and dy stays blocked
    (ResNet-50: 11 copies between layouts, else 51).
    """
    if node.op != "Where" or not is_image(node.outputs[0]) or number(node.inputs[2]) != 0.0:
        return None
    asked = p.made(node.inputs[0], "Greater", "Less")
    c = number(asked.inputs[1]) if asked is not None else None
    if asked is None or c is None:
        return None
    x, dy = p.first(asked), node.inputs[1]
    assert dy is not None
    if (
        not is_image(x)
        or x.shape != node.outputs[0].shape
        or dy.shape != x.shape
        or not (c == 0.0 or 2.0**-60 <= abs(c) <= 2.0**20)
    ):
        return None
    scale = (STEEPEST if c == 0.0 else STEEP) * (1.0 if asked.op == "Greater" else -1.0)
    steep = per_channel(p.g, p.now(x), scale, -scale * c if c else None)
    m = p.g.emit("HardSigmoid", steep, alpha=1.0, beta=0.0, out_shape=x.shape)
    return p.g.emit("Mul", p.now(dy), m, out_shape=x.shape)


def band(p: Pass, node: Node) -> Value | None:
    """ReLU6's two masks as one: dy * HardSigmoid(2^127 (s - y)), s = min(2^127 y, high), y in [0, high] what ReLU6 gives.

    Equal: s is above y for every normal y below `high`, and s = y at 0 and at `high`. Two convolutions (the second adds and
    rectifies) and one product instead of two and two: 96 x 112 x 112 floats: 0.6 ms, else 1.5.
    """
    outer = _masked(p, node, "Less")
    inner = None if outer is None else _masked(p, p.made(outer[1], "Where"), "Greater")
    if outer is None or inner is None or inner[0] is not outer[0] or inner[2] != 0.0:
        return None
    (y, _, high), dy = outer, inner[1]
    clip = p.made(y, "Clip")
    if clip is None or len(clip.inputs) != 3 or [number(v) for v in clip.inputs[1:]] != [0.0, high]:
        return None
    if not is_image(y) or dy.shape != y.shape or not 2.0**-60 <= high <= 2.0**20:
        return None
    one, low, high_value = p.now(y), *clip.inputs[1:]
    s = p.g.emit("Clip", per_channel(p.g, one, STEEPEST), low, high_value, out_shape=y.shape)
    room = p.g.emit("Add", per_channel(p.g, one, -1.0), s, out_shape=y.shape)
    m = p.g.emit("HardSigmoid", room, alpha=STEEPEST, beta=0.0, out_shape=y.shape)
    return p.g.emit("Mul", p.now(dy), m, out_shape=y.shape)


def _masked(p: Pass, node: Node | None, comparison: str) -> tuple[Value, Value, float] | None:
    """(x, dy, c) when the node is Where(x > c, dy, 0), or x < c for "Less"."""
    if node is None or node.op != "Where" or number(node.inputs[2]) != 0.0:
        return None
    asked, dy = p.made(node.inputs[0], comparison), node.inputs[1]
    c = number(asked.inputs[1]) if asked is not None else None
    return None if asked is None or c is None or dy is None else (p.first(asked), dy, c)
