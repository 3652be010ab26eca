"""Collectives of one launch: every rank waits for the last one, then the bytes move."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.simulator.conditions import Conditions

ALPHA_MS, BANDWIDTH_MB_MS, TOKEN_BYTES = 1.2, 2.0, 32768  # bytes of a token over a group of layers
PER_LAUNCH = 2


@dataclass(frozen=True)
class Collective:
    """One all-reduce: when each rank came, when it ended (s from the start of the launch), and what was sent."""

    starts: tuple[float, ...]
    end: float
    compute_ms: tuple[float, ...]
    bytes: int
    retransmits: int


def collectives(
    step: int, tokens: int, compute_ms: Sequence[float], now: Conditions, seed: str
) -> tuple[Collective, ...]:
    """Return the collectives of a launch; compute is cut evenly between them. Without peers there is none."""
    if len(compute_ms) < 2:
        return ()
    draw, begin, found = Random(f"{seed}/fabric/{step}"), 0.0, []
    size = tokens * TOKEN_BYTES
    for _ in range(PER_LAUNCH):
        own = tuple(ms / PER_LAUNCH for ms in compute_ms)
        starts = tuple(begin + ms / 1000 for ms in own)
        move = ALPHA_MS + now.link_latency_us / 1000 + size / 1e6 / (BANDWIDTH_MB_MS * now.link_bandwidth)
        again = sum(draw.random() < 0.5 for _ in range(2 * now.retransmits))
        move = (move + 0.2 * again) * draw.lognormvariate(0.0, 0.02)
        begin = max(starts) + move / 1000
        found.append(Collective(starts, begin, own, size, again))
    return tuple(found)
