"""One set of shapes, bound to a session once: inputs and outputs keep their places on the device from run to run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .errors import RunError
from .graph import Array
from .session import CUDA, first_line, run_options, runtime

if TYPE_CHECKING:
    from .runtime import Attribution, Explainer


class Bound:
    """What `Explainer.bound` gives. Calling it copies feeds into `inputs`, runs, and returns an Attribution of fresh arrays.

    inputs, outputs: onnxruntime.OrtValue by name. They lie on the GPU where the session runs there, and are always the same
    ones: write into `inputs` (`update_inplace`, or by their `data_ptr()`), call `run()`, and read `outputs` where they are.
    That is also what CUDA graphs need (`provider_options={"enable_cuda_graph": True}`: no Loop, and no node but of shapes on
    the CPU); each Bound has its own. Not for several threads at once.
    """

    def __init__(self, explainer: Explainer, feeds: Mapping[str, Array]) -> None:
        self._explainer, self._ort = explainer, runtime()
        session = explainer.session
        where, number = self._place = _place(session)
        self.inputs = {name: self._value(name, array, where, number) for name, array in feeds.items()}
        names = [o.name for o in session.get_outputs()]
        self._binding, self._options = session.io_binding(), run_options(session)
        for name, value in self.inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name in names:
            self._binding.bind_output(name, where, number)
        self.outputs: dict[str, Any] = {}
        self.run()
        found = self._binding.get_outputs()
        if not all(v.is_tensor() for v in found):
            raise RunError("a model that gives out sequences, maps or optionals cannot be bound; call the Explainer itself")
        self._binding.clear_binding_outputs()
        for name, value in zip(names, found, strict=True):
            self._binding.bind_ortvalue_output(name, value)
            self.outputs[name] = value
        self._options = run_options(session, next(explainer.graphs))  # not before all places are known

    def __call__(self, feeds: Mapping[str, Any] | Any, target: Any = None) -> Attribution:
        """As `Explainer.__call__`, for feeds of the shapes that were bound; RunError for others."""
        arrays = self._explainer._feeds(feeds, target)
        for name, array in arrays.items():
            shape = tuple(self.inputs[name].shape())
            if array.shape != shape:
                raise RunError(f"input {name!r} is bound to the shape {shape}, not {array.shape}; bind that shape as well")
        for name, array in arrays.items():
            self.inputs[name].update_inplace(array if array.flags.c_contiguous else array.copy())
        self.run()
        found = {n: v.numpy() for n, v in self.outputs.items()}  # of the CPU a view
        return self._explainer._attribution({n: v if self._place[0] == "cuda" else v.copy() for n, v in found.items()}, arrays)

    def run(self) -> None:
        """Run on what lies in `inputs`; `outputs` then hold the results."""
        try:
            self._explainer.session.run_with_iobinding(self._binding, self._options)
            self._binding.synchronize_outputs()
        except Exception as e:
            raise RunError(f"ONNX Runtime refused to run the explanation: {first_line(e)}") from e

    def _value(self, name: str, array: Any, where: str, number: int) -> Any:
        if getattr(array, "dtype", None) is None or array.dtype.kind == "O":
            raise RunError(f"input {name!r} is no tensor of numbers and cannot be bound; call the Explainer itself")
        return self._ort.OrtValue.ortvalue_from_numpy(array.copy(), where, number)


def _place(session: Any) -> tuple[str, int]:
    """The device that the session runs on, as ONNX Runtime names it."""
    options = session.get_provider_options()
    return ("cuda", int(options[CUDA].get("device_id", 0))) if CUDA in options else ("cpu", 0)
