"""Central differences over the node cases that ONNX generates for each operator, through graphattr's public street.

    python tests/conformance/node_cases.py [--operator NAME] [--case NAME] [--json] [--fail-under 0.97] [--jobs 2]

A case counts when it has a float input and a float output, can be run, and is smooth at its data or close by. Each float output
is seeded in turn; <attribution of x, u> must be the derivative of <output, seed> along u. A case is judged by its worst output:

    pass            all agree
    wrong           a number differs from the difference quotient
    crash           graphattr raised something else than a GraphattrError, or its graph cannot be run where the case can
    refused         graphattr said that it cannot, and why
  not counted:
    zero            the derivative is zero everywhere, and graphattr says that there is nothing to attribute
    not smooth      ties, kinks, jumps, infinite values, also when the data is moved a little
    straight-through   QuantizeLinear: the derivative that is used is not that of the values
    random          the case gives something else each time
    cannot run      neither ONNX Runtime nor ONNX's reference runs the case at the newest opset that graphattr writes
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import io
import json
import multiprocessing
import sys
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / p) for p in (".", "rules")]

import graphattr  # noqa: E402
from graphattr.errors import GraphattrError, TargetError  # noqa: E402
from graphattr.upgrade import MAX_IR, MAX_OPSET  # noqa: E402
from tests.conformance.quotients import Array, Feeds, NotSmooth, Quotient, jittered, quotients  # noqa: E402
from tests.conformance.widen import Erf, Gelu, in_float64  # noqa: E402

FLOATS = {TensorProto.FLOAT: 2e-3, TensorProto.DOUBLE: 1e-5, TensorProto.FLOAT16: 1e-2, TensorProto.BFLOAT16: 5e-2}
COUNTED = ("pass", "wrong", "refused", "crash")
VERDICTS = (*COUNTED, "zero", "not smooth", "straight-through", "random", "cannot run")
WORST = ("crash", "wrong", "refused", "pass", "not smooth", "zero", "straight-through", "random", "cannot run")
STRAIGHT_THROUGH = {"QuantizeLinear", "DynamicQuantizeLinear"}
SETTINGS = {"Resize": (1, 2), "Upsample": (1,), "Dropout": (1,), "OneHot": (0, 1)}  # inputs that say what to do: scales, ratio
HUGE = 1e20  # masks are filled with such values; beside them nothing else would count


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    case: str
    operator: str
    verdict: str
    why: str = ""


@dataclass(frozen=True)
class Case:
    """A model with a float input and a float output, at versions that ONNX Runtime knows, and its data."""

    name: str
    operator: str
    model: ModelProto
    feeds: dict[str, Array]
    inputs: list[str]
    outputs: list[str]


# -- the cases ----------------------------------------------------------------------------------------------------
@functools.cache
def cases() -> tuple[Case, ...]:
    """Every generated node case with a float input and a float output, in the order of their names."""
    from onnx.backend.test.case.node import collect_testcases

    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = {c.name: c for c in collect_testcases()}  # no argument: a filter would stick for the whole process
    whole = {name: c.model.graph.node[-1].op_type for name, c in found.items() if "_expanded" not in name}
    made = (_case(c, whole.get(name.split("_expanded")[0])) for name, c in sorted(found.items()))
    return tuple(c for c in made if c.inputs and c.outputs)


def _case(given: Any, operator: str | None) -> Case:
    model = onnx.ModelProto()
    model.CopyFrom(given.model)
    model.ir_version = min(model.ir_version, MAX_IR)
    for o in model.opset_import:
        if o.domain in ("", "ai.onnx"):
            o.version = min(o.version, MAX_OPSET)
    feeds = {i.name: _array(v) for i, v in zip(model.graph.input, given.data_sets[0][0], strict=False)}
    fixed = {n.input[i] for n in model.graph.node for i in SETTINGS.get(n.op_type, ()) if i < len(n.input)}
    ends = ([v.name for v in vs if v.type.tensor_type.elem_type in FLOATS] for vs in (model.graph.input, model.graph.output))
    inputs, outputs = ([n for n in names if n not in fixed] for names in ends)
    return Case(given.name, operator or model.graph.node[-1].op_type, model, feeds, inputs, outputs)


def _array(v: Any) -> Any:
    if isinstance(v, TensorProto):
        return numpy_helper.to_array(v)
    return v if isinstance(v, list) or v is None else np.asarray(v)


def too_new(model: ModelProto) -> str:
    """Why the model's operators do not exist at MAX_OPSET; '' where they do."""
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as e:
        return _line(e)
    return ""


