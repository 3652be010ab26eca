"""Priorities, and limits that somebody changed while the engine ran: recorded, and lived through again bit for bit."""

import dataclasses
import importlib.util

import pytest

if getattr(importlib.util.find_spec("vllm"), "origin", None) is None:
    pytest.skip("vLLM is not in this environment (make test-vllm)", allow_module_level=True)

from arms import MODEL, SMALL_POOL, drive, merged_requests
from made import run_case
from serving import of
from windowed import case_of, rows_of

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

EVERYBODY = """
notes = engine.live.notes
names = [one.req_id for one in engine.case.incident.window.requests]
found.append({name: [one["logits_sha256"] for one in notes.tokens(name)] for name in names})
"""


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    flags = {"FORENSICS_RECORD_IDS": "1", "FORENSICS_RECORD_LOGITS_SHA256": "1"}
    return drive(MODEL, "--ranked", *SMALL_POOL, record=tmp_path_factory.mktemp("ranked"), **flags)[1]


def last(lines):
    return max(merged_requests(lines), key=lambda name: rows_of(lines, name)[-1]["engine_step"])


def test_the_run_has_what_is_to_be_tested(lines):
    first = {name: min(one["engine_step"] for one in rows_of(lines, name)) for name in merged_requests(lines)}
    asked = sorted(merged_requests(lines).values(), key=lambda one: one["admission_ts"])
    assert [first[one["req_id"]] for one in asked] != sorted(first.values()), "nobody overtook anybody"
    assert len(of(lines, "event", "batch_limit_change")) == 3
    assert of(lines, "event", "preemption")


def test_everybody_comes_back_bit_for_bit(lines, tmp_path):
    case = case_of(lines, last(lines))
    assert case.incident.plan["engine.orders"] == "incident"
    trace, rows = run_case(tmp_path, case, {"plan": case.incident.plan}, then=EVERYBODY)
    assert (trace["missing"], trace["departure"]) == (None, None)
    assert trace["observed"] == case.incident.plan
    recorded = {name: [one["logits_sha256"] for one in rows_of(lines, name)] for name in merged_requests(lines)}
    assert rows == recorded


@pytest.mark.parametrize("forgotten", ["priority", "limits"])
def test_a_replay_that_forgets_one_of_them_leaves_the_schedule(lines, tmp_path, forgotten):
    case = case_of(lines, last(lines))
    window = case.incident.window
    if forgotten == "priority":
        equal = tuple(dataclasses.replace(one, priority=0) for one in window.requests)
        window = dataclasses.replace(window, requests=equal)
    else:
        window = dataclasses.replace(window, orders=())
    case = dataclasses.replace(case, incident=dataclasses.replace(case.incident, window=window))
    (trace,) = run_case(tmp_path, case, {"plan": case.incident.plan})
    assert "was composed otherwise than on record" in trace["departure"]
