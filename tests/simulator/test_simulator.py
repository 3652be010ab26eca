"""The simulator itself: the same seed gives the same log, nothing planted changes nothing, each cause does its work."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest

from forensics.checking import report
from forensics.load import load
from forensics.store import Store
from tests.simulator.causes import ASKED, CAUSES, DECOYS, LIFE, ONSET
from tests.simulator.incident import Setting, Truth, make
from tests.simulator.recorder import ALWAYS_KEPT
from tests.simulator.truth import lived
from tests.simulator.world import World

if TYPE_CHECKING:
    from tests.simulator.replica import Launch

ROOT = Path(__file__).parent.parent.parent
SCHEMAS = {path.name.partition(".")[0]: json.loads(path.read_text()) for path in (ROOT / "schemas").glob("*.v1.json")}


def lines(folder: Path) -> list[dict[str, Any]]:
    texts = [path.read_text(encoding="utf-8") for path in sorted((folder / "log").iterdir())]
    return [json.loads(one) for text in texts for one in text.splitlines()]


def without_and_with(name: str, level: str = "moderate") -> tuple[list[Launch], list[Launch]]:
    """Return the launches of a world without a cause and with it, jitter and arrivals the same."""
    cause = CAUSES[name]
    calm = World("b", (), "3/a", 3, cause.rate, cause.ranks)
    return calm.run("p"), replace(calm, plants=(cause.plant(cause.levels[level]),)).run("p")


@pytest.fixture(scope="module")
def stalled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Truth]:
    folder = tmp_path_factory.mktemp("stalled")
    return folder, make(Setting(3, ("rank_straggler",), decoys=3, clock_error_ms=2.0), folder)


def test_every_code_of_the_design_is_planted() -> None:
    codes = {path.stem for path in (ROOT / "forensics/detectors").glob("*.py")} - {"__init__", "regime_mismatch"}
    symptoms = {"thin_margin", "logit_drift", "token_flip"}
    assert codes - symptoms <= {root for cause in CAUSES.values() for root in cause.roots}


def test_the_log_keeps_the_contract(stalled: tuple[Path, Truth]) -> None:
    folder, _ = stalled
    kinds, written = set(), lines(folder)
    checks = {kind: jsonschema.Draft202012Validator(SCHEMAS[kind]) for kind in {one["kind"] for one in written}}
    for one in [*written[::29], *(one for one in written if one["kind"] in ("engine", "event"))]:
        checks[one["kind"]].validate(one)
        assert set(one) <= set(SCHEMAS[one["kind"]]["properties"]), "every field is one of the contract"
        kinds.add(one["kind"])
    assert kinds == {"engine", "request", "step", "batch", "collective", "kernel", "device", "event"}
    with Store.in_memory() as store:
        found = report(store, load([folder / "log"], store))
    assert found.usable
    assert not found.rejected
    assert not found.warnings


def test_the_log_says_that_it_is_simulated_and_nothing_of_the_truth(stalled: tuple[Path, Truth]) -> None:
    folder, _ = stalled
    written = lines(folder)
    assert {one["engine"] for one in written if one["kind"] == "engine"} == {"simulator"}
    codes = {root for cause in CAUSES.values() for root in cause.roots} - {"paging"}  # the contract has paging_on
    assert not [word for word in (*codes, "decoy", "moderate", "planted") if word in json.dumps(written)]


def test_equal_seeds_give_equal_logs(tmp_path: Path, stalled: tuple[Path, Truth]) -> None:
    folder, truth = stalled
    assert make(truth.setting, tmp_path) == truth
    assert lines(tmp_path) == lines(folder)
    other = make(replace(truth.setting, seed=4), tmp_path / "other")
    assert other.roots == truth.roots
    assert lines(tmp_path / "other") != lines(folder)


@pytest.mark.parametrize("background", ["paired", "live", "idle"])
def test_nothing_planted_changes_no_answer(tmp_path: Path, background: str) -> None:
    truth = make(Setting(5, ("rank_straggler",), "zero", background, decoys=3), tmp_path)
    assert (truth.roots, truth.flip, truth.chain) == (("none",), None, ())
    outputs = {
        tuple(one["output_token_ids"]) for one in lines(tmp_path)
        if one["kind"] == "request" and one["req_id"].startswith(("asked", "early"))
    }  # fmt: skip
    assert len(outputs) == 1


@pytest.mark.parametrize("name", sorted(CAUSES))
def test_each_cause_flips_a_token_and_is_the_root(tmp_path: Path, name: str) -> None:
    cause = CAUSES[name]
    truth = make(Setting(11, (name,), background=cause.where[0]), tmp_path)
    assert truth.roots == cause.roots
    assert truth.flip is not None
    assert truth.chain[-1] == "token_flip"
    tokens = {one["req_id"]: one["output_token_ids"] for one in lines(tmp_path)
              if one["kind"] == "request" and one["req_id"].startswith("asked")}  # fmt: skip
    assert tokens["asked-a"][: truth.flip] == tokens["asked-b"][: truth.flip]
    assert tokens["asked-a"][truth.flip] != tokens["asked-b"][truth.flip]


def test_until_the_onset_two_paired_worlds_are_the_same() -> None:
    calm, stalled = without_and_with("rank_straggler")
    before = [one for one in calm if one.end < ONSET]
    assert before == stalled[: len(before)]
    assert calm[: len(before) + 20] != stalled[: len(before) + 20]


def test_the_first_long_chain_link_by_link() -> None:
    """Rank 5 stalls → the others wait → steps stretch → the batch is cut → another tactic, for steps on end."""
    calm, stalled = without_and_with("rank_straggler", "strong")
    late = [one for one in stalled if one.start > ONSET and not one.prefill]
    first = late[0]
    assert first.works[5].compute_ms > 1.9 * first.works[4].compute_ms
    waits = [1000 * (first.collectives[0].end - start) for start in first.collectives[0].starts]
    assert min(waits) == waits[5]
    assert min(waits[:5]) > 2 * waits[5], "what the early ranks see as a slow collective is waiting"
    [cut] = [event for one in stalled for event in one.events if event.what == "batch_limit_change"]
    assert cut.detail == {"changed": {"max_num_seqs": [32, 12]}}
    rows = [len(one.rows) for one in late]
    assert rows[0] > 16
    assert set(rows[6:]) == {12}
    tactics = [one.works[0].algo for one, row in lived(stalled) if not one.prefill]
    change = next(i for i, one in enumerate(tactics) if one != tactics[0])
    assert len(set(tactics[change:])) == 1
    assert len(tactics) - change > 10
    assert {one.works[0].algo for one, _ in lived(calm) if not one.prefill} == {tactics[0]}


def test_the_second_long_chain_link_by_link() -> None:
    """Replication and a checkpoint pin memory → it evaporates → rows go to the host → the batch shrinks → a tactic."""
    calm, pinned = without_and_with("memory_evaporation")
    late = next(one for one in pinned if one.start > ONSET)
    assert late.now.isr_pinned_mb > 0
    assert late.now.ckpt_pinned_mb > 0
    assert late.memory.vram_free > 8000, "the counter of the device does not see pins"
    assert late.memory.effective_free < 1024
    assert {event.what for one in pinned if one.paging for event in one.events} == {"offload", "restore"}
    assert not any(one.paging for one in calm)
    assert max(len(one.rows) for one, _ in lived(calm)[-10:]) > 16
    assert max(len(one.rows) for one, _ in lived(pinned)[-10:]) <= 16
    assert {one.works[0].algo for one, _ in lived(calm)} < {one.works[0].algo for one, _ in lived(pinned)}


def test_a_token_flips_only_where_the_margin_is_smaller_than_what_moved(tmp_path: Path) -> None:
    truth = make(Setting(11, ("algorithm_change",)), tmp_path)
    steps = {(one["req_id"], one["token_index"]): one for one in lines(tmp_path) if one["kind"] == "step"}
    calm, other = steps["asked-a", truth.flip], steps["asked-b", truth.flip]
    moved = dict(zip(calm["top_token_ids"], calm["top_logits"], strict=True))
    drift = max(abs(moved[one] - value) for one, value in zip(other["top_token_ids"], other["top_logits"], strict=True))
    assert 0 < calm["margin"] <= 2 * drift or calm["margin"] == 0
    assert all(value * 2**3 == int(value * 2**3) for value in moved.values()), "bfloat16 below 32 steps by an eighth"


def test_decoys_do_something_and_flip_nothing(tmp_path: Path) -> None:
    for number, name in enumerate(sorted(DECOYS)):
        calm = World("b", (), "3/a", 3, 24.0, 2)
        plant = DECOYS[name]
        assert plant.engine or replace(calm, plants=(plant,)).run("p") != calm.run("p"), number


def test_lost_lines_leave_gaps_in_seq_and_never_take_requests(tmp_path: Path) -> None:
    make(Setting(3, ("weights_drift",)), tmp_path / "whole")
    make(Setting(3, ("weights_drift",), loss=0.3), tmp_path / "lossy")
    whole, lossy = lines(tmp_path / "whole"), lines(tmp_path / "lossy")
    assert 0.6 < len(lossy) / len(whole) < 0.8
    assert sum(one["kind"] in ALWAYS_KEPT for one in lossy) == sum(one["kind"] in ALWAYS_KEPT for one in whole)
    assert {json.dumps(one) for one in lossy} < {json.dumps(one) for one in whole}, "what is there keeps its number"


def test_a_blind_recorder_says_what_it_does_not_see(tmp_path: Path) -> None:
    truth = make(Setting(11, ("algorithm_change",), blind=True), tmp_path)
    assert truth.roots == ("undetermined",)
    assert not any("algo_id" in one for one in lines(tmp_path))
    assert all("algo_id" not in one["observes"]["batch"] for one in lines(tmp_path) if one["kind"] == "engine")


def test_of_two_causes_the_one_that_flips_alone_is_the_root(tmp_path: Path) -> None:
    both = make(Setting(11, ("policy_injection", "rank_straggler")), tmp_path)
    assert both.roots == ("effective_request_drift",), "the stall comes after the first token"
    assert make(Setting(11, ("fabric_congestion", "rank_straggler")), tmp_path).roots == (
        "fabric_congestion", "rank_straggler",
    ), "each alone cuts the batch at the same step"  # fmt: skip


def test_clocks_of_two_hosts_disagree_by_what_was_asked(tmp_path: Path) -> None:
    make(Setting(3, ("rank_straggler",), clock_error_ms=50.0), tmp_path)
    starts: dict[tuple[str, int], set[float]] = {}
    for one in lines(tmp_path):
        if one["kind"] == "batch":
            starts.setdefault((one["run_id"], one["engine_step"]), set()).add(one["ts"])
    assert all(len(one) == 2 for one in starts.values())
    assert max(max(one) - min(one) for one in starts.values()) > 0.005


def test_four_replicas(tmp_path: Path) -> None:
    make(Setting(3, ("weights_drift",), dp=4), tmp_path)
    assert {one["replica_id"] for one in lines(tmp_path)} == {"a", "b", "c", "d"}
    assert ASKED < ONSET < LIFE


def test_innocent_differences_move_no_bit(tmp_path: Path) -> None:
    make(Setting(6, ("rank_straggler",), "zero", "idle", decoys=len(DECOYS)), tmp_path)
    steps = {
        (one["req_id"], one["token_index"]): one["logits_sha256"] for one in lines(tmp_path) if one["kind"] == "step"
    }
    assert {steps["asked-a", index] == steps["asked-b", index] for index in range(40)} == {True}
