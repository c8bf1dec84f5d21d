"""Real architectures with seeded weights, for benchmarks.

The onnx package carries nine well-known networks whose weights are all the same constant, so that every gradient
vanishes. Here each ConstantOfShape that stands for a weight is replaced by seeded random numbers of a sensible size.

    python models/light_random.py resnet50 resnet50.onnx
"""

import argparse
import math
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

NAMES = ("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet", "squeezenet", "vgg19",
         "zfnet512")
SCALE_LAYERS = ("densenet121", "inception_v2")      # they scale and shift by Mul and Add after BatchNormalization
BATCH_NORM = ("scale", "bias", "mean", "variance")


def randomised(name: str, seed: int = 0) -> onnx.ModelProto:
    """The architecture with He-random kernels and harmless biases and statistics; the same for the same seed."""
    if name not in NAMES:
        raise ValueError(f"no architecture {name!r}: choose from {', '.join(NAMES)}")
    model = onnx.load(Path(onnx.__file__).parent / "backend" / "test" / "data" / "light" / f"light_{name}.onnx")
    graph, random = model.graph, np.random.RandomState(seed)
    shapes = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    role = {i: part for n in graph.node if n.op_type == "BatchNormalization" for part, i in zip(BATCH_NORM, n.input[1:])}
    kept = []
    for node in graph.node:
        if node.op_type != "ConstantOfShape":
            kept.append(node)
            continue
        shape = tuple(int(s) for s in shapes[node.input[0]])
        weight = _weight(random, shape, role.get(node.output[0]), around_one=name in SCALE_LAYERS)
        graph.initializer.append(numpy_helper.from_array(weight.astype(np.float32), node.output[0]))
    del graph.node[:]
    graph.node.extend(kept)
    return model


def _weight(random: np.random.RandomState, shape: tuple[int, ...], part: str | None, around_one: bool) -> NDArray[np.float64]:
    if part in ("scale", "variance"):
        return random.uniform(0.8, 1.2, shape)
    if part in ("bias", "mean"):
        return random.randn(*shape) * 0.1
    if len(shape) > 1:
        return random.randn(*shape) * float(np.sqrt(2 / max(1, math.prod(shape[1:]))))
    return random.randn(*shape) * 0.05 + (1.0 if around_one and len(shape) == 1 else 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description="write a well-known architecture with seeded weights")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    onnx.save(randomised(options.name, options.seed), options.out)


if __name__ == "__main__":
    main()
