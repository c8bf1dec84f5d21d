"""Col2Im adds overlapping blocks; its adjoint reads them."""

from __future__ import annotations

from ..graph import Graph, Node, Value
from .elementwise import operands
from .index import positions, reshaped
from .registry import vjp
from .shape import item


@vjp("Col2Im")
def col2im(g: Graph, n: Node, dy: Value) -> tuple[Value | None, ...]:
    """Column l, element k of a block was added at l * stride + k * dilation - pad: dy is read there, pads are zero.

    With dilations and other than two axes ONNX Runtime's kernel is wrong; this is ONNX's definition.
    """
    (x, image, block), rank = operands(n), n.outputs[0].rank - 2
    strides, dilations = (n.attrs.get(k) or [1] * rank for k in ("strides", "dilations"))
    pads = n.attrs.get("pads") or [0] * (2 * rank)
    seen = g.Pad(dy, [0, 0, *pads[:rank], 0, 0, *pads[rank:]], 0.0) if any(pads) else dy
    for a in range(rank):  # each spatial axis becomes two: element of the block, block
        size, kernel = item(g, image, a) + (pads[a] + pads[a + rank]), item(g, block, a)
        blocks = (size - dilations[a] * (kernel - 1) - 1) / strides[a] + 1
        where = g.Unsqueeze(positions(g, kernel) * dilations[a], [1]) + positions(g, blocks) * strides[a]
        seen = g.Gather(seen, where, axis=2 + 2 * a)
    order = [0, 1, *range(2, seen.rank, 2), *range(3, seen.rank, 2)]
    return (reshaped(g, g.Transpose(seen, perm=order), x),)
