"""Children of a trial: how plans are spread over them, and what becomes of one that fails."""

import json
import os
import sys
import time
from pathlib import Path

import pytest
from replay_worlds import make_case

from replay.trial import TrialError, child_environment, run_trials, unsupported

ANSWER = """
import json, os, sys
job = json.loads(sys.stdin.read())
print(json.dumps({"host": {"pid": os.getpid(), "capability": os.environ.get("ATEN_CPU_CAPABILITY")}}), flush=True)
for number, plan in enumerate(job["plans"]):
    bits = str(number) if "--race" in os.environ.get("STUB", "") else "same"
    trace = {"plan": plan, "tokens": [1], "logits_sha256": [bits], "observed": plan, "top_logits": [[1.0]]}
    print(json.dumps({"trace": trace}), flush=True)
"""
PLAN, OTHER = {"cpu.threads": "1"}, {"cpu.threads": "2"}


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Return a function that makes an interpreter which runs the given program instead of the engine."""

    def make(program: str, flags: str = "") -> str:
        path = tmp_path / "python"
        source = tmp_path / "stub.py"
        source.write_text(program)
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "{source}"\n')
        path.chmod(0o755)
        monkeypatch.setenv("STUB", flags)
        return str(path)

    return make


def test_plans_of_one_process_share_a_child_and_others_get_their_own(stub):
    plans = [PLAN, PLAN | {"cpu.aten_capability": "avx2"}, OTHER]
    traces = run_trials(make_case(), plans, model_path="m", python=stub(ANSWER))
    assert [trace.plan for trace in traces] == plans
    assert traces[0].host["pid"] == traces[2].host["pid"] != traces[1].host["pid"]
    assert [trace.host["capability"] for trace in traces] == [None, "avx2", None]


def test_the_first_plan_runs_again_and_other_bits_show(stub):
    assert run_trials(make_case(), [PLAN, OTHER], model_path="m", python=stub(ANSWER))[0].repeatable is True
    raced = run_trials(make_case(), [PLAN, OTHER], model_path="m", python=stub(ANSWER, "--race"))
    assert (raced[0].repeatable, raced[1].repeatable) == (False, None)


def test_a_crash_says_what_the_child_said_last(stub):
    with pytest.raises(TrialError, match=r"code 3 after 0 of 2 trials(.|\n)*no such tensor"):
        run_trials(
            make_case(),
            [PLAN],
            model_path="m",
            python=stub("import sys; sys.stderr.write('no such tensor'); sys.exit(3)"),
        )


def test_a_child_that_hangs_is_ended_in_time(stub):
    started = time.monotonic()
    with pytest.raises(TrialError, match="no answer within"):
        run_trials(make_case(), [PLAN], model_path="m", python=stub("import time; time.sleep(60)"), timeout=0.5)
    assert time.monotonic() - started < 20


def test_an_interrupt_ends_the_child(stub, tmp_path):
    here = f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
    linger = here + ANSWER + "import time; time.sleep(60)"

    def interrupt(_line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_trials(make_case(), [PLAN], model_path="m", python=stub(linger), say=interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


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
        ({"engine": {"engine": "vllm"}}, "vllm"),
        ({"engine": {"engine": "transformers", "config": {"batching": "continuous"}}}, "continuous"),
        ({"engine": {"engine": "transformers", "config": json.dumps({"batching": "continuous"})}}, "continuous"),
        ({"decode_cfg": {"temperature": 0.7}}, "temperature above 0"),
    ],
)
def test_what_cannot_be_run_again_is_named(changes, says):
    assert says in unsupported(make_case(**changes))
    assert unsupported(make_case()) is None
