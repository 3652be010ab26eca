"""The committed labelled executions: the labels are what the log shows, and a part of the score is repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.accuracy import labelled, scoring
from tests.accuracy.rawlog import Log, read

FOLDER = Path(__file__).parent.parent.parent / "fixtures/labelled/tiny-llama"
LABELS: list[dict[str, Any]] = json.loads((FOLDER / "labels.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def log() -> Log:
    return read(FOLDER / "log")


def output(log: Log, name: str) -> list[int]:
    [said] = [one["output_token_ids"] for one in log.kinds["request"]
              if one["req_id"] == name and "output_token_ids" in one]  # fmt: skip
    return list(said)


def test_a_cause_is_claimed_only_where_the_answer_differs(log: Log) -> None:
    for one in LABELS:
        ours, theirs = output(log, one["request"]), output(log, one["against"])
        length = min(len(ours), len(theirs))
        assert (ours[:length] == theirs[:length]) is (one["roots"] == ["none"]), one


def test_the_plain_state_repeats_itself(log: Log) -> None:
    numbers = [one["request"].rpartition("-")[2] for one in LABELS if one["set"] == "again"]
    assert len(numbers) >= 8
    assert all(output(log, f"plain-{one}") == output(log, f"again-{one}") for one in numbers)


def test_no_question_of_a_sample_is_answered_wrong() -> None:
    """One pair with a cause and one without of every state: wrong causes are what must not happen."""
    first: dict[tuple[str, bool], labelled.Pair] = {}
    for one in labelled.labelled(FOLDER):
        first.setdefault((one.cause, one.roots == ("none",)), one)
    marks = list(scoring.real(first.values()))
    assert {one.cause for one in marks if one.has_cause} >= {"batch", "cut", "template", "policy", "weights", "penalty"}
    assert [(one.cause, one.said) for one in marks if one.outcome() not in ("right", "abstained")] == []
