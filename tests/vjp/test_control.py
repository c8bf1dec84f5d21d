"""If, Loop and Scan against central differences to second order; bodies are written with the tape itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import pytest

from graphattr.errors import UnsupportedOp
from graphattr.graph import Graph, Value
from graphattr.onnxio import write_model
from graphattr.simplify import simplify
from graphattr.vjp import pullback
from tests.vjp.checking import Case, case, check_case, rows, sampler

draw = sampler(11)
Step = Callable[..., list[Value]]


def branch(g: Graph, make: Callable[[Graph], list[Value]]) -> Graph:
    body = g.subgraph("branch")
    body.outputs = [(body.fresh("out"), v) for v in make(body)]
    return body


def loop(g: Graph, trips: object, states: list[Value], step: Step, n_scans: int = 0, go: Value | None = None):
    """step(body, i, *states) -> [condition or None, *states, *scanned]"""
    body = g.subgraph("body")
    i, on = body.input(body.fresh("i"), np.int64, ()), body.input(body.fresh("on"), np.bool_, ())
    held = [body.input(body.fresh("s"), v.dtype, v.shape) for v in states]
    cond, *rest = step(body, i, *held)
    body.outputs = [(body.fresh("out"), v) for v in (on if cond is None else cond, *rest)]
    return g.emit("Loop", trips, go, *states, n_outputs=len(states) + n_scans, body=body)


def scan(g: Graph, states: list[Value], xs: list[Value], step: Step, n_scans: int = 0, **attrs: list[int]):
    """step(body, *states, *slices) -> [*states, *scanned]"""
    body = g.subgraph("body")
    axes = attrs.get("scan_input_axes", [0] * len(xs))
    held = [body.input(body.fresh("s"), v.dtype, v.shape) for v in states]
    held += [body.input(body.fresh("x"), v.dtype, tuple(d for k, d in enumerate(v.shape or ()) if k != a % v.rank))
             for v, a in zip(xs, axes, strict=True)]
    body.outputs = [(body.fresh("out"), v) for v in step(body, *held)]
    return g.emit("Scan", *states, *xs, n_outputs=len(states) + n_scans, body=body, num_scan_inputs=len(xs), **attrs)


def either(g: Graph, x: Value, w: Value) -> Value:
    """One branch reads both, the other x alone, twice."""
    cond = g.Greater(g.ReduceSum(x, keepdims=0), 0.0)
    return g.If(cond, then_branch=branch(g, lambda b: [b.MatMul(b.Tanh(x), w)]),
                else_branch=branch(g, lambda b: [b.Mul(x, b.Sin(x))]))


def powers(g: Graph, x: Value, w: Value) -> tuple[Value, ...]:
    """s <- tanh(s w) + x, which reads x and w from outside and shows every state."""
    def step(b: Graph, i: Value, s: Value) -> list[Value | None]:
        new = b.Add(b.Tanh(b.MatMul(s, w)), x)
        return [None, new, b.Mul(new, s)]
    return loop(g, g.const(3), [x], step, 1)


def until(g: Graph, x: Value) -> tuple[Value, ...]:
    """Doubles until the sum of squares is above 50: how often depends on the data. Counts in an integer state."""
    def step(b: Graph, i: Value, s: Value, n: Value) -> list[Value]:
        new = b.Mul(s, b.Add(b.Sin(s), 3.0))
        return [b.Less(b.ReduceSumSquare(new, keepdims=0), 50.0), new, b.Add(n, 1)]
    y, n = loop(g, None, [x, g.const(0)], step, go=g.const(True))
    return y, g.Mul(g.CastLike(n, x), g.ReduceSum(x, keepdims=0))


def indexed(g: Graph, x: Value, w: Value) -> Value:
    """Reads its slice of x by the iteration number, as PyTorch's scripted loops do; one state passes unchanged."""
    def step(b: Graph, i: Value, s: Value, same: Value) -> list[Value | None]:
        return [None, b.Mul(b.Tanh(s), b.Add(b.Gather(x, i, axis=0), same)), same]
    return loop(g, g.const(4), [g.Gather(x, 0, axis=0), w], step)[0]


def nested(g: Graph, x: Value, w: Value) -> Value:
    """A Loop in a Loop, and an If on the iteration number between them."""
    def inner(b: Graph, i: Value, s: Value) -> list[Value | None]:
        return [None, b.Sin(b.Mul(s, w))]

    def step(b: Graph, i: Value, s: Value) -> list[Value | None]:
        (t,) = (loop(b, b.const(2), [s], inner),)
        even = b.Equal(b.Mod(i, 2), 0)
        return [None, b.If(even, then_branch=branch(b, lambda c: [c.Add(t, x)]), else_branch=branch(b, lambda c: [c.Mul(t, s)]))]
    return loop(g, g.const(3), [x], step)


def mapped(g: Graph, x: Value) -> Value:
    """No state at all: a Loop as a map."""
    def step(b: Graph, i: Value) -> list[Value | None]:
        return [None, b.Exp(b.Gather(x, i, axis=0))]
    return loop(g, g.const(3), [], step, 1)