def sample(chosen: Iterable[Case], most: int) -> list[Case]:
    """At most `most` cases of each operator, evenly spread over their names."""
    groups: dict[str, list[Case]] = {}
    for c in chosen:
        groups.setdefault(c.operator, []).append(c)
    return [g[i] for g in groups.values() for i in sorted({round(k) for k in np.linspace(0, len(g) - 1, min(most, len(g)))})]


# -- running ------------------------------------------------------------------------------------------------------
Run = Callable[[list[str], Mapping[str, Any]], list[Array]]


def in_onnxruntime(model: ModelProto) -> Run:
    """Raises where ONNX Runtime does not take the model."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    known = {i.name for i in session.get_inputs()}

    def value(name: str, v: Any) -> Any:
        if kinds[name] != TensorProto.BFLOAT16:
            return v
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(v).view(np.uint16), TensorProto.BFLOAT16)

    return lambda names, feeds: session.run(names, {k: value(k, v) for k, v in feeds.items() if k in known})


def in_reference(model: ModelProto) -> Run:
    session = ReferenceEvaluator(model, new_ops=[Erf, Gelu])

    def run(names: list[str], feeds: Mapping[str, Any]) -> list[Array]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [np.asarray(v) for v in session.run(names, dict(feeds))]

    return run


def first_that_runs(model: ModelProto, names: list[str], feeds: Mapping[str, Any]) -> tuple[Run, list[Array]]:
    """ONNX Runtime, else the reference, with the model's outputs; raises what the reference raises."""
    for make in (in_onnxruntime, in_reference):
        try:
            run = make(model)
            found = run(names, feeds)
            _check_shapes(model, names, found)
            return run, found
        except Exception:
            if make is in_reference:
                raise
    raise AssertionError


def _check_shapes(model: ModelProto, names: list[str], found: list[Array]) -> None:
    """ValueError where the values contradict the shapes that the model declares."""
    said = {o.name: [d.dim_value if d.HasField("dim_value") else None for d in o.type.tensor_type.shape.dim]
            for o in model.graph.output if o.type.tensor_type.HasField("shape")}
    for name, v in zip(names, found, strict=True):
        held = said.get(name)
        if held is not None and (len(held) != v.ndim or any(d not in (None, s) for d, s in zip(held, v.shape, strict=True))):
            raise ValueError(f"{name} has shape {v.shape}, the model declares {held}")


@dataclass(frozen=True)
class Forward:
    """The case's outputs as a function of its float inputs, as precisely as it can be had."""

    model: ModelProto
    run: Run
    precision: np.dtype
    feeds: dict[str, Any]


def forward_of(c: Case) -> tuple[Forward, Run]:
    """(the case in float64 where that gives the same outputs, else as it is; the case as it is)."""
    given, want = first_that_runs(c.model, c.outputs, c.feeds)
    held = [np.asarray(v).dtype for v in want]
    precision = min(held, key=lambda d: np.finfo(d).precision if d.kind == "f" else 0)
    plain = Forward(c.model, given, precision, c.feeds)
    wide = in_float64(c.model)
    kinds = {i.name: i.type.tensor_type.elem_type for i in wide.graph.input}
    feeds = {k: v.astype(np.float64) if kinds[k] == TensorProto.DOUBLE else v for k, v in c.feeds.items()}
    try:
        run, got = first_that_runs(wide, c.outputs, feeds)
    except Exception:
        return plain, given
    same = all(_close(a, b) for a, b in zip(got, want, strict=True))
    return (Forward(wide, run, np.dtype(np.float64), feeds) if same else plain), given


def _close(a: Array, b: Array) -> bool:
    if a.shape != b.shape or a.dtype != np.float64:
        return False
    b = np.asarray(b).astype(np.float64)
    scale = float(np.abs(b[np.isfinite(b)]).max(initial=0))
    return bool(np.allclose(a, b, rtol=2e-2, atol=2e-2 * scale, equal_nan=True))


