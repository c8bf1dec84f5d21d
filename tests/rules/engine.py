"""graphattr as a function of arrays: convert, run in ONNX Runtime, return the attributions by tensor."""

from __future__ import annotations

import numpy as np
import onnxruntime

import graphattr


def session(model, method, wrt=None, target="input", **params):
    """The explanation graph of a model, ready to run."""
    made = graphattr.convert(model, method=method, target=target, wrt=wrt, **params).model
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    return onnxruntime.InferenceSession(made.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run(explainer, x, **feeds):
    """All outputs by name; attributions under their tensor's name, in float64."""
    held = {i.name for i in explainer.get_inputs()}
    feeds = {k: np.asarray(v) for k, v in {"x": np.asarray(x, np.float32), **feeds}.items() if k in held}
    found = explainer.run(None, feeds)
    return {o.name.removesuffix("_attribution"): v.astype(float) for o, v in zip(explainer.get_outputs(), found)}


def attribute(model, x, target, method, wrt=None, **params):
    """Attributions of x (or of the tensors `wrt`) for one target per sample."""
    return run(session(model, method, wrt, **params), x, target=np.asarray(target, np.int64))
