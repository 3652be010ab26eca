"""Position of the request in the launch."""

from collections.abc import Iterator
from contextlib import contextmanager

from replay.factors import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Ask for a position; whether the launch has it is checked when the launch is built."""
    setup.row = int(value)
    yield


def observe(evidence: Evidence) -> str | None:
    """Return the row that tokens were read from, if its ids are the request's, or its last ones in a later chunk."""
    ids, target = evidence.launches[0].input_ids[evidence.row].tolist(), list(evidence.target)
    whole = any(ids[start : start + len(target)] == target for start in range(len(ids) - len(target) + 1))
    tail = evidence.launches[0].cache_length > 0 and target[len(target) - len(ids) :] == ids
    return str(evidence.row) if whole or tail else None
