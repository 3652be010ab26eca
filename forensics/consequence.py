"""What a divergence did: to the answer of one request, and how many requests of the store have one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from forensics.flip import outputs
from forensics.incidents import EVERYTHING, incidents
from forensics.searching import find

if TYPE_CHECKING:
    from forensics.incident import Incident
    from forensics.store import Store
    from forensics.timeline import Thresholds

LISTED = 20
"""Requests that a spread names; it counts all."""


@dataclass(frozen=True)
class Consequence:
    """Output positions from the flip on, compared one by one; a longer output's surplus counts as different."""

    positions: int
    differing: int


@dataclass(frozen=True)
class Also:
    """Another request that diverged. flip_at and gap_ulps: None where that is not on record."""

    run_id: str
    req_id: str
    arrival_ts: float | None
    flip_at: int | None
    gap_ulps: float | None
    tie: str | None


@dataclass(frozen=True)
class Spread:
    """Divergent requests of the store, one for each output that differs from that of its least loaded run.

    requests: on record in all. same_run: of the divergent ones, in the run of the target; same_tie: with a flip of
    the same tie class. Whether they share the cause is not looked at here.
    """

    requests: int
    divergent: int
    same_run: int
    same_tie: int
    others: tuple[Also, ...]


def consequence(incident: Incident) -> Consequence | None:
    """Compare the two outputs after the flip; None where they are not on record position by position."""
    if incident.flip is None or incident.reference is None:
        return None
    ours, theirs = outputs(incident.target), outputs(incident.reference)
    if ours is None or theirs is None or ours[0] != theirs[0]:
        return None
    one, other = (tokens[incident.flip.token_index :] for _, tokens in (ours, theirs))
    equal = sum(a == b for a, b in zip(one, other, strict=False))
    longest = max(len(one), len(other))
    return Consequence(longest, longest - equal)


def spread(store: Store, incident: Incident, limits: Thresholds) -> Spread:
    """Count the divergent requests of the whole store; reads every run of every cohort that has two outputs."""
    listed = [one.incident for one in incidents(store, limits)]
    pair = {arm.identity for arm in (incident.target, incident.reference) if arm}
    tie = incident.flip.tie if incident.flip else None
    return Spread(
        requests=int(find(store, EVERYTHING, limit=1)["found"].sum()),
        divergent=len(listed),
        same_run=sum(one.target.identity[:2] == incident.target.identity[:2] for one in listed),
        same_tie=sum(tie is not None and one.flip is not None and one.flip.tie == tie for one in listed),
        others=tuple(_also(one) for one in listed if one.target.identity not in pair)[:LISTED],
    )


def _also(incident: Incident) -> Also:
    flip, request = incident.flip, incident.target.request
    return Also(
        request["run_id"], request["req_id"], request["arrival_ts"], flip.token_index if flip else None,
        flip.gap_ulps if flip else None, flip.tie if flip else None,
    )  # fmt: skip
