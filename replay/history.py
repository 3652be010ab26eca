"""History × step: do the keys and values of earlier passes carry the difference, or the pass that chose the token?

Four trials cross the incident's and the reference's plan for the passes before the flip with both plans for the
flip's own pass; then the history is cut in halves to find the pass whose keys and values turn the token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replay.exchange import pin_not_taken
from replay.trial import Treatment
from replay.verdict import History

if TYPE_CHECKING:
    from replay.case import Plan
    from replay.trial import Trace
    from replay.workbench import Bench


def history_or_step(bench: Bench) -> History:
    """Return what carries the difference. Runs three trials beyond the arms, and about log2 of the flip's position."""
    flip = bench.count - 1
    if flip == 0:
        return History("step", None, "the flip is at the first token: there is no history before its pass")
    incident, reference = bench.plans()
    crossed = (
        _named("history and step of the incident, put together again", incident, incident, flip),
        _named("history of the incident, step of the reference", reference, incident, flip),
        _named("history of the reference, step of the incident", incident, reference, flip),
    )
    bench.ahead(crossed)
    own = bench.trial(*crossed[0])
    if problem := _unusable(own):
        return History("open", None, f"keys and values could not be moved: {problem}")
    if not own.same_bits(bench.arms[0], bench.count):
        return History("open", None, "the incident's own keys and values, put back, did not give its bits")
    old, new = (bench.trial(*one) for one in crossed[1:])
    if problem := _unusable(old) or _unusable(new):
        return History("open", None, f"history and step could not be crossed: {problem}")
    turned = _gives_incident(bench, old), not _gives_incident(bench, new)
    if turned == (False, False):
        return History("step", None, f"pass {flip}, which chose the token, turns it with either history")
    if turned != (True, True):
        return History("both", None, f"neither the passes before pass {flip} nor pass {flip} alone decide the token")
    exact = old.same_bits(bench.arms[0], bench.count) and new.same_bits(bench.arms[1], bench.count)
    how = (
        "the plan of the flip's own pass changes no bit" if exact else "the flip's own pass changes bits, not the token"
    )
    return _first_pass(bench, incident, reference, flip, how)


def _first_pass(bench: Bench, incident: Plan, reference: Plan, flip: int, how: str) -> History:
    """Cut the history in halves: below `low` passes it does not turn the token, from `high` on it does."""
    low, high = 0, flip
    while high - low > 1:
        middle = (low + high) // 2
        name = f"passes 0 to {middle - 1} of the incident, the rest of the reference"
        trace = bench.trial(*_named(name, reference, incident, middle))
        if (problem := _unusable(trace)) or not trace.same_tokens(bench.arms[0], bench.count - 1):
            why = problem or "an earlier token turned"
            return History("history", None, f"{how}; which pass carries it is open: {why}")
        low, high = (low, middle) if _gives_incident(bench, trace) else (middle, high)
    which = "the prompt's pass" if high == 1 else f"pass {high - 1}"
    text = f"{how}; with the keys and values of {high} passes of the incident the token turns, with {low} it does not"
    return History("history", high - 1, f"{text}: {which} carries it")


def _named(name: str, plan: Plan, history: Plan, switch: int) -> tuple[str, Treatment]:
    return f"history: {name}", Treatment(plan, history, switch)


def _unusable(trace: Trace) -> str | None:
    return trace.missing or pin_not_taken(trace)


def _gives_incident(bench: Bench, trace: Trace) -> bool:
    return trace.same_tokens(bench.arms[0], bench.count)
