"""Trained networks, explained: is the gradient right, where does relevance go, how long does it take?

    python tests/conformance/real_models.py [NAME ..] [--json]

Each network is taken from an installed package (see trained.py); one that is missing is named with the command to install it.

cosine, error   the float32 gradient along random directions against difference quotients of the float64 forward pass
kinks           the same error where the quotient's step crosses many kinks: what a coarser check would have said
unexplained     relevance that arrived at a layer and that no column of the ledger explains, over the most that arrives anywhere
x               time over that of ONNX Runtime's forward pass, one thread, medians of interleaved runs
"""

from __future__ import annotations

import argparse
import collections
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [p for p in (str(ROOT), str(ROOT / "rules")) if p not in sys.path]

import graphattr  # noqa: E402
from tests.conformance.exact import exact, needed  # noqa: E402
from tests.conformance.trained import TRAINED, Array, Feeds, Trained  # noqa: E402

STEPS = (1e-8, 1e-3)  # of the input's root mean square: the first crosses hardly a kink, the second many
DIRECTIONS = 6
LEAKY = {"softmax", "control", "Concat"}
"""What the ledger has no column for: the Taylor rule of a softmax does not conserve, a Scan books no steps, and a class token
that is joined to data keeps its part."""


def measured(trained: Trained, reps: int = 7) -> dict[str, Any]:
    """All that is said of one network."""
    model, feeds = trained.load(trained.path()), trained.feeds()
    wrt = embedding(model) if trained.wrt == "embedding" else None
    found: dict[str, Any] = {"nodes": len(model.graph.node)}
    common = {"output": trained.output, "wrt": None if wrt is None else [wrt]}
    files = {}
    for key, method, more in (("gradient", "gradient", {}), ("lrp", trained.method, {**trained.params, "ledger": True})):
        start = time.perf_counter()
        files[key] = graphattr.convert(model, method, **common, **more)
        found[f"{key}_convert_s"] = time.perf_counter() - start
    found |= slopes(model, feeds, files["gradient"], wrt)
    found |= flows(files["lrp"], feeds)
    files["lrp"] = graphattr.convert(model, trained.method, **common, **trained.params)
    return found | timed(model, {k: f.model for k, f in files.items()}, feeds, reps)


def embedding(model: onnx.ModelProto) -> str:
    """What the lookup of token ids gives."""
    ids = next(i.name for i in model.graph.input)
    return str(next(n.output[0] for n in model.graph.node if n.op_type == "Gather" and n.input[1] == ids))


# -- the gradient -------------------------------------------------------------------------------------------------
def slopes(model: onnx.ModelProto, feeds: Feeds, explanation: Any, wrt: str | None) -> dict[str, float]:
    """The float32 gradient along random directions against difference quotients of the float64 forward pass."""
    a = graphattr.Explainer(explanation)(feeds)
    ((name, gradient),) = a.scores.items()
    if wrt is not None:
        feeds = feeds | {wrt: tensor(model, wrt, feeds)}
        model = cut(model, wrt, feeds[wrt])
    f, x = exact(model, explained(explanation, model)), feeds[name].astype(np.float64)
    where = int(np.asarray(a.target).reshape(-1)[0])
    d = np.random.default_rng(0).standard_normal((DIRECTIONS, *x.shape[1:]))
    analytic = (gradient.astype(np.float64) * d).reshape(DIRECTIONS, -1).sum(1)
    found = {"target": where, "gradient_size": float(np.linalg.norm(analytic) / DIRECTIONS**0.5)}
    for step in STEPS:
        h = step * float(np.sqrt(np.mean(x**2)))
        moved = np.concatenate([x + h * d, x - h * d])
        spread = {k: np.repeat(v, 2 * DIRECTIONS, 0) for k, v in feeds.items()} | {name: moved}
        y = f(spread).reshape(2 * DIRECTIONS, -1)[:, where]
        quotient = (y[:DIRECTIONS] - y[DIRECTIONS:]) / (2 * h)
        norms = np.linalg.norm(quotient) * np.linalg.norm(analytic)
        found[f"cosine_{step:g}"] = float(quotient @ analytic / norms)
        found[f"error_{step:g}"] = float(np.abs(quotient - analytic).max() / np.abs(quotient).max())
    return found


def explained(explanation: Any, model: onnx.ModelProto) -> str:
    """The tensor that is explained: the output, or what a terminal Softmax or Sigmoid reads."""
    name, made = explanation.manifest["output"], {o: n for n in model.graph.node for o in n.output}
    if explanation.manifest["stripped"]:
        while made[name].op_type not in ("Softmax", "Sigmoid", "LogSoftmax"):
            name = made[name].input[0]
        name = made[name].input[0]
    return str(name)


