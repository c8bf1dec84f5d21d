"""What explaining a folder of pictures costs, in a process of its own: `python datasets.py '{"files": 64, ...}'` prints JSON.

EfficientNet-Lite0, gradient, JPEGs of 500 x 375. What is compared runs in turns: the session alone, fed with batches that are
ready, and the same batches read from disk, without and with writing. Medians per picture: the clock, which says little where
others use the cores, and the CPU time of the process. Sessions are opened before, once.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from nets import with_batch
from PIL import Image
from worker import peak

import graphattr
from graphattr.dataset import Work
from graphattr.demo.efficientnet import build
from graphattr.runtime import Explainer
from graphattr.session import Device


def pictures(folder: Path, count: int) -> None:
    """JPEGs with soft blotches, some 20 kB each."""
    r = np.random.default_rng(0)
    for i in range(count):
        blotches = Image.fromarray(r.integers(0, 255, (24, 32, 3), dtype=np.uint8))
        blotches.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f"{i:05d}.jpg", quality=90)


def measured(files: int, batch: int = 16, threads: int | None = None, workers: int | None = None, reps: int = 3,
             write: list[str] | None = None) -> dict[str, Any]:
    """Milliseconds per picture by what is done, as [clock, CPU]; without reps, the peak in MB of explaining all of them once."""
    explanation = graphattr.convert(with_batch(build(), None), "gradient")
    device = Device("cpu", {}, threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "photos")
        folder.mkdir()
        pictures(folder, files)

        calm = Explainer(explanation, replace(device, spinning=False))

        def work(**given: Any) -> Work:
            made = Work(explanation, str(folder), preprocess="lite", provider=device, batch_size=batch, workers=workers,
                        progress=False, **given)
            made.__dict__["explainer"] = calm  # a cached property
            return made

        def written(kinds: list[str], run: int) -> None:
            for _ in work(out=Path(name, f"{'-'.join(kinds)}-{run}"), write=kinds).reports():
                pass

        if not reps:
            before = peak()
            written(write or ["npy"], 0)
            return {"before": before, "peak": peak()}
        ready = [dict(unit.feeds) for unit in work().units()]
        alone = {"session": calm, "session, spinning": Explainer(explanation, device)}
        calls: dict[str, Callable[[int], Any]] = {
            **{n: lambda run, e=e: [e.session.run(e.outputs, feeds) for feeds in ready] and None for n, e in alone.items()},
            "explain_batches": lambda run: [None for _ in work().units()],
            "npy": lambda run: written(["npy"], run),
            **({"npz,png": lambda run: written(["npz", "png"], run)} if write == ["npz", "png"] else {}),
        }
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
        for run in range(reps):
            for what, call in calls.items():
                clock, cpu = time.perf_counter(), time.process_time()
                call(run)
                times[what].append((time.perf_counter() - clock, time.process_time() - cpu))
        return {what: [statistics.median(t) / files * 1e3 for t in zip(*all_, strict=True)] for what, all_ in times.items()}


if __name__ == "__main__":
    print(json.dumps(measured(**json.loads(sys.argv[1]))))
