"""The same launch took longer with the KV cache in other physical blocks."""

from __future__ import annotations

from statistics import fmean, median
from typing import TYPE_CHECKING, Any

import polars as pl

from forensics.findings import Citation, Finding, Gap, Rung
from forensics.kv_traffic import kv_bytes, kv_tokens, transfer_ms
from forensics.timeline import shape_class

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.contrast import Facts
    from forensics.evidence import Evidence
    from forensics.incident import Incident

RUNG = Rung.DEVICE
SEEN = "simulated only"
TIMES, DEVIATIONS, FEWEST = 1.10, 6.0, 5
"""Slower than usual: so many times the median and so many robust deviations above it, of at least so many launches."""
ALIKE = 0.10
"""Largest relative difference in KV tokens of two launches that do the same work. All four are choices."""
COUNTERS = ("stall_long_scoreboard", "l2_hit_rate")


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Compare steps of one shape class and as many KV tokens: is the target's slower where `block_map_sha256` differs?

    Slower is beyond what launches of that shape take in the reference and, before the requests, in both runs: TIMES the
    median, and DEVIATIONS robust deviations (1.4826 times the median absolute deviation) above it, in at least half of
    the steps with another map. Time is `gpu_ms`, else `step_ms`. Kernel counters come from a re-run, grade
    *reproduced*: more stalls on long scoreboard while the L2 hit rate falls speak for it, anything else rules it out.

    By itself it changes when things happen and no result. Competitors as a cause of the time: address translation (page
    walks stall the same loads; no counter of the contract tells the two apart), clocks, a busy host.
    """
    target, reference = incident.arms()
    usual = _usual(incident)
    alike = [(one, other) for _, one, other in incident.paired() if one and other and _same_work(incident, one, other)]
    alike = [pair for pair in alike if len(usual.get(shape_class(pair[0]), ())) >= FEWEST]
    if not alike:
        yield Gap(
            "kv_residency_divergence",
            "batch.block_map_sha256 with batch.gpu_ms or batch.step_ms",
            "whether the place of KV blocks cost time",
        )  # fmt: skip
        return
    moved = [(one, other) for one, other in alike if one["block_map_sha256"] != other["block_map_sha256"]]
    slow = [(one, other) for one, other in moved if _slow(_ms(one), usual[shape_class(one)])]
    if not slow or 2 * len(slow) < len(moved):
        return
    counted = _counters(target, [one for one, _ in slow]), _counters(reference, [other for _, other in slow])
    if counted[0] and counted[1] and not (counted[0][0] > counted[1][0] and counted[0][1] < counted[1][1]):
        return
    one, other = slow[0]
    yield Finding(
        "kv_residency_divergence", RUNG,
        f"in {len(slow)} of {len(moved)} steps with the same launch shape and another block map the launch took longer "
        f"than its run's spread allows: first {_ms(one):.4g} ms, the reference {_ms(other):.4g} ms (median "
        f"{median(usual[shape_class(one)]):.4g} ms){_traffic(target, one)}{_says(counted)}",
        one["step"], _ms(one), _ms(other), how="reproduced" if None not in counted else "inferred",
        steps=tuple(row["step"] for row, _ in slow),
        citations=_cite(target, one) + _cite(reference, other),
    )  # fmt: skip


def _ms(row: Facts) -> Any:
    return row["step_ms"] if row["gpu_ms"] is None else row["gpu_ms"]


def _usual(incident: Incident) -> dict[str, list[float]]:
    """Return the times of the launches that a step is held against, by shape class."""
    target, reference = incident.arms()
    times: dict[str, list[float]] = {}
    for rows in (incident.lived()[1], reference.around.before, target.around.before):
        for row in rows.iter_rows(named=True):
            ms = _ms(row)
            if ms is not None:
                times.setdefault(shape_class(row), []).append(ms)
    return times


def _same_work(incident: Incident, one: Facts, other: Facts) -> bool:
    if shape_class(one) != shape_class(other) or None in (_ms(one), _ms(other)):
        return False
    if None in (one["block_map_sha256"], other["block_map_sha256"]):
        return False
    tokens = [kv_tokens(arm, row["engine_step"]) for arm, row in zip(incident.arms(), (one, other), strict=True)]
    return None not in tokens and abs(tokens[0] - tokens[1]) <= ALIKE * max(tokens)  # type: ignore[operator, type-var]


def _slow(ms: float | None, usual: list[float]) -> bool:
    middle = median(usual)
    spread = 1.4826 * median(abs(time - middle) for time in usual)
    return ms is not None and ms > TIMES * middle and ms - middle >= DEVIATIONS * spread


def _of(arm: Evidence, row: Facts) -> pl.DataFrame:
    """Return the kernel records of a launch that carry both counters."""
    if arm.around.kernels.is_empty():
        return arm.around.kernels
    return arm.around.kernels.filter(pl.col("engine_step") == row["engine_step"]).drop_nulls(COUNTERS)


def _counters(arm: Evidence, rows: list[Facts]) -> tuple[float, float] | None:
    """Return (stalls on long scoreboard, L2 hit rate), means over the kernels of these launches, None without any."""
    kernels = [kernel for row in rows for kernel in _of(arm, row).iter_rows(named=True)]
    return (fmean(one[COUNTERS[0]] for one in kernels), fmean(one[COUNTERS[1]] for one in kernels)) if kernels else None


def _says(counted: tuple[tuple[float, float] | None, tuple[float, float] | None]) -> str:
    ours, theirs = counted
    if ours is None or theirs is None:
        return "; no counters of a re-run are on record, so address translation, clocks and a busy host are as likely"
    return (
        f"; in a re-run {ours[0]:.0%} of stalls are on long scoreboard, {theirs[0]:.0%} in the reference, at an L2 hit "
        f"rate of {ours[1]:.0%} against {theirs[1]:.0%}; address translation would look the same"
    )


def _traffic(arm: Evidence, row: Facts) -> str:
    """Return in words how much KV the launch reads, and how long that takes at the device's bandwidth."""
    engine, tokens = arm.engine or {}, kv_tokens(arm, row["engine_step"])
    size = None if tokens is None else kv_bytes(engine, tokens)
    if size is None:
        return ""
    ms = transfer_ms(engine, size)
    at = "" if ms is None else f", {ms:.3g} ms at {engine['memory_bandwidth_gb_s']:g} GB/s"
    return f"; it reads about {size / 2**20:.3g} MiB of KV{at}"


def _cite(arm: Evidence, row: Facts) -> tuple[Citation, ...]:
    kernels = _of(arm, row)
    counted = kernels.select("source_path", "line").iter_rows() if len(kernels) else ()
    return arm.cite(row["step"]) + tuple(Citation(path, line) for path, line in counted)
