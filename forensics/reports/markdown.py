"""The incident review: every claim with its evidence, what cannot be claimed, and how to repeat it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.review import actions, causes, fabric, records, summary, timeline
from forensics.text import markdown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

    from forensics.explanation import Explanation


def render(explanation: Explanation, out: TextIO, *, picture: str | None = None) -> None:
    """Write the review. picture: file name of the timeline beside it, without suffix; None leaves it out."""
    for block in _review(explanation, picture):
        out.write(block + "\n\n")


def _review(explanation: Explanation, picture: str | None) -> Iterator[str]:
    yield f"# Incident review: request {markdown(explanation.target.req_id)}"
    yield from summary.summary(explanation)
    yield from summary.impact(explanation)
    yield from summary.compared(explanation)
    yield from timeline.timeline(explanation, picture)
    yield from timeline.regime(explanation)
    yield from fabric.fabric(explanation)
    yield from causes.flip(explanation)
    yield from causes.chain(explanation)
    yield from causes.ruled_out(explanation)
    yield from records.proof(explanation)
    yield from records.evidence(explanation)
    yield from records.contract(explanation)
    yield from actions.mitigation(explanation)
    yield from actions.reservations(explanation)
    yield from actions.follow_ups(explanation)
    yield from actions.commands(explanation)
