"""The answer on one screen."""

from __future__ import annotations

import os
import re
import shutil
import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from forensics import lines
from forensics.bars import bars, glyphs
from forensics.causes import BESIDE
from forensics.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import TextIO

    from forensics.bars import Glyphs
    from forensics.explanation import Explanation
    from forensics.findings import Citation, Finding, Link

PIPED, NARROWEST, WIDEST = 100, 40, 120
"""Columns: where the output is no terminal; the least and the most that a terminal's text is set in."""
NAMES = 9
"""Columns of the names on the left."""
PADDING = re.compile(r" +((?:\x1b\[[0-9;]*m)*)$")
STYLES = {"proven": "bold green", "supported": "green", "consistent": "yellow", "possible": "red", "refuted": "dim red"}

Line = tuple[str, Text]


def render(explanation: Explanation, out: TextIO, *, verbose: bool = False) -> None:
    """Write the explanation as wide as the terminal; colour only where `out` is one and NO_COLOR is not set."""
    width = min(max(_columns(out), NARROWEST), WIDEST)
    shown = glyphs(getattr(out, "encoding", None), os.environ.get("TERM", ""))
    console = Console(file=out, width=width, highlight=False, legacy_windows=False)
    style = {"divergence": "bold red", "same": "bold green"}.get(explanation.standing, "bold")
    screen = Table.grid(padding=(0, 2))
    screen.add_column(width=NAMES, style="bold", no_wrap=True)
    screen.add_column(width=width - NAMES - 2, overflow="fold")
    for name, value in _screen(explanation, width - NAMES - 2, shown, verbose=verbose):
        screen.add_row(name, value)
    with console.capture() as drawn:
        console.print(Text(printable(explanation.headline, 1000), style=style))
        console.print(screen)
    text = drawn.get() if shown.arrow == "→" else drawn.get().replace("→", shown.arrow).replace("·", shown.dot)
    out.writelines(PADDING.sub(r"\1", line) + "\n" for line in text.splitlines())  # a grid pads its lines


def _columns(out: TextIO) -> int:
    return shutil.get_terminal_size((PIPED, 24)).columns if out.isatty() else PIPED


def _screen(explanation: Explanation, width: int, shown: Glyphs, *, verbose: bool) -> Iterator[Line]:
    sources = lines.letters(explanation)
    yield "", Text()
    yield "target", _plain(lines.subject(explanation.target))
    if explanation.reference is not None:
        yield "reference", _plain(lines.subject(explanation.reference))
    yield "on", _plain(lines.engine(explanation))
    yield "compared", _plain(lines.rule(explanation))
    if differing := lines.inputs(explanation):
        yield "inputs", _plain(differing if verbose else differing[:500])
    yield "", Text()
    for name, line in bars(explanation.lanes, explanation.flip, width, shown):
        yield name, Text(printable(line, 4000), style="cyan" if name in ("target", "reference") else "")
    yield "", Text()
    if explanation.standing == "divergence":
        yield from _ladder(explanation, shown, sources, verbose=verbose)
    for loop in explanation.loops:
        yield "loop", _plain(loop.told())
    if held_up := lines.fabric(explanation):
        yield "fabric", _plain(held_up)
    yield from _reservations(explanation, width, verbose=verbose)
    for path, letter in sources.items() if explanation.findings else ():
        yield "evidence", _plain(f"{letter} = {path if verbose else path.rpartition('/')[2]}")
    for command in explanation.next_commands:
        yield "next", _plain(command, "bold")


def _plain(value: str, style: str = "") -> Text:
    return Text(printable(value, 2000), style=style)


