"""Ingest against duckdb's own unchecked `read_json`, the same step records in the same run: a ratio, never a limit.

make bench
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import duckdb
import pytest

from forensics.contract import kinds
from forensics.load import load
from forensics.store import Store
from tests.story import Story

if TYPE_CHECKING:
    from pathlib import Path

ROWS = 200_000


@pytest.mark.bench
def test_jsonl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    story = Story().request("one", (1,))
    step = next(record for record in story.records if record["kind"] == "step")
    path = tmp_path / "steps.jsonl"
    with path.open("w", encoding="utf-8") as out:
        for number in range(ROWS):
            out.write(json.dumps(step | {"step": number, "engine_step": number, "seq": number}) + "\n")
    columns = {name: kinds()["step"].columns()[name] for name in step if name != "kind"}
    start = time.perf_counter()
    with duckdb.connect(str(tmp_path / "unchecked.duckdb")) as connection:
        connection.execute(
            "create table step as select * from read_json($path, format='newline_delimited', columns=$columns)",
            {"path": str(path), "columns": columns},
        ).fetchall()
    unchecked = time.perf_counter() - start
    start = time.perf_counter()
    with Store.open(tmp_path / "store.duckdb", create=True) as store:
        (summary,) = load([path], store)
    strict = time.perf_counter() - start
    assert summary.stored == ROWS
    with capsys.disabled():
        print(
            f"\n{ROWS} step records: unchecked read_json {ROWS / unchecked:,.0f} rows/s, "
            f"strict ingest {ROWS / strict:,.0f} rows/s, ratio {unchecked / strict:.3f}"
        )
