"""The same trained weights give the same attributions, whoever wrote the file."""

from __future__ import annotations

import functools
import pathlib

import numpy as np
import onnx
import pytest

pytest.importorskip("onnxruntime")
from tests.conformance import spellings
from tests.rules import engine, zoo

EXPORTS = pathlib.Path(__file__).parents[3] / "shared" / "exports"
METHODS = ("gradient_x_input", "guided_backprop", "rectgrad", "lrp.epsilon", "lrp.gamma", "lrp.wsquare", "lrp.alpha2_beta1",
           "lrp.epsilon_plus_flat", "lrp.attention", "deep_taylor", "excitation_backprop")
TOLERANCE = 1e-4


def attributions(model, x, target, methods=METHODS):
    """The attribution of the model's float input by each of the methods, all from one file."""
    session = engine.session(model, list(methods))
    name = next(i.name for i in session.get_inputs() if i.name != "target")
    found = engine.run(session, x, **{name: x} if name != "x" else {}, target=np.asarray(target, np.int64))
    return {m: found[f"{name}_attribution_{m.replace('.', '_')}"] for m in methods}


def distances(one, two):
    """By method, the largest difference as a share of the largest value, for the worst sample; zeros must be zeros in both."""
    found = {}
    for method, want in one.items():
        axes = tuple(range(1, want.ndim))
        largest = np.abs(want).max(axes)
        apart = np.abs(two[method] - want).max(axes)
        found[method] = float((apart / np.where(largest > 0, largest, 1)).max())
    return found


def same(one, two, tolerance=TOLERANCE):
    assert any(v.any() for v in one.values())
    apart = distances(one, two)
    assert max(apart.values()) <= tolerance, {m: f"{d:.1e}" for m, d in apart.items() if d > tolerance}


# -- one network, spelled as other exporters would ----------------------------------------------------------------
SPELLED = {
    "dense_as_product": ("cnn", "mobile", "biased"),
    "norm_as_scale": ("cnn", "residual", "upsampled", "mlp", "scaled", "prenorm"),
    "norm_in_steps": ("cnn", "residual", "mobile", "mlp", "scaled", "prenorm"),
    "bias_apart": ("cnn", "residual", "gated", "upsampled", "volume"),
    "channels_last": ("cnn", "residual", "mobile", "shared", "scaled", "prenorm", "automatic"),
    "pads_apart": ("cnn", "residual", "gated", "mobile", "dilated", "scaled", "volume"),
    "signal_as_image": ("gated", "ratio"),
    "relu_as_maximum": ("cnn", "residual", "mobile"),
    "relu_as_clip": ("cnn", "residual"),
    "mean_as_reduction": ("cnn", "residual", "mobile"),
    "flatten_at_run_time": ("cnn", "dilated", "volume"),
    "sum_of_two": ("residual", "mlp", "shared", "tokens", "biased"),
    "constants_as_nodes": ("cnn", "mlp", "tokens", "biased", "automatic"),
}


@functools.cache
def as_written(name):
    c = zoo.case(name)
    return attributions(c.model, c.x, c.target)


@pytest.mark.parametrize(("spelling", "name"), [(s, n) for s, names in SPELLED.items() for n in names])
def test_spellings(spelling, name):
    c = zoo.case(name)
    model = spellings.respelled(c.model, getattr(spellings, spelling))
    assert [n.op_type for n in model.graph.node] != [n.op_type for n in c.model.graph.node], "nothing is spelled otherwise"
    same(as_written(name), attributions(model, c.x, c.target))


# -- files of two exporters, same weights -------------------------------------------------------------------------
PAIRS = [("torch_ts_cnn", "torch_dynamo_cnn"), ("torch_ts_cnn", "torch_ts_cnn_keepbn"), ("torch_ts_cnn", "ort_optimized_cnn"),
         ("torch_ts_mlp", "torch_dynamo_mlp"), ("torch_ts_vit", "torch_dynamo_vit"), ("torch_ts_bilstm", "torch_dynamo_bilstm"),
         ("tf2onnx_cnn", "keras_export_cnn"), ("tf2onnx_cnn", "tf2onnx_cnn_nchw"), ("tf2onnx_cnn", "tflite_tf2onnx_cnn"),
         ("tf2onnx_mlp", "keras_export_mlp"), ("tf2onnx_attn", "keras_export_attn")]
SENSITIVE = {"torch_ts_vit": 2e-3}  # sqrt(2) differs in its last digit; pixels that do so move lrp.wsquare by 5e-4 in float64
ROUGH = {  # other numbers, so other bounds: (one, other): (worst cosine, methods)
    ("torch_ts_cnn", "fp16io32_cnn"): (0.9999, METHODS),
    ("torch_ts_mlp", "ort_dynamic_mlp"): (0.98, ("gradient_x_input", "lrp.epsilon", "lrp.epsilon_plus_flat", "lrp.attention")),
    ("ort_qdq_cnn", "ort_qoperator_cnn"): (0.9, ("gradient_x_input", "lrp.epsilon_plus_flat", "lrp.alpha2_beta1")),
}
FILES = pytest.mark.skipif(not EXPORTS.is_dir(), reason="no directory ../shared/exports with exported files")


def exported(name, x, target, methods=METHODS):
    """Attributions of x, whose channels are last or first, by an exported file that may want them otherwise; in x's layout."""
    last = onnx.load(EXPORTS / f"{name}.onnx").graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    turned = x.shape[-1] != last
    found = attributions(str(EXPORTS / f"{name}.onnx"), np.moveaxis(x, -1, 1).copy() if turned else x, target, methods)
    return {m: np.moveaxis(v, 1, -1) if turned else v for m, v in found.items()}


def both(one, two, methods=METHODS):
    """What the two files say of the samples they come with, as many as the shorter list has."""
    z, other = (np.load(EXPORTS / f"{name}.npz") for name in (one, two))
    x = next(z[k] for k in z.files if k.startswith("in_"))
    n = min(len(x), len(other["target"]))
    return [exported(name, x[:n], z["target"][:n], methods) for name in (one, two)]


@FILES
@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_exporters(one, two):
    same(*both(one, two), SENSITIVE.get(one, TOLERANCE))


@FILES
@pytest.mark.parametrize(("one", "two"), ROUGH)
def test_other_numbers_alike(one, two):
    """Rounded weights, rounded activations, or scales per channel instead of per tensor: alike, not the same."""
    worst, methods = ROUGH[one, two]
    for method, (a, b) in {m: [f[m] for f in found] for m in methods for found in [both(one, two, methods)]}.items():
        a, b = (v.reshape(len(v), -1) for v in (a, b))
        held = np.linalg.norm(a, axis=1) > 0
        cosine = (a * b).sum(1)[held] / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))[held]
        assert cosine.min() > worst, (method, cosine.min())


@FILES
def test_other_weights_are_noticed():
    with pytest.raises(AssertionError):
        same(*both("jax2onnx_cnn", "tf2onnx_cnn"))
