"""How much each differing factor moves the contrast between the two tokens, which is continuous where tokens are not.

The contrast is float64 h·(w_a − w_b): h the final hidden state at the flip, w_a and w_b the output rows of the
incident's and the reference's token. Shares are Shapley values; orders of exchange with a step that could not run are
left out, which is the Shapley value under precedence constraints (Faigle and Kern, 1992).
"""

from __future__ import annotations

from itertools import combinations, permutations
from typing import TYPE_CHECKING

from replay.exchange import exchange, pin_not_taken
from replay.verdict import Effect, Interaction

if TYPE_CHECKING:
    from collections.abc import Sequence

    from replay.workbench import Bench

Cells = dict[frozenset[str], float]
MOST_FACTORS = 6


def effects(bench: Bench) -> tuple[tuple[Effect, ...], tuple[Interaction, ...]]:
    """Return shares and pairwise interactions, from trials that ran anyway; none where the arms' contrast is equal."""
    names = bench.factors()
    if not names or len(names) > MOST_FACTORS:
        return (), ()
    found = cells(bench, names)
    whole, none = found.get(frozenset(names)), found.get(frozenset())
    if whole is None or none is None or whole == none:
        return (), ()
    scale = whole - none
    shares = shapley(found, names)
    pairs = ((pair, interaction(found, names, pair)) for pair in combinations(names, 2))
    return (
        tuple(Effect(name, value / scale, orders) for name, (value, orders) in shares.items()),
        tuple(Interaction(pair, value / scale) for pair, value in pairs if value is not None),
    )


def cells(bench: Bench, names: Sequence[str]) -> Cells:
    """Return the contrast for each set of factors that had the incident's value, the others the reference's."""
    incident, reference = bench.plans()
    found: Cells = {}
    for size in range(len(names) + 1):
        for chosen in combinations(names, size):
            trace = bench.known(exchange(reference, incident, chosen))
            if trace and trace.contrast is not None and not trace.missing and not pin_not_taken(trace):
                found[frozenset(chosen)] = trace.contrast
    return found


def shapley(found: Cells, names: Sequence[str]) -> dict[str, tuple[float, int]]:
    """Return factor → (mean marginal change, orders that it was taken over); empty where no order ran whole."""
    totals, orders = dict.fromkeys(names, 0.0), 0
    for order in permutations(names):
        steps = [frozenset(order[:length]) for length in range(len(order) + 1)]
        if any(step not in found for step in steps):
            continue
        orders += 1
        for name, before, after in zip(order, steps, steps[1:], strict=False):
            totals[name] += found[after] - found[before]
    return {name: (total / orders, orders) for name, total in totals.items()} if orders else {}


def interaction(found: Cells, names: Sequence[str], pair: tuple[str, str]) -> float | None:
    """Return the mean of m(T+ij) − m(T+i) − m(T+j) + m(T) over the sets T whose four cells ran, None without one."""
    one, other = pair
    rest = [name for name in names if name not in pair]
    values = []
    for size in range(len(rest) + 1):
        for chosen in combinations(rest, size):
            base = frozenset(chosen)
            four = [base | {one, other}, base | {one}, base | {other}, base]
            if all(cell in found for cell in four):
                both, first, second, neither = (found[cell] for cell in four)
                values.append(both - first - second + neither)
    return sum(values) / len(values) if values else None
