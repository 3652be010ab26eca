"""What reached the engine from outside besides requests: emptied caches, changed limits."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replay.engines.vllm_setup import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Give the orders of this arm, before the same steps counted from the request's arrival."""
    setup.orders = value
    yield


def observe(evidence: Evidence) -> str | None:
    """Return the orders' name where the engine took them all, and none else, before the steps where they belong."""
    due = [(one.order.what, max(one.step, evidence.origin)) for one in evidence.company.inputs
           if one.order is not None and one.order.what != "abort" and one.step <= evidence.last_step]  # fmt: skip
    seen = [(what, step + evidence.origin) for what, step in evidence.ordered]
    return evidence.orders if due == seen else f"{len(seen)} orders taken, {len(due)} due"
