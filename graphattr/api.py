"""The Python surface: every command of the command line has its twin here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx

from .canonical import canonicalise
from .dataset import Work, pairs
from .errors import MethodError
from .export import Explanation
from .fit import FITTERS, fit_model
from .fitted import Fitted, opened
from .foreign import EDITS
from .infer import schema_of
from .lower import lowering_for
from .method import load_method, method_names
from .recurrent import DEFAULTS
from .rule import REGISTRY, describe, load_rules
from .runtime import Attribution, Explainer
from .source import read
from .street import MethodLike, Model, Order, explanation_of, methods_of
from .upgrade import MAX_OPSET, REPLACED
from .vjp import CONSTANT, CONTROL, VJPS
from .vjp.why import WHY


def convert(
    model: Model,
    method: MethodLike | Sequence[MethodLike] = "lrp.epsilon_plus_flat",
    target: Any = "argmax",
    output: str | None = None,
    wrt: str | Sequence[str] | None = None,
    fitted: Any = None,
    strict: bool = True,
    delta: bool = False,
    ledger: bool = False,
    strip: bool = True,
    rules: Sequence[str | os.PathLike[str]] = (),
    lowering: str = "cpu",
    precision: str = "float32",
    size: str = "fast",
    **params: Any,
) -> Explanation:
    """The model with `<tensor>_attribution` outputs behind its own: what each element contributed to the explained score.

    model: a path, bytes, or an onnx.ModelProto (left unchanged).
    method: a registered name, the path of a .toml, a Method, or a list of these (outputs then end in `_<method>`).
    target: "argmax" (of each sample, of the explained output), an index or a tuple of indices into its axes after the batch,
        "input" (adds an int64 [N] input `target`), or "seed" (adds a float input `seed` of the explained output's shape).
        Several targets of each sample: "top3" (the 3 largest entries, the largest first; any number) or a list, [3, 7, 11]. They
        share the forward pass; what is added to the file then has them along a new axis 1, (N, k, *shape of a sample).
    output: the output to explain (default: the first float one).
    wrt: names of the tensors to attribute to, inputs or inner ones (default: all float inputs). "tokens", the default where no
        input is float: every integer input whose ids are looked up in a constant table; `<ids>_attribution` has the shape of the
        ids and sums what the rows they fetch get. The name of one such input asks for that one.
    fitted: what `fit` learned, for methods that need it: a Fitted, the path of one, or a list with one per such method.
    strict: an operator without a rule is an error; False lets the plain gradient pass there, and the manifest lists it.
    delta: add `<output>_delta` [N], what the attributions should add up to minus what they do.
    ledger: add `<output>_ledger` [N, layers, 4], relevance arrived, sent on, absorbed by bias and by stabiliser.
    strip: look through a terminal Softmax, LogSoftmax or Sigmoid of the explained output.
    rules: Python files with rules of your own.
    lowering: "cpu" or "cuda" write the same values in the form that runs fastest there (and runs everywhere), "portable" as
        the rules say them.
    precision: "float32" explains a float16 or bfloat16 model on a float32 copy of the nodes that matter, while its own outputs
        stay as they are; "model" computes the explanation in the model's precision.
    size: "fast" lets the Loops of methods of many passes hold copies of their convolutions' kernels where that is faster (on
        "cpu"), "small" keeps the file at the model's size.
    params: the method's parameters (see `methods()`).

    Raises ModelError, UnsupportedOp, MethodError, TargetError; all are GraphattrError.
    """
    _load_rules(rules)
    order = Order(method, target, output, wrt, strict, delta, ledger, strip, lowering, precision, size, params, opened(fitted))
    return explanation_of(model, order)


def explain(
    model: Model | Explanation,
    inputs: Any,
    method: MethodLike = "lrp.epsilon_plus_flat",
    target: Any = "argmax",
    providers: Any = None,
    **options: Any,
) -> Attribution:
    """Convert and run in one call.

    inputs: one array, or arrays by input name. target: as for `convert`, or an int64 array with one class per sample.
    options: as for `convert`. Raises what `convert` and `Explainer` raise.
    """
    import numpy as np

    if isinstance(model, Explanation):
        return Explainer(model, providers)(inputs, _target_of_the_run(model.manifest, method, target, options))
    per_sample = isinstance(target, np.ndarray) and target.ndim == 1
    options.setdefault("lowering", lowering_for(providers))
    explanation = convert(model, method, "input" if per_sample else target, **options)
    return Explainer(explanation, providers)(inputs, target if per_sample else None)


def explain_batches(
    model: Model | Explanation,
    data: Any,
    method: MethodLike = "lrp.epsilon_plus_flat",
    target: Any = "argmax",
    *,
    batch_size: int | None = None,
    preprocess: str | None = None,
    providers: Any = None,
    workers: int | None = None,
    **options: Any,
) -> Iterator[tuple[list[str], Attribution]]:
    """Explain data of any length, batch by batch: `for names, attribution in explain_batches(model, "photos/"): ...`

    Files are read and prepared by other threads, ahead of the session and no further than a batch or two, so that memory does not
    grow with the data. data: paths of files and folders, an array, arrays by input name, or an iterable of such batches. names: a
    picture's is its file, that of a sample of an array or table `file[i]`, of arrays its number.

    batch_size: samples run at once (16; a model with a fixed batch has its own, and the last one is filled up). workers: threads
    that read. The others are those of `explain`. Raises what `explain` raises, with the name of the input that did not fit.
    """
    return pairs(_work(model, data, method, target, options, batch_size=batch_size, preprocess=preprocess, provider=providers,
                       workers=workers))


def explain_dataset(
    model: Model | Explanation,
    data: Any,
    out: str | os.PathLike[str],
    method: MethodLike = "lrp.epsilon_plus_flat",
    target: Any = "argmax",
    *,
    write: Sequence[str] = ("npy",),
    batch_size: int | None = None,
    keep_going: bool = False,
    class_names: Sequence[str] = (),
    preprocess: str | None = None,
    providers: Any = None,
    workers: int | None = None,
    progress: bool | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Explain data of any length into a folder; called again it goes on where it was interrupted.

    write: some of "npy" (each output as one array of all samples, `<output>.npy`, which can be mapped and read while it grows),
    "npz" (arrays of each input) and "png" (its picture). index.csv has a line per sample: file, sample of the file, target (the
    explained class, or several), top (the highest), its score and probability; line i is row i of the arrays. dataset.json says
    what the folder belongs to: another explanation, preprocessing or choice of files is a RunError.

    data, batch_size, workers and the others: as for `explain_batches`. keep_going: leave out what cannot be explained. progress:
    a bar on stderr; by default where that is a terminal. Returns out, index, arrays (path by output), write, samples (explained
    now), skipped (by an earlier run), failed (file, error), seconds.
    """
    work = _work(model, data, method, target, options, out=Path(out), goes_on=True, write=list(write), batch_size=batch_size,
                 keep_going=keep_going, names=class_names, preprocess=preprocess, provider=providers, workers=workers,
                 progress=progress)
    for _ in work.reports():
        pass
    return work.summary()


