"""Two arms, step by step: where does a value of the execution state differ? Detectors say which value, and why.

Steps are paired as `Incident.paired` does: those that work towards the same output token, in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from forensics.findings import Citation
    from forensics.incident import Incident

    Launches = Callable[["Facts"], list["Facts"]]

Facts = dict[str, Any]
MAJORITY = 3
"""Fewest ranks of which one can be out of line."""


class Place(NamedTuple):
    """One pair of steps that differ. step: the target's own, or the last one before an unpaired reference step."""

    step: int
    ours: dict[str, Any] | None
    theirs: dict[str, Any] | None


@dataclass(frozen=True)
class Contrast:
    """compared: pairs of steps in which both arms state something; places: those that differ."""

    compared: int
    places: tuple[Place, ...]

    @property
    def onset(self) -> int:
        """Return the target's step at which the difference begins."""
        return self.places[0].step

    @property
    def steps(self) -> tuple[int, ...]:
        """Return the target's own steps that differ."""
        return tuple(place.step for place in self.places if place.ours is not None)

    def cite(self, incident: Incident) -> tuple[Citation, ...]:
        """Return where the first difference stands, in both arms."""
        target, reference = incident.arms()
        _, ours, theirs = self.places[0]
        return (target.cite(ours["step"]) if ours else ()) + (reference.cite(theirs["step"]) if theirs else ())


def contrast(incident: Incident, read: Callable[[dict[str, Any]], Facts], absent: Facts | None = None) -> Contrast:
    """Compare what `read` finds in the two steps of each pair up to the flip; only facts that both state count.

    absent: what a step that the other arm did not make stands for; without it such steps are left out.
    """
    compared, last, places = 0, 0, []
    for _, ours, theirs in incident.paired():
        last = ours["step"] if ours else last
        sides = [read(row) if row else absent for row in (ours, theirs)]
        one, other = (side or {} for side in sides)
        shared = one.keys() & other.keys()
        compared += bool(shared)
        if any(one[name] != other[name] for name in shared):
            places.append(Place(last, ours, theirs))
    return Contrast(compared, tuple(places))


def differences(one: Facts, other: Facts) -> str:
    """Return in words which of the facts that both state differ."""
    changed = sorted(name for name in one.keys() & other.keys() if one[name] != other[name])
    return ", ".join(f"{name} {one[name]!r} against {other[name]!r}" for name in changed)


def factors(row: dict[str, Any]) -> Facts:
    """Return the plan factors on record of one step: the batch's, then the request's own."""
    return dict(row["batch_plan"] or {}) | dict(row["plan"] or {})


def launches(incident: Incident) -> Launches:
    """Return what gives, for a step, the batch records of every rank of its launch, lowest rank first.

    A step whose launch has no batch record (the flat form) speaks for it itself.
    """
    known: dict[tuple[Any, ...], dict[Any, Facts]] = {}
    for arm in incident.arms():
        for record in arm.ranks.iter_rows(named=True):
            known.setdefault(_launch(record), {})[record["rank"]] = record
    return lambda step: list(known.get(_launch(step), {0: step}).values())


def _launch(record: Facts) -> tuple[Any, ...]:
    return record["run_id"], record["replica_id"], record["engine_step"]


def odd_ranks(records: list[Facts], name: str) -> tuple[dict[Any, Any], Any]:
    """Return {rank: value} of the ranks that are not as most of their peers are, and the value that most of them state.

    A rank that states nothing does not count. Of fewer than MAJORITY that do, or without a value that more than half of
    them share, nobody is odd: two ranks that differ do not tell which of them is.
    """
    stated = {record["rank"]: record[name] for record in records if record[name] is not None}
    values = list(stated.values())
    usual = max(values, key=values.count, default=None)
    if len(values) < MAJORITY or values.count(usual) * 2 <= len(values):
        return {}, None
    return {rank: value for rank, value in stated.items() if value != usual}, usual
