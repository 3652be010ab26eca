"""Would the launches have been others without the burst, or under the reference's limits? The admission rule run again.

An answer counts only where the rule (`admission.py`) reproduces what was recorded of the run: every launch of the
window, from a point at which nothing was carried over to the flip. Where it does not, or does not apply to the engine,
there is no answer and the reason is told. It is support for a link of the log, and no proof: nothing was executed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from forensics.admission import limits, reproduced, schedule
from forensics.burst import around, came
from forensics.errors import ForensicsError
from forensics.windows import window

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from forensics.admission import Limits, Rows
    from forensics.findings import Finding
    from forensics.incident import Incident
    from forensics.store import Store
    from replay.case import Window

LONGEST = 20_000
"""Engine steps of a window beyond which nobody waits for the answer; a busy server may not have been idle for days."""
Shape = tuple[int, int]
"""(tokens, rows) of a launch."""


@dataclass(frozen=True)
class Counterfactual:
    """One question to the rule. cause: the finding that is thought away; asked: how, in words.

    steps, reproduced: launches of the window, and how many the rule reproduces. invalid: why there is no answer; None
    where there is one. own: launches of the target up to the flip under the change; as_recorded, as_reference: how many
    of them, in order, had the tokens and rows that are on record of the target and of the reference. waited,
    waits: engine steps from arrival to the first launch, as recorded and under the change. same_recorded,
    same_reference: all of them, and as many.
    """

    cause: str
    asked: str
    steps: int = 0
    reproduced: int = 0
    invalid: str | None = None
    own: int = 0
    as_recorded: int = 0
    as_reference: int = 0
    waited: int = 0
    waits: int = 0
    same_recorded: bool = False
    same_reference: bool = False

    def told(self) -> str:
        """Return the answer as half a sentence."""
        if self.invalid is not None:
            return f"the admission rule run again says nothing here: {self.invalid}"
        if self.same_recorded:
            result = "the launches stay what they were"
        elif self.same_reference:
            result = f"all {self.own} launches have the reference's size"
        else:
            result = f"{self.as_reference} of {self.own} launches have the reference's size"
        return (
            f"{self.asked} {result}; by the admission rule run again on the recorded arrivals, which reproduces "
            f"{self.reproduced} of {self.steps} recorded launches"
        )


def counterfactuals(store: Store, incident: Incident, findings: Sequence[Finding]) -> tuple[Counterfactual, ...]:
    """Think each cause away that the rule knows of: a burst of arrivals, and other limits than the reference's."""
    codes = {finding.code for finding in findings}
    asked: list[tuple[str, str, list[str], Limits | None]] = []
    target, reference = incident.arms()
    bounds = [limits(arm.engine) for arm in (target, reference)]
    if "arrival_burst" in codes and (life := around(target, incident.lived()[0])) is not None:
        burst = came(target, life.start, life.end)
        asked.append(("arrival_burst", f"without the burst's {len(burst)} requests", burst, None))
    if "environment_change" in codes and bounds[0] != bounds[1] and not isinstance(bounds[1], str):
        named = f"with the reference's limits ({_limits(bounds[1])})"
        asked.append(("environment_change", named, [], bounds[1]))
    return tuple(_answer(store, incident, *one) for one in asked)


def _answer(
    store: Store, incident: Incident, cause: str, asked: str, without: list[str], instead: Limits | None
) -> Counterfactual:
    target, flip = incident.target, incident.flip
    ours, theirs = incident.lived()
    last = ours["engine_step"].max()
    bounds = limits(target.engine)
    if isinstance(bounds, str):
        return Counterfactual(cause, asked, invalid=bounds)
    if flip is None or not isinstance(last, int):
        return Counterfactual(cause, asked, invalid="where the outputs part is not on record step by step")
    try:
        lived = window(store, target, last, LONGEST)
    except ForensicsError as fault:
        return Counterfactual(cause, asked, invalid=fault.message.partition(": ")[2])
    model, changed = schedule(lived, bounds), schedule(lived, instead or bounds, without)
    if isinstance(model, str) or isinstance(changed, str):
        return Counterfactual(cause, asked, invalid=model if isinstance(model, str) else str(changed))
    wrong = reproduced(lived.schedule, model)
    counted = len(lived.schedule), len(lived.schedule) - len(wrong)
    if wrong:
        why = (
            f"it gives another launch than the recorded one at {len(wrong)} of {counted[0]} steps, first at {wrong[0]}"
        )
        return Counterfactual(cause, asked, *counted, invalid=why)
    name, prompt = target.request["req_id"], _prompt(lived, target.request["req_id"])
    own = _own(changed, name, prompt + flip.token_index)
    if own is None:
        return Counterfactual(cause, asked, *counted, invalid="the request would have come further than is on record")
    recorded, reference = (_shapes(steps.select("batch_tokens", "batch_size").rows()) for steps in (ours, theirs))
    shapes = _shapes(own)
    arrived = next(one.arrival_step for one in lived.requests if one.req_id == name)
    return Counterfactual(
        cause, asked, *counted, own=len(shapes),
        as_recorded=sum(one == other for one, other in zip(shapes, recorded, strict=False)),
        as_reference=sum(one == other for one, other in zip(shapes, reference, strict=False)),
        waited=_first(model, name) - arrived, waits=_first(changed, name) - arrived,
        same_recorded=shapes == recorded, same_reference=shapes == reference,
    )  # fmt: skip


def _limits(bounds: Limits) -> str:
    return f"{bounds.rows} rows, {bounds.tokens} tokens, {bounds.blocks} KV blocks of {bounds.block_size} tokens"


def _prompt(lived: Window, name: str) -> int:
    return next(one.tokens for one in lived.requests if one.req_id == name)


def _own(launches: dict[int, Rows], name: str, until: int) -> list[Shape] | None:
    """Return (tokens, rows) of a request's launches until it has computed `until` tokens; None where it does not."""
    shapes = []
    for _, rows in sorted(launches.items()):
        if name in rows:
            shapes.append((sum(tokens for tokens, _ in rows.values()), len(rows)))
            if sum(rows[name]) >= until:
                return shapes
    return None


def _shapes(rows: Iterable[Shape]) -> list[Shape]:
    return [(tokens, size) for tokens, size in rows]


def _first(launches: dict[int, Rows], name: str) -> int:
    return next(step for step, rows in sorted(launches.items()) if name in rows)
