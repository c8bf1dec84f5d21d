"""Sliding-window operators in NumPy, float64, any rank: ONNX's own reference shifts pads and mixes groups, ONNX Runtime
has them in float32 only. Semantics are ONNX Runtime's (`test_forward` in the modules that use this compares).
"""

from __future__ import annotations

import dataclasses
import itertools
import types
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tests.vjp import checking
from tests.vjp.checking import Case, Runner, Tapes, session

Array = np.ndarray


def resolve(x: Array, kernel: Sequence[int], auto_pad: Any, dilations: Any, pads: Any, strides: Any) -> tuple[Any, ...]:
    rank = len(kernel)
    s, d = list(strides or [1] * rank), list(dilations or [1] * rank)
    span = [(k - 1) * e + 1 for k, e in zip(kernel, d, strict=True)]
    if (auto_pad or "NOTSET") == "NOTSET":
        p = list(pads or [0] * (2 * rank))
        return s, d, span, p[:rank], p[rank:]
    if auto_pad == "VALID":
        return s, d, span, [0] * rank, [0] * rank
    total = [max(0, (-(-n // e) - 1) * e + k - n) for n, e, k in zip(x.shape[2:], s, span, strict=True)]
    small, large = [t // 2 for t in total], [t - t // 2 for t in total]
    return (s, d, span, small, large) if auto_pad == "SAME_UPPER" else (s, d, span, large, small)


def extents(sizes: Sequence[int], s: Any, span: Any, begin: Any, end: Any, ceil: bool = False) -> list[int]:
    out = []
    for n, e, k, b, t in zip(sizes, s, span, begin, end, strict=True):
        o = (-(-(n + b + t - k) // e) if ceil else (n + b + t - k) // e) + 1
        out.append(o - 1 if ceil and (o - 1) * e >= n + b else o)
    return out


def reads(x: Array, out: Sequence[int], kernel: Sequence[int], s: Any, d: Any, begin: Any) -> Iterator[tuple[Any, Array]]:
    """For each kernel position: x as each output sees it there, zero outside."""
    need = [(o - 1) * e + (k - 1) * f + 1 for o, e, k, f in zip(out, s, kernel, d, strict=True)]
    wide = np.pad(x, [(0, 0), (0, 0)] + [(b, max(0, m - b - n)) for b, m, n in zip(begin, need, x.shape[2:], strict=True)])
    for at in itertools.product(*map(range, kernel)):
        yield at, wide[(..., *(slice(k * f, k * f + (o - 1) * e + 1, e) for k, f, o, e in zip(at, d, out, s, strict=True)))]


class Conv(OpRun):
    op_domain = ""

    def _run(self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, pads=None,
             strides=None):
        group, kernel = group or 1, w.shape[2:]
        s, d, span, begin, end = resolve(x, kernel, auto_pad, dilations, pads, strides)
        out = extents(x.shape[2:], s, span, begin, end)
        y = np.zeros((x.shape[0], group, w.shape[0] // group, *out), x.dtype)
        grouped = w.reshape(group, w.shape[0] // group, *w.shape[1:])
        for at, seen in reads(x, out, kernel, s, d, begin):
            parts = seen.reshape(x.shape[0], group, -1, *out)
            y += np.einsum("ngc...,gmc->ngm...", parts, grouped[(..., *at)])
        y = y.reshape(x.shape[0], w.shape[0], *out)
        return (y if b is None else y + b.reshape(-1, *[1] * len(out)),)


class ConvTranspose(OpRun):
    op_domain = ""

    def _run(self, x, w, b=None, auto_pad=None, dilations=None, group=None, kernel_shape=None, output_padding=None,
             output_shape=None, pads=None, strides=None):
        group, kernel, rank = group or 1, w.shape[2:], x.ndim - 2
        s, d, extra = list(strides or [1] * rank), list(dilations or [1] * rank), list(output_padding or [0] * rank)
        full = [(n - 1) * e + a + (k - 1) * f + 1 for n, e, a, k, f in zip(x.shape[2:], s, extra, kernel, d, strict=True)]
        p = list(pads or [0] * (2 * rank)) if (auto_pad or "NOTSET") == "NOTSET" else [0] * (2 * rank)
        begin, end = p[:rank], p[rank:]
        if output_shape or "SAME" in (auto_pad or ""):
            wanted = output_shape or [n * e for n, e in zip(x.shape[2:], s, strict=True)]
            total = [max(0, f - o) for f, o in zip(full, wanted, strict=True)]
            begin = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total]
            end = [t - b for t, b in zip(total, begin, strict=True)]
        out = list(output_shape or [f - b - e for f, b, e in zip(full, begin, end, strict=True)])
        room = [max(f, b + o) for f, b, o in zip(full, begin, out, strict=True)]
        y = np.zeros((x.shape[0], group, w.shape[1], *room), x.dtype)
        parts, grouped = x.reshape(x.shape[0], group, -1, *x.shape[2:]), w.reshape(group, -1, *w.shape[1:])
        for at in itertools.product(*map(range, kernel)):
            place = tuple(slice(k * f, k * f + (n - 1) * e + 1, e) for k, f, n, e in zip(at, d, x.shape[2:], s, strict=True))
            y[(..., *place)] += np.einsum("ngc...,gcm->ngm...", parts, grouped[(..., *at)])
        y = y[(..., *(slice(b, b + o) for b, o in zip(begin, out, strict=True)))].reshape(x.shape[0], group * w.shape[1], *out)
        return (y if b is None else y + b.reshape(-1, *[1] * rank),)


class AveragePool(OpRun):
    op_domain = ""

    def _run(self, x, auto_pad=None, ceil_mode=None, count_include_pad=None, dilations=None, kernel_shape=None, pads=None,
             strides=None):
        s, d, span, begin, end = resolve(x, kernel_shape, auto_pad, dilations, pads, strides)
        out = extents(x.shape[2:], s, span, begin, end, bool(ceil_mode))
        ones = np.ones((1, 1, *x.shape[2:]))
        if count_include_pad:
            ones = np.pad(ones, [(0, 0), (0, 0), *zip(begin, end, strict=True)], constant_values=1)
        shift = [0] * len(out) if count_include_pad else begin
        count = sum(seen for _, seen in reads(ones, out, kernel_shape, s, d, shift))
        return ((sum(seen for _, seen in reads(x, out, kernel_shape, s, d, begin)) / np.maximum(count, 1)).astype(x.dtype),)


class LpPool(OpRun):
    op_domain = ""

    def _run(self, x, auto_pad=None, ceil_mode=None, dilations=None, kernel_shape=None, p=None, pads=None,
             strides=None):
        s, d, span, begin, end = resolve(x, kernel_shape, auto_pad, dilations, pads, strides)
        out, p = extents(x.shape[2:], s, span, begin, end, bool(ceil_mode)), p or 2
        return (sum(np.abs(seen) ** p for _, seen in reads(x, out, kernel_shape, s, d, begin)) ** (1 / p),)


class GlobalLpPool(OpRun):
    op_domain = ""

    def _run(self, x, p=None):
        return ((np.abs(x) ** (p or 2)).sum(tuple(range(2, x.ndim)), keepdims=True) ** (1 / (p or 2)),)


class GlobalMaxPool(OpRun):
    op_domain = ""

    def _run(self, x):
        return (x.max(tuple(range(2, x.ndim)), keepdims=True),)


NUMPY = [Conv, ConvTranspose, AveragePool, LpPool, GlobalLpPool, GlobalMaxPool]


@pytest.fixture
def numpy_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float64 runs use the operators above."""
    monkeypatch.setattr(checking, "ReferenceEvaluator", lambda m, new_ops=(): ReferenceEvaluator(m, new_ops=[*NUMPY, *new_ops]))


def check_forward(c: Case, opset: int) -> None:
    """The operator itself: NumPy in float64 against ONNX Runtime in float32."""
    single, double = (Tapes(c, opset, t).outputs(0) for t in (np.float32, np.float64))
    feeds = {f"x{i}": a for i, a in enumerate(c.arrays)}
    for a, b in zip(Runner(double)(feeds), Runner(single, only_ort=True)(narrow(feeds)), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


def narrow(feeds: dict[str, Array]) -> dict[str, Array]:
    return {k: v.astype(np.float32) if v.dtype == np.float64 else v for k, v in feeds.items()}


def check_symbolic(c: Case, opset: int, shapes: Sequence[Sequence[int | str]], *sizes: dict[str, int]) -> None:
    """One float32 file with symbolic axes, run by ONNX Runtime at several sizes, equals the static float64 graph of each.

    `shapes` gives each input's shape with letters for symbolic axes (integer inputs: None), `sizes` the letters' values.
    """
    named = [types.SimpleNamespace(shape=tuple(s), dtype=a.dtype, ndim=a.ndim) for s, a in zip(shapes, c.arrays, strict=True)]
    open_ = Tapes(dataclasses.replace(c, arrays=tuple(named)), opset, np.float32)
    files = [(k, session(open_.outputs(k))) for k in range(1, c.order + 1)]
    rng = np.random.default_rng(5)
    for size in sizes:
        drawn = [rng.uniform(-2, 2, [size.get(d, d) for d in s]) for s in shapes]
        arrays = tuple(d.astype(c.dtype) if a.dtype.kind == "f" else a for d, a in zip(drawn, c.arrays, strict=True))
        static = Tapes(dataclasses.replace(c, arrays=arrays), opset)
        feeds = {f"x{i}": a for i, a in enumerate(arrays)}
        ys = Runner(static.outputs(0))(feeds)
        feeds |= {n: rng.standard_normal(y.shape).astype(c.dtype) for n, y in zip(static.dy_names, ys, strict=True)}
        feeds |= {n: rng.standard_normal(feeds[x].shape).astype(c.dtype)
                  for n, x in zip(static.u_names, static.wrt_names, strict=True)}
        for order, file in files:
            part = static.outputs(order)
            want = [w for w, v in zip(Runner(part)(feeds), part.targets, strict=True) if v is not None]
            given = narrow({i.name: feeds[i.name] for i in file.get_inputs()})
            for a, b in zip(want, file.run(None, given), strict=True):
                assert a.shape == b.shape
                np.testing.assert_allclose(b, a, rtol=1e-3, atol=1e-3 * max(1.0, float(np.abs(a).max(initial=0))),
                                           err_msg=f"{c} {size} order {order}")
