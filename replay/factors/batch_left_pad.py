"""Pad tokens to the left of the request. With the request's length it gives the width of the launch."""

from collections.abc import Iterator
from contextlib import contextmanager

from replay.factors import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Ask for so many pad tokens."""
    setup.left_pad = int(value)
    yield


def observe(evidence: Evidence) -> str | None:
    """Return how many leading keys the last query may not see, from the mask that reached attention."""
    seen = evidence.keys_seen()
    return None if seen is None else str(seen.index(True) if True in seen else 0)
