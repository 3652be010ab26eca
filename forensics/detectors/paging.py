"""KV was evicted, offloaded or recomputed in the launches of one arm and not of the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.contrast import contrast
from forensics.findings import Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.contrast import Facts
    from forensics.incident import Incident

RUNG = Rung.MEMORY
SEEN = "simulated only"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare `paging_on` of the worst rank step by step; a step that one arm alone made counts if it says so.

    Whose KV it was, the flag does not tell: `preemption_recompute` says whether it was the request's own.
    Competitors of it as a cause of what the scheduler did: `memory_pressure` (which also brings it about), another
    configuration.
    """
    observed = [arm.observes("batch", "paging_on") for arm in incident.arms()]
    found = contrast(incident, lambda row: _paging(row, all(observed)), absent={"paging": False})
    if not found.compared:
        yield Gap("paging", "batch.paging_on", "whether KV was evicted, offloaded or recomputed in one of the runs")
        return
    if not found.places:
        return
    ours, theirs = (steps["regime_paging_on"].fill_null(value=False).sum() for steps in incident.lived())
    yield Finding(
        "paging", RUNG,
        f"KV was evicted, offloaded or recomputed in {ours} launches up to the flip, in the reference in {theirs}",
        found.onset, ours, theirs, steps=found.steps, citations=found.cite(incident),
    )  # fmt: skip


def _paging(row: dict[str, Any], observed: bool) -> Facts:
    paging = row["regime_paging_on"]
    if paging is None:
        return {"paging": False} if observed else {}
    return {"paging": paging}
