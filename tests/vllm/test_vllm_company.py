"""Requests that nobody sent, put beside a request on a real vLLM: they share the launches that they are to share."""

import importlib.util

import pytest

if getattr(importlib.util.find_spec("vllm"), "origin", None) is None:
    pytest.skip("vLLM is not in this environment (make test-vllm)", allow_module_level=True)

from made import ALONE, COMPANY, TOKENS, made_case, run_case

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

SHAPES = """
notes = engine.live.notes
found.append({"shapes": [[row[1] for row in notes.composition(one["engine_step"])] for one in notes.tokens("i")]})
"""
ADDED = "company.added"


def added(value, plan=ALONE):
    return {"plan": plan | {ADDED: value}}


def test_they_share_the_launch_of_one_pass_and_no_other(tmp_path):
    found = run_case(tmp_path, made_case(), {"plan": ALONE}, added("3x1@5"), then=SHAPES)
    plain, with_three, ran = found
    assert with_three["observed"][ADDED] == "3x1@5"
    assert ran["shapes"] == [[50], *[[1]] * 4, [1, 1, 1, 1], *[[1]] * (TOKENS - 6)]
    assert with_three["bits"][:5] == plain["bits"][:5]


def test_launch_tokens_vary_without_the_rows(tmp_path):
    _, longer = run_case(tmp_path, made_case(), added("1x40@2"), then=SHAPES)
    assert longer["shapes"][2] == [1, 40]
    assert longer["shapes"][3] == [1]


def test_without_a_pass_they_come_and_stay(tmp_path):
    with_two, ran = run_case(tmp_path, made_case(), added("2x6"), then=SHAPES)
    assert with_two["observed"][ADDED] == "2x6"
    assert ran["shapes"] == [[50, 6, 6], *[[1, 1, 1]] * (TOKENS - 1)]


def test_what_found_no_room_is_seen_and_what_comes_too_late_is_refused(tmp_path):
    crowded, long, late = run_case(
        tmp_path, made_case(limits=(64, 3)), added("3x1@5"), added("1x100@5"), added(f"1x1@{TOKENS}", COMPANY)
    )
    assert crowded["observed"].get(ADDED) != "3x1@5", "three rows are all that a launch may hold"
    assert long["observed"].get(ADDED) != "1x100@5", "64 tokens are all that a launch may hold"
    assert f"the trial ends with pass {TOKENS - 1}" in late["missing"]