# -- the verdict --------------------------------------------------------------------------------------------------
def judge(c: Case) -> Outcome:
    """The worst verdict over the case's float outputs."""
    rng = np.random.default_rng(zlib.crc32(c.name.encode()))
    reason = too_new(c.model)
    if reason:
        return Outcome(c.name, c.operator, "cannot run", f"not at opset {MAX_OPSET}: {reason}")
    try:
        forward, given = forward_of(c)
    except Exception as e:
        return Outcome(c.name, c.operator, "cannot run", _line(e))
    again = forward.run(c.outputs, forward.feeds)
    if not all(np.array_equal(a, b, equal_nan=True) for a, b in zip(again, forward.run(c.outputs, forward.feeds), strict=True)):
        return Outcome(c.name, c.operator, "random")
    found = [_judge_output(c, name, forward, given, rng) for name in c.outputs]
    verdict, why = min(found, key=lambda v: WORST.index(v[0]))
    return Outcome(c.name, c.operator, verdict, why)


def _judge_output(c: Case, output: str, forward: Forward, given: Run, rng: np.random.Generator) -> tuple[str, str]:
    y = forward.run([output], forward.feeds)[0]
    seed = np.where(np.abs(y.astype(np.float64)) < HUGE, rng.standard_normal(y.shape), 0.0)

    def score(feeds: Feeds) -> float:
        try:
            with np.errstate(all="ignore"):
                value = np.asarray(forward.run([output], feeds)[0]).astype(np.float64)
        except Exception as e:
            raise NotSmooth(f"cannot be run close by: {_line(e)}") from e
        if value.shape != seed.shape:
            raise NotSmooth(f"the shape of the output depends on the data: {seed.shape}, {value.shape} close by")
        if not np.isfinite(value[seed != 0]).all():
            raise NotSmooth("the output is not finite close by")
        return float(np.sum(value[seed != 0] * seed[seed != 0]))

    want, feeds, why = None, forward.feeds, ""
    if y.size and not seed.any():
        return "not smooth", f"{output}: no value of the output is finite"
    for moved in jittered(forward.feeds, c.inputs, rng):
        try:
            if given([output], _narrow(c.model, moved))[0].shape != y.shape:
                raise NotSmooth("the shape of the output depends on the data")
            want, feeds = quotients(score, moved, c.inputs, rng, forward.precision), moved
            break
        except NotSmooth as e:
            why = why or str(e)
    verdict, reason = _explain(c, output, c.model, given, feeds, seed, want)
    if verdict == "wrong" and not np.isfinite(y).all():
        verdict, want, why = "not smooth", None, "the output is not finite"
    if verdict == "wrong" and forward.model is not c.model and "%" in reason:
        second = _explain(c, output, forward.model, forward.run, feeds, seed, want)
        verdict, reason = second if second[0] == "pass" else (verdict, reason)
    through = {n.op_type for n in c.model.graph.node} & STRAIGHT_THROUGH
    if verdict != "crash" and (want is None or through):
        return ("straight-through", ", ".join(through)) if through else ("not smooth", f"{output}: {why}")
    return verdict, f"{output}: {reason}" if reason else ""


def _explain(c: Case, output: str, model: ModelProto, given: Run, feeds: Feeds, seed: Array,
             want: list[Quotient] | None) -> tuple[str, str]:
    """Explain the output at the feeds, in the model's precision, and compare."""
    try:
        explanation = graphattr.convert(model, "gradient", target="seed", output=output, strip=False)
    except GraphattrError as e:
        flat = want is not None and isinstance(e, TargetError) and all(abs(q.value) < 1e-9 for q in want)
        return "zero" if flat else "refused", f"{type(e).__name__}: {_line(e)}"
    except Exception as e:
        return "crash", f"convert: {type(e).__name__}: {_line(e)}"
    names = [explanation.manifest["attributions"][n] for n in c.inputs]
    arrays = _narrow(explanation.model, {**feeds, "seed": seed})
    try:
        with np.errstate(all="ignore"):
            found = dict(zip(c.inputs, _run_like(given, explanation.model, names, arrays), strict=True))
    except Exception as e:
        return "crash", f"run: {_line(e)}"
    return _compare(c, found, feeds, want or [], set(explanation.manifest["unaffected"]))


def _narrow(model: ModelProto, feeds: Feeds) -> dict[str, Array]:
    """The feeds in the model's types."""
    kinds = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    return {k: np.asarray(feeds[k]).astype(helper.tensor_dtype_to_np_dtype(t)) if t in FLOATS else feeds[k]
            for k, t in kinds.items()}


