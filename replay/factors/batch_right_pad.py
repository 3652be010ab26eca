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
    launch = evidence.launches[0]
    if not launch.mask_seen:
        return None
    if launch.attention_mask is None:
        return "0"
    last = launch.attention_mask[evidence.row, 0, -1]
    visible = last if last.dtype.is_floating_point is False else last == 0
    return str(int(visible.flip(0).int().argmax()))
