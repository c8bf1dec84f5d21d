"""Golden metrics against graphattr.measure: python tests/conformance/check_metrics.py DIR

Reads every <model>__metrics.npz in DIR (and the model beside it) and prints `metrics: n/m agree` and the ones that do not;
agree means |a - a*| <= 1e-4 max|a*| + 1e-6. Exit 1 when one does not.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

import graphattr
from graphattr import measure

RULES = {
    "zplus": ("lrp.zplus", {}),
    "alpha2beta1": ("lrp.alpha2_beta1", {}),
    "zero": ("lrp.zero", {}),
    "gradient": ("gradient", {}),
    "guided_backprop": ("guided_backprop", {}),
}


def metrics_of(model: Path, z: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(key of the file, what measures it)."""
    x, c, a, b = z["x"], z["target"], z["attribution"], z["attr_b"] if "attr_b" in z.files else None
    scorer = measure.Scorer(str(model))

    def gxi(at: Any) -> Any:
        return explainer({"x": at.astype(np.float32)}, target=c).scores["x"]

    explainer = graphattr.Explainer(graphattr.convert(str(model), method="gradient_x_input", target="input"))
    for order in ("morf", "lerf"):
        for grain in ("pixel", "element"):
            yield f"{order}_{grain}", lambda o=order, g=grain: measure.pixel_flipping(
                scorer, x, a, c, order=o, granularity=g, steps=20).values
    yield "morf_curve_pixel", lambda: measure.pixel_flipping(scorer, x, a, c, steps=20).details["curve"]
    for kind in "ns":
        yield f"{kind}_ord", lambda k=kind: measure.ordering(scorer, x, a, c, kind=k).values
        yield f"tp{kind}", lambda k=kind: measure.proportionality(scorer, x, a, c, kind=k).values
    yield "sensitivity_n", lambda: measure.sensitivity_n(scorer, x, a, c, subsets=z["sensitivity_n_subsets"]).values
    yield "infidelity", lambda: measure.infidelity(scorer, x, a, c, perturbations=z["infidelity_I"]).values
    yield "max_sensitivity_gxi", lambda: measure.max_sensitivity(gxi, x, perturbations=z["maxsens_delta"]).values
    gap = measure.completeness_gap(scorer, x, a, c)
    yield "completeness_gap", lambda: np.stack([gap.values, gap.details["relative"]], 1)
    yield "class_l2", lambda: measure.class_sensitivity(a, b).value
    yield "ssim_flip", lambda: measure.ssim_flip(a, b).values
    flat = [measure.normalised(m.sum(0)) for m in (*a, *b)] if a.ndim == 4 else []
    yield "ssim_plain_range2", lambda: [measure.ssim(p, q, 2.0) for p, q in zip(flat[: len(a)], flat[len(a) :], strict=True)]
    yield "bbox_accuracy", lambda: measure.bounding_box_accuracy(a, z["box"]).values
    yield "bootstrap_ci", lambda: measure.bootstrap(z["bootstrap_values"], "median", 0.99, 2000)
    yield "apc", lambda: measure.average_prediction_change(z["apc_phi_x"], z["apc_phi_s"], z["apc_class"]).value
    yield "apc_pos", lambda: measure.average_prediction_change(z["apc_phi_x"], z["apc_phi_s"], z["apc_class"], True).value
    for key in z.files:
        if key.startswith("csc_median::"):
            _, rule, tensor = key.split("::")
            method, params = RULES[rule]
            yield key, lambda m=method, t=tensor, p=params: measure.cosine_convergence(
                str(model), x, m, tensors=[t], vectors=z["csc_v"], **p)[t].value


def agrees(got: Any, want: Any) -> tuple[bool, float]:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    if got.shape != want.shape:
        return False, float("inf")
    error = float(np.abs(got - want).max(initial=0.0))
    return bool(error <= 1e-4 * float(np.abs(want).max(initial=0.0)) + 1e-6), error


def main(folder: Path) -> int:
    total, bad = 0, []
    for file in sorted(folder.glob("*__metrics.npz")):
        z = np.load(file)
        for key, measured in metrics_of(folder / f"{file.stem.split('__')[0]}.onnx", z):
            if key not in z.files:
                continue
            total += 1
            try:
                good, error = agrees(measured(), z[key])
            except Exception as e:
                good, error = False, f"{type(e).__name__}: {str(e)[:120]}"
            if not good:
                bad.append(f"{file.stem} {key}: {error}")
    print(*bad, sep="\n")
    print(f"metrics: {total - len(bad)}/{total} agree")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
