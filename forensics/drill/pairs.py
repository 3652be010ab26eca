"""One request beside its idle reference: where they part, whether the bits were the same, how far logits moved."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from forensics.margin import in_ulps

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

ENDED = ("stop", "length")
"""Finish reasons of a request that was not cut off."""

Row = dict[str, Any]
"""One row of sql/drill_steps.sql."""


@dataclass(frozen=True)
class Pair:
    """One request beside its idle reference. `flip`: output position, None without one; `compared`: positions.

    other_bits: compared positions whose logits were not the same bits, None where hashes are not on record. moved: the
    furthest that the two best tokens moved against each other, and gap: top-1 minus top-2 of idle at the flip, both in
    ulp of the logit dtype, None where they are not on record.
    """

    req_id: str
    prompt: str
    family: str
    flip: int | None
    compared: int
    other_bits: int | None
    moved: float | None
    gap: float | None


def tokens(steps: Iterable[Row]) -> list[Row]:
    """Return the steps that chose a token, by output position; of a repeated position the last counts."""
    chosen = {row["token_index"]: row for row in steps if row["token_index"] is not None}
    whole = [chosen.get(index) for index in range(len(chosen))]
    return [row for row in whole if row is not None]


def compare(req_id: str, prompt: str, family: str, idle: Sequence[Row], steps: Sequence[Row]) -> Pair | None:
    """Compare one request with its idle reference; None where one of them was cut off before they parted."""
    ours, theirs = tokens(steps), tokens(idle)
    positions = list(zip(ours, theirs, strict=False))
    flip = next((at for at, (one, other) in enumerate(positions) if one["token_id"] != other["token_id"]), None)
    ended = all(rows and rows[-1]["finish_reason"] in ENDED for rows in (ours, theirs))
    if flip is None and not ended:
        return None
    shared = positions if flip is None else positions[: flip + 1]
    hashes = [(one["logits_sha256"], other["logits_sha256"]) for one, other in shared]
    known = all(one and other for one, other in hashes)
    moves = [move for one, other in shared if (move := _move(one, other)) is not None]
    gap = None if flip is None else margin(theirs[flip])
    return Pair(
        req_id, prompt, family, flip, len(shared), sum(one != other for one, other in hashes) if known else None,
        max(moves, default=None), gap,
    )  # fmt: skip


def margin(row: Row) -> float | None:
    """Return top-1 minus top-2 in ulp."""
    top = row["top_logits"]
    return in_ulps(top[0] - top[1], top[0], row["logit_dtype"]) if top and len(top) > 1 else None


def _move(row: Row, idle: Row) -> float | None:
    """Return how far the two best tokens of idle moved against each other, in ulp of idle's best."""
    if not idle["top_token_ids"] or not row["top_token_ids"] or len(idle["top_token_ids"]) < 2:
        return None
    here = dict(zip(row["top_token_ids"], row["top_logits"], strict=False))
    first, second = idle["top_token_ids"][:2]
    if first not in here or second not in here:
        return None
    before = idle["top_logits"][0] - idle["top_logits"][1]
    return in_ulps(here[first] - here[second] - before, idle["top_logits"][0], row["logit_dtype"])
