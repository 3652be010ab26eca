"""Part of the prompt came from the prefix cache in one run and was computed in the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.findings import Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.evidence import Evidence
    from forensics.incident import Incident

RUNG = Rung.SCHEDULER
SEEN = "real engine"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare how much of the prompt existed before the first step of each arm."""
    target, reference = incident.arms()
    cached = [_cached(arm) for arm in (target, reference)]
    if None in cached:
        yield Gap("prefix_cache_hit", "step.num_computed_tokens", "how much of the prompt came from the prefix cache")
    elif cached[0] != cached[1]:
        yield Finding(
            "prefix_cache_hit", RUNG,
            f"{cached[0]} prompt tokens came from the prefix cache, {cached[1]} in the reference",
            0, cached[0], cached[1], steps=(0,), citations=target.cite(0) + reference.cite(0),
        )  # fmt: skip


def _cached(arm: Evidence) -> int | None:
    """Return how much came from the cache; None where the step that began the prompt is not on record."""
    if arm.request["prefix_cache_used"] is False:
        return 0
    if arm.steps.is_empty() or arm.steps["step"][0] != 0:
        return None
    first = arm.steps.row(0, named=True)
    cached: int | None = first["num_cached_tokens"]
    return first["num_computed_tokens"] if cached is None else cached