def tensor(model: onnx.ModelProto, name: str, feeds: Feeds) -> Array:
    """The value of an inner tensor."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.append(onnx.ValueInfoProto(name=name))
    return np.asarray(session(probe).run([name], feeds)[0])


def cut(model: onnx.ModelProto, name: str, value: Array) -> onnx.ModelProto:
    """The model with the tensor as an input."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    graph.node.remove(next(n for n in graph.node if name in n.output))
    graph.input.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None] * value.ndim))
    needed(graph)
    return made


# -- the ledger ---------------------------------------------------------------------------------------------------
def flows(explanation: Any, feeds: Feeds) -> dict[str, Any]:
    """What no column of the ledger explains, by kind of layer, as a share of the most that arrives at any layer."""
    a, manifest = graphattr.Explainer(explanation)(feeds), explanation.manifest
    assert a.ledger is not None
    lines = a.ledger.astype(np.float64).sum(0)
    (names,) = manifest["ledger"]["layers"].values()
    kinds = {e["layer"]: "Concat" if e["op"] == "Concat" else e["kind"] for held in manifest["layers"].values() for e in held}
    largest = np.abs(lines[:, 0]).max()
    unexplained = np.abs(lines[:, 0] - lines[:, 1:].sum(1)) / largest
    worst: dict[str, float] = collections.defaultdict(float)
    for name, share in zip(names, unexplained, strict=True):
        worst[kinds[name]] = max(worst[kinds[name]], float(share))
    arrived = float(lines[0, 0])
    return {"layers": len(names), "unexplained": max(v for k, v in worst.items() if k not in LEAKY),
            "unexplained_by_kind": {k: v for k, v in sorted(worst.items()) if v > 1e-5},
            "seed": arrived, "attributed": float(sum(s.sum(dtype=np.float64) for s in a.scores.values())),
            "bias": float(lines[:, 2].sum()), "stabiliser": float(np.abs(lines[:, 3]).sum())}


# -- time ---------------------------------------------------------------------------------------------------------
def timed(model: onnx.ModelProto, explanations: dict[str, onnx.ModelProto], feeds: Feeds, reps: int) -> dict[str, float]:
    """Milliseconds of a forward pass, and explanations as multiples of it: medians of interleaved runs in one thread."""
    found: dict[str, float] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for key, proto in {"forward": model, **explanations}.items():
        start = time.perf_counter()
        held = session(proto)
        found[f"{key}_session_s"] = time.perf_counter() - start
        calls[key] = lambda held=held: held.run(None, feeds)
        calls[key]()
    times: dict[str, list[float]] = {key: [] for key in calls}
    for _ in range(reps):
        for key, call in calls.items():
            start = time.thread_time()
            call()
            times[key].append(time.thread_time() - start)
    medians = {key: statistics.median(t) for key, t in times.items()}
    return found | {"forward_ms": 1e3 * medians["forward"], **{f"{k}_x": medians[k] / medians["forward"] for k in explanations}}


def session(model: onnx.ModelProto) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


# -- the table ----------------------------------------------------------------------------------------------------
WIDTHS = {"network": 20, "cosine": 14, "error": 8, "kinks": 8, "method": 23, "unexplained": 13, "convert s": 11, "session s": 11,
          "forward ms": 12, "gradient x": 12, "lrp x": 6}


def row(name: str, r: dict[str, Any], trained: Trained) -> list[str]:
    small, large = (f"{s:g}" for s in STEPS)
    return [
        name, f"1 - {1 - r[f'cosine_{small}']:.0e}", f"{r[f'error_{small}']:.0e}", f"{r[f'error_{large}']:.0e}", trained.method,
        f"{r['unexplained']:.0e}",
        *(f"{r[k]:.1f}" for k in ("lrp_convert_s", "lrp_session_s", "forward_ms", "gradient_x", "lrp_x")),
    ]


def line(cells: Any) -> str:
    return "".join(cell.ljust(width) for cell, width in zip(cells, WIDTHS.values(), strict=True)).rstrip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*TRAINED, []], metavar="NAME")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = {}
    if not options.json:
        print(line(WIDTHS))
    for name in options.names or TRAINED:
        trained = TRAINED[name]
        if trained.path() is None:
            print(f"{name}: not installed: {trained.install}", file=sys.stderr)
            continue
        results[name] = measured(trained)
        if not options.json:
            print(line(row(name, results[name], trained)), flush=True)
    if options.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
