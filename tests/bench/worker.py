"""One measurement in a process of its own: `python worker.py '{"task": "speed", ...}'` prints JSON.

One thread, thread CPU time, what is compared runs in turns; medians, because the machine is shared.
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


def peak() -> float:
    """The largest resident size of this process so far, MB. Linux's ru_maxrss would begin with the parent's."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM")) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def image(batch: int) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(0).random((batch, 3, 224, 224)) * 4 - 2).astype(np.float32)


def in_turns(calls: dict[str, Callable[[], Any]], reps: int) -> dict[str, float]:
    """Median milliseconds of each call."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(reps):
        for name, call in calls.items():
            start = time.thread_time()
            call()
            times[name].append((time.thread_time() - start) * 1e3)
    return {name: statistics.median(t) for name, t in times.items()}


def session(path: str, static_memory: bool = True) -> Callable[[np.ndarray[Any, Any]], Any]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level, options.enable_mem_pattern = 3, static_memory
    held = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = held.get_inputs()[0].name
    return lambda x: held.run(None, {name: x})


def speed(paths: dict[str, str], batch: int, reps: int) -> dict[str, float]:
    x = image(batch)
    runs = {name: session(path) for name, path in paths.items()}
    return in_turns({name: lambda run=run: run(x) for name, run in runs.items()}, reps)


def memory(path: str, batch: int, static_memory: bool) -> dict[str, float]:
    import onnxruntime  # noqa: F401

    before = peak()
    run = session(path, static_memory)
    opened = peak()
    for _ in range(3):
        run(image(batch))
    return {"opened": opened - before, "peak": peak() - before}


def conversion(path: str, method: str) -> dict[str, float]:
    import graphattr

    graphattr.methods()  # imports what is imported late
    before, start = peak(), time.process_time()
    explanation = graphattr.convert(path, method)
    seconds = time.process_time() - start
    return {
        "seconds": seconds,
        "peak": peak() - before,
        "bytes": explanation.model.ByteSize(),
        "nodes": len(explanation.model.graph.node),
    }


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


def peers(name: str, batch: int, reps: int, steps: int) -> dict[str, float]:
    """torch's forward pass, captum's InputXGradient and IntegratedGradients and zennit's EpsilonPlusFlat on one architecture."""
    import torch
    from captum.attr import InputXGradient, IntegratedGradients
    from torch_nets import NETS
    from zennit.attribution import Gradient
    from zennit.composites import EpsilonPlusFlat

    torch.set_num_threads(1)
    net, x = NETS[name]().eval(), torch.from_numpy(image(batch))
    before = peak()

    def forward() -> None:
        with torch.no_grad():
            net(x)

    def gradient() -> None:
        InputXGradient(net).attribute(x.clone().requires_grad_(), target=0)

    def path() -> None:
        IntegratedGradients(net).attribute(x, target=0, n_steps=steps, internal_batch_size=batch)

    def relevance() -> None:
        with Gradient(model=net, composite=EpsilonPlusFlat()) as attributor:
            attributor(x.clone(), torch.eye(1000)[[0] * batch])

    found = in_turns({"forward": forward, "gradient": gradient, "lrp": relevance, "integrated_gradients": path}, reps)
    return {**found, "peak": peak() - before}


TASKS = {"speed": speed, "memory": memory, "conversion": conversion, "tape": tape, "peers": peers}

if __name__ == "__main__":
    order = json.loads(sys.argv[1])
    print(json.dumps(TASKS[order.pop("task")](**order)))
