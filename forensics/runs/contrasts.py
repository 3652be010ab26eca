"""What was different where an answer was: conditions of the runs that disagree against those of the runs that agree.

Each run is held against the calmest run that gave the answer of most. A condition separates if it is there where the
answer differs and not where it does not; both shares are told, since a condition that also occurs where nothing flipped
explains little. What goes together cannot be told apart here: `forensics explain` does that for one request.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import comb
from typing import TYPE_CHECKING

from forensics.launches import launches

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from forensics.runs.twins import Twin
    from forensics.store import Store
    from forensics.timeline import Thresholds

FEWEST = 5
"""Prompts in a cell, and on each side of a contrast, below which nothing is said but the counts. A choice."""
CHANCE = 0.01
"""The chance at which a condition separates: of so uneven a table if it had nothing to do with the answers."""


@dataclass(frozen=True)
class Conditions:
    """What a run lived through, as far as it is on record. rows: most in a launch. cached: tokens from the cache."""

    rows: int | None
    shapes: tuple[str, ...]
    regimes: Counter[str]
    recomputed: bool
    cached: int | None
    engine: str
    replica: str


@dataclass(frozen=True)
class Contrasted:
    """One condition: prompts in cells that have it, of those that disagree and of those that agree.

    p: of Fisher's exact test, two-sided. verdict: 'separates', 'does not separate' or 'too few'.
    """

    condition: str
    odd_with: int
    odd: int
    agreeing_with: int
    agreeing: int
    p: float
    verdict: str


def conditions(store: Store, twins: Sequence[Twin], limits: Thresholds) -> dict[tuple[str, str, str], Conditions]:
    """Return the conditions of every run, by identity. Reads the launches of each run once."""
    regimes: dict[tuple[str, str], dict[int, str]] = {}
    found = {}
    for one in twins:
        run = one.identity[:2]
        if run not in regimes:
            engine = (store.ask("engine", run_id=run[0], replica_id=run[1]).to_dicts() or [{}])[0]
            frame = launches(store, engine | {"run_id": run[0], "replica_id": run[1]}, limits)
            regimes[run] = dict(frame.select("engine_step", "regime").iter_rows())
        found[one.identity] = Conditions(
            rows=max((row["batch_size"] for row in one.steps if row["batch_size"] is not None), default=None),
            shapes=one.shapes(),
            regimes=Counter(regimes[run].get(row["engine_step"]) or "unknown" for row in one.steps),
            recomputed=any(row["resumed"] for row in one.steps),
            cached=one.steps[0]["num_computed_tokens"] if one.steps else None,
            engine=one.request["engine_facts"], replica=one.identity[1],
        )  # fmt: skip
    return found


def differing(one: Conditions, calm: Conditions) -> Iterator[tuple[str, bool]]:
    """Yield each condition that can be told of a run against a calm one, and whether it holds."""
    if one.rows is not None and calm.rows is not None:
        yield "shared launches with more rows", one.rows > calm.rows
    if one.shapes and calm.shapes:
        yield "other launch shapes", one.shapes != calm.shapes
    if one.cached is not None and calm.cached is not None:
        yield "another part of the prompt from the cache", one.cached != calm.cached
    yield "preempted and recomputed", one.recomputed and not calm.recomputed
    for state in one.regimes:
        if state not in ("normal", "unknown"):
            yield f"a part in {state}", state not in calm.regimes
    yield "other engine settings", one.engine != calm.engine
    yield "another replica", one.replica != calm.replica


def contrasts(places: dict[tuple[str, str, int], list[tuple[bool, set[str]]]], names: set[str]) -> list[Contrasted]:
    """Return every condition that holds somewhere, what separates best first.

    places: (x, replica, window) → of each run there, whether it disagrees and which conditions it has.
    """
    cells = [
        (odd, set().union(*(has for is_odd, has in runs if is_odd == odd)))
        for runs in places.values() for odd in {is_odd for is_odd, _ in runs}
    ]  # fmt: skip
    found = []
    for name in sorted(names):
        table = Counter((odd, name in has) for odd, has in cells)
        odd, agreeing = table[True, True] + table[True, False], table[False, True] + table[False, False]
        p = fisher(table[True, True], odd, table[False, True], agreeing)
        more = table[True, True] * agreeing > table[False, True] * odd
        few = min(odd, agreeing) < FEWEST
        verdict = "too few" if few else "separates" if p <= CHANCE and more else "does not separate"
        found.append(Contrasted(name, table[True, True], odd, table[False, True], agreeing, p, verdict))
    return sorted(found, key=lambda one: (one.verdict != "separates", one.p, one.condition))


def fisher(one: int, of_one: int, other: int, of_other: int) -> float:
    """Return the two-sided p of Fisher's exact test: how likely a table with these margins is as unlikely as this."""
    having, total = one + other, of_one + of_other

    def ways(count: int) -> int:
        return comb(of_one, count) * comb(of_other, having - count)

    least, most = max(0, having - of_other), min(of_one, having)
    as_unlikely = sum(ways(count) for count in range(least, most + 1) if ways(count) <= ways(one))
    return as_unlikely / comb(total, having)
