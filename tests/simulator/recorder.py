"""Launches as contract lines: one writer a rank, each on the clock of its host; and what gets lost.

Nothing but JSON and the words of `schemas/` is used. engine and request lines reach the log (they are written in parts,
again and again); what a hot path writes can be lost in bursts, and the gap in `seq` tells.
"""

from __future__ import annotations

import json
from random import Random
from typing import TYPE_CHECKING, Any

from tests.simulator import records

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.simulator.numerics import Chosen
    from tests.simulator.records import Facts
    from tests.simulator.replica import Launch

EPOCH, BOOT_NS = 1_790_000_000.0, 10**12
HOST_RANKS = 4
LOSS_RUN = 8  # lines that are lost together, on average
ALWAYS_KEPT = ("engine", "request")


class Clock:
    """Wall clocks of the hosts: each is off by a constant; the error is the standard deviation of that."""

    def __init__(self, run_id: str, error_ms: float, seed: str) -> None:
        draw = Random(f"{seed}/clock")
        self.run_id = run_id
        self.offsets = [draw.gauss(0.0, error_ms / 1000) for _ in range(8)]

    def host(self, rank: int) -> str:
        """Return the host of a rank."""
        return f"{self.run_id}-host{rank // HOST_RANKS}"

    def wall(self, rank: int, now: float) -> float:
        """Return what the rank's host shows at `now` (s since the run began), in Unix seconds."""
        return round(EPOCH + now + self.offsets[rank // HOST_RANKS], 6)

    def stamp(self, rank: int, now: float) -> dict[str, Any]:
        """Return the fields that tell when a line was written."""
        return {
            "ts": self.wall(rank, now),
            "clock_id": f"{self.host(rank)}-monotonic",
            "mono_ns": BOOT_NS + int(now * 1e9),
        }

    def brackets(self, ranks: int) -> dict[str, Any]:
        """Return the bracketed readings of wall and monotonic clock, as an engine record states them."""
        return {
            f"{self.host(rank)}-monotonic": {
                "wall_ts": self.wall(rank, 0.0), "mono_before_ns": BOOT_NS, "mono_after_ns": BOOT_NS + 20_000,
            }
            for rank in range(ranks)
        }  # fmt: skip


def write(
    path: Path, facts: Facts, launches: list[Launch], said: dict[str, list[Chosen]], *,
    clock_error_ms: float, loss: float, seed: str,
) -> None:  # fmt: skip
    """Write the log of one run. said: the chosen tokens of requests by id. loss: share of hot-path lines, below 1."""
    clock = Clock(facts.run_id, clock_error_ms, seed)
    lines: dict[int, list[dict[str, Any]]] = {}
    for rank, now, entry in _entries(facts, launches, said, clock):
        kept = {name: one for name, one in entry.items() if one is not None and facts.sees(entry["kind"], name)}
        identity = {"run_id": facts.run_id, "replica_id": facts.replica_id}
        lines.setdefault(rank, []).append(identity | kept | clock.stamp(rank, now))
    with path.open("w", encoding="utf-8") as out:
        for rank, written in sorted(lines.items()):
            for one in _after_loss(rank, written, facts.run_id, loss, seed):
                out.write(json.dumps(one) + "\n")


def _entries(
    facts: Facts, launches: list[Launch], said: dict[str, list[Chosen]], clock: Clock
) -> Iterator[tuple[int, float, dict[str, Any]]]:
    """Yield (rank, when, record)."""
    ranks = len(launches[0].works)
    hosts = [clock.host(rank) for rank in range(ranks)]
    yield 0, 0.0, records.engine(facts, hosts, clock.brackets(ranks))
    for before, launch in zip([launches[0], *launches], launches, strict=False):
        for rank, entry in records.of_launch(before, launch, said, clock.wall):
            if facts.sees("event", entry.get("what", "")):
                yield rank, launch.start, entry
    for end, entry in records.requests(facts, launches, said, clock.wall):
        yield 0, end, entry
    yield 0, launches[-1].end, {"kind": "event", "what": "shutdown", "detail": {"engine_steps": len(launches)}}


def _after_loss(
    rank: int, lines: Iterable[dict[str, Any]], run_id: str, loss: float, seed: str
) -> Iterator[dict[str, Any]]:
    """Number a writer's lines and lose some, in bursts; the share that is lost is `loss` on average."""
    draw, losing = Random(f"{seed}/loss/{rank}"), 0
    for number, one in enumerate(lines, start=1):
        if losing == 0 and draw.random() < loss / (1.0 - loss) / LOSS_RUN:
            losing = 1 + int(draw.expovariate(1.0 / (LOSS_RUN - 1)))
        if losing == 0 or one["kind"] in ALWAYS_KEPT:
            yield one | {"seq": number, "writer": f"{run_id}-rank{rank}"}
        losing = max(0, losing - 1)
