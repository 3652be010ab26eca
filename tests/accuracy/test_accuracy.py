"""The scorer: made-up answers are counted right, baselines do what their rule says, seeds never meet."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.accuracy import baselines, labelled, report, scoring
from tests.accuracy.asking import ask
from tests.accuracy.grid import DEVELOPMENT, SCORED, settings
from tests.accuracy.rawlog import Log, read
from tests.accuracy.tally import Marked, Rate, confusions, grouped, rates
from tests.simulator.causes import CAUSES
from tests.simulator.incident import Setting

ROOT = Path(__file__).parent.parent.parent
MARK = Marked(
    real=False, part="complete", cause="rank_straggler", level="moderate", background="paired", loss=0.0, seed=1,
    roots=("rank_straggler",), true_chain=("rank_straggler", "batch_recomposition", "token_flip"),
    said="rank_straggler", said_chain=(), baselines=dict.fromkeys(baselines.RULES, "undetermined"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ("rank_straggler", "right"), ("undetermined", "abstained"), ("none", "missed"),
        ("batch_recomposition", "downstream"), ("weights_drift", "false"),
    ],
)  # fmt: skip
def test_an_answer_where_there_is_a_cause(said: str, outcome: str) -> None:
    assert replace(MARK, said=said).outcome() == outcome


@pytest.mark.parametrize("truth", ["none", "undetermined"])
def test_an_answer_where_no_cause_can_be_named(truth: str) -> None:
    one = replace(MARK, roots=(truth,), true_chain=())
    assert one.outcome(truth) == "right"
    assert one.outcome("rank_straggler") == "false"
    assert not one.has_cause
    assert MARK.has_cause


def test_where_nothing_diverged_an_abstention_is_not_right() -> None:
    assert replace(MARK, roots=("none",), true_chain=()).outcome("undetermined") == "abstained"


def test_each_of_two_right_answers_is_right() -> None:
    both = replace(MARK, roots=("rank_straggler", "fabric_congestion"))
    assert both.outcome("fabric_congestion") == both.outcome("rank_straggler") == "right"


def test_rates_count_every_answer_once() -> None:
    said = ["rank_straggler"] * 6 + ["undetermined"] * 2 + ["weights_drift", "batch_recomposition"]
    found = rates([replace(MARK, said=one) for one in said])
    assert {name: rate.hits for name, rate in found.items()} == {
        "right": 6, "abstained": 2, "missed": 0, "downstream": 1, "false": 1,
    }  # fmt: skip
    assert all(rate.of == 10 for rate in found.values())
    assert str(found["right"]) == "6 of 10 (31–83 %)", "Wilson 1927"
    assert str(Rate(0, 0)) == "–"
    assert rates([MARK], "last arriver")["abstained"] == Rate(1, 1)


def test_wrong_answers_are_listed_by_what_was_said_instead() -> None:
    wrong = [replace(MARK, said="weights_drift")] * 2 + [replace(MARK, said="none"), replace(MARK, said="undetermined")]
    assert confusions([MARK, *wrong]) == [
        ("rank_straggler", "rank_straggler", "weights_drift", 2), ("rank_straggler", "rank_straggler", "none", 1),
    ]  # fmt: skip
    assert list(grouped([MARK, replace(MARK, level="weak")], lambda one: one.level)) == ["moderate", "weak"]


def test_the_document_tells_real_from_simulated() -> None:
    marks = [replace(MARK, real=True, part="labelled", said="none"), MARK, replace(MARK, part="loss", loss=0.3)]
    text = report.render(marks, "1 to 2", "a command")
    real, simulated = text.split("## Simulated")
    assert "| labelled | 0 of 1" in real
    assert "| complete | 1 of 1 (21–100 %) | 0 | 0 | 0 | 0 of 1" in simulated
    assert "| 30% | 1 of 1" in simulated
    assert "| rank_straggler | `rank_straggler` | `none` | 1 |" in simulated
    assert json.loads(json.dumps(report.evidence(marks, "1 to 2", "a command")))["marks"][0]["outcome"] == "missed"


def test_development_and_score_share_no_seed() -> None:
    assert not set(range(DEVELOPMENT.start, DEVELOPMENT.stop)) & set(range(SCORED.start, SCORED.start + 10_000))
    once, twice = list(settings(SCORED, 1)), list(settings(SCORED, 2))
    assert once == twice[: len(once)]
    assert len({one.seed for _, one in twice}) == len(twice) == 2 * len(once)
    assert all(one.seed in SCORED for _, one in twice)


def test_the_grid_asks_for_everything() -> None:
    grid = list(settings(DEVELOPMENT, 1))
    assert {name for _, one in grid for name in one.causes} == set(CAUSES)
    assert {one.loss for _, one in grid} == {0.0, 0.05, 0.1, 0.3, 0.5}
    assert sum(part == "zero" for part, _ in grid) >= 150, "two rounds: at least 300 with nothing planted"
    assert {one.background for _, one in grid} == {"paired", "mirrored", "live", "idle"}


def log_of(*records: dict) -> Log:
    log = Log()
    for one in records:
        log.kinds[one["kind"]].append({"run_id": "r", **one})
    return log


def request(name: str, output: str, **fields: object) -> dict:
    return {"kind": "request", "req_id": name, "output_token_ids_sha256": output, **fields}


def test_baselines_say_none_where_the_answers_are_equal() -> None:
    log = log_of(request("a", "same"), request("b", "same"))
    assert set(baselines.answers(log, "a", "b").values()) == {"none"}
    assert set(baselines.answers(log, "a", None).values()) == {"none"}


def test_the_first_difference_goes_launch_by_launch() -> None:
    def steps(name: str, *algos: int) -> list[dict]:
        return [{"kind": "step", "req_id": name, "step": i, "graph_mode": "eager", "algo_id": algo}
                for i, algo in enumerate(algos)]  # fmt: skip

    log = log_of(request("a", "x"), request("b", "y"), *steps("a", 1, 1, 2), *steps("b", 1, 1, 1))
    assert baselines.answers(log, "a", "b")["first difference"] == "algorithm_change"
    log = log_of(request("a", "x", token_rule="argmax"), request("b", "y", token_rule="topk0"), *steps("a", 1))
    assert baselines.answers(log, "a", "b")["first difference"] == "tie_rule_change"


def test_the_first_change_is_looked_for_in_the_run_alone() -> None:
    launches = [{"kind": "batch", "engine_step": i, "graph_mode": "eager" if i > 2 else "graph"} for i in range(5)]
    log = log_of(request("a", "x"), request("b", "y"), *launches)
    assert baselines.answers(log, "a", "b")["first change"] == "graph_mode_change"
    log = log_of(
        request("a", "x"), request("b", "y"), *launches, {"kind": "event", "what": "offload", "engine_step": 1}
    )
    assert baselines.answers(log, "a", "b")["first change"] == "paging"


def test_rules_of_the_fabric_need_collectives_and_have_no_null() -> None:
    def sent(*ms: float) -> list[dict]:
        return [{"kind": "collective", "rank": i % 2, "op": "all_reduce", "comm_ms": one, "start_ts": 1.0}
                for i, one in enumerate(ms)]  # fmt: skip

    calm = baselines.answers(log_of(request("a", "x"), request("b", "y"), *sent(1, 1, 1, 1)), "a", "b")
    assert (calm["last arriver"], calm["3 × the mean"]) == ("rank_straggler", "undetermined")
    slow = baselines.answers(log_of(request("a", "x"), request("b", "y"), *sent(1, 1, 1, 1, 1, 9)), "a", "b")
    assert slow["3 × the mean"] == "fabric_congestion"
    none = baselines.answers(log_of(request("a", "x"), request("b", "y")), "a", "b")
    assert none["last arriver"] == none["3 × the mean"] == "undetermined"


def test_a_simulated_incident_goes_through_the_program() -> None:
    found = scoring.simulated("complete", Setting(21, ("template",)))
    assert found.roots == ("effective_request_drift",)
    assert found.said in ("effective_request_drift", "undetermined"), "the text of the prompt is another"
    assert found.baselines["first difference"] == "effective_request_drift"


def test_the_recorded_incidents_are_among_the_real_ones() -> None:
    pairs = list(labelled.recorded(ROOT / "fixtures/incidents"))
    assert len(pairs) >= 29
    assert {one.log.parent.name for one in pairs} == {path.name for path in (ROOT / "fixtures/incidents").iterdir()}
    one = next(one for one in pairs if one.roots != ("none",))
    [answer] = ask(one.log, [(one.request, one.against)])
    assert answer.standing == "divergence"
    assert read(one.log).request(one.request)["req_id"]


def test_a_request_that_is_not_on_record_is_an_abstention() -> None:
    log = next(labelled.recorded(ROOT / "fixtures/incidents")).log
    [answer] = ask(log, [("nobody", None)])
    assert answer.root_cause == "undetermined"
    assert "nobody" in (answer.error or "")
