"""What the words of a command line mean: methods, names, targets, parameters, data."""

from __future__ import annotations

import argparse
import ast
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import MethodError, RunError
from .session import Device

RESERVED = {"model", "method", "target", "output", "wrt", "fitted", "strict", "delta", "ledger", "strip", "rules", "lowering",
            "precision", "size"}


def methods(args: argparse.Namespace) -> list[str] | None:
    return None if args.method is None else [m for entry in args.method for m in entry.split(",") if m]


def add_device(parser: argparse.ArgumentParser) -> None:
    """--provider, --provider-option, --threads and --no-prepacking; `device` reads them."""
    parser.add_argument("--provider", default="cpu", metavar="P", help="cpu, cuda or tensorrt")
    parser.add_argument("--provider-option", action="append", default=[], metavar="KEY=VALUE",
                        help="an option of CUDA or TensorRT, such as device_id=1, use_tf32=0 or gpu_mem_limit=8589934592")
    parser.add_argument("--threads", type=count, metavar="N", help="threads of the CPU (default: as many as it has cores)")
    parser.add_argument("--no-prepacking", action="store_true", help="less memory where weights are large, a little slower")


def device(args: argparse.Namespace) -> Any:
    """What stands for `providers`: the name alone where no more was given."""
    if not args.provider_option and args.threads is None and not args.no_prepacking:
        return args.provider
    options = {}
    for setting in args.provider_option:
        key, equals, text = setting.partition("=")
        if not equals or not key.isidentifier():
            raise RunError(f"--provider-option {setting!r}: write KEY=VALUE, such as --provider-option device_id=1")
        options[key] = text
    return Device(args.provider, options, args.threads, not args.no_prepacking)


def count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number")
    return int(text)


def names(text: str | None) -> list[str] | None:
    return None if text is None else [name for name in text.split(",") if name]


def target(text: str) -> Any:
    if text.startswith("["):  # several
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text
    try:
        indices = tuple(int(part) for part in text.strip("()").split(",") if part.strip())
    except ValueError:
        return text
    if not indices:
        return text
    return indices[0] if len(indices) == 1 and "," not in text else indices


def targets(text: str | None) -> Any:
    """None, one target, or a list of them."""
    found = None if text is None else target(text)
    return list(found) if isinstance(found, tuple) else found


def params(settings: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE pairs; a value is read as TOML, and as a string where it is none."""
    found: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.isidentifier():
            raise MethodError(f"--set {setting!r}: write KEY=VALUE, such as --set eps=0.01")
        if key in RESERVED:
            raise MethodError(
                f"--set {key}=...: {key} is not a method's parameter; use --{'lower' if key == 'lowering' else key}"
            )
        try:
            found[key] = tomllib.loads(f"v = {text}")["v"]
        except tomllib.TOMLDecodeError:
            found[key] = text
    return found


def load_data(path: str | None) -> Any:
    if path is None:
        return None
    import numpy as np

    try:
        held = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as e:
        raise RunError(f"cannot read {path}: {e}; --data takes .npy or .npz") from e
    return {k: held[k] for k in held.files} if isinstance(held, Mapping) or hasattr(held, "files") else held
