"""The nouns of causality: rung, citation, finding, gap, link. Data only; `chain.py` does the thinking."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal, NamedTuple

ADMISSION = -1
"""Onset of what was settled before the request's first step."""


class Rung(IntEnum):
    """The ladder of causes, lowest first. A cause inside one step stands on a lower rung than its effect."""

    ENVIRONMENT = 0
    WORKLOAD = 1
    MEMORY = 2
    DEVICE = 3
    FABRIC = 4
    SCHEDULER = 5
    PLAN = 6
    NUMERICS = 7
    OUTPUT = 8


class Citation(NamedTuple):
    """A line of evidence."""

    path: str
    line: int

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


How = Literal["observed", "derived", "inferred", "reproduced", "proven"]
Grade = Literal["proven", "supported", "consistent", "possible", "refuted"]
GRADES: tuple[Grade, ...] = ("refuted", "possible", "consistent", "supported", "proven")
"""Weakest first."""


@dataclass(frozen=True)
class Finding:
    """One difference that one detector saw.

    onset: the target's own step (from 0) at which it starts, ADMISSION before the first; steps: all of them, where
    the detector goes step by step.
    target, reference: the values that differ. how: how we know it.
    """

    code: str
    rung: Rung
    says: str
    onset: int
    target: Any = None
    reference: Any = None
    how: How = "observed"
    citations: tuple[Citation, ...] = ()
    steps: tuple[int, ...] = ()


@dataclass(frozen=True)
class Gap:
    """A field that is not on record, and what that stops a detector from saying."""

    code: str
    field: str
    stops: str


@dataclass(frozen=True)
class Link:
    """Cause and effect, with the grade and the reasons for it.

    raise_by: the one field or action that would raise the grade, None when nothing is missing.
    """

    cause: str
    effect: str
    grade: Grade
    why: tuple[str, ...]
    raise_by: str | None = None
