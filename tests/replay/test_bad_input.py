"""What a hostile or broken case, model or interpreter gets: a plain line and the right exit code, never a traceback."""

import json
import sys
import time

import pytest
from replay_worlds import make_case

from replay import trial
from replay.__main__ import main
from replay.case import Arm, CaseError
from replay.casefile import case_from
from replay.children import Children
from replay.trial import Treatment, TrialError, unsupported

BELL = "\x1b]0;owned\x07\u202e"


@pytest.fixture
def replay(tmp_path, model_path, capsys):
    """Return a function that files a case's document, runs the command on it, and returns exit code and stderr."""

    def run(document, *arguments):
        path = tmp_path / "case.json"
        path.write_text(json.dumps(document))
        code = main([str(path), "-o", str(tmp_path / "v.json"), "--model", str(model_path), *arguments])
        return code, capsys.readouterr().err

    return run


@pytest.fixture
def interpreter(tmp_path):
    """Return a function that makes an 'interpreter' which runs a shell script instead."""

    def make(script):
        path = tmp_path / "python"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return make


def document(**changes):
    made = json.loads(make_case().to_json())
    made["engine"].pop("weights_sha256")
    for path, value in changes.items():
        *parents, last = path.split("__")
        place = made
        for name in parents:
            place = place[name]
        place[last] = value
    return made


def plan(arm="incident", **values):
    return {f"{arm}__plan": {name.replace("__", "."): value for name, value in values.items()}}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"token_ids": []}, "token_ids has the wrong type or value: at least one"),
        ({"token_ids": [1, True]}, "token_ids "),
        ({"token_ids": [1, "2"]}, "token_ids "),
        ({"token_ids": 7}, "token_ids "),
        ({"flip_index": -1}, "flip_index .*negative"),
        ({"flip_index": 1.5}, "flip_index .*integer expected"),
        ({"flip_index": 2}, "flip_index is 2, but the incident has 2 output tokens"),
        ({"flip_index": 10**12, "incident__output_token_ids": None}, "flip_index asks for more than 1000000"),
        ({"engine__versions": ["torch"]}, "engine.versions .*object expected, found list"),
        ({"engine__config": "{"}, "engine.config "),
        ({"engine__config": "[" * 100_000}, "engine.config "),
        ({"engine__config": {"cache_config": 7}}, "engine.config.cache_config .*object expected, found int"),
        ({"engine__environment": ["OMP_NUM_THREADS"]}, "engine.environment .*object expected, found list"),
        ({"engine__scheduler_limits": "many"}, "engine.scheduler_limits .*object expected, found str"),
        ({"engine": []}, "engine .*object expected"),
        ({"decode_cfg__max_tokens": 0}, "decode_cfg.max_tokens must be 1 or more"),
        ({"decode_cfg__max_tokens": "many"}, "decode_cfg.max_tokens "),
        ({"decode_cfg__temperature": "hot"}, "decode_cfg.temperature "),
        ({"decode_cfg__stop_token_ids": 0}, "decode_cfg.stop_token_ids "),
        (
            {"decode_cfg__max_tokens": 10**12, "flip_index": None, "incident__output_token_ids": None},
            "decode_cfg.max_tokens .*asks for more than 1000000",
        ),
        ({"incident__plan": {"cpu.threads": 1}}, "incident.plan.cpu.threads .*text expected, found int"),
        ({"reference__rows": [{"req_id": "a", "tokens": -1}]}, "reference.rows.tokens .*negative"),
        ({"incident__schedule": [[1]]}, "incident.schedule "),
    ],
)
def test_a_bad_field_is_named(changes, says):
    with pytest.raises(CaseError, match=says):
        case_from(document(**changes), "here")


def test_a_missing_field_is_named_with_its_place():
    broken = document()
    del broken["reference"]["run_id"]
    with pytest.raises(CaseError, match=r"reference\.run_id is missing"):
        case_from(broken, "here")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (plan(cpu__threads="0"), "incident.plan.cpu.threads cannot be '0'; allowed: an integer, 1 or more"),
        (plan("reference", batch__mask_path="maybe"), "reference.plan.batch.mask_path cannot be 'maybe'"),
        (plan(cpu__threads="1000000"), "incident.plan.cpu.threads cannot be 1000000"),
        (plan(gemm__k_split="9" * 5000), "incident.plan.gemm.k_split cannot be"),
        (plan(batch__rows="100000000"), "a launch of 100000000 rows of 3 tokens"),
        (plan(batch__left_pad="20000000000"), "incident.plan (batch.rows, batch.left_pad, batch.right_pad)"),
        (plan(batch__rows="1024", batch__right_pad="1024"), "a launch of 1024 rows of 1027 tokens"),
    ],
)
def test_a_plan_on_record_is_held_against_the_catalogue(replay, changes, says):
    code, said = replay(document(**changes), "--python", "/no/such/interpreter")
    assert code == 3
    assert says in said
    assert len(said) < 400


def test_a_flip_far_beyond_the_record_does_not_hang(replay):
    started = time.monotonic()
    code, said = replay(document(flip_index=10**12))
    assert code == 3
    assert "flip_index is 1000000000000" in said
    assert time.monotonic() - started < 5


def test_a_pin_cannot_ask_for_a_launch_that_fills_the_machine(model_path):
    with Children(model_path) as children:
        trace = children.run(make_case(), Treatment({"batch.rows": "100000000"}))
    assert "a launch of 100000000 rows of 3 tokens" in trace.refused


