"""Derivatives against central differences, to second order.

A test module holds a table `CASES = [case("Relu", lambda g, x: g.Relu(x), draw(3, 4)), ...]` and one test over `rows(CASES)`
that calls `check_case(row)`. `test_closed.py` reads the tables of all modules.

With y = build(x) and a random cotangent c, the first order compares <pullback of c, u> with the difference quotient of
<y, c> along u. The second order pulls <pullback of c, u> back once more, to x and to c, and compares with the
difference quotients of the first. Numbers are float64: ONNX Runtime where it has the kernels, else ONNX's reference.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator

from graphattr.graph import Graph, Node, Value
from graphattr.onnxio import write_model
from graphattr.vjp import pullback
from tests.conformance.widen import Erf, Gelu

Array = np.ndarray
ort.set_default_logger_severity(4)


@dataclasses.dataclass(frozen=True)
class Case:
    """One row of a table. `dynamic` lists the inputs whose leading axis is also tried as the symbol N."""

    name: str
    build: Callable[..., Any]
    arrays: tuple[Array, ...]
    opsets: tuple[int, ...] = (17,)
    order: int = 2
    wrt: tuple[int, ...] | None = None
    dynamic: tuple[int, ...] = (0,)
    tolerance: float = 1e-6
    half: bool = True  # the operator exists for float16
    dtype: Any = np.float64  # np.float32 for an operator that has no other: then with coarser steps

    def __str__(self) -> str:
        return self.name

    @property
    def floats(self) -> tuple[int, ...]:
        """Indices of the inputs to differentiate with respect to."""
        return self.wrt if self.wrt is not None else tuple(i for i, a in enumerate(self.arrays) if a.dtype.kind == "f")


def case(name: str, build: Callable[..., Any], *arrays: Any, **options: Any) -> Case:
    """A row: float arrays become float64 inputs (or of `dtype`), integer and boolean ones stay as they are."""
    given = [np.asarray(a) for a in arrays]
    dtype = options.get("dtype", np.float64)
    if dtype == np.float32:
        options = {"tolerance": 5e-3, "half": False} | options
    return Case(name, build, tuple(a.astype(dtype) if a.dtype.kind == "f" else a for a in given), **options)


def rows(cases: Iterable[Case]) -> list[Any]:
    """One pytest parameter (case, opset) per opset of each case."""
    return [pytest.param(c, opset, id=f"{c.name}-{opset}") for c in cases for opset in c.opsets]


def sampler(seed: int) -> Callable[..., Array]:
    """`draw(2, 3, low=-2, high=2)`: uniform numbers, the same in every run of the module."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int, low: float = -2.0, high: float = 2.0) -> Array:
        return rng.uniform(low, high, shape)
    return draw


def check(build: Callable[..., Any], *arrays: Any, opset: int = 17, name: str = "check", **options: Any) -> None:
    """Check one operator at one opset; the options are those of Case."""
    check_case(case(name, build, *arrays, **options), opset)


def check_case(c: Case, opset: int) -> None:
    tapes = Tapes(c, opset)
    rng = np.random.default_rng(zlib.crc32(c.name.encode()))
    x = dict(zip(tapes.x_names, c.arrays, strict=True))
    forward = Runner(tapes.outputs(0))
    ys = forward(x)
    for y in ys:
        assert np.isfinite(y).all(), f"{c}: the forward value is not finite; choose other inputs"
    feeds = x | {n: np.asarray(rng.standard_normal(y.shape), y.dtype) for n, y in zip(tapes.dy_names, ys, strict=True)}
    for name, i in zip(tapes.u_names, c.floats, strict=True):
        feeds[name] = np.asarray(rng.standard_normal(c.arrays[i].shape), c.dtype)
    gradient = Runner(tapes.outputs(1))
    found = gradient(feeds)
    for i, dx in zip(c.floats, found, strict=True):
        assert dx.shape == c.arrays[i].shape, f"{c}: cotangent of input {i} has shape {dx.shape}, the input {c.arrays[i].shape}"

    def inner(names: Sequence[str], values: Sequence[Array], at: dict[str, Array]) -> float:
        return float(sum(np.sum(v * at[n]) for n, v in zip(names, values, strict=True)))

    compare(f"{c} first order", tapes.wrt_names, found, lambda z: inner(tapes.dy_names, forward(z), z), feeds, rng, c.tolerance)
    if c.order > 1:
        names = [*tapes.wrt_names, *tapes.dy_names]
        compare(f"{c} second order", names, Runner(tapes.outputs(2))(feeds),
                lambda z: inner(tapes.u_names, gradient(z), z), feeds, rng, c.tolerance * 10)
    if any(c.arrays[i].ndim for i in c.dynamic):
        for order in range(1, c.order + 1):
            static, symbolic = (Runner(t.outputs(order))(feeds) for t in (tapes, Tapes(c, opset, dynamic=True)))
            for name, a, b in zip(names if order > 1 else tapes.wrt_names, static, symbolic, strict=True):
                message = f"{c} with symbolic N, order {order}, {name}"
                np.testing.assert_allclose(b, a, rtol=c.tolerance, atol=c.tolerance, err_msg=message)
    check_single_precision(c, opset, feeds, found)


