"""What counts as what; rates with intervals."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from forensics.intervals import wilson

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

NO_CAUSE = ("none", "undetermined")


@dataclass(frozen=True)
class Marked:
    """One answer beside the truth. part, cause, level, background and loss are what tables group by."""

    real: bool
    part: str
    cause: str
    level: str
    background: str
    loss: float
    seed: int
    roots: tuple[str, ...]
    true_chain: tuple[str, ...]
    said: str
    said_chain: tuple[str, ...]
    baselines: dict[str, str]

    def outcome(self, said: str | None = None) -> str:
        """Return the outcome of what was said (explain's answer, if not given).

        right: a true root, or 'none'/'undetermined' where that is the truth. abstained: 'undetermined' where a cause
        was to be found. missed: 'none' where something diverged. downstream: something that the cause did change, named
        as the root. false: a cause where there was none, or one that the world did not have.
        """
        said = self.said if said is None else said
        if said in self.roots:
            return "right"
        if said == "undetermined":
            return "abstained"
        if said == "none":
            return "missed"
        return "downstream" if said in self.true_chain else "false"

    @property
    def has_cause(self) -> bool:
        """Return whether the log holds a cause that could be named."""
        return not set(self.roots) & set(NO_CAUSE)


@dataclass(frozen=True)
class Rate:
    """How many of how many, with the 95 % Wilson interval."""

    hits: int
    of: int

    def __str__(self) -> str:
        """Return '12 of 13 (67–99 %)', or a dash where there is nothing to count."""
        if not self.of:
            return "–"
        low, high = wilson(self.hits, self.of)
        return f"{self.hits} of {self.of} ({100 * low:.0f}–{100 * high:.0f} %)"


OUTCOMES = ("right", "abstained", "missed", "downstream", "false")


def rates(marks: Sequence[Marked], rule: str | None = None) -> dict[str, Rate]:
    """Return the rate of each outcome; of a baseline where `rule` names one."""
    count = Counter(one.outcome(one.baselines[rule] if rule else None) for one in marks)
    return {name: Rate(count[name], len(marks)) for name in OUTCOMES}


def grouped(marks: Iterable[Marked], key: Callable[[Marked], Hashable]) -> dict[Hashable, list[Marked]]:
    """Return the marks by a key, in the order of its first appearance."""
    found: dict[Hashable, list[Marked]] = {}
    for one in marks:
        found.setdefault(key(one), []).append(one)
    return found


def confusions(marks: Iterable[Marked]) -> list[tuple[str, str, str, int]]:
    """Return (cause, truth, what was said instead, how often) of all that is neither right nor abstained."""
    wrong = Counter(
        (one.cause, " or ".join(one.roots), one.said) for one in marks if one.outcome() not in ("right", "abstained")
    )
    return [(*key, number) for key, number in wrong.most_common()]
