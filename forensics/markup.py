"""Building blocks of a markdown document. Cells and items are markdown already: log text goes through `text` first."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from forensics.text import code

if TYPE_CHECKING:
    from collections.abc import Iterable

    from forensics.findings import Citation


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table, its columns aligned so that it reads as plain text where no cell is long."""
    lines = [[cell.replace("\n", " ") for cell in row] for row in (head, *rows)]
    widths = [min(max(len(cell) for cell in column), 32) for column in zip(*lines, strict=True)]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    rule = ["-" * max(width, 3) for width in widths]
    return "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], rule, *padded[1:]))


def bullets(items: Iterable[str]) -> str:
    """Return a list of items; '' for none."""
    return "\n".join(f"* {item}" for item in items)


def fenced(lines: Iterable[str], language: str) -> str:
    """Return a code block whose fence is longer than any run of backticks inside."""
    body = "\n".join(lines)
    longest = max((len(run) for run in re.findall("`+", body)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{body}\n{fence}"


def cited(citations: Iterable[Citation], sources: dict[str, str]) -> str:
    """Return places of evidence. sources: path → the short name that the review gives it."""
    return ", ".join(code(f"{sources[one.path]}:{one.line}") for one in citations) or "its two findings"
