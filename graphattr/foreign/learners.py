"""ai.onnx.ml: what scikit-learn's linear models and preprocessing become. Formulas are those of ONNX Runtime's kernels."""

from __future__ import annotations

import numpy as np
from onnx import NodeProto, TensorProto

from ..rewrite import Edit, Pen, attribute
from ..tensors import Array


def scaler(pen: Pen, n: NodeProto) -> None:
    """y = (x - offset) * scale, float32; float64 is scaled as such first."""
    offset, scale = _list(n, "offset"), _list(n, "scale")
    x, kind = n.input[0], pen.book.dtype(n.input[0])
    if not len(offset) or len(offset) != len(scale) or not _per_column(pen, x, offset):
        return
    wide = kind == TensorProto.DOUBLE
    dtype = np.float64 if wide else np.float32
    x = x if wide else as_float(pen, x)
    centred = pen("Sub", x, pen.const(offset, "offset", dtype))
    out = "" if wide else n.output[0]
    y = pen("Mul", centred, pen.const(scale, "scale", dtype), out=out or None)
    if wide:
        pen("Cast", y, out=n.output[0], to=TensorProto.FLOAT)


def normalizer(pen: Pen, n: NodeProto) -> None:
    """y = x / norm of the row, a zero norm counting as 1. MAX is the largest element, not the largest size."""
    dims = pen.book.dims(n.input[0])
    if dims is None or len(dims) not in (1, 2):
        return
    x, norm = as_float(pen, n.input[0]), attribute(n, "norm", "MAX")
    if norm == "MAX":
        size = pen.reduce("ReduceMax", x, [-1])
    elif norm == "L1":
        size = pen.reduce("ReduceSum", pen("Abs", x), [-1])
    else:
        size = pen("Sqrt", pen.reduce("ReduceSum", pen("Mul", x, x), [-1]))
    zero = pen("Equal", size, pen.const(0, "zero", np.float32))
    pen("Div", x, pen("Where", zero, pen.const(1, "one", np.float32), size), out=n.output[0])


def linear_regressor(pen: Pen, n: NodeProto) -> None:
    targets = attribute(n, "targets", 1)
    w, b = _list(n, "coefficients"), _list(n, "intercepts")
    if attribute(n, "post_transform", "NONE") != "NONE" or not _is_matrix(pen, n.input[0]) or w.size % targets:
        return
    _gemm(pen, n.input[0], w.reshape(targets, -1), b if b.size else np.zeros(targets), out=n.output[0])


def linear_classifier(pen: Pen, n: NodeProto) -> None:
    """Scores by Gemm and Sigmoid or Softmax. The labels, where anybody reads them, stay with the original node.

    One row of coefficients for two labels gives the scores [1 - s, s], with LOGISTIC the sigmoids of [-s, s].
    """
    if len(n.output) < 2 or n.output[1] not in pen.book.read:
        return
    labels = attribute(n, "classlabels_ints") or attribute(n, "classlabels_strings") or []
    w, b, how = _list(n, "coefficients"), _list(n, "intercepts"), attribute(n, "post_transform", "NONE")
    if not b.size or w.size % b.size or not _is_matrix(pen, n.input[0]):
        return
    w = w.reshape(b.size, -1)
    single = b.size == 1
    if how not in ("NONE", "SOFTMAX", "LOGISTIC") or (single and len(labels) != 2):
        return
    if single:
        w, b = np.concatenate([-w, w]), np.concatenate([(how != "LOGISTIC") - b, b])
    last = {"LOGISTIC": "Sigmoid", "SOFTMAX": "" if single else "Softmax"}.get(how, "")
    _keep_labels(pen, n)
    scores = _gemm(pen, n.input[0], w, b, out=None if last else n.output[1])
    if last:
        pen(last, scores, out=n.output[1])


def _keep_labels(pen: Pen, n: NodeProto) -> None:
    if n.output[0] in pen.book.read:
        old = NodeProto()
        old.CopyFrom(n)
        old.output[1] = pen.book.fresh(f"{pen.stem}_unused")
        pen.nodes.append(old)


def imputer(pen: Pen, n: NodeProto) -> None:
    """y = x where x is not the replaced value (NaN too), else the imputed one."""
    values, old = _list(n, "imputed_value_floats"), attribute(n, "replaced_value_float", 0.0)
    x = n.input[0]
    if pen.book.dtype(x) != TensorProto.FLOAT or not values.size or not _per_column(pen, x, values):
        return
    missing = pen("IsNaN", x) if np.isnan(old) else pen("Equal", x, pen.const(old, "replaced", np.float32))
    pen("Where", missing, pen.const(values, "imputed", np.float32), x, out=n.output[0])


def feature_vectorizer(pen: Pen, n: NodeProto) -> None:
    """Concatenation, where no input is padded or cut to its stated width."""
    dims = [pen.book.dims(i) for i in n.input]
    if all(d is not None and len(d) == 2 and d[1] == k for d, k in zip(dims, attribute(n, "inputdimensions", []), strict=True)):
        pen("Concat", *(as_float(pen, i) for i in n.input), out=n.output[0], axis=1)


def array_feature_extractor(pen: Pen, n: NodeProto) -> None:
    """Columns of a float matrix; labels have no derivative and stay."""
    dims = pen.book.dims(n.input[0])
    if dims is not None and len(dims) >= 2 and pen.book.dtype(n.input[0]) in (TensorProto.FLOAT, TensorProto.DOUBLE):
        index = pen("Reshape", n.input[1], pen.const([-1], "flat", np.int64))
        pen("Gather", n.input[0], index, out=n.output[0], axis=-1)


def as_float(pen: Pen, x: str) -> str:
    """x as float32; where its type is not known, by a Cast that may do nothing."""
    return x if pen.book.dtype(x) == TensorProto.FLOAT else pen("Cast", x, to=TensorProto.FLOAT)


def _gemm(pen: Pen, x: str, w: Array, b: Array, out: str | None) -> str:
    weight, bias = pen.const(w, "coefficients", np.float32), pen.const(b, "intercepts", np.float32)
    return pen("Gemm", as_float(pen, x), weight, bias, out=out, transB=1)


def _list(n: NodeProto, name: str) -> Array:
    return np.asarray(attribute(n, name, []), np.float64)


def _is_matrix(pen: Pen, x: str) -> bool:
    dims = pen.book.dims(x)
    return dims is not None and len(dims) == 2


def _per_column(pen: Pen, x: str, values: Array) -> bool:
    """One value for all, or one per column of at most two axes."""
    dims = pen.book.dims(x)
    return len(values) == 1 or (dims is not None and len(dims) in (1, 2))


EDITS: dict[tuple[str, str], Edit] = {("ai.onnx.ml", op): change for op, change in {
    "ArrayFeatureExtractor": array_feature_extractor,
    "FeatureVectorizer": feature_vectorizer,
    "Imputer": imputer,
    "LinearClassifier": linear_classifier,
    "LinearRegressor": linear_regressor,
    "Normalizer": normalizer,
    "Scaler": scaler,
}.items()}