def compare(what: str, names: Sequence[str], found: Sequence[Array], f: Callable[[dict[str, Array]], float],
            feeds: dict[str, Array], rng: np.random.Generator, tolerance: float) -> None:
    """<found, v> against (f(x + h v) - f(x - h v)) / 2h, for each variable alone and two directions."""
    for name, derivative in zip(names, found, strict=True):
        assert np.isfinite(derivative).all(), f"{what}: derivative with respect to {name} is not finite: {derivative}"
        step = 1e-5 if feeds[name].dtype == np.float64 else 1e-2
        for _ in range(2):
            v = np.asarray(rng.standard_normal(feeds[name].shape), feeds[name].dtype)
            got = float(np.sum(derivative * v))
            want = (f(feeds | {name: feeds[name] + step * v}) - f(feeds | {name: feeds[name] - step * v})) / (2 * step)
            assert abs(got - want) <= tolerance * max(1.0, abs(got), abs(want)), \
                f"{what}: with respect to {name}: derivative {got:.9g}, difference quotient {want:.9g}"


def check_single_precision(c: Case, opset: int, feeds: dict[str, Array], found: Sequence[Array]) -> None:
    """The types hold for float16 and float32, and ONNX Runtime runs the float32 gradient wherever it runs the operator."""
    if c.half:
        Tapes(c, opset, np.float16)
    tapes = Tapes(c, opset, np.float32)
    single = {v.name: feeds[v.name].astype(v.dtype) for v in tapes.graph.inputs}
    try:
        session(tapes.outputs(0))
    except Exception:
        return
    got = Runner(tapes.outputs(1), only_ort=True)(single)
    for name, a, b in zip(tapes.wrt_names, found, got, strict=True):
        scale = max(1.0, float(np.abs(a).max(initial=0)))
        np.testing.assert_allclose(b, a, rtol=1e-2, atol=1e-3 * scale, err_msg=f"{c} float32 {name}")


class Tapes:
    """The graph of a case with y, its pullback and the pullback of that, on one tape; `outputs(k)` cuts out order k."""

    def __init__(self, c: Case, opset: int, dtype: Any = None, dynamic: bool = False) -> None:
        dtype = dtype or c.dtype
        g = self.graph = Graph(opset)
        shapes = [("N", *a.shape[1:]) if dynamic and i in c.dynamic and a.ndim else a.shape for i, a in enumerate(c.arrays)]
        xs = [g.input(f"x{i}", dtype if a.dtype.kind == "f" else a.dtype, s)
              for i, (a, s) in enumerate(zip(c.arrays, shapes, strict=True))]
        made = c.build(g, *xs)
        self.forward: list[Node] = list(g.nodes)
        ys = [y for y in (made if isinstance(made, (tuple, list)) else [made]) if y is not None and y.is_float]
        dys = [g.input(f"dy{i}", y.dtype, y.shape) for i, y in enumerate(ys)]
        wrt = [xs[i] for i in c.floats]
        dxs = self._pull(ys, dys, wrt)
        us = [g.input(f"u{i}", x.dtype, x.shape) for i, x in zip(c.floats, wrt, strict=True)]
        self.values: list[Sequence[Value | None]] = [ys, dxs]
        if c.order > 1:
            live = [(dx, u) for dx, u in zip(dxs, us, strict=True) if dx is not None]
            self.values.append(self._pull([dx for dx, _ in live], [u for _, u in live], [*wrt, *dys]))
        self.x_names, self.dy_names, self.u_names = [v.name for v in xs], [v.name for v in dys], [v.name for v in us]
        self.wrt_names = [v.name for v in wrt]

    def _pull(self, ys: Sequence[Value], dys: Sequence[Value], wrt: Sequence[Value]) -> list[Value | None]:
        seeds: dict[Value, Value] = {}
        for y, dy in zip(ys, dys, strict=True):
            seeds[y] = self.graph.Add(seeds[y], dy) if y in seeds else dy
        got = pullback(self.graph, seeds, wrt)
        for x in wrt:
            if x in got:
                assert got[x].dtype == x.dtype, f"cotangent of {x.name} is {got[x].dtype}, the value {x.dtype}"
        return [got.get(x) for x in wrt]

    def outputs(self, order: int) -> Part:
        names = [[v.name for v in self.values[0] if v is not None], self.wrt_names, [*self.wrt_names, *self.dy_names]]
        return Part(self.graph, self.values[order], names[order])


