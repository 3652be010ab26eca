"""What a machine honours is found by pinning it, not by guessing."""

import json
import subprocess
import sys

import pytest
from replay_worlds import World

from replay.catalogue import environment, factors
from replay.doctor import RANDOM_MODEL, doctor_case, findings, wanted
from replay.engines.transformers import Engine
from replay.trial import Treatment


def test_every_factor_is_asked_about_and_every_example_is_a_plan_of_it():
    asked = list(wanted())
    assert {name for name, _ in asked} == set(factors())
    for name, plan in asked:
        assert name in plan or "transformers" not in factors()[name]["pinnable"]


@pytest.mark.parametrize(
    ("world", "answer"),
    [
        (World(lambda plan: "b"), "honoured"),
        (World(lambda plan: "b", refuse=lambda plan: "cannot"), "refused"),
        (World(lambda plan: "b", observed=lambda plan: {}), "not_pinned"),
    ],
)
def test_the_answer_follows_the_trial(world, answer):
    found = {one.factor: one for one in findings(world, lambda _line: None)}
    assert found["gemm.k_split"].answer == answer
    assert found["graph.mode"].answer == "observed_only"


def test_in_process_factors_on_this_machine():
    """The random model runs every example that needs no process of its own; none may be silently ignored."""
    engine = Engine(doctor_case(), RANDOM_MODEL)
    try:
        plans = [plan for name, plan in wanted() if plan and name in plan and not environment(plan)]
        traces = [engine.run(Treatment(plan)) for plan in plans if factors()[next(iter(plan))]["device"] != "cuda"]
    finally:
        engine.stop()
    ran = [trace for trace in traces if trace.refused is None]
    assert len(ran) > 30
    assert [(trace.plan, trace.observed) for trace in ran if trace.observed != trace.plan] == []


def test_an_interpreter_without_torch_is_a_usage_error(tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    command = [sys.executable, "-m", "replay", "--doctor", "--python", str(bare)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "has no torch" in done.stderr
    assert done.stdout == ""
    assert json.loads(done.stdout or "[]") == []
