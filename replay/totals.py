"""What a recording lost, left out and cost: counters of one writer, and the events that put them on record.

All numbers are totals since the start, so the last event of a kind says all, even if earlier files are gone.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

STATUS_SECONDS: Final = 60.0
"""Time between two accounts of cost and of what policy left out. Losses are told at once."""

Told = tuple[str, dict[str, Any]]


class Totals:
    """Counted by several threads without a lock: each counter has one thread that matters, and none is money.

    dropped: records lost. faults: of hooks and of encoding. hook_ns, hook_calls: time inside of guarded hooks, on
    the server's threads. thinned: records that policy left out, by kind. records: records taken, by kind.
    """

    def __init__(self) -> None:
        self.dropped = self.faults = 0
        self.hook_ns = self.hook_calls = 0
        self.thinned: Counter[str] = Counter()
        self.records: Counter[str] = Counter()
        self.deleted = {"segments": 0, "bytes": 0}
        self._told: dict[str, Any] = {"drops": {"dropped": 0}}
        self._start_ns = self._last_ns = time.monotonic_ns()

    @property
    def untold_drops(self) -> bool:
        """Whether records were lost that no event speaks of yet."""
        return bool(self._told["drops"]["dropped"] != self.dropped)

    def losses(self) -> Iterator[Told]:
        """Yield the event of lost records, if there are more than were told."""
        yield from self._changed("drops", {"dropped": self.dropped})

    def account(self, held: int, size: int, *, now: bool) -> Iterator[Told]:
        """Yield the events of policy and cost when they are due, or `now`, if anything was recorded since the last.

        held: records in memory whose fate is open. size: bytes on disk. CPU time is the calling thread's: the writer's.
        """
        if not now and time.monotonic_ns() - self._last_ns < STATUS_SECONDS * 1e9:
            return
        self._last_ns = time.monotonic_ns()
        if self.thinned:
            thinned = {"records": self.thinned.total(), "kinds": dict(self.thinned), "held": held}
            yield from self._changed("thinned", thinned)
        if self._told.get("account") == self.records.total():
            return
        self._told["account"] = self.records.total()
        cost = {
            "wall_s": round((self._last_ns - self._start_ns) / 1e9, 3),
            "hook_s": round(self.hook_ns / 1e9, 6),
            "hook_calls": self.hook_calls,
            "writer_cpu_s": round(time.thread_time_ns() / 1e9, 6),
            "bytes": size,
            "records": self.records.total(),
            "kinds": dict(self.records),
            "dropped": self.dropped,
            "faults": self.faults,
        }
        yield "recorder_cost", cost

    def _changed(self, what: str, detail: dict[str, Any]) -> Iterator[Told]:
        if self._told.get(what) != detail:
            self._told[what] = detail
            yield what, detail
