"""What runs in a process of its own: `python worker.py '{"task": "memory", ...}'` prints JSON.

One thread and its CPU time, because the machine is shared; torch and ONNX Runtime never in one process, because their pools
disturb each other. `timing` and `peer_timing` open what is to be timed and then run what they read the name of, so that
whoever asks can let processes run in turns.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "rules")]
Call = Callable[[], Any]
TURN = 100.0  # milliseconds


def peak() -> float:
    """The largest resident size of this process so far, MB. Linux's ru_maxrss would begin with the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def picture(shape: list[int]) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(0).random(shape) * 4 - 2).astype(np.float32)


def in_turns(calls: dict[str, Call]) -> None:
    """Run each once; then print the milliseconds of those whose names are read, as lines `ms 1.5`.

    A short run is repeated within its turn, of which the median counts: its first finds the caches full of another's data.
    """
    for call in calls.values():
        call()
    print("ready", flush=True)
    for line in sys.stdin:
        call, spent = calls[line.strip()], list[float]()
        while sum(spent) < TURN:
            start = time.thread_time()
            call()
            spent.append((time.thread_time() - start) * 1e3)
        print("ms", statistics.median(spent), flush=True)


def opened(path: str, explains: bool, prepacking: bool, x: np.ndarray[Any, Any]) -> Call:
    """The file as its user would run it: the model in ONNX Runtime as it comes, an explanation in an Explainer."""
    if explains:
        from graphattr import Explainer
        from graphattr.session import Device

        explainer = Explainer(path, Device("cpu", threads=1, prepacking=prepacking))
        return lambda: explainer(x)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: x})


def timing(files: dict[str, dict[str, Any]], shape: list[int]) -> None:
    x = picture(shape)
    in_turns({name: opened(**file, x=x) for name, file in files.items()})


def memory(file: dict[str, Any], shape: list[int]) -> dict[str, float]:
    """MB above those of a process that has imported what it needs: once the file is open, and after two runs."""
    import onnxruntime  # noqa: F401

    import graphattr  # noqa: F401

    x, before = picture(shape), peak()
    run = opened(**file, x=x)
    held = peak() - before
    for _ in range(2):
        run()
    return {"opened": held, "peak": peak() - before}


def network(name: str, batch: int, path: str) -> dict[str, Any]:
    """Write the network called `name`, or the file of that name, for this batch; the shape of its input."""
    import onnx

    from tests.bench.nets import network as built

    proto = onnx.load(name) if name.endswith(".onnx") else built(name, batch)
    weights = {t.name for t in proto.graph.initializer}
    inputs = [i for i in proto.graph.input if i.name not in weights]
    dims = inputs[0].type.tensor_type.shape.dim
    if not dims[0].dim_value:
        dims[0].dim_value = batch
    shape = [d.dim_value for d in dims]
    if len(inputs) > 1 or shape[0] != batch or 0 in shape or inputs[0].type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        raise SystemExit(f"{name}: one float input of a shape that is fixed but for its batch is needed; "
                         f"there are {', '.join(i.name for i in inputs)}, the first of shape {shape}; asked for batch {batch}")
    onnx.save(proto, path)
    return {"bytes": Path(path).stat().st_size, "shape": shape}


def conversion(path: str, method: str, params: dict[str, Any], lowering: str, out: str, reps: int) -> dict[str, float]:
    """From file to file: CPU seconds (median), peak MB of the first above the imports, bytes and nodes of what came out."""
    import onnx
    import onnxruntime  # noqa: F401

    import graphattr

    graphattr.methods()  # imports what is imported late
    before, most, seconds = peak(), 0.0, list[float]()
    while len(seconds) < reps and sum(seconds) < 5:
        start = time.process_time()
        graphattr.convert(path, method, lowering=lowering, **params).save(out)
        seconds.append(time.process_time() - start)
        most = most or peak() - before  # of the first: what it leaves behind is none of the second's
    nodes = len(onnx.load(out, load_external_data=False).graph.node)
    return {"seconds": statistics.median(seconds), "peak": most, "bytes": Path(out).stat().st_size, "nodes": nodes}


def tape(nodes: int) -> dict[str, float]:
    """Microseconds to emit one node: of a shape met before, as in every deep network, and of a new one."""
    from graphattr.graph import Graph

    g = Graph(17)
    x = g.input("x", np.float32, ("N", 64, 56, 56))
    start = time.process_time()
    for _ in range(nodes):
        x = g.Relu(g.Add(x, 1.0))
    met = time.process_time() - start
    g, start = Graph(17), time.process_time()
    for i in range(nodes):
        g.Relu(g.input(f"x{i}", np.float32, ("N", i + 1)))
    return {"met": met / nodes / 2 * 1e6, "new": (time.process_time() - start) / nodes * 1e6}


def peer_calls(name: str, x: np.ndarray[Any, Any], works: list[str], steps: int) -> dict[str, Call]:
    """torch's forward pass; captum's InputXGradient and IntegratedGradients; zennit's EpsilonPlusFlat.

    The parameters ask for no gradient: nothing is kept for derivatives that nobody wants.
    """
    import torch
    from captum.attr import InputXGradient, IntegratedGradients
    from torch_nets import NETS
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonPlusFlat

    net, given, batch = NETS[name](x.shape[-1]).eval().requires_grad_(False), torch.from_numpy(x), len(x)

    def forward() -> None:
        with torch.no_grad():
            net(given)

    def gradient() -> None:
        InputXGradient(net).attribute(given.clone().requires_grad_(), target=0)

    def path() -> None:
        IntegratedGradients(net).attribute(given, target=0, n_steps=steps, internal_batch_size=batch)

    def relevance() -> None:
        with Gradient(model=net, composite=EpsilonPlusFlat()) as attributor:
            attributor(given.clone(), torch.eye(1000)[[0] * batch])

    known = {"forward": forward, "gradient": gradient, "lrp.epsilon_plus_flat": relevance, "integrated_gradients": path}
    return {work: known[work] for work in works}


def peer_timing(shape: list[int], **order: Any) -> None:
    import torch

    torch.set_num_threads(1)
    in_turns(peer_calls(x=picture(shape), **order))


def peer_memory(work: str, shape: list[int], **order: Any) -> dict[str, float]:
    """MB above those of a process that has imported what it needs."""
    import captum.attr  # noqa: F401
    import torch
    import zennit.composites  # noqa: F401

    torch.set_num_threads(1)
    x, before = picture(shape), peak()
    run = peer_calls(x=x, works=[work], **order)[work]
    for _ in range(2):
        run()
    return {"peak": peak() - before}


def versions() -> dict[str, str | None]:
    """Of the packages of this interpreter that matter here; None for what is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {p: of(p) for p in ("graphattr", "onnx", "onnxruntime", "onnxruntime-gpu", "numpy", "torch", "captum", "zennit")}


TASKS: dict[str, Callable[..., Any]] = {
    "timing": timing, "memory": memory, "network": network, "conversion": conversion, "tape": tape, "versions": versions,
    "peer_timing": peer_timing, "peer_memory": peer_memory,
}

if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    found = TASKS[order.pop("task")](**order)
    if found is not None:
        print(json.dumps(found))
