"""Quantus' metrics over a .onnx: `OnnxModel` is what they ask, in ONNX Runtime, and `explain_func` makes their attributions.

    quantus.PixelFlipping()(OnnxModel("model.onnx"), x, y, explain_func=explain_func, explain_func_kwargs={"method": "lrp.zplus"})

Hedström et al. 2023. Quantus wraps the models it is given, and knows those of torch and Keras; importing this module lets it take
an OnnxModel as it is. SmoothMPRT asks Quantus' own explanations, not `explain_func`, and they are of torch and Keras models only.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from onnx import helper, numpy_helper

from .api import convert
from .canonical import canonicalise
from .errors import MethodError, RunError, did_you_mean
from .graph import Array
from .layers import Layer
from .lower import lowering_for
from .measure.randomisation import linear_layers, reinitialised
from .measure.scoring import Scorer, bare_model, embed, explained, softmax
from .runtime import Explainer
from .session import open_session
from .simplify import prune, with_nodes
from .source import read
from .street import MethodLike, Model

try:
    from quantus.helpers import utils
    from quantus.helpers.model.model_interface import ModelInterface
except ModuleNotFoundError as e:
    raise RunError('Quantus is not installed: pip install "graphattr[quantus]"') from e


class OnnxModel(ModelInterface):  # type: ignore[misc]
    """A model of one float input, as Quantus' metrics call it. `predict` gives the scores that are explained, before a terminal
    Softmax, or with `softmax` the probabilities. RunError for models with several inputs.

    model: a path, bytes or an onnx.ModelProto. channel_first, softmax: what a metric says, which asks anew for each call.
    output, providers: as for `graphattr.convert` and `Explainer`.
    """

    def __init__(
        self, model: Model, channel_first: bool = True, softmax: bool = False, *, output: str | None = None,
        providers: Any = None, batch_size: int = 64,
    ) -> None:
        super().__init__(model, channel_first, softmax)
        self.output, self.providers, self.batch_size = output, providers, batch_size
        self._canonical = canonicalise(read(model))
        self._layers = linear_layers(self._canonical, output)
        inputs = self._canonical.graph.inputs
        if len(inputs) != 1 or not inputs[0].is_float:
            raise RunError(f"Quantus varies one float input; the model has {', '.join(f'{v.name} ({v.dtype})' for v in inputs)}")
        self.input = inputs[0]
        self.scorer = Scorer(model, output, providers, batch_size)
        self._made: list[tuple[Any, Mapping[str, Any], Explainer]] = []
        self._sessions: dict[tuple[str, ...], Any] = {}

    def wrapped(self, channel_first: bool | None, softmax: bool | None) -> OnnxModel:
        """The same model, in the layout and with the end that a metric asks for."""
        made = copy.copy(self)
        made.channel_first = self.channel_first if channel_first is None else channel_first
        made.softmax = self.softmax if softmax is None else softmax
        return made

    # -- what metrics ask of a model ----------------------------------------------------------------------------------
    def predict(self, x: Array, **kwargs: Any) -> Array:
        """(N, classes) in float64."""
        y = self.scorer({self.input.name: np.asarray(x, self.input.dtype)})
        return softmax(y) if self.softmax else y

    def shape_input(self, x: Array, shape: Sequence[int], channel_first: bool | None = None, batched: bool = False) -> Array:
        """x as the file wants it: with a batch axis, channels where they belong."""
        first = utils.infer_channel_first(x) if channel_first is None else channel_first
        x = np.asarray(x).reshape(tuple(shape) if batched else (1, *shape))
        move = utils.make_channel_first if self.channel_first else utils.make_channel_last
        return np.asarray(move(x, first))

    def get_model(self) -> OnnxModel:
        """What `explain_func` is given."""
        return self

    def get_softmax_arg_model(self) -> OnnxModel:
        """`softmax` is heeded by `predict`."""
        return self

    def state_dict(self) -> dict[str, Array]:
        """What was learned, by the names of the file's tensors."""
        folder = str(self._canonical.source.folder or "")
        return {t.name: numpy_helper.to_array(t, folder) for t in self._canonical.model.graph.initializer}

    @property
    def random_layer_generator_length(self) -> int:
        """How many layers have weights."""
        return len(self._layers)

    def get_random_layer_generator(
        self, order: Literal["top_down", "bottom_up", "independent"] = "top_down", seed: int = 42
    ) -> Iterator[tuple[str, OnnxModel]]:
        """(layer, the model in which it was re-initialised), as `graphattr.measure.cascading_randomisation` draws weights."""
        for name, model in reinitialised(self.model, order, random_state=seed, output=self.output):
            yield name, self._like(model)

    def get_hidden_representations(
        self, x: Array, layer_names: Sequence[str] | None = None, layer_indices: Sequence[int] | None = None
    ) -> Array:
        """(N, values): what layers with weights give, all or those of these names or indices, flattened side by side."""
        known = {layer.name: layer for layer in self._layers}
        wrong = [n for n in layer_names or () if n not in known]
        if wrong:
            raise MethodError(f"no layer with weights is called {wrong[0]!r}{did_you_mean(wrong[0], known)} (there are "
                              f"{', '.join(known)})")
        chosen = [*(layer_names or ()), *(list(known)[i] for i in layer_indices or ())] or known
        found = self._inside([known[n] for n in chosen], x)
        return np.concatenate([y.reshape(len(y), -1) for y in found], 1)

    def add_mean_shift_to_first_layer(self, input_shift: float, shape: Sequence[int]) -> OnnxModel:
        """The model that says of x + shift what this one says of x: what the shift adds behind the first layers is taken off
        again, place by place, as padding asks. shape: of one sample, with its batch axis. MethodError where others read x."""
        graph = self._canonical.graph
        first = [layer for layer in self._layers if self.input in layer.xs]
        if not {n for n in graph.nodes if self.input in n.uses} <= {n for layer in first for n in layer.nodes}:
            raise MethodError("a shift of the input cannot be taken off behind the layers that read it: not all are linear")
        ones = np.ones(tuple(shape))
        shifts = [b - a for a, b in zip(self._inside(first, 0 * ones), self._inside(first, input_shift * ones), strict=True)]
        proto = bare_model(self._canonical, graph)
        embed(proto, self._canonical.source)
        for layer, shift in zip(first, shifts, strict=True):
            name = layer.ys[0].name
            at, node = next((i, n) for i, n in enumerate(proto.graph.node) if name in n.output)
            node.output[list(node.output).index(name)] = f"{name}_of_the_shifted"
            proto.graph.initializer.append(numpy_helper.from_array(shift, f"{name}_shift"))
            taken = helper.make_node("Sub", [f"{name}_of_the_shifted", f"{name}_shift"], [name], f"{name}_unshifted")
            proto.graph.node.insert(at + 1, taken)
        return self._like(proto)

    def _inside(self, layers: Sequence[Layer], x: Array) -> list[Array]:
        """What layers give for x."""
        names = tuple(layer.name for layer in layers)
        if names not in self._sessions:
            graph, values = self._canonical.graph, [layer.ys[0] for layer in layers]
            outputs = [(f"graphattr_inside{i}", v) for i, v in enumerate(values)]
            proto = bare_model(self._canonical, prune(with_nodes(graph, graph.nodes, outputs)))
            self._sessions[names] = open_session(proto, self._canonical.source.folder, self.providers)
        size = self.scorer.batch_size
        parts = [np.asarray(x[i : i + size], self.input.dtype) for i in range(0, len(x), size)]
        runs = [self._sessions[names].run(None, {self.input.name: part}) for part in parts]
        return [np.concatenate(found) for found in zip(*runs, strict=True)]

    def _like(self, model: Model) -> OnnxModel:
        return OnnxModel(model, self.channel_first, self.softmax, output=self.output, providers=self.providers,
                         batch_size=self.batch_size)

    # -- explanations -------------------------------------------------------------------------------------------------
    def explainer(self, method: MethodLike, options: Mapping[str, Any]) -> Explainer:
        """One that takes its target at run time; the last is kept."""
        for held, given, explainer in self._made:
            if held is method and given.keys() == options.keys() and all(given[k] is options[k] for k in given):
                return explainer
        made = convert(self.model, method, "input", self.output, **{"lowering": lowering_for(self.providers), **options})
        self._made[:] = [(method, dict(options), Explainer(made, self.providers))]
        return self._made[0][2]


