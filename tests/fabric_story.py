"""A run of several ranks told in a few lines: one step after another, its collectives, and what goes wrong in some."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

from tests.story import A, B, Story

if TYPE_CHECKING:
    from collections.abc import Callable

BEFORE, LIVED = 40, 4
"""Engine steps before the request's first, and its own."""
Edit = dict[str, Any]


def healthy(_: int, __: int, record: Edit) -> Edit:
    return record


def run(
    name: str,
    fault: Callable[[int, int, Edit], Edit] = healthy,
    *,
    ranks: int = 4,
    rows: int = 4,
    output: tuple[int, ...] = A,
    cut: int | None = None,
    **request: Any,
) -> Story:
    """One request after BEFORE steps. fault: (engine step, rank, record) → record; before it, waiting is worked out.

    cut: the engine step before which the limit of rows was halved.
    """
    story = Story(name).engine(tp_size=ranks)
    story.engine_step = BEFORE
    story.request(name, output, rows=rows, drift=0.0 if output == A else 0.25, **({"arrival_step": BEFORE} | request))
    if cut is not None:
        detail = {"limit": "rows", "before": 4, "after": 2}
        story.add("event", what="batch_limit_change", engine_step=cut, rank=0, detail=detail)
    chance = random.Random(name)
    for step in range(BEFORE + LIVED):
        for call, (op, size) in enumerate((("all_reduce", 4096), ("all_gather", 1024))):
            records = [
                fault(
                    step, rank,
                    {"compute_ms": 2 * chance.uniform(0.97, 1.03), "wire_ms": 0.5 * chance.uniform(0.95, 1.05),
                     "bytes": size, "op": op, "retransmits": 0},
                )
                for rank in range(ranks)
            ]  # fmt: skip
            last = max(record["compute_ms"] for record in records)
            wire = max(record.pop("wire_ms") for record in records)
            for rank, record in enumerate(records):
                comm_ms = wire + last - record["compute_ms"]
                facts = {"engine_step": step, "rank": rank, "comm_id": "tp-0", "seq_no": 2 * step + call}
                story.add("collective", **facts, comm_ms=comm_ms, clock_id=f"clock-{rank}", **record)
    return story


def stalled(
    rank: int = 2, times: float = 3.0, first: int = 20, last: int = 43, work: float = 1.0, **more: Any
) -> Callable[..., Edit]:
    """One rank computes so many times longer in some steps, on so many times the bytes; more: what else it says."""

    def fault(step: int, at: int, record: Edit) -> Edit:
        if at != rank or not first <= step <= last:
            return record
        return record | {"compute_ms": record["compute_ms"] * times, "bytes": int(record["bytes"] * work)} | more

    return fault


def slow_wire(times: float = 4.0, first: int = 28, last: int = 43, **more: Any) -> Callable[..., Edit]:
    """Every transfer takes so many times longer in some steps."""

    def fault(step: int, _: int, record: Edit) -> Edit:
        return record | {"wire_ms": record["wire_ms"] * times} | more if first <= step <= last else record

    return fault


def both(*faults: Callable[..., Edit]) -> Callable[..., Edit]:
    def fault(step: int, rank: int, record: Edit) -> Edit:
        for one in faults:
            record = one(step, rank, record)
        return record

    return fault


def incident(fault: Callable[..., Edit], cut: int | None = 25, **more: Any) -> tuple[Story, Story]:
    """A run with a fault, whose batch was halved, and a calm one: told(folder, *incident(…), req='load')."""
    return run("load", fault, rows=2, output=B, cut=cut, **more), run("calm", ranks=more.get("ranks", 4))
