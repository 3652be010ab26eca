"""The feedback loop over time: a preemption is recomputed, the recomputation holds KV, and that preempts again.

A chain of causes has no place for it: there each code stands once, with the step at which it begins, so links only
lead up the ladder and a grade is that of the weakest of them. A loop is the other reading: one kind of thing again and
again, each after the one before, with counts. It stands beside the chain and takes no part in its grade.

A turn is read from the record: request A lost its KV, was computed again at engine step u, and while A still ran
another preemption took place after u. Order is that of engine steps. That the second would not have taken place
without the first is not shown by it: requests that arrive, and contexts that grow, fill a pool as well. So turns in
which nobody arrived between are counted apart; only those leave growth alone as the competitor.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import polars as pl

if TYPE_CHECKING:
    from forensics.evidence import Evidence
    from forensics.store import Store


@dataclass(frozen=True)
class Loop:
    """Preemption → recomputation → preemption, turn after turn.

    first_step, last_step: engine steps of the run, of the first preemption and of the last recomputation in it. turns:
    how often a recomputation led on to the next preemption. closed: turns between whose two preemptions nobody arrived.
    requests: who was preempted. recomputed_tokens: computed again in first launches after a preemption. waiting: engine
    steps from first to last in which somebody was left waiting, None where no queue is on record.
    own_steps: steps of the request in question that fell into it; at_flip: its flip did. None without a request.
    """

    first_step: int
    last_step: int
    turns: int
    closed: int | None
    preemptions: int
    requests: tuple[str, ...]
    recomputed_tokens: int
    waiting: int | None
    own_steps: int | None = None
    at_flip: bool | None = None

    @property
    def steps(self) -> int:
        """Return for how many engine steps it went on."""
        return self.last_step - self.first_step + 1

    def told(self) -> str:
        """Return it as a sentence without its full stop."""
        said = (
            f"from engine step {self.first_step}, for the next {self.steps} steps: preemption → recomputation → "
            f"preemption, {self.turns} turn{'s' * (self.turns != 1)}, {self.preemptions} preemptions of "
            f"{len(self.requests)} requests, {self.recomputed_tokens} tokens computed again"
        )
        if self.waiting is not None:
            said += f", somebody waiting in {self.waiting} of the steps"
        if self.closed is not None:
            said += f"; in {self.closed} of the turns nobody arrived between the two preemptions"
        if self.own_steps is not None:
            said += f"; {self.own_steps} steps of this request fell into it"
        return said + (", the flip among them" if self.at_flip else "")


def loops(store: Store, run_id: str, replica_id: str) -> list[Loop]:
    """Return the loops of a run, in order."""
    where = {"run_id": run_id, "replica_id": replica_id}
    again = store.ask("recomputations", **where).drop_nulls("before_step").to_dicts()
    arrived = store.ask("arrivals", **where)["arrival_step"].drop_nulls().sort().to_list()
    chains: list[list[dict[str, Any]]] = []
    for one in sorted(again, key=lambda row: (row["before_step"], row["engine_step"])):
        if chains and _held(chains[-1], one) is not None:
            chains[-1].append(one)
        else:
            chains.append([one])
    return [_loop(store, where, chain, arrived) for chain in chains if len(chain) > 1]


def loops_of(store: Store, arm: Evidence, flip: int | None) -> tuple[Loop, ...]:
    """Return the loops that ran while a request did, up to the flip at its own step `flip` (None: to its end)."""
    lived = arm.steps if flip is None else arm.steps.filter(pl.col("step") <= flip)
    steps = lived["engine_step"].drop_nulls().to_list()
    inside = ((one, [step for step in steps if one.first_step <= step <= one.last_step])
              for one in loops(store, *arm.identity[:2]))  # fmt: skip
    return tuple(
        replace(one, own_steps=len(own), at_flip=None if flip is None else own[-1] == steps[-1])
        for one, own in inside if own
    )  # fmt: skip


def _lost_at(row: dict[str, Any]) -> int:
    """Return the engine step at which a request lost its KV: the first that did not have it, though it was running."""
    return int(row["before_step"]) + 1


def _held(chain: list[dict[str, Any]], row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the latest recomputation that still held KV when this preemption took place."""
    return next((one for one in reversed(chain) if one["engine_step"] < _lost_at(row) <= one["held_until"]), None)


def _loop(store: Store, where: dict[str, str], chain: list[dict[str, Any]], arrived: list[int]) -> Loop:
    closed = turns = 0
    for place, row in enumerate(chain):
        led = _held(chain[:place], row)
        if led is not None:
            turns += 1
            closed += bisect_right(arrived, _lost_at(row)) == bisect_right(arrived, _lost_at(led))
    first, last = _lost_at(chain[0]), max(row["engine_step"] for row in chain)
    batches = store.ask("batches", **where, first=first, last=last)
    queues = batches.group_by("engine_step").agg(pl.max("queue_depth"))["queue_depth"].drop_nulls()
    return Loop(
        first_step=first, last_step=last, turns=turns, closed=closed if arrived else None, preemptions=len(chain),
        requests=tuple(sorted({row["req_id"] for row in chain})),
        recomputed_tokens=sum(row["tokens"] or 0 for row in chain),
        waiting=int((queues > 0).sum()) if len(queues) else None,
    )  # fmt: skip
