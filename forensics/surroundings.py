"""What the rest of its run says about one request: who else arrived, what ran before, kernels, changed limits.

Gathered for the two arms of an incident only, since a cohort may have a hundred runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import polars as pl

from forensics.launches import launches

if TYPE_CHECKING:
    from forensics.evidence import Evidence
    from forensics.store import Store

LEADING = 400
"""Engine steps before the request's first that show what it came into. A choice."""
BASELINE = 1000
"""Engine steps before the request's first that stand for what is usual in its run. A choice."""
MOST_COLLECTIVES = 200_000
"""Records of collectives that are looked at; of more than these the last whole steps."""


@dataclass(frozen=True)
class Surroundings:
    """One frame a question; each is empty where nothing is on record.

    arrivals: (req_id, arrival_ts [s], arrival_step) of every request of the run. launches: one row an engine step, from
    LEADING before the request's first to its last (`launches.py`). before: the batch records of every rank in BASELINE
    engine steps before its first. kernels: the kernel records of its launches. limit_changes: events of the run that
    changed a limit or a setting. collectives: of every rank, from LEADING engine steps before its first to its last,
    with the rank's batch_tokens.
    """

    arrivals: pl.DataFrame = field(default_factory=pl.DataFrame)
    launches: pl.DataFrame = field(default_factory=pl.DataFrame)
    before: pl.DataFrame = field(default_factory=pl.DataFrame)
    kernels: pl.DataFrame = field(default_factory=pl.DataFrame)
    limit_changes: pl.DataFrame = field(default_factory=pl.DataFrame)
    collectives: pl.DataFrame = field(default_factory=pl.DataFrame)


def with_surroundings(store: Store, evidence: Evidence) -> Evidence:
    """Return the evidence with what the rest of its run has to say."""
    run_id, replica_id, _ = evidence.identity
    where = {"run_id": run_id, "replica_id": replica_id}
    numbers = evidence.steps["engine_step"].drop_nulls().to_list()
    first, last = min(numbers, default=0), max(numbers, default=-1)
    around = Surroundings(
        arrivals=store.ask("arrivals", **where),
        launches=launches(store, (evidence.engine or {}) | where, evidence.limits, first - LEADING, last),
        before=store.ask("batches", **where, first=first - BASELINE, last=first - 1),
        kernels=store.ask("kernels", **where, first=first, last=last),
        limit_changes=store.ask("limit_changes", **where),
        collectives=store.ask("collectives", **where, first=first - LEADING, last=last, most=MOST_COLLECTIVES),
    )
    return replace(evidence, around=around)