def _run_like(given: Run, model: ModelProto, names: list[str], feeds: Mapping[str, Any]) -> list[Array]:
    """In ONNX Runtime where the case itself runs there, else wherever it runs."""
    if given.__qualname__.startswith("in_onnxruntime"):
        return in_onnxruntime(model)(names, feeds)
    return first_that_runs(model, names, feeds)[1]


def _compare(c: Case, found: Mapping[str, Array], feeds: Feeds, want: list[Quotient], unaffected: set[str]) -> tuple[str, str]:
    """"wrong" with a share in per cent says that it may be cancellation in single precision."""
    kinds = {i.name: i.type.tensor_type.elem_type for i in c.model.graph.input}
    precision = max(FLOATS[kinds[n]] for n in c.inputs)
    for name in {q.name for q in want}:
        if found[name].shape != feeds[name].shape:
            return "wrong", f"the attribution of {name} has shape {found[name].shape}, the input {feeds[name].shape}"
        if not np.isfinite(found[name]).all():
            return "wrong", f"the attribution of {name} is not finite"
    for q in want:
        terms = found[q.name].astype(np.float64) * q.direction
        got, scale = float(np.sum(terms)), max(float(np.sqrt(np.sum(terms**2))), abs(q.value), 1e-3)
        if abs(got - q.value) > max(precision, 2 * q.error) * scale:
            if q.name in unaffected:
                return "refused", f"the manifest lists {q.name} as unaffected, but its derivative is {q.value:.6g}"
            near = abs(got - q.value) < 5 * precision * scale
            share = f" ({abs(got - q.value) / scale:.2%} off)" if near else ""
            return "wrong", f"along {q.name}: derivative {got:.7g}, difference quotient {q.value:.7g}{share}"
    return "pass", ""


def _line(e: BaseException) -> str:
    return (str(e).strip().split("\n") or [""])[0][:300] or type(e).__name__


# -- the report ---------------------------------------------------------------------------------------------------
def judge_all(chosen: list[Case], jobs: int = 1) -> list[Outcome]:
    """The outcome of each case, in order."""
    if jobs == 1:
        return [judge(c) for c in chosen]
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        return pool.map(judge, chosen, chunksize=4)


def share(found: Iterable[Outcome]) -> float:
    """Passed cases among those that count; 1 when none does."""
    counted = [o.verdict == "pass" for o in found if o.verdict in COUNTED]
    return sum(counted) / len(counted) if counted else 1.0


def report(found: list[Outcome]) -> str:
    """A line per operator, the totals, and every case that does not pass with its reason."""
    table: dict[str, collections.Counter[str]] = {}
    for o in found:
        table.setdefault(o.operator, collections.Counter())[o.verdict] += 1
    total = sum(table.values(), collections.Counter())
    shown = [v for v in VERDICTS if v in COUNTED or total[v]]

    def row(name: str, counts: Mapping[str, int]) -> str:
        return f"{name:32}" + "".join(f"{counts.get(v, 0) or '':>{len(v) + 3}}" for v in shown)

    lines = [f"{'operator':32}" + "".join(f"{v:>{len(v) + 3}}" for v in shown)]
    lines += [row(name, table[name]) for name in sorted(table)]
    lines += ["", row("all", total), f"passed of those that count: {share(found):.2%}", ""]
    lines += [f"{o.verdict}: {o.case} ({o.operator}) {o.why}" for v in WORST if v != "pass" for o in found if o.verdict == v]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--operator", action="append", help="only cases of this operator; may be repeated")
    parser.add_argument("--case", action="append", help="only this case; may be repeated")
    parser.add_argument("--sample", type=int, help="at most so many cases of each operator")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", action="store_true", help="one object per case instead of the table")
    parser.add_argument("--fail-under", type=float, default=0.97, help="least share of counted cases that must pass")
    args = parser.parse_args()
    chosen = [c for c in cases() if (not args.operator or c.operator in args.operator) and (not args.case or c.name in args.case)]
    found = judge_all(sample(chosen, args.sample) if args.sample else chosen, args.jobs)
    print(json.dumps([asdict(o) for o in found], indent=1) if args.json else report(found))
    return int(share(found) < args.fail_under or any(o.verdict in ("wrong", "crash") for o in found))


if __name__ == "__main__":
    sys.exit(main())
