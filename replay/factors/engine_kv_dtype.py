"""In which form the KV cache keeps keys and values."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from replay.factors import Unpinnable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replay.engines.vllm_setup import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Build the engine with this form."""
    if setup.device == "cpu" and value not in ("auto", "fp8", "fp8_e4m3", "fp8_e5m2"):
        raise Unpinnable(f"engine.kv_dtype={value}: on a CPU vLLM keeps auto, fp8, fp8_e4m3 or fp8_e5m2")
    setup.settings["kv_cache_dtype"] = value
    yield


def observe(evidence: Evidence) -> str | None:
    """Return what the attention layers keep, where the caches that they have can be that."""
    return evidence.built.get("engine.kv_dtype")
