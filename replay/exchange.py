"""The exchange of a set of factors between the two arms: its plans, and what its two trials say together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from replay.case import Plan
    from replay.trial import Trace

FOLLOWS = {"batch.row": "batch.rows"}
"""A position exists only inside a launch: where the rows are exchanged it goes along and is no factor of its own."""

NOT_NEEDED = "not run: the other exchange had settled it"
Status = Literal["proven", "failed", "open"]


@dataclass(frozen=True)
class Swap:
    """Both exchanges of a set S: incident with the reference's values, and the other way round."""

    names: tuple[str, ...]
    restored: Trace
    induced: Trace
    restores_bits: bool
    induces_bits: bool
    restores_token: bool
    induces_token: bool

    @property
    def status(self) -> Status:
        """Return proven, failed (an exchange ran as pinned and did not give the other arm's bits) or open."""
        if self.restores_bits and self.induces_bits and not self.mismatch:
            return "proven"
        ran = ((self.restored, self.restores_bits), (self.induced, self.induces_bits))
        failed = any(not trace.missing and pin_not_taken(trace) is None and not bits for trace, bits in ran)
        return "failed" if failed else "open"

    @property
    def proven(self) -> bool:
        """Return whether both exchanges gave the other arm bit for bit."""
        return self.status == "proven"

    @property
    def why_not(self) -> str | None:
        """Return why an exchange gave nothing to compare, or the first pin that did not take."""
        missing = (trace.missing for trace in (self.restored, self.induced) if trace.missing not in (None, NOT_NEEDED))
        return next(missing, None) or self.mismatch

    @property
    def mismatch(self) -> str | None:
        """Return the first pin that did not take."""
        return pin_not_taken(self.restored) or pin_not_taken(self.induced)


def pin_not_taken(trace: Trace) -> str | None:
    """Return 'factor: asked, seen' for the first factor that was read back with another value, or not at all."""
    if trace.missing is not None:
        return None
    for name, value in sorted(trace.plan.items()):
        if trace.observed.get(name) != value:
            return f"{name}: {value} was asked for, {trace.observed.get(name, 'nothing')} was read back"
    return None


def covered(name: str, names: Sequence[str]) -> bool:
    """Return whether exchanging these factors takes the named one along."""
    return name in names or FOLLOWS.get(name) in names


def exchange(plan: Plan, other: Plan, names: Sequence[str]) -> Plan:
    """Return the plan with the named factors, and what follows them, as the other has them; not on record: unset.

    Where S shrinks the launch below the request's position and the other plan names none, it takes the last row.
    """
    led = (name for name, leader in FOLLOWS.items() if leader in names and (name in other or leader not in other))
    taken = {*names, *led}
    mixed = {name: value for name, value in plan.items() if name not in taken}
    mixed |= {name: other[name] for name in taken if name in other}
    rows, row = mixed.get("batch.rows"), mixed.get("batch.row")
    if "batch.row" not in taken and rows is not None and row is not None and int(row) >= int(rows):
        mixed["batch.row"] = str(int(rows) - 1)
    return mixed
