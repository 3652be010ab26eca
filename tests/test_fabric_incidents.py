"""Late rank, slow wire, uneven work: which one it was, what followed from it, and when nobody can tell."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from tests.fabric_story import both, healthy, incident, run, slow_wire, stalled
from tests.story import B, Story, codes, grades, loaded, told

if TYPE_CHECKING:
    from pathlib import Path

    from forensics.explain import Explanation

FABRIC = {"rank_straggler", "fabric_congestion"}


def gaps(found: Explanation, code: str) -> list[str]:
    return [gap.field for gap in found.gaps if gap.code == code]


def says(found: Explanation, code: str) -> str:
    finding = found.finding(code)
    assert finding is not None, f"{code} did not fire"
    return finding.says


def test_a_late_rank_whose_steps_had_the_batch_cut(tmp_path: Path) -> None:
    found = told(tmp_path, *incident(stalled()))
    said = says(found, "rank_straggler")
    assert said.startswith("rank 2 of 4 computed ")
    assert "engine steps 20 to 42" in said
    assert "transfers stayed near their baseline" in said
    assert found.root_cause == "rank_straggler"
    assert grades(found)["rank_straggler", "batch_recomposition"] == "supported"
    assert "fabric_congestion" in found.ruled_out
    finding = found.finding("rank_straggler")
    assert finding is not None
    assert (finding.onset, finding.steps, finding.target["ranks"]) == (-1, (0, 1, 2), [2])
    assert finding.target["removal"] == pytest.approx(1.0, abs=0.05)
    assert finding.target["addition"] == pytest.approx(1.0, abs=0.1)
    assert finding.citations


def test_seen_from_the_calm_run_it_is_the_references(tmp_path: Path) -> None:
    found = told(tmp_path, *incident(stalled()), req="calm")
    assert says(found, "rank_straggler").startswith("in the reference rank 2 of 4")
    assert grades(found)["rank_straggler", "batch_recomposition"] == "supported"


@pytest.mark.parametrize(
    "fault",
    [
        healthy,
        stalled(times=1.05),
        stalled(first=30, last=32),
        stalled(rank=0, times=0.5),
        stalled(last=3, first=0),
    ],
    ids=["healthy", "five percent", "three steps", "faster than its peers", "over long before"],
)
def test_no_rank_is_singled_out(tmp_path: Path, fault: Any) -> None:
    found = told(tmp_path, *incident(fault))
    assert set(found.ruled_out) >= FABRIC
    assert found.root_cause == "batch_recomposition"


def test_a_rank_that_is_late_in_both_runs_is_no_difference(tmp_path: Path) -> None:
    load = run("load", stalled(first=0), rows=2, output=B)
    assert "rank_straggler" in told(tmp_path, load, run("calm", stalled(first=0))).ruled_out


def test_a_slow_wire(tmp_path: Path) -> None:
    found = told(tmp_path, *incident(slow_wire(), cut=30))
    said = says(found, "fabric_congestion")
    assert "engine steps 28 to 42" in said
    assert "degraded" in said
    assert "no rank is singled out" in said
    assert "rank_straggler" in found.ruled_out
    assert found.root_cause == "fabric_congestion"
    assert grades(found)["fabric_congestion", "batch_recomposition"] == "supported"


def test_a_little_slower_wire_is_congested_and_degraded_with_retransmissions(tmp_path: Path) -> None:
    found = told(tmp_path, *incident(slow_wire(2.0), cut=30))
    assert "congested" in says(found, "fabric_congestion")
    resent = told(tmp_path / "resent", *incident(slow_wire(2.0, retransmits=3), cut=30))
    assert "degraded" in says(resent, "fabric_congestion")
    assert f"{15 * 2 * 4 * 3} retransmissions in it, 0 elsewhere" in says(resent, "fabric_congestion")


def test_a_wire_thirty_percent_slower_is_none(tmp_path: Path) -> None:
    assert set(told(tmp_path, *incident(slow_wire(1.3))).ruled_out) >= FABRIC


def test_both_at_once_compete(tmp_path: Path) -> None:
    found = told(tmp_path, *incident(both(stalled(), slow_wire(first=20, last=35)), cut=25))
    assert codes(found) >= FABRIC
    assert grades(found)["rank_straggler", "batch_recomposition"] == "consistent"


def test_a_run_that_is_slow_from_end_to_end_has_no_calm_to_say_since_when(tmp_path: Path) -> None:
    found = told(tmp_path, *incident(slow_wire(first=0)))
    assert gaps(found, "fabric_congestion")[0].startswith("calm steps of tp-0: all its transfers take ")


@pytest.mark.parametrize("work", [3.0, 4.0])
def test_uneven_work_is_no_late_rank(tmp_path: Path, work: float) -> None:
    """Three times the compute for three, or four, times the bytes."""
    assert "rank_straggler" in told(tmp_path, *incident(stalled(work=work))).ruled_out


def test_a_rank_that_is_late_beyond_its_work_is(tmp_path: Path) -> None:
    found = told(tmp_path, *incident(stalled(times=4.0, work=1.5)))
    assert "rank 2 of 4" in says(found, "rank_straggler")


def test_uneven_tokens_are_no_late_rank(tmp_path: Path) -> None:
    load, calm = incident(stalled())
    for step in range(43):
        for rank in range(int(step >= 40), 4):  # rank 0 has said its own of the request's steps
            tokens = 4 if step == 40 else 2
            load.add("batch", engine_step=step, rank=rank, batch_tokens=tokens * (3 if rank == 2 and step >= 20 else 1))
    assert "rank_straggler" in told(tmp_path, load, calm).ruled_out


def test_two_late_ranks_of_eight_are_redundant_causes(tmp_path: Path) -> None:
    """Fixing one gives nothing back: the other holds the step up as well. Both are named."""
    fault = both(stalled(rank=2), stalled(rank=5, times=2.9))
    found = told(tmp_path, *incident(fault, ranks=8))
    finding = found.finding("rank_straggler")
    assert finding is not None
    assert finding.target["ranks"] == [2, 5]
    assert "alone it would give back" in finding.says
    assert finding.target["removal"] > 0.9


def test_two_ranks_cannot_vote(tmp_path: Path) -> None:
    found = told(tmp_path, *incident(stalled(rank=1), ranks=2))
    assert gaps(found, "rank_straggler") == ["at least 4 ranks in one communicator"]
    assert grades(found)["batch_recomposition", "shape_class_change"] == "supported"
    quiet = told(tmp_path / "quiet", *incident(healthy, ranks=2))
    assert "rank_straggler" in quiet.ruled_out, "nobody waited, so nobody was late"


def test_lost_records_of_a_rank_are_a_gap(tmp_path: Path) -> None:
    load, calm = incident(healthy)
    load.records = [
        one for one in load.records
        if not (one["kind"] == "collective" and one["rank"] == 2 and one["engine_step"] >= 10)
    ]  # fmt: skip
    found = told(tmp_path, load, calm)
    assert gaps(found, "rank_straggler") == ["77% of the collectives of rank 2"]
    assert FABRIC & codes(found) == set(), "the last to arrive may be missing: no transfer is known"


def test_a_third_of_the_records_lost_at_random_is_still_a_late_rank(tmp_path: Path) -> None:
    chance = random.Random(5)
    load, calm = incident(stalled(), ranks=8)
    load.records = [one for one in load.records if one["kind"] != "collective" or chance.random() > 0.3]
    found = told(tmp_path, load, calm)
    assert "rank 2 of 8" in says(found, "rank_straggler")
    assert "fabric_congestion" not in codes(found)


def test_a_parallel_engine_without_collectives_is_a_gap_and_one_rank_is_none(tmp_path: Path) -> None:
    load, calm = incident(healthy)
    for story in (load, calm):
        story.records = [one for one in story.records if one["kind"] != "collective"]
    found = told(tmp_path, load, calm)
    assert gaps(found, "rank_straggler") == ["collective.compute_ms of every rank"]
    assert gaps(found, "fabric_congestion") == ["collective.comm_ms of every rank"]
    assert set(told(tmp_path / "one", loaded()).ruled_out) >= FABRIC


def test_without_compute_it_is_taken_from_the_ranks_own_clock(tmp_path: Path) -> None:
    """No compute_ms, no comm_ms, and clocks hours apart: starts and ends of one rank still tell."""
    load, calm = incident(stalled())
    for story in (load, calm):
        now = [0.0] * 4
        for one in story.records:
            if one["kind"] == "collective":
                rank = one["rank"]
                start = now[rank] + one.pop("compute_ms") / 1000
                now[rank] = start + one.pop("comm_ms") / 1000
                one |= {"start_ts": 1e9 + 3600 * rank + start, "end_ts": 1e9 + 3600 * rank + now[rank]}
    found = told(tmp_path, load, calm)
    assert "rank 2 of 4" in says(found, "rank_straggler")
    assert "fabric_congestion" not in codes(found)


def test_a_launch_composed_before_the_first_longer_step_was_not_cut_by_it(tmp_path: Path) -> None:
    found = told(tmp_path, *incident(stalled(first=41), cut=None))
    link = next((one for one in found.links if one.cause == "rank_straggler"), None)
    assert link is None or link.grade == "refuted"
    assert found.root_cause == "batch_recomposition"


def test_nobody_acted_upon_the_longer_steps(tmp_path: Path) -> None:
    found = told(tmp_path, *incident(stalled(), cut=None))
    link = next(one for one in found.links if one.effect == "batch_recomposition")
    assert link.grade == "consistent"
    assert "nobody was left waiting" in " ".join(link.why)


@pytest.mark.parametrize(
    ("arrival_step", "grade", "why"),
    [
        (30, "consistent", "it waited through engine steps 30 to 39, which were longer"),
        (40, "refuted", "none of the longer steps lies before"),
    ],
)
def test_a_queue_behind_longer_steps(tmp_path: Path, arrival_step: int, grade: str, why: str) -> None:
    """Steps 20 to 36 are longer; block maps, which may explain a queue as well, are not on record."""
    load, calm = incident(stalled(last=36), cut=None, arrival_step=arrival_step)
    found = told(tmp_path, load.amend("load", "step", (0,), queue_ms=200.0), calm)
    (link,) = (one for one in found.links if (one.cause, one.effect) == ("rank_straggler", "queue_pressure"))
    assert link.grade == grade
    assert why in " ".join(link.why)


def test_hostile_numbers_end_in_no_traceback(tmp_path: Path) -> None:
    load, calm = incident(stalled(compute_ms=0.0, bytes=0, retransmits=-4))
    for one in load.records:
        if one["kind"] == "collective" and one["engine_step"] % 3 == 0:
            one |= {"compute_ms": -1e308, "comm_ms": 1e308, "start_ts": 5.0, "end_ts": 1.0}
    assert told(tmp_path, load, calm).standing == "divergence"


def test_a_story_without_fabric_has_no_communicators(tmp_path: Path) -> None:
    found = told(tmp_path, Story().engine().request("idle", (1, 2)).request("load", (1, 3), rows=2, drift=0.25))
    assert set(found.ruled_out) >= FABRIC
