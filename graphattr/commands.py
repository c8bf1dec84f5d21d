"""The commands `audit` and `diff`: their arguments, and their findings as text or JSON."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.text import Text

from . import arguments
from .errors import MethodError, RunError
from .tables import _console, _table

Command = Callable[[str, Callable[[argparse.Namespace], int], str], argparse.ArgumentParser]
DATA = ".npz, .npy, .csv, .parquet, pictures, or a folder of these (or one per class)"
OWN = ("a", "b", "boxes", "data", "fail_on", "methods", "out", "profile", "progress", "samples", "top")  # no method's parameters


def add_commands(command: Command) -> None:
    """`command(name, run, text)` makes a parser that knows --json and --debug."""
    audit = command("audit", run_audit, "measure whether explanations can be trusted: a verdict, a page, and a gate")
    audit.add_argument("model", metavar="MODEL", help="an .onnx file")
    audit.add_argument("data", metavar="DATA", nargs="+", help=DATA)
    audit.add_argument("-o", "--out", metavar="REPORT", required=True, help="folder for report.html, .json, .csv and its state")
    audit.add_argument("--method", action="append", metavar="M",
                       help="a name or a .toml; comma or repeat for several (default: gradient, lrp.epsilon_plus_flat)")
    audit.add_argument("--profile", default="standard", metavar="P", help="quick, standard, full, or a .toml (default: standard)")
    audit.add_argument("--target", default="argmax", metavar="T", help="argmax, labels, or an index (default: argmax)")
    audit.add_argument("--output", metavar="NAME", help="the output to explain (default: the first float one)")
    audit.add_argument("--wrt", metavar="NAME,..", help="inputs to explain, or: tokens (default: all float ones, or tokens)")
    audit.add_argument("--fail-on", action="append", default=[], metavar="RULE",
                       help='exit 1 where this holds: "completeness>0.01", "gradient: insensitive_layers>=3"')
    audit.add_argument("--boxes", metavar="FILE", help="where objects are: COCO .json, Pascal VOC .xml or a folder of these")
    audit.add_argument("--fitted", action="append", default=[], metavar="F", help="what `fit` learned, for methods that need it")
    _add_shared(audit)
    diff = command("diff", run_diff, "do two versions of a model predict and explain alike?")
    diff.add_argument("a", metavar="A.onnx")
    diff.add_argument("b", metavar="B.onnx")
    diff.add_argument("data", metavar="DATA", nargs="+", help=DATA)
    diff.add_argument("-o", "--out", metavar="PAGE.html", help="write a page with the least alike samples side by side")
    diff.add_argument("--method", default="lrp.epsilon_plus_flat", metavar="M", help="default: lrp.epsilon_plus_flat")
    diff.add_argument("--target", metavar="T", type=int, help="the class to explain (default: the one that A predicts)")
    diff.add_argument("--samples", type=arguments.count, default=64, metavar="N", help="how many at most (default 64)")
    _add_shared(diff)


def _add_shared(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--labels", metavar="FILE", help="a class per sample: .npy, text of one number per line, .csv file,class")
    parser.add_argument("--names", metavar="FILE", help="class names, one per line")
    parser.add_argument("--preprocess", default=None, metavar="P", help="imagenet, tf, lite, none, or a .toml (default: none)")
    parser.add_argument("--batch-size", type=arguments.count, default=16, metavar="N", help="samples run at once (default 16)")
    arguments.add_device(parser)
    parser.add_argument("--rules", action="append", default=[], metavar="FILE.py", help="a Python file with rules of your own")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a parameter of a method")


def run_audit(args: argparse.Namespace) -> int:
    from .audit import METHODS, audit

    report = audit(
        args.model, args.data, arguments.methods(args) or METHODS, profile=args.profile, out=args.out,
        target=arguments.target(args.target), output=args.output, wrt=arguments.names(args.wrt), fail_on=args.fail_on,
        fitted=args.fitted or None, boxes=args.boxes, **_shared(args),
    )
    if args.json:
        print(json.dumps(report.data, indent=2))
    else:
        _verdict(report.data)
        print(Path(args.out) / "report.html")
    for failure in report.failures:
        print(failure, file=sys.stderr)
    return 0 if report.ok else 1


def run_diff(args: argparse.Namespace) -> int:
    from .compare import diff

    if "," in args.method:
        raise MethodError("diff takes one method at a time")
    found = diff(args.a, args.b, args.data, args.method, args.out, samples=args.samples, target=args.target, **_shared(args))
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    _difference(found)
    if args.out:
        print(args.out)
    return 0


def _shared(args: argparse.Namespace) -> dict[str, Any]:
    given = {
        "labels": args.labels, "class_names": _names(args.names), "preprocess": args.preprocess, "batch_size": args.batch_size,
        "providers": args.provider, "rules": args.rules, "say": lambda text: print(text, file=sys.stderr),
    }
    params = arguments.params(args.set)
    wrong = next((k for k in params if k in given or k in OWN), None)
    if wrong:
        raise MethodError(f"--set {wrong}=...: {wrong} is not a method's parameter")
    return {**given, **params}


def _names(path: str | None) -> list[str]:
    if path is None:
        return []
    try:
        return Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise RunError(f"cannot read the class names in {path}: {e}") from e


# -- text ---------------------------------------------------------------------------------------------------------
def _verdict(report: Mapping[str, Any]) -> None:
    console, marks = _console(), {True: Text("yes", "green"), False: Text("NO", "bold red"), None: Text("-", "dim")}
    for name, method in report["methods"].items():
        table = _table("check", "", "verdict", title=name)
        for line in method["verdict"]:
            table.add_row(line["question"], marks[line["passed"]], Text(line["text"]))
        console.print(table)
        console.print()


def _difference(found: Mapping[str, Any]) -> None:
    from .compare import lines

    console = _console()
    table = _table("", "", title=f"A {found['a']['name']}, B {found['b']['name']}; {found['method']}")
    for what, value in lines(found):
        table.add_row(what, Text(value))
    console.print(table)
    worst = _table("least alike", "rank correlation", "SSIM", "strongest in common", "A says", "B says")
    for w in found["samples_worst"]:
        shown = ("-" if w[k] is None else f"{w[k]:.4f}" for k in ("spearman", "ssim", "top_overlap"))
        worst.add_row(Text(w["title"]), *shown, str(w["a"]), str(w["b"]))
    console.print()
    console.print(worst)
