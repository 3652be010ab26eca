"""A slow wire: transfers against what the same message took before, step by step, and the fabric's regime.

A transfer is the shortest duration of a call over its ranks (`fabric.calls`), so nobody's lateness is in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from forensics import timeline
from forensics.segments import FEWEST, autocorrelation, by_chance, deviations, logarithm, raised, spread
from forensics.timeline import Span

if TYPE_CHECKING:
    from collections.abc import Sequence

MESSAGE = ("op", "bytes", "members")
"""What makes two calls alike."""
CONGESTED = 1.5
"""Times its baseline that a transfer takes on a congested fabric."""
DEGRADED = 3.0
"""And on a degraded one, where there may also be fewer times and retransmissions that the calm steps have not. Both
borders are choices: 1.5 is that of trace_forensics 4.1."""
NOTICED = 0.1
"""Share of a step that a slow wire must cost to account for what follows from a longer step. A choice."""
CERTAIN = 6.0
"""Robust standard deviations of the calm steps that the rise must be above 1."""


@dataclass(frozen=True)
class Slow:
    """Engine steps from `first` to `last` in which transfers took `times` their baseline, both included.

    removal: share by which these steps would be shorter at the baseline; addition: by which the calm ones would be
    longer if they were as slow.
    retransmits: in these steps, and in the others; None where nobody counted. regime: 'congested' or 'degraded'.
    """

    first: int
    last: int
    times: float
    z: float
    removal: float
    addition: float
    retransmits: tuple[int, int] | None

    @property
    def regime(self) -> str:
        """Return the regime of the fabric in these steps."""
        resent = self.retransmits is not None and self.retransmits[0] > 0 == self.retransmits[1]
        return "degraded" if self.times >= DEGRADED or resent else "congested"

    @property
    def explains(self) -> bool:
        """Return whether the wire made a step noticeably longer, both ways."""
        return min(self.removal, self.addition) >= NOTICED


def medians(some_calls: pl.DataFrame) -> pl.DataFrame:
    """Return base_ms of each message: the median transfer, over all steps on record."""
    return some_calls.group_by(MESSAGE).agg(pl.col("transfer_ms").median().alias("base_ms"))


def inflation(some_calls: pl.DataFrame, base: pl.DataFrame) -> pl.DataFrame:
    """Return (engine_step, times): the median over a step's calls of the transfer in its baseline."""
    times = (pl.col("transfer_ms") / pl.col("base_ms")).median().alias("times")
    joined = some_calls.join(base, on=MESSAGE, nulls_equal=True).filter(pl.col("base_ms") > 0)
    return joined.group_by("engine_step").agg(times).drop_nulls().sort("engine_step")


def baseline(some_calls: pl.DataFrame, elsewhere: pl.DataFrame) -> pl.DataFrame:
    """Return base_ms of each message: what another run took for it, times how much slower this one is throughout.

    A message that the other has not counts by its own median: one that was sent only while the wire was slow, as a
    batch that was cut sends, would be its own excuse. elsewhere: the medians of the other arm.
    """
    factor = against(some_calls, elsewhere) or 1.0
    told = (pl.col("base_ms_right") * factor, pl.col("base_ms"))
    joined = medians(some_calls).join(elsewhere, on=MESSAGE, how="left", nulls_equal=True)
    return joined.select(*MESSAGE, pl.coalesce(*told).alias("base_ms"))


def slow(some_calls: pl.DataFrame, elsewhere: pl.DataFrame) -> list[Slow]:
    """Return the segments of transfers that are slow for this run, in order; it must have calm steps beside them."""
    by_step = inflation(some_calls, baseline(some_calls, elsewhere))
    steps, values = by_step["engine_step"].to_list(), by_step["times"].to_list()
    segments = raised(values, CONGESTED)
    inside = {at for one in segments for at in range(one.first, one.last + 1)}
    calm = [logarithm(value) for at, value in enumerate(values) if at not in inside]
    if len(calm) < FEWEST:
        return []
    found = []
    for first, last, middle in segments:
        error = by_chance(spread(calm), last - first + 1, autocorrelation(calm))
        part = pl.col("engine_step").is_between(steps[first], steps[last])
        removal = _share(some_calls.filter(part)) * (1 - 1 / middle)
        addition = _share(some_calls.filter(~part)) * (middle - 1)
        z = deviations(logarithm(middle), error)
        found.append(Slow(steps[first], steps[last], middle, z, removal, addition, _resent(some_calls, part)))
    return found


def spans(steps: Sequence[int], found: Sequence[Slow]) -> tuple[Span, ...]:
    """Return the fabric's regime over the engine steps on record, as spans of equal state."""
    told = {step: one.regime for one in found for step in steps if one.first <= step <= one.last}
    places = timeline.spans(told.get(step, "normal") for step in steps)
    return tuple(Span(one.state, steps[one.first], steps[one.last]) for one in places)


def _share(some_calls: pl.DataFrame) -> float:
    """Return the transfers' share of the steps' time."""
    transfer = float(some_calls["transfer_ms"].sum())
    whole = transfer + float(some_calls["longest_ms"].sum())
    return transfer / whole if whole > 0 else 0.0


def against(some_calls: pl.DataFrame, elsewhere: pl.DataFrame) -> float | None:
    """Return how many times another run's transfers this one's are, message by message; None: no message in common."""
    times = inflation(some_calls, elsewhere)["times"].median()
    return times if isinstance(times, float) else None


def _resent(some_calls: pl.DataFrame, part: pl.Expr) -> tuple[int, int] | None:
    if not some_calls["counted"].sum():
        return None
    return int(some_calls.filter(part)["retransmits"].sum()), int(some_calls.filter(~part)["retransmits"].sum())
