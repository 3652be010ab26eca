"""Parquet: the same record as in JSON Lines, and a file that is broken is refused."""

from __future__ import annotations

import datetime
import hashlib
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forensics.contract import check, kinds
from forensics.errors import ForensicsError
from forensics.ingest import parquet
from forensics.load import FileSummary, load
from forensics.store import Store
from forensics.values import Rejected

if TYPE_CHECKING:
    from pathlib import Path

STEP = {"req_id": "a", "step": 0}


def checked(path: Path) -> list[tuple[str, dict[str, Any]]]:
    entries = list(parquet.read(path, path.stat().st_size))
    assert [entry.line for entry in entries] == list(range(1, len(entries) + 1))
    assert all(isinstance(entry.record, dict) for entry in entries), entries
    return [check(entry.record) for entry in entries if isinstance(entry.record, dict)]


def both(tmp_path: Path, table: pa.Table, records: list[dict[str, Any]]) -> tuple[FileSummary, FileSummary]:
    """Load a table and then the records that it holds."""
    pq.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    with Store.in_memory() as store:
        first, second = load([tmp_path / "a.parquet", tmp_path / "a.jsonl"], store)
        assert store.ask("quarantined").to_dicts() == []
    return first, second


def test_the_same_rows_are_duplicates(tmp_path: Path) -> None:
    records: list[dict[str, Any]] = [
        {"kind": "step", "req_id": "a", "step": 0, "margin": 1, "top_logits": [2, 1.5], "plan": {"b": 8, "a": True}},
        {
            "kind": "request",
            "req_id": "a",
            "decode_cfg_applied": {"t": 0.0, "stop": ["x"]},
            "effective_token_ids": [1, 2],
        },
        {"kind": "kernel", "name": "k", "algo": {"id": 1}, "unknown": "x"},
        {"kind": "collective", "run_id": "r", "rank": 0, "op": "all_reduce", "algo": "ring", "seq_no": 1},
    ]
    columns = {
        "kind": pa.array(["step", "request", "kernel", "collective"]),
        "req_id": pa.array(["a", "a", None, None]),
        "step": pa.array([0, None, None, None], pa.int32()),
        "margin": pa.array([1.0, None, None, None]),
        "top_logits": pa.array([[2.0, 1.5], None, None, None]),
        "plan": pa.array([[("b", "8"), ("a", "true")], None, None, None], pa.map_(pa.string(), pa.string())),
        "decode_cfg_applied": pa.array([None, {"t": 0.0, "stop": ["x"], "seed": None}, None, None]),
        "effective_token_ids": pa.array([None, [1, 2], None, None], pa.large_list(pa.uint32())),
        "name": pa.array([None, None, "k", None], pa.dictionary(pa.int8(), pa.string())),
        "algo": pa.array([None, None, '{"id": 1}', "ring"]),
        "unknown": pa.array([None, None, "x", None]),
        "run_id": pa.array([None, None, None, "r"], pa.large_string()),
        "rank": pa.array([None, None, None, 0], pa.uint8()),
        "op": pa.array([None, None, None, "all_reduce"]),
        "seq_no": pa.array([None, None, None, 1]),
    }
    first, second = both(tmp_path, pa.table(columns), records)
    assert (first.read, first.stored, first.unknown_fields) == (4, 4, {"unknown": 1})
    assert (second.read, second.duplicates) == (4, 4)


def test_the_kind_comes_from_rows_metadata_or_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"what": ["w"]}), path)
    assert checked(path)[0][0] == "event"
    pq.write_table(pa.table({"ts": [1.0], "note": ["x"]}).replace_schema_metadata({"kind": "device"}), path)
    assert checked(path)[0][0] == "device"
    pq.write_table(pa.table({"req_id": ["a"], "step": [1], "new": [1]}), path)
    assert checked(path)[0][0] == "step"
    pq.write_table(pa.table({"req_id": ["a"], "truncated": [True], "new": [1]}), path)
    assert checked(path)[0][0] == "request"


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([1.0]), "step: a number where an integer"),
        (pa.array(["1"]), "step: a string where an integer"),
        (pa.array([2**63], pa.uint64()), "step: an integer beyond 64 bits"),
        (pa.array([datetime.datetime(2026, 1, 1)]), "step: a datetime where"),  # noqa: DTZ001
        (pa.array([b"1"]), "step: a bytes where"),
    ],
)
def test_nothing_is_coerced(tmp_path: Path, column: pa.Array, said: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"req_id": ["a"], "kind": ["step"], "step": column}), path)
    with Store.in_memory() as store:
        (summary,) = load([path], store)
        assert summary.quarantined == 1
        (row,) = store.ask("quarantined").to_dicts()
        assert said in row["reason"]
        assert json.loads(row["bytes"])["req_id"] == "a"


