"""Shape arithmetic: elements of small integer and boolean tensors, followed through Shape, Gather, Mul ... as far as known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from .value import Value

Dim: TypeAlias = int | str | None
Content: TypeAlias = tuple[Dim, ...] | int | str | None


def content_of(array: np.ndarray[Any, Any]) -> Content:
    """Elements of a small integer array, as shape arithmetic sees them."""
    if array.dtype.kind not in "iub" or array.ndim > 1 or array.size > 64:
        return None
    found: Content = array.tolist() if array.ndim == 0 else tuple(array.tolist())
    return found


def content_after(op: str, inputs: Sequence[Value | None], attrs: Mapping[str, Any]) -> Content:
    """Elements of the output when op is shape arithmetic on tensors whose elements are (partly) known; else None."""
    if op == "Shape" and inputs[0] is not None and inputs[0].shape is not None:
        return inputs[0].shape[attrs.get("start", 0) : attrs.get("end")]
    if op == "Size" and inputs[0] is not None and inputs[0].shape is not None:
        sizes = [d for d in inputs[0].shape if isinstance(d, int)]
        return math.prod(sizes) if len(sizes) == len(inputs[0].shape) else None
    if op not in _ARITHMETIC or any(v is not None and v.content is None for v in inputs):
        return None
    args = [v.content if v is not None else None for v in inputs]
    try:
        found: Content = _ARITHMETIC[op](args, attrs)
        return found
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return None


def _int(v: Any) -> int:
    if isinstance(v, bool) or not isinstance(v, int):
        raise TypeError("not a number")
    return v


def _tuple(v: Any) -> tuple[Any, ...]:
    return v if isinstance(v, tuple) else (v,)


def _gather(args: list[Any], attrs: Mapping[str, Any]) -> Content:
    data, index = args
    if not isinstance(data, tuple):
        raise TypeError("scalar")
    return tuple(data[_int(i)] for i in index) if isinstance(index, tuple) else data[_int(index)]


def _slice(args: list[Any], attrs: Mapping[str, Any]) -> Content:
    data, starts, ends, axes, steps = (*args, None, None)[:5] if len(args) < 5 else args
    if axes not in (None, (0,), (-1,)) or not isinstance(data, tuple):
        raise TypeError("other axis")
    step = 1 if steps is None else _int(steps[0])
    end: int | None = _int(ends[0])
    assert end is not None
    if step < 0 and end < -len(data):
        end = None
    kept: tuple[Dim, ...] = data[_int(starts[0]) : end : step]
    return kept


def _elementwise(f: Any) -> Any:
    def apply(args: list[Any], attrs: Mapping[str, Any]) -> Content:
        a, b = args
        if not isinstance(a, tuple) and not isinstance(b, tuple):
            one: Content = f(a, b)
            return one
        a, b = _tuple(a), _tuple(b)
        n = max(len(a), len(b))
        a, b = (a * n if len(a) == 1 else a), (b * n if len(b) == 1 else b)
        return tuple(f(p, q) for p, q in zip(a, b, strict=True))

    return apply


def _arith(f: Any, unit: int, commutes: bool) -> Any:
    def one(p: Any, q: Any) -> Any:
        if isinstance(p, int) and isinstance(q, int):
            return f(p, q)
        return p if q == unit else q if commutes and p == unit else None

    return _elementwise(one)


def _same(p: Dim, q: Dim) -> bool | None:
    if isinstance(p, int) and isinstance(q, int):
        return p == q
    return True if p is not None and p == q else None


def _compare(f: Any) -> Any:
    return _elementwise(lambda p, q: f(_int(p), _int(q)))


def _truth(v: Any) -> bool:
    if not isinstance(v, bool):
        raise TypeError("not known to be true or false")
    return v


def _cast(v: Any, to: Any) -> Any:
    if isinstance(v, tuple):
        return tuple(_cast(e, to) for e in v)
    if to == 9:
        return bool(v) if isinstance(v, int) else None
    return (int(v) if isinstance(v, bool) else v) if to in (6, 7) else None


def _div(p: int, q: int) -> int:
    return int(p / q) if (p < 0) != (q < 0) else p // q


_ARITHMETIC: dict[str, Any] = {
    "Gather": _gather,
    "Slice": _slice,
    "Concat": lambda a, _: sum((_tuple(v) for v in a), ()),
    "Unsqueeze": lambda a, _: (a[0],) if isinstance(a[0], int | str) else None,
    "Squeeze": lambda a, _: a[0][0] if isinstance(a[0], tuple) and len(a[0]) == 1 else a[0],
    "Identity": lambda a, _: a[0],
    "Cast": lambda a, attrs: _cast(a[0], attrs.get("to")),
    "Equal": _elementwise(_same),
    "Greater": _compare(lambda p, q: p > q),
    "Less": _compare(lambda p, q: p < q),
    "GreaterOrEqual": _compare(lambda p, q: p >= q),
    "LessOrEqual": _compare(lambda p, q: p <= q),
    "Not": lambda a, _: not _truth(a[0]),
    "And": _elementwise(lambda p, q: _truth(p) and _truth(q)),
    "Or": _elementwise(lambda p, q: _truth(p) or _truth(q)),
    "Add": _arith(lambda p, q: p + q, 0, True),
    "Sub": _arith(lambda p, q: p - q, 0, False),
    "Mul": _arith(lambda p, q: p * q, 1, True),
    "Div": _arith(_div, 1, False),
    "Min": _arith(min, 2**63 - 1, True),
    "Max": _arith(max, -(2**63), True),
    "ReduceProd": lambda a, attrs: (
        int(np.prod([_int(v) for v in _tuple(a[0])], dtype=np.int64)) if not attrs.get("keepdims", 1) and len(a) == 1 else None
    ),
}
