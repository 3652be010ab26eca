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
    """Return the row that tokens were read from, if its ids really are the request's."""
    ids = evidence.launches[0].input_ids[evidence.row].tolist()
    return str(evidence.row) if tuple(ids[len(ids) - len(evidence.target) :]) == evidence.target else None
