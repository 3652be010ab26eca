"""Loading: every row is accounted for, once, whatever the file, the order, the corruption or the moment of death."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
from typing import TYPE_CHECKING, Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import forensics.filing
from forensics.contract import kinds
from forensics.digest import token_ids_sha256
from forensics.errors import ForensicsError
from forensics.ingest import jsonl
from forensics.load import FileSummary, load
from forensics.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from forensics.ingest import Mark


def step(number: int, **fields: Any) -> dict[str, Any]:
    return {"kind": "step", "run_id": "r", "req_id": "a", "step": number, "engine_step": number} | fields


def valid_log() -> list[dict[str, Any]]:
    """Return a small log with every kind, merging parts and a duplicate."""
    return [
        {"kind": "engine", "run_id": "r", "model_id": "m", "config": {"x": 1}, "seq": 0, "writer": "w"},
        {"kind": "engine", "run_id": "r", "weights_sha256": "00", "seq": 1, "writer": "w"},
        {
            "kind": "request",
            "run_id": "r",
            "req_id": "a",
            "effective_token_ids": [1, 2],
            "decode_cfg_applied": {"t": 0},
        },
        {"kind": "request", "run_id": "r", "req_id": "a", "finish_reason": "stop", "new": 1},
        {"kind": "batch", "run_id": "r", "engine_step": 1, "plan": {"batch.rows": 2}},
        {"kind": "collective", "run_id": "r", "rank": 0, "op": "all_reduce", "seq_no": 1},
        {"kind": "collective", "run_id": "r", "rank": 0, "op": "all_reduce"},
        {"kind": "device", "ts": 1.5, "gpu_uuid": "g"},
        {"kind": "event", "what": "preemption"},
        {"kind": "event", "what": "preemption", "writer": "w", "seq": 9},
        {"kind": "kernel", "name": "k", "algo": {"id": 3}},
        *(step(n, top_logits=[1.5, 1.0], margin=0.5) for n in range(20)),
        step(3, top_logits=[1.5, 1.0], margin=0.5),
    ]


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def only(path: Path, store: Store) -> FileSummary:
    (summary,) = load([path], store)
    return summary


def counts(summary: FileSummary) -> tuple[int, int, int, int, int]:
    return summary.read, summary.stored, summary.merged, summary.duplicates, summary.quarantined


def contents(store: Store) -> dict[str, list[Any]]:
    """Return all that a store holds."""
    tables = ("source", "quarantine", "verdict", *store.ask("counts")["kind"])
    return {table: sorted(map(repr, store.run(f'select * from "{table}"'))) for table in tables}


@pytest.fixture
def store() -> Iterator[Store]:
    with Store.in_memory() as opened:
        yield opened


def test_every_kind_and_count(tmp_path: Path, store: Store) -> None:
    summary = only(written(tmp_path / "a.jsonl", valid_log()), store)
    assert counts(summary) == (32, 29, 2, 1, 0)
    assert summary.unknown_fields == {"new": 1}
    assert dict(store.ask("counts").iter_rows()) == {
        "batch": 1, "collective": 2, "device": 1, "engine": 1, "event": 2, "kernel": 1, "request": 1, "step": 20,
        "verdict": 0,
    }  # fmt: skip
    (engine,) = store.ask("engine", run_id="r", replica_id="").to_dicts()
    assert (engine["model_id"], engine["weights_sha256"], engine["seq"]) == ("m", "00", 0)
    assert engine["source_path"] == summary.path
    (request,) = store.ask("request", req_id="a").to_dicts()
    assert (request["finish_reason"], request["extra"], request["line"]) == ("stop", '{"new":1}', 3)
    assert request["input_sha256"]
    steps = store.ask("steps", run_id="r", replica_id="", req_id="a")
    assert steps["step"].to_list() == list(range(20))
    assert steps["line"].to_list() == list(range(12, 32))
    assert store.ask("batches", run_id="r", replica_id="", first=0, last=5)["plan"].to_list() == [{"batch.rows": "2"}]


def test_the_same_file_again_changes_nothing(tmp_path: Path, store: Store) -> None:
    path = written(tmp_path / "a.jsonl", [*valid_log(), {"kind": "?"}, step(3, margin=7.0)])
    assert counts(only(path, store)) == (34, 29, 2, 1, 2)
    before = contents(store)
    assert counts(only(path, store)) == (34, 0, 0, 32, 2)
    assert contents(store) == before
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(path.read_bytes())
    assert counts(only(copy, store)) == (34, 0, 0, 32, 2)
    assert contents(store) == before
    assert [one.path for one in load([path, path, tmp_path], store)] == [str(path), str(copy)]


def test_a_file_that_grew_is_the_same_source(tmp_path: Path, store: Store) -> None:
    path = written(tmp_path / "a.jsonl", [step(0), step(1)])
    path.write_bytes(path.read_bytes() + b'{"kind":"step","req_')
    assert counts(only(path, store)) == (3, 2, 0, 0, 1)
    assert "torn last line" in store.ask("quarantined")["reason"][0]
    written(path, [step(0), step(1), step(2), step(0)])
    assert counts(only(path, store)) == (4, 1, 0, 3, 0), "this is not what the old bytes were: another source"
    assert store.ask("sources").height == 2
    path.write_bytes(path.read_bytes() + json.dumps(step(3)).encode())
    assert counts(only(path, store)) == (5, 1, 0, 4, 0)
    (_, grown) = store.ask("sources").to_dicts()
    assert (grown["read"], grown["stored"], grown["duplicates"], grown["quarantined"]) == (5, 2, 3, 0)
    assert grown["sha256"] == only(path, store).sha256


def test_a_torn_line_that_was_completed_leaves_quarantine(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "a.jsonl"
    whole = "".join(json.dumps(step(n)) + "\n" for n in range(3)).encode()
    path.write_bytes(whole[:-9])
    assert counts(only(path, store)) == (3, 2, 0, 0, 1)
    path.write_bytes(whole)
    assert counts(only(path, store)) == (3, 1, 0, 2, 0)
    assert store.ask("quarantined").height == 0
    assert store.ask("sources").height == 1


def test_contradiction_names_the_field_and_the_first(tmp_path: Path, store: Store) -> None:
    first = written(tmp_path / "1.jsonl", [step(0), step(1, margin=0.5)])
    second = written(
        tmp_path / "2.jsonl", [step(1, margin=0.25), step(1, margin=0.5), step(2), step(2, new=1), step(2, seq=4)]
    )
    assert counts(only(first, store)) == (2, 2, 0, 0, 0)
    assert counts(only(second, store)) == (5, 1, 0, 1, 3)
    rows = store.ask("quarantined").to_dicts()
    assert [row["reason"] for row in rows] == [
        f"contradicts the step record at {first}:2: another margin",
        f"contradicts the step record at {second}:3: another extra",
        f"contradicts the step record at {second}:3: another seq",
    ]
    assert [(row["source_path"], row["line"]) for row in rows] == [(str(second), 1), (str(second), 4), (str(second), 5)]
    lines = second.read_bytes().splitlines(keepends=True)
    for row in rows:
        assert row["bytes"] == lines[row["line"] - 1].rstrip(b"\n")
        assert row["offset"] == sum(map(len, lines[: row["line"] - 1]))
        assert row["length"] == len(row["bytes"])


def test_without_a_position_content_is_identity(tmp_path: Path, store: Store) -> None:
    events: list[dict[str, Any]] = [{"kind": "event", "what": what} for what in ("a", "b", "a")]
    events += [{"kind": "event", "what": what, "writer": "w", "seq": 1} for what in ("a", "b")]
    assert counts(only(written(tmp_path / "a.jsonl", events), store)) == (5, 3, 0, 1, 1)


SHARED: dict[str, Any] = {"kind": "request", "run_id": "r", "req_id": "a"}
PARTS: list[dict[str, Any]] = [
    SHARED | {"arrival_ts": 1.0, "seq": 1, "writer": "gateway", "ts": 1.0},
    SHARED | {"arrival_ts": 1.0, "effective_token_ids": [1, 2], "new": {"a": 1}, "seq": 5},
    SHARED | {"decode_cfg_applied": {"t": 0}, "other": 2, "ts": 3.0},
    SHARED | {"new": {"a": 1.0}},
]
HOW_IT_WAS_WRITTEN = {"seq", "ts", "writer", "line", "content_hash", "source_id", "source_path"}


@pytest.mark.parametrize("batch_rows", [1, 2, 20_000])
@pytest.mark.parametrize("files", [1, 4])
def test_parts_merge_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_rows: int, files: int) -> None:
    monkeypatch.setattr(forensics.filing, "BATCH_ROWS", batch_rows)
    seen = set()
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [0, 0, 1, 2, 3, 1]):
        parts = [PARTS[number] for number in order]
        with Store.in_memory() as store:
            groups = [parts] if files == 1 else [[part] for part in parts]
            paths = [written(tmp_path / f"{n}.jsonl", group) for n, group in enumerate(groups)]
            first = [counts(only(path, store)) for path in paths]
            assert sum(one[1] for one in first) == 1
            assert sum(one[4] for one in first) == 0
            (row,) = store.ask("request", req_id="a").to_dicts()
            assert row["seq"] in (None, 1, 5)
            kept = {name: value for name, value in row.items() if name not in HOW_IT_WAS_WRITTEN}
            seen.add(repr(kept))
            for path in paths:
                assert counts(only(path, store))[1:3] == (0, 0), "every part is in the whole now"
            assert store.ask("counts").filter(kind="request")["rows"].item() == 1
    assert len(seen) == 1
    assert "'input_sha256': '" in seen.pop()


def test_the_envelope_is_of_one_writer(tmp_path: Path, store: Store) -> None:
    parts = [
        SHARED | {"ts": 1.0},
        SHARED | {"ts": 2.0, "seq": 7, "writer": "w"},
        SHARED | {"truncated": True, "seq": 8},
    ]
    assert counts(only(written(tmp_path / "a.jsonl", parts), store)) == (3, 1, 1, 1, 0)
    (row,) = store.ask("request", req_id="a").to_dicts()
    assert (row["ts"], row["seq"], row["writer"], row["truncated"]) == (1.0, None, None, True)


@pytest.mark.parametrize("limit", ["BATCH_ROWS", "BATCH_BYTES"])
def test_a_batch_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store, limit: str) -> None:
    line = len(json.dumps(step(10)))
    monkeypatch.setattr(forensics.filing, limit, 5 if limit == "BATCH_ROWS" else 5 * line)
    held = []
    flush = forensics.filing.Filing.flush

    def counted(filing: forensics.filing.Filing) -> None:
        held.append(sum(map(len, filing._items.values())))
        flush(filing)

    monkeypatch.setattr(forensics.filing.Filing, "flush", counted)
    assert counts(only(written(tmp_path / "a.jsonl", [step(n) for n in range(10, 42)]), store)) == (32, 32, 0, 0, 0)
    assert held == [5] * 6 + [2]


def test_parts_that_contradict(tmp_path: Path, store: Store) -> None:
    base: dict[str, Any] = {"kind": "engine", "run_id": "r"}
    first = written(tmp_path / "1.jsonl", [base | {"dtype": "bf16", "new": 1}])
    second = written(
        tmp_path / "2.jsonl",
        [
            base | {"dtype": "fp16", "host": "h"},
            base | {"new": 2},
            base | {"config": {"a": 1}},
            base | {"config": {"a": 2}},
        ],
    )
    assert counts(only(first, store)) == (1, 1, 0, 0, 0)
    assert counts(only(second, store)) == (4, 0, 1, 0, 3)
    reasons = store.ask("quarantined")["reason"].to_list()
    assert reasons == [
        f"contradicts the engine record at {first}:1: another {name}" for name in ("dtype", "new", "config")
    ]
    (engine,) = store.ask("engine", run_id="r", replica_id="").to_dicts()
    assert (engine["dtype"], engine["host"], engine["config"]) == ("bf16", None, '{"a":1}')


def test_parts_whose_ids_and_hash_disagree(tmp_path: Path, store: Store) -> None:
    base: dict[str, Any] = {"kind": "request", "req_id": "a"}
    path = written(tmp_path / "a.jsonl", [base | {"output_token_ids_sha256": "00"}, base | {"output_token_ids": [1]}])
    assert counts(only(path, store)) == (2, 1, 0, 0, 1)


def test_cohorts(tmp_path: Path, store: Store) -> None:
    def request(req: str, run: str, **fields: Any) -> dict[str, Any]:
        return {
            "kind": "request",
            "req_id": req,
            "run_id": run,
            "effective_token_ids": [1],
            "decode_cfg_applied": {},
        } | fields

    asked = {"raw_prompt_sha256": "aa", "decode_cfg_requested": {"t": 0}}
    records = [
        *(
            {"kind": "engine", "run_id": run, "model_id": model}
            for run, model in (("r", "m"), ("s", "m"), ("t", "other"))
        ),
        request("a", "r", output_token_ids=[1, 2]),
        request("b", "s", output_token_ids=[1, 3], external_req_id="ext"),
        request("c", "t", output_token_ids=[1, 4]),
        request("d", "r", output_token_ids=[9], effective_token_ids=[2], **asked),
        request("e", "s", output_token_ids=[9], effective_token_ids=[3], **asked),
        request("f", "nowhere", output_token_ids=[5]),
    ]
    only(written(tmp_path / "a.jsonl", records), store)
    assert store.ask("cohorts")["req_id"].to_list() == ["a", "b"]
    assert store.ask("cohorts")["output"].to_list() == [token_ids_sha256([1, 2]), token_ids_sha256([1, 3])]
    assert store.ask("asked_cohorts")["req_id"].to_list() == ["d", "e"]
    (row,) = store.ask("request", req_id="ext").to_dicts()
    assert store.ask("same_input", input_sha256=row["input_sha256"])["req_id"].to_list() == ["f", "a", "b", "c"]
    assert store.ask("neighbours_requests", run_id="r", replica_id="", req_ids=["a", "d", "x"])["req_id"].to_list() == [
        "a",
        "d",
    ]
    assert store.ask("similar_ids", req_id="ex")["req_id"].to_list() == ["b"]


VERDICT = {
    "format": "forensics.verdict/1",
    "outcome": "proven",
    "req_id": "a",
    "run_id": "r",
    "factors": ["batch.rows"],
}


@pytest.mark.parametrize("indent", [None, 1])
def test_verdict(tmp_path: Path, store: Store, indent: int | None) -> None:
    path = tmp_path / "verdict.json"
    path.write_text(json.dumps(VERDICT | {"trials": [{"a": 1}]}, indent=indent, sort_keys=True))
    assert counts(only(path, store)) == (1, 1, 0, 0, 0)
    assert counts(only(path, store)) == (1, 0, 0, 1, 0)
    (row,) = store.ask("verdicts", req_id="a", run_id="r").to_dicts()
    assert (row["outcome"], row["factors"], row["source_path"]) == ("proven", '["batch.rows"]', str(path))
    assert json.loads(row["document"])["trials"] == [{"a": 1}]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format":"forensics.verdict/1"}', "a verdict without an outcome"),
        ('{"format":"forensics.verdict/1","req_id":"a","outc', "a verdict that is torn or damaged"),
        ('{\n "format": "forensics.verdict/1",\n "outc', "a verdict that is torn or damaged"),
    ],
)
def test_a_torn_verdict_is_no_torn_line(tmp_path: Path, store: Store, text: str, said: str) -> None:
    (tmp_path / "verdict.json").write_text(text)
    before = contents(store)
    with pytest.raises(ForensicsError, match=said) as error:
        only(tmp_path / "verdict.json", store)
    assert error.value.exit_code == 3
    assert contents(store) == before


def test_a_folder(tmp_path: Path, store: Store) -> None:
    folder = tmp_path / "logs"
    (folder / "b" / ".hidden").mkdir(parents=True)
    (tmp_path / "outside.jsonl").write_text(json.dumps(step(9)))
    (folder / "link.jsonl").symlink_to(tmp_path / "outside.jsonl")
    for name in (".token_tag_key", "b/.hidden/x.jsonl"):
        (folder / name).write_text(json.dumps(step(8)))
    (folder / "notes.txt").write_text("hello\n")
    written(folder / "b" / "1.log", [step(1)])
    written(folder / "a.jsonl", [step(0)])
    summaries = load([folder], store)
    assert [(one.path, one.format, one.skipped) for one in summaries] == [
        (str(folder / "a.jsonl"), "jsonl", None),
        (str(folder / "b" / "1.log"), "jsonl", None),
        (str(folder / "notes.txt"), "", "text that is not JSON"),
    ]
    assert store.ask("counts")["rows"].sum() == 2


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    logs, locked = tmp_path / "logs", tmp_path / "logs" / "locked"
    locked.mkdir(parents=True)
    written(locked / "1.jsonl", [step(1)])
    written(logs / "a.jsonl", [step(0)])
    scandir = os.scandir

    def denied(folder: Any) -> Any:
        if os.fspath(folder) == str(locked):
            raise PermissionError(13, "Permission denied", str(locked))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", denied)
    assert [(one.path, one.skipped) for one in load([logs], store)] == [
        (str(logs / "a.jsonl"), None),
        (str(locked), "cannot be read: Permission denied"),
    ]
    with pytest.raises(ForensicsError, match="nothing to read here: locked: cannot be read: Permission denied"):
        load([locked], store)


TIMES = sorted({(kind.name, name) for kind in kinds().values() for name in kind.times})


@pytest.mark.parametrize(("kind", "name"), TIMES)
def test_what_is_no_time_is_set_aside(tmp_path: Path, store: Store, kind: str, name: str) -> None:
    needed = {"req_id": "a", "step": 0, "run_id": "r", "rank": 0, "op": "o", "what": "w", "name": "k", "ts": 1.0}
    base = {"kind": kind, "engine_step": 0} | {one: needed[one] for one in kinds()[kind].required if one in needed}
    values = [-1e12, -0.5, 1e11, 1e300, 1_700_000_000_000]
    summary = only(written(tmp_path / "a.jsonl", [base | {name: value} for value in values]), store)
    assert counts(summary) == (5, 0, 0, 0, 5)
    reasons = store.ask("quarantined")["reason"].to_list()
    assert reasons == [f"{name}: {float(value)} is no time in Unix seconds" for value in values]
    assert only(written(tmp_path / "b.jsonl", [base | {name: 99_999_999_999.5}]), store).stored == 1


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"kind": "request", "decode_cfg_applied": {"temperature": "0"}}, "temperature: a string where a number"),
        ({"kind": "request", "decode_cfg_applied": {"temperature": True}}, "temperature: a boolean where a number"),
        ({"kind": "engine", "observes": {"step": "resumed"}}, "observes: a string where an array of strings"),
        ({"kind": "engine", "observes": {"step": [1]}}, "observes: an array where an array of strings"),
        ({"kind": "request", "decode_cfg_applied": {"temperature": 0}}, None),
        ({"kind": "request", "decode_cfg_applied": {"temperature": None, "x": "y"}}, None),
        ({"kind": "engine", "observes": {"step": ["resumed"], "batch": None}}, None),
        ({"kind": "event", "what": "w", "observes": 1, "decode_cfg_applied": 1}, None),
    ],
)
def test_objects_that_we_read_into(tmp_path: Path, store: Store, record: dict[str, Any], said: str | None) -> None:
    summary = only(written(tmp_path / "a.jsonl", [{"run_id": "r", "req_id": "a"} | record]), store)
    assert summary.stored == (said is None)
    assert all(str(said) in reason for reason in store.ask("quarantined")["reason"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b" \n\n", "a blank file"),
        (b"SQLite format 3\0" + b"\0" * 100, "an SQLite database"),
        (gzip.compress(b"hello\n" * 100), "gzip of text that is not JSON"),
        (gzip.compress(gzip.compress(b'{"kind":"event"}')), "gzip of gzip"),
        (zstandard.compress(b"PAR1 not so"), "zstandard of Parquet"),
        (b"\x1f\x8b broken", "gzip that cannot be unpacked"),
        (b'{\n "traceEvents": [\n  {"a":1}\n ]\n}\n', "JSON, but not one record a line"),
        (b'[{"kind":"event"}]', "JSON, but not one record a line"),
        (b'{"format":"forensics.case/1"}', "JSON, but not one record a line"),
        (b"\x00\x01\x02", "binary data"),
        ('{"kind":"event"}'.encode("utf-16"), "UTF-16 text; a log is UTF-8"),
        (b"\xfe\xff" + '{"kind":"event"}'.encode("utf-16-be"), "UTF-16 text; a log is UTF-8"),
        ('{"kind":"event"}'.encode("utf-32"), "UTF-32 text; a log is UTF-8"),
        (b"\0\0\xfe\xff" + '{"kind":"event"}'.encode("utf-32-be"), "UTF-32 text; a log is UTF-8"),
        (b'{\n "format": "forensics.verdict/1', "a torn verdict"),
        (b'{"format":"forensics.verdict/2","req_id":"a"}', "a verdict of another version, forensics.verdict/2"),
        (b'{\n "format": "forensics.verdict/2",\n "req_id"', "a verdict of another version, forensics.verdict/2"),
        (gzip.compress(b'{"format":"forensics.verdict/1"}'), "gzip of a verdict; unpack it"),
    ],
)
def test_what_is_no_log(tmp_path: Path, store: Store, content: bytes, said: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    before = contents(store)
    with pytest.raises(ForensicsError) as error:
        load([written(tmp_path / "good.jsonl", [step(0)]), path], store)
    assert error.value.exit_code == 3
    assert said in error.value.message
    assert str(path) in error.value.message
    assert contents(store) == before, "files are recognised before the first is stored"


def test_paths_that_cannot_be_read(tmp_path: Path, store: Store) -> None:
    (tmp_path / "empty").mkdir()
    for path, said in ((tmp_path / "nowhere", "no such file"), (tmp_path / "empty", "nothing to read here")):
        with pytest.raises(ForensicsError, match=said):
            load([path], store)


def test_progress_reaches_the_size(tmp_path: Path, store: Store) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(step(n)) + "\n" for n in range(12_000)).encode()))
    said: list[tuple[str, int, int]] = []
    load([path], store, lambda *args: said.append(args))
    size = path.stat().st_size
    assert len(said) == 4
    assert said[-1] == (str(path), size, size)
    assert all(0 < done <= size for _, done, _ in said)
    assert [done for _, done, _ in said] == sorted(done for _, done, _ in said)


@pytest.mark.parametrize("fault", [KeyboardInterrupt, MemoryError, OSError(5, "disk")])
def test_death_in_the_middle_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Any) -> None:
    monkeypatch.setattr(forensics.filing, "BATCH_ROWS", 5)
    path, db = written(tmp_path / "a.jsonl", [*valid_log(), {"kind": "?"}]), tmp_path / "a.duckdb"
    good = written(tmp_path / "0.jsonl", [step(100)])
    read = jsonl.read

    def dying(where: Path, size: int, start: Mark) -> Any:
        for number, entry in enumerate(read(where, size, start)):
            if number == 25:
                raise fault
            yield entry

    with Store.open(db, create=True) as store:
        load([good], store)
        before = contents(store)
        with monkeypatch.context() as patch:
            patch.setattr(jsonl, "read", dying)
            with pytest.raises(ForensicsError if isinstance(fault, OSError) else fault):
                load([path], store)
        assert contents(store) == before
    with Store.open(db) as store:
        assert contents(store) == before
        assert counts(only(path, store)) == (33, 29, 2, 1, 1)


def test_a_lost_row_is_never_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Store) -> None:
    before = contents(store)
    monkeypatch.setattr(forensics.filing.Filing, "_insert", lambda *_: None)
    monkeypatch.setattr(forensics.filing.Filing, "_append", lambda *_: None)
    with pytest.raises(AssertionError, match="rows went missing"):
        only(written(tmp_path / "a.jsonl", [step(0)]), store)
    assert contents(store) == before


def test_a_long_log_of_unknown_names_is_bounded(tmp_path: Path, store: Store) -> None:
    path = written(tmp_path / "a.jsonl", [step(n, **{f"f{n}": 1}) for n in range(1200)])
    unknown = only(path, store).unknown_fields
    assert len(unknown) == 1001
    assert unknown["…"] == 200


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32),
    packed=st.sampled_from(["plain", "gzip", "zstandard"]),
    batch_rows=st.sampled_from([3, 7, 20_000]),
)
def test_corruption_loses_no_row_and_raises_nothing_else(
    tmp_path: Path, seed: int, packed: str, batch_rows: int
) -> None:
    rng = random.Random(seed)
    lines = [json.dumps(record).encode() + b"\n" for record in valid_log()]
    for _ in range(rng.randrange(4)):
        lines.insert(rng.randrange(len(lines)), rng.choice(lines))
    if rng.random() < 0.5:
        rng.shuffle(lines)
    content = bytearray(b"".join(lines))
    whole_after = packed != "plain" and rng.random() < 0.5
    if whole_after:
        content = bytearray(gzip.compress(content) if packed == "gzip" else zstandard.compress(content))
    for _ in range(rng.choice([0, 1, 5, 50])):
        content[rng.randrange(len(content))] = rng.randrange(256)
    del content[rng.randrange(len(content)) if rng.random() < 0.4 else len(content) :]
    if packed != "plain" and not whole_after:
        content = bytearray(gzip.compress(content) if packed == "gzip" else zstandard.compress(content))
    path = tmp_path / "corrupt.jsonl"
    path.write_bytes(content)
    with Store.in_memory() as store, pytest.MonkeyPatch.context() as patch, contextlib.suppress(ForensicsError):
        patch.setattr(forensics.filing, "BATCH_ROWS", batch_rows)
        first = only(path, store)
        read, stored, merged, duplicates, quarantined = counts(first)
        assert read == stored + merged + duplicates + quarantined
        assert store.ask("counts")["rows"].sum() == stored
        assert store.ask("quarantined").height == quarantined
        before = contents(store)
        assert counts(only(path, store)) == (read, 0, 0, read - quarantined, quarantined)
        assert contents(store) == before


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    content=st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=80).map(lambda tail: b'{"kind":' + tail),
        st.binary(max_size=80).map(lambda tail: b"PAR1" + tail + b"PAR1"),
        st.binary(max_size=80).map(lambda tail: b"\x1f\x8b\x08\x00" + tail),
        st.binary(max_size=80).map(lambda tail: b"\x28\xb5\x2f\xfd" + tail),
        st.binary(max_size=80).map(lambda tail: b'{"format":"forensics.verdict/1"' + tail),
        st.binary(max_size=80).map(lambda tail: b'{"kind":"event","what":"w"}\n' + tail),
    )
)
def test_garbage_raises_nothing_but_our_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "garbage"
    path.write_bytes(content)
    with Store.in_memory() as store, contextlib.suppress(ForensicsError):
        summary = only(path, store)
        assert summary.read == sum(counts(summary)[1:])
