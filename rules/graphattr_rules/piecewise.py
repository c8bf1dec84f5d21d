"""Networks of affine layers, rectifiers and maxima: which layer is none of these, and what constants the layers add."""

from graphattr.errors import MethodError
from graphattr.rule import Graph, Job, Layer, Site, Value, per_sample_sum

AFFINE = {"linear", "sum", "mean", "shift", "scale", "batchnorm", "maxpool", "structure"}
POWERS = {"ReduceL1", "ReduceL2"}  # of kind mean, and not linear


def check(job: Job, layer: Layer, method: str) -> None:
    """MethodError for a layer that is neither affine, nor a rectifier max(x, 0), nor a maximum."""
    affine = layer.kind in AFFINE and not layer.tail and layer.op not in POWERS and not decides(job, layer)
    affine = affine and not (layer.kind == "maxpool" and constants(layer))
    if not affine and not is_relu(layer):
        raise MethodError(
            f"{method} needs a network of linear layers, rectifiers max(x, 0) and max pooling, and layer {layer.name!r} "
            f"(operator {layer.op}, kind {layer.kind}) on the path is none of these; attribute to a tensor behind it "
            f"(such as wrt=[{layer.y.name!r}], --wrt {layer.y.name}), or choose another method"
        )


def decides(job: Job, layer: Layer) -> bool:
    """Whether a Where chooses by what is attributed: such a layer bends, as a rectifier does."""
    data = {v for other in job.path for v in other.xs}
    stack = [layer.nodes[0].inputs[0]] if layer.op == "Where" else []
    while stack:
        v = stack.pop()
        if v in data:
            return True
        node = job.g.producer(v) if v is not None else None
        stack.extend(node.uses if node is not None and node.op not in ("Shape", "Size") else ())
    return False


def is_relu(layer: Layer) -> bool:
    """max(x, 0): Relu, Clip from 0 up, Max with 0."""
    inputs = layer.nodes[0].inputs
    if layer.op == "Clip":
        return len(inputs) > 1 and vanishes(inputs[1]) and all(v is None for v in inputs[2:])
    return layer.op == "Relu" or (layer.op == "Max" and all(vanishes(v) for v in inputs if v not in layer.xs))


def vanishes(v: Value | None) -> bool:
    """Whether v is a constant of zeros."""
    return v is not None and v.data is not None and not v.data.any()


def dot(g: Graph, layer: Layer, r: Value, c: Value) -> Value:
    """r . c per sample; a convolution's bias meets r summed over space."""
    if layer.nodes[0].op in ("Conv", "ConvTranspose"):
        return per_sample_sum(g, g.ReduceSum(r, list(range(2, r.rank)), keepdims=0) * g.Reshape(c, [-1]))
    return per_sample_sum(g, r * c)


def offset(site: Site) -> Value | None:
    """What a layer adds whatever its data is: a bias, or the layer at zero; None where there is nothing."""
    layer = site.layer
    if layer.kind == "linear":
        return layer.b
    adds = layer.kind in ("shift", "sum", "batchnorm", "structure") and layer.op not in ("Resize", "CastLike")
    return site.at_zero() if adds and not all(map(vanishes, constants(layer))) else None


def constants(layer: Layer) -> list[Value]:
    """The numbers that a layer of one node reads besides its data."""
    return [v for v in layer.nodes[0].inputs if v is not None and v.is_float and v not in layer.xs]
