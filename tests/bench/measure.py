"""What is measured of one network with one batch: files, times, memory. Each process is worker.py's.

Whatever is compared runs in turns, process after process, so that a machine that others use slows all of it alike.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
STEPS = 8
Row = dict[str, Any]


class Failed(RuntimeError):
    """A process that ended with an error, and the last line that it wrote."""


@dataclass(frozen=True)
class Work:
    """A method and its parameters, how many passes of the network or of `one` that makes, and who else does it."""

    method: str
    params: Mapping[str, Any] = field(default_factory=dict)
    passes: int = 1
    one: str = ""
    peer: str = ""


WORKS = {
    "gradient": Work("gradient", peer="captum"),
    "lrp.epsilon_plus_flat": Work("lrp.epsilon_plus_flat", peer="zennit"),
    "integrated_gradients": Work("integrated_gradients", {"n_steps": STEPS}, STEPS, "gradient", "captum"),
    "smoothgrad": Work("smoothgrad", {"n_samples": STEPS}, STEPS, "gradient"),
    "guided_ig": Work("guided_ig", {"n_steps": STEPS}, STEPS, "gradient"),
    "vargrad": Work("vargrad", {"n_samples": STEPS}, STEPS, "gradient"),
    "integrated_gradients of lrp": Work(
        "integrated_gradients", {"n_steps": STEPS, "base": "lrp.epsilon_plus_flat"}, STEPS, "lrp.epsilon_plus_flat"
    ),
    "fullgrad.uniform": Work("fullgrad.uniform"),
    "fullgrad": Work("fullgrad"),
    "grad_cam": Work("grad_cam"),
    "guided_grad_cam": Work("guided_grad_cam"),
    "dga": Work("dga", {"n_steps": 10}, 10, "fullgrad.uniform"),
    "rise": Work("rise", {"n_samples": 20}, 20),
    "occlusion": Work("occlusion", {"patch": 75, "stride": 50}, 16),
}
UNRULED = {"vit_s16": "zennit", "vit_b16": "zennit"}  # it has no rules for attention
TWINS = {"resnet50", "vgg16", "vgg19", "mobilenet_v2", "densenet121", "squeezenet", "efficientnet_lite0", "vit_s16", "vit_b16"}
HEAVY = {"vgg16", "vgg19"}  # half a gigabyte of weights, most of them of dense layers: prepacking counts


def command(python: str, task: str, order: Mapping[str, Any]) -> list[str]:
    return [python, str(WORKER), json.dumps({"task": task, **order})]


def ask(task: str, python: str = sys.executable, **order: Any) -> Any:
    """What the worker measured, in a fresh process; Failed where it failed."""
    done = subprocess.run(command(python, task, order), capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failed(f"{task}: {(done.stderr.strip().splitlines() or [f'ended with {done.returncode}'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


@contextmanager
def waiting(python: str, task: str, order: Mapping[str, Any]) -> Iterator[Callable[[str], float]]:
    """A process that has opened what it times; calling it with a name gives the milliseconds of one run."""
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed below)
    process = subprocess.Popen(
        command(python, task, order), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1
    )
    to, out = process.stdin, process.stdout

    def said(word: str) -> str:
        """The rest of the next line that begins with the word; packages print what they like between."""
        assert out
        for line in out:
            if line.split()[:1] == [word]:
                return line.removeprefix(word)
        errors.seek(0)
        raise Failed(f"{task}: {(errors.read().strip().splitlines() or ['it ended'])[-1]}")

    def run(name: str) -> float:
        assert to
        to.write(name + "\n")
        return float(said("ms"))

    try:
        said("ready")
        yield run
    finally:
        process.kill()
        process.communicate()
        errors.close()


def times(held: Sequence[tuple[Callable[[str], float], Sequence[str]]], reps: int | None) -> list[dict[str, float]]:
    """Median milliseconds of each name of each process, in turns; `reps` times, or 3 to 11 times, fewer where a round is long."""
    found: list[dict[str, list[float]]] = [{n: [] for n in names} for _, names in held]
    while True:
        for (run, names), ms in zip(held, found, strict=True):
            for n in names:
                ms[n].append(run(n))
        round_ms = sum(v[0] for ms in found for v in ms.values())
        wanted = reps or (3 if round_ms > 5000 else 5 if round_ms > 1500 else 11)
        if all(len(v) >= wanted for ms in found for v in ms.values()):
            return [{n: statistics.median(v) for n, v in ms.items()} for ms in found]


@dataclass(frozen=True)
class Asked:
    """How to measure: repetitions (None: by how long a round takes), lowering, the interpreter with the peers ("": none)."""

    reps: int | None = None
    lowering: str = "cpu"
    peers: str = ""


def measure(net: str, batch: int, methods: Sequence[str], asked: Asked, folder: Path, say: Callable[[str], None]) -> list[Row]:
    """A row per method, and one more without prepacking where weights are heavy. Files lie in the folder while it runs."""
    works = {m: WORKS.get(m, Work(m)) for m in methods}
    needed = {**{w.one: WORKS[w.one] for w in works.values() if w.one}, **works}
    theirs = [m for m, w in works.items() if asked.peers and net in TWINS and w.peer not in ("", UNRULED.get(net))]
    say("writes the network")
    made = ask("network", name=net, batch=batch, path=str(folder / "forward.onnx"))
    shape, size = made["shape"], made["bytes"]
    files = {"forward": {"path": str(folder / "forward.onnx"), "explains": False, "prepacking": True}}
    conversions = {}
    for m, w in needed.items():
        say(f"converts to {m}")
        out = str(folder / f"{len(files)}.onnx")
        conversions[m] = ask("conversion", path=files["forward"]["path"], method=w.method, params=dict(w.params),
                             lowering=asked.lowering, out=out, reps=asked.reps or 3)
        files[m] = {"path": out, "explains": True, "prepacking": True}
        if net in HEAVY:
            files[f"{m} -"] = {**files[m], "prepacking": False}

    say("times")
    peer, names = {"name": net, "shape": shape, "steps": STEPS}, ["forward", *theirs]
    with ExitStack() as stack:
        held = [(stack.enter_context(waiting(sys.executable, "timing", {"files": files, "shape": shape})), list(files))]
        if theirs:
            held.append((stack.enter_context(waiting(asked.peers, "peer_timing", {**peer, "works": names})), names))
        own, other = (*times(held, asked.reps), {})[:2]

    forward = {"ms": own["forward"], "memory": ask("memory", file=files["forward"], shape=shape)["peak"], "file": size}
    beside: dict[str, Row] = {m: {} for m in works}
    for m in theirs:
        say(f"memory of {works[m].peer}'s {m}")
        beside[m] = {"peer": works[m].peer, "peer_ms": other[m], "torch_forward_ms": other["forward"],
                     "peer_memory": ask("peer_memory", asked.peers, work=m, **peer)["peak"]}
    rows = []
    for name, file in files.items():
        m = name.removesuffix(" -")
        if m in works:
            say(f"memory of {name}")
            w, one = works[m], own.get(name.replace(m, works[m].one or m))
            found = {"ms": own[name], **ask("memory", file=file, shape=shape)}
            about = {"net": net, "batch": batch, "method": m, "params": dict(w.params), "passes": w.passes,
                     "prepacking": file["prepacking"]}
            rows.append({**about, **ratios(found, forward, conversions[m], beside[m], w.passes, one if w.one else None)})
    return rows


def ratios(ours: Row, forward: Row, conversion: Row, beside: Row, passes: int, one: float | None) -> Row:
    """What was measured (milliseconds, MB, bytes, seconds of CPU), and over what it stands."""
    row = {
        "ms": ours["ms"], "forward_ms": forward["ms"], "over_forward": ours["ms"] / forward["ms"] / passes,
        "memory": ours["peak"], "opened": ours["opened"], "forward_memory": forward["memory"],
        "memory_over_forward": ours["peak"] / forward["memory"],
        "convert_seconds": conversion["seconds"], "convert_memory": conversion["peak"], "nodes": conversion["nodes"],
        "convert_memory_over_file": conversion["peak"] * 2**20 / forward["file"],
        "file": forward["file"], "file_ratio": conversion["bytes"] / forward["file"],
    }
    if one is not None:
        row["over_steps"] = ours["ms"] / one / passes
    if beside:
        row |= {**beside, "peer_over_ours": beside["peer_ms"] / ours["ms"],
                "memory_over_peer": ours["peak"] / beside["peer_memory"]}
    return row
