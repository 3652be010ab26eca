"""Prompts that stand in for withheld ones: random ids of equal length that share prefixes as the recorded ones did.

Block hashes are keyed, but equal where the tokens up to there are equal, so each hash gets one block of random ids.
Where a request found more in the prefix cache than any prompt before it explains, it went on from somebody's answer:
that answer is forced to the ids that the later request continues with. Standard library.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from replay.case import Asked


@dataclass(frozen=True)
class StandIn:
    """Ids for a request: its prompt, and the beginning of its answer where that is forced."""

    token_ids: tuple[int, ...]
    forced: tuple[int, ...] = ()


def stand_ins(
    requests: Sequence[Asked], target: str, block: int, vocabulary: int, hits: Mapping[str, int]
) -> dict[str, StandIn]:
    """Return ids for everybody but the target, whose own are kept.

    requests: in the order of arrival; block: tokens of a KV block; hits: request → tokens found in the prefix cache.
    """
    blocks: dict[str, tuple[int, ...]] = {}
    own = next(one for one in requests if one.req_id == target)
    for at, name in enumerate(own.block_hashes):
        blocks[name] = tuple((own.token_ids or ())[at * block : (at + 1) * block])
    found: dict[str, StandIn] = {}
    continued = _continued(requests, block, hits)
    for one in reversed(requests):  # who goes on from an answer comes after it, and settles what it was
        prompt: list[int] = []
        for name in one.block_hashes[: one.tokens // block]:
            prompt += blocks.setdefault(name, draw(name, block, vocabulary))
        later = continued.get(one.req_id)
        tail = one.tokens - len(prompt)
        forced: tuple[int, ...] = ()
        if later is not None:
            theirs = found[later].token_ids
            prompt += theirs[len(prompt) : one.tokens]
            forced = theirs[one.tokens : hits[later]]
        else:
            prompt += draw(one.req_id, tail, vocabulary)
        ids = own.token_ids if one.req_id == target else tuple(prompt)
        found[one.req_id] = StandIn(ids or (), () if one.req_id == target else forced)
    return {name: made for name, made in found.items() if name != target}


def _continued(requests: Sequence[Asked], block: int, hits: Mapping[str, int]) -> dict[str, str]:
    """Return {request: the later one that goes on from its answer}."""
    found: dict[str, str] = {}
    for at, later in enumerate(requests):
        known = {name for one in requests[:at] for name in one.block_hashes}
        explained = block * next((n for n, name in enumerate(later.block_hashes) if name not in known),
                                 len(later.block_hashes))  # fmt: skip
        if hits.get(later.req_id, 0) <= explained:
            continue
        before = [
            one for one in requests[:at]
            if one.block_hashes == later.block_hashes[: len(one.block_hashes)]
            and one.tokens < hits[later.req_id] and one.req_id not in found
        ]  # fmt: skip
        if before:
            found[max(before, key=lambda one: one.tokens).req_id] = later.req_id
    return found


def draw(seed: str, count: int, vocabulary: int) -> tuple[int, ...]:
    """Return random ids, the same for the same seed."""
    chosen = random.Random(seed)  # noqa: S311 - not a secret: the same stand-in in every trial
    return tuple(chosen.randrange(vocabulary) for _ in range(count))
