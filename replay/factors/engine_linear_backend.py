"""Kernels of quantised linear layers, by vLLM's name for the family."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from replay.factors import Unpinnable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replay.engines.vllm_setup import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Build the engine with this family."""
    if setup.device == "cpu" and value != "auto":
        raise Unpinnable(f"engine.linear_backend={value}: on a CPU vLLM chooses by itself (auto)")
    setup.settings["linear_backend"] = value
    yield


def observe(evidence: Evidence) -> str | None:
    """Return what the engine resolved; which kernel ran is not read."""
    return evidence.built.get("engine.linear_backend")
