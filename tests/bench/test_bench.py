"""Time and memory, as ratios; nothing here can fail for being slow.

    pytest -m "bench and not slow" -s tests/bench          a few minutes
    pytest -m bench -s tests/bench -k "resnet50"           everything about one network, batch 8 and VGG-19 included

GRAPHATTR_PEERS=/path/to/python names an interpreter with torch, captum and zennit; without one those rows are left out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

import graphattr
from tests.bench.nets import NAMES, network

pytestmark = pytest.mark.bench
WORKER = Path(__file__).with_name("worker.py")
METHODS = {"gradient": "gradient", "lrp": "lrp.epsilon_plus_flat"}
MANY = {  # methods and their parameters, and how many passes of the model that makes
    "fullgrad.uniform": ({}, 1), "fullgrad": ({}, 1), "grad_cam": ({}, 1), "guided_grad_cam": ({}, 1),
    "dga": ({"n_steps": 10}, 10), "rise": ({"n_samples": 20}, 20), "occlusion": ({"patch": 75, "stride": 50}, 16),
}
STEPS = 8
STEPPED = {  # methods of many passes, and the one that they ask
    "integrated_gradients": ({"n_steps": STEPS}, "gradient"),
    "integrated_gradients of lrp": ({"n_steps": STEPS, "base": "lrp.epsilon_plus_flat"}, "lrp"),
    "guided_ig": ({"n_steps": STEPS}, "gradient"),
    "smoothgrad": ({"n_samples": STEPS}, "gradient"),
    "vargrad": ({"n_samples": STEPS}, "gradient"),
}
HEAVY = {"vgg19"}
CASES = [
    pytest.param(n, b, marks=pytest.mark.slow if b > 1 or n in HEAVY else ())
    for b in (1, 8)
    for n in NAMES
    if b == 1 or n not in HEAVY
]


def ask(task, python=sys.executable, **order):
    """What the worker measured, in a fresh process."""
    done = subprocess.run(
        [python, str(WORKER), json.dumps({"task": task, **order})], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def table():
    rows: list[tuple[str, ...]] = []
    yield rows
    widths = [max(len(r[i]) for r in rows) for i in range(5)] if rows else []
    print("\n" + "\n".join("  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)) for r in sorted(rows)))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(network, batch, method, lowering) -> path, made on demand; a batch's files go when the next is asked for."""
    folder, made = tmp_path_factory.mktemp("bench"), {}

    def path(name, batch, method=None, lowering="cpu"):
        key = (name, batch, method, lowering)
        for old in [k for k in made if k[:2] != key[:2]]:
            made.pop(old).unlink()
        if key not in made:
            made[key] = folder / ("-".join(map(str, key)) + ".onnx")
            if method is None:
                onnx.save(network(name, batch), made[key])
            else:
                params = STEPPED[method][0] if method in STEPPED else {}
                chosen = METHODS.get(method, method.split()[0])
                graphattr.convert(path(name, batch), chosen, lowering=lowering, **params).save(made[key])
        return made[key]

    return path


@pytest.mark.parametrize(("name", "batch"), CASES)
def test_speed(name, batch, files, table):
    paths = {"forward": files(name, batch)}
    paths |= {f"{m} {t}": files(name, batch, m, t) for m in METHODS for t in ("portable", "cpu")}
    found = ask(
        "speed",
        paths={k: str(v) for k, v in paths.items()},
        batch=batch,
        reps=7 if batch == 1 and name not in HEAVY else 3,
    )
    one = found["forward"]
    for m in METHODS:
        table.append(
            (
                f"{name} b{batch}",
                f"{m}: time / forward",
                f"{found[f'{m} cpu'] / one:.2f}",
                f"portable {found[f'{m} portable'] / one:.2f}",
                f"{found[f'{m} cpu']:.0f} ms, forward {one:.0f} ms",
            )
        )


