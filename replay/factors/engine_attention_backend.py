"""Attention kernels of vLLM, by its own name for the family."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from replay.factors import Unpinnable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replay.engines.vllm_setup import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Build the engine with this family. vLLM itself would pass over one that a CPU does not have."""
    if setup.device == "cpu" and not value.startswith(("CPU_", "AMX_")):
        raise Unpinnable(
            f"engine.attention_backend={value}: on a CPU vLLM has CPU_ATTN only (CPU_MLA, AMX_MLA for MLA)"
        )
    setup.settings["attention_backend"] = value
    yield


def observe(evidence: Evidence) -> str | None:
    """Return the family that all attention layers use."""
    return evidence.built.get("engine.attention_backend")
