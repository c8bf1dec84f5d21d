"""A model's forward pass in float64: ONNX's reference, with the operators that it is too slow or too narrow for written anew."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tests.conformance.widen import in_float64

Array = np.ndarray


def windows(x: Array, kernel: list[int], strides: list[int], dilations: list[int]) -> Array:
    """(N, C, *out, *kernel): a view of every window of x (N, C, *sizes)."""
    spatial = tuple(range(2, x.ndim))
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    seen = np.lib.stride_tricks.sliding_window_view(x, reach, spatial)
    steps = (slice(None), slice(None), *(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))
    return seen[steps]


def padding(
    x: Array, kernel: list[int], strides: list[int], dilations: list[int], pads: Any, auto_pad: str | None
) -> list[tuple[int, int]]:
    """Zeros before and behind each spatial axis."""
    n = x.ndim - 2
    if auto_pad in ("NOTSET", "VALID", None, ""):
        pads = pads if pads is not None and auto_pad != "VALID" else [0] * 2 * n
        return list(zip(pads[:n], pads[n:]))
    found = []
    for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations):
        both = max(((size + s - 1) // s - 1) * s + (k - 1) * d + 1 - size, 0)
        small, large = both // 2, both - both // 2
        found.append((small, large) if auto_pad == "SAME_UPPER" else (large, small))
    return found


def ones(given: Any, n: int) -> list[int]:
    return list(given) if given is not None else [1] * n


class Conv(OpRun):  # type: ignore[misc]
    op_domain = ""

    def _run(self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, pads=None, strides=None):
        n = x.ndim - 2
        kernel, strides, dilations, group = list(w.shape[2:]), ones(strides, n), ones(dilations, n), group or 1
        x = np.pad(x, [(0, 0), (0, 0), *padding(x, kernel, strides, dilations, pads, auto_pad)])
        seen = windows(x, kernel, strides, dilations)
        out = seen.shape[2 : 2 + n]
        if w.shape[1] == 1 and group == x.shape[1] == w.shape[0]:  # one channel each: no product of matrices
            y = sum(seen[(..., *at)] * w[(slice(None), 0, *at)].reshape(-1, *[1] * n) for at in np.ndindex(*kernel))
        else:
            parts = seen.reshape(len(x), group, -1, *seen.shape[2:])
            weights = w.reshape(group, -1, *w.shape[1:])
            axes = [1, *range(2 + n, 2 + 2 * n)]
            made = [np.tensordot(parts[:, g], weights[g], (axes, range(1, 2 + n))) for g in range(group)]
            y = np.moveaxis(np.concatenate(made, -1), -1, 1)
        assert y.shape[2:] == out
        return (y if b is None else y + b.reshape(-1, *[1] * n),)


class ConvTranspose(OpRun):  # type: ignore[misc]
    op_domain = ""

    def _run(self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, output_padding=None,
             output_shape=None, pads=None, strides=None):
        n = x.ndim - 2
        assert (group or 1) == 1
        assert output_shape is None
        kernel, strides, dilations = w.shape[2:], ones(strides, n), ones(dilations, n)
        pads, extra = pads if pads is not None else [0] * 2 * n, output_padding if output_padding is not None else [0] * n
        full = [(i - 1) * s + (k - 1) * d + 1 + e for i, s, k, d, e in zip(x.shape[2:], strides, kernel, dilations, extra)]
        y = np.zeros((len(x), w.shape[1], *full), x.dtype)
        for at in np.ndindex(*kernel):
            ends = [a * d + (i - 1) * s + 1 for a, d, i, s in zip(at, dilations, x.shape[2:], strides)]
            region = tuple(slice(a * d, e, s) for a, d, e, s in zip(at, dilations, ends, strides))
            y[(slice(None), slice(None), *region)] += np.moveaxis(np.tensordot(x, w[(..., *at)], (1, 0)), -1, 1)
        y = y[(slice(None), slice(None), *(slice(p, f - q) for p, q, f in zip(pads[:n], pads[n:], full)))]
        return (y if b is None else y + b.reshape(-1, *[1] * n),)


class MaxPool(OpRun):  # type: ignore[misc]
    op_domain = ""

    def _run(self, x, auto_pad=None, ceil_mode=None, dilations=None, kernel_shape=None, pads=None, storage_order=None,
             strides=None):
        n = x.ndim - 2
        strides, dilations = ones(strides, n), ones(dilations, n)
        widths = padding(x, kernel_shape, strides, dilations, pads, auto_pad)
        if ceil_mode:
            widths = [(p, q + s - 1) for (p, q), s in zip(widths, strides)]
        x = np.pad(x, [(0, 0), (0, 0), *widths], constant_values=-np.inf)
        return (windows(x, kernel_shape, strides, dilations).max(tuple(range(-n, 0))),)


class AveragePool(OpRun):  # type: ignore[misc]
    op_domain = ""

    def _run(self, x, auto_pad=None, ceil_mode=None, count_include_pad=None, dilations=None, kernel_shape=None, pads=None,
             strides=None):
        n = x.ndim - 2
        assert not any(pads if pads is not None else [])
        assert not ceil_mode
        return (windows(x, kernel_shape, ones(strides, n), ones(dilations, n)).mean(tuple(range(-n, 0))),)


class BatchNormalization(OpRun):  # type: ignore[misc]
    """At inference; the reference trains before opset 14."""

    op_domain = ""

    def _run(self, x, scale, bias, mean, var, epsilon=None, momentum=None, training_mode=None, spatial=None):
        scale, bias, mean, var = (v.reshape(-1, *[1] * (x.ndim - 2)) for v in (scale, bias, mean, var))
        return ((x - mean) / np.sqrt(var + epsilon) * scale + bias,)


class Erf(OpRun):  # type: ignore[misc]
    op_domain = ""
    _of = np.frompyfunc(math.erf, 1, 1)

    def _run(self, x):
        return (self._of(x).astype(x.dtype),)


OPERATORS = [Conv, ConvTranspose, MaxPool, AveragePool, BatchNormalization, Erf]


def exact(model: onnx.ModelProto, tensor: str) -> Any:
    """The function from feeds to the named tensor, in float64."""
    wide = in_float64(onnx.shape_inference.infer_shapes(model))
    del wide.graph.output[:]
    wide.graph.output.append(onnx.ValueInfoProto(name=tensor))
    needed(wide.graph)
    held = ReferenceEvaluator(wide, new_ops=OPERATORS)
    names = {i.name for i in wide.graph.input}

    def run(feeds: dict[str, Array]) -> Array:
        fed = {k: v.astype(np.float64) if v.dtype.kind == "f" else v for k, v in feeds.items() if k in names}
        return np.asarray(held.run([tensor], fed)[0])

    return run


def needed(graph: onnx.GraphProto) -> None:
    """Drop the nodes that the outputs do not need."""
    wanted, kept = {o.name for o in graph.output}, []
    for node in reversed(graph.node):
        if wanted & set(node.output):
            wanted.update(itertools.chain(node.input))
            kept.append(node)
    nodes = kept[::-1]
    del graph.node[:]
    graph.node.extend(nodes)
