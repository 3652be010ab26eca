"""Which of a writer's records are on file: stretches of sequence numbers without a gap, and what each one spans.

Written beside the rows, since not every record that was read is a row: duplicates are not stored again, and of merged
parts only the first keeps its number.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forensics.contract import Row

SPANS = (("engine_step", "first_step", "last_step"), ("ts", "first_ts", "last_ts"))


class Stretches:
    """Collects the stretches of one source; `taken` hands them over and begins anew."""

    def __init__(self, source_id: int) -> None:
        self._source_id = source_id
        self._open: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._closed: list[dict[str, Any]] = []

    def add(self, row: Row) -> None:
        """Note one checked row. Without writer and seq it only counts."""
        writer, seq = row.get("writer"), row.get("seq")
        numbered = writer is not None and seq is not None
        key = row["run_id"], row["replica_id"], writer, row.get("clock_id"), numbered
        stretch = self._open.get(key)
        if stretch is None or (numbered and not stretch["first_seq"] <= seq <= stretch["last_seq"] + 1):
            if stretch is not None:
                self._closed.append(stretch)
            stretch = self._open[key] = {
                "source_id": self._source_id,
                **dict(zip(("run_id", "replica_id", "writer", "clock_id"), key, strict=False)),
                "first_seq": seq if numbered else None,
                "records": 0,
            }
        stretch["records"] += 1
        if numbered:
            stretch["last_seq"] = max(seq, stretch.get("last_seq", seq))
        for name, first, last in SPANS:
            value = row.get(name)
            if value is not None:
                stretch[first] = min(value, stretch.get(first, value))
                stretch[last] = max(value, stretch.get(last, value))

    def taken(self) -> list[dict[str, Any]]:
        """Return the stretches so far, and forget them."""
        rows = [*self._closed, *self._open.values()]
        self._open, self._closed = {}, []
        return rows
