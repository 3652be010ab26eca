"""Requests that a launch may hold, as the engine is built with it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replay.engines.vllm_setup import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Build the engine with this limit, and with one on admission that goes along where it did on record."""
    limits = setup.case.engine.get("scheduler_limits") or {}
    rows, admitted = int(value), limits.get("max_num_active_seqs")
    setup.settings["max_num_seqs"] = rows
    if admitted is not None:
        setup.settings["max_num_active_seqs"] = rows if admitted == limits.get("max_num_seqs") else min(rows, admitted)
    yield


def observe(evidence: Evidence) -> str | None:
    """Return the limit that the scheduler has, unless a launch was seen above it."""
    limit = evidence.limits.get("max_num_seqs")
    return None if limit is None or evidence.rows > limit else str(limit)