def recurrence(**attrs: list[int]):
    """h <- tanh(x w + h u), showing h and x h; over x and a second sequence z."""
    def build(g: Graph, x: Value, z: Value, w: Value, h: Value) -> tuple[Value, ...]:
        def step(b: Graph, s: Value, a: Value, c: Value) -> list[Value]:
            new = b.Tanh(b.Add(b.MatMul(a, w), b.Mul(s, c)))
            return [new, new, b.Mul(a, new)]
        return scan(g, [h], [x, z], step, 2, **attrs)
    return build


def within_if(g: Graph, x: Value, h: Value) -> Value:
    """A Scan in a branch: what it reads from outside is two graphs away."""
    def step(b: Graph, s: Value, a: Value) -> list[Value]:
        return [b.Mul(b.Sin(b.Add(s, a)), h)]
    cond = g.Less(g.ReduceSum(h, keepdims=0), 100.0)
    return g.If(cond, then_branch=branch(g, lambda b: [scan(b, [h], [x], step)]),
                else_branch=branch(g, lambda b: [b.Identity(h)]))


def cumulative(g: Graph, x: Value) -> Value:
    """A Scan without state."""
    return scan(g, [], [x], lambda b, a: [b.Mul(a, b.Sigmoid(a))], 1)


QUIET = {"half": False}
WAYS = {"scan_input_directions": [1, 0], "scan_output_directions": [1, 0], "scan_input_axes": [1, -2], "scan_output_axes": [1, 0]}
CASES: list[Case] = [
    case("if_then", either, np.abs(draw(2, 2)), draw(2, 2), dynamic=(), **QUIET),
    case("if_else", either, -np.abs(draw(2, 2)), draw(2, 2), dynamic=(), **QUIET),
    case("loop", powers, draw(2, 3), draw(3, 3), opsets=(17, 21), **QUIET),
    case("loop_until", until, draw(2, 3, low=0.5, high=1.0), **QUIET),
    case("loop_indexed", indexed, draw(4, 3), draw(3), dynamic=(), **QUIET),
    case("loop_nested", nested, draw(2, 3), draw(2, 3), dynamic=(0, 1), **QUIET),
    case("loop_map", mapped, draw(3, 2), dynamic=(), **QUIET),
    case("scan", recurrence(), draw(4, 2, 3), draw(4, 2, 3), draw(3, 3), draw(2, 3), opsets=(17, 21), dynamic=(0, 1), **QUIET),
    case("scan_ways", recurrence(**WAYS), draw(2, 4, 3), draw(2, 4, 3), draw(3, 3), draw(2, 3), dynamic=(), **QUIET),
    case("scan_map", cumulative, draw(4, 3), **QUIET),
    case("scan_in_if", within_if, draw(3, 2), draw(2), dynamic=(), **QUIET),
]


@pytest.mark.parametrize(("c", "opset"), rows(CASES))
def test_against_central_differences(c: Case, opset: int) -> None:
    check_case(c, opset)


def test_a_loop_that_runs_no_step_passes_the_cotangent_on() -> None:
    g = Graph(17)
    x, n = g.input("x", np.float32, (2,)), g.input("n", np.int64, ())
    y, shown = loop(g, n, [x], lambda b, i, s: [None, b.Mul(s, s), b.Sin(s)], 1)
    dx = pullback(g, {y: g.Add(y, 1.0), shown: shown}, [x])[x]
    g.outputs = [("dx", dx)]
    run = ort.InferenceSession(write_model(simplify(g)).SerializeToString()).run
    at = np.array([0.5, 2.0], np.float32)
    np.testing.assert_allclose(run(None, {"x": at, "n": np.array(0)})[0], at + 1)
    want = (at**2 + 1) * 2 * at + np.sin(at) * np.cos(at)
    np.testing.assert_allclose(run(None, {"x": at, "n": np.array(1)})[0], want, rtol=1e-5)


def test_the_forward_loop_is_written_once() -> None:
    g = Graph(17)
    x, w = g.input("x", np.float32, (2, 3)), g.input("w", np.float32, (3, 3))
    y, _ = powers(g, x, w)
    found = pullback(g, {y: y}, [x, w])
    g.outputs = [("y", y), ("dx", found[x]), ("dw", found[w])]
    assert [n.op for n in simplify(g).nodes].count("Loop") == 2


def test_inside_a_body_too() -> None:
    g = Graph(17)
    x, w = g.input("x", np.float32, (2, 3)), g.input("w", np.float32, (3, 3))
    cond = g.Greater(g.ReduceSum(x, keepdims=0), 0.0)
    y = g.If(cond, then_branch=branch(g, lambda b: [powers(b, x, w)[0]]), else_branch=branch(g, lambda b: [b.Identity(x)]))
    g.outputs = [("dx", pullback(g, {y: y}, [x])[x])]
    backward = simplify(g).nodes[-1]
    assert [n.op for n in backward.attrs["then_branch"].nodes].count("Loop") == 2


def test_a_state_that_grows_is_refused() -> None:
    g = Graph(17)
    x = g.input("x", np.float32, (1, 3))
    y = loop(g, g.const(3), [x], lambda b, i, s: [None, b.Concat(s, x, axis=0)])
    with pytest.raises(UnsupportedOp, match="changes its shape"):
        pullback(g, {y: y}, [x])
