"""Degrees of freedom of a run: what its state can be told by at each launch, with the workload taken out.

Each is a series in which more is worse. What the workload alone moves is compared within one class of work only: step
time among launches of equal tokens, rows and context, memory among launches of equal rows and context, the tactic among
launches of one shape. So a run that gets other work does not move; one that does the same work worse does.
Batch size is told as the share of those present who were left waiting: fewer rows because fewer came are no change.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    import polars as pl

Row = dict[str, Any]
LEAST = 0.1
"""The least change that counts: a tenth of step time, memory, requests or launches. A choice."""
TOGETHER = 3
"""How many that change at one point are a state collapse: a limit that is reached moves two. A choice."""
CONTEXTS = 2
"""Classes of context to each doubling of it: attention reads all of it at every step."""


@dataclass(frozen=True)
class Freedom:
    """One degree of freedom. values: one a launch, more is worse; None where it is not on record.

    fields: what must be on record to see it. says: what a change of it is, with a slot for how much.
    """

    name: str
    fields: str
    says: str
    values: tuple[float | None, ...]

    @property
    def known(self) -> bool:
        """Return whether at least half of the launches state it."""
        return 2 * sum(value is not None for value in self.values) >= max(len(self.values), 1)

    def series(self) -> list[float]:
        """Return the values, of an unknown one the last known: a hole is no change."""
        last = next((value for value in self.values if value is not None), 0.0)
        return [last := (last if value is None else value) for value in self.values]

    def told(self, before: float, after: float) -> str:
        """Return a change of level in words."""
        ratio = math.exp(after - before) if self.name == "step_time" else after - before
        return self.says.format(f"x {ratio:.2f}" if self.name == "step_time" else f"{100 * ratio:+.0f} points")


def freedoms(launches: pl.DataFrame) -> tuple[Freedom, ...]:
    """Return the degrees of freedom of `launches.launches`, in the order of the ladder."""
    rows = launches.to_dicts()
    return (
        Freedom("memory", "batch.kv_blocks_free or batch.headroom_mb",
                "share of memory in use for the same work {}", _matched(rows, _memory, _contents)),
        Freedom("waiting", "batch.queue_depth", "share of those present left waiting {}",
                tuple(_waiting(row) for row in rows)),
        Freedom("step_time", "batch.step_ms", "step time for the same work {}", _matched(rows, _log_ms, _work)),
        Freedom("tactic", "batch.algo_id or batch.kernel_variant",
                "launches with another algorithm than is usual for their shape {}", _unusual(rows)),
    )  # fmt: skip


def _matched(
    rows: Sequence[Row], value: Callable[[Row], float | None], key: Callable[[Row], Hashable]
) -> tuple[float | None, ...]:
    """Return how far each row is above the median of its class; None for a row that is alone in it."""
    values = [value(row) for row in rows]
    classes: dict[Hashable, list[float]] = {}
    for row, one in zip(rows, values, strict=True):
        if one is not None:
            classes.setdefault(key(row), []).append(one)
    middle = {name: median(members) for name, members in classes.items() if len(members) > 1}
    return tuple(
        None if one is None or key(row) not in middle else one - middle[key(row)]
        for row, one in zip(rows, values, strict=True)
    )


def _log_ms(row: Row) -> float | None:
    return math.log(row["step_ms"]) if row["step_ms"] else None


def _memory(row: Row) -> float | None:
    if row["kv_blocks_free"] is not None and row["kv_blocks_total"]:
        return 1.0 - float(row["kv_blocks_free"]) / float(row["kv_blocks_total"])
    free, pool = row["regime_free_mb"], row["kv_pool_total_mb"]
    return None if free is None or not pool else 1.0 - float(free) / float(pool)


def _waiting(row: Row) -> float | None:
    if row["queue_depth"] is None or row["batch_size"] is None:
        return None
    return float(row["queue_depth"] / max(row["queue_depth"] + row["batch_size"], 1))


def _contents(row: Row) -> Hashable:
    context = row["context_tokens"]
    return row["batch_size"], None if context is None else math.floor(CONTEXTS * math.log2(max(float(context), 1.0)))


def _work(row: Row) -> Hashable:
    return row["batch_tokens"], _contents(row)


def _unusual(rows: Sequence[Row]) -> tuple[float | None, ...]:
    """Return 1 where a launch ran another tactic than the first half of the launches of its shape most often did."""
    order = sorted((row["shape"], place) for place, row in enumerate(rows) if row["tactic"] is not None)
    found: list[float | None] = [None] * len(rows)
    for _, members in groupby(order, key=lambda pair: pair[0]):
        places = [place for _, place in members]
        first = [rows[place]["tactic"] for place in places[: max(len(places) // 2, 1)]]
        usual = max(dict.fromkeys(first), key=first.count)
        for place in places:
            found[place] = float(rows[place]["tactic"] != usual)
    return tuple(found)
