"""Replicas against each other, plans against bits, and tokens at risk, as lines of text for a screen of any width."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from forensics.intervals import wilson
from forensics.runs.contrasts import FEWEST
from forensics.runs.screen import LISTED, NAMES, some, wrapped
from forensics.text import command, moment, printable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.runs.fleet import Cell, Fleet
    from forensics.runs.plans import Plans
    from forensics.runs.risk import AtRisk, Rate, Risk

MORE = "--format json has them"


def fleet_screen(told: Fleet, width: int) -> Iterator[str]:
    """Yield the lines of a fleet: a strip of windows a replica, then who, when, against whom, what differs."""
    if not told.requests:
        yield "No request is on record twice with an answer: nobody has a twin to disagree with."
        return
    silent = f"; {told.unanswered} more runs have no answer on record" if told.unanswered else ""
    yield from wrapped("compared", f"{told.requests} requests asked at least twice, {told.runs} runs{silent}", width)
    first = min(one.window for one in told.cells)
    begins = min(one.begins for one in told.cells)
    yield from wrapped("windows", f"of {told.window_s:g} s from {moment(begins)}, a column each", width)
    yield ""
    for name in sorted({one.replica for one in told.cells}):
        own = {one.window: one for one in told.cells if one.replica == name}
        strip = "".join(_mark(own.get(at)) for at in range(first, max(one.window for one in told.cells) + 1))
        yield from wrapped(printable(name, NAMES - 1), strip.replace(" ", "\u00a0"), width)
    legend = f"x answers differ, . none does, - fewer than {FEWEST} prompts and none does, blank: no twin was asked"
    yield from wrapped("", legend, width)
    yield ""
    yield from some("who", list(statements(told)), width, MORE)
    if told.contrasts:
        yield from some("differing", list(_contrasts(told)), width, MORE)
    ties = sum(one.tie_broken for one in told.odd)
    if ties:
        doubt = "either answer was given in as many places; the calmer run is taken for right, counts do not tell"
        yield from wrapped("doubt", f"{ties} of {len(told.odd)} runs: {doubt}", width)
    for one in told.odd[:LISTED]:
        yield f"{'next':<{NAMES}}{command('explain', '--against', one.against, request=one.request)}"
    if len(told.odd) > LISTED:
        yield from wrapped("", f"{len(told.odd) - LISTED} more runs, {MORE}", width)


def _mark(cell: Cell | None) -> str:
    if cell is None:
        return " "
    return "x" if cell.odd else "." if cell.prompts >= FEWEST else "-"


def statements(told: Fleet) -> Iterator[str]:
    """Yield, for each replica that disagrees: in which windows, at which rate, against whom, and whether only then."""
    for name in sorted({one.replica for one in told.cells if one.odd}):
        own = [one for one in told.cells if one.replica == name]
        odd, calm = [one for one in own if one.odd], [one for one in own if not one.odd]
        for cell in odd:
            others = ", ".join(f"{printable(other, 40)} ({count})" for other, count in cell.against.items())
            beside = [one for one in told.cells if one.window == cell.window and one.replica != name]
            peers = f"; there the other replicas {_rate(beside)}" if beside else ""
            yield (
                f"{printable(name, 40)} in {moment(cell.begins)} to {moment(cell.ends)}: {_rate([cell])} answered "
                f"otherwise, against {others}; {_state(cell)}{peers}"
            )
        if not calm:
            yield f"{printable(name, 40)}: no other window of it has twins, so nothing says that it is only then"
        elif sum(one.prompts for one in calm) < FEWEST:
            yield f"{printable(name, 40)}: too few prompts in its other windows to say that it is only then"
        else:
            states = "; ".join(dict.fromkeys(_state(one) for one in calm[:2]))
            yield f"{printable(name, 40)} in its other windows: {_rate(calm)} ({states})"


def _rate(cells: list[Cell]) -> str:
    """Return odd of prompts with the interval; prompts of several cells are added up."""
    odd, prompts = sum(one.odd for one in cells), sum(one.prompts for one in cells)
    low, high = wilson(odd, prompts)
    return f"{odd} of {prompts} prompts (95 %: {100 * low:.0f} to {100 * high:.0f} %)"


def _state(cell: Cell) -> str:
    rows = (
        "rows not on record" if cell.rows is None else f"{cell.rows:.3g} rows in the largest launch of a run on average"
    )
    shares = sorted(cell.regimes.items(), key=lambda pair: -pair[1])[:2]
    return ", ".join([rows, *(f"{name} {100 * share:.0f} %" for name, share in shares)])


def _contrasts(told: Fleet) -> Iterator[str]:
    for one in told.contrasts:
        yield (
            f"{one.condition}: {one.odd_with} of {one.odd} that differ, {one.agreeing_with} of {one.agreeing} "
            f"that agree: {one.verdict} (p {one.p:.2g})"
        )


def plans_screen(told: Plans, width: int) -> Iterator[str]:
    """Yield the four counts with their intervals, and the counter-examples."""
    table = told.table
    yield from wrapped("compared", f"{told.requests} requests with {told.runs} runs, {told.pairs} pairs; "
                       f"{told.undecided} undecided: their launches or bits are not on record", width)  # fmt: skip
    if told.left_out:
        yield from wrapped("left out", f"{told.left_out} runs of requests with too many different ones", width)
    yield ""
    yield f"{'':<{NAMES + 9}}{'same bits':>10}{'other bits':>11}"
    yield f"{'same launch shapes':<{NAMES + 9}}{table.same_plan_same_bits:>10}{table.same_plan_other_bits:>11}"
    yield f"{'other launch shapes':<{NAMES + 9}}{table.other_plan_same_bits:>10}{table.other_plan_other_bits:>11}"
    yield ""
    decided = told.pairs - told.undecided
    if not decided:
        yield from wrapped("so", "nothing: no pair has launches and bits on record", width)
        return
    (low, high), (other_low, other_high) = told.same_plan, told.other_plan
    yield from wrapped("so", f"the same bits in {100 * low:.0f} to {100 * high:.0f} % of pairs with the same launch "
                       f"shapes, in {100 * other_low:.0f} to {100 * other_high:.0f} % with other shapes (95 %; "
                       "pairs of one request depend on each other)", width)  # fmt: skip
    examples = [f"{one} and {other}: same shapes, other bits" for one, other in table.counter_examples]
    yield from some("but", examples, width, MORE)
    if not examples and table.same_plan_same_bits:
        yield from wrapped("", "no counter-example: where the recorded shapes are the same, so are the bits", width)


def risk_screen(told: Risk, width: int) -> Iterator[str]:
    """Yield how many steps stand so close to another answer, what that is worth, and the requests most at risk."""
    whole = told.whole
    if not whole.steps:
        yield "No lead over the next best token is on record: step.top_logits (two of them) and logit_dtype tell it."
        return
    blank = f"; of {told.unknown} more steps it is not on record" if told.unknown else ""
    yield from wrapped("at risk", f"{whole.at_risk} of {whole.steps} steps stand at most {told.ulps:g} ulp from "
                       f"another token, {whole.ties} of them at an exact tie, in {len(told.requests)} of "
                       f"{whole.requests} requests{blank}", width)  # fmt: skip
    if told.rates:
        yield from wrapped("expected", f"{_expected(whole)} answers would change if all launches had other bits", width)
        yield from some("because", [_rated(one) for one in told.rates], width, MORE)
    else:
        yield from wrapped("expected", "not known: no two runs of one request with other bits are on record", width)
    yield ""
    yield from _listed("replica", told.replicas, told, width)
    yield from _listed("family", told.families, told, width)
    if not told.families:
        lacking = "not known: neither system_message_sha256 nor routing_template_version is on record"
        yield from wrapped("family", lacking, width)
    yield from _listed("request", told.requests, told, width)


def _listed(name: str, rows: tuple[AtRisk, ...], told: Risk, width: int) -> Iterator[str]:
    said = [
        f"{one.name}: {one.at_risk} of {one.steps} steps"
        + (f", {_expected(one)} expected" if told.rates else "")
        + (f", the first at token {one.first}" if name == "request" else "")
        for one in rows
    ]
    yield from some(name, said, width, MORE)


def _expected(one: AtRisk) -> str:
    return f"{one.expected or 0:.3g} ({one.low or 0:.2g} to {one.high or 0:.2g})"


def _rated(one: Rate) -> str:
    lead = {0.0: "an exact tie", inf: "more than 4 ulp"}.get(one.ulps, f"up to {one.ulps:g} ulp")
    share = f"{100 * one.low:.1f} to {100 * one.high:.0f} %"
    return f"{lead}: {one.flipped} of {one.steps} steps flipped under other bits ({share})"
