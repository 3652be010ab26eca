"""With pins: what trials show of the set of factors that the user names."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from replay.exchange import Swap, covered, pin_not_taken
from replay.implied import gemm_rows
from replay.search import NOTHING_DIFFERS, unsettled, whole_plan, without_one
from replay.tokens import null_pins, weigh_tokens
from replay.verdict import Found

if TYPE_CHECKING:
    from collections.abc import Sequence

    from replay.trial import Trace
    from replay.workbench import Bench


def hold_named(bench: Bench, wanted: Sequence[tuple[str, str] | str]) -> None:
    """Where a pin names M of a GEMM, which is on no record, force it in both arms to what follows from their launch."""
    names = {pin[0] for pin in wanted if not isinstance(pin, str)}
    plans = [
        {name: value for name, value in gemm_rows(bench.case, plan).items() if name in names} | plan
        for plan in bench.plans()
    ]
    bench.hold(*plans)


def judge_named(bench: Bench, wanted: Sequence[tuple[str, str] | str]) -> Found:
    """Judge the factors that the user named."""
    case, differing = bench.case, bench.case.differing_factors()
    if not differing:
        return Found("inconclusive", NOTHING_DIFFERS)
    pinned = dict(pin for pin in wanted if not isinstance(pin, str))
    whole_arm = any(isinstance(pin, str) for pin in wanted)
    names = bench.factors() if whole_arm else tuple(sorted(pinned.keys() & differing.keys()))
    limits = _extra_trials(
        bench, {name: value for name, value in pinned.items() if value not in differing.get(name, ())}
    )
    same = sorted(pinned.keys() - differing.keys())
    limits += [f"{name} is the same in both arms ({case.incident.plan.get(name, 'not on record')})" for name in same]
    if not names:
        unknown = [name for name in same if name not in case.incident.plan]
        if unknown:
            claim = f"{', '.join(unknown)} is not on record for either arm: whether it differed cannot be told"
            return Found("inconclusive", claim, tuple(same), limits=tuple(limits))
        claim = (
            f"{', '.join(same)} had the same value in both arms, and both came out as recorded: it is not what differed"
        )
        return Found("refuted", claim, tuple(same), limits=tuple(limits))
    found = _judge(bench, bench.swap(names))
    minimal = found.minimal
    if found.outcome == "proven" and len(names) > 1:
        rest = without_one(bench, names)
        minimal = all(one.status == "failed" for one in rest.values())
        limits += [f"{name} is not needed: the rest is proven without it" for name, one in rest.items() if one.proven]
        limits += [f"whether {name} is needed is open: {why}" for name, one in rest.items() if (why := unsettled(one))]
    return replace(found, minimal=minimal, limits=found.limits + tuple(limits))


def _extra_trials(bench: Bench, values: dict[str, str]) -> list[str]:
    """Run a value that neither arm had, in both arms, as an observation."""
    if not values:
        return []
    arms = (("incident", bench.case.incident.plan), ("reference", bench.case.reference.plan))
    text = ", ".join(f"{name}={value}" for name, value in sorted(values.items()))
    traces = [bench.trial(f"observed: {arm} with {text}", plan | values) for arm, plan in arms]
    refused = [f"{text} was refused: {trace.missing}" for trace in traces if trace.missing]
    refused += [f"{text} did not take: {problem}" for trace in traces if (problem := pin_not_taken(trace))]
    seen = [
        f"with {text} the {arm} gives {_whose(bench, trace)}"
        for (arm, _), trace in zip(arms, traces, strict=True)
        if not trace.missing and not pin_not_taken(trace)
    ]
    return [f"{text} is the value of neither arm: its trials are observations, not part of the proof", *refused, *seen]


def _whose(bench: Bench, trace: Trace) -> str:
    """Return whose tokens and bits an observation gave."""
    for name, arm in zip(("incident", "reference"), bench.arms, strict=True):
        if trace.same_tokens(arm, bench.count):
            bits = "bits" if trace.same_bits(arm, bench.count) else "tokens, in other bits"
            return f"the {name}'s {bits}"
    return "neither arm's tokens"


def _judge(bench: Bench, swap: Swap) -> Found:
    text = ", ".join(swap.names)
    if problem := swap.why_not:
        return Found("not_pinned", f"{text} could not be exchanged between the arms: {problem}", swap.names)
    if swap.proven:
        limits = whole_plan(bench, swap.names)
        claim = f"exchanging {text} exchanges the results, bit for bit, up to and including token {bench.count - 1}"
        return Found("proven", claim, swap.names, len(swap.names) == 1, limits=limits)
    others = tuple(name for name in sorted(bench.case.differing_factors()) if not covered(name, swap.names))
    if not others:
        null = null_pins(bench)
        missing = (
            f"exchanging {text} brings neither result, and nothing else differs on record: the record is incomplete"
        )
        return weigh_tokens(swap, null) or Found("inconclusive", missing, swap.names, null=null)
    without = bench.swap(others)
    rest = ", ".join(others)
    if without.proven:
        claim = f"{rest} exchange the results bit for bit without {text}: {text} is not what flipped the token"
        return Found("refuted", claim, swap.names, refuted=swap.names)
    if without.status == "open":  # a trial that did not run is no evidence for an interaction
        limit = f"what {rest} do without {text} could not be tried: {without.why_not}"
        unknown = Found("inconclusive", f"exchanging {text} alone brings neither result; {limit}", swap.names)
    else:
        limit = f"{text} and {rest} act together: neither gives the other arm's bits without the other"
        unknown = Found("interaction", limit, swap.names)
    if swap.restores_token or swap.induces_token:
        found = weigh_tokens(swap, null_pins(bench)) or unknown
        return Found(found.outcome, found.claim, found.names, null=found.null, limits=(limit,))
    return unknown
