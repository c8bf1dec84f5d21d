"""Equal results, before speed: whole networks explained in float32 and in float64 against float64 references.

    python -m tests.conformance.equality [NET ..] [--method METHOD ..] [--size 224] [-o table.json]
    python -m tests.conformance.equality --causes [--size 224] [-o causes.json]

It needs torch and zennit (extra `peers`). Weights are seeded, BatchNormalization has the statistics of seeded pictures;
EfficientNet-Lite0 is trained (extra `demo`).
Each cell is the L2 norm of the difference over that of the reference, and 1 - cosine. It takes minutes a network and up to
4 GB; more for VGG-16, whose dense layers are small with `--size 96`.

reference       gradient: torch autograd. LRP: zennit's rules, BatchNorm merged by hand, sums as zennit's Sum. Both in float64.
cpu, portable   graphattr's lowerings in ONNX Runtime, float32
unoptimised     "cpu" with ONNX Runtime's graph optimisation disabled
peer            torch or zennit in float32
float64         graphattr's graphs computing in float64, "portable" and "cpu": what is left is no rounding of float32

`--causes` changes one thing at a time in zennit, in float64, and says how far that moves EpsilonPlusFlat of ResNet-50.
By size 224 (L2): zennit with its own canoniser differs from graphattr by the first line, and by no rule.

zennit's canoniser: merged BatchNorms keep their eps, each divides by sqrt(1 + eps)     2e-03
the same with that eps set to 0                                                         0
no canoniser: relevance passes BatchNorm, graphattr's bn="pass"                         1e+00
sums written a + b, which zennit does not see: both branches get all of R               4e+04
global average pooling by its gradient                                                  6e+00
every stabiliser 1e-9, not 1e-6 (without the sign of z: 0)                              2e-05
biases left out of the denominators                                                     2e+00
z+ in the first layer; flat whose denominator counts the padding                        9e-01; 5e-02

Where float32 is 1e-3 or more from float64, in gradients, a sign of a ReLU near 0 has changed, in torch as often as here; in
lrp.epsilon a sum of both signs that is close to 0 divides.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

import graphattr
from graphattr.files import write_atomically
from tests.conformance import conftest, peers  # noqa: F401  (conftest: before zennit)
from tests.conformance.torch_eval import evaluate
from tests.conformance.whole import Array, composite, network, plain, pulled

FAMILIES = ("resnet50", "vgg16", "mobilenet_v2", "densenet121", "vit_s16", "efficientnet_lite0")
METHODS = ("gradient", "lrp.epsilon_plus_flat", "lrp.epsilon", "lrp.zplus")
COLUMNS = ("cpu", "unoptimised", "portable", "peer", "float64 portable", "float64 cpu")
Error = dict[str, float]


def in_runtime(model: onnx.ModelProto, x: Array, target: int, optimised: bool = True) -> Array:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["x_attribution"], {"x": x, "target": np.array([target])})[0])


def explained(source: onnx.ModelProto, method: str, lowering: str) -> onnx.ModelProto:
    gc.collect()  # the graph of the one before
    return graphattr.convert(source, method, target="input", lowering=lowering).model


def compared(name: str, methods: Sequence[str], size: int, narrow: bool = True) -> Iterator[tuple[str, dict[str, Error]]]:
    """(method, column -> error) of a network; without `narrow` the columns of float64 only."""
    net, x, target = network(name, size)
    twin, x64 = peers.folded(copy.deepcopy(net).double()), x.double()
    with torch.no_grad():
        torch.testing.assert_close(twin(x64), copy.deepcopy(net).double()(x64), rtol=1e-9, atol=1e-9)
    references = {m: pulled(twin, x64, target, None if m == "gradient" else composite(m)) for m in methods}
    found: dict[str, dict[str, Array]] = {m: {} for m in methods}
    if narrow:
        twin = twin.float()
        for m in methods:
            found[m]["peer"] = pulled(net if m == "gradient" else twin, x, target, None if m == "gradient" else composite(m))
    del twin
    net = plain(net)
    if narrow:
        source = peers.export(net, x)
        for m in methods:
            made = explained(source, m, "cpu")
            found[m]["cpu"] = in_runtime(made, x.numpy(), target)
            found[m]["unoptimised"] = in_runtime(made, x.numpy(), target, optimised=False)
            found[m]["portable"] = in_runtime(explained(source, m, "portable"), x.numpy(), target)
    source = peers.export(net.double(), x64)
    del net
    gc.collect()
    for m in methods:
        for lowering in ("portable", "cpu"):
            made = explained(source, m, lowering)
            feeds = {"x": x64.numpy(), "target": np.array([target])}
            found[m][f"float64 {lowering}"] = evaluate(made, feeds, "x_attribution")
        yield m, {column: error(value, references[m]) for column, value in found[m].items()}


def error(got: Array, want: Array) -> Error:
    """The difference in L2 as a share of the reference, and 1 - cosine."""
    assert got.shape == want.shape, (got.shape, want.shape)
    a, b = (v.astype(np.float64).ravel() / np.linalg.norm(v.astype(np.float64)) for v in (got, want))
    return {"l2": peers.spread(got, want), "away": float(np.sum((a - b) ** 2) / 2)}


def cell(e: Error) -> str:
    return f"{e['l2']:.0e}  {e['away']:.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("nets", nargs="*", choices=[*FAMILIES, []], metavar="NET", help=", ".join(FAMILIES))
    parser.add_argument("--method", nargs="+", choices=METHODS, default=METHODS, metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--size", type=int, default=224, help="height and width of the picture, a multiple of 32")
    parser.add_argument("--causes", action="store_true", help="what moves LRP of ResNet-50, one change at a time")
    parser.add_argument("-o", "--out", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Error]] = {}
    if options.causes:
        from tests.conformance.causes import causes

        table = Table("done otherwise", "L2  1 - cosine", box=None)
        for cause, got, want in causes(options.size):
            rows[cause] = {"float64": error(got, want)}
            table.add_row(cause, cell(rows[cause]["float64"]))
    else:
        table = Table("net", "method", *COLUMNS, box=None)
        for name in options.nets or FAMILIES:
            for method, row in compared(name, options.method, options.size):
                rows[f"{name} {method}"] = row
                table.add_row(name, method, *(cell(row[c]) for c in COLUMNS))
    Console(width=max(132, Console().width)).print(table)
    if options.out:
        write_atomically(options.out, [json.dumps(rows, indent=1).encode() + b"\n"])


if __name__ == "__main__":
    main()
