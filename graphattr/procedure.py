"""Methods of many passes. A procedure asks for what a method of one pass says at other inputs, and puts the answers together.

`Job` is what a procedure is given: the model in a graph, what is explained and what is attributed to. `job.at(step, xs)` is the
model once more, in a body or in the same graph, at other values of the attributed tensors; `job.repeat` runs a body n times in a
Loop, so that memory does not grow with n. All of it is written with the engine's own parts, so a procedure may be used inside
another (`base=`, `local=`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .backward import Entry, backward
from .errors import MethodError, TargetError, did_you_mean
from .fn import Context, Out, Site, reapply
from .graph import Array, Graph, Node, Value, needed
from .layers import Layer, LayerGraph, to_layers
from .method import Method, load_method
from .plan import Plan, plan
from .references import References, blurred, constant_reference
from .rule import REGISTRY, SIGMA, Found, Step, per_sample_sum
from .vjp import depends, pullback, total
from .vjp.control import lift, trim
from .vjp.index import zeros_like


@dataclass(frozen=True)
class Job:
    """The model as one graph holds it.

    `xs`: what is attributed to. `y`: the explained tensor. `onehot`: e_c, or the caller's seed, the same at every pass.
    `forward`: the model's nodes. `rest`: what the caller set for the method that a procedure asks.
    """

    graph: LayerGraph
    y: Value
    onehot: Value
    xs: Sequence[Value]
    forward: Sequence[Node]
    whole: tuple[LayerGraph, Sequence[Layer]]  # the outermost graph and the path in it: there the rules are bound
    seeded: bool = False
    strict: bool = True
    fitted: Mapping[str, Mapping[str, Array]] = field(default_factory=dict)
    rest: Mapping[str, Any] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)
    held: dict[tuple[str, str], Value] = field(default_factory=dict)
    names: Mapping[Value, Value] = field(default_factory=dict)  # where this is a copy: the tensors of the model it stands for
    removed: Mapping[str, str] = field(default_factory=dict)  # tensors that are folded away, and their successors

    @property
    def g(self) -> Graph:
        return self.graph.graph

    # -- what is known of the model here --------------------------------------------------------------------------
    @property
    def path(self) -> list[Layer]:
        """The layers between the attributed tensors and the explained one."""
        return self.graph.between(self.xs, [self.y])

    @property
    def score(self) -> Value:
        """s(x) = y_c per sample, [N]."""
        return per_sample_sum(self.g, self.y * self.onehot)

    def name_of(self, x: Value) -> str:
        """The name that the model has for x."""
        return self.names.get(x, x).name

    def tensor(self, name: str) -> Value:
        """The tensor of that name on the path, or what the layer of that name makes; TargetError names close ones."""
        nodes = [n for layer in self.path for n in layer.nodes]
        known = {layer.name: layer.y for layer in self.path} | {self.name_of(v): v for n in nodes for v in n.outputs}
        if name in known:
            return known[name]
        if name in self.removed:
            while name in self.removed:
                gone, name = name, self.removed[name]
            raise TargetError(f"tensor {gone!r} was folded away when the graph was made canonical; use its successor {name!r}")
        raise TargetError(f"there is no layer or tensor {name!r} between {', '.join(map(self.name_of, self.xs))} and "
                          f"{self.name_of(self.y)}{did_you_mean(name, known)} (`graphattr inspect` lists the layers)")

    def gradients(self, wrt: Sequence[Value], seed: Value | None = None) -> list[Value]:
        """d s / d v for tensors of this graph; zeros where s does not depend on one."""
        found = pullback(self.g, {self.y: self.onehot if seed is None else seed}, wrt, needed(self.g.nodes, [self.y]))
        return [found[v] if v in found else zeros_like(self.g, v) for v in wrt]

    # -- other inputs ---------------------------------------------------------------------------------------------
    def at(self, step: Graph, xs: Sequence[Value]) -> Job:
        """The model in `step` (this graph, or a body inside it) at these values of the attributed tensors."""
        stands = dict(zip(self.xs, xs, strict=True))
        reached = set(self.xs)
        nodes = []
        for node in self.forward:
            if any(v in reached for v in node.uses):
                reached.update(node.outputs)
                nodes.append(node)
        back = {self.y}
        for node in reversed(nodes):
            if any(v in back for v in node.outputs):
                back.update(node.uses)
        nodes = [n for n in nodes if any(v in back for v in n.outputs) and not all(v in stands for v in n.outputs)]
        made = step.copy(nodes, stands)
        shown = [stands.get(v, v) for v in (*self.xs, self.y, *(v for _, v in self.g.outputs))]
        graph = to_layers(step, [stands[v] for v in self.xs], shown)
        names = {new: self.names.get(v, v) for v, new in stands.items()}
        return dataclasses.replace(self, graph=graph, y=stands.get(self.y, self.y), xs=list(xs), forward=made, names=names)

    def repeat(
        self, n: int | Value, states: Sequence[Value], body: Callable[[Graph, Value, list[Value]], Sequence[Value]]
    ) -> list[Value]:
        """`states` after n steps of `body(step, i, states) -> states`, in one Loop; i counts from 0.

        What the body returns behind the states is collected: (n, *its shape). What is the same at every step is computed once.
        """
        if isinstance(n, int) and n == 0:
            return list(states)
        step = self.g.subgraph("steps")
        i, go = step.input(step.fresh("i"), np.int64, ()), step.input(step.fresh("go"), np.bool_, ())
        held = [step.input(step.fresh("state"), v.dtype, v.shape) for v in states]
        found = body(step, i, held)
        step.outputs = [(step.fresh("go"), go), *((step.fresh("out"), v) for v in found)]
        trim(step)
        lift(step)
        trips = n if isinstance(n, Value) else self.g.const(n)
        made = self.g.emit("Loop", trips, self.g.const(True), *states, n_outputs=len(found), body=step)
        return [made] if isinstance(made, Value) else list(made)

    # -- what a method says here ----------------------------------------------------------------------------------
    def passed(
        self, step: Graph, seeds: Sequence[Value], rule: Callable[[Site, Sequence[Any]], Sequence[Out]]
    ) -> dict[Value, list[Value]]:
        """Signals that go back from y side by side, written in `step`: what each brings to every tensor of the path.

        `rule(site, rs)` says what each of them becomes at a layer: a Value, or one per data input.
        """
        path, graph = self.path, dataclasses.replace(self.graph, graph=step)
        wanted = frozenset(x for layer in path for x in layer.xs)
        arriving: dict[Value, list[list[Value]]] = {self.y: [[r] for r in seeds]}

        def sums(v: Value) -> list[Value | None]:
            return [total(step, shares) for shares in arriving.get(v, [[]] * len(seeds))]

        for layer in reversed(path):
            rs = list(zip(*(sums(y) for y in layer.ys), strict=True))
            with step.scope(layer.name):
                made = rule(Site(step, layer, graph, wanted), [r if len(r) > 1 else r[0] for r in rs])
            for i, out in enumerate(made):
                for x, share in zip(layer.xs, (out,) if isinstance(out, Value) else out, strict=True):
                    if share is not None:
                        arriving.setdefault(x, [[] for _ in seeds])[i].append(share)
        return {v: [r for r in sums(v) if r is not None] for v in arriving}

    def explained_by(self, method: str) -> list[Value]:
        """The attribution of each of `xs` by another method, with those of the caller's parameters that are its own."""
        chosen = load_method(method)
        known = dataclasses.replace(chosen, params={**chosen.params, **self.rest}).parameters()
        return self.run(chosen.with_params({k: v for k, v in self.rest.items() if k in known})).maps

    def run(self, method: Method, entries: list[Entry] | None = None) -> Found:
        """What a method finds here: by its procedure, or by one backward pass per seed."""
        if method.procedure:
            step = REGISTRY.procedures[method.procedure]
            mine = {k: v for k, v in method.params.items() if k in step.params}
            rest = {k: v for k, v in method.params.items() if k not in step.params}
            with self.g.scope(f"procedure/{method.procedure}"):
                return self._together([dataclasses.replace(job, rest=rest) for job in self._independent()], step, mine)
        references = self._references(method)
        if any(bound.rule.compares for bound in self.plan_of(method).values()) and len(jobs := self._independent()) > 1:
            apart = {x: m for job in jobs for x, m in zip(job.xs, job.run(method, entries).maps, strict=True)}
            return Found([apart[x] for x in self.xs], {}, dict(references.values))
        if references.count == 1:
            return Found(self._explained(method, references.values, entries), {}, dict(references.values))
        if all(bound.rule.name == "gradient" for bound in self.plan_of(method).values()):  # it compares behind the pass only
            return Found(self._explained(method, references.mean(self.g), entries), {}, dict(references.values))
        return Found(self._mean_over(method, references, entries), {}, dict(references.values))

    def _explained(self, method: Method, references: Mapping[Value, Value], entries: list[Entry] | None = None) -> list[Value]:
        """The maps of a method without a procedure, compared with one reference per tensor."""
        context = Context(references, self.fitted)
        passes = [self.walk(method, {self.y: r}, self.xs, entries, context) for r in self.seeds(method)]
        maps = [tuple(p[x] if x in p else zeros_like(self.g, x) for p in passes) for x in self.xs]
        return [self._finished(method, x, found, references) for x, found in zip(self.xs, maps, strict=True)]

    def _mean_over(self, method: Method, references: References, entries: list[Entry] | None) -> list[Value]:
        """The mean of what a method says of each row of its references."""
        if entries is not None:
            raise MethodError(f"method {method.name!r} runs once per row of baselines; a ledger is of one pass: give one row")

        def step(body: Graph, i: Value, sums: list[Value]) -> list[Value]:
            maps = self.at(body, self.xs)._explained(method, references.row(body, i))
            return [v + m for v, m in zip(sums, maps, strict=True)]

        sums = self.repeat(references.count, [zeros_like(self.g, x) for x in self.xs], step)
        return [v * (1.0 / references.count) for v in sums]

    def _independent(self) -> list[Job]:
        """One job for the attributed tensors that depend on no other, one for each group of those that do."""
        groups: list[list[Value]] = []
        for x in self.xs:
            below = depends(self.forward, [x])
            free = (g for g in groups if not any(v in below or x in depends(self.forward, [v]) for v in g))
            group = next(free, None)
            groups.append([x]) if group is None else group.append(x)
        return [self] if len(groups) < 2 else [dataclasses.replace(self, xs=group) for group in groups]

    def _together(self, jobs: Sequence[Job], step: Step, params: Mapping[str, Any]) -> Found:
        """What a procedure finds for each job; where there are several, extras are named after the first tensor of theirs."""
        found: dict[Value, Value] = {}
        whole = Found([])
        for job in jobs:
            made = step.apply(job, **params)
            made = made if isinstance(made, Found) else Found(list(made))
            found.update(zip(job.xs, made.maps, strict=True))
            end = f"_{job.name_of(job.xs[0])}" if len(jobs) > 1 else ""
            whole.extras.update({f"{name}{end}": v for name, v in made.extras.items()})
            whole.references.update(made.references)
        whole.maps.extend(found[x] for x in self.xs)
        return whole

    def seeds(self, method: Method) -> tuple[Value, ...]:
        with self.g.scope(f"seed/{method.seed}"):
            step = REGISTRY.seeds[method.seed]
            params = {k: v for k, v in method.params.items() if k in step.params}
            seeds = tuple(step.apply(self.g, self.y, self.onehot, **params))
        if not self.seeded:
            return seeds
        if len(seeds) > 1:
            raise MethodError(f"method {method.name!r} makes its own {len(seeds)} seeds; it cannot take target='seed'")
        return (self.onehot,)

    def walk(
        self,
        method: Method,
        seeds: Mapping[Value, Value],
        wrt: Sequence[Value],
        entries: list[Entry] | None = None,
        context: Context | None = None,
    ) -> dict[Value, Value]:
        """One backward pass by the method's rules."""
        return backward(self.graph, self.plan_of(method), self.graph.between(wrt, list(seeds)), seeds, wrt, entries, context)

    def plan_of(self, method: Method) -> Plan:
        """The rules of the layers on the path, bound once: layers have the same names wherever the model is written."""
        key = repr((method.name, method.assign, method.params))
        if key not in self.plans:
            self.plans[key] = plan(self.whole[0], method, self.whole[1], self.strict)
        return self.plans[key]

    def _references(self, method: Method) -> References:
        """The references of a method that has the parameter `baselines`, where it is set."""
        known = REGISTRY.finishes[method.finish].params
        given = method.params.get("baselines") if "baselines" in known else None
        if given is None:
            return References({})
        sigma = method.params.get("sigma", known["sigma"].default if "sigma" in known else SIGMA)
        return self.references(given, sigma, f"method {method.name!r}")

    def _finished(self, method: Method, x: Value, maps: tuple[Value, ...], references: Mapping[Value, Value]) -> Value:
        step = REGISTRY.finishes[method.finish]
        params: dict[str, Any] = {k: v for k, v in method.params.items() if k in step.params}
        if x in references:
            params["baselines"] = references[x]
        with self.g.scope(f"finish/{method.finish}"):
            result: Value = step.apply(self.g, x, maps, **params)
        return result

    def output_at(self, references: References) -> Value:
        """y at the references; of several the mean."""

        def there(job: Job, g: Graph, row: Mapping[Value, Value]) -> Value:
            return job.at(g, [x * 0.0 + row[x] for x in job.xs]).y

        if references.count == 1:  # rules that compare have evaluated most of it: the tape shares
            return reapply(self.g, self.y, {x: x * 0.0 + r for x, r in references.values.items()})
        made = self.repeat(
            references.count, [self.y * 0.0], lambda body, i, sums: [sums[0] + there(self, body, references.row(body, i))]
        )
        return made[0] * (1.0 / references.count)

    # -- what the caller gives ------------------------------------------------------------------------------------
    def references(self, baselines: Any, sigma: float = SIGMA, where: str = "baselines") -> References:
        """What each of `xs` is compared with: numbers, arrays or rows of them, "input" (`<x>_baseline`), "blur" (of `sigma`)."""
        return References({x: self.reference(x, baselines, where, sigma) for x in self.xs})

    def reference(self, x: Value, baselines: Any, where: str = "baselines", sigma: float = SIGMA) -> Value:
        """The reference of x (see `references.py`): it broadcasts against x; several have a first axis of their own."""
        if isinstance(baselines, str) and baselines == "input":
            return self.input(x, "baseline")
        try:
            if isinstance(baselines, str):
                return blurred(self.g, x, sigma)
            key = ("baseline", self.name_of(x))
            if key not in self.held:
                self.held[key] = constant_reference(self.root, x, baselines)
            return self.held[key]
        except MethodError as e:
            raise MethodError(f"{where}, parameter 'baselines': {e}") from e

    def input(self, x: Value, what: str, lead: tuple[Any, ...] = ()) -> Value:
        """The graph input `<x>_<what>` of x's type, shape (*lead, *shape of x); shared by all methods of the file."""
        name, root = f"{self.name_of(x)}_{what}", self.root
        held = [v for v in root.inputs if v.name == name]
        return held[0] if held else root.input(name, x.dtype, (*lead, *(x.shape or ())))

    @property
    def root(self) -> Graph:
        """The outermost graph."""
        g = self.g
        while g.parent is not None:
            g = g.parent
        return g
