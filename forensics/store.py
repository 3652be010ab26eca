"""The DuckDB index of the log, and the only user of duckdb.

The index is disposable: the log is the evidence. So there are no migrations; a store of another format is refused with
the command that builds it again. What it holds came from strangers: it opens no other file, loads no extension, and
takes values only as bound parameters.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import re
import shlex
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

import duckdb

from forensics import binding, placing
from forensics.contract import arrow_schema, kinds
from forensics.digest import DERIVED
from forensics.errors import BAD_INPUT, ForensicsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

    import polars as pl

LOCKED_DOWN: Final[dict[str, str | bool | int | float | list[str]]] = {
    "enable_external_access": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "allow_community_extensions": "false",
    "lock_configuration": "true",
}
OWN_TABLES: Final = {
    "meta": {"name": "VARCHAR", "value": "VARCHAR"},
    "source": {
        "source_id": "INTEGER",
        "path": "VARCHAR",
        "sha256": "VARCHAR",
        "format": "VARCHAR",
        "subject": "VARCHAR",
        "bytes": "BIGINT",
        "read": "BIGINT",
        "stored": "BIGINT",
        "merged": "BIGINT",
        "duplicates": "BIGINT",
        "quarantined": "BIGINT",
        "unknown_fields": "VARCHAR",
        "rows": "BIGINT",
        "unknown_rows": "VARCHAR",
        "line": "BIGINT",
        "offset": "BIGINT",
    },
    "stretch": {
        "source_id": "INTEGER",
        "run_id": "VARCHAR",
        "replica_id": "VARCHAR",
        "writer": "VARCHAR",
        "clock_id": "VARCHAR",
        "first_seq": "BIGINT",
        "last_seq": "BIGINT",
        "records": "BIGINT",
        "first_step": "BIGINT",
        "last_step": "BIGINT",
        "first_ts": "DOUBLE",
        "last_ts": "DOUBLE",
    },
    "quarantine": {
        "source_id": "INTEGER",
        "line": "BIGINT",
        "offset": "BIGINT",
        "reason": "VARCHAR",
        "bytes": "BLOB",
        "length": "BIGINT",
        "sha256": "VARCHAR",
    },
    "digest": dict.fromkeys((*binding.DIGESTED, *DERIVED), "VARCHAR"),
    "verdict": {
        "id": "VARCHAR",
        "req_id": "VARCHAR",
        "run_id": "VARCHAR",
        "outcome": "VARCHAR",
        "factors": "VARCHAR",
        "case_sha256": "VARCHAR",
        "document": "VARCHAR",
        "source_id": "INTEGER",
    },
}
"""Tables beside those of the record kinds. `offset` counts bytes of the unpacked file, rows in Parquet.

