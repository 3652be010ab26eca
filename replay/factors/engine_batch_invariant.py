"""vLLM's batch-invariant mode (VLLM_BATCH_INVARIANT), which a process has from its start."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from replay.factors import Unpinnable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replay.engines.vllm_setup import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Check that there is such a mode; the process was started with it."""
    if setup.device == "cpu" and value == "true":
        raise Unpinnable("engine.batch_invariant=true: vLLM has no batch-invariant kernels for a CPU")
    yield


def observe(evidence: Evidence) -> str | None:
    """Return whether vLLM's own kernels took the place of torch's."""
    return evidence.built.get("engine.batch_invariant")
