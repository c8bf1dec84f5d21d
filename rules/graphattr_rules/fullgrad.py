"""FullGrad: the score as x times gradient, and each bias times the gradient where it is added.  Srinivas and Fleuret 2019."""

from typing import Any

from graphattr.errors import MethodError
from graphattr.rule import Graph, Job, Layer, Site, Value, per_sample, per_sample_sum, procedure, total

from .spatial import picture_axes, resized, sizes_of

HOMOGENEOUS = ("Relu", "LeakyRelu", "PRelu", "Abs", "Neg")  # f(z) = f'(z) z


@procedure("fullgrad.uniform")
def uniform(job: Job) -> list[Value]:
    """x ds/dx + (s - sum x ds/dx) / dim(x): the biases' share of the score, spread evenly; the sum is s(x).

    s - sum x ds/dx = sum b g_b, since each layer is its tangent f'(z) z plus the bias f(z) - f'(z) z.  DGA, NeurIPS 2022, eq. 2.
    """
    g = job.g
    maps = [x * dx for x, dx in zip(job.xs, job.gradients(job.xs), strict=True)]
    by_inputs = total(g, [per_sample_sum(g, m) for m in maps])
    entries = total(g, [entries_of(g, x) for x in job.xs])
    assert by_inputs is not None
    assert entries is not None
    share = (job.score - by_inputs) / g.CastLike(entries, by_inputs)
    return [m + (g.Unsqueeze(share, list(range(1, m.rank))) if m.rank > 1 else share) for m in maps]


@procedure("fullgrad")
def fullgrad(job: Job) -> list[Value]:
    """psi(x ds/dx) + sum over the biases of pictures of psi(b g_b), resized to x and summed over channels: (N, 1, H, W)."""
    return [map_of(job, x) for x in job.xs]


def map_of(job: Job, x: Value) -> Value:
    """The map of one tensor: its own term, and those of the biases behind it."""
    g, axes = job.g, picture_axes(job, x, "fullgrad")
    path = job.graph.between([x], [job.y])
    for layer in path:
        if any(inner.y.rank == 4 and inner.kind in ("linear", *CONSTANTS) for body in layer.bodies.values()
               for _, inner in body.walk()):
            raise MethodError(f"fullgrad cannot see the biases inside {layer.name!r} ({layer.op}); use fullgrad.uniform, "
                              "which counts all of them")
    behind = [layer for layer in path if layer.y.rank == 4 and layer.x.is_float and layer.y.is_float and has_constant(layer)]
    dx, *dys = job.gradients([x, *(layer.y for layer in behind)])
    own, sizes = psi(g, x * dx, next(a for a in (1, 2, 3) if a not in axes)), sizes_of(g, x, axes)
    alike: dict[Any, list[Value]] = {}  # maps of one size are summed before they are resized
    for layer, dy in zip(behind, dys, strict=True):
        alike.setdefault((layer.y.shape or ())[2:], []).append(psi(g, added(job, layer, dy)))
    sums = [m for several in alike.values() if (m := total(g, several)) is not None]
    result = total(g, [own, *(resized(g, m, sizes, coordinates="align_corners") for m in sums)])
    assert result is not None
    return result


def psi(g: Graph, v: Value, channel: int = 1) -> Value:
    """sum over channels of (|v| - min|v|) / (max|v| - min|v| + 1e-6), min and max per sample: (N, 1, h, w)."""
    v = g.Abs(v)
    low, high = per_sample(g, "ReduceMin", v), per_sample(g, "ReduceMax", v)
    summed = g.Unsqueeze(g.ReduceSum(v, [channel], keepdims=0), [1])
    channels = g.CastLike(g.Gather(g.shape(v), channel), v)
    return (summed - low * channels) / (high - low + 1e-6)


CONSTANTS = ("shift", "batchnorm", "norm", "relu", "smooth")


def has_constant(layer: Layer) -> bool:
    """Whether the layer adds something: a bias, a shift, or what the tangent of its function leaves."""
    return layer.b is not None if layer.kind == "linear" else layer.kind in CONSTANTS and layer.op not in HOMOGENEOUS


def added(job: Job, layer: Layer, dy: Value) -> Value:
    """b dy of what the layer adds: b = f(0) of an affine layer and of a normalisation, f(z) - f'(z) z of a function."""
    site = Site(job.g, layer, job.graph, frozenset(layer.xs))
    if layer.b is not None:
        return (job.g.Reshape(layer.b, [1, -1, 1, 1]) if layer.b.rank == 1 and layer.op.startswith("Conv") else layer.b) * dy
    if layer.norm is not None:
        return job.g.const(layer.norm.shift, dy.dtype) * dy
    if layer.kind not in ("relu", "smooth"):
        return site.at_zero() * dy
    return layer.y * dy - layer.x * site.vjps(dy)[0]


def entries_of(g: Graph, x: Value) -> Value:
    """How many entries one sample of x has, int64."""
    return g.ReduceProd(g.emit("Shape", x, start=1), keepdims=0)
