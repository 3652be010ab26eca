"""Without a pin: the smallest set of differing factors that is proven.

Up to four factors every subset is tried. Beyond, delta debugging (Zeller and Hildebrandt, 2002) with a three-valued
test: proven, failed, open. It drops groups, then halves of those that it cannot drop (as Misherghi and Su, 2006, do for
structured input); its last round drops each factor of the result by itself, so that every removal is verified.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from replay.tokens import null_pins, weigh_tokens
from replay.verdict import Found

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from replay.exchange import Status, Swap
    from replay.workbench import Bench

EXHAUSTIVE = 4
"""Differing factors up to which every subset is tried: 2^4 plans, since restoring S is inducing all but S."""

NOTHING_DIFFERS = "no plan factor on record differs between the two arms: what differed was not recorded"


def smallest(bench: Bench) -> Found:
    """Return the smallest proven set, or what the whole set of differing factors shows."""
    differing = bench.factors()
    if not differing:
        return Found("inconclusive", NOTHING_DIFFERS)
    return _exhaustive(bench, differing) if len(differing) <= EXHAUSTIVE else _delta_debugging(bench, differing)


def _exhaustive(bench: Bench, differing: tuple[str, ...]) -> Found:
    sets = [names for size in range(1, len(differing) + 1) for names in combinations(differing, size)]
    swaps = bench.swaps(sets)
    proven = [swap for swap in swaps if swap.proven]
    still_open = [swap for swap in swaps if swap.status == "open"]
    if not proven:
        return _not_proven(bench, swaps[-1], _reasons(still_open))
    best = proven[0]
    rivals = [one for one in proven[1:] if not any(set(less.names) < set(one.names) for less in proven)]
    limits = [*_reasons(still_open), *whole_plan(bench, best.names)]
    if rivals:
        others = "; ".join(", ".join(swap.names) for swap in rivals)
        limits.append(f"another set is proven too, none of whose subsets is: {others}")
    within = [swap for swap in still_open if set(swap.names) < set(best.names)]
    return _proven(bench, best.names, _how(best.names, within), tuple(limits), minimal=not within,
                   refuted=_outside(differing, [best, *rivals]))  # fmt: skip


def _how(names: Sequence[str], within: list[Swap]) -> str:
    if len(names) == 1:
        return "one factor suffices"
    if within:
        left = "; ".join(", ".join(swap.names) for swap in within)
        return f"no smaller set is proven, but one that could not be exchanged both ways is not ruled out: {left}"
    return "no smaller set does, so they act together"


def _outside(differing: Sequence[str], proven: list[Swap]) -> tuple[str, ...]:
    """Return the factors that no proven set needs: the exchange works while they stay as they were."""
    needed = {name for swap in proven for name in swap.names}
    return tuple(name for name in differing if name not in needed)


def unsettled(swap: Swap) -> str | None:
    """Return why a set is neither proven nor ruled out, None where it is one of them."""
    if swap.status != "open":
        return None
    return f"{', '.join(swap.names)} could not be exchanged both ways: {swap.why_not}"


def _reasons(swaps: list[Swap]) -> tuple[str, ...]:
    return tuple(why for swap in swaps if (why := unsettled(swap)))


def whole_plan(bench: Bench, names: Sequence[str]) -> tuple[str, ...]:
    """Return the reservation that a set of all differing factors needs, or nothing."""
    if set(bench.factors()) - set(names):
        return ()
    return ("S is every factor that differs on record, so its exchanges are the two plans themselves, run again",)


def _delta_debugging(bench: Bench, differing: tuple[str, ...]) -> Found:
    whole = bench.swap(differing)
    if not whole.proven:
        return _not_proven(bench, whole, ())
    last: dict[tuple[str, ...], Swap] = {}

    def test(names: tuple[str, ...]) -> Status:
        last[names] = bench.swap(names, until="failed")
        return last[names].status

    best = reduce_set(differing, test)
    removals = [last[rest] for one in best if (rest := _without(best, [one])) in last]
    still_open = [swap for swap in removals if swap.status == "open"]
    limits = [
        f"{len(differing)} factors differ: the set was found by delta debugging, not every subset was tried",
        *_reasons(still_open),
        *whole_plan(bench, best),
    ]
    how = "one factor suffices" if len(best) == 1 else "dropping any one of them breaks it"
    if still_open:
        how = "whether a smaller set would do is open: one could not be exchanged both ways"
    refuted = tuple(name for name in differing if name not in best)
    return _proven(bench, best, how, tuple(limits), minimal=not still_open, refuted=refuted)


def reduce_set(
    names: tuple[str, ...],
    test: Callable[[tuple[str, ...]], Status],
    groups: Sequence[tuple[str, ...]] = (),
) -> tuple[str, ...]:
    """Return a subset that is proven and of which, as far as trials ran, no single factor can be dropped.

    `test` of the whole set must be proven. groups: what to drop as one first, together the whole set. An open subset
    is kept together, never guessed. Trials: about 2·k·log2(n/k) for k of n, each once more for the last round.
    """
    for group in groups or [names]:
        names = _drop(group, names, test)
    while (less := next((rest for one in names if _proves(rest := _without(names, [one]), test)), None)) is not None:
        names = less
    return names


def _drop(group: tuple[str, ...], names: tuple[str, ...], test: Callable[[tuple[str, ...]], Status]) -> tuple[str, ...]:
    """Return what is left of a proven set when a group is dropped whole, or the halves of it one after the other."""
    if _proves(rest := _without(names, group), test):
        return rest
    if len(group) > 1:
        middle = len(group) // 2
        for half in (group[:middle], group[middle:]):
            names = _drop(half, names, test)
    return names


def _proves(names: tuple[str, ...], test: Callable[[tuple[str, ...]], Status]) -> bool:
    return bool(names) and test(names) == "proven"


def _without(names: tuple[str, ...], dropped: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in names if name not in dropped)


def without_one(bench: Bench, names: tuple[str, ...]) -> dict[str, Swap]:
    """Return, for each factor of a set, what exchanging the rest of the set without it shows."""
    return {one: bench.swap(_without(names, [one])) for one in names}


def _proven(bench: Bench, names: tuple[str, ...], how: str, limits: tuple[str, ...], *, minimal: bool,
            refuted: tuple[str, ...]) -> Found:  # fmt: skip
    text = ", ".join(names)
    claim = f"exchanging {text} exchanges the results, bit for bit, up to and including token {bench.count - 1}; {how}"
    return Found("proven", claim, names, minimal=minimal, limits=limits, refuted=refuted)


def _not_proven(bench: Bench, whole: Swap, limits: tuple[str, ...]) -> Found:
    if why := whole.why_not:
        claim = f"the plans' difference ({', '.join(whole.names)}) could not be put in force: {why}"
        return Found("not_pinned", claim, whole.names, limits=limits)
    null = null_pins(bench)
    incomplete = "exchanging all that differs on record brings neither result: the record is incomplete"
    found = weigh_tokens(whole, null) or Found("inconclusive", incomplete, whole.names, null=null)
    return Found(found.outcome, found.claim, found.names, null=found.null, limits=limits + found.limits)
