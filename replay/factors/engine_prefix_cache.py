"""Whether the engine keeps the KV of prefixes for later requests."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replay.engines.vllm_setup import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Build the engine with or without a prefix cache."""
    setup.settings["enable_prefix_caching"] = value == "true"
    yield


def observe(evidence: Evidence) -> str | None:
    """Return whether the block pool caches; no request may have found anything in one that does not."""
    return "true" if evidence.caching else None if evidence.cached_tokens else "false"
