"""If, Loop and Scan: the backward pass is a node of the same operator, whose body computes a step anew and pulls back through it.

A Loop or Scan is written once more with extra outputs that show the state before each step (`Graph.stacked`; `simplify`
lets that one replace the first). The steps then run backwards: the cotangents of the state are carried, those of what the body
reads from outside are added up, those of scanned tensors are scanned out. All of it is made of operators with derivatives.

How a body is pulled back is the caller's matter (`Through`): `pullback` for derivatives, the walk by rules for relevance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import UnsupportedOp
from ..graph import RANDOM, Graph, Node, Value, needed
from .index import zeros_like
from .registry import Pairs, depends, pullback, total

# (attribute that holds the body, graph with the body's nodes, what stands there for the body's values, cotangents of its
# outputs, values whose cotangents are wanted) -> those it finds
Through = Callable[[str, Graph, Mapping[Value, Value], Mapping[Value, Value], Sequence[Value]], Mapping[Value, Value]]


def plain(
    attr: str, step: Graph, stands: Mapping[Value, Value], seeds: Mapping[Value, Value], wrt: Sequence[Value]
) -> Mapping[Value, Value]:
    """The derivative of a body."""
    return pullback(step, seeds, wrt)


def pull_control(g: Graph, node: Node, dys: Sequence[Value | None], wanted: Collection[Value], through: Through = plain) -> Pairs:
    """(value, cotangent) of each wanted value that the node reads as an input or from outside its bodies."""
    if node.op == "If":
        return _pull_if(g, node, dys, wanted, through)
    walk = _Loop(g, node, dys, wanted, through) if node.op == "Loop" else _Scan(g, node, dys, wanted, through)
    return walk.pull()


def _pull_if(g: Graph, node: Node, dys: Sequence[Value | None], wanted: Collection[Value], through: Through) -> Pairs:
    """An If on the same condition, in which each branch gives the cotangents of what either of them reads."""
    captured = [v for v in dict.fromkeys(v for body in node.subgraphs for v in body.captured()) if v in wanted]
    steps: dict[str, tuple[Graph, Mapping[Value, Value]]] = {}
    for attr, body in node.attrs.items():
        step, stands = g.subgraph(attr), dict[Value, Value]()
        step.copy(body.nodes, stands)
        steps[attr] = step, through(attr, step, stands, _seeds(step, stands, _shown(body), dys), captured)
    reached = [v for v in captured if any(v in found for _, found in steps.values())]
    if not reached:
        return []
    for step, found in steps.values():
        step.outputs = [(step.fresh("dx"), found[v] if v in found else zeros_like(step, v)) for v in reached]
        trim(step)
    branches: dict[str, Any] = {attr: step for attr, (step, _) in steps.items()}
    made = g.emit("If", node.inputs[0], n_outputs=len(reached), **branches)
    return list(zip(reached, [made] if isinstance(made, Value) else made, strict=True))


@dataclass
class _Backwards:
    """What running a Loop's and a Scan's steps backwards have in common."""

    g: Graph
    node: Node
    dys: Sequence[Value | None]
    wanted: Collection[Value]
    through: Through
    stands: dict[Value, Value] = field(default_factory=dict)
    lead = 0  # inputs of the node, and of its body, before the state
    ends = 0  # outputs of the body before the state

    def __post_init__(self) -> None:
        for init, entering, (_, leaving) in zip(self.inits, self.states, self.body.outputs[self.ends :], strict=False):
            if init.is_float and _differ(entering, leaving):
                raise UnsupportedOp(
                    f"no derivative for {self.node.op} (node {self.node.name!r}): its state {entering.name!r} changes its "
                    f"shape from step to step, {entering.shape} to {leaving.shape}; collect the parts as a scan output of the "
                    "body instead"
                )
        self.step = self.g.subgraph(f"{self.node.op}_backward")

    @property
    def body(self) -> Graph:
        body: Graph = self.node.attrs["body"]
        return body

    @property
    def inits(self) -> list[Value]:
        """The state before the first step."""
        raise NotImplementedError

    @property
    def states(self) -> list[Value]:
        """The state as the body reads it."""
        return self.body.inputs[self.lead : self.lead + len(self.inits)]

    @property
    def floats(self) -> list[int]:
        """Which parts of the state have a cotangent."""
        return [j for j, v in enumerate(self.inits) if v.is_float]

    @property
    def captured(self) -> list[Value]:
        return [v for v in dict.fromkeys(self.body.captured()) if v in self.wanted]

    def stacked(self, more: Sequence[Value], **attrs: list[int]) -> tuple[Value, ...]:
        """Each part of the state, and of these values of the body, before each step, one behind the other."""
        if self.node not in self.g.stacked:
            twin = self.g.copy_of_body(self.body, {})
            twin.outputs += [(twin.fresh("before"), twin.inputs[self.body.inputs.index(v)]) for v in (*self.states, *more)]
            known = {**self.node.attrs, **attrs, "body": twin}
            made = self.g.emit(self.node.op, *self.node.inputs, n_outputs=len(twin.outputs) - self.ends, **known)
            producer = self.g.producer(made if isinstance(made, Value) else made[0])
            assert producer is not None
            self.g.stacked[self.node] = producer
        return self.g.stacked[self.node].outputs[len(self.node.outputs) :]

    def carried(self) -> dict[int, Value]:
        """The cotangents of the state, as the step reads them."""
        return {j: self.step.input(self.step.fresh("ds"), self.inits[j].dtype, self.states[j].shape) for j in self.floats}

    def seeds(self, ds: Mapping[int, Value], scanned: Sequence[Value | None]) -> dict[Value, Value]:
        """The body's nodes in the step, and the cotangents of its outputs."""
        self.step.copy(self.body.nodes, self.stands)
        n = len(self.inits)
        return _seeds(self.step, self.stands, _shown(self.body)[self.ends :], [*(ds.get(j) for j in range(n)), *scanned])

    def starts(self) -> list[Value]:
        """The cotangents of the state behind the last step."""
        outputs = self.node.outputs
        return [dy if (dy := self.dys[j]) is not None else zeros_like(self.g, outputs[j]) for j in self.floats]

    def total(self, found: Mapping[Value, Value], reached: Sequence[Value]) -> list[tuple[str, Value]]:
        """The step's outputs: the state's cotangents before it, and the sums of those of what is read from outside."""
        step, before = self.step, [self.stands[self.states[j]] for j in self.floats]
        state = [found[v] if v in found else zeros_like(step, v) for v in before]
        sums = [step.Add(step.input(step.fresh("dc"), v.dtype, v.shape), found[v]) for v in reached]
        return [(step.fresh("out"), v) for v in (*state, *sums)]

    def pairs(self, reached: Sequence[Value], made: Sequence[Value]) -> Pairs:
        """The cotangents of the initial state and of what is read from outside."""
        return list(zip([*(self.inits[j] for j in self.floats), *reached], made, strict=True))


