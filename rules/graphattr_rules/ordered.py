"""The features of each sample in one row, and steps that move those of them first that matter least."""

from collections.abc import Sequence

from graphattr.errors import MethodError
from graphattr.rule import Graph, Value


def joined(g: Graph, vs: Sequence[Value]) -> Value:
    """(N, all features): tensors of one batch side by side, in the type of the first."""
    sizes = {v.shape[0] for v in vs if v.shape and isinstance(v.shape[0], int)}
    if len(sizes) > 1 or any(v.rank == 0 for v in vs):
        names = ", ".join(f"{v.name!r} {v.shape}" for v in vs)
        raise MethodError(f"tensors that share one path need the same first axis, the samples: {names}; choose others with wrt")
    flat = [g.Reshape(v if v.dtype == vs[0].dtype else g.CastLike(v, vs[0]), [0, -1]) for v in vs]
    return flat[0] if len(flat) == 1 else g.Concat(*flat, axis=1)


def parted(g: Graph, rows: Value, like: Sequence[Value]) -> list[Value]:
    """The inverse: each tensor's features in its shape and type."""
    found, at = [], g.const([0], "int64")
    for v in like:
        end = at + g.emit("ReduceProd", g.Shape(v), keepdims=1) / g.Slice(g.Shape(v), [0], [1])
        part = rows if len(like) == 1 else g.Slice(rows, at, end, [1])
        part = g.emit("Reshape", part, g.Shape(v), out_shape=v.shape)
        found.append(part if part.dtype == v.dtype else g.CastLike(part, v))
        at = end
    return found


def smallest_first(g: Graph, size: Value, distance: Value, steps_left: Value) -> Value:
    """How far each feature (columns) moves in this step: those of smallest `size` first, all of their `distance` each, until
    1/steps_left of the row's L1 distance is covered; in the last step all of it.
    """
    features = g.Slice(g.Shape(size), [1], [2])
    _, order = g.TopK(size, features, axis=1, largest=0, sorted=1, n_outputs=2)
    lengths = g.GatherElements(g.Abs(distance), order, axis=1)
    share = g.ReduceSum(lengths, [1], keepdims=1) / g.CastLike(steps_left, lengths)
    before = g.CumSum(lengths, 1, exclusive=1)
    partly = g.Min(g.Relu(share - before), lengths)
    lengths = g.Where(g.Equal(steps_left, 1), lengths, partly)
    covered = g.ScatterElements(lengths * 0.0, order, lengths, axis=1)
    return g.Sign(distance) * covered
