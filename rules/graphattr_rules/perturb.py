"""What the score loses when parts of the input are hidden: no derivative is asked for."""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from graphattr.errors import MethodError
from graphattr.rule import SIGMA, Baselines, Graph, Job, References, Value, procedure

from .noise import P, key_of, uniform
from .spatial import is_table, pixel_axes, sizes_of

Weight = Literal["softmax", "sigmoid", "score"]
Patch = int | Sequence[int] | None


# -- RISE ---------------------------------------------------------------------------------------------------------
@procedure("rise", forward_only=True)
def rise(
    job: Job,
    *,
    n_samples: int = 1000,
    cells: int = 8,
    p: float = 0.5,
    weight: Weight = "softmax",
    random_state: int = 0,
) -> list[Value]:
    """1/(n p) sum_i w(x M_i) M_i, w the probability of the target; M_i: random grids, enlarged bilinearly, shifted at random.

    A grid has `cells` cells along each axis of the picture or signal; of a table each feature is a cell. `weight` says how the
    outputs become w. The masks are the same for all samples.  Petsiuk, Das and Saenko 2018.
    """
    if n_samples < 1 or cells < 1 or not 0 < p <= 1:
        raise MethodError(f"rise: n_samples and cells are at least 1 and 0 < p <= 1, not {n_samples}, {cells} and {p}")
    xs, axes = job.xs, [pixel_axes(job, x) for x in job.xs]
    starts = [zeros(job.g, x, a) for x, a in zip(xs, axes, strict=True)]

    def step(body: Graph, i: Value, sums: list[Value]) -> list[Value]:
        keys = [key_of(body, i, random_state, stream) for stream in range(len(xs))]
        masks = [
            table_mask(body, x, k, p) if is_table(job, x) else mask(body, x, a, k, cells, p)
            for x, a, k in zip(xs, axes, keys, strict=True)
        ]
        here = job.at(body, [x * m for x, m in zip(xs, masks, strict=True)])
        w = weight_of(here, weight)
        return [s + column(body, w, s) * m for s, m in zip(sums, masks, strict=True)]

    made = job.repeat(n_samples, starts, step)
    return [whole(job.g, s * (1.0 / (n_samples * p)), x) for s, x in zip(made, xs, strict=True)]


def table_mask(g: Graph, x: Value, key: Value, p: float) -> Value:
    """Ones for random features, (1, F)."""
    drawn = uniform(g, g.Range(0, g.Gather(g.shape(x), 1), 1), key)
    return g.Unsqueeze(g.CastLike(drawn < round(p * P), x), [0])


def mask(g: Graph, x: Value, axes: list[int], key: Value, cells: int, p: float) -> Value:
    """A random mask that broadcasts against x: a grid of zeros and ones, enlarged by one cell more than x has, cut at random."""
    limit = round(p * P)
    d, sizes = len(axes), sizes_of(g, x, axes)
    drawn = uniform(g, g.Range(0, cells**d + d, 1), key)
    grid = g.CastLike(g.Slice(drawn, [0], [cells**d]) < limit, x)
    cell = (sizes + (cells - 1)) / cells
    flat = [1] * (2 if d > 1 else 3)  # ONNX Runtime interpolates along two or three axes
    grid = g.Reshape(grid, [*flat, *[cells] * d])
    target = g.Concat(g.const(flat, "int64"), cell * (cells + 1), axis=0)
    large = g.Resize(grid, None, None, target, mode="linear", coordinate_transformation_mode="half_pixel")
    shift = g.Mod(g.Slice(drawn, [cells**d], [cells**d + d]), cell)
    cut = g.Slice(large, shift, shift + sizes, list(range(len(flat), len(flat) + d)))
    return g.Reshape(cut, shape_over(g, x, axes))


def weight_of(job: Job, weight: Weight) -> Value:
    """What the model says of the target, per sample [N]."""
    g, y = job.g, job.y
    flat, hot = (g.Flatten(v, axis=1) if v.rank > 1 else g.Unsqueeze(v, [1]) for v in (y, job.onehot))
    if weight == "softmax" and flat.shape is not None and flat.shape[1] == 1:
        raise MethodError(f"rise: {job.name_of(y)!r} has one entry per sample, whose softmax is always 1; "
                          "choose weight='sigmoid' or weight='score'")
    said = {"softmax": lambda: g.Softmax(flat, axis=1), "sigmoid": lambda: g.Sigmoid(flat), "score": lambda: flat}[weight]()
    return g.ReduceSum(said * hot, [1], keepdims=0)


