"""KV was evicted, offloaded or recomputed in the launches of one arm and not of the other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forensics.contrast import contrast
from forensics.findings import Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from forensics.contrast import Facts
    from forensics.incident import Incident

RUNG = Rung.MEMORY
SEEN = "real engine"


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare `paging_on` of the worst rank step by step; a step that one arm alone made counts if it says so.

    Whose KV it was, the flag does not tell. Steps in which this request computed its own again say no more than
    `preemption_recompute` does, and are left out.
    Competitors of it as a cause of what the scheduler did: `memory_pressure` (which also brings it about), another
    configuration.
    """
    observed = [arm.observes("batch", "paging_on") for arm in incident.arms()]
    own = {key for steps in incident.lived() for key in _computed_again(steps)}
    found = contrast(incident, lambda row: _paging(row, own, all(observed)), absent={"paging": False})
    if not found.compared:
        yield Gap("paging", "batch.paging_on", "whether KV was evicted, offloaded or recomputed in one of the runs")
        return
    if not found.places:
        return
    ours, theirs = (
        sum(bool(_paging(row, own, observed=True)["paging"]) for row in steps.iter_rows(named=True))
        for steps in incident.lived()
    )
    yield Finding(
        "paging", RUNG,
        f"KV was evicted, offloaded or recomputed in {ours} launches up to the flip, in the reference in {theirs}",
        found.onset, ours, theirs, steps=found.steps, citations=found.cite(incident),
    )  # fmt: skip


Key = tuple[str, str, str, int]


def _key(row: dict[str, Any]) -> Key:
    return row["run_id"], row["replica_id"], row["req_id"], row["step"]


def _computed_again(steps: pl.DataFrame) -> Iterator[Key]:
    """Yield the steps that began before what the request had already computed."""
    reached = 0
    for row in steps.iter_rows(named=True):
        computed, scheduled = row["num_computed_tokens"], row["num_scheduled_tokens"]
        if computed is not None and computed < reached:
            yield _key(row)
        reached = max(reached, (computed or 0) + (scheduled or 0))


def _paging(row: dict[str, Any], own: set[Key], observed: bool) -> Facts:
    paging = row["regime_paging_on"] and _key(row) not in own
    if paging is None:
        return {"paging": False} if observed else {}
    return {"paging": paging}
