"""A progress bar with the rate on stderr, where that is a terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """`shown`: None shows a bar on a terminal only."""

    shown: bool | None = None

    @contextlib.contextmanager
    def over(self, name: str, total: int | None) -> Iterator[Callable[[int], None]]:
        """A bar for one pass; yields a function that counts samples."""
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Task) -> Text:
                return Text(f"{task.speed:.0f}/s" if task.speed else "")

        console = Console(stderr=True)
        hidden = not (console.is_terminal if self.shown is None else self.shown)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), TimeRemainingColumn())
        with Progress(*columns, console=console, disable=hidden) as progress:
            task = progress.add_task(name, total=total)
            yield lambda n: progress.advance(task, n)
