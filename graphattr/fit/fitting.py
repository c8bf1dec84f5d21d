"""The fit: a model and data go in, learned parameters come out."""

from __future__ import annotations

import os
import warnings as python_warnings
from collections.abc import Mapping
from typing import Any

from ..attribute import plan_of
from ..canonical import Canonical, canonicalise
from ..errors import FitWarning, MethodError, RunError
from ..fitted import Fitted, fingerprint, needing
from ..graph import Value
from ..layers import to_layers
from ..lower import lowering_for
from ..method import load_method
from ..precision import computes_in_half, twin_of
from ..preprocess import Say, preprocess_for, print_nothing
from ..source import read
from ..street import MethodLike, Model, Order, request_of
from ..targets import Target, check_target, data_roots
from ..version import __version__
from .data import Data, Types, has_pictures, open_data
from .progress import Bar
from .state import State
from .stream import Stream
from .task import Fitter, Task, checked_params, fitter_of

BATCH = 32


def fit_model(
    model: Model,
    data: Any,
    method: MethodLike,
    labels: Any = None,
    target: Any = None,
    output: str | None = None,
    wrt: Any = None,
    batch_size: int = BATCH,
    state: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
    preprocess: str | None = None,
    strip: bool = True,
    providers: Any = None,
    params: Mapping[str, Any] = {},
    say: Say = print_nothing,
) -> Fitted:
    """What `graphattr.fit` describes."""
    chosen = load_method(method)
    needs = needing(chosen) or chosen
    learner = fitter_of(needs)
    settings = checked_params(needs, learner, params)
    source = read(model)
    canonical, order = canonicalise(source), Order(needs, output=output, wrt=wrt, strip=strip)
    request = request_of(canonical, order)
    targets = _targets(needs.name, learner, target, request.explained.y)
    opened = _data(canonical, data, labels, batch_size, preprocess, say)
    half = computes_in_half(canonical, request.explained, request.wrt)
    twin = twin_of(canonical, request.explained, request.wrt, "float32") if half else None
    if twin is not None:
        request = request_of(twin.wide, order)
    wide = canonical if twin is None else twin.wide
    graph = to_layers(wide.graph, data_roots(wide, request.wrt), [*request.wrt, request.explained.y])
    rules = plan_of(graph, needs, request)
    key = {
        "fingerprint": fingerprint(source),
        "method": needs.name,
        "params": settings,
        "targets": [list(t) if isinstance(t, tuple) else t for t in targets],
        "output": request.explained.name,
        "wrt": [v.name for v in request.wrt],
        "batch_size": opened.size,
    }
    held = State.begin(state, key)
    stream = Stream(canonical, twin, request.wrt, opened, held, Bar(progress), providers, lowering_for(providers))
    task = Task(graph, request.explained.y, request.wrt, targets, stream, rules)
    arrays = learner.apply(task, **settings)
    said = [*opened.left_out(), *task.warnings]
    for text in said:
        python_warnings.warn(f"{needs.name}: {text}", FitWarning, stacklevel=3)
    held.remove()
    seen = max((p.samples for p in held.passes.values()), default=0)
    name = source.path.name if source.path is not None else source.model.graph.name
    manifest = {"version": __version__, "model": name, **key, "samples": seen, "layers": task.notes, "warnings": said}
    return Fitted(arrays, manifest)


def _targets(name: str, learner: Fitter, target: Any, y: Value) -> list[Target]:
    """The targets to learn for: one, or a list of them."""
    if target is None:
        if learner.targets:
            raise MethodError(f"method {name!r} is learned for one target or a list of them: pass target= (--target)")
        return []
    several = target if isinstance(target, list) else [target]
    if not several or any(isinstance(t, str) for t in several):
        raise MethodError(f"fitting needs the targets themselves, such as target=3 or target=[3, 5], not {target!r}")
    return list(dict.fromkeys(check_target(t, y) for t in several))


def _data(canonical: Canonical, data: Any, labels: Any, size: int, preprocess: str | None, say: Say) -> Data:
    """The data in batches that the model takes: where its batch is fixed in the file, in batches of that size."""
    if not isinstance(size, int) or size < 1:
        raise RunError(f"batch_size must be a positive integer, not {size!r}")
    types: Types = {v.name: (v.dtype, v.shape) for v in canonical.graph.inputs}
    fixed = {shape[0] for _, shape in types.values() if shape and isinstance(shape[0], int)}
    if len(fixed) > 1:
        raise RunError(f"the inputs have fixed first axes of different sizes ({', '.join(map(str, sorted(fixed)))}), so there is "
                       "no batch; export the model with a dynamic batch")
    pre = None
    if has_pictures(data):
        first = next(iter(types.values()))[1]
        pre = preprocess_for(preprocess, first or (), say)
    return open_data(data, labels, types, next(iter(fixed), size), pre, bool(fixed))
