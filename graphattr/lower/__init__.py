"""Machine-shaped rewrites: the same values, faster on one kind of machine.

They use standard operators only, so every file runs everywhere.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import MethodError, did_you_mean
from ..graph import Graph
from ..simplify import prune, simplify
from . import convolution, even, flat, inside, layout, levels, mask, pool, recompute, scale, stabiliser
from .walk import rewrite

Step = Callable[[Graph], Graph]
SIZES = ("fast", "small")

COMMON: list[Step] = [
    lambda g: rewrite(g, recompute.cheap(g)),
    lambda g: rewrite(g, mask.read_output),
    lambda g: rewrite(g, flat.one_channel),
    lambda g: rewrite(g, stabiliser.by_sign(g)),
    lambda g: rewrite(g, scale.into_weights),
    lambda g: rewrite(g, scale.into_weights),  # a second factor of the same chain
]
TARGETS: dict[str, list[Step]] = {
    "portable": [],
    "cuda": [
        *COMMON,
        lambda g: rewrite(g, stabiliser.of_any_sign),
        lambda g: rewrite(g, even.paddings),
        recompute.by_depth,
    ],
    "cpu": [
        *COMMON,
        lambda g: pool.drop_switches(prune(rewrite(g, pool.by_place(g)))),
        lambda g: rewrite(g, stabiliser.blocked),
        lambda g: rewrite(g, stabiliser.of_any_sign),
        lambda g: rewrite(g, mask.band),
        lambda g: rewrite(g, mask.blocked),
        lambda g: rewrite(g, convolution.turn_transposed),
        layout.stay_blocked,
        recompute.by_depth,
    ],
}


def lower(g: Graph, target: str = "cpu", size: str = "fast") -> Graph:
    """The graph with the rewrites of a target: "cpu", "cuda", or "portable" (none). The source model's nodes stay.

    size: "fast" gives the bodies of Loops kernels of their own where that is faster (on "cpu"), "small" never.
    """
    if target not in TARGETS:
        raise MethodError(
            f"lowering must be one of {', '.join(TARGETS)}, not {target!r}{did_you_mean(target, TARGETS)}"
        )
    if size not in SIZES:
        raise MethodError(f"size must be one of {', '.join(SIZES)}, not {size!r}{did_you_mean(size, SIZES)}")
    return _lowered(g, target, {}, inside.Room.beside(g) if target == "cpu" and size == "fast" else inside.Room(0))


def _lowered(g: Graph, target: str, outer: inside.Makers, room: inside.Room) -> Graph:
    """The graph, and the bodies of its nodes."""
    if levels.needed(g):  # whatever the machine
        g = prune(rewrite(g, levels.apart))
    for step in TARGETS[target]:
        g = prune(step(g))
    return inside.in_bodies(g, lambda body, around: _lowered(simplify(body), target, around, room), outer, room)


def lowering_for(providers: object) -> str:
    """The target that suits ONNX Runtime's providers, as `Explainer` takes them."""
    named = str(providers).lower()
    return "cuda" if "cuda" in named or "tensorrt" in named else "cpu"
