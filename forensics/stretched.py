"""Whether steps that the fabric made longer can have changed a batch, or kept a request waiting: a dose of a link.

A launch is composed before it runs: only a step before it can have changed it. And somebody must have acted upon the
time of a step: a limit of the launch that was changed on record, or requests that were left waiting.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import polars as pl

from forensics.findings import ADMISSION

if TYPE_CHECKING:
    from forensics.findings import Finding
    from forensics.incident import Incident

Dose = tuple[bool | None, str]
STRETCHES = {
    "rank_straggler": "without it {removal:.0%} of what steps lost comes back, in calm ones it brings {addition:.0%}",
    "fabric_congestion": "at its baseline {removal:.0%} shorter, and as slow the calm steps are {addition:.0%} longer",
}  # fmt: skip
"""Code → what its removal and its addition come to."""


def stretched(cause: Finding, effect: Finding, incident: Incident) -> Dose:
    """Return whether the steps that the cause made longer account for another batch, or for a queue."""
    which = 0 if cause.target is not None else 1
    facts: dict[str, Any] = cause.target or cause.reference
    if facts["explains"] is False:
        return None, f"dose: {_both_ways(cause.code, facts)}: it does not account for the longer steps"
    if effect.code == "queue_pressure" and effect.onset == ADMISSION:
        return _waited(cause.code, facts, incident, which, _longer_wait(effect) == which)
    begins = _engine_step(incident, which, effect.onset)
    if begins is None:
        return None, "dose: the engine step at which it begins is not on record"
    if facts["first"] >= begins:
        late = f"the launch of engine step {begins} was composed before a step was longer (from {facts['first']} on)"
        return False, f"dose: {late}"
    acted = _acted(incident, which, facts["first"], begins)
    if acted is None:
        return None, "dose: no limit of a launch was changed on record in between, and nobody was left waiting"
    return _if_told(cause.code, facts, acted)


def _if_told(code: str, facts: dict[str, Any], acted: str) -> Dose:
    if facts["explains"] is None:
        return None, f"dose: {acted}; what made the steps longer cannot be told"
    return True, f"dose: {acted}; {_both_ways(code, facts)}"


def _both_ways(code: str, facts: dict[str, Any]) -> str:
    if facts["removal"] is None or facts["addition"] is None:
        return "its removal or addition cannot be computed"
    return STRETCHES[code].format(**facts)


def _waited(code: str, facts: dict[str, Any], incident: Incident, which: int, same_arm: bool) -> Dose:
    """Look at the steps between a request's arrival and its own first one."""
    arm = incident.arms()[which]
    if not same_arm:
        return False, "dose: the other arm waited longer"
    arrived, started = arm.request["arrival_step"], _engine_step(incident, which, 0)
    if arrived is None or started is None:
        return None, "dose: before which engine step it arrived is not on record"
    if facts["first"] < started and facts["last"] >= arrived:
        return _if_told(code, facts, f"it waited through engine steps {arrived} to {started - 1}, which were longer")
    acted = _acted(incident, which, facts["first"], started)
    if acted is None or facts["first"] >= started:
        return False, f"dose: none of the longer steps lies before engine step {started}, in which it began"
    return _if_told(code, facts, acted)


def _longer_wait(queue: Finding) -> int:
    return int((queue.reference or 0) > (queue.target or 0))


def _engine_step(incident: Incident, which: int, step: int) -> int | None:
    """Return the engine step of an arm in which the target makes its own step, or of what it is paired with."""
    for _, ours, theirs in incident.paired():
        row = (ours, theirs)[which]
        if ours and row and ours["step"] == step:
            return row["engine_step"]  # type: ignore[no-any-return]
    return None


def _acted(incident: Incident, which: int, first: int, begins: int) -> str | None:
    """Return in words what the scheduler did between a longer step and a launch."""
    arm = incident.arms()[which]
    of_launches = pl.col("what") == "batch_limit_change", pl.col("engine_step").is_between(first + 1, begins)
    changes = arm.around.limit_changes.filter(*of_launches).sort("engine_step").to_dicts()
    if changes:
        return f"a limit of the launch was changed {_change(changes[0])}before engine step {changes[0]['engine_step']}"
    rows = arm.steps.filter(pl.col("engine_step") == begins).to_dicts()
    if rows and rows[0]["queue_depth"]:
        return f"{rows[0]['queue_depth']} requests were left waiting by the launch of engine step {begins}"
    return None


def _change(row: dict[str, Any]) -> str:
    """Return from what to what a limit was changed: detail {before, after}, or {changed: {limit: [before, after]}}."""
    detail = json.loads(row["detail"] or "{}")
    changed = next(iter(detail["changed"].values()), None) if isinstance(detail.get("changed"), dict) else None
    before, after = changed if isinstance(changed, list) and len(changed) == 2 else map(detail.get, ("before", "after"))
    return f"from {before} to {after} " if type(before) is type(after) is int else ""
