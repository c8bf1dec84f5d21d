"""ONNX Runtime sessions: the only place that opens them. What was asked for is what runs, or a RunError says why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx

from .errors import RunError, did_you_mean

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
PROVIDERS = {"cpu": [CPU], "cuda": [CUDA, CPU], "tensorrt": ["TensorrtExecutionProvider", CUDA, CPU]}
FLAG, NUMBER = ("0", "1"), None
CUDA_OPTIONS: Mapping[str, Sequence[str] | None] = {  # of ONNX Runtime 1.20 to 1.31, and the values that they take
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
    "cudnn_conv1d_pad_to_nc1d": FLAG,
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "cudnn_conv_use_max_workspace": FLAG,
    "device_id": NUMBER,
    "do_copy_in_default_stream": FLAG,
    "enable_cuda_graph": FLAG,
    "enable_cudnn": FLAG,
    "enable_skip_layer_norm_strict_mode": FLAG,
    "external_data_loader_reading_threads": NUMBER,
    "fuse_conv_bias": FLAG,
    "gpu_external_alloc": NUMBER,
    "gpu_external_empty_cache": NUMBER,
    "gpu_external_free": NUMBER,
    "gpu_mem_limit": NUMBER,
    "has_user_compute_stream": FLAG,
    "prefer_nhwc": FLAG,
    "sdpa_kernel": NUMBER,
    "tunable_op_enable": FLAG,
    "tunable_op_max_tuning_duration_ms": NUMBER,
    "tunable_op_tuning_enable": FLAG,
    "use_ep_level_unified_stream": FLAG,
    "use_tf32": FLAG,
    "user_compute_stream": NUMBER,
}


@dataclass(frozen=True)
class Device:
    """What a session runs on: a provider ("cpu", "cuda", "tensorrt", or a list of ONNX Runtime's names), options of the first
    of them, and how many threads the CPU takes (None: as many as it has cores). It stands wherever `providers` is asked for.

    prepacking: whether ONNX Runtime keeps weights in the order in which its kernels read them. Without, the weights of dense
    layers are held once: VGG-16, gradient: 830 MB, else 1634; ViT-S takes 6 % longer.
    spinning: whether its threads wait by running, which is a little faster where nobody else wants the cores.
    """

    provider: str | Sequence[Any] = "cpu"
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    prepacking: bool = True
    spinning: bool = True

    def __str__(self) -> str:
        more = [f"{k}={v}" for k, v in self.options.items()] + ([f"threads={self.threads}"] if self.threads else [])
        more += [] if self.prepacking else ["prepacking=False"]
        return ", ".join([self.provider if isinstance(self.provider, str) else str(list(self.provider)), *more])


def device_of(providers: Any, options: Mapping[str, Any] | None = None, threads: int | None = None) -> Device:
    """`providers` with the options and threads given beside it; RunError for what is none of these."""
    if isinstance(providers, Device):
        held = providers
    elif providers is None or isinstance(providers, (str, list, tuple)):
        held = Device(providers or "cpu")
    else:
        raise RunError(f'providers must be "cpu", "cuda", "tensorrt" or a list of ONNX Runtime\'s names, not {providers!r}')
    threads = held.threads if threads is None else threads
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise RunError(f"threads must be a whole number from 1 on, not {threads!r}")
    return replace(held, options={**held.options, **(options or {})}, threads=threads)


def open_session(
    model: onnx.ModelProto, folder: Path | None, providers: Any = None, extra_outputs: Sequence[str] = ()
) -> Any:
    """An ONNX Runtime session; RunError says what is missing or what ONNX Runtime disliked."""
    ort, device = runtime(), device_of(providers)
    chosen = _providers(ort, device)
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised; it need not be printed as well
    options.enable_mem_pattern = False  # ResNet-50, batch 8, LRP: peak 1670 MB, else 2800; no time is lost
    if device.threads is not None:
        options.intra_op_num_threads = device.threads
    if not device.spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    if not device.prepacking:
        options.add_session_config_entry("session.disable_prepacking", "1")
    shown = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None) for name in extra_outputs]
    try:  # without enable_fallback=0 a provider that cannot be opened is replaced by the CPU, with no more than a print
        session = ort.InferenceSession(_with_outputs(model, shown), options, providers=chosen, enable_fallback=0)
    except Exception as e:
        raise RunError(f"ONNX Runtime {ort.__version__} refused to load the model: {first_line(e)}") from e
    first = _name(chosen[0])
    if first not in session.get_providers():
        raise RunError(
            f"ONNX Runtime {ort.__version__} could not open {first}: no such device, or its libraries are missing "
            f'(pip install "graphattr[gpu]" brings those of CUDA); without it the model would run on {session.get_providers()[0]}'
        )
    return session


def run_options(session: Any, graph: int = -1) -> Any:
    """None, or where the session captures CUDA graphs: the number of the one to capture or replay; -1 for neither, since a
    replay reads and writes where its first run did."""
    if session.get_provider_options().get(CUDA, {}).get("enable_cuda_graph") != "1":
        return None
    options = runtime().RunOptions()
    options.add_run_config_entry("gpu_graph_id", str(graph))
    return options


def _with_outputs(model: onnx.ModelProto, shown: Sequence[onnx.ValueInfoProto]) -> bytes:
    """The model as bytes, with more outputs: what is said of a graph twice is joined by whoever reads a protobuf."""
    more = onnx.ModelProto(graph=onnx.GraphProto(output=shown)) if shown else None
    data = bytes(model.SerializeToString())
    return data if more is None else data + more.SerializeToString()


def runtime() -> Any:
    """The module onnxruntime; RunError where there is none."""
    try:
        import onnxruntime as ort
    except ImportError as e:
        raise RunError('running needs ONNX Runtime: pip install "graphattr[cpu]" (or "graphattr[gpu]")') from e
    return ort


def _providers(ort: Any, device: Device) -> list[Any]:
    named = device.provider
    wanted = list(PROVIDERS.get(named.lower(), [named]) if isinstance(named, str) else named)
    if any("CUDA" in str(p) or "Tensorrt" in str(p) for p in wanted) and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    available = ort.get_available_providers()
    first = _name(wanted[0])
    if first not in available:
        known = any(first in names for names in PROVIDERS.values())
        hint = '; install "graphattr[gpu]" instead of "graphattr[cpu]"' if known else ""
        close = "" if known else did_you_mean(str(first), [*available, *PROVIDERS])
        raise RunError(f"ONNX Runtime has no provider {first!r} here{close} (available: {', '.join(available)}){hint}")
    given = dict(wanted[0][1]) if isinstance(wanted[0], tuple) else {}
    options = checked_options(first, {**given, **device.options})
    return [(first, options) if options else first, *wanted[1:]]


def _name(provider: Any) -> str:
    return str(provider[0] if isinstance(provider, tuple) else provider)


def checked_options(provider: str, options: Mapping[str, Any]) -> dict[str, str]:
    """The options as ONNX Runtime reads them, text for text; RunError for what it would refuse."""
    texts = {k: str(int(v)) if isinstance(v, bool) else str(v) for k, v in options.items()}
    if provider == CPU and options:
        raise RunError(f"the CPU takes no provider options, and {', '.join(options)} was given; its threads are threads=")
    if provider != CUDA:
        return texts
    for name, text in texts.items():
        if name not in CUDA_OPTIONS:
            raise RunError(
                f"CUDA has no provider option {name!r}{did_you_mean(name, CUDA_OPTIONS)} (there are: {', '.join(CUDA_OPTIONS)})"
            )
        allowed = CUDA_OPTIONS[name]
        if allowed is not None and text not in allowed:
            raise RunError(f"provider option {name} must be one of {', '.join(allowed)}, not {text!r}")
        if allowed is None and not text.isdecimal():
            raise RunError(f"provider option {name} must be a whole number, not {text!r}")
    return texts


def first_line(e: Exception) -> str:
    return str(e).strip().split("\n")[0][:500]
