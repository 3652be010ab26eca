"""Same plan, same bits? Over all pairs of runs of the same effective request, in a whole store or a part of it.

The four counts are those of `plan_table.py`. A pair is compared up to its first different token, or to the end of the
shorter answer. Runs that are alike in every launch and every bit are one run counted often, so that a health check
that was asked a thousand times costs no million comparisons and still counts as what it is.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

from forensics.intervals import wilson
from forensics.plan_table import PlanTable, bits_equal, by_token, counted
from forensics.runs.twins import cohorts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.plan_table import Lived
    from forensics.runs.twins import Cohort, Twin
    from forensics.searching import Scope
    from forensics.store import Store

FORMAT = "forensics.plans/1"
KINDS_LIMIT = 100
"""Different runs of one request that are paired; a thousand would make half a million pairs."""


@dataclass(frozen=True)
class Plans:
    """requests: effective requests with at least two runs; runs: of them. table: the four counts.

    undecided: pairs whose launches or bits are not on record. left_out: runs beyond KINDS_LIMIT of one request.
    same_plan, other_plan: 95 % intervals of the share of pairs with the same bits; pairs of one request are not
    independent, so they are narrower than they should be.
    """

    requests: int
    runs: int
    pairs: int
    undecided: int
    left_out: int
    table: PlanTable
    same_plan: tuple[float, float]
    other_plan: tuple[float, float]
    format: str = FORMAT

    @property
    def exit_code(self) -> int:
        """Return 1 with a counter-example, 4 where no pair could be decided, else 0."""
        return 1 if self.table.same_plan_other_bits else 0 if self.pairs > self.undecided else 4

    def document(self) -> dict[str, Any]:
        """Return it for `--format json`."""
        return asdict(self)


def plans(store: Store, within: Scope) -> Plans:
    """Count over every request with at least two runs in the scope; with a replica, pairs of its runs only."""
    found = [(one.x, _here(one, within)) for one in cohorts(store, within)]
    kinds = [(x, _kinds(twins)) for x, twins in found if len(twins) > 1]
    kept = [group[:KINDS_LIMIT] for _, group in kinds]
    table = counted(pair for group in kept for pair in _pairs(group))
    decided = sum((table.same_plan_same_bits, table.same_plan_other_bits, table.other_plan_same_bits,
                   table.other_plan_other_bits))  # fmt: skip
    runs = sum(times for group in kept for _, _, times in group)
    pairs = sum(_of_two(sum(times for _, _, times in group)) for group in kept)
    left = sum(times for _, group in kinds for _, _, times in group[KINDS_LIMIT:])
    return Plans(
        len(kept), runs, pairs, pairs - decided, left, table,
        wilson(table.same_plan_same_bits, table.same_plan_same_bits + table.same_plan_other_bits),
        wilson(table.other_plan_same_bits, table.other_plan_same_bits + table.other_plan_other_bits),
    )  # fmt: skip


def _here(cohort: Cohort, within: Scope) -> list[Twin]:
    return [one for one in cohort.twins if within.replica in (None, one.request["replica_id"])]


def _kinds(twins: list[Twin]) -> list[Lived]:
    """Return the different runs, the most frequent first; of runs without a launch on record each is its own."""
    same: dict[Any, list[Twin]] = defaultdict(list)
    for one in twins:
        same[(one.shapes(), _signature(one)) if one.steps else one.identity].append(one)
    return sorted(
        ((members[0].name, members[0].steps, len(members)) for members in same.values()), key=lambda kind: -kind[2]
    )


def _signature(one: Twin) -> tuple[Any, ...]:
    return tuple(
        (
            row["token_index"], row["token_id"], row["token_tag"], row["logits_sha256"],
            tuple(row["top_logits"] or ()), tuple(row["top_token_ids"] or row["top_token_tags"] or ()),
        )
        for row in one.steps
    )  # fmt: skip


def _pairs(kinds: list[Lived]) -> Iterator[tuple[Lived, Lived, int]]:
    for one, other in combinations(kinds, 2):
        if (until := _until(one, other)) is not None and _launches_known(one) and _launches_known(other):
            yield one, other, until
    for name, steps, times in kinds:
        last = max((row["token_index"] for row in steps if row["token_index"] is not None), default=None)
        if times > 1 and last is not None and _launches_known((name, steps, times)) and bits_equal(steps, steps, last):
            yield (name, steps, _of_two(times)), (name, steps, 1), last


def _until(one: Lived, other: Lived) -> int | None:
    """Return the first output position at which the tokens differ, else the last that both have; None for none."""
    ours, theirs = by_token(one[1]), by_token(other[1])
    both = sorted(ours.keys() & theirs.keys())
    for at in both:
        if _other_token(ours[at], theirs[at]):
            return int(at)
    return int(both[-1]) if both else None


def _other_token(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two steps chose different tokens, by ids or by tags under one key."""
    if None not in (one["token_id"], other["token_id"]):
        return bool(one["token_id"] != other["token_id"])
    same_key = one["token_tag_key_id"] is not None and one["token_tag_key_id"] == other["token_tag_key_id"]
    return same_key and None not in (one["token_tag"], other["token_tag"]) and one["token_tag"] != other["token_tag"]


def _launches_known(run: Lived) -> bool:
    return all(row["batch_tokens"] is not None and row["batch_size"] is not None for row in run[1])


def _of_two(count: int) -> int:
    return count * (count - 1) // 2
