"""The regimes of load that a drill sets, as data; and whether the log shows that each one really was in force."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from forensics.drill.prompts import Prompt

IDLE, AGAIN = "idle", "idle-again"
"""The reference, one request at a time, and its repeat: where these two differ, load is not to blame."""

MIXED_RATIO = 2.0
"""A launch mixes lengths when its longest prompt has at least so many times the tokens of its shortest."""


@dataclass(frozen=True)
class Seen:
    """What the log shows of one regime.

    launches: engine steps. rows, tokens: (median, largest) a launch. mixed: share of launches of several rows that mix
    lengths. preemptions: requests that lost their KV and came back. kv_blocks: size of the pool, None without one.
    """

    launches: int = 0
    rows: tuple[float, int] = (0.0, 0)
    tokens: tuple[float, int] = (0.0, 0)
    mixed: float = 0.0
    preemptions: int = 0
    kv_blocks: int | None = None

    def text(self) -> str:
        """Return it as one phrase."""
        pool = "" if self.kv_blocks is None else f", pool of {self.kv_blocks} blocks"
        return (
            f"{self.launches} launches of {self.rows[0]:g} rows (most {self.rows[1]}) and {self.tokens[0]:g} tokens "
            f"(most {self.tokens[1]}), {self.mixed:.0%} of mixed lengths, {self.preemptions} preemptions{pool}"
        )


@dataclass(frozen=True)
class Regime:
    """One regime: four knobs, and what the log must show.

    lengths: 'similar' asks prompts in order of length; 'mixed' so that those in flight are of all lengths. kv_pool:
    'ample', or 'small': half of what the requests in flight usually need. isolation: 'shared', or 'strict': all wait in
    the queue, and one runs at a time. complaint(seen, concurrency): why it did not occur, None where it did.
    """

    name: str
    lengths: str
    kv_pool: str
    isolation: str
    complaint: Callable[[Seen, int], str | None]

    def sets(self, concurrency: int) -> str:
        """Return the knobs as one phrase."""
        return (
            f"{concurrency} requests in flight, {self.lengths} lengths, {self.kv_pool} KV pool, "
            f"{self.isolation} isolation"
        )

    def ordered(self, prompts: list[Prompt], concurrency: int) -> list[Prompt]:
        """Return the prompts in the order in which this regime asks them."""
        rising = sorted(prompts, key=lambda prompt: (len(prompt.text), prompt.name))
        if self.lengths == "similar":
            return rising
        groups = -(-len(rising) // concurrency)
        return [one for start in range(groups) for one in rising[start::groups]]


def _shared(seen: Seen, concurrency: int) -> str | None:
    if seen.rows[0] * 2 >= concurrency:
        return None
    return f"half of the launches had {seen.rows[0]:g} rows or fewer, not the {concurrency} that were asked for"


def _mixed(seen: Seen, concurrency: int) -> str | None:
    if seen.mixed >= 0.5:
        return _shared(seen, concurrency)
    return f"only {seen.mixed:.0%} of the launches mixed lengths"


def _pressed(seen: Seen, _concurrency: int) -> str | None:
    return None if seen.preemptions else "no request was preempted: the pool was not too small"


def _alone(seen: Seen, _concurrency: int) -> str | None:
    return None if seen.rows[1] == 1 else f"a launch had {seen.rows[1]} rows"


REGIMES = {
    one.name: one
    for one in (
        Regime("concurrency", "similar", "ample", "shared", _shared),
        Regime("mixed_lengths", "mixed", "ample", "shared", _mixed),
        Regime("small_kv_pool", "mixed", "small", "shared", _pressed),
        Regime("isolation_strict", "mixed", "ample", "strict", _alone),
    )
}
WITHOUT_POOL = ("transformers",)
"""Engines that keep KV in free memory: there is no pool to make small."""
