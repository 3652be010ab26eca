"""Where a series is raised, and for how long: change points of values that are about 1 when nothing is wrong.

The segment is that of the largest cumulative sum of log x - log sqrt(level) (Page, Continuous inspection schemes,
Biometrika 41, 1954, read backwards in time): for a shift from 1 to `level` the one of the greatest likelihood. Passes
at the size that was found put its edges where that size begins and ends.
"""

from __future__ import annotations

import math
from itertools import pairwise
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

FEWEST = 5
"""Values that make a segment. A choice: fewer are an outlier."""
HALF = 0.5
"""Share of a segment that must be above the level."""
MOST_SIZES = 20
"""Doublings of the level that are told apart: a million times is enough."""
MAD = 1.4826
"""A median absolute deviation times this is the standard deviation of normal values."""
MOST_DEVIATIONS = 1000.0
OF_MEDIAN = 1.2533
"""sqrt(pi / 2): the standard error of a median of normal values, in those of a mean."""


class Segment(NamedTuple):
    """Positions from `first` to `last`, both included, with their median."""

    first: int
    last: int
    median: float


def raised(values: Sequence[float], level: float) -> list[Segment]:
    """Return where the values are above `level` at the median and for at least half of the time, in order.

    The greatest shifts are looked for first, so that what is barely above the level is not taken together with them.
    """
    found: list[Segment] = []
    sizes = [level]
    while sizes[-1] * 2 <= max(values, default=0.0) and len(sizes) < MOST_SIZES:
        sizes.append(sizes[-1] * 2)
    for size in reversed(sizes):
        taken = sorted(found)
        starts, ends = [0, *(one.last + 1 for one in taken)], [*(one.first for one in taken), len(values)]
        for start, end in zip(starts, ends, strict=True):
            _search(values, start, end, size, level, found)
    return sorted(found)


def _search(values: Sequence[float], start: int, end: int, size: float, level: float, found: list[Segment]) -> None:
    """Look for the best segment, then on both sides of it."""
    first, last, gain = _best(values, start, end, size)
    if gain < FEWEST * math.log(size) / 2:
        return
    first, last = _at_its_size(values, first, last, size)
    part = values[first : last + 1]
    middle = median(part)
    if len(part) >= FEWEST and middle >= size and sum(one > level for one in part) >= HALF * len(part):
        found.append(Segment(first, last, middle))
    _search(values, start, first, size, level, found)
    _search(values, last + 1, end, size, level, found)


def _at_its_size(values: Sequence[float], first: int, last: int, level: float) -> tuple[int, int]:
    """Narrow a segment down to where values are nearer to its median than to 1, until that changes no more."""
    while (middle := median(values[first : last + 1])) > level:
        narrower = _best(values, first, last + 1, middle)[:2]
        if narrower == (first, last):
            break
        first, last = narrower
    return first, last


def _best(values: Sequence[float], start: int, end: int, level: float) -> tuple[int, int, float]:
    """Return the stretch of the largest sum; one value counts for no more than twice a shift to `level`."""
    drift = math.log(level) / 2
    best, total, since = (start, start, 0.0), 0.0, start
    for at in range(start, end):
        if total <= 0:
            total, since = 0.0, at
        total += min(max(logarithm(values[at]) - drift, -2 * drift), 2 * drift)
        if total > best[2]:
            best = since, at, total
    return best


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation as the median absolute deviation tells it; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    middle = median(values)
    return MAD * median(abs(one - middle) for one in values)


def deviations(shift: float, deviation: float) -> float:
    """Return the shift in standard deviations; MOST_DEVIATIONS where there are none, as only made-up values have."""
    return min(shift / deviation, MOST_DEVIATIONS) if deviation > 0 else MOST_DEVIATIONS


def by_chance(scatter: float, count: int, correlation: float) -> float:
    """Return the standard error of the median of so many values of a process with this lag-1 autocorrelation.

    They are worth n (1 - r) / (1 + r) independent ones.
    """
    return OF_MEDIAN * scatter / math.sqrt(max(1.0, count * (1 - correlation) / (1 + correlation)))


def autocorrelation(values: Sequence[float]) -> float:
    """Return the lag-1 autocorrelation; a negative one, and that of fewer than three values, counts as none."""
    if len(values) < 3:
        return 0.0
    mean = sum(values) / len(values)
    power = sum((one - mean) ** 2 for one in values)
    shared = sum((one - mean) * (other - mean) for one, other in pairwise(values))
    return min(max(shared / power, 0.0), 0.99) if power > 0 else 0.0


def logarithm(value: float) -> float:
    """Return the logarithm of a value that should be above 0, and of a tiny one where a log holds nonsense."""
    return math.log(max(value, 1e-9))
