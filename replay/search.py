"""Without a pin: the smallest set of differing factors that is proven."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from replay.tokens import null_pins, weigh_tokens
from replay.verdict import Found

if TYPE_CHECKING:
    from replay.workbench import Bench, Swap

UNSETTLED = "whether a smaller set would do is open: one could not be exchanged both ways"
EXHAUSTIVE = 4
"""Differing factors up to which every subset is tried; above it, factors are dropped one by one."""


UNSETTLED = "whether a smaller set would do is open: one could not be exchanged both ways"
EXHAUSTIVE = 4
"""Differing factors up to which every subset is tried; above it, factors are dropped one by one."""


def smallest(bench: Bench) -> Found:
    """Return the smallest proven set, or what the whole set of differing factors shows."""
    differing = tuple(sorted(bench.case.differing_factors()))
    if not differing:
        return Found(
            "inconclusive", "no plan factor on record differs between the two arms: what differed was not recorded"
        )
    return _exhaustive(bench, differing) if len(differing) <= EXHAUSTIVE else _dropping(bench, differing)


def _exhaustive(bench: Bench, differing: tuple[str, ...]) -> Found:
    still_open: list[Swap] = []
    swaps: list[Swap] = []
    for size in range(1, len(differing) + 1):
        swaps = bench.swaps(list(combinations(differing, size)))
        proven = [swap for swap in swaps if swap.proven]
        if proven:
            return _smallest_of(bench, proven, still_open)
        still_open += [swap for swap in swaps if not swap.failed]
    return _not_proven(bench, swaps[-1], _reasons(still_open))


def _smallest_of(bench: Bench, proven: list[Swap], still_open: list[Swap]) -> Found:
    """Return what the first of the smallest proven sets shows. A smaller set that could not run is not ruled out."""
    best, limits = proven[0], [*_reasons(still_open), *whole_plan(bench, proven[0].names)]
    if len(proven) > 1:
        others = "; ".join(", ".join(swap.names) for swap in proven[1:])
        limits.append(f"another set of the same size is proven too: {others}")
    if len(best.names) == 1:
        return _proven(bench, best, "one factor suffices", tuple(limits))
    within = [swap for swap in still_open if set(swap.names) < set(best.names)]
    how = "no smaller set does"
    if within:
        left = "; ".join(", ".join(swap.names) for swap in within)
        how = f"no smaller set is proven, but one that could not be exchanged both ways is not ruled out: {left}"
    return _proven(bench, best, how, tuple(limits), minimal=not within)


def unsettled(swap: Swap) -> str | None:
    """Return why a set is neither proven nor ruled out, None where it is one of them."""
    if swap.proven or swap.failed:
        return None
    return f"{', '.join(swap.names)} could not be exchanged both ways: {_why_not(swap)}"


def _reasons(swaps: list[Swap]) -> tuple[str, ...]:
    return tuple(why for swap in swaps if (why := unsettled(swap)))


def whole_plan(bench: Bench, names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the reservation that a set of all differing factors needs, or nothing."""
    if set(names) != set(bench.case.differing_factors()):
        return ()
    return ("S is every factor that differs on record, so its exchanges are the two plans themselves, run again",)


def _dropping(bench: Bench, differing: tuple[str, ...]) -> Found:
    (whole,) = bench.swaps([differing])
    if not whole.proven:
        return _not_proven(bench, whole, ())
    best, limits = (
        whole,
        [f"{len(differing)} factors differ: factors were dropped one by one, not every subset was tried"],
    )
    still_open: list[Swap] = []
    while len(best.names) > 1:
        smaller = without_one(bench, best.names).values()
        if not (proven := [swap for swap in smaller if swap.proven]):
            still_open = [swap for swap in smaller if not swap.failed]
            break
        best = proven[0]
    how = "dropping any one of them breaks it" if len(best.names) > 1 else "one suffices"
    limits += [*_reasons(still_open), *whole_plan(bench, best.names)]
    return _proven(bench, best, UNSETTLED if still_open else how, tuple(limits), minimal=not still_open)


def without_one(bench: Bench, names: tuple[str, ...]) -> dict[str, Swap]:
    """Return, for each factor of a set, what exchanging the rest of the set without it shows."""
    swaps = bench.swaps([tuple(name for name in names if name != one) for one in names])
    return dict(zip(names, swaps, strict=True))


def _proven(bench: Bench, swap: Swap, how: str, limits: tuple[str, ...], *, minimal: bool = True) -> Found:
    text = ", ".join(swap.names)
    claim = f"exchanging {text} exchanges the results, bit for bit, up to and including token {bench.count - 1}; {how}"
    return Found("proven", claim, swap.names, minimal=minimal, limits=limits)


def _not_proven(bench: Bench, whole: Swap, limits: tuple[str, ...]) -> Found:
    if why := _why_not(whole):
        claim = f"the plans' difference ({', '.join(whole.names)}) could not be put in force: {why}"
        return Found("not_pinned", claim, whole.names, limits=limits)
    null = null_pins(bench)
    incomplete = "exchanging all that differs on record brings neither result: the record is incomplete"
    found = weigh_tokens(whole, null) or Found("inconclusive", incomplete, whole.names, null=null)
    return Found(found.outcome, found.claim, found.names, null=found.null, limits=limits + found.limits)


def _why_not(swap: Swap) -> str | None:
    return swap.refused or swap.mismatch
