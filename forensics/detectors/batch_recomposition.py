"""The request shared its launches with other requests than the reference did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from forensics.findings import Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.evidence import Evidence
    from forensics.incident import Incident

RUNG = Rung.SCHEDULER
SEEN = "real engine"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare, step by step up to the flip, who else was in the launch and with how many tokens.

    Neighbours are compared by their token counts: names differ in any two runs and decide nothing.
    """
    target, reference = incident.arms()
    if target.members.height == 0 or reference.members.height == 0:
        yield Gap("batch_recomposition", "step.engine_step", "who shared the launches of the request")
        return
    mates = [_mates(arm) for arm in (target, reference)]
    differing = [
        (ours, theirs)
        for _, ours, theirs in incident.paired()
        if ours and theirs and _loads(mates[0], ours) != _loads(mates[1], theirs)
    ]
    if not differing:
        return
    first = differing[0]
    shared = {mate for ours, _ in differing for mate, _ in mates[0].get(ours["engine_step"], ())}
    shared |= {mate for _, theirs in differing for mate, _ in mates[1].get(theirs["engine_step"], ())}
    yield Finding(
        "batch_recomposition", RUNG,
        f"in {len(differing)} steps up to the flip the launch was shared differently: "
        f"first {_say(mates[0], first[0])}, "
        f"the reference {_say(mates[1], first[1])}"
        f"; {len(shared)} other requests shared these launches in all",
        first[0]["step"], _loads(mates[0], first[0]), _loads(mates[1], first[1]),
        steps=tuple(ours["step"] for ours, _ in differing),
        citations=target.cite(first[0]["step"]) + reference.cite(first[1]["step"]),
    )  # fmt: skip


def _mates(arm: Evidence) -> dict[int, list[tuple[str, int | None]]]:
    """Return, per engine step, the other requests of the launch with their scheduled tokens."""
    others = arm.members.filter(pl.col("req_id") != arm.request["req_id"])
    mates: dict[int, list[tuple[str, int | None]]] = {}
    for step, name, tokens in others.select("engine_step", "req_id", "num_scheduled_tokens").iter_rows():
        mates.setdefault(step, []).append((name, tokens))
    return mates


def _loads(mates: dict[int, list[tuple[str, int | None]]], row: dict[str, Any]) -> list[int]:
    return sorted(tokens or 0 for _, tokens in mates.get(row["engine_step"], ()))


def _say(mates: dict[int, list[tuple[str, int | None]]], row: dict[str, Any]) -> str:
    loads = _loads(mates, row)
    return f"{len(loads)} other requests with {sum(loads)} tokens" if loads else "ran alone"
