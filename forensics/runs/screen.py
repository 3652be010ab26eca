"""Lines of text for a screen of any width: bars on one axis, wrapped statements. Log text is made printable here."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from forensics.bars import LETTERS
from forensics.text import moment, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from forensics.bars import Glyphs
    from forensics.runs.timeline import RunTimeline, Window

NAMES = 10
"""Columns of the names on the left."""
LISTED = 4
"""Statements of one sort that a screen shows; more are counted."""


def wrapped(name: str, text: str, width: int) -> Iterator[str]:
    """Yield a statement with its name on the left, at most `width` columns wide."""
    lines = textwrap.wrap(printable(text, 2000), width - NAMES, break_long_words=True) or [""]
    for number, line in enumerate(lines):
        yield f"{name if number == 0 else '':<{NAMES}}{line}".rstrip()


def some(name: str, said: Sequence[str], width: int, rest: str) -> Iterator[str]:
    """Yield at most LISTED statements, and how many more there are."""
    for number, one in enumerate(said[:LISTED]):
        yield from wrapped(name if number == 0 else "", one, width)
    if len(said) > LISTED:
        yield from wrapped("", f"{len(said) - LISTED} more, {rest}", width)


def timeline_screen(told: RunTimeline, width: int, shown: Glyphs) -> Iterator[str]:
    """Yield the lines of a run's timeline; `told` has at most width - NAMES windows."""
    arrow, json = shown.arrow, "--format json has them"
    yield from wrapped("run", f"{told.run_id} of replica {told.replica_id}; {told.engine}", width)
    holes = f"; {told.missing_steps} engine steps without a record" if told.missing_steps else ""
    yield from wrapped("from", f"{moment(told.begins)} to {moment(told.ends)}, {told.launches} launches{holes}", width)
    yield ""
    yield from _bars(told, width, shown)
    yield ""
    states = {one.state for one in told.spans}
    if len(states) == 1:
        yield from wrapped("regime", f"{states.pop()} throughout", width)
    turns = [f"step {one.engine_step}: {one.before} {arrow} {one.after}: {one.why}".replace("→", arrow)
             for one in told.transitions]  # fmt: skip
    yield from some("regime", turns, width, json)
    changes = [
        f"step {one.engine_step}: {'STATE COLLAPSE, ' if one.collapse else ''}{', '.join(one.what)} (p {one.p:.2g})"
        for one in told.changes
    ]
    yield from some("changed", changes, width, json)
    yield from wrapped("tactics", _tactics(told, arrow), width)
    yield from some("loop", [one.told().replace("→", arrow) for one in told.loops], width, json)
    yield from some("lost", [one.told() for one in told.losses], width, "forensics sources lists the files")
    yield from some("missing", [f"{one.field}: {one.stops}" for one in told.gaps], width, json)


def _bars(told: RunTimeline, width: int, shown: Glyphs) -> Iterator[str]:
    def row(name: str, value: Callable[[Window], float | None], unit: str) -> Iterator[str]:
        values = [value(one) for one in told.windows]
        known = [one for one in values if one is not None]
        if known and max(known) > 0:
            yield f"{name:<{NAMES}}{levels(values, shown)}"
            tops.append(f"{name} up to {max(known):.4g}{unit}")

    tops: list[str] = []
    yield from row("rows", lambda one: one.rows, "")
    yield from row("tokens", lambda one: one.launch_tokens, "")
    yield from row("waiting", lambda one: one.waiting, "")
    yield from row("step time", lambda one: one.step_ms, " ms")
    yield from row("churn", lambda one: one.churn, "")
    yield f"{'regime':<{NAMES}}{''.join(LETTERS.get(one.regime, '?') for one in told.windows)}"
    for name, at in (
        ("preempted", [bool(one.preempted) for one in told.windows]),
        ("paging", [bool(one.paging) for one in told.windows]),
        ("lost", [bool(one.lost) for one in told.windows]),
        ("changed", [any(w.first_step <= c.engine_step <= w.last_step for c in told.changes) for w in told.windows]),
    ):
        if any(at):
            yield f"{name:<{NAMES}}{''.join(shown.here if one else ' ' for one in at)}".rstrip()
    legend = ", ".join(f"{LETTERS.get(one, '?')} {one}" for one in sorted({one.regime for one in told.windows}))
    per = told.windows[0].launches
    yield from wrapped(
        "", f"{per} launch{'es' * (per != 1)} a column; {'; '.join(tops)}; worst regime: {legend}", width
    )


def levels(values: Sequence[float | None], shown: Glyphs) -> str:
    """Return a bar a value, from nothing to the largest of them; a blank where it is not on record."""
    top = max((one for one in values if one is not None), default=0) or 1
    steps = len(shown.bars) - 1
    return "".join(" " if one is None else shown.bars[min(steps, round(one / top * steps))] for one in values)


def _tactics(told: RunTimeline, arrow: str) -> str:
    by = "algorithms" if told.tactics_told_by == "algorithm" else "shape classes (no algorithm is on record)"
    most = max(told.windows, key=lambda one: one.churn or 0.0)
    if not most.churn or most.moved is None:
        return f"the {by} of every window are those of the first quarter of the run"
    name, before, now = most.moved
    return (
        f"{by} against the first quarter of the run: {100 * most.churn:.0f} % other at most, at steps "
        f"{most.first_step} to {most.last_step}: {name} {100 * before:.0f} % {arrow} {100 * now:.0f} %"
    )