def _ladder(explanation: Explanation, shown: Glyphs, sources: dict[str, str], *, verbose: bool) -> Iterator[Line]:
    """Root to flip, a finding and then the link that leads on from it; what is not on the chain in a line below."""
    by_code = {finding.code: finding for finding in explanation.findings}
    codes = [link.cause for link in explanation.chain[:1]] + [link.effect for link in explanation.chain]
    for code, link in zip(codes, [*explanation.chain, None], strict=False):
        name = {codes[0]: "cause", codes[-1]: "flip"}.get(code, "")
        yield name, _finding(by_code[code], explanation.seen, sources, verbose=verbose)
        if link is not None:
            yield f"    {shown.rail}", _link(link, verbose=verbose)
    beside = [finding for finding in explanation.findings if finding.code not in codes]
    refuted = {link.cause for link in explanation.links if link.grade == "refuted"}
    if verbose or not codes:
        for finding in beside:
            yield "also", _finding(finding, explanation.seen, sources, verbose=True)
            for link in explanation.links:
                if link.cause == finding.code:
                    yield "", _link(link, verbose=True).append(f" (→ {link.effect})")
    elif beside:
        marks = [
            f"{one.code}{' (refuted)' if one.code in refuted else ''}: {_brief(one.says).partition(': ')[0]}"
            for one in beside
        ]
        yield "also", _plain("; ".join(marks))
    weakest = explanation.weakest
    if weakest is not None:
        equal = len({link.grade for link in explanation.chain}) == 1
        said = f"every link is {weakest.grade}" if equal else f"{weakest.cause} → {weakest.effect}: {weakest.grade}"
        raised = f"; would be raised by {weakest.raise_by}" if weakest.raise_by and weakest.grade != "proven" else ""
        yield "weakest", _plain(f"{said}{raised}")


def _finding(finding: Finding, seen: dict[str, str], sources: dict[str, str], *, verbose: bool) -> Text:
    text = Text(finding.code, style="bold cyan")
    text.append(f" [{finding.rung.name.lower()}, {finding.how}, {seen.get(finding.code, '')}] ", style="dim")
    text.append(printable(finding.says if verbose else _brief(finding.says), 600))
    return text.append(f"  {_cited(finding.citations, sources)}", style="dim")


def _brief(says: str) -> str:
    """Return the first part of a statement; of a verdict its file, as its claim has a line of its own."""
    if says.startswith("verdict "):
        return "verdict " + says.removeprefix("verdict ").partition(": ")[0].rpartition("/")[2]
    return says.partition("; ")[0]


def _link(link: Link, *, verbose: bool) -> Text:
    text = Text(link.grade, style=STYLES[link.grade])
    reasons = (
        list(link.why)
        if verbose
        else [one.removeprefix("dose: ") for one in link.why if one.startswith(("dose: ", "verdict "))]
    )
    said = "; ".join(one if verbose else _brief(one) for one in reasons)
    return text.append(f": {printable(said, 900)}" if said else "")


def _cited(citations: Iterable[Citation], sources: dict[str, str]) -> str:
    return " ".join(f"{sources[one.path]}:{one.line}" for one in list(citations)[:2])


def _reservations(explanation: Explanation, width: int, *, verbose: bool) -> Iterator[Line]:
    for verdict in explanation.verdicts:
        label = " (synthetic reference, run alone by replay)" if verdict.synthetic else ""
        yield "verdict", _plain(f"{verdict.outcome}{label}: {verdict.claim}", "bold")
        for finding in verdict.findings:
            if finding.startswith(("which operator: ", "who is right: ")):
                yield "", _plain(finding)
    if explanation.ruled_out:
        yield "ruled out", _plain(lines.as_many_as_fit(explanation.ruled_out, sys.maxsize if verbose else width))
    if verbose:
        for gap in explanation.gaps:
            yield "missing", _plain(f"{gap.field}: cannot say {gap.stops} [{gap.code}]")
    elif fields := {gap.field for gap in explanation.gaps if gap.code not in BESIDE}:
        raising = [link.raise_by for link in explanation.chain if link.raise_by in fields]
        first = [field for field in dict.fromkeys([*raising, *sorted(fields)]) if field is not None]
        yield "missing", _plain(lines.as_many_as_fit(first, width))
    claims = explanation.cannot_claim[len(explanation.gaps) :]
    if verbose:
        for claim in claims:
            yield "not shown", _plain(claim)
    elif claims:
        yield "not shown", _plain("; ".join(claim.partition(":")[0] for claim in claims))
