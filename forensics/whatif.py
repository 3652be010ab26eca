"""Would a request have been the same without others, or with others later or shorter? A case that asks just that.

The incident's arm is the request's whole run; the reference's is the same window with the change in it, which nobody
recorded. Arrivals stay at their engine steps: how long a step would have taken with fewer rows is not modelled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from forensics.casefile import build_case
from forensics.errors import USAGE, ForensicsError
from forensics.evidence import gather
from forensics.incident import Incident, find_request
from forensics.stepwise import company_plan
from forensics.text import printable
from forensics.timeline import Thresholds
from replay.case import Arm, Case, Window

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from forensics.evidence import Evidence
    from forensics.store import Store


@dataclass(frozen=True)
class Change:
    """What is done to others, by their ids. later: engine steps that each is delayed; shorter: tokens it may answer."""

    without: tuple[str, ...] = ()
    later: Mapping[str, int] | None = None
    shorter: Mapping[str, int] | None = None

    def names(self) -> tuple[str, ...]:
        """Return everybody that the change is about."""
        return (*self.without, *(self.later or {}), *(self.shorter or {}))


def target_of(store: Store, name: str) -> Evidence:
    """Return the evidence of the request of that name."""
    return gather(store, find_request(store, name), Thresholds())


def numbers(given: Sequence[str] | None, option: str, least: int) -> dict[str, int]:
    """Return {request: number} of options such as OTHER=20. Raises ForensicsError (exit 2) for anything else."""
    found = {}
    for text in given or ():
        name, equals, number = text.rpartition("=")
        if not equals or not name or not re.fullmatch("[0-9]{1,9}", number) or int(number) < least:
            raise ForensicsError(f"{option} {printable(text, 80)!r} is not OTHER=NUMBER", USAGE,
                                 f"a request id and a number from {least} on")  # fmt: skip
        found[name] = int(number)
    return found


def answer(verdict: Mapping[str, Any]) -> str:
    """Return what the verdict on such a case says, in a sentence."""
    outcome, claim = verdict.get("outcome"), verdict.get("claim")
    if outcome == "no_divergence":
        (last,) = (one for one in verdict["trials"] if one["name"] == "control: reference")
        count = len(last["tokens"])
        bits = "and the same logits, bit for bit" if last["bits_equal"] == "both" else "though not the same logits"
        return f"the same: {count} tokens are the same, {bits}"
    if outcome == "proven" and (flip := verdict.get("flip")):
        tokens = f"{flip['incident_token']} as it was, {flip['reference_token']} with the change"
        return f"another answer: token {flip['token_index']} is {tokens}; both were executed here"
    return f"not decided ({outcome}): {claim}"


def what_if(store: Store, target: Evidence, change: Change) -> Case:
    """Return the case whose arms differ in the change alone. Raises ForensicsError: exit 2 for who was not there."""
    case = build_case(store, Incident(target, None, "what if", "no_reference"))
    if not change.names():
        raise ForensicsError("nothing to change was named", USAGE, "name others with --without, --later or --shorter")
    window = case.incident.window
    if window is None:
        engine = printable(case.engine.get("engine"), 80)
        raise ForensicsError(f"the run is of {engine}: no other request can be left out of it", USAGE,
                             "this is answered for engines whose windows are on record: vLLM")  # fmt: skip
    known = {name: _known(store, target, window, name) for name in change.names()}
    edited = _edited(window, change, known)
    kept = {name: value for name, value in case.incident.plan.items() if not name.startswith("company.requests")}
    plan = kept | {"company.requests": company_plan("reference", edited)["company.requests"]}
    reference = Arm("synthetic", case.incident.req_id, plan, synthetic=True, window=edited)
    return replace(case, reference=reference, notes=case.notes[1:])


def _known(store: Store, target: Evidence, window: Window, name: str) -> str:
    """Return the engine's id of somebody who was in the engine with the target."""
    run_id, _, req_id = target.identity
    row = find_request(store, name)
    shown = printable(name, 80)
    if row["req_id"] == req_id:
        raise ForensicsError(f"{shown} is the request itself", USAGE, "name others")
    if row["run_id"] != run_id or all(one.req_id != row["req_id"] for one in window.requests):
        raise ForensicsError(
            f"{shown} was not in the engine with {printable(target.name, 80)}: nothing of it reached its answer", USAGE,
            f"{len(window.requests) - 1} others were, between engine step {window.first_step} and its end",
        )  # fmt: skip
    return str(row["req_id"])


def _edited(window: Window, change: Change, known: Mapping[str, str]) -> Window:
    gone = {known[name] for name in change.without}
    later = {known[name]: steps for name, steps in (change.later or {}).items()}
    shorter = {known[name]: tokens for name, tokens in (change.shorter or {}).items()}
    requests = []
    for one in window.requests:
        if one.req_id in gone:
            continue
        moved = replace(one, arrival_step=one.arrival_step + later.get(one.req_id, 0))
        if (most := shorter.get(one.req_id)) is not None:
            output = None if moved.output_tokens is None else min(most, moved.output_tokens)
            moved = replace(moved, decode_cfg=moved.decode_cfg | {"max_tokens": most}, output_tokens=output)
        requests.append(moved)
    orders = tuple(
        replace(one, arrivals=sum(asked.req_id not in gone for asked in window.requests[: one.arrivals]))
        for one in window.orders
        if one.what != "abort" or one.detail["req_id"] not in gone
    )
    return replace(
        window, schedule=(), orders=orders, requests=tuple(sorted(requests, key=lambda one: one.arrival_step))
    )
