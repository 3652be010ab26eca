"""What happened to both arms by the wall clock: arrival, admission, launches, regimes, preemption, flip, events."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from forensics.findings import Citation
from forensics.timeline import transitions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from forensics.evidence import Evidence
    from forensics.incident import Incident
    from forensics.store import Store

LIMIT = 12
"""Moments of one sort in one arm; more of them are counted, not listed."""


@dataclass(frozen=True)
class Moment:
    """One thing that happened. ts: Unix seconds, None where no clock was read; step: the request's own step."""

    arm: str
    ts: float | None
    step: int | None
    what: str
    citation: Citation | None


def history(store: Store, incident: Incident) -> tuple[Moment, ...]:
    """Return the moments of both arms, each arm in the order of its clock; those without a time come last."""
    flips = (None, None) if incident.flip is None else (incident.flip.target_step, incident.flip.reference_step)
    found: list[Moment] = []
    for name, arm, flip in zip(("target", "reference"), (incident.target, incident.reference), flips, strict=True):
        if arm is not None:
            moments = [*_request(name, arm), *_steps(name, arm, flip), *_events(name, store, arm)]
            found += sorted(moments, key=lambda one: (one.ts is None, one.ts or 0.0, one.step or -1))
    return tuple(found)


def _request(name: str, arm: Evidence) -> Iterator[Moment]:
    request, (where,) = arm.request, arm.cite()
    if request["arrival_ts"] is not None:
        yield Moment(name, request["arrival_ts"], None, "arrived", where)
    if request["admission_ts"] is not None:
        waited = ""
        if request["arrival_ts"] is not None:
            waited = f", {(request['admission_ts'] - request['arrival_ts']) * 1000:.1f} ms after arrival"
        yield Moment(name, request["admission_ts"], None, f"admitted{waited}", where)
    if request["finish_ts"] is not None:
        yield Moment(name, request["finish_ts"], None, f"finished: {request['finish_reason'] or 'no reason'}", where)


def _steps(name: str, arm: Evidence, flip: int | None) -> Iterator[Moment]:
    rows = list(arm.steps.iter_rows(named=True))
    if not rows:
        return
    yield _at(name, rows[0], f"first launch: {_launch(rows[0])}; regime {rows[0]['regime'] or 'unknown'}")
    lived = [row for row in rows if flip is None or row["step"] <= flip]
    changed = [row for before, row in pairwise(lived) if row["batch_size"] != before["batch_size"]]
    yield from _listed(name, changed, "launch of another size", lambda row: f"launch now {_launch(row)}")
    by_step = {row["step"]: row for row in rows}
    turned = transitions(arm.steps)
    for turn in turned[:LIMIT]:
        yield _at(name, by_step[turn.step], f"regime {turn.before} → {turn.after}: {turn.why}")
    yield from _rest(name, [by_step[turn.step] for turn in turned], "change of regime")
    yield from _listed(
        name, [row for row in rows if row["resumed"]], "recomputation", lambda _: "preempted; KV computed again"
    )
    yield from (_at(name, row, f"FLIP: output token {row['token_index']}") for row in rows if row["step"] == flip)


def _listed(name: str, rows: list[dict[str, Any]], sort: str, say: Callable[[dict[str, Any]], str]) -> Iterator[Moment]:
    yield from (_at(name, row, say(row)) for row in rows[:LIMIT])
    yield from _rest(name, rows, sort)


def _rest(name: str, rows: list[dict[str, Any]], sort: str) -> Iterator[Moment]:
    if len(rows) > LIMIT:
        yield _at(name, rows[LIMIT], f"{sort}: {len(rows) - LIMIT} more, not listed")


def _events(name: str, store: Store, arm: Evidence) -> Iterator[Moment]:
    """Yield events in the engine steps of the request, and such at no step that fall between arrival and finish."""
    numbers = arm.steps["engine_step"].drop_nulls().to_list()
    if not numbers:
        return
    run, replica, _ = arm.identity
    rows = store.ask("events", run_id=run, replica_id=replica, first=min(numbers), last=max(numbers)).to_dicts()
    rows = [row for row in rows if row["engine_step"] is not None or _within(row["ts"], arm)]
    own = sorted(rows, key=lambda row: row["req_id"] != arm.request["req_id"])  # what happened to this request first
    for row in own[:LIMIT]:
        yield Moment(name, row["ts"], None, f"event: {_event(row)}", Citation(row["source_path"], row["line"]))
    if len(rows) > LIMIT:
        yield Moment(name, None, None, f"event: {len(rows) - LIMIT} more, not listed", None)


def _event(row: dict[str, Any]) -> str:
    of = f" of {row['req_id']}" if row["req_id"] else ""
    facts = ", ".join(f"{key} {value}" for key, value in json.loads(row["detail"] or "{}").items())
    return f"{row['what']}{of}" + (f" ({facts})" if facts else "")


def _within(ts: float | None, arm: Evidence) -> bool:
    times = arm.steps["ts"].drop_nulls().to_list()
    return ts is not None and bool(times) and min(times) <= ts <= max(times)


def _at(name: str, row: dict[str, Any], what: str) -> Moment:
    return Moment(name, row["ts"], row["step"], what, Citation(row["source_path"], row["line"]))


def _launch(row: dict[str, Any]) -> str:
    size, tokens = ("?" if row[key] is None else row[key] for key in ("batch_size", "batch_tokens"))
    return f"{size} row{'s' * (size != 1)}, {tokens} token{'s' * (tokens != 1)}"