# -- occlusion ----------------------------------------------------------------------------------------------------
@procedure("occlusion", forward_only=True)
def occlusion(
    job: Job, *, patch: Patch = None, stride: Patch = None, baselines: Baselines = 0.0, sigma: float = SIGMA
) -> list[Value]:
    """s(x) - s(x with a patch at its baseline), averaged over the patches that cover an element.

    A patch spans all channels and is cut at the edge; by default an eighth of each axis, every half a patch, and of a table one
    feature. Several tensors are hidden one after the other.  Zeiler and Fergus 2014.
    """
    references = job.references(baselines, sigma)
    return [hidden_in_turn(job, x, windows(job, x, patch, stride), references) for x in job.xs]


@dataclass(frozen=True)
class Window:
    """Patches along one axis: `count` of them, `patch` wide, `stride` apart; int64 scalars."""

    axis: int
    size: Value
    patch: Value
    stride: Value
    count: Value


def windows(job: Job, x: Value, patch: Patch, stride: Patch) -> list[Window]:
    """The patches along each axis of the picture, signal or table; the last one reaches the end."""
    g, axes, found = job.g, pixel_axes(job, x), []
    for axis, wide, apart in zip(axes, per_axis("patch", patch, axes), per_axis("stride", stride, axes), strict=True):
        size = g.Gather(g.shape(x), axis)
        wide = wide or int(is_table(job, x))
        width = g.const(wide, "int64") if wide else (size + 7) / 8
        step = g.const(apart, "int64") if apart else (width + 1) / 2
        if isinstance(width.content, int) and isinstance(step.content, int) and step.content > width.content:
            raise MethodError(f"occlusion: patches of {width.content}, {step.content} apart, leave gaps in axis {axis} of "
                              f"{job.name_of(x)!r}; take a stride of at most {width.content}")
        count = (g.Max(size - width, 0) + step - 1) / step + 1
        found.append(Window(axis, size, width, step, count))
    return found


def per_axis(name: str, given: Patch, axes: Sequence[int]) -> list[int]:
    """One number per axis; 0 where none was given."""
    sides = [given or 0] * len(axes) if given is None or isinstance(given, int) else list(given)
    if len(sides) != len(axes) or (given is not None and min(sides) < 1):
        raise MethodError(f"occlusion: {name}={given!r} must be one number of at least 1, or {len(axes)} of them, one per axis")
    return sides


def hidden_in_turn(job: Job, x: Value, along: Sequence[Window], references: References) -> Value:
    """The mean loss of the score over the patches, and the rows of references, that hide an element."""
    g, score, patches = job.g, job.score, functools.reduce(operator.mul, (w.count for w in along))

    def step(body: Graph, i: Value, states: list[Value]) -> list[Value]:
        row = i / patches
        hidden = patch_at(body, x, along, i - row * patches)
        instead = body.Where(hidden, references.row(body, row)[x], x)
        lost = score - job.at(body, [instead if v is x else v for v in job.xs]).score
        one = body.CastLike(hidden, x)
        return [states[0] + column(body, lost, x) * one, states[1] + one]

    axes = [w.axis for w in along]
    empty = g.ConstantOfShape(shape_over(g, x, axes), value=np.zeros(1, x.dtype))
    losses, covered = job.repeat(patches * references.count, [zeros(g, x, axes), empty], step)
    return whole(g, losses / covered, x)


def patch_at(g: Graph, x: Value, along: Sequence[Window], k: Value) -> Value:
    """Where the k-th patch is: true or false, with the axes of x."""
    inside = []
    for w in reversed(along):
        start = g.Mod(k, w.count) * w.stride
        k = k / w.count
        place = g.Range(0, w.size, 1)
        held = g.And(g.GreaterOrEqual(place, start), g.Less(place, start + w.patch))
        inside.append(g.Unsqueeze(held, [a for a in range(x.rank) if a != w.axis]))
    return functools.reduce(g.And, inside)


# -- maps over pixels ---------------------------------------------------------------------------------------------
def shape_over(g: Graph, x: Value, axes: Sequence[int]) -> Value:
    """The shape of x with 1 for every axis but these."""
    return g.Concat(*(g.Slice(g.shape(x), [a], [a + 1]) if a in axes else g.const([1], "int64") for a in range(x.rank)), axis=0)


def zeros(g: Graph, x: Value, axes: Sequence[int]) -> Value:
    """What sums over samples and pixels begin with."""
    return g.ConstantOfShape(shape_over(g, x, [0, *axes]), value=np.zeros(1, x.dtype))


def column(g: Graph, v: Value, x: Value) -> Value:
    """One number per sample, with the axes of x."""
    return g.Unsqueeze(v, list(range(1, x.rank)))


def whole(g: Graph, v: Value, x: Value) -> Value:
    """A map over pixels as one of x's shape: the same for all channels."""
    return g.emit("Expand", v, g.shape(x), out_shape=x.shape)
