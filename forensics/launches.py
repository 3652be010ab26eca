"""One row an engine step: what a run, or a part of it, did launch by launch. Selected and joined, nothing judged.

The regime is that of the worst rank, step time the slowest rank's; size, tokens and padding are those of the lowest.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import polars as pl

from forensics.regimes import group_regimes, rank_regimes
from forensics.timeline import shape_class

if TYPE_CHECKING:
    from forensics.store import Store
    from forensics.timeline import Thresholds

END = 2**62
WORST = (pl.max("step_ms", "queue_depth", "num_preempted"), pl.col("paging_on").any().alias("paging_on"))


def launches(store: Store, engine: dict[str, Any], limits: Thresholds, first: int = 0, last: int = END) -> pl.DataFrame:
    """Return the launches from engine step `first` to `last` of the run that an engine record begins.

    engine: run_id and replica_id; what else the engine record states, if there is one. Beside the columns of
    sql/launches.sql: `shape`, and the columns of `group_regimes`.
    """
    where = {"run_id": engine["run_id"], "replica_id": engine["replica_id"]}
    ranks = store.ask("launches", **where, first=first, last=last)
    facts = json.loads(engine.get("isolation") or "{}")
    shared = facts.get("cross_tenant_batching", facts.get("shared_batching"))
    regimes = rank_regimes(ranks, store.ask("first_scheduled", **where), None if shared is None else not shared, limits)
    lowest = ranks.unique("engine_step", keep="first", maintain_order=True)
    slowest = ranks.group_by("engine_step", maintain_order=True).agg(WORST)
    kept = lowest.drop("step_ms", "queue_depth", "num_preempted", "paging_on").join(
        slowest, on="engine_step", maintain_order="left"
    )
    shapes = [shape_class(row) for row in kept.iter_rows(named=True)]
    return kept.with_columns(pl.Series("shape", shapes, dtype=pl.String)).join(
        group_regimes(regimes), on="engine_step", maintain_order="left"
    )
