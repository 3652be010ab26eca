"""Does one plan always give one result? Repeats, and what so many of them can and cannot exclude."""

from __future__ import annotations

from math import comb
from typing import TYPE_CHECKING

from replay import catalogue
from replay.trial import Treatment
from replay.verdict import Repeats

if TYPE_CHECKING:
    from replay.workbench import Bench

RACE_RUNS = 5
"""Runs of each arm once a race has shown: 5 of 5 against 0 of 5 has p = 0.008, the least that says something."""


def repeat_all(bench: Bench, wanted: int) -> Repeats:
    """Repeat the first plan of every kind of process, and the incident until it has run again `wanted` times."""
    firsts: dict[str, Treatment] = {}
    for one in bench.done:
        if one.treatment.repeat == 0 and not one.trace.missing:
            firsts.setdefault(str(sorted(catalogue.environment(one.treatment.plan).items())), one.treatment)
    bench.ahead(_next(bench, treatment) for treatment in firsts.values())
    for treatment in firsts.values():
        bench.trial(*_next(bench, treatment))
    _until(bench, Treatment(bench.plans()[0]), wanted)
    return count(bench)


def count(bench: Bench) -> Repeats:
    """Return how many repeats ran and how many gave other bits than the plan's first run."""
    runs = changed = 0
    for one in bench.done:
        first = bench.known(one.treatment.plan)
        if one.treatment.repeat and first is not None and not one.trace.missing:
            length = min(len(first.tokens), len(one.trace.tokens))
            runs += 1
            changed += not one.trace.same_bits(first, length) or not one.trace.same_tokens(first, length)
    return Repeats(runs, changed, excluded_rate(runs) if runs and not changed else None)


def weigh_race(bench: Bench) -> Repeats:
    """Run both arms until each has run RACE_RUNS times; test whether they give the incident's token equally often."""
    shares = []
    token = bench.arms[0].tokens[bench.count - 1 :][:1]
    for plan in bench.plans():
        _until(bench, Treatment(plan), RACE_RUNS - 1)
        traces = [one.trace for one in bench.done if one.treatment.plan == plan and one.treatment.history is None]
        ran = {id(trace): trace for trace in traces if not trace.missing}.values()
        shares.append((sum(trace.tokens[bench.count - 1 :][:1] == token for trace in ran), len(ran)))
    found = count(bench)
    return Repeats(found.runs, found.changed, None, fisher(*shares[0], *shares[1]))


def excluded_rate(runs: int) -> float:
    """Return the rate of change that `runs` repeats without one exclude at 95 %: 1 - 0.05^(1/runs)."""
    return float(1 - 0.05 ** (1 / runs))


def fisher(hits: int, runs: int, other_hits: int, other_runs: int) -> float:
    """Return the two-sided p of Fisher's exact test for two counts of hits."""
    total, all_hits = runs + other_runs, hits + other_hits

    def chance(k: int) -> float:
        return comb(runs, k) * comb(other_runs, all_hits - k) / comb(total, all_hits)

    seen = chance(hits)
    possible = range(max(0, all_hits - other_runs), min(runs, all_hits) + 1)
    return min(1.0, sum(p for k in possible if (p := chance(k)) <= seen * (1 + 1e-9)))


def _repeats_of(bench: Bench, treatment: Treatment) -> int:
    return sum(one.treatment.plan == treatment.plan and one.treatment.repeat > 0 for one in bench.done)


def _until(bench: Bench, treatment: Treatment, wanted: int) -> None:
    """Repeat a treatment until it has run again `wanted` times, or gives nothing."""
    to_run = range(wanted - _repeats_of(bench, treatment))
    bench.ahead(_next(bench, treatment, later) for later in to_run)
    for _ in to_run:
        if bench.trial(*_next(bench, treatment)).missing:
            return


def _next(bench: Bench, treatment: Treatment, later: int = 0) -> tuple[str, Treatment]:
    number = _repeats_of(bench, treatment) + 1 + later
    return f"again: repeat {number}", Treatment(treatment.plan, repeat=number)
