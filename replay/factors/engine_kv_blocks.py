"""Blocks of the KV pool: what does not fit waits or is preempted."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replay.engines.vllm_setup import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Build the engine with a pool of this many blocks."""
    setup.settings["num_gpu_blocks_override"] = int(value)
    yield


def observe(evidence: Evidence) -> str | None:
    """Return how many blocks the pool really holds."""
    return str(evidence.kv_blocks)
