"""KV blocks with an identity, and what the device has left when pins and other tenants have taken theirs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

    from tests.simulator.conditions import Conditions

BLOCK_TOKENS = 16
BLOCK_MB = 20.0
POOL_BLOCKS = 1024
POOL_MB = POOL_BLOCKS * BLOCK_MB
SPARE_MB = 1500.0  # device memory beside weights and pool
WORKSPACE_SHARE = 0.5  # of the largest free block a kernel may take


def blocks_for(tokens: int) -> int:
    """Return how many blocks hold that many tokens."""
    return -(-tokens // BLOCK_TOKENS)


@dataclass
class Pool:
    """The KV pool: a free list that hands out the lowest ids, or scattered ones if it was churned."""

    free: list[int] = field(default_factory=lambda: list(range(POOL_BLOCKS)))

    def take(self, count: int, scatter: float, draw: Random) -> list[int]:
        """Hand out blocks; the caller made sure that there are enough."""
        chosen = draw.sample(self.free, count) if scatter else sorted(self.free)[:count]
        gone = set(chosen)
        self.free = [one for one in self.free if one not in gone]
        return chosen

    def give_back(self, blocks: list[int]) -> None:
        """Take blocks back."""
        self.free += blocks

    @property
    def used(self) -> int:
        """Return the number of blocks in use."""
        return POOL_BLOCKS - len(self.free)


@dataclass(frozen=True)
class DeviceMemory:
    """Device memory at one launch, MiB. The engine grows KV into free memory: unused blocks are free memory."""

    vram_free: float
    effective_free: float
    largest_block: float
    workspace_free: float

    @property
    def usable_blocks(self) -> int:
        """Return how many more KV blocks may be taken."""
        return max(0, int(self.effective_free // BLOCK_MB))


def device_memory(pool: Pool, now: Conditions) -> DeviceMemory:
    """Return what is left: pins are hidden in free memory, another tenant is not."""
    free = max(0.0, len(pool.free) * BLOCK_MB + SPARE_MB - now.cotenant_mb)
    effective = max(0.0, free - now.isr_pinned_mb - now.ckpt_pinned_mb)
    largest = max(0.0, effective * (1.0 - now.fragmented) * 0.25)
    return DeviceMemory(free, effective, largest, largest * WORKSPACE_SHARE)