@pytest.mark.parametrize("name", ["resnet50", "efficientnet_lite0"])
def test_many_passes(name, files, table, tmp_path):
    forward = files(name, 1)
    for method, (params, passes) in MANY.items():
        path = tmp_path / f"{method}.onnx"
        graphattr.convert(forward, method, **params).save(path)
        found = ask("speed", paths={"forward": str(forward), "all": str(path)}, batch=1, reps=3)
        ratio = found["all"] / found["forward"] / passes
        rest = f"{found['all']:.0f} ms, forward {found['forward']:.0f} ms"
        table.append((f"{name} b1", f"{method}: time / forward", f"{ratio:.2f}", f"times {passes}", rest))


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2"])
def test_steps(name, files, table):
    """What a step costs, in forward passes, and over the one pass that it makes."""
    paths = {"forward": files(name, 1)} | {m: files(name, 1, m) for m in (*METHODS, *STEPPED)}
    found = ask("speed", paths={k: str(v) for k, v in paths.items()}, batch=1, reps=5)
    one = found["forward"]
    for m, (_, base) in STEPPED.items():
        step = (found[m] - one) / STEPS
        table.append(
            (
                f"{name} b1",
                f"{m}: a step / forward",
                f"{step / one:.2f}",
                f"a step / {base} {step / found[base]:.2f}",
                f"{found[m]:.0f} ms for {STEPS} steps, {base} {found[base]:.0f} ms, forward {one:.0f} ms",
            )
        )


@pytest.mark.parametrize(("name", "batch"), [c for c in CASES if c.values[0] in ("resnet50", "vgg19")])
def test_peers(name, batch, files, table):
    python = os.environ.get("GRAPHATTR_PEERS", sys.executable)
    if subprocess.run([python, "-c", "import torch, captum, zennit"], capture_output=True, check=False).returncode:
        pytest.skip("no interpreter with torch, captum and zennit; set GRAPHATTR_PEERS")
    reps = 5 if batch == 1 and name not in HEAVY else 2
    peers = {"gradient": "captum InputXGradient", "lrp": "zennit EpsilonPlusFlat", "integrated_gradients": "captum IG"}
    ours = ask("speed", paths={m: str(files(name, batch, m)) for m in peers}, batch=batch, reps=reps)
    theirs = ask("peers", python, name=name, batch=batch, reps=reps, steps=STEPS)
    for m, peer in peers.items():
        table.append(
            (
                f"{name} b{batch}",
                f"{m}: {peer} / ours",
                f"{theirs[m] / ours[m]:.2f}",
                "",
                f"{theirs[m]:.0f} / {ours[m]:.0f} ms",
            )
        )


@pytest.mark.parametrize(("name", "batch"), [c for c in CASES if c.values[0] in ("resnet50", "squeezenet")])
def test_memory(name, batch, files, table):
    one = ask("memory", path=str(files(name, batch)), batch=batch, static_memory=True)["peak"]
    for m in METHODS:
        with_plan, without = (
            ask("memory", path=str(files(name, batch, m)), batch=batch, static_memory=s)["peak"] for s in (True, False)
        )
        table.append(
            (
                f"{name} b{batch}",
                f"{m}: peak memory / forward",
                f"{with_plan / one:.2f}",
                f"no mem_pattern {without / one:.2f}",
                f"{with_plan:.0f} MB, forward {one:.0f} MB",
            )
        )


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in HEAVY else ()) for n in NAMES])
def test_conversion(name, files, table):
    path = files(name, 1)
    size = path.stat().st_size
    for method in METHODS.values():
        found = ask("conversion", path=str(path), method=method)
        table.append(
            (
                name,
                f"convert to {method}",
                f"{found['seconds']:.2f} s",
                f"peak {found['peak'] * 1e6 / size:.1f} x file",
                f"{found['nodes']} nodes, file {size / 1e6:.0f} MB {(found['bytes'] - size) / 1e3:+.0f} kB",
            )
        )


def test_tape(table):
    found = ask("tape", nodes=2000)
    table.append(
        ("tape", "emit a node of a known shape", f"{found['met']:.0f} us", f"of a new one {found['new']:.0f} us", "")
    )
