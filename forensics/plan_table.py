"""Same plan, same bits? The four counts over pairs of runs of one request, counter-examples included.

A plan here is the sequence of shape classes up to the flip; bits are the recorded logits up to the flip. Two runs
under one plan with other bits mean that the plan on record is incomplete, or a race (LockStep's rule; see
docs/causality.md). Without a pair under one plan, the log alone cannot tell the shape's effect from chance.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from forensics.flip import same_bits
from forensics.timeline import shape_class

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from forensics.incident import Incident

Step = dict[str, Any]
Lived = tuple[str, list[Step], int]
"""A run: its name, its steps in order, and how many runs were exactly like it."""


@dataclass(frozen=True)
class PlanTable:
    """Counts of pairs of runs; `counter_examples` are pairs under one plan with other bits."""

    same_plan_same_bits: int = 0
    same_plan_other_bits: int = 0
    other_plan_same_bits: int = 0
    other_plan_other_bits: int = 0
    counter_examples: tuple[tuple[str, str], ...] = ()

    def dose(self) -> tuple[bool | None, str]:
        """Return whether bits follow the plan: False on a counter-example, None without a pair under one plan."""
        if self.same_plan_other_bits:
            pairs = ", ".join(f"{one} / {other}" for one, other in self.counter_examples[:3])
            return False, (
                f"dose: {self.same_plan_other_bits} pairs of runs had the same launch shapes and other bits ({pairs}): "
                "what is on record of the plan does not decide the bits, or there is a race"
            )
        if self.same_plan_same_bits:
            return True, (
                f"dose: {self.same_plan_same_bits} pair(s) of runs with the same launch shapes have the same bits; "
                f"{self.other_plan_other_bits} of {self.other_plan_other_bits + self.other_plan_same_bits} pairs "
                "with other shapes have other bits"
            )
        return None, "dose: no two runs of this request had the same launch shapes, so chance is not ruled out"

    @property
    def raise_by(self) -> str:
        """Return what would raise the grade of shape → bits."""
        return "a second run of the same request in the same launch shapes (send it twice at idle), or a replay"


def plan_table(incident: Incident) -> PlanTable:
    """Count over target, reference and the rest of the cohort, all up to the flip's output position."""
    if incident.flip is None or incident.reference is None:
        return PlanTable()
    arms = (incident.target, incident.reference, *incident.cohort)
    input_ids = incident.target.request["effective_token_ids_sha256"]  # another input has other bits under any plan
    runs = {arm.identity: arm for arm in arms if arm.request["effective_token_ids_sha256"] == input_ids}
    until = incident.flip.token_index
    lived = [(arm.name, arm.steps.to_dicts(), 1) for arm in runs.values()]
    return counted((one, other, until) for one, other in combinations(lived, 2))


def counted(pairs: Iterable[tuple[Lived, Lived, int]]) -> PlanTable:
    """Count pairs of runs, each compared up to its output position; pairs without the bits on record are left out."""
    counts = {(plan, bits): 0 for plan in (True, False) for bits in (True, False)}
    examples = []
    for (name, one, times), (others, other, others_times), until in pairs:
        bits = bits_equal(one, other, until)
        if bits is None:
            continue
        plan = _shapes(one, until) == _shapes(other, until)
        counts[plan, bits] += times * others_times
        if plan and not bits:
            examples.append((name, others))
    return PlanTable(
        counts[True, True], counts[True, False], counts[False, True], counts[False, False], tuple(examples)
    )


def _shapes(steps: Sequence[Step], until: int) -> list[str]:
    chosen = [row["step"] for row in steps if row["token_index"] is not None and row["token_index"] <= until]
    last = max(chosen, default=None)
    return [shape_class(row) for row in steps if last is None or row["step"] <= last]


def by_token(steps: Sequence[Step]) -> dict[int, Step]:
    """Return the step that chose each output position; of a repeated position the last counts."""
    return {row["token_index"]: row for row in steps if row["token_index"] is not None}


def bits_equal(one: Sequence[Step], other: Sequence[Step], until: int) -> bool | None:
    """Return whether logits agree at every output position up to `until`; None where a position is not on record."""
    verdicts = [same_bits(*pair) for pair in token_steps(one, other, until)]
    if False in verdicts:
        return False
    return True if len(verdicts) == until + 1 and None not in verdicts else None


def token_steps(one: Sequence[Step], other: Sequence[Step], until: int) -> list[tuple[Step, Step]]:
    """Return the steps of two runs that chose the same output position, up to and including `until`."""
    ours, theirs = by_token(one), by_token(other)
    return [(ours[at], theirs[at]) for at in range(until + 1) if at in ours and at in theirs]
