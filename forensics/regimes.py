"""The regimes of recorded steps: per rank, and of the group, whose regime is that of its worst rank.

The functions themselves are in `timeline.py`. Works on frames that are already selected; never opens a store.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, Any

import polars as pl

from forensics.timeline import at_worst, extended_tests, regime_tests, settled

if TYPE_CHECKING:
    from forensics.timeline import Thresholds

QUEUE_WINDOW_S = 10.0
SEVERITY = ("isolation_strict", "memory_evaporation", "paging", "memory_pressured", "queue_degraded", "normal")
"""Worst first: the order in which the article's functions test."""
SCHEMA = {
    "engine_step": pl.Int64, "rank": pl.Int64, "free_mb": pl.Float64, "paging_on": pl.Boolean,
    "isolation_strict": pl.Boolean, "queue_p95_ms": pl.Float64, "kv_recorded": pl.String,
    "regime": pl.String, "regime_at_worst": pl.String,
    "regime_extended": pl.String, "regime_extended_at_worst": pl.String,
}  # fmt: skip


def queue_p95(batches: pl.DataFrame, first_scheduled: pl.DataFrame) -> list[float | None]:
    """Return, per batch row, p95 of queue_ms over requests first scheduled in the 10 s before it (itself included).

    first_scheduled: ts [s], queue_ms; one row a request. 0 where nobody was scheduled in the window; None where the
    run has no queue record at all.
    """
    known = first_scheduled.drop_nulls(["ts", "queue_ms"]).sort("ts")
    times, waits = known["ts"].to_list(), known["queue_ms"]
    if not times:
        return [None] * batches.height
    p95: list[float | None] = []
    for now in batches["ts"].to_list():
        if now is None:
            p95.append(None)
            continue
        first, end = bisect_left(times, now - QUEUE_WINDOW_S), bisect_right(times, now)
        p95.append(waits[first:end].quantile(0.95, "nearest") if end > first else 0.0)
    return p95


def rank_regimes(
    batches: pl.DataFrame, first_scheduled: pl.DataFrame, isolation: bool | None, limits: Thresholds
) -> pl.DataFrame:
    """Return inputs and regimes (SCHEMA), one row a batch record.

    Memory is `vram_free_mb`, or `headroom_mb` for engines that preallocate, whichever is smaller.
    isolation: what the engine record says of strict isolation, for batches that say nothing.
    …_at_worst: the worst regime that the inputs on record allow.
    """
    waits = queue_p95(batches, first_scheduled)
    rows = [_row(row, wait, isolation, limits) for row, wait in zip(batches.iter_rows(named=True), waits, strict=True)]
    return pl.DataFrame(rows, schema=SCHEMA)


def _row(row: dict[str, Any], wait: float | None, isolation: bool | None, limits: Thresholds) -> dict[str, Any]:
    mode = row["isolation_mode"]
    memory = [value for value in (row["vram_free_mb"], row["headroom_mb"]) if value is not None]
    inputs: dict[str, Any] = {
        "free_mb": min(memory, default=None),
        "paging_on": row["paging_on"],
        "isolation_strict": isolation if mode is None else mode == "strict",
        "queue_p95_ms": wait,
    }
    four = (inputs["free_mb"], inputs["paging_on"], inputs["isolation_strict"], inputs["queue_p95_ms"])
    pins = (row["isr_pinned_mb"], row["ckpt_pinned_mb"], row["kv_pool_total_mb"])
    plain, extended = regime_tests(*four, limits), extended_tests(*four, *pins, limits)
    return inputs | {
        "engine_step": row["engine_step"], "rank": row["rank"], "kv_recorded": row["kv_regime"],
        "regime": settled(plain), "regime_at_worst": at_worst(plain),
        "regime_extended": settled(extended), "regime_extended_at_worst": at_worst(extended),
    }  # fmt: skip


def worst_rank(regimes: pl.DataFrame, state: str = "regime") -> pl.DataFrame:
    """Return one row an engine step: that of the rank whose `state` is worst; of equals the lowest rank.

    A rank whose state is unknown counts as the worst it could be: the group is unknown only if that could be worse than
    every rank whose state is known.
    """
    order = {name: place for place, name in enumerate(SEVERITY)}
    return (
        regimes.with_columns(
            pl.col(f"{state}_at_worst").replace_strict(order, return_dtype=pl.Int64).alias("severity"),
            (pl.col(state) == "unknown").alias("unknown"),
        )
        .sort("engine_step", "severity", "unknown", "rank")
        .group_by("engine_step", maintain_order=True)
        .first()
        .drop("severity", "unknown")
    )


def group_regimes(ranks: pl.DataFrame) -> pl.DataFrame:
    """Return one row an engine step: `regime` and `regime_extended`, each with the rank that it is the regime of.

    regime_free_mb, …_paging_on, …_isolation_strict, …_queue_p95_ms, …_kv_recorded: the inputs of `regime` on its rank.
    """
    plain = worst_rank(ranks)
    inputs = [pl.col(name).alias(f"regime_{name}") for name in list(SCHEMA)[1:7]]
    extended = worst_rank(ranks, "regime_extended")
    return plain.select("engine_step", "regime", *inputs).join(
        extended.select("engine_step", "regime_extended", pl.col("rank").alias("regime_extended_rank")),
        on="engine_step", maintain_order="left",
    )  # fmt: skip
