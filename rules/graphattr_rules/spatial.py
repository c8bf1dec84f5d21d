"""Where a tensor has its pixels, and maps over them."""

from collections.abc import Sequence

from graphattr.errors import MethodError
from graphattr.rule import Graph, Job, Value

ELEMENTWISE = ("shift", "scale", "batchnorm", "relu", "smooth")


def pixel_axes(job: Job, x: Value) -> list[int]:
    """The axes over which x is a picture, a signal or a sequence: what the first convolution slides over.

    Without one: axis 1 of (N, T, D) and of (N, F), all behind (N, C) of more. A Transpose of the last axis to the second in front
    of it says that channels are last.
    """
    if x.rank < 2:
        raise MethodError(f"{job.name_of(x)!r} has {x.rank} axes; behind that of the samples there must be one to hide parts of: "
                          "choose other tensors with wrt")
    last_first = [0, x.rank - 1, *range(1, x.rank - 1)]
    same = {x}
    for layer in job.graph.between([x], [job.y]):
        if not all(v in same for v in layer.xs):
            continue
        if layer.op == "Transpose" and list(layer.nodes[0].attrs.get("perm", ())) == last_first and x.rank > 2:
            return list(range(1, x.rank - 1))
        if layer.kind in ELEMENTWISE and layer.y.rank == x.rank:
            same.update(layer.ys)
        elif layer.kind == "linear" and layer.op.startswith("Conv"):
            return list(range(2, x.rank))
    return [1] if x.rank < 4 else list(range(2, x.rank))


def is_table(job: Job, x: Value) -> bool:
    """Whether x is rows of features: (N, F), and no signal that a convolution reads behind an Unsqueeze or Reshape."""
    same = {x}
    for layer in job.graph.between([x], [job.y]):
        if all(v in same for v in layer.xs):
            if layer.kind in (*ELEMENTWISE, "structure"):
                same.update(layer.ys)
            elif layer.kind == "linear" and layer.op.startswith("Conv"):
                return False
    return x.rank == 2


def picture_axes(job: Job, x: Value, method: str) -> list[int]:
    """(height, width) of a tensor of pictures; MethodError for any other tensor."""
    if x.rank != 4:
        raise MethodError(f"{method} makes maps over (N, C, H, W), and {job.name_of(x)!r} has {x.rank} axes; "
                          "choose a tensor of pictures with wrt, or a method without maps such as fullgrad.uniform")
    return pixel_axes(job, x)


def sizes_of(g: Graph, x: Value, axes: Sequence[int]) -> Value:
    """The sizes of some axes, int64."""
    return g.Gather(g.shape(x), g.const(list(axes), "int64"), axis=0)


def resized(g: Graph, m: Value, sizes: Value, mode: str = "linear", coordinates: str = "half_pixel") -> Value:
    """(N, C, h, w) -> (N, C, *sizes). `nearest` takes floor(i h / H), as torch does."""
    target = g.Concat(g.emit("Shape", m, start=0, end=2), sizes, axis=0)
    if mode == "nearest":
        how = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    else:
        how = {"coordinate_transformation_mode": coordinates}
    return g.emit("Resize", m, None, None, target, n_outputs=1, out_shape=None, mode=mode, **how)


def beside(g: Graph, m: Value, x: Value, axes: Sequence[int]) -> Value:
    """A map (N, 1, H, W) with the axes of x, which has its pixels at `axes`."""
    return m if list(axes) == list(range(2, x.rank)) else g.Transpose(m, perm=[0, *range(2, x.rank), 1])
