"""Replaying a schedule, the parts that need no engine: who comes when, stand-ins, and what is said of a departure."""

import json
import sys

import pytest
from replay_worlds import make_case

from replay.case import Arm, Asked, Order, Window
from replay.casefile import CaseError, case_from
from replay.children import Children
from replay.company import company, recorded
from replay.coverage import variables
from replay.departure import departure
from replay.stand_in import stand_ins
from replay.trial import Treatment, TrialError

CFG = {"temperature": 0, "max_tokens": 4}
ROWS = (("a", 5, 0), ("i", 3, 0))


def asked(name, step, tokens=3, **more):
    return Asked(name, step, tokens, CFG, **more)


def crowded():
    requests = (asked("a", 10, 5), asked("i", 12), asked("b", 12))
    orders = (
        Order(11, 1, "prefix_cache_reset", {"reset_running_requests": True}),
        Order(13, 3, "abort", {"req_id": "b"}),
    )
    schedule = tuple((step, ROWS) for step in range(10, 14))
    return Arm("run-i", "i", {"company.requests": "incident", "engine.orders": "incident"},
               window=Window(10, "idle", requests, orders, schedule))  # fmt: skip


def calm():
    window = Window(4, "idle", (asked("r", 4),), (), ((4, (("r", 3, 0),)),))
    return Arm("run-r", "r", {"company.requests": "alone", "engine.orders": "none"}, window=window)


@pytest.fixture
def case():
    return make_case(incident=crowded(), reference=calm())


def seen(inputs):
    return [(one.step, one.asked.req_id if one.asked else one.order.what) for one in inputs]


def test_steps_count_from_the_targets_arrival_and_orders_stand_where_they_stood(case):
    found = company(case, "incident", "incident")
    assert found.target == "i"
    assert found.origin == -2
    assert seen(found.inputs) == [(-2, "a"), (-1, "prefix_cache_reset"), (0, "i"), (0, "b"), (1, "abort")]


def test_some_of_the_company_bring_their_own_aborts_and_nobody_elses(case):
    assert seen(company(case, "incident/0", "none").inputs) == [(-2, "a"), (0, "i")]
    assert seen(company(case, "incident/2", "none").inputs) == [(0, "i"), (0, "b"), (1, "abort")]


def test_orders_can_be_put_around_the_request_alone(case):
    assert seen(company(case, "alone", "incident").inputs) == [(-1, "prefix_cache_reset"), (0, "i")]
    assert company(case, "alone", "incident").inputs[1].asked.token_ids == case.token_ids


@pytest.mark.parametrize("value", ["incident/1", "incident/3", "reference/0"])
def test_a_place_that_is_nobody_elses_is_refused(case, value):
    with pytest.raises(ValueError, match="no other request"):
        company(case, value, "none")


def test_only_an_arms_own_plan_is_compared_with_the_record(case):
    arrival, schedule = recorded(case, case.incident.plan | {"company.contents": "random"}, "i")
    assert (arrival, sorted(schedule)) == (12, [-2, -1, 0, 1])
    assert recorded(case, case.reference.plan, "i") == (4, {0: (("i", 3, 0),)}), "under the trial's name for the target"
    assert recorded(case, case.incident.plan | {"engine.orders": "none"}, "i") == (0, {})


def test_stand_ins_share_what_was_shared_and_nothing_else():
    block = 4
    target = asked("i", 0, 6, token_ids=(1, 2, 3, 4, 5, 6), block_hashes=("x",))
    requests = [target, asked("a", 0, 9, block_hashes=("x", "y")), asked("b", 0, 9, block_hashes=("x", "y")),
                asked("c", 0, 9, block_hashes=("z", "w"))]  # fmt: skip
    found = {name: one.token_ids for name, one in stand_ins(requests, "i", block, 1000, {}).items()}
    assert {name: len(ids) for name, ids in found.items()} == {"a": 9, "b": 9, "c": 9}
    assert found["a"][:4] == found["b"][:4] == (1, 2, 3, 4)
    assert found["a"][4:8] == found["b"][4:8] != found["c"][4:8]
    assert found["a"][8:] != found["b"][8:]
    assert found == {name: one.token_ids for name, one in stand_ins(requests, "i", block, 1000, {}).items()}


