"""The launches of a schedule, row by row, as a trial runs them: the request's own rows among those of its neighbours.

What can reach the bits of one request is how many tokens of others lie around its own, and how long those others have
become; what their tokens are does not. So a schedule needs no one else's prompt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from replay.factors import Packed, Unpinnable

if TYPE_CHECKING:
    from replay.case import Arm, Case
    from replay.factors import Setup

OWN = ""
"""The request's name in a launch; no engine gives an empty one."""


@dataclass(frozen=True)
class PackedRow:
    """One request in a launch: tokens computed in it and before it, and whether its next token is chosen there."""

    req_id: str
    tokens: int
    computed: int
    chooses: bool = True


Launch = tuple[PackedRow, ...]


def launches(case: Case, setup: Setup) -> list[Launch]:
    """Return the launches up to the one that chooses the last token asked for. Raises Unpinnable."""
    prompt, horizon = len(case.token_ids), case.horizon()
    if setup.schedule == "alone":
        whole = (prompt - setup.cached_prefix,)
        found: list[Launch] = [(row,) for row in _pieces(setup.cached_prefix, setup.chunks or whole, prompt)]
    else:
        found = _with_chunks(_recorded(case, setup), setup, prompt)
    length, chosen = prompt, 0
    for at, rows in enumerate(found):
        own = own_row(rows)
        if own is not None:
            if own.computed + own.tokens > length:
                raise Unpinnable(f"batch.schedule={setup.schedule}: its launches do not fit a prompt of {prompt}")
            chooses = own.computed + own.tokens == length
            found[at] = tuple(replace(row, chooses=chooses) if row is own else row for row in rows)
            length, chosen = length + chooses, chosen + chooses
        if chosen == horizon:
            return found[: at + 1]
    if setup.schedule == "alone":
        found += [(PackedRow(OWN, 1, prompt + at),) for at in range(horizon - chosen)]
    return found


def own_row(rows: Launch) -> PackedRow | None:
    """Return the request's row of a launch, None where it has none."""
    return next((row for row in rows if row.req_id == OWN), None)


def packed(arm: Arm) -> list[Packed]:
    """Return an arm's launches as it recorded them."""
    found = []
    for _, rows in arm.schedule:
        names = [name for name, _, _ in rows]
        own = names.index(arm.req_id) if arm.req_id in names else None
        found.append(Packed(tuple((tokens, computed) for _, tokens, computed in rows), own))
    return found


def _recorded(case: Case, setup: Setup) -> list[Launch]:
    """Return an arm's launches. A neighbour whose next row has several tokens is within its prompt: it chooses none."""
    arm = case.incident if setup.schedule == "incident" else case.reference
    if not any(name == arm.req_id for _, rows in arm.schedule for name, _, _ in rows):
        raise Unpinnable(f"batch.schedule={setup.schedule}: the case holds no launches of that arm")
    if any(tokens < 1 for _, rows in arm.schedule for _, tokens, _ in rows):
        raise Unpinnable(f"batch.schedule={setup.schedule}: a row of its launches has no tokens")
    found: list[Launch] = []
    following: dict[str, int] = {}
    for _, rows in reversed(arm.schedule):
        found.append(
            tuple(
                PackedRow(OWN if name == arm.req_id else name, tokens, computed, following.get(name, 1) == 1)
                for name, tokens, computed in rows
            )
        )
        following |= {name: tokens for name, tokens, _ in rows}
    return found[::-1]


def _with_chunks(found: list[Launch], setup: Setup, prompt: int) -> list[Launch]:
    """Return the launches with the prompt cut as pinned: the pieces end where it ended on record."""
    last = next(
        (at for at, rows in enumerate(found) if (own := own_row(rows)) and own.computed + own.tokens == prompt), None
    )
    if last is None:
        raise Unpinnable(f"batch.schedule={setup.schedule}: its launches do not fit a prompt of {prompt}")
    places = [at for at in range(last + 1) if own_row(found[at])]
    lengths = setup.chunks or _lengths(found, places, setup.cached_prefix)
    pieces = _pieces(setup.cached_prefix, lengths, prompt)
    if len(pieces) > len(places):
        raise Unpinnable(f"prefill.chunks: {len(pieces)} pieces, and the prompt had {len(places)} launches on record")
    taken = dict(zip(places[len(places) - len(pieces) :], pieces, strict=True))
    for at in places:
        found[at] = tuple(
            taken[at] if row.req_id == OWN else row for row in found[at] if row.req_id != OWN or at in taken
        )
    return [rows for rows in found if rows]


def _lengths(found: list[Launch], places: list[int], cached: int) -> tuple[int, ...]:
    """Return the pieces on record since the prompt was last begun; the first one grows or shrinks with the prefix."""
    lengths: list[int] = []
    first = 0
    for at in reversed(places):
        own = own_row(found[at])
        assert own
        if lengths and own.computed + own.tokens != first:
            break
        lengths.insert(0, own.tokens)
        first = own.computed
    lengths[0] += first - cached
    if lengths[0] < 1:
        raise Unpinnable(f"prefill.cached_prefix={cached}: the first piece of the prompt ends before it")
    return tuple(lengths)


def _pieces(cached: int, lengths: tuple[int, ...], prompt: int) -> list[PackedRow]:
    if cached + sum(lengths) != prompt or min(lengths) < 1:
        text = f"a cached prefix of {cached} and chunks of {', '.join(map(str, lengths))}"
        raise Unpinnable(f"prefill.chunks: {text} do not make a prompt of {prompt} tokens")
    starts = [cached + sum(lengths[:at]) for at in range(len(lengths))]
    return [PackedRow(OWN, length, start) for start, length in zip(starts, lengths, strict=True)]
