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
    launch = evidence.launches[0]
    if not launch.mask_seen:
        return None
    if launch.attention_mask is None:
        return "0"
    last = launch.attention_mask[evidence.row, 0, -1]
    visible = last if last.dtype.is_floating_point is False else last == 0
    return str(int(visible.int().argmax()))
