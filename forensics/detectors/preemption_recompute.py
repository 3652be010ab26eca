"""The request was preempted and its KV computed again, in other pieces than the first time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from forensics.findings import Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.incident import Incident

RUNG = Rung.SCHEDULER
SEEN = "real engine"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Count resumptions up to the flip in each arm; unequal counts are a difference of plan."""
    target, reference = incident.arms()
    for arm in (target, reference):
        if not arm.observes("step", "resumed"):
            yield Gap("preemption_recompute", "step.resumed", "whether the request was preempted and recomputed")
            return
    lived = [steps.filter(pl.col("resumed").fill_null(value=False)) for steps in incident.lived()]
    if lived[0].height == lived[1].height:
        return
    arm, steps = (target, lived[0]) if lived[0].height else (reference, lived[1])
    recomputed = steps["num_scheduled_tokens"].sum()
    yield Finding(
        "preemption_recompute", RUNG,
        f"preempted and recomputed {lived[0].height} time(s) before the flip (reference {lived[1].height}); "
        f"{recomputed} tokens computed again in the {'target' if arm is target else 'reference'}",
        int(steps["step"][0]) if arm is target else 0, lived[0].height, lived[1].height,
        citations=arm.cite(int(steps["step"][0])),
        steps=tuple(lived[0]["step"].to_list()),
    )  # fmt: skip
