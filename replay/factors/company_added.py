"""Requests that nobody sent, put beside the target: so many more rows, of so many tokens, in all launches or in one."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from replay.company import Added, added
from replay.factors import Unpinnable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from replay.engines.vllm_setup import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Admit them with the target, or so that they share the launch of one of its passes."""
    one, last = added(value), setup.case.horizon() - 1
    if one.at is not None and one.at > last:
        raise Unpinnable(f"company.added={value}: the trial ends with pass {last}")
    setup.added = one
    yield


def observe(evidence: Evidence) -> str | None:
    """Return which of them shared the target's launches, by the rows that ran; None where that is no one value."""
    if (one := evidence.added) is None:
        return None
    launches = evidence.beside
    shared = launches if one.at is None else launches[one.at : one.at + 1]
    elsewhere = sum(map(len, launches)) - sum(map(len, shared))
    rows, lengths = {len(launch) for launch in shared}, set(shared[0]) if shared else set()
    if elsewhere or len(rows) != 1 or len(lengths) != 1:
        return None
    return str(Added(rows.pop(), lengths.pop(), one.at))
