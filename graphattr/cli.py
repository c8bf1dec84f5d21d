"""The command line: a thin face of `graphattr`'s functions. Data on stdout, talk on stderr, exit 0, 1 (ours), 2 (usage)."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import __version__, api, arguments
from .commands import add_commands
from .errors import GraphattrError, MethodError, TargetError, WriteError
from .export import Explanation, _plain
from .fitted import opened
from .lower import SIZES, TARGETS, lowering_for
from .precision import PRECISIONS
from .rule import load_rules
from .street import Order, street
from .tables import ledger_table, listing, verdict_table

STAGES = ("load", "canonicalise", "layers", "plan", "backward", "simplify", "lower", "export")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.debug:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    try:
        if hasattr(args, "provider_option"):
            args.provider = arguments.device(args)
        code: int = args.run(args) or 0
    except GraphattrError as e:
        if args.debug:
            raise
        print(f"error: {e}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return code


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="graphattr", description="An exported ONNX model goes in, an ONNX model that also explains comes out."
    )
    parser.add_argument("--version", action="version", version=f"graphattr {__version__}")
    parser.set_defaults(debug=False)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    convert = _command(commands, "convert", run_convert, "write an explanation graph")
    convert.add_argument("model", metavar="MODEL", help="an .onnx file")
    convert.add_argument("-o", "--out", metavar="OUT", help="where to write (default: MODEL with .explained.onnx)")
    _add_conversion(convert)
    convert.add_argument("--stop-after", choices=STAGES, help="print this stage as text and write nothing")
    explain = _command(commands, "explain", run_explain, "explain inputs: arrays and heat maps")
    explain.add_argument("model", metavar="MODEL", help="an .onnx file; one made by `convert` is used as it is")
    explain.add_argument("inputs", metavar="INPUT", nargs="+",
                         help="pictures, .npy, .npz, .csv, .parquet, .wav, .txt (a sample per line), or folders of these")
    explain.add_argument("-o", "--out", metavar="DIR", default="explained", help="folder for the results (default: explained)")
    _add_conversion(explain)
    explain.add_argument("--preprocess", default=None, metavar="P", help="imagenet, tf, lite, none, or a .toml (default: none)")
    arguments.add_device(explain)
    explain.add_argument("--top", type=arguments.count, default=5, metavar="K", help="print the K highest classes (default 5)")
    explain.add_argument("--labels", metavar="FILE", help="class names, one per line")
    explain.add_argument("--tokenizer", metavar="FILE", help="the words of a token model: tokenizer.json, vocab.json or .txt")
    explain.add_argument("--text", action="store_true", help="the INPUTs are texts themselves, not files; needs --tokenizer")
    explain.add_argument("--write", metavar="W,..", type=arguments.names, help="npz: arrays of each input; png: its picture or "
                         "page; npy: arrays of all inputs (default: npz,png; of more than 100 inputs npy)")
    explain.add_argument("--batch-size", type=arguments.count, metavar="N", help="samples run at once (default 16)")
    explain.add_argument("--keep-going", action="store_true", help="leave out what cannot be explained, and list it at the end")
    explain.add_argument("--workers", type=arguments.count, metavar="N", help="threads that read inputs (default 2, on a GPU 8)")
    learn = _command(commands, "fit", run_fit, "learn from data what a method needs")
    learn.add_argument("model", metavar="MODEL", help="an .onnx file")
    learn.add_argument("data", metavar="DATA", nargs="+",
                       help=".npz, .npy, .csv, .parquet, pictures, or a folder of these (or one per class)")
    learn.add_argument("-o", "--out", metavar="FITTED.npz", required=True, help="where to write what was learned")
    _add_method(learn, None)
    learn.add_argument("--target", metavar="T", help="the target to learn for, or several with commas, where the method needs it")
    learn.add_argument("--labels", metavar="FILE", help="a class per sample: .npy, text of one number per line, .csv file,class")
    learn.add_argument("--batch-size", type=arguments.count, default=32, metavar="N", help="samples run at once (default 32)")
    learn.add_argument("--state", metavar="FILE", help="go on from here when interrupted; removed when the fit is done")
    learn.add_argument("--preprocess", default=None, metavar="P", help="imagenet, tf, lite, none, or a .toml (default: none)")
    arguments.add_device(learn)
    look = _command(commands, "inspect", run_inspect, "what is in the file, which rule each layer would get, what would fail")
    look.add_argument("model", metavar="MODEL")
    _add_method(look, None)
    check = _command(commands, "verify", run_verify, "check an explanation against its source")
    check.add_argument("explanation", metavar="EXPLANATION")
    check.add_argument("--model", help="the source model")
    check.add_argument("--data", metavar="FILE", help=".npy or .npz with inputs (default: seeded noise)")
    arguments.add_device(check)
    add_commands(lambda name, run, text: _command(commands, name, run, text))
    for name, what in (
        ("methods", "named methods and their parameters"),
        ("rules", "rules that tables can name"),
        ("operators", "operators and whether they have a derivative"),
    ):
        _command(commands, name, run_catalogue, what).set_defaults(catalogue=name)
    demo = _command(commands, "demo", run_demo, "explain two photos with a real ImageNet model by six methods")
    demo.add_argument("-o", "--out", metavar="DIR", default="demo-out", help="folder for the pictures (default: demo-out)")
    return parser


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    parser.add_argument("--debug", action="store_true", help="log every stage; show tracebacks")
    return parser


def _add_method(parser: argparse.ArgumentParser, default: str | None) -> None:
    parser.add_argument(
        "--method",
        action="append",
        metavar="M",
        help="a name (see `graphattr methods`) or a .toml; comma or repeat for several"
        + (f" (default: {default})" if default else ""),
    )
    parser.add_argument("--output", metavar="NAME", help="the output to explain (default: the first float output)")
    parser.add_argument(
        "--wrt", metavar="NAME,..", help="tensors to attribute to, or: tokens (default: all float inputs; where none is, tokens)"
    )
    parser.add_argument(
        "--no-strip", action="store_true", help="explain the output after its terminal Softmax, LogSoftmax or Sigmoid"
    )
    parser.add_argument("--rules", action="append", default=[], metavar="FILE.py", help="a Python file with rules of your own")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a parameter of the method, such as eps=0.01 or low=[-2.1,-2.0,-1.8]",
    )


def _add_conversion(parser: argparse.ArgumentParser) -> None:
    _add_method(parser, "lrp.epsilon_plus_flat")
    parser.add_argument(
        "--target",
        default="argmax",
        metavar="T",
        help="argmax, input, seed, an index, or indices such as 3,5,7; several: top3, [281,285] (default: argmax)",
    )
    parser.add_argument("--fitted", action="append", default=[], metavar="F", help="what `fit` learned, for methods that need it")
    parser.add_argument("--delta", action="store_true", help="add the completeness residual per sample")
    parser.add_argument(
        "--ledger", action="store_true", help="add the conservation ledger: relevance in, out, absorbed, per layer"
    )
    parser.add_argument("--lower", choices=tuple(TARGETS), help="the machine the file is tuned for (default: the provider's)")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="float32", help="in which to explain a float16 or bfloat16 model"
    )
    parser.add_argument("--size", choices=SIZES, help="small: no copies of kernels inside Loops (default: fast)")
    parser.add_argument(
        "--no-strict", action="store_true", help="let the plain gradient pass where no rule fits; the manifest lists it"
    )


# -- commands -----------------------------------------------------------------------------------------------------
def run_convert(args: argparse.Namespace) -> int:
    if args.stop_after:
        from .look import text_of

        load_rules(args.rules)
        for stage, value in street(args.model, Order(**{**_order(args), "fitted": opened(args.fitted)})):
            if stage == args.stop_after:
                print(text_of(value))
                return 0
    out = Path(args.out or Path(args.model).with_suffix(".explained.onnx"))
    if out.exists() and Path(args.model).exists() and out.samefile(args.model):
        raise WriteError(f"{out} is the model itself, which would be overwritten; give another name with -o")
    explanation = _convert(args)
    explanation.save(out)
    if args.json:
        _print_json(
            {
                "path": str(out),
                "inputs": explanation.inputs,
                "outputs": explanation.outputs,
                "manifest": explanation.manifest,
            }
        )
    else:
        _say(
            f"{explanation.manifest['method']} of {explanation.manifest['output']!r}: inputs {', '.join(explanation.inputs)}; "
            f"outputs {', '.join(explanation.outputs)}"
        )
        print(out)
    return 0


def run_explain(args: argparse.Namespace) -> int:
    from .dataset import FEW, Work
    from .gallery import class_names

    out = Path(args.out)
    work = Work(
        _explanation(args),
        args.inputs,
        out,
        args.preprocess,
        args.provider,
        args.target,
        args.batch_size,
        args.write,
        args.keep_going,
        args.workers,
        class_names(args.labels),
        args.tokenizer,
        args.text,
        args.top,
        say=_say,
    )
    for report in work.reports():
        if len(work.entries) <= FEW:
            _print_json(report) if args.json else _print_report(report)
    if work.is_dataset:
        found = work.summary()
        rate = f" at {work.samples / work.seconds:.3g} per second" if work.samples else ""
        there = f", {work.skipped} were there" if work.skipped else ""
        failed = f", {len(work.failed)} failed" if work.failed else ""
        _say(f"{work.samples} samples explained{rate}{there}{failed}")
        if not args.json:
            print(found["index"])
        elif "npy" in found["write"] or len(work.entries) > FEW:
            _print_json(found)
    for _, error in work.failed:
        _say(f"error: {error}")
    return 1 if work.failed else 0


def _print_report(report: Mapping[str, Any]) -> None:
    from .texts import print_passages

    print(listing(report))
    print_passages(report["tokens"])


def _explanation(args: argparse.Namespace) -> Explanation:
    """A file that explains already is used as it is; any other is converted."""
    from .export import read_manifest
    from .source import read

    source = read(args.model)
    manifest = read_manifest(source.model)
    if manifest is not None:
        if args.target != "argmax" and manifest["target"] != "input":
            raise TargetError(
                f"{args.model} is already an explanation of target {manifest['target']!r}; give the source model to "
                "explain another, or convert it with --target input"
            )
        options = ("method", "set", "output", "wrt", "fitted", "delta", "ledger", "no_strip", "no_strict", "rules", "lower",
                   "size")
        given = [f"--{o.replace('_', '-')}" for o in options if getattr(args, o)]
        if given:
            raise MethodError(
                f"{args.model} is already an explanation ({manifest['method']}); {', '.join(given)} needs the source model"
            )
        return Explanation(source.model, manifest, source.folder)
    return _convert(args)


def run_fit(args: argparse.Namespace) -> int:
    import warnings

    from .errors import FitWarning
    from .fit import fit_model

    methods = arguments.methods(args)
    if methods is None or len(methods) != 1:
        raise MethodError("fit takes one method: pass --method M (`graphattr methods` lists them)")
    load_rules(args.rules)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)  # printed below
        fitted = fit_model(
            args.model,
            args.data,
            methods[0],
            args.labels,
            arguments.targets(args.target),
            args.output,
            arguments.names(args.wrt),
            args.batch_size,
            args.state,
            preprocess=args.preprocess,
            strip=not args.no_strip,
            providers=args.provider,
            params=arguments.params(args.set),
            say=_say,
        )
    out = fitted.save(args.out)
    for text in fitted.warnings:
        _say(f"warning: {text}")
    if args.json:
        _print_json({"path": str(out), "manifest": fitted.manifest})
    else:
        _say(f"{fitted.manifest['method']}: {len(fitted.arrays)} layers learned from {fitted.manifest['samples']} samples")
        print(out)
    return 0


def run_inspect(args: argparse.Namespace) -> int:
    from .tables import inspection_table

    methods = arguments.methods(args)
    if methods is not None and len(methods) > 1:
        raise MethodError("inspect takes one method at a time")
    found = api.inspect(
        args.model,
        methods[0] if methods else None,
        args.output,
        arguments.names(args.wrt),
        strip=not args.no_strip,
        rules=args.rules,
        **arguments.params(args.set),
    )
    _print_json(found) if args.json else inspection_table(found)
    return 0


def run_verify(args: argparse.Namespace) -> int:
    found = api.verify(args.explanation, args.model, arguments.load_data(args.data), args.provider)
    if args.json:
        _print_json(found)
    else:
        verdict_table(found)
        if found["ledger"]:
            ledger_table(found["ledger"])
    return 0 if found["ok"] else 1


def run_catalogue(args: argparse.Namespace) -> int:
    from .tables import catalogue_table

    entries = getattr(api, args.catalogue)()
    _print_json(entries) if args.json else catalogue_table(args.catalogue, entries)
    return 0


def run_demo(args: argparse.Namespace) -> int:
    from .demo.run import run

    run(Path(args.out))
    return 0


# -- arguments ----------------------------------------------------------------------------------------------------
def _convert(args: argparse.Namespace) -> Explanation:
    order = _order(args)
    params = order.pop("params")
    return api.convert(args.model, rules=args.rules, **order, **params)


def _order(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of an Order that the arguments give."""
    methods = arguments.methods(args)
    chosen = {} if methods is None else {"method": methods[0] if len(methods) == 1 else methods}
    return {
        **chosen,
        "target": arguments.target(args.target),
        "output": args.output,
        "wrt": arguments.names(args.wrt),
        "strict": not args.no_strict,
        "delta": args.delta,
        "ledger": args.ledger,
        "strip": not args.no_strip,
        "lowering": args.lower or lowering_for(vars(args).get("provider")),
        "precision": args.precision,
        "size": args.size or "fast",
        "params": arguments.params(args.set),
        "fitted": args.fitted or None,
    }


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=_plain))
