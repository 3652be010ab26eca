"""Decode with keys and values kept, or by computing the whole sequence again for every token."""

from collections.abc import Iterator
from contextlib import contextmanager

from replay.factors import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Keep a cache, or none."""
    setup.use_cache = value == "kv_cache"
    yield


def observe(evidence: Evidence) -> str | None:
    """Return the mode from the width of the second pass: one token, or all of them. One pass alone is both."""
    if len(evidence.launches) < 2:
        return None
    first, second = evidence.launches[:2]
    if second.cache_length and second.width == 1:
        return "kv_cache"
    return "recompute" if second.width == first.width + 1 and not second.cache_length else None
