"""The answer on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from forensics.text import moment, printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from forensics.explain import Explanation, Subject
    from forensics.findings import Link
    from forensics.flip import Flip
    from forensics.lane import Lane

WIDTH = 100
AXIS = WIDTH - 15
BARS = "▁▂▃▄▅▆▇█"
LETTERS = {
    "normal": "·", "queue_degraded": "q", "memory_pressured": "m", "paging": "P", "memory_evaporation": "E",
    "isolation_strict": "I", "unknown": "?",
}  # fmt: skip
STYLES = {"proven": "bold green", "supported": "green", "consistent": "yellow", "possible": "red", "refuted": "dim red"}


def render(explanation: Explanation, out: TextIO) -> None:
    """Write the explanation for a terminal of 100 columns; colour only where `out` is one and NO_COLOR is not set."""
    console = Console(file=out, width=WIDTH, highlight=False)
    style = {"divergence": "bold red", "same": "bold green"}.get(explanation.standing, "bold")
    console.print(Text(printable(explanation.headline, 1000), style=style))
    screen = Table.grid(padding=(0, 2))
    screen.add_column(width=11, justify="right", style="bold", no_wrap=True)
    screen.add_column(width=WIDTH - 13, overflow="fold")
    for name, value in _screen(explanation):
        screen.add_row(name, value)
    with console.capture() as drawn:
        console.print(screen)
    out.writelines(f"{line.rstrip()}\n" for line in drawn.get().splitlines())  # a grid pads its lines


def _screen(explanation: Explanation) -> Iterator[tuple[str, Text]]:
    yield "target", _plain(_subject(explanation.target))
    if explanation.reference is not None:
        yield "reference", _plain(_subject(explanation.reference))
    yield "chosen", _plain(explanation.rule)
    if explanation.flip is not None:
        yield "flip", _plain(_flip(explanation.flip))
    yield from _timeline(explanation)
    yield from _chain(explanation)
    if explanation.ruled_out:
        yield "ruled out", _plain(", ".join(explanation.ruled_out))
    for verdict in explanation.verdicts:
        yield "verdict", _plain(f"{verdict.outcome}: {verdict.claim}", "bold")
    for gap in explanation.gaps:
        yield "missing", _plain(f"{gap.field}: cannot say {gap.stops}")
    for claim in explanation.cannot_claim[len(explanation.gaps) :]:
        yield "not shown", _plain(claim)
    for command in explanation.next_commands:
        yield "next", _plain(command, "bold")


def _plain(value: str, style: str = "") -> Text:
    return Text(printable(value, 2000), style=style)


def _subject(subject: Subject) -> str:
    when = "" if subject.arrival_ts is None else f" at {moment(subject.arrival_ts)}"
    known = [
        subject.engine,
        subject.engine_version,
        subject.model_id and subject.model_id.rsplit("/")[-1],
        subject.dtype,
    ]
    name = subject.req_id + (f" ({subject.external_req_id})" if subject.external_req_id else "")
    most = [f"{subject.max_rows} rows"] if subject.max_rows is not None else []
    most += [f"{subject.max_launch_tokens} tokens a launch"] if subject.max_launch_tokens is not None else []
    load = f", at most {', '.join(most)}" if most else ""
    return f"{name}{when} · {' '.join(part for part in known if part)}{load}"


def _flip(flip: Flip) -> str:
    arms = [
        f"{name} {margin:.4g}" + (f" = {ulps:.3g} ulp" if ulps is not None else "")
        for name, margin, ulps in (
            ("target", flip.target_margin, flip.target_ulps),
            ("reference", flip.reference_margin, flip.reference_ulps),
        )
        if margin is not None
    ]
    margins = f"top-2 margins {', '.join(arms)} {flip.dtype or ''}" if arms else "margins not on record"
    drift = f"; the candidates moved {flip.drift:.4g} logits against each other" if flip.drift is not None else ""
    tie = f"{flip.tie} of the two" if flip.tie else "how close the two were is not on record"
    return f"token {flip.token_index}: {flip.target_token} ≠ {flip.reference_token}; {tie}; {margins}{drift}"


def _timeline(explanation: Explanation) -> Iterator[tuple[str, Text]]:
    """Draw both arms on one axis of output tokens: request rows as bars, regimes as letters."""
    last = max((lane.token_index[-1] + 1 for lane in explanation.lanes if lane.token_index), default=0)
    if not last:
        yield "timeline", _plain("no step that chose a token is on record")
        return
    per = -(-last // AXIS)
    top = max((rows or 0 for lane in explanation.lanes for rows in lane.rows), default=1) or 1
    for lane in explanation.lanes:
        bars, letters = _draw(lane, per, top)
        yield lane.name, Text(bars, style="cyan").append(f"\n{letters}", style="dim")
    if explanation.flip is not None:
        column = explanation.flip.token_index // per
        label = f"flip at {explanation.flip.token_index}"
        text = f"{label} ▲".rjust(column + 1) if column > AXIS // 2 else f"{'':{column}}▲ {label}"
        yield "", Text(text, style="bold red")
    used = sorted({state for lane in explanation.lanes for state in lane.regime})
    legend = ", ".join(f"{LETTERS.get(state, '?')} {state}" for state in used)
    each = "one output token a column" if per == 1 else f"{per} output tokens a column"
    yield "", Text(f"{each}; bars: 1 to {top} request rows; regimes: {legend}", style="dim")


def _draw(lane: Lane, per: int, top: int) -> tuple[str, str]:
    bars, letters = "", ""
    for start in range(0, len(lane.rows), per):
        rows = [value for value in lane.rows[start : start + per] if value is not None]
        bars += BARS[round((max(rows) - 1) * (len(BARS) - 1) / max(top - 1, 1))] if rows else " "
        states = lane.regime[start : start + per]
        letters += LETTERS.get(next((state for state in states if state != "normal"), "normal"), "?")
    return bars, letters


def _chain(explanation: Explanation) -> Iterator[tuple[str, Text]]:
    """Findings from the lowest rung up, each with the links that lead to it; ● is on the chain, ○ beside it."""
    if explanation.standing != "divergence":
        return
    on_path = {explanation.root_cause, *(link.effect for link in explanation.chain)}
    for finding in explanation.findings:
        mark, style = ("●", "bold cyan") if finding.code in on_path else ("○", "cyan")
        text = Text(f"{mark} {finding.code} ", style=style)
        seen = explanation.seen.get(finding.code, "")
        text.append(f"[{finding.how}; {seen}] ", style="dim")
        text.append(printable(finding.says, 600))
        for citation in finding.citations[:2]:
            text.append(f"  {printable(citation.path.rpartition('/')[2], 60)}:{citation.line}", style="dim")
        for link in explanation.links:
            if link.effect == finding.code and (link in explanation.chain or link.grade == "refuted"):
                text.append(_link(link))
        yield finding.rung.name.lower(), text
    weakest = next((link for link in explanation.chain if link.grade == explanation.chain_grade), None)
    if weakest is not None:
        raised = f"; would be raised by: {weakest.raise_by}" if weakest.raise_by and weakest.grade != "proven" else ""
        yield "weakest", _plain(f"{weakest.cause} → {weakest.effect}, {weakest.grade}{raised}")


def _link(link: Link) -> Text:
    text = Text(f"\n  ← {link.cause}: ").append(link.grade, style=STYLES[link.grade])
    reasons = [reason for reason in link.why if not reason.startswith(("order: ", "ruled out: "))]
    return text.append(f" · {printable(' · '.join(reasons), 700)}" if reasons else "", style="dim")