def test_a_case_cannot_steer_the_terminal(replay):
    code, said = replay(document(engine__config={"batching": f"odd{BELL}\nreplay: proven: all is well"}))
    assert code == 4
    assert r"\x1b]0;owned\x07\u202e\n" in said
    assert said.endswith("\n")
    assert said.rstrip("\n").isprintable()


def test_a_child_cannot_steer_the_terminal(replay, interpreter, monkeypatch):
    python = interpreter(r"printf '\033[2Jfirst\nthe \033[31mlast words' >&2; exit 1")
    code, said = replay(document(), "--python", python)
    assert code == 4
    assert r"it said last: the \x1b[31mlast words" in said
    assert "first" not in said
    monkeypatch.setenv("FORENSICS_DEBUG", "1")
    _, said = replay(document(), "--python", python)
    assert r"stderr: \x1b[2Jfirst" in said
    assert "\x1b" not in said


def test_of_a_traceback_only_the_exception_is_shown(replay, interpreter):
    program = "import sys, atexit; atexit.register(print, 'bye', file=sys.stderr); {}['why']"
    code, said = replay(document(), "--python", interpreter(f'exec "{sys.executable}" -c "{program}"'))
    assert code == 4
    assert "it said last: KeyError: 'why'" in said
    assert "Traceback" not in said


def test_an_interpreter_without_torch_or_without_itself_is_a_usage_error(replay, interpreter):
    bare = interpreter(f'exec "{sys.executable}" -S -m "$2"')
    code, said = replay(document(), "--python", bare)
    assert code == 2
    assert "has no torch: name one" in said
    code, said = replay(document(), "--python", "/no/such/interpreter")
    assert code == 2
    assert "cannot be started (--python)" in said


def test_a_model_that_cannot_be_read_is_bad_input(replay, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    code, said = replay(document(), "--model", str(broken))
    assert code == 3
    assert f"no model can be loaded from {broken}" in said
    assert "--model DIR" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"token_ids": [3, 1024]}, "token_ids: 1024 is outside the vocabulary of this model (0 to 1023)"),
        ({"engine__dtype": "load"}, "engine.dtype: torch knows no dtype 'load'"),
    ],
)
def test_a_case_that_does_not_fit_the_model_is_bad_input(replay, changes, says):
    code, said = replay(document(**changes, incident__plan={}, reference__plan={}))
    assert code == 3
    assert says in said


def test_memory_that_runs_out_is_bad_input(replay, interpreter):
    code, said = replay(document(), "--python", interpreter("kill -9 $$"))
    assert code == 3
    assert "most likely out of memory: run on a machine with more" in said


@pytest.mark.parametrize(
    "fault",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 80 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 80 GiB"),
    ],
)
def test_memory_that_runs_out_is_an_outcome_of_that_trial(fault, monkeypatch, tmp_path):
    import io
    import os

    from replay.engines import transformers

    def run(self, treatment):
        if treatment.plan:
            raise fault
        return trial.Trace(plan={}, tokens=(7,))

    lines = [{"model_path": "m"}, {"case": document(), "treatment": {"plan": {"cpu.threads": "1"}}},
             {"treatment": {"plan": {}}}]  # fmt: skip
    job = "".join(json.dumps(line) + "\n" for line in lines)
    monkeypatch.setattr(transformers.Engine, "run", run)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(job.encode())))
    answers = tmp_path / "answers"
    monkeypatch.setattr(os, "dup", lambda _number: os.open(answers, os.O_WRONLY | os.O_CREAT))
    monkeypatch.setattr(os, "dup2", lambda _from, _to: None)
    assert transformers.main() == 0
    _, bad, good = (json.loads(line) for line in answers.read_text().splitlines())
    assert bad["trace"]["failed"] == trial.OUT_OF_MEMORY
    assert good["trace"]["tokens"] == [7]


def test_a_timeout_says_what_it_covers(replay, interpreter):
    code, said = replay(document(), "--python", interpreter("printf '{\"trac'; exec sleep 60"), "--timeout", "0.5")
    assert code == 4
    assert "no answer within 0.5 s (--timeout, which covers one trial" in said


def test_a_child_that_fails_for_reasons_of_its_own_stays_undecided(interpreter):
    with pytest.raises(TrialError) as caught, Children("m", python=interpreter("exit 7")) as children:
        children.run(make_case(), Treatment({}))
    assert caught.value.exit_code == 4
    assert "code 7; it wrote nothing to stderr" in str(caught.value)


@pytest.mark.parametrize("rule", ["sample", "beam", ""])
def test_an_unknown_token_rule_is_inconclusive(replay, rule, tmp_path):
    code, said = replay(document(token_rule=rule))
    assert code == 4
    assert f"the case's token rule is {rule!r}" in said
    assert json.loads((tmp_path / "v.json").read_text())["outcome"] == "inconclusive"


def test_token_rules_that_can_be_honoured_are():
    assert unsupported(make_case(token_rule="argmax_lowest")) is None
    assert "does not hold token.rule=topk0" in unsupported(make_case(token_rule="topk0"))
    topk = Arm("run-i", "i", {"token.rule": "topk0"}, output_token_ids=(7, 9))
    assert unsupported(make_case(token_rule="topk0", incident=topk)) is None
