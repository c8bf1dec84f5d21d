"""Rewrite a model of opset 7 to 16 in the spelling of opset 17, node by node.

`onnx.version_converter` is not used: it copies the weights several times, drops what it does not know and has gaps.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, helper

from .errors import ModelError
from .rewrite import Book, Edit, Pen, attribute, drop, edit, put, refill, set_inputs
from .tensors import Array
from .wellformed import MAX_IR, MAX_OPSET, default_opset

__all__ = ["MAX_IR", "MAX_OPSET", "REPLACED", "upgrade"]

MIN_OPSET = 7
DEFAULT = ("", "ai.onnx")


def upgrade(model: ModelProto, to: int = 17, in_place: bool = False) -> ModelProto:
    """The same model at opset `to` or above; the very object given when there is nothing to change, or `in_place`.

    A missing import of the default domain is what ONNX Runtime takes it for: the newest. Raises ModelError below
    opset 7, above MAX_OPSET, and for operators whose old form has no new one.
    """
    version = default_opset(model)
    if version is not None and not MIN_OPSET <= version <= MAX_OPSET:
        raise ModelError(f"the model is written in opset {version}; opsets {MIN_OPSET} to {MAX_OPSET} are accepted: "
                         "export it again with a current exporter" + (" (opset_version=17)" if version < MIN_OPSET else ""))
    if version is None:
        used = any(n.domain in DEFAULT for n in model.graph.node)
        version = MAX_OPSET if used else to
    old_functions = any(o.domain in DEFAULT and o.version < to for f in model.functions for o in f.opset_import)
    if version >= to and not old_functions and _imports_are_clean(model):
        return model
    out = model
    if not in_place:
        out = ModelProto()
        out.CopyFrom(model)
    _set_imports(out.opset_import, max(version, to))
    if version < to:
        _drop_listed_weights(out)
        out.ir_version = max(out.ir_version, 8)
    _upgrade_nodes(out, Book(model), version, to)
    return out


def _imports_are_clean(model: ModelProto) -> bool:
    domains = [o.domain for o in model.opset_import]
    return "" in domains and "ai.onnx" not in domains and len(set(domains)) == len(domains)


def _set_imports(field: Any, version: int) -> None:
    """Each domain once, the last import counting; the default domain first."""
    last = {o.domain: o.version for o in field if o.domain not in DEFAULT}
    refill(field, [helper.make_opsetid(d, v) for d, v in [("", version), *last.items()]])


def _drop_listed_weights(model: ModelProto) -> None:
    """Before IR 4 each weight had to be listed as an input; from IR 4 on that would make it one."""
    if model.ir_version < 4:
        weights = {t.name for t in model.graph.initializer}
        refill(model.graph.input, [v for v in model.graph.input if v.name not in weights])


def _upgrade_nodes(model: ModelProto, book: Book, version: int, to: int) -> None:
    edit(model.graph.node, partial(_upgrade_node, book=book, version=version, to=to))
    for f in model.functions:
        own = next((o for o in reversed(f.opset_import) if o.domain in DEFAULT), None)
        if own is not None and own.version < to:
            edit(f.node, partial(_upgrade_node, book=book, version=own.version, to=to))
            own.version = max(version, to)


def _upgrade_node(node: NodeProto, book: Book, version: int, to: int) -> list[NodeProto]:
    nodes = [node]
    for since, change in STEPS.get(node.op_type, ()) if node.domain in DEFAULT else ():
        if version < since <= to:
            done: list[NodeProto] = []
            for n in nodes:
                pen = Pen(book, n, to)
                if n.op_type == node.op_type:
                    change(pen, n)
                done += pen.nodes or [n]
            nodes = done
    return nodes


def attributes_to_inputs(**defaults: object) -> Edit:
    """Integer attributes become int64 inputs, in this order; one that is absent, or its default, stays away."""
    def change(pen: Pen, n: NodeProto) -> None:
        given = {k: attribute(n, k) for k in defaults}
        extra = [pen.const(np.asarray(v, np.int64).reshape(-1), k) if v is not None else "" for k, v in given.items()]
        drop(n, *defaults)
        set_inputs(n, *list(n.input)[:1], *extra)
        pen.keep()
    return change


def clip(pen: Pen, n: NodeProto) -> None:
    low, high = attribute(n, "min"), attribute(n, "max")
    drop(n, "min", "max")
    bounds = [pen.like(v, k, n.input[0]) if v is not None else "" for k, v in (("min", low), ("max", high))]
    set_inputs(n, n.input[0], *bounds)
    pen.keep()


def pad(pen: Pen, n: NodeProto) -> None:
    pads = pen.const(attribute(n, "pads"), "pads", np.int64)
    value = attribute(n, "value", 0.0)
    drop(n, "pads", "value")
    set_inputs(n, n.input[0], pads, pen.like(value, "value", n.input[0]) if value else "")
    pen.keep()


def slice_(pen: Pen, n: NodeProto) -> None:
    starts, ends, axes = (attribute(n, k) for k in ("starts", "ends", "axes"))
    drop(n, "starts", "ends", "axes")
    names = [pen.const(v, k, np.int64) if v is not None else "" for k, v in (("starts", starts), ("ends", ends), ("axes", axes))]
    set_inputs(n, n.input[0], *names)
    pen.keep()


def dropout_mask(pen: Pen, n: NodeProto) -> None:
    """Before opset 10 the mask had the data's type."""
    if len(n.output) > 1 and n.output[1]:
        mask, old = pen.book.fresh(f"{pen.stem}_mask"), n.output[1]
        n.output[1] = mask
        pen.keep()
        pen("CastLike", mask, n.input[0], out=old)


