"""Parquet: a row is a record, null is absent."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from forensics.contract import kind_of, kinds
from forensics.errors import BAD_INPUT, ForensicsError
from forensics.ingest import BEGINNING, Entry, rendered
from forensics.values import TYPES, Rejected, parse_any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from forensics.ingest import Mark

MAGIC: Final = b"PAR1"
ROWS_AT_ONCE: Final = 4096
NOT_JSON: Final = (KeyError, TypeError, ValueError)


def detect(head: bytes) -> bool:
    """Return whether the file begins with Parquet's magic bytes."""
    return head.startswith(MAGIC)


def read(path: Path, size: int, start: Mark = BEGINNING) -> Iterator[Entry]:
    """Yield every row. A Parquet file is written whole: one that cannot be read to its end is refused whole."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            kind = _kind_of_file(file.schema_arrow)
            total = max(file.metadata.num_rows, 1)
            line = 0
            for batch in file.iter_batches(batch_size=ROWS_AT_ONCE):
                for record, rejected in _records(batch):
                    line += 1
                    opened = rejected or _opened(record, kind)
                    raw = rendered(record) if isinstance(opened, Rejected) else None
                    yield Entry(line, line - 1, raw, opened, size * line // total)
    except (pa.ArrowException, OSError, ValueError, KeyError, MemoryError) as fault:
        said = (str(fault).splitlines() or [type(fault).__name__])[0]
        message = f"{path}: Parquet that cannot be read: {said}"
        raise ForensicsError(message, BAD_INPUT, "write the file again") from None


def _kind_of_file(schema: Any) -> str | None:
    """Return the kind that the file states in its metadata, or that only its columns fit. None: the rows tell."""
    if "kind" in schema.names:
        return None
    stated = (schema.metadata or {}).get(b"kind")
    if stated is not None:
        return str(stated.decode("utf-8", "replace"))
    columns = set(schema.names)
    fitting = [k.name for k in kinds().values() if columns.issuperset(k.required) and columns <= k.fields.keys()]
    return fitting[0] if len(fitting) == 1 else None


def _records(batch: Any) -> Iterator[tuple[dict[str, Any], Rejected | None]]:
    """Yield every row, and why it is none where a value cannot be a Python one."""
    try:
        rows = batch.to_pylist(maps_as_pydicts="strict")
    except NOT_JSON:
        rows = None
    if rows is not None:
        yield from ((row, None) for row in rows)
        return
    for index in range(batch.num_rows):
        row = batch.slice(index, 1)
        try:
            yield row.to_pylist(maps_as_pydicts="strict")[0], None
        except NOT_JSON as fault:
            said = (str(fault).splitlines() or ["?"])[0][:200]
            yield _as_it_stands(row), Rejected(f"a value that is not JSON: {said}")


def _as_it_stands(row: Any) -> dict[str, Any]:
    """Return a row value by value, one that cannot be a Python one as what Arrow shows of it."""
    values: dict[str, Any] = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        try:
            values[name] = column[0].as_py()
        except NOT_JSON:
            values[name] = str(column)
    return values


def _opened(record: dict[str, Any], kind: str | None) -> dict[str, Any] | Rejected:
    """Return the record with its kind, and with objects that stand as JSON text: Parquet has no type for any shape."""
    if kind is not None:
        record["kind"] = kind
    try:
        for name in _objects(kind_of(record)):
            if type(record.get(name)) is str:
                record[name] = parse_any(record[name].encode())
    except Rejected as rejected:
        return rejected
    return record


@functools.cache
def _objects(kind: str) -> tuple[str, ...]:
    objects = (TYPES["json"], TYPES["json array"])
    return tuple(name for name, field in kinds()[kind].fields.items() if field.type in objects)
