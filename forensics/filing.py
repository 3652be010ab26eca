"""The rows of one file into the store: new, merging, already there, or set aside. Judged in batches, in file order.

A row is compared with the stored row of the same identity, so it does not matter which file, batch or order it came
in. Whatever is set aside keeps its bytes and a reason.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from forensics.contract import Kind, Row, arrow_schema, check, kinds
from forensics.ingest import rendered
from forensics.merge import clashing, differing, merged
from forensics.stretches import Stretches
from forensics.values import Rejected, json_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from forensics.ingest import Entry
    from forensics.store import Store

BATCH_ROWS: Final = 20_000
BATCH_BYTES: Final = 16 << 20
KEPT_BYTES: Final = 64 << 10
VERDICT_FIELDS: Final = ("req_id", "run_id", "outcome", "factors", "case_sha256")
MAX_UNKNOWN_NAMES: Final = 1000
"""Unknown field names that are counted one by one; further ones count under '…'."""


@dataclass
class Tally:
    """What became of the rows of a file."""

    read: int = 0
    stored: int = 0
    merged: int = 0
    duplicates: int = 0
    quarantined: int = 0
    unknown_fields: Counter[str] = field(default_factory=Counter)

    def check(self) -> None:
        """Raise unless every row read is accounted for: a lost row is a fault of ours and must not be committed."""
        if self.read != self.stored + self.merged + self.duplicates + self.quarantined:
            raise AssertionError(f"rows went missing: {self}")


class _Item(NamedTuple):
    row: Row
    entry: Entry


class Filing:
    """Files one source, inside a transaction of the caller. Call `flush` at the end.

    tally: what became of the rows of the source that are not read again; it goes on from there.
    """

    def __init__(self, store: Store, source_id: int, path: str, tally: Tally) -> None:
        self.tally = tally
        self._store = store
        self._source_id = source_id
        self._paths = {source_id: path}
        self._items: dict[str, list[_Item]] = {}
        self._aside: list[dict[str, Any]] = []
        self._stretches = Stretches(source_id)
        self._rows = self._bytes = 0

    def add(self, entry: Entry) -> None:
        """Judge one entry by itself, and with its batch when that is full."""
        self.tally.read += 1
        try:
            if isinstance(entry.record, Rejected):
                raise entry.record
            name, row = check(entry.record)
        except Rejected as rejected:
            self._set_aside(entry, rejected)
        else:
            if "extra" in row:
                self._count_unknown(row["extra"])
            row["source_id"], row["line"] = self._source_id, entry.line
            self._stretches.add(row)
            # The row stands for the record from here on: two copies of a batch are not needed.
            kept = entry if entry.raw is None else entry._replace(record={})
            self._items.setdefault(name, []).append(_Item(row, kept))
        self._rows += 1
        self._bytes += len(entry.raw or b"")
        if self._rows >= BATCH_ROWS or self._bytes >= BATCH_BYTES:
            self.flush()

    def add_verdict(self, entry: Entry) -> None:
        """File a verdict as a document, whole."""
        self.tally.read += 1
        document, raw = dict(entry.record), entry.raw or b""  # type: ignore[arg-type]
        row: dict[str, Any] = {name: _text_or_none(document.get(name)) for name in VERDICT_FIELDS}
        row |= {"id": hashlib.sha256(raw).hexdigest(), "document": json_text(document), "source_id": self._source_id}
        if len(self._store.ask("verdict", id=row["id"])):
            self.tally.duplicates += 1
            return
        self._store.insert("verdict", [row])
        self.tally.stored += 1

    def flush(self) -> None:
        """Judge what is held against the store, and store it."""
        for name, items in self._items.items():
            kind = kinds()[name]
            (self._merge if kind.merge else self._append)(kind, items)
        if self._aside:
            self._store.insert("quarantine", self._aside)
        self._store.insert("stretch", self._stretches.taken())
        self._items, self._aside, self._rows, self._bytes = {}, [], 0, 0

    def _append(self, kind: Kind, items: list[_Item]) -> None:
        on_record = self._on_record(kind, (item.row for item in items))
        fresh, conflicts = [], []
        for item in items:
            first = on_record.setdefault(kind.key(item.row), item.row)
            if first is item.row:
                fresh.append(item.row)
            elif first["content_hash"] == item.row["content_hash"]:
                self.tally.duplicates += 1
            else:
                conflicts.append(item)
        self._insert(kind, fresh)
        self.tally.stored += len(fresh)
        if conflicts:
            firsts = self._on_record(kind, (item.row for item in conflicts), whole=True)
            for item in conflicts:
                first = firsts[kind.key(item.row)]
                self._conflict(kind, item, first, differing(kind, first, item.row)[0])

    def _merge(self, kind: Kind, items: list[_Item]) -> None:
        on_record = self._on_record(kind, (item.row for item in items), whole=True)
        rowids = {key: first.pop("rowid") for key, first in on_record.items()}
        changed = {}
        for item in items:
            key = kind.key(item.row)
            first = on_record.get(key)
            if first is None:
                on_record[key] = changed[key] = item.row
                self.tally.stored += 1
            elif clash := clashing(kind, first, item.row):
                self._conflict(kind, item, first, clash[0])
            else:
                try:
                    whole = merged(kind, first, item.row)
                except Rejected as rejected:
                    self._set_aside(item.entry, rejected)
                    continue
                if whole == first:
                    self.tally.duplicates += 1
                else:
                    on_record[key] = changed[key] = whole
                    self.tally.merged += 1
        replaced = [rowids[key] for key in changed if key in rowids]
        if replaced:
            self._store.remove(kind.table, "rowid", replaced)
        self._insert(kind, list(changed.values()))

    def _on_record(self, kind: Kind, rows: Iterable[Row], *, whole: bool = False) -> dict[tuple[Any, ...], Row]:
        """Return {key: stored row} for the keys of `rows` that the store knows."""
        import pyarrow as pa

        wanted: dict[tuple[str, ...], dict[tuple[Any, ...], None]] = {}
        for row in rows:
            wanted.setdefault(kind.key_columns(row), {})[kind.key(row)] = None
        found = {}
        for columns, unique in wanted.items():
            keys = list(unique)
            schema = arrow_schema({name: kind.columns()[name] for name in columns} | {"n": "BIGINT"})
            values = [*zip(*keys, strict=True), range(len(keys))]
            table = pa.table([pa.array(v, t) for v, t in zip(values, schema.types, strict=True)], schema=schema)
            for twin in self._store.twins(kind.table, columns, table, whole=whole):
                found[keys[twin.pop("n")]] = {name: value for name, value in twin.items() if value is not None}
        return found

    def _insert(self, kind: Kind, rows: list[Row]) -> None:
        import pyarrow as pa

        if rows:
            self._store.insert_arrow(kind.table, pa.Table.from_pylist(rows, schema=kind.arrow_schema()))

    def _conflict(self, kind: Kind, item: _Item, first: Row, name: str) -> None:
        if first["source_id"] not in self._paths:
            self._paths = dict(self._store.ask("sources").select("source_id", "path").iter_rows()) | self._paths
        where = f"{self._paths[first['source_id']]}:{first['line']}"
        self._set_aside(item.entry, Rejected(f"contradicts the {kind.name} record at {where}: another {name}"))

    def _set_aside(self, entry: Entry, rejected: Rejected) -> None:
        raw = entry.raw if entry.raw is not None else _rendered(entry.record)
        self.tally.quarantined += 1
        self._aside.append(
            {
                "source_id": self._source_id,
                "line": entry.line,
                "offset": entry.offset,
                "reason": rejected.reason,
                "bytes": raw[:KEPT_BYTES],
                "length": len(raw) if rejected.length is None else rejected.length,
                "sha256": rejected.sha256 or hashlib.sha256(raw).hexdigest(),
            }
        )

    def _count_unknown(self, extra: str) -> None:
        counts = self.tally.unknown_fields
        for name in json.loads(extra):
            counts[name if name in counts or len(counts) < MAX_UNKNOWN_NAMES else "…"] += 1


def _text_or_none(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json_text(value)


def _rendered(record: dict[str, Any] | Rejected) -> bytes:
    return b"" if isinstance(record, Rejected) else rendered(record)
