"""Class activation maps: a layer's channels, weighted by the mean gradient of each.  Selvaraju et al. 2017."""

from typing import Literal

from graphattr.errors import MethodError
from graphattr.rule import Job, Layer, MethodName, Value, procedure

from .spatial import beside, picture_axes, resized, sizes_of

FOLLOWING = ("batchnorm", "norm", "scale", "shift", "relu", "smooth")


@procedure("grad_cam")
def grad_cam(job: Job, *, layer: str = "", upsample: bool = True) -> list[Value]:
    """max(0, sum_k a_k A_k), a_k = mean_hw ds/dA_k, resized to the input's (H, W): (N, 1, H, W); else the map as it is.

    A: the tensor `layer`, or what the layer of that name makes; by default the last convolution's, behind its activation.
    """
    maps = [(x, activation_map(job, x, layer, "grad_cam")) for x in job.xs]
    if not upsample:
        return [m for _, m in maps]
    return [resized(job.g, m, sizes_of(job.g, x, picture_axes(job, x, "grad_cam"))) for x, m in maps]


@procedure("guided_grad_cam")
def guided_grad_cam(
    job: Job,
    *,
    base: MethodName = MethodName("guided_backprop"),
    layer: str = "",
    interpolate_mode: Literal["bilinear", "nearest"] = "bilinear",
) -> list[Value]:
    """What `base` says, times the map of Grad-CAM, resized to the input."""
    g, mode, made = job.g, "nearest" if interpolate_mode == "nearest" else "linear", []
    for x, r in zip(job.xs, job.explained_by(base), strict=True):
        axes = picture_axes(job, x, "guided_grad_cam")
        m = resized(g, activation_map(job, x, layer, "guided_grad_cam"), sizes_of(g, x, axes), mode)
        made.append(r * beside(g, m, x, axes))
    return made


def activation_map(job: Job, x: Value, layer: str, method: str) -> Value:
    """max(0, sum_k a_k A_k), (N, 1, h, w)."""
    g = job.g
    a = job.tensor(layer) if layer else last_convolution(job, x, method)
    if a.rank != 4:
        raise MethodError(f"{method}: {job.name_of(a)!r} has {a.rank} axes, and a map needs (N, C, H, W); "
                          "name a layer of pictures with layer=")
    (da,) = job.gradients([a])
    weights = g.GlobalAveragePool(da)
    return g.Relu(g.ReduceSum(a * weights, [1], keepdims=1))


def last_convolution(job: Job, x: Value, method: str) -> Value:
    """What the last convolution over more than one pixel makes, behind the normalisation and activation that only it feeds."""
    path = job.graph.between([x], [job.y])
    found = [layer for layer in path if layer.kind == "linear" and layer.op == "Conv" and layer.y is not job.y
             and any(d != 1 for d in (layer.y.shape or ())[2:])]
    if not found:
        raise MethodError(f"{method}: there is no convolution between {job.name_of(x)!r} and {job.name_of(job.y)!r}; "
                          "name a layer of pictures with layer=, or choose another method")
    return behind(found[-1], path)


def behind(layer: Layer, path: list[Layer]) -> Value:
    """The layer's output, followed through normalisations and activations while each has one reader."""
    y = layer.y
    while True:
        readers = [other for other in path if y in other.xs]
        if len(readers) != 1 or readers[0].kind not in FOLLOWING or readers[0].y.rank != y.rank:
            return y
        y = readers[0].y
