"""What the collectives of a run come to: compute, transfer and waiting of each engine step, and what a link can do.

    t_step = t_compute + t_transfer + t_sync          t_transfer = alpha + n / beta
All ranks of a communicator leave a collective together, so a step takes, summed over its collectives, the longest
compute and the transfer: t_compute is the median rank's share of it, t_sync what the latest rank adds. The last to
arrive waits for nobody: its own duration, the shortest of the group, is the transfer, and what others have beyond it
is waiting (trace_forensics 4.1, after ByteDance's StragglerAnalysis; alpha-beta: Hockney 1994). Durations
are taken on one rank's clock, so no clock is compared with another; start times of ranks are not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from statistics import median
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from collections.abc import Iterable

FEWEST_SIZES = 3
"""Message sizes that a line through them needs; fewer, or the largest below TIMES the smallest, fit anything."""
TIMES = 2.0
CALL = ("comm_id", "seq_no")
BUS = {"all_reduce": 2.0, "all_gather": 1.0, "reduce_scatter": 1.0, "all_to_all": 1.0}
"""Operation → how often each byte of the message crosses a link, times (n - 1) / n (NCCL tests, 'bus bandwidth')."""


@dataclass(frozen=True)
class Fit:
    """alpha_ms: what a message of no bytes would take. bytes_per_s: None where more bytes take no longer."""

    op: str
    alpha_ms: float
    bytes_per_s: float | None
    sizes: int


def measured(collectives: pl.DataFrame) -> pl.DataFrame:
    """Return the records that can be joined over ranks, once each, with comm_ms and compute_ms [ms] as far as known.

    What is not stated is derived on the rank's own clock: the duration from its start and end, the compute from the end
    of its collective before, within one step. The first collective of a step has none before it.
    """
    before = pl.col("end_ts").shift(1).over("engine_step", "rank", order_by="start_ts")
    gap = (pl.col("start_ts") - before) * 1000
    return (
        collectives.drop_nulls(["engine_step", "seq_no", "rank"])
        .with_columns(pl.col("comm_id").fill_null(""))
        .unique([*CALL, "rank"], keep="first", maintain_order=True)
        .with_columns(
            pl.coalesce("comm_ms", (pl.col("end_ts") - pl.col("start_ts")) * 1000).alias("comm_ms"),
            pl.coalesce("compute_ms", pl.when(gap >= 0).then(gap)).alias("compute_ms"),
        )
        .with_columns(pl.col("engine_step").min().over(CALL))
    )


def with_peers(records: pl.DataFrame) -> pl.DataFrame:
    """Add `peers` (other ranks of the call), and the medians of their compute_ms, bytes and batch_tokens: peers_…."""
    return records.with_columns(
        (pl.len().over(CALL) - 1).alias("peers"),
        *(_of_peers(name).alias(f"peers_{name}") for name in ("compute_ms", "bytes", "batch_tokens")),
    )


def _of_peers(name: str) -> pl.Expr:
    """Return the median of a column over the other ranks of the same call; null where this or any of them is null.

    Of the sorted values without the k-th, the one at place p is at p before k, else at p + 1.
    """
    ordered = pl.col(name).sort().implode().over(CALL)
    own = pl.col(name).rank("ordinal").over(CALL).cast(pl.Int64) - 1
    others = pl.len().over(CALL).cast(pl.Int64) - 1
    places = [(others - 1) // 2, others // 2]
    picked = [ordered.list.get(place + (place >= own).cast(pl.Int64), null_on_oob=True) for place in places]
    known = (pl.col(name).null_count().over(CALL) == 0) & (others > 0)
    return pl.when(known).then((picked[0] + picked[1]) / 2)


def calls(records: pl.DataFrame) -> pl.DataFrame:
    """Return one row a collective: its step, op, bytes, ranks, transfer_ms, skew_ms, and the longest and usual compute.

    transfer_ms and skew_ms are null where a rank of the communicator has no record of the call: it may have been last.
    """
    members = pl.col("rank").n_unique().over("comm_id").alias("members")
    whole = pl.col("comm_ms").len() == pl.col("members").first()
    shortest = pl.when(whole & (pl.col("comm_ms").null_count() == 0)).then(pl.col("comm_ms").min())
    return (
        records.with_columns(members)
        .group_by(CALL, maintain_order=True)
        .agg(
            pl.col("engine_step").first(), pl.col("op").first(), pl.col("bytes").max(), pl.col("members").first(),
            shortest.alias("transfer_ms"), (pl.col("comm_ms").max() - shortest).alias("skew_ms"),
            pl.col("compute_ms").max().alias("longest_ms"), pl.col("compute_ms").median().alias("usual_ms"),
            pl.col("retransmits").sum(), pl.col("retransmits").count().alias("counted"),
        )
    )  # fmt: skip


def step_times(one_comm: pl.DataFrame) -> pl.DataFrame:
    """Return compute_ms, transfer_ms and sync_ms of each engine step, from the calls of one communicator."""
    return (
        one_comm.group_by("engine_step")
        .agg(
            pl.col("usual_ms").sum().alias("compute_ms"), pl.col("transfer_ms").sum(),
            (pl.col("longest_ms") - pl.col("usual_ms")).sum().alias("sync_ms"),
        )
        .sort("engine_step")
    )  # fmt: skip


def fits(some_calls: pl.DataFrame) -> tuple[Fit, ...]:
    """Return alpha and beta of each operation; one whose message sizes are too few or too alike has none.

    A line through the median transfer of each size: the median of the slopes between any two (Theil 1950, Sen 1968).
    """
    found = []
    known = some_calls.drop_nulls(["transfer_ms", "bytes"]).filter(pl.col("bytes") > 0)
    for (op,), group in known.group_by("op", maintain_order=True):
        sizes = group.group_by("bytes").agg(pl.col("transfer_ms").median()).sort("bytes")
        line = theil_sen(sizes.iter_rows())
        if line is not None:
            slope = line[1] if line[1] > 0 else None  # ms a byte
            found.append(Fit(str(op), line[0], None if slope is None else 1000 / slope, sizes.height))
    return tuple(sorted(found, key=lambda fit: fit.op))


def theil_sen(points: Iterable[tuple[float, float]]) -> tuple[float, float] | None:
    """Return (intercept, slope) of the median line; None where x has too few values, or none TIMES another."""
    known = sorted(points)
    places = sorted({x for x, _ in known})
    if len(places) < FEWEST_SIZES or places[-1] < TIMES * places[0]:
        return None
    slope = median((v - y) / (u - x) for (x, y), (u, v) in combinations(known, 2) if u != x)
    return median(y - slope * x for x, y in known), slope


def bandwidth(some_calls: pl.DataFrame) -> dict[str, float]:
    """Return, by operation, the median bus bandwidth in GB/s: what a link carried, whatever the number of ranks."""
    found = {}
    for (op,), group in some_calls.filter(pl.col("transfer_ms") > 0).group_by("op", maintain_order=True):
        if op in BUS:
            share = (pl.col("members") - 1) / pl.col("members") * BUS[str(op)]
            rates = group.select(pl.col("bytes") * share / pl.col("transfer_ms") / 1e6).to_series().drop_nulls()
            if len(rates):
                found[str(op)] = median(rates)
    return found


def quantiles(values: pl.Series) -> dict[str, float]:
    """Return p50, p95 and p99 of what is known; {} for nothing."""
    known = values.drop_nulls()
    return {f"p{q}": float(known.quantile(q / 100, "nearest") or 0.0) for q in (50, 95, 99)} if len(known) else {}