def dropout_ratio(pen: Pen, n: NodeProto) -> None:
    """The ratio means nothing at inference, which is what a Dropout without training_mode does."""
    drop(n, "ratio")


def batchnorm_spatial(pen: Pen, n: NodeProto) -> None:
    """spatial=0 normalises each element by itself: y = (x - mean) / sqrt(var + epsilon) * scale + b."""
    spatial = attribute(n, "spatial", 1)
    drop(n, "spatial", "is_test", "consumed_inputs")
    if spatial:
        return
    x, scale, b, mean, var = n.input
    std = pen("Sqrt", pen("Add", var, pen.like(attribute(n, "epsilon", 1e-5), "epsilon", var)))
    pen("Add", pen("Mul", pen("Div", pen("Sub", x, mean), std), scale), b, out=n.output[0])


def batchnorm_outputs(pen: Pen, n: NodeProto) -> None:
    """Before opset 14 five outputs meant training; the four statistics may be named, but nothing may read them."""
    read = {o for o in n.output[1:] if o} & pen.book.read
    if read:
        raise ModelError(f"BatchNormalization {pen.stem!r} gives out training statistics ({', '.join(sorted(read))}); "
                         "export the model in evaluation mode")
    del n.output[1:]


def softmax(pen: Pen, n: NodeProto) -> None:
    """Before opset 13 the input was seen as a matrix, all axes from `axis` (1) on as its columns."""
    axis, dims = attribute(n, "axis", 1), pen.book.dims(n.input[0])
    if dims is not None:
        at = axis % len(dims) if dims else 0
        if all(d == 1 for d in dims[at + 1:]):
            put(n, axis=at if at < len(dims) - 1 else -1)
            return
    if axis == -1:
        put(n, axis=-1)
        return
    flat = pen(n.op_type, pen("Flatten", n.input[0], axis=axis), axis=-1)
    pen("Reshape", flat, pen("Shape", n.input[0]), out=n.output[0])


