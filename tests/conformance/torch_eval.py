"""An ONNX model evaluated in float64 fast enough for real networks: ONNX's reference, with torch for what it is slow at.

Values are dropped after their last use, so that memory stays near that of a forward pass.
"""

from __future__ import annotations

import collections
import itertools
from typing import Any

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch.nn import functional as F

Array = np.ndarray


def tensor(a: Array) -> torch.Tensor:
    return torch.from_numpy(a if a.flags.writeable else a.copy())


def around(pads: Any) -> list[int]:
    """ONNX's begins and ends of (H, W), in the order of torch's pad."""
    top, left, bottom, right = [0] * 4 if pads is None else pads
    return [left, right, top, bottom]


def both(given: Any, default: int = 1) -> list[int]:
    return [default] * 2 if given is None else list(given)


class Conv(OpRun):  # type: ignore[misc]
    op_domain = ""

    def _run(self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, pads=None, strides=None):
        assert auto_pad in (None, "NOTSET")
        x, b = F.pad(tensor(x), around(pads)), None if b is None else tensor(b)
        return (F.conv2d(x, tensor(w), b, both(strides), 0, both(dilations), group or 1).numpy(),)


class ConvTranspose(OpRun):  # type: ignore[misc]
    op_domain = ""

    def _run(self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, output_padding=None,
             output_shape=None, pads=None, strides=None):
        assert auto_pad in (None, "NOTSET")
        assert output_shape is None
        y = F.conv_transpose2d(tensor(x), tensor(w), None, both(strides), 0, 0, group or 1, both(dilations))
        (left, right, top, bottom), (below, beside) = around(pads), both(output_padding, 0)
        y = F.pad(y, (-left, beside - right, -top, below - bottom))
        return ((y if b is None else y + tensor(b).reshape(-1, 1, 1)).numpy(),)


class MaxPool(OpRun):  # type: ignore[misc]
    op_domain = ""

    def _run(self, x, auto_pad=None, ceil_mode=None, dilations=None, kernel_shape=None, pads=None, storage_order=None,
             strides=None):
        assert auto_pad in (None, "NOTSET")
        assert not storage_order
        wide, (left, _, top, _) = F.pad(tensor(x), around(pads), value=-np.inf), around(pads)
        y, at = F.max_pool2d(wide, list(kernel_shape), both(strides), 0, both(dilations), bool(ceil_mode), True)
        n, c, h, w = x.shape
        at = (at // wide.shape[3] - top) * w + at % wide.shape[3] - left
        at += h * w * torch.arange(n * c).reshape(n, c, 1, 1)
        return (y.numpy(), at.numpy())[: len(self.onnx_node.output)]


class MatMul(OpRun):  # type: ignore[misc]
    op_domain = ""

    def _run(self, a, b):
        return ((tensor(a) @ tensor(b)).numpy(),)


class Erf(OpRun):  # type: ignore[misc]
    """ONNX's own is good to 1e-7 only."""

    op_domain = ""

    def _run(self, x):
        return (torch.erf(tensor(x)).numpy(),)


OPERATORS = [Conv, ConvTranspose, MaxPool, MatMul, Erf]


def evaluate(model: onnx.ModelProto, feeds: dict[str, Array], wanted: str) -> Array:
    """The value of one output."""
    held = ReferenceEvaluator(model, new_ops=OPERATORS)
    values: dict[str, Any] = {"": None, **held.rt_inits_, **feeds}
    uses = collections.Counter(itertools.chain.from_iterable(node.input for node in held.rt_nodes_))
    for node in held.rt_nodes_:
        assert not node.need_context(), node.op_type
        values.update(zip(node.output, node.run(*(values[i] for i in node.input)), strict=False))
        uses.subtract(node.input)
        for name in {*node.input, *node.output} - {"", wanted}:
            if not uses[name]:
                values.pop(name, None)
    return np.asarray(values[wanted])
