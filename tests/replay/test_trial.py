"""Children of a trial: how treatments are spread over them, what becomes of one that fails, and what is kept."""

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from replay_worlds import make_case

from replay.case import Arm
from replay.child_process import child_environment
from replay.children import Children
from replay.journal import Journal
from replay.trial import Treatment, TrialError, unsupported

ANSWER = """
import json, os, sys, time
def say(document): print(json.dumps(document), flush=True)
for number, line in enumerate(sys.stdin):
    request = json.loads(line)
    if "model_path" in request:
        say({"host": {"capability": os.environ.get("ATEN_CPU_CAPABILITY")}})
        continue
    plan = request["treatment"]["plan"]
    if plan.get("cpu.threads") == os.environ.get("STUB"): BREAK
    say({"trace": {"plan": plan, "tokens": [1], "logits_sha256": [str(os.getpid())], "observed": plan,
                   "top_logits": [[1.0]]}})
"""
OUT_OF_MEMORY = "say({'trace': {'plan': plan, 'failed': 'out of memory'}}); continue"
PLAN, OTHER, BAD = {"cpu.threads": "1"}, {"cpu.threads": "2"}, {"cpu.threads": "66"}


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Return a function that makes an interpreter which runs the given program instead of the engine."""

    def make(program: str = ANSWER, broken: str = "pass") -> str:
        path, source = tmp_path / "python", tmp_path / "stub.py"
        source.write_text(program.replace("BREAK", broken))
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{source}"\n')
        path.chmod(0o755)
        monkeypatch.setenv("STUB", "66")
        return str(path)

    return make


def run_all(children, *plans):
    case = make_case()
    with children:
        return [children.run(case, Treatment(plan)) for plan in plans]


def test_treatments_of_one_kind_share_a_child_and_others_get_their_own(stub):
    plans = [PLAN, PLAN | {"cpu.aten_capability": "avx2"}, OTHER]
    traces = run_all(Children("m", python=stub()), *plans)
    assert [trace.plan for trace in traces] == plans
    pids = [trace.logits_sha256[0] for trace in traces]
    assert pids[0] == pids[2] != pids[1]
    assert [trace.host["capability"] for trace in traces] == [None, "avx2", None]


def test_two_jobs_have_a_child_each_and_keep_it(stub):
    case = make_case()
    with Children("m", python=stub(broken="time.sleep(0.5)"), jobs=2) as children, ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: children.run(case, Treatment(BAD)).logits_sha256[0], range(2)))
        assert both[0] != both[1]
        assert children.run(case, Treatment(PLAN)).logits_sha256[0] in both


def test_history_and_step_of_two_processes_are_refused(stub):
    with Children("m", python=stub()) as children:
        trace = children.run(make_case(), Treatment(PLAN, history=PLAN | {"cpu.aten_capability": "avx2"}, switch=1))
    assert "processes of their own" in trace.refused


def test_a_child_that_cannot_start_says_what_it_said_last(stub):
    program = "import sys; sys.stderr.write('no such tensor'); sys.exit(3)"
    with pytest.raises(TrialError, match=r"code 3(.|\n)*no such tensor"):
        run_all(Children("m", python=stub(program)), PLAN)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("sys.exit(3)", "ended with code 3"),
        ("os.kill(os.getpid(), 9)", "most likely out of memory"),
        ("time.sleep(60)", "no answer within 1.5 s (--timeout"),
        (OUT_OF_MEMORY, "out of memory"),
    ],
)
def test_a_trial_that_fails_is_an_outcome_of_that_trial(stub, broken, says):
    started = time.monotonic()
    before, bad, after = run_all(Children("m", python=stub(broken=broken), timeout=1.5), PLAN, BAD, OTHER)
    assert says in bad.failed
    assert (before.failed, after.failed) == (None, None)
    assert time.monotonic() - started < 30


def test_leaving_ends_the_children_also_on_ctrl_c(stub):
    seen = []

    def interrupted():
        with Children("m", python=stub()) as children:
            seen.append(children.run(make_case(), Treatment(PLAN)))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(ProcessLookupError):
        os.kill(int(seen[0].logits_sha256[0]), 0)


def journalled(tmp_path, stub, plans, weights="w", broken="sys.exit(3)", **changes):
    """Run plans with a journal in the folder; return the processes that answered, and how many came from the file."""
    journal = Journal(tmp_path / "v.json.trials", weights)
    case = make_case(**changes)
    with Children("m", python=stub(broken=broken), journal=journal) as children:
        return [children.run(case, Treatment(plan)) for plan in plans], journal.reused


@pytest.mark.parametrize("broken", ["sys.exit(3)", OUT_OF_MEMORY])
def test_a_second_run_goes_on_from_what_is_kept(stub, tmp_path, broken):
    first, _ = journalled(tmp_path, stub, [PLAN, BAD], broken=broken)
    again, reused = journalled(tmp_path, stub, [PLAN, OTHER, BAD], broken=broken)
    assert reused == 1
    assert again[0] == first[0]
    assert again[1].logits_sha256 != first[0].logits_sha256
    assert again[2].failed, "a trial that failed is tried again"


def test_a_journal_of_something_else_does_no_harm(stub, tmp_path):
    journalled(tmp_path, stub, [PLAN])
    assert journalled(tmp_path, stub, [PLAN], token_ids=(9, 9))[1] == 0
    assert journalled(tmp_path, stub, [PLAN], weights="other")[1] == 0


def test_a_torn_line_costs_that_trial_only(stub, tmp_path):
    journalled(tmp_path, stub, [PLAN, OTHER])
    path = tmp_path / "v.json.trials"
    path.write_bytes(path.read_bytes()[:-40])
    assert journalled(tmp_path, stub, [PLAN, OTHER])[1] == 1
    assert journalled(tmp_path, stub, [PLAN, OTHER])[1] == 2


def test_a_repeat_is_always_executed(stub, tmp_path):
    journal = Journal(tmp_path / "t", None)
    with Children("m", python=stub(), journal=journal) as children:
        for _ in range(2):
            children.run(make_case(), Treatment(PLAN, repeat=1))
    assert journal.reused == 0
    assert not journal.path.exists()


def test_the_recorder_does_not_leak_into_children(monkeypatch):
    import replay

    autoload = str(Path(replay.__file__).parent / "autoload")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([autoload, "/elsewhere"]))
    monkeypatch.setenv("FORENSICS_RECORD", "/log")
    monkeypatch.setenv("FORENSICS_RECORD_IDS", "1")
    environment = child_environment("/only/us", {})
    assert autoload not in environment["PYTHONPATH"].split(os.pathsep)
    assert "/elsewhere" in environment["PYTHONPATH"].split(os.pathsep)
    assert not [name for name in environment if name.startswith("FORENSICS_RECORD")]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"engine": {"engine": "sglang"}}, "sglang"),
        ({"engine": {"engine": "vllm"}}, "window"),
        ({"engine": {"engine": "transformers", "config": {"batching": "nested"}}}, "nested"),
        ({"engine": {"engine": "transformers", "config": json.dumps({"batching": "nested"})}}, "nested"),
        ({"incident": Arm("i", "i", {"attention.backend": "paged"})}, "the incident ran in continuous batching"),
        ({"reference": Arm("r", "r", {"attention.backend": "paged"})}, "the reference ran in continuous batching"),
        (
            {"incident": Arm("i", "i", {"batch.schedule": "incident", "graph.mode": "cuda_graph_full"})},
            "launches eager",
        ),
        ({"token_rule": "sample"}, "'sample'"),
        ({"decode_cfg": {"temperature": 0.7}}, "temperature above 0"),
    ],
)
def test_what_cannot_be_run_again_is_named(changes, says):
    assert says in unsupported(make_case(**changes))
    assert unsupported(make_case()) is None
