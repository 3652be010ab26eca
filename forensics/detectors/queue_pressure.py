"""Requests waited in one run and not in the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from forensics.findings import ADMISSION, Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.evidence import Evidence
    from forensics.incident import Incident

RUNG = Rung.SCHEDULER
SEEN = "real engine"
TIMES = 2.0
"""How many times the other arm's wait it must be: above the border in both is no difference. A choice."""
DEPTH_STEPS = 5
"""Without a queue time: launches that left somebody waiting, while none of the other arm did. A choice."""


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare the wait of the request itself, and queue p95 over its launches, with the reference.

    One of the two must be above the border of the queue regime in one arm and TIMES that of the other. Without times:
    in how many launches somebody was left waiting.

    Competitors of it as a cause of other neighbours: memory that is short, isolation, another configuration; an arrival
    burst brings it about.
    """
    arms = incident.arms()
    lived = incident.lived()
    waits = [_wait(arm, steps) for arm, steps in zip(arms, lived, strict=True)]
    if waits[0] is not None and waits[1] is not None:
        yield from _by_time(incident, waits[0], waits[1])
        return
    depths = [steps["queue_depth"].drop_nulls() for steps in lived]
    if not all(len(depth) for depth in depths):
        yield Gap("queue_pressure", "step.queue_ms or batch.queue_depth", "whether requests waited in one of the runs")
        return
    waiting = [int((depth > 0).sum()) for depth in depths]
    if max(waiting) >= DEPTH_STEPS and min(waiting) == 0:
        steps = lived[0].filter(pl.col("queue_depth").fill_null(0) > 0)["step"].to_list()
        onset = steps[0] if steps else 0
        yield Finding(
            "queue_pressure", RUNG,
            f"somebody was left waiting in {waiting[0]} launches up to the flip, in the reference in {waiting[1]}",
            onset, waiting[0], waiting[1], steps=tuple(steps), citations=arms[0].cite(onset),
        )  # fmt: skip


def _wait(arm: Evidence, steps: pl.DataFrame) -> tuple[float, float] | None:
    """Return (own wait, highest queue p95 up to the flip) in ms, None where the request's own is not on record."""
    own = arm.steps["queue_ms"].drop_nulls()
    if own.is_empty():
        return None
    highest = steps["regime_queue_p95_ms"].max()
    return float(own[0]), float(highest) if isinstance(highest, int | float) else float(own[0])


def _by_time(incident: Incident, ours: tuple[float, float], theirs: tuple[float, float]) -> Iterator[Finding]:
    border = incident.target.limits.queue_p95_ms

    def apart(one: float, other: float) -> bool:
        return max(one, other) > border and max(one, other) > TIMES * min(one, other)

    own, launches = (apart(one, other) for one, other in zip(ours, theirs, strict=True))
    if not own and not launches:
        return
    over = incident.lived()[0].filter(pl.col("regime_queue_p95_ms") > border)["step"].to_list()
    onset = ADMISSION if own or not over else over[0]
    yield Finding(
        "queue_pressure", RUNG,
        f"it waited {ours[0]:.4g} ms before its first step, the reference {theirs[0]:.4g} ms; queue p95 up to the flip "
        f"was at most {ours[1]:.4g} ms, in the reference {theirs[1]:.4g} ms (border {border:g} ms)",
        onset, ours[0] if own else ours[1], theirs[0] if own else theirs[1], how="derived",
        steps=tuple(over), citations=incident.target.cite(0) + incident.arms()[1].cite(0),
    )  # fmt: skip
