"""What the runtime was in, step by step: the article's two regime functions, and spans of equal state.

Works on frames that are already selected; never opens a store. Onsets and lengths are in steps of the
request or of the run, whichever the frame is ordered by.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

QUEUE_WINDOW_S = 10.0


@dataclass(frozen=True)
class Thresholds:
    """Borders of the regimes; the defaults are the article's."""

    free_mb: float = 1024.0
    queue_p95_ms: float = 50.0
    evaporation_ratio: float = 0.05


@dataclass(frozen=True)
class Span:
    """A maximal run of steps in one state: `first` and `last` are positions, both included."""

    state: str
    first: int
    last: int

    @property
    def steps(self) -> int:
        """Return how many steps the span covers."""
        return self.last - self.first + 1


def regime(
    vram_free_mb: float | None,
    paging_on: bool | None,
    isolation_strict: bool | None,
    queue_p95_ms: float | None,
    limits: Thresholds = Thresholds(),
) -> str:
    """Return the regime of one step, as the article defines it; 'unknown' only if a missing input could change it."""
    return _first_known(
        (
            ("isolation_strict", isolation_strict),
            ("paging", paging_on),
            ("memory_pressured", None if vram_free_mb is None else vram_free_mb < limits.free_mb),
            ("queue_degraded", None if queue_p95_ms is None else queue_p95_ms > limits.queue_p95_ms),
        )
    )


def regime_extended(
    vram_free_mb: float | None,
    paging_on: bool | None,
    isolation_strict: bool | None,
    queue_p95_ms: float | None,
    isr_pinned_mb: float | None,
    ckpt_pinned_mb: float | None,
    kv_pool_total_mb: float | None,
    limits: Thresholds = Thresholds(),
) -> str:
    """Return the regime with memory pinned for replication and checkpoints counted out (the article's second)."""
    known = None not in (vram_free_mb, isr_pinned_mb, ckpt_pinned_mb)
    effective = vram_free_mb - isr_pinned_mb - ckpt_pinned_mb if known else None  # type: ignore[operator]
    if kv_pool_total_mb == 0:
        ratio: float | None = 1.0
    else:
        ratio = None if effective is None or kv_pool_total_mb is None else effective / kv_pool_total_mb
    return _first_known(
        (
            ("isolation_strict", isolation_strict),
            ("memory_evaporation", None if ratio is None else ratio < limits.evaporation_ratio),
            ("paging", paging_on),
            ("memory_pressured", None if effective is None else effective < limits.free_mb),
            ("queue_degraded", None if queue_p95_ms is None else queue_p95_ms > limits.queue_p95_ms),
        )
    )


def _first_known(tests: Sequence[tuple[str, bool | None]]) -> str:
    """Return the first state whose test holds. A test that cannot be made hides all that come after it."""
    for state, holds in tests:
        if holds is None:
            return "unknown"
        if holds:
            return state
    return "normal"


def queue_p95(batches: pl.DataFrame, first_scheduled: pl.DataFrame) -> list[float | None]:
    """Return, per batch row, p95 of queue_ms over requests first scheduled in the 10 s before it (itself included).

    first_scheduled: ts [s], queue_ms; one row a request. 0 where nobody was scheduled in the window; None where the
    run has no queue record at all.
    """
    known = first_scheduled.drop_nulls(["ts", "queue_ms"])
    times, waits = known["ts"].to_list(), known["queue_ms"].to_list()
    if not times:
        return [None] * batches.height
    p95: list[float | None] = []
    for now in batches["ts"].to_list():
        if now is None:
            p95.append(None)
            continue
        recent = [wait for at, wait in zip(times, waits, strict=True) if now - QUEUE_WINDOW_S <= at <= now]
        p95.append(pl.Series(recent).quantile(0.95, "nearest") if recent else 0.0)
    return p95


def batch_regimes(
    batches: pl.DataFrame, first_scheduled: pl.DataFrame, isolation: bool | None, limits: Thresholds
) -> pl.DataFrame:
    """Return (engine_step, rank, regime, regime_extended), one row a batch record.

    Memory is `vram_free_mb`, or `headroom_mb` for engines that preallocate, whichever is smaller.
    isolation: what the engine record says of strict isolation, for batches that say nothing.
    """
    waits = queue_p95(batches, first_scheduled)
    rows = []
    for row, wait in zip(batches.iter_rows(named=True), waits, strict=True):
        mode = row["isolation_mode"]
        strict = isolation if mode is None else mode == "strict"
        memory = [value for value in (row["vram_free_mb"], row["headroom_mb"]) if value is not None]
        inputs = (min(memory) if memory else None, row["paging_on"], strict, wait)
        pins = (row["isr_pinned_mb"], row["ckpt_pinned_mb"], row["kv_pool_total_mb"])
        rows.append(
            {
                "engine_step": row["engine_step"],
                "rank": row["rank"],
                "regime": regime(*inputs, limits),
                "regime_extended": regime_extended(*inputs, *pins, limits),
            }
        )
    schema = {"engine_step": pl.Int64, "rank": pl.Int64, "regime": pl.String, "regime_extended": pl.String}
    return pl.DataFrame(rows, schema=schema)


SEVERITY = (
    "isolation_strict", "memory_evaporation", "paging", "memory_pressured", "queue_degraded", "unknown", "normal",
)  # fmt: skip


def worst_rank(regimes: pl.DataFrame) -> pl.DataFrame:
    """Return one row an engine step: the regime of the worst rank, and which rank that was."""
    order = {state: place for place, state in enumerate(SEVERITY)}
    return (
        regimes.with_columns(pl.col("regime").replace_strict(order, return_dtype=pl.Int64).alias("severity"))
        .sort("engine_step", "severity", "rank")
        .group_by("engine_step", maintain_order=True)
        .first()
        .drop("severity")
    )


def spans(states: Iterable[Any]) -> list[Span]:
    """Return the maximal runs of equal states, positions counted from 0."""
    found: list[Span] = []
    for state, members in groupby(states):
        first = found[-1].last + 1 if found else 0
        found.append(Span("unknown" if state is None else str(state), first, first + sum(1 for _ in members) - 1))
    return found


def shape_class(row: dict[str, Any]) -> str:
    """Return (launch tokens, request rows, padded size, graph key) as text; '?' for what is not on record.

    Two classes may still run the same kernels: only a measured map may merge them.
    """
    parts = (row.get("batch_tokens"), row.get("batch_size"), row.get("padded_tokens"), row.get("graph_mode"))
    tokens, size, padded, graph = ("?" if part is None else part for part in parts)
    return f"tokens={tokens} rows={size} padded={padded} graph={graph}"
