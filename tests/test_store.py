"""The store: what it refuses to open, what it refuses to do, and what a transaction leaves."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import duckdb
import pyarrow as pa
import pytest

from forensics.contract import arrow_schema, kinds
from forensics.errors import ForensicsError
from forensics.load import load
from forensics.store import Store, store_format

if TYPE_CHECKING:
    from pathlib import Path

LINE = '{"kind":"event","what":"w","writer":"a","seq":1}\n'


def refused(path: Path, **how: Any) -> ForensicsError:
    with pytest.raises(ForensicsError) as error:
        Store.open(path, **how)
    assert error.value.exit_code == 3
    assert error.value.hint
    assert str(path) in error.value.message
    return error.value


def test_missing(tmp_path: Path) -> None:
    for how in ({}, {"read_only": True}):
        assert "forensics ingest PATH" in refused(tmp_path / "a.duckdb", **how).hint
    assert not list(tmp_path.iterdir())


def test_the_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "no" / "such" / "a.duckdb"
    Store.open(path, create=True).close()
    with Store.open(path, read_only=True) as store:
        assert store.ask("sources").height == 0


def test_what_is_out_of_reach_is_not_to_be_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine")
    for path, how, said in (
        (tmp_path, {"create": True}, "a folder, not a store"),
        (tmp_path, {"read_only": True}, "a folder, not a store"),
        (tmp_path / "file" / "a.duckdb", {"create": True}, "cannot be opened: File exists"),
        (tmp_path / "file" / "b" / "a.duckdb", {"create": True}, "cannot be opened: Not a directory"),
    ):
        error = refused(path, **how)
        assert said in error.message
        assert error.hint == "choose another --db"

    def denied(path: str, **_: Any) -> None:
        raise duckdb.IOException(f'IO Error: Cannot open file "{path}": Permission denied')

    monkeypatch.setattr(duckdb, "connect", denied)
    error = refused(tmp_path / "a.duckdb", create=True)
    assert "Permission denied" in error.message
    assert error.hint == "choose another --db"


def test_a_fault_of_the_disk_is_not_a_reason_to_remove(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.duckdb", create=True) as store:
        for said, damaged in (("No space left on device", False), ("Corrupt database file: block 3", True)):
            with pytest.raises(ForensicsError) as error, store.transaction():
                raise duckdb.IOException(f"IO Error: {said}")
            assert ("rm " in error.value.hint) is damaged


@pytest.mark.parametrize("damage", ["a block", "the end"])
def test_a_damaged_store_names_the_command_that_rebuilds(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.duckdb"
    Store.open(path, create=True).close()
    content = bytearray(path.read_bytes())
    if damage == "a block":
        content[12288 : 12288 + 64] = b"\xff" * 64
    else:
        del content[13000:]
    path.write_bytes(content)
    error = refused(path)
    assert "in use" not in error.message
    assert f"rm {path} && forensics ingest" in error.hint


def test_created_once_and_opened_again(tmp_path: Path) -> None:
    for _ in range(2):
        with Store.open(tmp_path / "a.duckdb", create=True) as store:
            assert store.ask("counts")["rows"].sum() == 0
    with Store.open(tmp_path / "a.duckdb", read_only=True) as store:
        assert store.ask("sources").height == 0


@pytest.mark.parametrize("name", ["a.duckdb", "a.jsonl", "a.json", "a.csv", "a.parquet"])
def test_not_a_database(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b'{"kind":"engine","run_id":"r"}\n' * 1000)
    before = path.read_bytes()
    assert "not a DuckDB database" in refused(path, create=True).message
    assert path.read_bytes() == before


def test_memory_is_no_place_for_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    memory = (tmp_path / ":memory:").relative_to(tmp_path)
    assert "not a DuckDB database" in refused(memory, create=True).message


def test_another_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("create table mine(a int)")
    assert "no store of ours" in refused(path, create=True).message
    with duckdb.connect(str(path)) as connection:
        assert connection.sql("show tables").fetchall() == [("mine",)]


def test_another_version_names_the_command_that_rebuilds(tmp_path: Path) -> None:
    path, log = tmp_path / "a.duckdb", tmp_path / "a log.jsonl"
    log.write_text(LINE)
    with Store.open(path, create=True) as store:
        load([log], store)
    with duckdb.connect(str(path)) as connection:
        connection.execute("update meta set value = '0-old'")
    error = refused(path)
    assert "0-old" in error.message
    assert store_format() in error.message
    assert f"rm {path} && forensics ingest --db {path} '{log}'" in error.hint
    with duckdb.connect(str(path)) as connection:
        connection.execute("drop table source")
        connection.execute("delete from meta")
    assert "PATH" in refused(path).hint


def test_in_use_by_another_process(tmp_path: Path) -> None:
    path = tmp_path / "a.duckdb"
    code = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        assert f"in use by process {holder.pid}" in refused(path, create=True).message
        assert "in use" in refused(path, read_only=True).message
        holder.communicate()


def test_nothing_outside_can_be_reached(tmp_path: Path) -> None:
    secret = tmp_path / "secret.csv"
    secret.write_text("a\n1\n")
    outside = pa.table({"a": [1]})
    assert outside.num_rows == 1
    with Store.open(tmp_path / "a.duckdb", create=True) as store:
        for statement in (
            f"select * from '{secret}'",
            f"copy (select 1) to '{tmp_path / 'out.csv'}'",
            f"attach '{tmp_path / 'b.duckdb'}'",
            "select * from outside",
            "set enable_external_access = true",
            "set memory_limit = '1GB'",
            "install httpfs",
        ):
            with pytest.raises(duckdb.Error):
                store.run(statement)
    assert {path.name for path in tmp_path.iterdir()} <= {"secret.csv", "a.duckdb"}


def test_values_are_bound(tmp_path: Path) -> None:
    with Store.open(tmp_path / "a.duckdb", create=True) as store:
        assert store.ask("request", req_id="' or 1=1; drop table request --").height == 0
        assert store.ask("counts").height == 9


def test_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    row = {"name": "k", "value": "v"}
    with Store.open(tmp_path / "a.duckdb", create=True) as store:
        for fault in (KeyboardInterrupt, RuntimeError):
            with pytest.raises(fault), store.transaction():  # noqa: PT012 - the block is what is tested
                store.insert("meta", [row])
                raise fault
        assert store.run("select count(*) from meta") == [(1,)]
        with store.transaction():
            store.insert("meta", [row])
        assert store.run("select count(*) from meta") == [(2,)]
        with pytest.raises(ForensicsError, match="no_such_table"), store.transaction():
            store.run("select * from no_such_table")
        with store.transaction():
            store.remove("meta", "name", ["k"])
    with Store.open(tmp_path / "a.duckdb", read_only=True) as store:
        assert store.run("select count(*) from meta") == [(1,)]
        with pytest.raises(ForensicsError), store.transaction():
            store.insert("meta", [row])


def test_twins_take_absent_for_equal() -> None:
    with Store.in_memory() as store:
        kind = ("run_id", "replica_id", "engine_step", "rank")
        rows = [{"run_id": "r", "replica_id": "", "engine_step": n, "rank": rank} for n, rank in ((1, None), (2, 0))]
        full = [row | {"content_hash": str(n), "source_id": 1, "line": n} for n, row in enumerate(rows)]
        store.insert_arrow("batch", pa.Table.from_pylist(full, schema=kinds()["batch"].arrow_schema()))
        wanted = [row | {"n": n} for n, row in enumerate([*rows, rows[1] | {"rank": 1}, rows[1] | {"rank": None}])]
        schema = arrow_schema({name: kinds()["batch"].columns()[name] for name in kind} | {"n": "BIGINT"})
        found = store.twins("batch", kind, pa.Table.from_pylist(wanted, schema=schema))
    assert {(row["n"], row["content_hash"]) for row in found} == {(0, "0"), (1, "1")}


@pytest.mark.parametrize("fault", [RuntimeError("Query interrupted"), duckdb.InterruptException("Interrupted!")])
def test_an_interrupt_inside_of_duckdb_is_an_interrupt(tmp_path: Path, fault: Exception) -> None:
    """Seen once in 25 tries of Ctrl-C during an ingest: duckdb turns the signal into an error of its own."""
    with Store.open(tmp_path / "s.duckdb", create=True) as store:
        with pytest.raises(KeyboardInterrupt), store.transaction():
            raise fault
        assert len(store.ask("sources")) == 0


def test_another_runtime_error_stays_what_it_is(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s.duckdb", create=True) as store, pytest.raises(RuntimeError, match="ours"):  # noqa: SIM117
        with store.transaction():
            raise RuntimeError("a bug of ours")
