"""A file is a detector; its name is the public cause code, its docstring's first line says what it looks for.

A member offers RUNG (its place on the ladder), SEEN ('real engine' or 'simulated only': where it has fired so far)
and `detect(incident)`, which yields findings on its own rung, and gaps where a missing field kept it from looking.
Yielding nothing means: looked, with what it needs on record, and ruled out. It never knows other detectors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.findings import Finding, Gap, Rung
    from forensics.incident import Incident


class Detector(Protocol):
    """What every file in this room offers."""

    RUNG: Rung
    SEEN: str

    def detect(self, incident: Incident) -> Iterator[Finding | Gap]:
        """Yield what differs between the two arms, as far as this detector's rung is concerned."""
        ...
