"""When it happened, by token and by the clock, and in which execution regime."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from forensics.findings import Rung
from forensics.markup import bullets, table
from forensics.text import code, markdown, moment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.explanation import Explanation
    from forensics.lane import Lane
    from forensics.timeline import Span

REGIME_INPUTS = ("batch.headroom_mb|vram_free_mb", "batch.paging_on", "batch.isolation_mode", "step.queue_ms")


def timeline(explanation: Explanation, picture: str | None) -> Iterator[str]:
    """The picture (file name without suffix; None leaves it out) and the moments of both arms by the wall clock."""
    yield "## Timeline"
    if picture is not None:
        yield f"![Request rows, launch tokens, regime and margin by output token, both arms]({quote(picture)}.svg)"
        yield f"The same picture as PNG: {code(picture + '.png')}."
    sources = explanation.sources
    rows = [
        [
            one.arm, code(moment(one.ts)), "" if one.step is None else str(one.step), markdown(one.what, 200),
            "" if one.citation is None else code(f"{sources[one.citation.path]}:{one.citation.line}"),
        ]
        for one in explanation.history
    ]  # fmt: skip
    if rows:
        yield table(["arm", "wall clock", "own step", "what happened", "evidence"], rows)
        if explanation.reference is not None and explanation.reference.run_id != explanation.target.run_id:
            yield "The two arms ran in two runs: their clocks are not compared."
    else:
        yield "No moment is on record."


def regime(explanation: Explanation) -> Iterator[str]:
    """Which execution regime ran, and what pushed us into it?"""
    yield "## Which execution regime ran, and what pushed us into it?"
    if not any(lane.spans for lane in explanation.lanes):
        yield "No step that chose a token is on record: the regime is unknown."
        return
    yield table(["arm", "function", "output tokens", "regime", "worst rank"], list(_rows(explanation.lanes)))
    yield " ".join(_answer(explanation))
    pushed = [finding for finding in explanation.findings if finding.rung < Rung.PLAN]
    if pushed:
        yield "On record below the plan, in the order of the ladder:"
        yield bullets(f"{code(one.code)} ({one.rung.name.lower()}): {markdown(one.says, 600)}" for one in pushed)
    elif explanation.standing == "divergence":
        yield "Nothing below the plan is on record as different."
    if explanation.loops:
        yield "The same again and again, beside the chain and without a say in its grade:"
        yield bullets(markdown(one.told(), 600) for one in explanation.loops)


def _rows(lanes: tuple[Lane, ...]) -> Iterator[list[str]]:
    for lane in lanes:
        for span in lane.spans:
            yield [lane.name, code("regime"), _tokens(lane, span), code(span.state), _rank(lane, span)]
        if lane.extended_differs:
            for span in lane.spans_extended:
                yield [lane.name, code("regime_extended"), _tokens(lane, span), code(span.state), ""]


def _tokens(lane: Lane, span: Span) -> str:
    return f"{lane.token_index[span.first]} to {lane.token_index[span.last]}"


def _rank(lane: Lane, span: Span) -> str:
    rank = lane.rank_of(span)
    return "" if rank is None else str(rank)


def _answer(explanation: Explanation) -> Iterator[str]:
    states = {lane.name: [span.state for span in lane.spans] for lane in explanation.lanes}
    every = {state for one in states.values() for state in one}
    if every == {"normal"}:
        yield "**Every step ran in `normal`: no change of regime pushed this request.**"
        yield "What changed the plan lies elsewhere, as the findings below say." if explanation.chain else ""
    elif len(every) == 1:
        yield f"**Every step ran in {code(every.pop())}**, so the regime does not tell the arms apart."
    else:
        for name, spans in states.items():
            way = " → ".join(code(state) for state in spans[:8]) + (" → …" if len(spans) > 8 else "")
            yield f"The {name} ran in {way}."
        yield f"**{_turn(explanation)}**"
    if any("unknown" in one for one in states.values()):
        lacking = [one.field for one in explanation.coverage if one.field in REGIME_INPUTS and one.missing]
        yield f"Unknown where an input is missing: {', '.join(code(name) for name in lacking) or 'in some steps only'}."
    if not any(lane.extended_differs for lane in explanation.lanes):
        known = any(state != "unknown" for lane in explanation.lanes for state in lane.regime_extended)
        yield (
            "With pinned memory counted out (`regime_extended`) it is the same."
            if known
            else "With pinned memory counted out (`regime_extended`) it is unknown: the pins are not on record."
        )


def _why(lane: Lane) -> str:
    """Return what pushed the first change of regime that shows at a token; prefill steps may have changed before."""
    after = lane.spans[1].state
    return next((one.why for one in lane.transitions if one.after == after), "its inputs are not on record")


def _turn(explanation: Explanation) -> str:
    """Return where the target changed its regime, and whether that was before the flip."""
    target = explanation.lanes[0]
    if len(target.spans) < 2:
        return "The target never changed its regime; the reference ran in another one."
    at, pushed = target.token_index[target.spans[1].first], markdown(_why(target), 300)
    if explanation.flip is None:
        return f"The target first changed its regime at output token {at}: {pushed}."
    when = "before or at" if at <= explanation.flip.token_index else "after"
    flip = explanation.flip.token_index
    return f"The target first changed its regime at output token {at}, {when} the flip at {flip}: {pushed}."
