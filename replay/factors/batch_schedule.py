"""Launches that the request runs in, from its first to its last: an arm's, as recorded, or the request by itself."""

from collections.abc import Iterator
from contextlib import contextmanager

from replay.factors import Evidence, Packed, Setup


@contextmanager
def pin(value: str, setup: Setup) -> Iterator[None]:
    """Ask for the launches; whether the case holds them is checked when they are built."""
    setup.schedule = value
    yield


def observe(evidence: Evidence) -> str | None:
    """Return whose launches they were, from the lengths that reached the model; None where they are nobody's.

    Launches that ended early can fit several: then it is the one that was asked for, if it is among them.
    """
    if not evidence.packed:
        return "alone" if {launch.rows for launch in evidence.launches} == {1} else None
    fitting = [arm for arm, recorded in evidence.schedules.items() if _follows(evidence.packed, recorded)]
    if not any(launch.others() for launch in evidence.packed):
        fitting.append("alone")
    return evidence.schedule if evidence.schedule in fitting else next(iter(fitting), None)


def _follows(seen: list[Packed], recorded: list[Packed]) -> bool:
    """Return whether neighbours and the request's place among them were as recorded; its own chunks are its own."""
    pairs = list(zip(seen, recorded, strict=False))
    return len(pairs) == len(seen) and all(
        one.others() == other.others() and one.own in (None, other.own) for one, other in pairs
    )