def explain_func(
    model: OnnxModel | Model,
    inputs: Array,
    targets: Any,
    method: MethodLike = "lrp.epsilon_plus_flat",
    channels: Literal["sum", "keep"] = "sum",
    device: Any = None,
    **options: Any,
) -> Array:
    """Attributions of the targets, float32, as `explain_func` of Quantus' metrics (`explain_func_kwargs` holds the rest).

    inputs: a batch in the file's layout. method, options: as for `graphattr.convert`. channels: "sum", one map for each sample
    (N, 1, ...) with channels first, as Quantus' own `explain` does; "keep", the shape of the inputs. device: what a metric was
    told, not heeded: an OnnxModel has `providers`. Raises what `convert` and `Explainer` raise.
    """
    if channels not in ("sum", "keep"):
        raise MethodError(f'channels is "sum" or "keep", not {channels!r}')
    asked = model if isinstance(model, OnnxModel) else OnnxModel(model)
    x = np.asarray(inputs, asked.input.dtype)
    aim = np.broadcast_to(np.asarray(targets, np.int64).reshape(-1), (len(x),))
    found = explained(asked.explainer(method, options), {asked.input.name: x}, aim, asked.scorer.batch_size)
    scores = np.asarray(next(iter(found.scores.values())))
    if channels == "keep" or scores.ndim < 3:
        return scores
    return np.asarray(scores.sum(1 if asked.channel_first or scores.shape[1] == 1 else -1)[:, None])


def _let_in() -> None:
    """Quantus' own function that wraps models, for an OnnxModel too."""
    known = utils.get_wrapped_model

    @functools.wraps(known)
    def get_wrapped_model(
        model: Any, channel_first: bool, softmax: bool, device: Any = None, model_predict_kwargs: Any = None
    ) -> Any:
        if isinstance(model, OnnxModel):
            return model.wrapped(channel_first, softmax)
        return known(model, channel_first, softmax, device, model_predict_kwargs)

    utils.get_wrapped_model = get_wrapped_model


_let_in()