class _Loop(_Backwards):
    lead, ends = 2, 1

    @property
    def inits(self) -> list[Value]:
        return [v for v in self.node.inputs[2:] if v is not None]

    def pull(self) -> Pairs:
        g, step, body = self.g, self.step, self.body
        *befores, iterations = self.stacked(body.inputs[:1])
        i, go = step.input(step.fresh("i"), np.int64, ()), step.input(step.fresh("go"), np.bool_, ())
        ds = self.carried()
        trips = g.Squeeze(g.Shape(iterations), [0])
        at = step.Sub(g.Sub(trips, 1), i)
        read = [step.emit("Gather", v, at, axis=0, out_shape=s.shape) for v, s in zip(befores, self.states, strict=True)]
        self.stands.update(zip(body.inputs, [step.Gather(iterations, at, axis=0), step.const(True), *read], strict=True))
        scanned = [None if dy is None else step.Gather(dy, at, axis=0) for dy in self.dys[len(self.inits) :]]
        seeds = self.seeds(ds, scanned)
        found = self.through("body", step, self.stands, seeds, [self.stands[self.states[j]] for j in self.floats] + self.captured)
        reached = [v for v in self.captured if v in found]
        step.outputs = [(step.fresh("go"), go), *self.total(found, reached)]
        if len(step.outputs) == 1:
            return []
        trim(step)
        starts = [*self.starts(), *(zeros_like(g, v) for v in reached)]
        made = g.emit("Loop", trips, g.const(True), *starts, n_outputs=len(starts), body=step)
        return self.pairs(reached, [made] if isinstance(made, Value) else made)


