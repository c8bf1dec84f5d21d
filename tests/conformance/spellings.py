"""One network as other exporters would have written it: every spelling turns nodes into others that compute the same."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Pen:
    """Writes nodes in place of one; constants are known by value."""

    def __init__(self, model):
        self.held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in [*model.graph.value_info, *model.graph.input]}
        self.nodes, self.made, self.added = [], 0, []

    def __call__(self, op, *inputs, out=None, **attrs):
        self.made += 1
        out = out or f"respelled{self.made}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], name=f"{op}_{self.made}", **attrs))
        return out

    def const(self, value):
        name = f"respelled_c{len(self.added)}"
        self.added.append(numpy_helper.from_array(np.asarray(value), name))
        return name


def respelled(model, spelling):
    """The model with each node written anew by `spelling(pen, node, attributes)`; a node for which that writes nothing stays."""
    pen, nodes = Pen(model), []
    for n in model.graph.node:
        pen.nodes = []
        spelling(pen, n, {a.name: helper.get_attribute_value(a) for a in n.attribute})
        nodes += pen.nodes or [n]
    out = onnx.ModelProto()
    out.CopyFrom(model)
    del out.graph.node[:], out.graph.value_info[:]
    out.graph.node.extend(nodes)
    out.graph.initializer.extend(pen.added)
    onnx.checker.check_model(out, full_check=True)
    return out


def dense_as_product(p, n, a):
    """Gemm = MatMul with a transposed constant, Add."""
    if n.op_type == "Gemm" and {a.get("alpha", 1.0), a.get("beta", 1.0)} == {1.0} and len(n.input) == 3:
        w = p("Transpose", n.input[1], perm=[1, 0]) if a.get("transB") else n.input[1]
        p("Add", p("MatMul", n.input[0], w), n.input[2], out=n.output[0])


def norm_as_scale(p, n, a):
    """BatchNormalization = Mul, Add per channel (Keras)."""
    if n.op_type == "BatchNormalization":
        scale, shift, mean, var = (p.held[i].astype(float) for i in n.input[1:])
        k = scale / np.sqrt(var + a.get("epsilon", 1e-5))
        shape = [-1] + [1] * (p.ranks[n.input[0]] - 2)
        factor, rest = (p.const(v.astype(np.float32).reshape(shape)) for v in (k, shift - k * mean))
        p("Add", p("Mul", n.input[0], factor), rest, out=n.output[0])


def norm_in_steps(p, n, a):
    """BatchNormalization = Sub, Div, Mul, Add per channel (JAX)."""
    if n.op_type == "BatchNormalization":
        scale, shift, mean, var = (p.held[i].reshape([-1] + [1] * (p.ranks[n.input[0]] - 2)) for i in n.input[1:])
        x = p("Div", p("Sub", n.input[0], p.const(mean)), p.const(np.sqrt(var + np.float32(a.get("epsilon", 1e-5)))))
        p("Add", p("Mul", x, p.const(scale)), p.const(shift), out=n.output[0])


def bias_apart(p, n, a):
    """A convolution's bias as an Add (Paddle, TFLite)."""
    if n.op_type in ("Conv", "ConvTranspose") and len(n.input) == 3:
        b = p.held[n.input[2]].reshape([1, -1] + [1] * (p.ranks[n.input[0]] - 2))
        p("Add", p(n.op_type, *n.input[:2], **a), p.const(b), out=n.output[0])


def channels_last(p, n, a):
    """Image operators between Transposes (TensorFlow)."""
    if n.op_type in ("Conv", "MaxPool", "AveragePool", "Relu", "Clip") and p.ranks[n.input[0]] == 4:
        ahead, back = {"perm": [0, 3, 1, 2]}, {"perm": [0, 2, 3, 1]}
        x = p("Transpose", p("Transpose", n.input[0], **back), **ahead)
        p("Transpose", p("Transpose", p(n.op_type, x, *n.input[1:], **a), **back), out=n.output[0], **ahead)


def pads_apart(p, n, a):
    """Padding as an operator before an unpadded convolution (Keras, TensorFlow)."""
    if n.op_type == "Conv" and any(a.get("pads", [])):
        half = len(a["pads"]) // 2
        widths = [0, 0, *a["pads"][:half], 0, 0, *a["pads"][half:]]
        x = p("Pad", n.input[0], p.const(np.array(widths, np.int64)))
        p("Conv", x, *n.input[1:], out=n.output[0], **{**a, "pads": [0] * len(a["pads"])})


def signal_as_image(p, n, a):
    """A 1-D convolution as one over pictures of height 1 (Keras, TFLite)."""
    if n.op_type == "Conv" and p.ranks[n.input[0]] == 3:
        lifted = {k: [1, *v] for k, v in a.items() if k in ("strides", "dilations", "kernel_shape")}
        pads = {"pads": [0, a["pads"][0], 0, a["pads"][1]]} if "pads" in a else {}
        axis = p.const(np.array([2], np.int64))
        w = p.const(p.held[n.input[1]][:, :, None])
        y = p("Conv", p("Unsqueeze", n.input[0], axis), w, *n.input[2:], **{**a, **lifted, **pads})
        p("Squeeze", y, axis, out=n.output[0])


def relu_as_maximum(p, n, a):
    """Relu = Max with 0 (JAX); ReLU6 = Min of it with 6."""
    if n.op_type == "Relu":
        p("Max", n.input[0], p.const(np.float32(0)), out=n.output[0])
    elif n.op_type == "Clip":
        p("Min", p("Max", n.input[0], n.input[1]), n.input[2], out=n.output[0])


def relu_as_clip(p, n, a):
    """Relu = Clip without an upper end."""
    if n.op_type == "Relu":
        p("Clip", n.input[0], p.const(np.float32(0)), out=n.output[0])


def mean_as_reduction(p, n, a):
    """GlobalAveragePool = ReduceMean (torch)."""
    if n.op_type == "GlobalAveragePool":
        p("ReduceMean", n.input[0], axes=list(range(2, p.ranks[n.input[0]])), keepdims=1, out=n.output[0])


def flatten_at_run_time(p, n, a):
    """Flatten = Reshape to a shape that is worked out from the batch (TensorFlow, JAX, Paddle)."""
    if n.op_type == "Flatten":
        zero, rest = p.const(np.array([0], np.int64)), p.const(np.array([-1], np.int64))
        batch = p("Gather", p("Shape", n.input[0]), zero)
        p("Reshape", n.input[0], p("Concat", batch, rest, axis=0), out=n.output[0])


def sum_of_two(p, n, a):
    """a - b = a + (-b); a + b = Sum(a, b)."""
    if n.op_type == "Sub":
        p("Add", n.input[0], p("Neg", n.input[1]), out=n.output[0])
    elif n.op_type == "Add":
        p("Sum", *n.input, out=n.output[0])


def constants_as_nodes(p, n, a):
    """Weights in Constant nodes (Paddle)."""
    held = [(i, p.held[i]) for i in n.input if i in p.held]
    if held:
        names = {i: p("Constant", value=numpy_helper.from_array(v)) for i, v in held}
        p(n.op_type, *(names.get(i, i) for i in n.input), out=n.output[0], **a)