source: up to the end of its last whole `line`, at `offset`, stand `rows` with `unknown_rows`, which are not read again;
`subject` is what was said of a trace (forensics/subject.py), as JSON.
stretch: a row for every stretch of a writer's records on file; forensics/completeness.py tells what lies between.
"""
DAMAGED: Final = re.compile("Corrupt|checksum|Could not read enough bytes")
ANOTHER: Final = "choose another --db"


class Store:
    """An open store. Close it, or use it in a `with`."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, path: str) -> None:
        self._connection = connection
        self.path = path

    @classmethod
    def open(cls, path: Path, *, create: bool = False, read_only: bool = False) -> Store:
        """Open the store at `path`; with `create`, make it and its folder if there is none."""
        try:
            if create:
                path.parent.mkdir(parents=True, exist_ok=True)
            elif not path.exists():
                raise ForensicsError(f"{path}: no such store", BAD_INPUT, "make one with `forensics ingest PATH…`")
            if path.is_dir():
                raise ForensicsError(f"{path}: a folder, not a store", BAD_INPUT, ANOTHER)
            if str(path) == ":memory:" or (path.exists() and not _is_duckdb(path)):
                raise _no_database(path)
        except OSError as fault:
            raise ForensicsError(f"{path}: cannot be opened: {fault.strerror}", BAD_INPUT, ANOTHER) from None
        try:
            connection = duckdb.connect(str(path), read_only=read_only, config=LOCKED_DOWN)
        except duckdb.Error as fault:
            raise _cannot_open(path, fault) from None
        return cls(connection, str(path))._ready(create=create and not read_only)

    @classmethod
    def in_memory(cls) -> Store:
        """Return an empty store that leaves nothing behind: for a check that stores nothing."""
        return cls(duckdb.connect(":memory:", config=LOCKED_DOWN), ":memory:")._ready(create=True)

    def close(self) -> None:
        """Close the file. What was not committed is gone."""
        self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def ask(self, question: str, **params: Any) -> pl.DataFrame:
        """Return the answer to the question in sql/<question>.sql; parameters that it does not name are left out."""
        text, names = _question(question)
        with self._told():
            answer: pl.DataFrame = self._connection.sql(text, params={name: params[name] for name in names}).pl()
            return answer

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit everything in the block, or nothing of it."""
        with self._told():
            self.run("BEGIN TRANSACTION")
            try:
                yield
                self.run("COMMIT")
            except BaseException:
                with contextlib.suppress(duckdb.Error):  # a failed commit has already rolled back
                    self.run("ROLLBACK")
                raise

    def insert_arrow(self, table: str, rows: Any) -> None:
        """Append an Arrow table; its columns go by name."""
        # Relations, not registered views: a view dropped inside a transaction keeps its Arrow table until the commit.
        columns = self._connection.table(table).columns
        self._connection.from_arrow(rows.select(columns)).insert_into(table)

    def insert(self, table: str, rows: list[dict[str, Any]]) -> None:
        """Append rows to one of our own tables."""
        import pyarrow as pa

        self.insert_arrow(table, pa.Table.from_pylist(rows, schema=arrow_schema(OWN_TABLES[table])))

    def twins(self, table: str, columns: Iterable[str], keys: Any, *, whole: bool = False) -> list[dict[str, Any]]:
        """Return the stored rows that equal a row of `keys` in `columns`: their keys' `n`, `rowid`, content and origin.

        Absent equals absent. `whole`: every column of the stored row, too.
        """
        on = " AND ".join(f't."{name}" IS NOT DISTINCT FROM i."{name}"' for name in columns)
        what = "t.*" if whole else "t.content_hash, t.source_id, t.line"
        offered = self._connection.from_arrow(keys).set_alias("i")
        twins = offered.join(self._connection.table(table).set_alias("t"), on).project(f"i.n, t.rowid AS rowid, {what}")
        rows: list[dict[str, Any]] = twins.to_arrow_table().to_pylist(maps_as_pydicts="strict")
        return rows

    def filled(self, table: str) -> dict[str, int]:
        """Return {column: rows that have a value in it} of one of our tables; every row has a content_hash."""
        return dict(self._connection.sql(f'SELECT count(COLUMNS(*)) FROM "{table}"').pl().row(0, named=True))  # noqa: S608

    def remove(self, table: str, column: str, values: list[Any]) -> None:
        """Delete the rows whose `column` is one of `values`."""
        self.run(f'DELETE FROM "{table}" WHERE "{column}" IN (SELECT unnest($values))', {"values": values})  # noqa: S608

    def run(self, statement: str, params: dict[str, Any] | None = None) -> list[Any]:
        """Run one statement that this program wrote; what comes from a log stands in `params` only."""
        # Fetched to the end: duckdb refuses the next statement while a result is open.
        return self._connection.execute(statement, params).fetchall()

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, duckdb.Error) as fault:
            if "interrupted" in str(fault).lower():  # Ctrl-C inside of duckdb comes back as an error of its own
                raise KeyboardInterrupt from None
            if not isinstance(fault, duckdb.Error):
                raise
            said = _first_line(fault)
            raise ForensicsError(f"{self.path}: {said}", BAD_INPUT, _way_out(self.path, said)) from fault

    def _ready(self, *, create: bool) -> Store:
        try:
            with self._told():
                self._check_format(create=create)
        except BaseException:
            self.close()
            raise
        return self

    def _check_format(self, *, create: bool) -> None:
        tables = {name for (name,) in self.run("SELECT table_name FROM duckdb_tables()")}
        if not tables and create:
            with self.transaction():
                for statement in _ddl():
                    self.run(statement)
                self.insert("meta", [{"name": "format", "value": store_format()}])
            return
        if "meta" not in tables:
            raise ForensicsError(f"{self.path}: a DuckDB database, but no store of ours", hint=ANOTHER)
        found = self.run("SELECT value FROM meta WHERE name = 'format'")
        if found != [(store_format(),)]:
            sources = self.run("SELECT path FROM source ORDER BY source_id") if "source" in tables else []
            theirs = found[0][0] if found else "unknown"
            message = f"{self.path}: made by another version (format {theirs}, here {store_format()})"
            raise ForensicsError(message, BAD_INPUT, _rebuild(self.path, [path for (path,) in sources]))


@functools.cache
def store_format() -> str:
    """Return the version of the tables: it changes whenever a column does."""
    return "1-" + hashlib.sha256("\n".join(_ddl()).encode()).hexdigest()[:12]


@functools.cache
def _ddl() -> tuple[str, ...]:
    own = [
        f'CREATE TABLE "{table}" (' + ", ".join(f'"{name}" {sql}' for name, sql in columns.items()) + ")"
        for table, columns in OWN_TABLES.items()
    ]
    return (*own, *(kind.ddl() for kind in kinds().values()), *binding.ddl(), *placing.ddl())


@functools.cache
def _question(name: str) -> tuple[str, frozenset[str]]:
    text = (files("forensics") / "sql" / f"{name}.sql").read_text(encoding="utf-8")
    return text, frozenset(re.findall(r"\$(\w+)", re.sub(r"--.*", "", text)))


def _first_line(fault: BaseException) -> str:
    return (str(fault).splitlines() or [type(fault).__name__])[0]


def _rebuild(path: str, sources: list[str]) -> str:
    again = " ".join(shlex.quote(source) for source in sources) or "PATH…"
    store = shlex.quote(path)
    return f"the log is the evidence, this only an index: rm {store} && forensics ingest --db {store} {again}"


def _way_out(path: str, said: str) -> str:
    """Return what to do: only a damaged index is worth removing, nothing that is merely out of reach."""
    return _rebuild(path, []) if DAMAGED.search(said) else ANOTHER


def _is_duckdb(path: Path) -> bool:
    """Return whether a file has DuckDB's magic bytes. A log duckdb would open in memory, and keep nothing."""
    with path.open("rb") as file:
        return file.read(12)[8:] == b"DUCK"


def _no_database(path: Path) -> ForensicsError:
    return ForensicsError(f"{path}: not a DuckDB database", BAD_INPUT, f"{ANOTHER}; nothing was changed")


def _cannot_open(path: Path, fault: duckdb.Error) -> ForensicsError:
    said = _first_line(fault)
    if re.search(r"\block\b", said):
        holder = re.search(r"PID (\d+)", said)
        who = f" by process {holder[1]}" if holder else ""
        return ForensicsError(f"{path}: in use{who}", BAD_INPUT, "wait until it has finished, or choose another --db")
    if "not a valid DuckDB database" in said:
        return _no_database(path)
    return ForensicsError(f"{path}: cannot be opened: {said}", BAD_INPUT, _way_out(str(path), said))