class _Scan(_Backwards):
    @property
    def inits(self) -> list[Value]:
        return [v for v in self.node.inputs[: self._n] if v is not None]

    @property
    def _n(self) -> int:
        return len(self.node.inputs) - int(self.node.attrs["num_scan_inputs"])

    def _listed(self, name: str, default: int) -> list[int]:
        n = int(self.node.attrs["num_scan_inputs"]) if "input" in name else len(self.node.outputs) - self._n
        return list(self.node.attrs.get(name) or [default] * n)

    def pull(self) -> Pairs:
        g, step, body, n = self.g, self.step, self.body, self._n
        ways, axes = self._listed("scan_input_directions", 0), self._listed("scan_input_axes", 0)
        out_ways, out_axes = self._listed("scan_output_directions", 0), self._listed("scan_output_axes", 0)
        xs, inner = [v for v in self.node.inputs[n:] if v is not None], body.inputs[n:]
        ds = self.carried()
        more = {"scan_output_directions": [*out_ways, *[0] * n], "scan_output_axes": [*out_axes, *[0] * n]}
        befores = self.stacked((), **more) if n else ()
        arrived = [(k, dy) for k, dy in enumerate(self.dys[n:]) if dy is not None]
        shown = [v for _, v in body.outputs[n:]]
        read = (*self.states, *inner, *(shown[k] for k, _ in arrived))
        places = [step.input(step.fresh(v.name), v.dtype, v.shape) for v in read]
        self.stands.update(zip(body.inputs, places[: n + len(xs)], strict=True))
        scanned: list[Value | None] = [None] * len(shown)
        for (k, _), place in zip(arrived, places[n + len(xs) :], strict=True):
            scanned[k] = place
        seeds = self.seeds(ds, scanned)
        wanted = [k for k, x in enumerate(xs) if x in self.wanted and x.is_float]
        wrt = [self.stands[v] for v in (*(self.states[j] for j in self.floats), *(inner[k] for k in wanted))]
        found = self.through("body", step, self.stands, seeds, [*wrt, *self.captured])
        reached = [v for v in self.captured if v in found]
        dxs = [k for k in wanted if self.stands[inner[k]] in found]
        rest, step.inputs = step.inputs, []
        outputs = self.total(found, reached)
        step.inputs = [*rest[: len(ds)], *step.inputs, *rest[len(ds) :]]
        step.outputs = [*outputs, *((step.fresh("dx"), found[self.stands[inner[k]]]) for k in dxs)]
        if not step.outputs:
            return []
        trim(step)
        starts = [*self.starts(), *(zeros_like(g, v) for v in reached)]
        made = g.emit(
            "Scan", *starts, *befores, *xs, *(dy for _, dy in arrived), n_outputs=len(step.outputs), body=step,
            num_scan_inputs=n + len(xs) + len(arrived),
            scan_input_directions=[1] * n + [1 - w for w in ways] + [1 - out_ways[k] for k, _ in arrived],
            scan_input_axes=[0] * n + axes + [out_axes[k] for k, _ in arrived],
            scan_output_directions=[1 - ways[k] for k in dxs], scan_output_axes=[axes[k] for k in dxs])
        made = (made,) if isinstance(made, Value) else made
        return self.pairs(reached, made[: len(starts)]) + [(xs[k], dx) for k, dx in zip(dxs, made[len(starts) :], strict=True)]


