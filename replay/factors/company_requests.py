"""Whose requests are in the engine beside the target: they share its launches, its KV pool and its prefix cache."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from replay.company import company
from replay.factors import Unpinnable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replay.engines.vllm_setup import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Admit these requests, each before the step before which it had arrived, counted from the target's arrival."""
    try:
        company(setup.case, value, setup.orders)
    except ValueError as fault:
        raise Unpinnable(str(fault)) from None
    setup.requests = value
    yield


def observe(evidence: Evidence) -> str | None:
    """Return the value where the scheduler took just these requests, in order, with their lengths, at their steps."""
    due = [(one.req_id, step, one.tokens) for step, one in evidence.company.requests() if step <= evidence.last_step]
    seen = [(name, step + evidence.origin, tokens) for name, step, tokens, _ in evidence.arrived]
    if due == seen:
        return evidence.requests
    return f"{len(seen)} requests taken, {len(due)} due"
