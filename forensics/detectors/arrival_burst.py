"""Requests arrived more densely around the life of this one than in the rest of its run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import polars as pl

from forensics.burst import Window, around, came
from forensics.findings import ADMISSION, Finding, Gap, Rung

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.evidence import Evidence
    from forensics.incident import Incident

RUNG = Rung.WORKLOAD
SEEN = "real engine"
FEWEST = 5
TIMES = 2.0
CHANCE = 0.001
"""A burst has at least so many arrivals, at so many times the rate, and is at most so likely by chance: choices."""


def detect(incident: Incident) -> Iterator[Finding | Gap]:
    """Count the other requests that arrived from one lifetime before this one until its flip.

    Lifetime: arrival to flip; whoever came a lifetime earlier and is alike may still be running. A burst: at least
    FEWEST arrivals, TIMES the rate of the rest of its run and of the same window of the reference, and a chance of at
    most CHANCE that so many of the run's arrivals fall into the window at an even rate (the conditional binomial test
    of two Poisson counts, Przyborowski and Wilenski 1940; real arrivals are burstier than Poisson, so this is a floor
    and no false-alarm rate). A burst that shared no launch with this request is none of its business.
    Competitors of it as a cause of other neighbours: isolation, memory, another configuration. A queue lies between.
    """
    target, reference = incident.arms()
    ours, theirs = (around(arm, steps) for arm, steps in zip((target, reference), incident.lived(), strict=True))
    if ours is None or theirs is None:
        yield Gap("arrival_burst", "request.arrival_ts with step.ts on one clock", "whether requests came in a burst")
        return
    if ours.others < FEWEST or ours.rate < TIMES * theirs.rate:
        return
    rest = _rest(target, ours)
    if rest is None:
        yield Gap("arrival_burst", "arrivals of the run outside of this life", "whether requests came in a burst")
        return
    share = (ours.end - ours.start) / (ours.end - ours.start + rest.end - rest.start)
    chance = binomial_tail(ours.others, ours.others + rest.others, share)
    if ours.rate < TIMES * rest.rate or chance > CHANCE:
        return
    beside = target.members.filter(pl.col("req_id").is_in(came(target, ours.start, ours.end)))
    lived = incident.lived()[0]
    steps = lived.filter(pl.col("engine_step").is_in(beside["engine_step"].unique().to_list()))["step"].to_list()
    if not steps:
        return
    yield Finding(
        "arrival_burst", RUNG,
        f"{ours.others} other requests arrived in the {ours.end - ours.start:.3g} s around its life up to the flip, "
        f"{ours.rate:.3g} a second; {rest.rate:.3g} in the rest of the run, {theirs.rate:.3g} around the reference",
        ADMISSION if steps[0] == 0 else steps[0], ours.others, theirs.others, how="derived",
        steps=tuple(steps), citations=target.cite() + reference.cite(),
    )  # fmt: skip


def _rest(arm: Evidence, window: Window) -> Window | None:
    """Return the run's arrivals outside of the window as one window, None where the run is no longer than it."""
    first, last = arm.around.arrivals["arrival_ts"].min(), arm.around.arrivals["arrival_ts"].max()
    if not isinstance(first, int | float) or not isinstance(last, int | float):
        return None
    outside = (min(first, window.start), window.start), (window.end, max(last, window.end))
    length = sum(end - start for start, end in outside)
    count = arm.around.arrivals.filter(~pl.col("arrival_ts").is_between(window.start, window.end)).height
    return Window(0.0, length, count) if length > 0 else None


def binomial_tail(least: int, of: int, share: float) -> float:
    """Return the probability that at least `least` of `of` arrivals fall into a window of this share of the time."""
    if not 0 < share < 1:
        return float(least == 0 or share == 1)
    one, other = math.log(share), math.log1p(-share)
    logs = (math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1) + k * one + (of - k) * other
            for k in range(least, of + 1))  # fmt: skip
    return min(1.0, math.fsum(math.exp(one) for one in logs))