def data_inside(node: Node, body: Graph, data: Collection[Value]) -> list[Value]:
    """What is data in a node's body: what it reads of `data` from outside, and its inputs where data arrives at some step."""
    roots = [v for v in dict.fromkeys(body.captured()) if v in data]
    if node.op == "If":
        return roots
    form = _Loop if node.op == "Loop" else _Scan
    entering, arriving = body.inputs[form.lead :], node.inputs[form.lead :]
    leaving = _shown(body)[form.ends : form.ends + len(entering) - int(node.attrs.get("num_scan_inputs", 0))]
    roots += [v for v, x in zip(entering, arriving, strict=False) if x in data and v.is_float]
    while True:
        reached = depends(body.nodes, roots)
        more = [v for v, y in zip(entering, leaving, strict=False) if y in reached and v.is_float and v not in roots]
        if not more:
            return roots
        roots += more


def scanned_inside(node: Node, body: Graph) -> list[tuple[Value, Value]]:
    """(a body's input, what a Scan cuts into slices for it)."""
    n = len(node.inputs) - int(node.attrs["num_scan_inputs"]) if node.op == "Scan" else len(node.inputs)
    return [(v, x) for v, x in zip(body.inputs[n:], node.inputs[n:], strict=False) if x is not None]


def _shown(body: Graph) -> list[Value]:
    return [v for _, v in body.outputs]


def _seeds(
    step: Graph, stands: Mapping[Value, Value], outputs: Sequence[Value], dys: Sequence[Value | None]
) -> dict[Value, Value]:
    """The cotangents of a body's outputs where its nodes were copied; those of one value add up."""
    arriving: dict[Value, list[Value]] = {}
    for y, dy in zip(outputs, dys, strict=True):
        if dy is not None and y.is_float:
            arriving.setdefault(stands.get(y, y), []).append(dy)
    return {y: dy for y, found in arriving.items() if (dy := total(step, found)) is not None}


def _differ(a: Value, b: Value) -> bool:
    """Whether two shapes are known to differ."""
    if a.shape is None or b.shape is None:
        return False
    pairs = zip(a.shape, b.shape, strict=False)
    return len(a.shape) != len(b.shape) or any(isinstance(p, int) and isinstance(q, int) and p != q for p, q in pairs)


def lift(body: Graph) -> None:
    """Move out of a body what is the same at every step: nodes that read nothing that the body is given or draws."""
    g, stands, kept = body.parent, dict[Value, Value](), list[Node]()
    assert g is not None
    for node in body.nodes:
        fixed = all(v in stands or v.is_const or v.graph is not body for v in node.uses)
        if fixed and node.inputs and not node.subgraphs and node.op not in RANDOM:
            g.share(node, stands)
            continue
        inputs = tuple(None if v is None else stands.get(v, v) for v in node.inputs)
        kept.append(dataclasses.replace(node, inputs=inputs, attrs=body.rebound(node.attrs, stands)))
    body.nodes[:] = kept
    body.outputs = [(name, stands.get(v, v)) for name, v in body.outputs]


def trim(body: Graph) -> None:
    """Drop a body's nodes that none of its outputs needs, and Loops that were written twice."""
    body.nodes[:] = without_twins(body, needed(body.nodes, _shown(body)))


def without_twins(g: Graph, nodes: Sequence[Node]) -> list[Node]:
    """The nodes with each Loop or Scan that shows its states (`Graph.stacked`) in the place of the one that does not."""
    there = set(nodes)
    twins = {node: twin for node, twin in g.stacked.items() if {node, twin} <= there}
    later = set(twins.values())

    def both(node: Node) -> Node:
        twin = twins.get(node)
        outputs = node.outputs if twin is None else (*node.outputs, *twin.outputs[len(node.outputs) :])
        return node if twin is None else replace(twin, outputs=outputs, name=node.name)

    return [both(n) for n in nodes if n not in later]
