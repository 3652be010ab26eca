"""Contents of the other rows. Where kernels never look at data they do not matter; this is how to check."""

from collections.abc import Iterator
from contextlib import contextmanager

from replay.factors import Evidence, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Ask for contents; whether the recorded ones are at hand is checked when the launch is built."""
    setup.neighbours = value
    yield


def observe(evidence: Evidence) -> str | None:
    """Return what the other rows held in the first pass."""
    rows = evidence.launches[0].input_ids.tolist()
    others = [tuple(ids) for index, ids in enumerate(rows) if index != evidence.row]
    if not others:
        return None
    recorded = evidence.neighbours
    if recorded is not None and all(
        ids[len(ids) - len(own) :] == own for ids, own in zip(others, recorded, strict=True)
    ):
        return "recorded"
    return "zeros" if not any(any(ids) for ids in others) else "random"
