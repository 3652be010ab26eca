"""Was a limit of the request tightened because of load? What an engine was configured with is not what it applied.

A runtime that lowers a limit says so with an event `limit_change` (or `config_change`), detail {limit, before, after,
reason}. Without one, a limit that is lower than the engine's own configuration was lowered by something.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from forensics.evidence import Evidence
    from forensics.findings import Finding
    from forensics.incident import Incident

CONTEXT = ("context_limit", "max_model_len", "max_input_tokens", "truncate_prompt_tokens")
OUTPUT = ("max_tokens", "max_new_tokens", "max_completion_tokens")
"""Names of limits on what a request may hold and on what it may produce."""
WORDS = {
    "arrival_burst": ("burst", "load", "rate", "arrival"),
    "queue_pressure": ("queue", "wait", "load", "backlog"),
    "memory_pressure": ("memory", "kv", "headroom", "oom"),
}
"""Cause → words in the reason of an event that name it."""


class Limit(NamedTuple):
    """A limit that was lower for the target than for the reference."""

    names: tuple[str, ...]
    ours: int
    theirs: int


def tightened(cause: Finding, effect: Finding, incident: Incident) -> tuple[bool | None, str]:
    """Return whether load lowered the limit that made the two requests differ: a dose (`dose.py`)."""
    limit = _context(incident) if effect.code == "effective_request_drift" else _output(incident)
    if limit is None:
        return False, "dose: no limit of the target was lower than that of the reference"
    said = f"{limit.names[0]} {limit.ours}, in the reference {limit.theirs}"
    event = _event(incident.target, limit)
    if event is not None:
        reason = str(event.get("reason") or "")
        named = [code for code, words in WORDS.items() if any(word in reason.lower() for word in words)]
        if cause.code in named:
            return True, f"dose: {said}; an event before its arrival lowered it and gives the reason {reason!r}"
        if named:
            return False, f"dose: {said}; an event before its arrival lowered it for another reason: {reason!r}"
        return None, f"dose: {said}; an event before its arrival lowered it and gives no reason"
    if any(value > limit.ours for value in _configured(incident.target.engine, limit.names)):
        return None, f"dose: {said}; the engine was configured with more, so something lowered it: no event says what"
    return False, f"dose: {said}; no event, and no configuration of the engine, shows that it was lowered while it ran"


def _context(incident: Incident) -> Limit | None:
    ours, theirs = (arm.request["context_limit"] for arm in incident.arms())
    if None in (ours, theirs) or ours >= theirs or not incident.target.request["truncated"]:
        return None
    return Limit(CONTEXT, ours, theirs)


def _output(incident: Incident) -> Limit | None:
    """Return the limit on output tokens that was asked for alike and applied lower in the target."""
    target, reference = incident.arms()
    for name in OUTPUT:
        asked = [arm.decode_cfg("decode_cfg_requested").get(name) for arm in (target, reference)]
        ours, theirs = (arm.decode_cfg().get(name) for arm in (target, reference))
        if asked[0] == asked[1] and isinstance(ours, int) and isinstance(theirs, int) and ours < theirs:
            return Limit(OUTPUT, ours, theirs)
    return None


def _event(arm: Evidence, limit: Limit) -> dict[str, Any] | None:
    """Return the detail of the last event before the request's arrival that set the limit to what it had."""
    arrived, last = arm.request["arrival_ts"], None
    for row in arm.around.limit_changes.iter_rows(named=True):
        detail = json.loads(row["detail"] or "{}")
        early = None not in (arrived, row["ts"]) and row["ts"] <= arrived
        if early and detail.get("limit") in limit.names:
            last = detail
    return last if last is not None and last.get("after") in (None, limit.ours) else None


def _configured(engine: dict[str, Any] | None, names: tuple[str, ...]) -> list[int]:
    """Return every value that the engine's resolved configuration has under one of these names."""
    found: list[int] = []

    def walk(value: Any) -> None:
        for name, member in value.items() if isinstance(value, dict) else ():
            if name in names and isinstance(member, int):
                found.append(member)
            walk(member)

    walk(json.loads((engine or {}).get("config") or "{}"))
    return found
