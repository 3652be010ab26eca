"""Where an execution leaves the recorded schedule, and the likely reason. Pure; standard library."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from replay.case import Composition


def departure(step: int, recorded: Composition, ran: Composition, arrived: set[str], settings: Sequence[str]) -> str:
    """Return what differs in the first engine step that was composed otherwise, and why that may be.

    step: as the record counts. arrived: requests that the trial had admitted by then. settings: what of the engine's
    configuration did not resolve as on record.
    """
    then = {name: (scheduled, computed) for name, scheduled, computed in recorded}
    here = {name: (scheduled, computed) for name, scheduled, computed in ran}
    what, why = _difference(then, here, arrived)
    if settings:
        why = f"the engine here is not the recorded one ({'; '.join(settings[:3])})"
    return f"engine step {step} was composed otherwise than on record: {what}; likely {why}"


def _difference(
    then: dict[str, tuple[int, int]], here: dict[str, tuple[int, int]], arrived: set[str]
) -> tuple[str, str]:
    if absent := [name for name in then if name not in arrived]:  # it explains what else moved in its step
        return f"{absent[0]} is missing", "an arrival that is not on record"
    for name, (scheduled, computed) in then.items():
        if name in here and here[name] == (scheduled, computed):
            continue
        if name not in here:
            return f"{name} did not run", "a smaller KV pool or row limit, or an order that is not on record"
        tokens, before = here[name]
        if before != computed and before + tokens == computed + scheduled:
            hit = "colder" if before < computed else "warmer"
            return f"{name} had {before} tokens computed, on record {computed}", f"a {hit} prefix cache than recorded"
        if before != computed:
            lost = "a preemption that is not on record, or one that did not happen here: another KV pool"
            return f"{name} had {before} tokens computed, on record {computed}", lost
        return f"{name} got {tokens} tokens, on record {scheduled}", "another chunk budget (max_num_batched_tokens)"
    if extra := [name for name in here if name not in then]:
        return f"{extra[0]} ran, on record it did not", "a larger KV pool or row limit, or async scheduling"
    return "the rows stand in another order", "an order of arrival that is not on record"
