"""Where does a series change its level, and do several series change at one point? Numbers only, no log.

One series: the largest absolute CUSUM of its ranks, standardised at each cut (Pettitt, Appl. Stat. 28 (1979) 126-135).
Steps of a server are no independent draws, and a test that takes them for such calls most slow waves a change. So what
a value keeps of the one before is taken out first (prewhitening: lag-1 correlation, with the change itself taken out),
and what is left is compared with its own blocks in random order (Kirch, J. Stat. Plan. Inference 137 (2007) 2453-2474).
A series that remembers so long that few independent values' worth of it is on record is not judged at all.

Several series: the partial conjunction p of Benjamini and Heller, Biometrics 64 (2008) 1215-1222: that at least m of K
series change has p = (K - m + 1) times the m-th smallest p (Bonferroni, so they may depend on each other). It is no
test of "the strongest series changed": m - 1 of them may change as they like.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from statistics import fmean
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

ALPHA = 0.01
"""The declared false-alarm rate of one look at one series, and of one look at several together."""
SHUFFLES = 399
FEWEST = 30
"""Independent values' worth of a series without which no look is taken: below, more alarms are false than declared."""
NEAR = 0.05
"""Share of the values that two cuts may lie apart and still be one point."""
EDGE = 0.05
"""Share of the values at each end in which no cut is looked for: a level needs values on both sides."""
ENOUGH_AS_LARGE = 20
"""Shuffles as large as the series after which p is known well enough to be no alarm (Besag and Clifford 1991)."""
SEED = 20061
"""Of the random order of blocks: the same log gives the same p."""


@dataclass(frozen=True)
class Shift:
    """The likeliest change of one series. at: index of the first value after it. before, after: mean levels.

    p: of so large a CUSUM without a change. values: how many were looked at; worth: how many independent ones they are
    worth, n (1 - r) / (1 + r) of a first-order process.
    """

    at: int
    before: float
    after: float
    p: float
    values: int
    worth: float


def shift(values: Sequence[float]) -> Shift | None:
    """Return the likeliest change of level; None for too little to judge (FEWEST), or where all values are equal."""
    count = len(values)
    if count < FEWEST or len(set(values)) == 1:
        return None
    scores = _ranks(values)
    edge = max(4, math.ceil(EDGE * count))
    weights = [1 / math.sqrt(cut * (count - cut) / count) for cut in range(edge, count - edge + 1)]
    at = _largest(scores, edge, weights)[1]
    memory = _memory(scores, at)
    worth = count * (1 - memory) / (1 + memory)
    if worth < FEWEST:
        return None
    fresh = [scores[0], *(score - memory * before for before, score in pairwise(scores))]
    largest = _largest(fresh, edge, weights)[0]
    block = math.ceil(count ** (1 / 3))
    blocks = [fresh[start : start + block] for start in range(0, count, block)]
    chance = random.Random(SEED)  # noqa: S311 - no secret
    as_large = looked = 0
    while looked < SHUFFLES and as_large < ENOUGH_AS_LARGE:
        looked += 1
        chance.shuffle(blocks)
        as_large += _largest([score for one in blocks for score in one], edge, weights)[0] >= largest
    return Shift(at, fmean(values[:at]), fmean(values[at:]), (as_large + 1) / (looked + 1), count, worth)


def shifts(values: Sequence[float], least: float, alpha: float = ALPHA) -> list[Shift]:
    """Return every change of at least `least`, in order, each against the parts beside it.

    Binary segmentation (Scott and Knott, Biometrics 30 (1974) 507-512). Each part is a look of its own with `alpha`.
    """
    found = shift(values)
    if found is None or found.p > alpha or abs(found.after - found.before) < least:
        return []
    left, right = shifts(values[: found.at], least, alpha), shifts(values[found.at :], least, alpha)
    return [*left, found, *(replace(one, at=one.at + found.at) for one in right)]


def together(found: Sequence[Shift | None], needed: int) -> tuple[list[int], float] | None:
    """Return which of the series change at one point, and the p that at least `needed` of them do.

    One point: cuts at most NEAR of the values apart. None: fewer than `needed` do.
    """
    known = sorted((one.p, place) for place, one in enumerate(found) if one is not None)
    for _, anchor in known:
        first = found[anchor]
        near = [(p, place) for p, place in known if _close(first, found[place])]
        if len(near) >= needed:
            p = min(1.0, (len(found) - needed + 1) * near[needed - 1][0])
            return [place for _, place in near], p
    return None


def _close(one: Shift | None, other: Shift | None) -> bool:
    return one is not None and other is not None and abs(one.at - other.at) <= NEAR * one.values


def _ranks(values: Sequence[float]) -> list[float]:
    """Return mid-ranks with mean 0 and deviation 1."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for place in order[start:end]:
            ranks[place] = (start + end - 1) / 2
        start = end
    middle = fmean(ranks)
    spread = math.sqrt(fmean((rank - middle) ** 2 for rank in ranks))
    return [(rank - middle) / spread for rank in ranks]


def _largest(scores: list[float], edge: int, weights: list[float]) -> tuple[float, int]:
    """Return the largest standardised CUSUM and its cut."""
    sums = list(accumulate(scores))[edge - 1 : len(scores) - edge]
    sizes = [abs(total * weight) for total, weight in zip(sums, weights, strict=True)]
    largest = max(sizes)
    return largest, edge + sizes.index(largest)


def _memory(scores: list[float], at: int) -> float:
    """Return the lag-1 correlation with the change taken out.

    Corrected for its bias in short series (Kendall, Biometrika 41 (1954) 403-404), once for each of the two levels.
    """
    count = len(scores)
    levels = fmean(scores[:at]), fmean(scores[at:])
    rest = [score - levels[place >= at] for place, score in enumerate(scores)]
    power = sum(one * one for one in rest)
    lag = sum(one * other for one, other in pairwise(rest)) / power if power else 0.0
    return min(max(lag + 2 * (1 + 3 * lag) / count, 0.0), 0.99)
