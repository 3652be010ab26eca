"""Which simulated incidents are scored.

Seeds below SCORED were open to anybody who develops a detector; those from there on are for the score alone. A scored
seed that was looked at is spent: raise `SCORED` when detectors were changed after reading single incidents of it.
"""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from tests.simulator.causes import CAUSES
from tests.simulator.incident import Setting

if TYPE_CHECKING:
    from collections.abc import Iterator

DEVELOPMENT, SCORED = range(1, 100_000), range(1_000_000, 2_000_000)
LOSSES, CLOCK_ERRORS_MS = (0.05, 0.1, 0.3, 0.5), (1.0, 20.0)
RANKED = ("rank_straggler", "fabric_congestion", "state_collapse", "kv_residency_divergence")
TOGETHER = ("rank_straggler", "fabric_congestion", "memory_pressure", "algorithm_change", "policy_injection", "paging")


def settings(seeds: range, rounds: int) -> Iterator[tuple[str, Setting]]:
    """Yield (part of the score, setting), `rounds` times the whole grid, a seed of its own each."""
    seed = iter(seeds)
    for _ in range(rounds):
        for part, causes, values in _grid():
            yield part, Setting(next(seed), causes, **values)


def _grid() -> Iterator[tuple[str, tuple[str, ...], dict]]:
    for name, cause in CAUSES.items():
        for background in cause.where:
            for level in cause.levels:
                yield "complete", (name,), {"background": background, "level": level}
            yield "decoys", (name,), {"background": background, "decoys": 3}
            yield "zero", (name,), {"background": background, "level": "zero", "decoys": 4}
            yield "zero", (name,), {"background": background, "level": "zero"}
        for loss in LOSSES:
            yield "loss", (name,), {"background": cause.where[0], "loss": loss}
        if cause.blind:
            yield "blind", (name,), {"background": cause.where[0], "blind": True}
        if "live" in cause.where:
            yield "fleet", (name,), {"background": "live", "dp": 4}
    for name in RANKED:
        for error in CLOCK_ERRORS_MS:
            yield "clocks", (name,), {"clock_error_ms": error, "background": "mirrored"}
    for pair in combinations(TOGETHER, 2):
        yield "several", pair, {}
