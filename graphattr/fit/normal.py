"""Least squares from sums that grow batch by batch: X = Phi w + b, where Phi is made of a layer's signals S.

A convolution's inverse is a transposed convolution, so Phi[position n, (tap k, channel)] = S[channel, (n + p - d k) / s] where
that is an index, else 0. Positions of one remainder (n + p) mod s are reached by the same taps and by no others; along each of
them a tap reads a contiguous piece of S. So Phi is made of slices, block by block, without the zeros that a stride puts between.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import MethodError
from ..graph import Array

BLOCK = 1 << 22  # elements of Phi held at a time
SINGULAR = 1e14  # a condition number that only rounding makes finite
DEAD = 1e-12  # a column whose variance is below this share of its square sum does not vary

Rows = tuple[Array, Array, Array]  # columns of Phi that are not zero, rows of these columns, rows of X


@dataclass(frozen=True)
class Grid:
    """The geometry of a convolution; `begin` are the pads in front."""

    kernel: Sequence[int]
    strides: Sequence[int]
    begin: Sequence[int]
    dilations: Sequence[int]

    def tap(self, tap: Sequence[int]) -> int:
        """The tap's number."""
        return int(np.ravel_multi_index(tuple(tap), tuple(self.kernel)))

    def starts(self, first: Sequence[int], tap: Sequence[int]) -> list[int]:
        """The index of S that the first position reads through the tap."""
        return [(f + p - d * k) // m for f, p, d, k, m in zip(first, self.begin, self.dilations, tap, self.strides, strict=True)]

    def reached(self, remainder: Sequence[int]) -> list[tuple[int, ...]]:
        """The taps that lead to positions of this remainder."""
        ways = zip(self.kernel, self.dilations, self.strides, remainder, strict=True)
        return list(itertools.product(*([k for k in range(n) if d * k % m == r] for n, d, m, r in ways)))


@dataclass(frozen=True)
class Solution:
    """w (unknowns, outputs), b (outputs); the condition number of what was solved, and the share of sum X^2 that is left over."""

    w: Array
    b: Array
    condition: float
    residual: float


# -- sums ---------------------------------------------------------------------------------------------------------
def sums_of(rows: Iterable[Rows], unknowns: int) -> dict[str, Array]:
    """Phi'Phi, Phi'X, the sums of Phi, X and X^2, and the number of rows, in float64."""
    made: dict[str, Array] = {}
    for columns, phi, x in rows:
        phi, x = phi.astype(np.float64), x.astype(np.float64)
        if not made:
            sizes = {"gram": (unknowns, unknowns), "cross": (unknowns, x.shape[1]), "phi": (unknowns,), "x": (x.shape[1],)}
            made = {k: np.zeros(size) for k, size in (*sizes.items(), ("square", (x.shape[1],)), ("rows", ()))}
        some: Any = columns if len(columns) < unknowns else slice(None)
        made["gram"][np.ix_(columns, columns) if len(columns) < unknowns else some] += phi.T @ phi
        made["cross"][some] += phi.T @ x
        made["phi"][some] += phi.sum(0)
        made["x"] += x.sum(0)
        made["square"] += np.square(x).sum(0)
        made["rows"] += len(x)
    return made


def dense_rows(s: Array, x: Array) -> Iterator[Rows]:
    """Phi = S: the last axis holds the entries of a row."""
    phi = s.reshape(-1, s.shape[-1])
    yield np.arange(phi.shape[1]), phi, x.reshape(-1, x.shape[-1])


def conv_rows(s: Array, x: Array, grid: Grid) -> Iterator[Rows]:
    """Every position of x once, in blocks. s (N, C, ...), x (N, D, ...); the columns are the taps times C."""
    s, x = (np.ascontiguousarray(np.moveaxis(v, 1, -1)) for v in (s, x))
    for remainder in itertools.product(*map(range, grid.strides)):
        first = [(r - p) % m for r, p, m in zip(remainder, grid.begin, grid.strides, strict=True)]
        wanted = x[_cut(first, [None] * len(first), grid.strides)]
        taps = grid.reached(remainder)
        columns = (np.array([grid.tap(t) for t in taps], np.int64)[:, None] * s.shape[-1] + np.arange(s.shape[-1])).ravel()
        pieces = _pieces(s, [grid.starts(first, t) for t in taps], wanted.shape[1:-1])
        for at in _blocks(wanted.shape, max(1, len(columns))):
            here = wanted[at]
            phi = np.concatenate([p[at] for p in pieces], -1) if pieces else here[..., :0]
            yield columns, phi.reshape(here[..., 0].size, len(columns)), here.reshape(-1, here.shape[-1])


def _pieces(s: Array, starts: Sequence[Sequence[int]], counts: Sequence[int]) -> list[Array]:
    """s[start : start + count] for each of `starts`, zero where s has no such index."""
    if not starts:
        return []
    low = [max(0, -min(a)) for a in zip(*starts, strict=True)]
    high = [max(0, max(a) + c - n) for a, c, n in zip(zip(*starts, strict=True), counts, s.shape[1:-1], strict=True)]
    padded = np.pad(s, [(0, 0), *zip(low, high, strict=True), (0, 0)])
    begins = [[a + m for a, m in zip(start, low, strict=True)] for start in starts]
    return [padded[_cut(b, [a + c for a, c in zip(b, counts, strict=True)], [1] * len(b))] for b in begins]


def _cut(begins: Sequence[int], ends: Sequence[int | None], steps: Sequence[int]) -> tuple[slice, ...]:
    """All samples, and a piece of each axis of positions."""
    return slice(None), *map(slice, begins, ends, steps)


def _blocks(shape: Sequence[int], width: int) -> Iterator[tuple[slice, slice]]:
    """Slices of (samples, first axis of positions) that hold about BLOCK elements of Phi at most."""
    if 0 in shape:
        return
    line = width * int(np.prod(shape[2:-1]))
    some, lines = max(1, BLOCK // (line * shape[1])), min(shape[1], max(1, BLOCK // line))
    for n in range(0, shape[0], some):
        for i in range(0, shape[1], lines):
            yield slice(n, n + some), slice(i, i + lines)


# -- solution -----------------------------------------------------------------------------------------------------
def solve(sums: Mapping[str, Array], ridge: float, bias: bool) -> Solution:
    """The minimiser of |X - Phi w - b|^2 + ridge |w|^2; b is not penalised. Columns that never vary get 0."""
    rows = float(sums["rows"])
    middle, goal = (sums[k] * (float(bias) / rows) for k in ("phi", "x"))
    gram = sums["gram"] - rows * np.outer(middle, middle)
    cross = sums["cross"] - rows * np.outer(middle, goal)
    alive = np.flatnonzero(np.diag(gram) > DEAD * np.diag(sums["gram"]))
    w, condition = np.zeros_like(cross), 1.0
    if len(alive):
        gram = gram[np.ix_(alive, alive)]
        gram[np.diag_indices_from(gram)] += ridge
        w[alive], condition = _solved(gram, cross[alive])
        if condition > SINGULAR and not ridge:
            raise MethodError(_dependent(gram))
    whole = float(sums["square"].sum())
    left = whole - rows * float((goal**2).sum()) - float((w * cross).sum()) - ridge * float((w * w).sum())
    return Solution(w, goal - middle @ w, condition, max(0.0, left / whole) if whole else 0.0)


def _solved(gram: Array, cross: Array) -> tuple[Array, float]:
    """(gram^-1 cross, condition number of gram), by Cholesky; MethodError where gram is not positive definite."""
    try:
        low = np.linalg.inv(np.linalg.cholesky(gram))
    except np.linalg.LinAlgError as e:
        raise MethodError(_dependent(gram)) from e
    return low.T @ (low @ cross), _largest(gram) * _largest(low) ** 2


def _dependent(gram: Array) -> str:
    return f"the {len(gram)} equations of its inverse depend on each other; give a larger ridge"


def _largest(a: Array, steps: int = 40) -> float:
    """The largest singular value, by power iteration."""
    v = np.random.default_rng(0).standard_normal(len(a))
    for _ in range(steps):
        v = a.T @ (a @ (v / np.linalg.norm(v)))
    return float(np.sqrt(np.linalg.norm(v)))
