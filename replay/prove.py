"""Trials in, verdict out. Standard library; `run` executes plans, so a test can hand in its own.

Proof is about bits: a set S of factors is proven when the incident with the reference's S gives the reference's
logits bit for bit up to the flip, and the reference with the incident's S gives the incident's. A token that comes
back is weaker, since on a near tie almost any change of plan turns it; that is said, beside how often it happens.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from replay.catalogue import check_pin
from replay.controls import Stop, check_arms, check_record
from replay.search import smallest, unsettled, whole_plan, without_one
from replay.tokens import null_pins, weigh_tokens
from replay.trial import unsupported
from replay.verdict import OUTCOMES, Control, Factor, Found, Verdict
from replay.workbench import Bench, Run, Swap, covered

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from replay.case import Case

__all__ = ["OUTCOMES", "Verdict", "prove"]


def prove(
    case: Case,
    pins: Sequence[str],
    run: Run,
    *,
    weights_sha256: str | None = None,
    command: str = "",
    say: Callable[[str], None] = lambda _line: None,
) -> Verdict:
    """Return what trials of the case show of the pinned factors; without pins, of the smallest set that explains it.

    pins: 'FACTOR=VALUE', 'incident' or 'reference' (both: every differing factor). Raises PinError on other text.
    """
    wanted = [check_pin(text) for text in pins]
    bench = Bench(case, run, say)
    controls: list[Control] = []
    try:
        if reason := unsupported(case):
            raise Stop("inconclusive", reason, controls)
        controls += check_record(case, weights_sha256)
        check_arms(bench, controls)
        found = _named(bench, wanted) if wanted else smallest(bench)
        if bench.racing():
            raise Stop("race", "a plan gave other bits when its process ran it again", controls)
    except Stop as stop:
        found = Found(stop.outcome, stop.claim)
    return _verdict(bench, found, controls, command)


def _named(bench: Bench, wanted: Sequence[tuple[str, str] | str]) -> Found:
    """Judge the factors that the user named."""
    case, differing = bench.case, bench.case.differing_factors()
    if not differing:
        return Found(
            "inconclusive", "no plan factor on record differs between the two arms: what differed was not recorded"
        )
    pinned = dict(pin for pin in wanted if not isinstance(pin, str))
    names = tuple(
        sorted(differing if any(isinstance(pin, str) for pin in wanted) else pinned.keys() & differing.keys())
    )
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
    (swap,) = bench.swaps([names])
    found = _judge(bench, swap)
    minimal = found.minimal
    if found.outcome == "proven" and len(names) > 1:
        rest = without_one(bench, names)
        minimal = all(one.failed for one in rest.values())
        limits += [f"{name} is not needed: the rest is proven without it" for name, one in rest.items() if one.proven]
        limits += [f"whether {name} is needed is open: {why}" for name, one in rest.items() if (why := unsettled(one))]
    return Found(found.outcome, found.claim, found.names, minimal, found.null, found.limits + tuple(limits))


def _extra_trials(bench: Bench, values: dict[str, str]) -> list[str]:
    """Run a value that neither arm had, in both arms, as an observation."""
    if not values:
        return []
    arms = (("incident", bench.case.incident.plan), ("reference", bench.case.reference.plan))
    text = ", ".join(f"{name}={value}" for name, value in sorted(values.items()))
    traces = bench.run([(f"observed: {arm} with {text}", plan | values) for arm, plan in arms])
    refused = [f"{text} was refused: {trace.refused}" for trace in traces if trace.refused]
    return [f"{text} is the value of neither arm: its trials are observations, not part of the proof", *refused]


def _judge(bench: Bench, swap: Swap) -> Found:
    text = ", ".join(swap.names)
    if problem := swap.refused or swap.mismatch:
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
    (without,) = bench.swaps([others])
    rest = ", ".join(others)
    if without.proven:
        claim = f"{rest} exchange the results bit for bit without {text}: {text} is not what flipped the token"
        return Found("refuted", claim, swap.names)
    if untried := without.refused or without.mismatch:  # a trial that did not run is no evidence for an interaction
        limit = f"what {rest} do without {text} could not be tried: {untried}"
        unknown = Found("inconclusive", f"exchanging {text} alone brings neither result; {limit}", swap.names)
    else:
        limit = f"{text} and {rest} act together: neither gives the other arm's bits without the other"
        unknown = Found("interaction", limit, swap.names)
    if swap.restores_token or swap.induces_token:
        found = weigh_tokens(swap, null_pins(bench)) or unknown
        return Found(found.outcome, found.claim, found.names, null=found.null, limits=(limit,))
    return unknown


def _verdict(bench: Bench, found: Found, controls: list[Control], command: str) -> Verdict:
    case = bench.case
    trace = bench.done[0][1] if bench.done else None
    flip: dict[str, int | None] | None = None
    if bench.incident and bench.reference and found.outcome != "no_divergence":
        index = bench.count - 1
        flip = {
            "token_index": index,
            "incident_token": bench.incident.tokens[index],
            "reference_token": bench.reference.tokens[index],
        }
    return Verdict(
        outcome=found.outcome,
        claim=found.claim,
        case_sha256=case.sha256(),
        run_id=case.incident.run_id,
        req_id=case.incident.req_id,
        reference={
            "run_id": case.reference.run_id,
            "req_id": case.reference.req_id,
            "synthetic": case.reference.synthetic,
        },
        engine={
            name: case.engine[name]
            for name in ("engine", "model_id", "weights_sha256", "versions")
            if name in case.engine
        },
        factors=tuple(_factor(case, name) for name in found.names),
        minimal=found.minimal,
        flip=flip,
        controls=tuple(controls),
        trials=bench.filed(),
        null=found.null,
        limits=(*_record_limits(case), *found.limits),
        host=_host(trace.host) if trace else {},
        ts=round(time.time(), 3),
        command=command,
    )


def _factor(case: Case, name: str) -> Factor:
    return Factor(name, case.incident.plan.get(name), case.reference.plan.get(name))


def _record_limits(case: Case) -> list[str]:
    """Say what the record itself leaves open."""
    limits = []
    if case.reference.synthetic:
        limits.append("the reference is synthetic: it was executed here and not seen in production")
    for name, (incident, reference) in sorted(case.differing_factors().items()):
        for arm, value in (("incident", incident), ("reference", reference)):
            if value is None:
                limits.append(f"{name} is not on record for the {arm}; there it was left as this machine has it")
    return limits


def _host(facts: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in facts.items()
        if name in ("host", "os", "cpu", "versions", "environment", "torch")
    }