def resize_asymmetric(pen: Pen, n: NodeProto) -> None:
    """Upsample and Resize-10: position = index / scale; nearest takes the floor when enlarging, the ceiling when shrinking."""
    mode = attribute(n, "mode", "nearest")
    scales = n.input[1] if len(n.input) > 1 else pen.const(attribute(n, "scales"), "scales", np.float32)
    how = {"mode": "linear" if mode == "bilinear" else mode, "coordinate_transformation_mode": "asymmetric"}
    if mode != "nearest":
        pen("Resize", n.input[0], "", scales, out=n.output[0], **how)
        return
    known: Array | None = np.asarray(attribute(n, "scales")) if len(n.input) < 2 else pen.book.constant(scales)
    if n.op_type == "Upsample" or (known is not None and (known >= 1).all()):
        pen("Resize", n.input[0], "", scales, out=n.output[0], nearest_mode="floor", **how)
        return
    one = pen.const(1, "one", np.float32)
    large = pen("Resize", n.input[0], "", pen("Max", scales, one), nearest_mode="floor", **how)
    pen("Resize", large, "", pen("Min", scales, one), out=n.output[0], nearest_mode="ceil", **how)


def resize_inputs(pen: Pen, n: NodeProto) -> None:
    """Opset 11 wanted roi and scales even where unused; tf_half_pixel_for_nn went away at 13."""
    x, roi, scales, sizes = [*n.input, "", "", ""][:4]
    mode = attribute(n, "coordinate_transformation_mode", "half_pixel")
    set_inputs(n, x, roi if mode == "tf_crop_and_resize" else "", "" if sizes else scales, sizes)
    if mode == "tf_half_pixel_for_nn" and attribute(n, "mode", "nearest") == "nearest":
        if attribute(n, "nearest_mode", "round_prefer_floor") != "floor":
            raise ModelError(f"Resize {pen.stem!r} uses tf_half_pixel_for_nn without nearest_mode=floor, which opset 13 "
                             "cannot say; export the model at opset 13 or above")
        put(n, coordinate_transformation_mode="half_pixel", nearest_mode="round_prefer_ceil")


def topk(pen: Pen, n: NodeProto) -> None:
    k = pen.const([attribute(n, "k")], "k", np.int64)
    drop(n, "k")
    set_inputs(n, n.input[0], k)
    pen.keep()


def scatter(pen: Pen, n: NodeProto) -> None:
    n.op_type = "ScatterElements"


def roi_align(pen: Pen, n: NodeProto) -> None:
    put(n, coordinate_transformation_mode="output_half_pixel")


def scan(pen: Pen, n: NodeProto) -> None:
    raise ModelError(f"Scan {pen.stem!r} is of opset 8, whose batched form later versions do not have; "
                     "export the model at opset 9 or above")


REPLACED = {"Scatter", "Upsample"}  # have no newer spelling of their name

STEPS: dict[str, list[tuple[int, Edit]]] = {
    "BatchNormalization": [(9, batchnorm_spatial), (14, batchnorm_outputs)],
    "Clip": [(11, clip)],
    "Dropout": [(10, dropout_mask), (12, dropout_ratio)],
    "Hardmax": [(13, softmax)],
    "LogSoftmax": [(13, softmax)],
    "Pad": [(11, pad)],
    "ReduceSum": [(13, attributes_to_inputs(axes=None))],
    "Resize": [(11, resize_asymmetric), (13, resize_inputs)],
    "RoiAlign": [(16, roi_align)],
    "Scan": [(9, scan)],
    "Scatter": [(11, scatter)],
    "Slice": [(10, slice_)],
    "Softmax": [(13, softmax)],
    "Split": [(13, attributes_to_inputs(split=None))],
    "Squeeze": [(13, attributes_to_inputs(axes=None))],
    "TopK": [(10, topk)],
    "Unsqueeze": [(13, attributes_to_inputs(axes=None))],
    "Upsample": [(10, resize_asymmetric)],
}
"""Operator -> (version that changed it, rewrite to that version). What changed only in types or defaults needs none:
Add, Cast, Gemm, PRelu (unidirectional since 7), pooling, LRN, Mod, the other reductions (attributes until 18), OneHot ..."""
