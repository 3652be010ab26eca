"""Talk to a person: messages and progress on stderr, tables on stdout. Values of a log never become markup."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from forensics.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

WIDE = 10_000
"""Columns where the output is no terminal: nothing is folded, for grep and awk."""


def say(message: str) -> None:
    """Print a message to stderr. Its own line ends are kept; whoever quotes a log in it makes that printable first."""
    for line in message.splitlines():
        print(printable(line, 4000), file=sys.stderr)


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, as_json: bool = False) -> None:
    """Print rows as a table of plain text, or as JSON objects; values of a log never become markup."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if as_json:
        print(
            json.dumps([dict(zip(head, row, strict=True)) for row in rows], ensure_ascii=False, indent=2, default=str)
        )
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else WIDE)
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    longest = max((len(printable(row[0])) for row in rows), default=0)
    for number, name in enumerate(head):
        # A request's id is there to be copied: what stands beside it is cut instead.
        drawn.add_column(name, no_wrap=number == 0 and longest <= console.width // 2)
    for row in rows:
        drawn.add_row(*(Text("" if value is None else printable(value)) for value in row))
    console.print(drawn)


@contextlib.contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show a progress bar on stderr while files are read; silent where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        task = bar.add_task("reading", total=None)

        def advance(path: str, done: int, total: int) -> None:
            bar.update(task, description=Text(printable(Path(path).name, 40)).plain, completed=done, total=total)

        yield advance