@dataclasses.dataclass(frozen=True)
class Part:
    """Some values of a tape; where a value is None (zero), it is a zero array shaped like the feed of that name."""

    graph: Graph
    targets: Sequence[Value | None]
    names: Sequence[str]

    def model(self) -> Any:
        g, needed = Graph(self.graph.opset), set()
        stack = [v for v in self.targets if v is not None]
        while stack:
            v = stack.pop()
            if v not in needed:
                needed.add(v)
                node = self.graph.producer(v)
                stack.extend(node.uses if node is not None else [])
        g.inputs = [v for v in self.graph.inputs if v in needed]
        g.nodes = [n for n in self.graph.nodes if any(v in needed for v in n.outputs)]
        g.outputs = [(f"out{i}", v) for i, v in enumerate(self.targets) if v is not None]
        return write_model(g, ir_version=10)


def session(part: Part) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(part.model().SerializeToString(), options, providers=["CPUExecutionProvider"])


class Runner:
    """Evaluates a part of a tape at feeds: by ONNX Runtime if it has all kernels, else by ONNX's reference."""

    def __init__(self, part: Part, only_ort: bool = False) -> None:
        self.part = part
        self.inputs: list[str] = []
        if all(v is None for v in part.targets):
            return
        try:
            self.run: Any = session(part)
            self.inputs = [i.name for i in self.run.get_inputs()]
        except Exception:
            if only_ort:
                raise
            self.run = ReferenceEvaluator(part.model(), new_ops=[Erf, Gelu])
            self.inputs = list(self.run.input_names)

    def __call__(self, feeds: dict[str, Array]) -> list[Array]:
        live = [v for v in self.part.targets if v is not None]
        got: Iterator[Any] = iter(self.run.run(None, {k: np.asarray(feeds[k]) for k in self.inputs}) if live else [])
        return [np.asarray(next(got)) if v is not None else np.zeros_like(feeds[name])
                for v, name in zip(self.part.targets, self.part.names, strict=True)]


def gradient(build: Callable[..., Any], *arrays: Any, dy: Any = None, opset: int = 17) -> list[Array]:
    """The pullback of dy (an array, a tuple of them, or ones) at given inputs, for exact tests at ties and kinks."""
    c = case("gradient", build, *arrays, order=1)
    tapes = Tapes(c, opset)
    feeds = dict(zip(tapes.x_names, c.arrays, strict=True))
    ys = Runner(tapes.outputs(0))(feeds)
    given = [np.ones_like(y) for y in ys] if dy is None else list(dy) if isinstance(dy, tuple) else [dy]
    return Runner(tapes.outputs(1))(feeds | dict(zip(tapes.dy_names, given, strict=True)))


def evaluate(g: Graph, value: Value, **feeds: Array) -> Array:
    """One value of a graph."""
    return Runner(Part(g, [value], [value.name]))(feeds)[0]


def emitted(c: Case, opset: int) -> tuple[set[str], set[str]]:
    """(operators of the case itself, operators its derivatives to the case's order emit)."""
    g = Tapes(c, opset)
    return set(operators(g.forward)), set(operators(g.graph.nodes[len(g.forward):]))


def operators(nodes: Iterable[Node]) -> Iterator[str]:
    """The operators of nodes, those in their bodies too."""
    for n in nodes:
        yield n.op
        for body in n.subgraphs:
            yield from operators(body.nodes)