def test_a_bad_value_costs_its_own_row_only(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    plans = [[("a", "1")], [("a", "1"), ("a", "2")], None]
    table = pa.table(
        {
            "req_id": ["a"] * 3,
            "step": [0, 1, 2],
            "plan": pa.array(plans, pa.map_(pa.string(), pa.string())),
            "margin": [0.5, 0.5, float("nan")],
        }
    )
    pq.write_table(table, path)
    entries = list(parquet.read(path, path.stat().st_size))
    assert [isinstance(entry.record, Rejected) for entry in entries] == [False, True, False]
    with Store.in_memory() as store:
        (summary,) = load([path], store)
        assert (summary.read, summary.stored, summary.quarantined) == (3, 1, 2)


@pytest.mark.parametrize(
    ("columns", "said", "kept"),
    [
        ({"new": ["x"], "step": [1]}, "no kind", {"new": "x", "step": 1}),
        ({"kind": ["?"], "new": [b"x"]}, "unknown kind '?'", {"kind": "?", "new": "b'x'"}),
        (
            {"kind": ["event"], "what": ["w"], "detail": ['{"a":']},
            "not JSON",
            {"kind": "event", "what": "w", "detail": '{"a":'},
        ),
        (
            {"req_id": ["a"], "plan": pa.array([[("a", "1"), ("a", "2")]], pa.map_(pa.string(), pa.string()))},
            "a value that is not JSON",
            {"req_id": "a", "plan": [["a", "1"], ["a", "2"]]},
        ),
    ],
)
def test_a_rejected_row_keeps_its_json(tmp_path: Path, columns: Any, said: str, kept: dict[str, Any]) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    with Store.in_memory() as store:
        assert load([path], store)[0].quarantined == 1
        (row,) = store.ask("quarantined").to_dicts()
    assert said in row["reason"]
    assert json.loads(row["bytes"]) == kept
    assert row["length"] == len(row["bytes"])
    assert row["sha256"] == hashlib.sha256(row["bytes"]).hexdigest()


def test_keys_that_json_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    new = pa.array([[(datetime.date(2026, 1, 1), 1)]], pa.map_(pa.date32(), pa.int64()))
    pq.write_table(pa.table({"req_id": ["a"], "step": [0], "new": new}), path)
    with Store.in_memory() as store:
        assert load([path], store)[0].quarantined == 1
        assert b"datetime.date(2026, 1, 1)" in store.ask("quarantined")["bytes"][0]


@pytest.mark.parametrize("text", ['{"a":1,"a":2}', "{", "1", '1,"b":2'])
def test_an_object_as_text_must_be_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"kind": ["event"], "what": ["w"], "detail": [text]}), path)
    with Store.in_memory() as store:
        assert load([path], store)[0].quarantined == 1


def test_a_broken_file_is_refused_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"req_id": [str(n) for n in range(9999)], "step": range(9999)}), path, row_group_size=1000)
    content = path.read_bytes()
    broken = content[: len(content) // 2] + bytes(200) + content[len(content) // 2 + 200 :]
    with Store.in_memory() as store:
        for bad in (content[:-100], content[:40], b"PAR1", broken):
            path.write_bytes(bad)
            with pytest.raises(ForensicsError, match="Parquet that cannot be read") as error:
                load([path], store)
            assert error.value.exit_code == 3
            assert store.ask("counts")["rows"].sum() == 0
        path.write_bytes(content)
        assert load([path], store)[0].stored == 9999


VALUES = {
    "VARCHAR": st.text(st.characters(exclude_categories=["Cs"]), max_size=6),
    "BIGINT": st.integers(0, 2**63 - 1),
    "DOUBLE": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**53), 2**53),
    "BOOLEAN": st.booleans(),
}
VALUES |= {f"{name}[]": st.lists(VALUES[name], max_size=3) for name in ("VARCHAR", "BIGINT", "DOUBLE")}
SCALARS = VALUES["VARCHAR"] | VALUES["BOOLEAN"] | st.integers(0, 9)
VALUES["MAP(VARCHAR, VARCHAR)"] = st.dictionaries(VALUES["VARCHAR"], SCALARS, max_size=3)
MEMBERS = VALUES["VARCHAR"] | VALUES["DOUBLE"] | st.none() | st.lists(st.none() | st.booleans())
OBJECT = st.dictionaries(VALUES["VARCHAR"], MEMBERS, max_size=3)


@st.composite
def records(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a valid record of any kind."""
    kind = draw(st.sampled_from(sorted(kinds())))
    schema = kinds()[kind]
    hashed = {"effective_token_ids", "output_token_ids"}
    names = [*schema.required, *draw(st.lists(st.sampled_from(sorted(schema.fields.keys() - hashed)), max_size=6))]
    record: dict[str, Any] = {"kind": kind}
    for name in names:
        field = schema.fields[name].type
        if name in schema.times:
            record[name] = draw(st.floats(0, 9e10) | st.integers(0, 10**10))
        elif name == "observes":
            record[name] = draw(st.dictionaries(VALUES["VARCHAR"], VALUES["VARCHAR[]"], max_size=3))
        elif field.label == "an object":
            record[name] = draw(OBJECT)
        elif field.label == "an array of objects":
            record[name] = draw(st.lists(OBJECT, max_size=2))
        else:
            record[name] = draw(VALUES[field.sql])
    return record


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(drawn=st.lists(records(), min_size=1, max_size=8))
def test_jsonl_and_parquet_say_the_same(tmp_path: Path, drawn: list[dict[str, Any]]) -> None:
    rows = [(kind, row) for kind, row in map(check, drawn)]
    columns: dict[str, pa.Array] = {"kind": pa.array([kind for kind, _ in rows])}
    for name in sorted({name for kind, row in rows for name in row if name in kinds()[kind].fields}):
        kind = next(kind for kind, row in rows if name in row)
        columns[name] = pa.array([row.get(name) for _, row in rows], kinds()[kind].arrow_schema().field(name).type)
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path)
    hashes = [row["content_hash"] for _, row in rows]
    assert [row["content_hash"] for _, row in checked(path)] == hashes
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in drawn))
    with Store.in_memory() as store:
        (first,), (second,), (third,) = (
            load([one], store) for one in (tmp_path / "a.parquet", path, tmp_path / "a.parquet")
        )
    assert second.stored == second.merged == third.stored == third.merged == 0
    assert first.quarantined == second.quarantined