def _work(model: Any, data: Any, method: Any, target: Any, options: dict[str, Any], provider: Any, **more: Any) -> Work:
    if isinstance(model, Explanation):
        return Work(model, data, provider=provider, target=_target_of_the_run(model.manifest, method, target, options), **more)
    options.setdefault("lowering", lowering_for(provider))
    return Work(convert(model, method, target, **options), data, provider=provider, target=None, **more)


def _target_of_the_run(manifest: Mapping[str, Any], method: Any, target: Any, options: Mapping[str, Any]) -> Any:
    """The target for a finished explanation; MethodError where anything is asked of it that it was not made for."""
    import numpy as np

    asked = sorted(options) + ["method"] * (method not in (Order.method, manifest["method"]))
    fixed = manifest["target"] != "input"
    if fixed and not any(np.array_equal(target, known) for known in ("argmax", manifest["target"])):
        asked.append("target")
    if asked:
        raise MethodError(f"the model is already an explanation ({manifest['method']}, target {manifest['target']!r}): "
                          f"{', '.join(asked)} cannot be chosen any more; give the source model")
    return None if fixed or isinstance(target, str) else target


def _load_rules(files: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> None:
    load_rules([os.fspath(f) for f in ([files] if isinstance(files, (str, os.PathLike)) else files)])


def fit(
    model: Model,
    data: Any,
    method: MethodLike,
    *,
    labels: Any = None,
    target: Any = None,
    output: str | None = None,
    wrt: str | Sequence[str] | None = None,
    batch_size: int = 32,
    state: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    preprocess: str | None = None,
    strip: bool = True,
    providers: Any = None,
    rules: Sequence[str | os.PathLike[str]] = (),
    **params: Any,
) -> Fitted:
    """What a method needs to learn from data before it can explain; give the result to `convert(fitted=...)`.

    The model itself is run, with statistics of each layer behind it, batch by batch; sums are kept in float64.

    data: an array, arrays by input name, an iterable of such batches (or of pairs of a batch and its labels), or the path of an
        .npz, .npy, .csv, .parquet, picture or folder of these, or several paths. An .npz or dict may hold `labels`, a table a
        column `label`; folders may be classes.
    labels: a class per sample, where the method asks for it: an array, .npy, text of numbers, or a .csv with lines `file,class`.
    target: the target to learn for, or a list, where the method learns for each.
    output, wrt, strip: as for `convert`.
    batch_size: samples that are run at once (a model with a fixed batch has its own).
    state: a file from which an interrupted fit goes on; it is written while the fit runs, and removed at its end.
    progress: a bar on stderr; by default where that is a terminal.
    preprocess: of pictures, as on the command line.
    params: what the method's fit takes (see `methods()`).

    Warns (FitWarning) where there are too few samples. Raises what `convert` raises, and RunError for data that do not fit.
    """
    _load_rules(rules)
    return fit_model(
        model, data, method, labels, target, output, wrt, batch_size, state, progress, preprocess, strip, providers, params
    )


# -- looking ------------------------------------------------------------------------------------------------------
def inspect(
    model: Model,
    method: MethodLike | None = None,
    output: str | None = None,
    wrt: str | Sequence[str] | None = None,
    strip: bool = True,
    rules: Sequence[str | os.PathLike[str]] = (),
    **params: Any,
) -> dict[str, Any]:
    """What is in the file, which rule each layer would get, what would fail and why, as plain data.

    Keys: inputs, outputs, opset, explained, layers (name, op, kind, block, shape, parameters, on_path, rule, line, problem),
    coverage (layers on the path that have a rule, over all on the path), problems; blocks (name, layers, x, y, facts, parts,
    origin): layers that together are attention, LayerNorm, GELU ...; misses (name, at, why): what only looks like one; summary.
    """
    from .look import look

    _load_rules(rules)
    chosen = None if method is None else methods_of(method, params)[0]
    return look(canonicalise(read(model), Order(params=params).fold_bn), chosen, output, wrt, strip)


def verify(
    explanation: Explanation | Model, model: Model | None = None, data: Any = None, providers: Any = None
) -> dict[str, Any]:
    """Check an explanation, as plain data: provenance, outputs equal to the source's, finite attributions, completeness, ledger.

    data: inputs as for `Explainer` (default: seeded noise of the inputs' shapes). Keys: ok, checks (name, ok, detail), ledger.
    """
    from .look import check

    return check(explanation, model, data, providers)


def placement(model: Explanation | Model) -> dict[str, Any]:
    """Where ONNX Runtime's CUDA provider places the nodes of a file, by its table of kernels; no GPU is needed.

    Keys: onnxruntime (the release the table is of), opset, cuda (nodes with a kernel), shapes (nodes that compute shapes, on the
    CPU by intention), cpu (op, why, count, nodes): what is left to the CPU, so that its tensors travel at every run.
    """
    from .kernels import placement as found

    return found(model.model if isinstance(model, Explanation) else read(model).model)


def methods() -> list[dict[str, Any]]:
    """Every registered method: name, summary, source, seed, its parameters with type and default, and those of its fit.

    fit: None for methods that learn nothing from data.
    """
    found = []
    for name in method_names():
        m = load_method(name)
        found.append(
            {
                "name": name,
                "summary": m.summary,
                "source": m.source,
                "seed": m.seed,
                "parameters": {k: {"type": t, "default": d} for k, (t, d) in m.parameters().items()},
                "fit": {p.name: {"type": describe(p.type), "default": p.default} for p in FITTERS[m.fit].params.values()}
                if m.fit in FITTERS
                else None,
            }
        )
    return found


def rules() -> list[dict[str, Any]]:
    """Every registered rule: name, summary, the kinds of layers it takes, its parameters, where it was registered."""
    load_rules()
    return [
        {
            "name": r.name,
            "summary": r.summary,
            "kinds": sorted(r.kinds),
            "origin": r.source,
            "parameters": {
                p.name: {"type": describe(p.type), "default": None if p.required else p.default, "required": p.required}
                for p in r.params.values()
            },
        }
        for r in sorted(REGISTRY.rules.values(), key=lambda r: r.name)
    ]


def operators(opset: int = MAX_OPSET) -> list[dict[str, Any]]:
    """Every operator that is known: name (with the domain of foreign ones), how it is differentiated, why not, since which opset.

    derivative: "derivative" (ours), "body" (by its ONNX function body), "rewritten" (as other operators, before anything else),
    "zero", or "none" (refused on the path). why: for the last two, the reason.
    """
    standard = sorted({s.name for s in onnx.defs.get_all_schemas() if not s.domain})
    foreign = sorted({f"{domain}:{op}" for domain, op in EDITS if domain} | {name for name in WHY if ":" in name})
    found = []
    for name in [*standard, *foreign]:
        schema = schema_of(name, "", opset) or schema_of(name, "", onnx.defs.onnx_opset_version())
        since = schema.since_version if schema else None
        status = "none" if since is not None and since > opset else _status(name, schema)
        reason = f"came with opset {since}; models are read up to opset {opset}" if since and since > opset else WHY.get(name, "")
        found.append({"name": name, "derivative": status, "why": reason if status in ("zero", "none") else "", "since": since})
    return found


def _status(name: str, schema: Any) -> str:
    if name in VJPS or name in CONTROL:
        return "derivative"
    if name in CONSTANT:
        return "zero"
    domain, _, op = name.rpartition(":")
    if (domain, op) in EDITS or name in DEFAULTS or name in REPLACED:
        return "rewritten"
    return "body" if schema is not None and (schema.has_function or schema.has_context_dependent_function) else "none"
