"""Pad tokens to the right of the request. The next token is then chosen from a pad position: seldom what one wants."""

from collections.abc import Iterator
from contextlib import contextmanager

from replay.factors import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Ask for so many pad tokens."""
    setup.right_pad = int(value)
    yield


def observe(evidence: Evidence) -> str | None:
    """Return how many trailing keys the last query may not see, from the mask that reached attention."""
    seen = evidence.keys_seen()
    return None if seen is None else str(seen[::-1].index(True) if True in seen else 0)
