"""What is missing of a recording is counted, placed, and told apart from what was left out as asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from forensics.completeness import in_a_line, losses, lost, overlapping, runs_in_files
from forensics.load import load
from forensics.store import Store
from tests.story import Story

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

A = (1, 2, 3, 4)


@pytest.fixture
def store() -> Iterator[Store]:
    with Store.in_memory() as opened:
        yield opened


def told(store: Store, path: Path, story: Story, **changed: Any) -> None:
    for record in story.records:
        record |= changed
    load([story.write(path)], store)


def test_a_whole_recording(tmp_path: Path, store: Store) -> None:
    story = Story().engine().request("a", A)
    story.add("event", what="shutdown")
    told(store, tmp_path / "a.jsonl", story)
    (run,) = runs_in_files(store)
    assert (run.missing, run.dropped, run.by_policy, run.faults, run.shut_down) == (0, 0, 0, 0, True)
    assert (run.run, run.replica, run.begins, run.rows) == ("run-1", "r0", 1000.0, len(story.records))
    assert losses(store) == []
    assert in_a_line([run]) == ""


def test_merged_and_repeated_records_are_no_gap(tmp_path: Path, store: Store) -> None:
    story = Story().engine().request("a", A)
    story.add("request", req_id="a", finish_reason="length")
    story.add("engine", model_id="tiny")
    story.add("event", what="shutdown")
    told(store, tmp_path / "a.jsonl", story)
    (run,) = runs_in_files(store)
    assert run.missing == 0


def test_a_gap_is_placed(tmp_path: Path, store: Store) -> None:
    story = Story().engine().request("a", A).request("b", A)
    assert [story.records[number]["engine_step"] for number in (5, 6, 7, 8)] == [1, 2, 2, 3]
    del story.records[6:9]
    told(store, tmp_path / "a.jsonl", story)
    (loss,) = losses(store)
    assert (loss.why, loss.records, loss.after_step, loss.until_step) == ("missing", 3, 1, 3)
    assert lost(losses(store), "run-1", "r0", 2, 2) == [loss]
    assert lost(losses(store), "run-1", "r0", 0, 1) == [loss], "a record of step 1 may be among them"
    assert (
        lost(losses(store), "run-1", "r0", 0, 0)
        == lost(losses(store), "run-1", "r0", 4, 9)
        == lost(losses(store), "other", "r0", 2, 2)
        == []
    )
    assert "3 records missing between engine step 1 and engine step 3" in loss.told()
    assert in_a_line(runs_in_files(store)).startswith("3 records are missing")


def test_segments_of_one_run(tmp_path: Path, store: Store) -> None:
    """One writer, one sequence over all files; each begins with the engine record again, under a number of its own."""
    story = Story().engine().request("a", A).request("b", A)
    first, second, third = (Story() for _ in range(3))
    first.records = story.records[:6]
    again = story.records[0] | {"seq": 6}
    shifted = [record | {"seq": record["seq"] + 1} for record in story.records[6:]]
    second.records, third.records = [again, *shifted[:4]], [story.records[0], *shifted[4:]]
    for number, segment in ((2, third), (0, first)):
        told(store, tmp_path / f"run-{number}.jsonl", segment)
    (gap,) = losses(store)
    assert (gap.records, gap.source) == (5, str(tmp_path / "run-2.jsonl"))
    told(store, tmp_path / "run-1.jsonl", second)
    assert losses(store) == []
    assert len(store.ask("engine", run_id="run-1", replica_id="r0")) == 1
    assert store.ask("quarantined").height == 0


def test_deleted_segments_and_thinned_records_are_policy(tmp_path: Path, store: Store) -> None:
    story = Story().engine().request("a", A)
    del story.records[:4]
    assert story.records[0]["seq"] == 4
    told(store, tmp_path / "a.jsonl", story)
    assert [loss.records for loss in losses(store)] == [4]
    story.add("event", what="segments_deleted", detail={"segments": 1, "records": 4})
    story.add("event", what="thinned", detail={"records": {"step": 5, "batch": 2}, "held": 1})
    story.add("event", what="thinned", detail={"records": {"step": 8, "batch": 2}, "held": 0})
    for number, record in enumerate(story.records):
        record["seq"] = 4 + number
    told(store, tmp_path / "a.jsonl", story)
    assert losses(store) == []
    assert [run.by_policy for run in runs_in_files(store)] == [14]


def test_drops_lie_between_two_reports(tmp_path: Path, store: Store) -> None:
    story = Story().engine().request("a", A)
    story.add("event", what="drops", detail={"dropped": 5})
    story.request("b", A)
    story.add("event", what="drops", detail={"dropped": 5})
    story.add("event", what="drops", detail={"dropped": 12})
    story.request("c", A)
    told(store, tmp_path / "a.jsonl", story)
    found = losses(store)
    assert [(one.records, one.after_step, one.until_step) for one in found] == [(5, None, 4), (7, 7, 8)]
    assert lost(losses(store), "run-1", "r0", 5, 6) == []
    assert lost(losses(store), "run-1", "r0", 8, 9) == [found[1]]
    assert [run.dropped for run in runs_in_files(store)] == [12]


@pytest.mark.parametrize(
    "detail", [None, {"dropped": "many"}, {"dropped": -3}, {"dropped": True}, {"dropped": [1]}, {}]
)
def test_a_report_that_makes_no_sense_is_no_loss(tmp_path: Path, store: Store, detail: Any) -> None:
    story = Story()
    story.add("event", what="drops", detail=detail)
    story.add("event", what="drops", detail=detail, seq=2**62)
    told(store, tmp_path / "a.jsonl", story)
    assert [loss.why for loss in losses(store)] == ["missing"]


def test_the_last_number_there_is(tmp_path: Path, store: Store) -> None:
    for name in ("a", "b"):
        story = Story()
        story.add("event", what=name, seq=2**63 - 1)
        story.add("event", what="shutdown", seq=-(2**63))
        told(store, tmp_path / f"{name}.jsonl", story)
    assert [loss.why for loss in losses(store)] == ["missing"]
    assert [run.shut_down for run in runs_in_files(store)] == [True, True], "a copy's end is the run's end"


def test_without_numbers_nothing_is_known(tmp_path: Path, store: Store) -> None:
    told(store, tmp_path / "a.jsonl", Story().engine().request("a", A), seq=None)
    assert [run.missing for run in runs_in_files(store)] == [None]


@pytest.mark.parametrize(("begins", "pairs"), [(1000.05, 1), (2000.0, 0)])
def test_runs_of_one_replica_that_overlap(tmp_path: Path, store: Store, begins: float, pairs: int) -> None:
    told(store, tmp_path / "a.jsonl", Story("one").engine().request("a", A))
    told(store, tmp_path / "b.jsonl", Story("two").engine().request("a", A), ts=begins)
    found = overlapping(runs_in_files(store))
    assert [(one.run, other.run) for one, other in found] == [("one", "two")] * pairs
    assert ("overlap" in in_a_line(runs_in_files(store))) is bool(pairs)


@pytest.mark.parametrize(
    ("clock", "said"),
    [
        ({"c": {"wall_ts": 1.0}}, "related to wall time"),
        ({"d": {}}, "wall relation unknown"),
        (None, "wall relation unknown"),
    ],
)
def test_clocks(tmp_path: Path, store: Store, clock: Any, said: str) -> None:
    told(store, tmp_path / "a.jsonl", Story().engine(clock=clock).request("a", A), clock_id="c")
    assert [run.clock for run in runs_in_files(store)] == [said]