def test_an_answer_that_a_later_prompt_goes_on_from_is_forced():
    """The first turn has 5 tokens; the second hit 8 in the cache, of which 3 are the first one's answer."""
    first = asked("first", 0, 5, block_hashes=("x",))
    second = asked("i", 9, 10, token_ids=tuple(range(10)), block_hashes=("x", "y"))
    (found,) = stand_ins([first, second], "i", 4, 1000, {"i": 8}).values()
    assert found.token_ids == (0, 1, 2, 3, 4)
    assert found.forced == (5, 6, 7)
    (cold,) = stand_ins([first, second], "i", 4, 1000, {"i": 4}).values()
    assert cold.forced == (), "a hit that the prompt explains forces nothing"


@pytest.mark.parametrize(
    ("ran", "arrived", "settings", "says"),
    [
        ((("i", 3, 0),), {"i"}, (), "a is missing; likely an arrival that is not on record"),
        ((("i", 3, 0),), {"a", "i"}, (), "a did not run; likely a smaller KV pool"),
        ((("a", 3, 2), ("i", 3, 0)), {"a", "i"}, (), "a warmer prefix cache"),
        ((("a", 5, 4), ("i", 3, 0)), {"a", "i"}, (), "a preemption that is not on record"),
        ((("a", 4, 0), ("i", 3, 0)), {"a", "i"}, (), "a got 4 tokens, on record 5; likely another chunk budget"),
        ((*ROWS, ("z", 1, 1)), {"a", "i", "z"}, (), "z ran, on record it did not; likely a larger KV pool"),
        (ROWS[::-1], {"a", "i"}, (), "another order"),
        (
            (("a", 4, 0), ("i", 3, 0)),
            {"a", "i"},
            ("x: 1 on record, 2 here",),
            "likely the engine here is not",
        ),
    ],
)
def test_a_departure_says_what_and_why(ran, arrived, settings, says):
    said = departure(7, ROWS, ran, arrived, settings)
    assert said.startswith("engine step 7 was composed otherwise than on record")
    assert says in said


def test_a_child_inherits_only_what_is_known_and_well_formed(case):
    environment = {"OMP_NUM_THREADS": "4", "LD_PRELOAD": "/evil.so", "MKL_CBWR": "a b; c", "VLLM_PLUGINS": "evil"}
    engine = {"engine": "vllm", "environment": environment, "num_threads": 2}
    found = variables(make_case(engine=engine))
    assert found["OMP_NUM_THREADS"] == "4"
    assert not {"LD_PRELOAD", "MKL_CBWR", "VLLM_PLUGINS"} & found.keys()
    assert found["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert variables(make_case(engine={"num_threads": 2}))["OMP_NUM_THREADS"] == "2"


def broken(change):
    document = json.loads(make_case(incident=crowded(), reference=calm()).to_json())
    change(document["incident"]["window"])
    return document


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda window: window["requests"].pop(1), "incident.window.schedule names 'i'"),
        (lambda window: window["requests"].reverse(), "not in order of arrival_step"),
        (lambda window: window["requests"].append(window["requests"][0]), "holds a req_id twice"),
        (lambda window: window["schedule"].pop(1), "every engine step"),
        (lambda window: window["requests"][0].update(tokens=1 << 40), "requests.tokens"),
        (lambda window: window["requests"][0].update(token_ids=[1]), "tokens is 5, but there are 1"),
        (lambda window: window["orders"][0].update(what="rm -rf"), "orders.what"),
        (lambda window: window["orders"][1].update(detail={}), "orders.detail.req_id"),
        (lambda window: window["orders"][0].update(detail={"changed": {"x": [1, "y"]}}), "orders.detail.changed.x"),
        (lambda window: window.update(starts="anywhere"), "starts"),
        (lambda window: (window["requests"].pop(1), window.update(schedule=[])), "does not hold the arm's own request"),
    ],
)
def test_a_broken_window_is_named_by_its_field(change, says):
    with pytest.raises(CaseError, match=says.replace("(", r"\(")):
        case_from(broken(change), "case")
    assert case_from(broken(lambda window: None), "case").incident == crowded()


def test_an_interpreter_without_vllm_is_told_how_to_get_it(tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    with Children("m", python=str(bare), engine="vllm") as children, pytest.raises(TrialError) as fault:
        children.run(make_case(), Treatment({}))
    assert fault.value.exit_code == 2
    assert "has no vllm" in str(fault.value)
    assert "pip install vllm" in str(fault.value)
