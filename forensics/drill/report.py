"""The figures of a drill as tables or JSON, what has to be said beside them, and the exit code."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from forensics.console import table
from forensics.errors import INCONCLUSIVE
from forensics.margin import NEAR_TIE_ULPS
from forensics.text import command, printable, shell

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from forensics.drill.pairs import Pair
    from forensics.drill.rates import Budget, Count, Drilled, Rate
    from forensics.drill.run import Plan

SHOWN_FLIPS = 5
RATES = ("regime", "flipped", "% of requests", "tokens", "‰ of tokens", "other bits")
"""Rates with their 95 % interval: of a hundred requests, of a thousand tokens."""
BUDGETS = (
    "family",
    "tokens",
    "ties",
    "≤ 1 ulp",
    f"≤ {NEAR_TIE_ULPS:g} ulp",
    "moved, ulp",
    "in reach",
    "flipped",
)
"""Room at idle: shares of tokens that are exact ties, or near ones; what moved under load; prompts that flipped."""


def show(drilled: Drilled, plan: Plan, model: str, *, as_json: bool) -> None:
    """Print the rates of all regimes, and the stability budget of each family. model: its name."""
    if as_json:
        print(json.dumps(document(drilled, plan, model), ensure_ascii=False, indent=2))
        return
    table(RATES, [_rate_row(rate) for rate in (drilled.steady, *drilled.regimes)])
    print()
    table(BUDGETS, [_budget_row(budget) for budget in drilled.budgets])


def exit_code(drilled: Drilled) -> int:
    """Return 0 for no flip, 1 for flips, 4 where idle does not repeat itself or a regime shows nothing."""
    if drilled.steady.flips or not drilled.steady.pairs:
        return INCONCLUSIVE
    if drilled.flips:
        return 1
    silent = [rate for rate in drilled.regimes if rate.complaint or not rate.pairs]
    return INCONCLUSIVE if silent or not drilled.regimes else 0


def notes(drilled: Drilled, plan: Plan, out: Path, *, interrupted: bool) -> Iterator[str]:
    """Yield what to say: what each regime set and what was seen of it, what was not compared, and what to do next."""
    if interrupted:
        yield "interrupted: the figures are of what had run until then"
    for rate in drilled.regimes:
        assert rate.phase.regime is not None
        if rate.seen.launches:
            yield f"{rate.phase.name}: set {rate.phase.regime.sets(plan.concurrency)}; seen {rate.seen.text()}"
        if rate.complaint:
            yield f"{rate.phase.name} did not occur: {rate.complaint}"
    for rate in (drilled.steady, *drilled.regimes):
        if rate.unfinished and rate.seen.launches:
            left = f"{rate.unfinished} request(s) not compared"
            yield f"{rate.phase.name}: {left}: cut off, not asked, or without reference"
    if drilled.steady.flips:
        yield f"{len(drilled.steady.flips)} idle answer(s) did not repeat themselves: load is not to blame for those"
    yield "intervals: 95 % score intervals (Wilson 1927); they take requests, and tokens, to be independent"
    yield from _flips(drilled.flips, out)


def _flips(flips: list[Pair], out: Path) -> Iterator[str]:
    for pair in flips[:SHOWN_FLIPS]:
        gap = "" if pair.gap is None else f", {pair.gap:g} ulp between the two best at idle"
        yield f"flip: {printable(pair.req_id)} at token {pair.flip}{gap}"
    if len(flips) > SHOWN_FLIPS:
        yield f"and {len(flips) - SHOWN_FLIPS} more; all with --format json, or `forensics incidents`"
    yield f"next: forensics ingest {shell(out)}"
    if flips:
        yield f"      {command('explain', f'--against=idle.{flips[0].prompt}', request=flips[0].req_id)}"


def _share(count: Count, per: int) -> str:
    if not count.of:
        return ""
    low, high = count.interval()
    return f"{_figure(per * count.hits / count.of)} ({_figure(per * low)}–{_figure(per * high)})"


def _figure(value: float) -> str:
    """Return a number with two digits that count, never as a power of ten."""
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _rate_row(rate: Rate) -> list[Any]:
    bits, requests, tokens = rate.other_bits, rate.requests, rate.tokens
    flipped = f"{requests.hits} of {requests.of}"
    others = _percent(bits.hits / bits.of if bits.of else None)
    return [rate.phase.name, flipped, _share(requests, 100), tokens.of, _share(tokens, 1000), others]


def _budget_row(budget: Budget) -> list[Any]:
    moved = "" if budget.moved is None else f"{budget.moved:.3g}"
    shares = [_percent(budget.within(ulps)) for ulps in (0.0, 1.0, NEAR_TIE_ULPS)]
    flipped = f"{budget.flips.hits} of {budget.flips.of}"
    return [budget.family, len(budget.margins), *shares, moved, _percent(budget.in_reach()), flipped]


def document(drilled: Drilled, plan: Plan, model: str) -> dict[str, Any]:
    """Return all figures in JSON's values; shares, not percentages. Intervals are 95 % score intervals."""
    return {
        "model": model,
        "engine": plan.engine,
        "dtype": plan.dtype,
        "concurrency": plan.concurrency,
        "max_tokens": plan.max_tokens,
        "idle_again": _rate_document(drilled.steady),
        "regimes": [_rate_document(rate) for rate in drilled.regimes],
        "families": [
            {
                "family": budget.family,
                "idle_tokens": len(budget.margins),
                "exact_ties": budget.within(0.0),
                "within_1_ulp": budget.within(1.0),
                "within_4_ulp": budget.within(NEAR_TIE_ULPS),
                "moved_ulp": budget.moved,
                "in_reach": budget.in_reach(),
                "prompts_flipped": budget.flips.hits,
                "prompts": budget.flips.of,
            }
            for budget in drilled.budgets
        ],
        "exit_code": exit_code(drilled),
    }


def _rate_document(rate: Rate) -> dict[str, Any]:
    return {
        "regime": rate.phase.name,
        "did_not_occur": rate.complaint,
        "seen": vars(rate.seen),
        "not_compared": rate.unfinished,
        "requests": _count_document(rate.requests),
        "tokens": _count_document(rate.tokens),
        "tokens_with_other_bits": _count_document(rate.other_bits),
        "flips": [
            {"req_id": pair.req_id, "token_index": pair.flip, "idle_margin_ulp": pair.gap, "family": pair.family}
            for pair in rate.flips
        ],
    }


def _count_document(count: Count) -> dict[str, Any]:
    return {"hits": count.hits, "of": count.of, "interval": list(count.interval())}
