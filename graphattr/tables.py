"""Results as tables on stdout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def _console() -> Console:
    """As wide as the terminal; wide enough to keep lines whole when piped."""
    console = Console(highlight=False, markup=False)
    return console if console.is_terminal else Console(highlight=False, markup=False, width=200)


def _table(*columns: str, title: str | None = None) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        table.add_column(
            column,
            justify="right" if column in ("parameters", "arrived", "sent", "bias", "stabiliser", "unexplained") else "left",
            overflow="fold",
        )
    return table


def inspection_table(found: Mapping[str, Any]) -> None:
    """The blocks, the layer table, coverage, and what would fail."""
    console = _console()
    for what in ("inputs", "outputs"):
        console.print(f"{what}: " + "; ".join(f"{t['name']} {t['dtype']}{t['shape']}" for t in found[what]), soft_wrap=True)
    explained = found["explained"]
    if explained:
        stripped = f", before its {explained['stripped']}" if explained["stripped"] else ""
        console.print(
            f"explained: {explained['output']}{stripped}; opset {found['opset']}; made by {found['producer'] or 'unknown'}"
        )
    _print_blocks(console, found)
    last_columns = ["rule", "table line"] if found["method"] else ["note"]
    table = _table("layer", "op", "kind", "block", "shape", "parameters", *last_columns)
    for row in found["layers"]:
        last = [row["rule"] or "", row["line"] or ""] if found["method"] else [""]
        if row["problem"]:
            last = [Text("PROBLEM", "bold red"), *[""] * (len(last) - 1)]
        elif not row["on_path"]:
            last = [Text("off the path", "dim"), *[""] * (len(last) - 1)]
        table.add_row(
            row["name"],
            row["op"],
            row["kind"],
            row["block"] or "",
            row["shape"],
            f"{row['parameters']:,}" if row["parameters"] else "",
            *last,
        )
    console.print(table)
    c = found["coverage"]
    console.print(f"coverage: {c['covered']} of {c['on_path']} layers on the path")
    for problem in found["problems"]:
        console.print(Text(f"problem: {problem}"), soft_wrap=True)


def _print_blocks(console: Console, found: Mapping[str, Any]) -> None:
    """The blocks in one line, then a line for those that are alike, then what nearly is one."""
    if found["summary"]:
        console.print(f"blocks: {found['summary']}", soft_wrap=True)
    alike: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for b in found["blocks"]:
        alike.setdefault((b["name"], ", ".join(_fact(k, v) for k, v in b["facts"].items())), []).append(b)
    if alike:
        table = _table("block", "times", "facts", "where")
        for (name, facts), blocks in alike.items():
            ends = [(b["layers"] or [b["y"]])[-1] for b in (blocks[0], blocks[-1])]
            table.add_row(name, str(len(blocks)), facts, " ... ".join(dict.fromkeys(ends)))
        console.print()
        console.print(table)
    for m in found["misses"]:
        console.print(Text(f"looks like {m['name']} at {m['at']!r}, but: {m['why']}"), soft_wrap=True)
    console.print()


def _fact(name: str, value: Any) -> str:
    """12 heads is `heads 12`; what is so is its name alone."""
    return name if value is True else f"no {name}" if value is False else f"{name} {value}"


def verdict_table(found: Mapping[str, Any]) -> None:
    table = _table("check", "", "detail", title=f"{found['method']}, target {found['target']}")
    for c in found["checks"]:
        mark = {True: Text("ok", "green"), False: Text("FAILED", "bold red"), None: Text("-", "dim")}[c["ok"]]
        table.add_row(c["name"], mark, Text(c["detail"]))
    _console().print(table)


def ledger_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Where relevance went, layer by layer, from the output down."""
    columns = ("arrived", "sent", "bias", "stabiliser", "unexplained")
    table = _table("layer", *columns, title="conservation ledger (sum over samples)")
    for row in rows:
        table.add_row(row["layer"], *(f"{row[c]:.6g}" for c in columns))
    console = _console()
    console.print()
    console.print(table)


def catalogue_table(what: str, entries: Sequence[Mapping[str, Any]]) -> None:
    if what == "operators":
        table = _table("operator", "derivative", "since opset", "why")
        for e in entries:
            table.add_row(e["name"], e["derivative"], str(e["since"] or ""), Text(e["why"]))
    else:
        table = _table(what[:-1], "summary", "parameters ")
        for e in entries:
            params = ", ".join(f"{k}={_default(p)}" for k, p in e["parameters"].items())
            table.add_row(e["name"], Text(e["summary"]), Text(params))
    _console().print(table)


def _default(parameter: Mapping[str, Any]) -> str:
    if parameter.get("required") or parameter["default"] is None:
        return "..."
    return str(parameter["default"])


def listing(report: Mapping[str, Any]) -> str:
    """One explained input: its classes and its files."""
    lines = [f"{report['input']}  target {report['target']}"]
    lines += [f"  {c['score']:9.4f}  {c['index']:5d}  {c['label']}" for c in report["top"]]
    methods = {f["method"] for f in report["features"]}
    wide = max((len(f["name"]) for f in report["features"]), default=0)
    for f in report["features"]:
        end = (f"  {f['method']}" if len(methods) > 1 else "") + (f"  {f['caption']}" if "caption" in f else "")
        lines.append(f"  {f['name']:{wide}} = {f['value']:<10.4g} {f['relevance']:+.4g}{end}")
    return "\n".join([*lines, *(f"  {f}" for f in report["files"])])
