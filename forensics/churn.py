"""Did a run choose other algorithms around a request than before it? Its histogram held against its own baseline."""

from __future__ import annotations

from collections import Counter
from math import comb
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import polars as pl

    from forensics.evidence import Evidence

BASELINE, SAMPLE = 20, 5
"""Launches with an algorithm on record that baseline and request need."""
CHANCE = 0.001
"""A share that fell so far is at most so likely if both were drawn alike. All three are choices."""


class Churn(NamedTuple):
    """The usual algorithm of a run, its share before the request and in the request's launches, and the chance of it.

    before, now: (launches with it, launches).
    """

    algorithm: str
    before: tuple[int, int]
    now: tuple[int, int]
    chance: float

    def says(self) -> str:
        """Return it in words, shares first."""
        old, new = (count / of for count, of in (self.before, self.now))
        return (
            f"algo {self.algorithm}: {old:.0%} of {self.before[1]} launches before it → {new:.0%} of {self.now[1]} "
            f"(chance {self.chance:.2g})"
        )


def churn(arm: Evidence, lived: pl.DataFrame) -> Churn | None:
    """Return how the usual algorithm's share fell, None where it did not or too few launches state one.

    The chance is that of Fisher's exact test, one-sided (Fisher 1935, The Design of Experiments). Launches of one run
    are not independent draws, so it keeps small numbers quiet and is no rate of false alarms.
    """
    if arm.around.before.is_empty():
        return None
    first = arm.around.before.sort("engine_step", "rank").unique("engine_step", keep="first")  # one record a launch
    old, new = (list(rows["algo_id"].drop_nulls()) for rows in (first, lived))
    if len(old) < BASELINE or len(new) < SAMPLE:
        return None
    algorithm, count = Counter(old).most_common(1)[0]
    found = Churn(algorithm, (count, len(old)), (new.count(algorithm), len(new)), 1.0)
    found = found._replace(chance=fisher(found.before, found.now))
    return found if found.chance <= CHANCE else None


def fisher(before: tuple[int, int], now: tuple[int, int]) -> float:
    """Return the chance that at most so many of `now`'s draws have the property, where both groups are drawn alike."""
    (had, old), (have, new) = before, now
    holders, everybody = had + have, old + new
    ways = sum(comb(holders, k) * comb(everybody - holders, new - k) for k in range(have + 1))
    return ways / comb(everybody, new)
