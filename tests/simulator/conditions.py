"""What the world does to a replica at a time. A cause is a disturbance of these conditions and nothing else."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class Conditions:
    """The state of host, device, fabric and operators. The defaults are a healthy replica.

    Compute factors are by rank; megabytes are MiB; link_bandwidth is a factor on the healthy one.
    """

    rank_slow: tuple[tuple[int, float], ...] = ()
    all_slow: float = 1.0
    link_bandwidth: float = 1.0
    link_latency_us: float = 0.0
    retransmits: int = 0
    cotenant_mb: float = 0.0
    isr_pinned_mb: float = 0.0
    ckpt_pinned_mb: float = 0.0
    fragmented: float = 0.0  # share of free device memory that lies in pieces
    tiered_rows: int = 0  # rows that a tiering policy keeps on the host, whatever memory is free
    fallback_ranks: tuple[int, ...] = ()
    requant_ranks: tuple[int, ...] = ()
    requant_cycles: int = 0
    block_scatter: float = 0.0  # share of KV reads that miss the L2 because the blocks lie apart
    admission_paused: bool = False
    padding: str = "bucket"  # bucket: to the captured sizes; double: to the next size above; none
    retuned_share: float = 0.0  # share of launches on a tactic that another tuning chose
    precision_path: str = "fp8"
    graph: str = "cuda_graph"
    isolation: str = "shared"
    jump: float = 0.0  # logits: a wrong value in the output of a kernel
    race: bool = False
    preempt_target: bool = False
    churn_elsewhere: bool = False  # another tactic for prefills alone: a decoy for those that decode


@dataclass(frozen=True)
class Disturbance:
    """A change of conditions from `start` (s) until `stop`, or for ever."""

    change: dict[str, Any]
    start: float = 0.0
    stop: float = float("inf")


def at(disturbances: Sequence[Disturbance], now: float) -> Conditions:
    """Return the conditions at a time; of two disturbances of one thing the later one in the list holds."""
    active = [one.change for one in disturbances if one.start <= now < one.stop]
    return replace(Conditions(), **{name: value for change in active for name, value in change.items()})
