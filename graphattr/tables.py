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
    """The layer table, coverage, and what would fail."""
    console = _console()
    for what in ("inputs", "outputs"):
        console.print(f"{what}: " + "; ".join(f"{t['name']} {t['dtype']}{t['shape']}" for t in found[what]), soft_wrap=True)
    explained = found["explained"]
    if explained:
        stripped = f", before its {explained['stripped']}" if explained["stripped"] else ""
        console.print(
            f"explained: {explained['output']}{stripped}; opset {found['opset']}; made by {found['producer'] or 'unknown'}"
        )
    table = _table("layer", "op", "kind", "shape", "parameters", *(["rule", "table line"] if found["method"] else ["note"]))
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
            row["shape"],
            f"{row['parameters']:,}" if row["parameters"] else "",
            *last,
        )
    console.print(table)
    c = found["coverage"]
    console.print(f"coverage: {c['covered']} of {c['on_path']} layers on the path")
    for problem in found["problems"]:
        console.print(Text(f"problem: {problem}"), soft_wrap=True)


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
        table = _table("operator", "derivative", "since opset")
        for e in entries:
            table.add_row(e["name"], e["derivative"], str(e["since"] or ""))
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
    return "\n".join([*lines, *(f"  {f}" for f in report["files"])])
