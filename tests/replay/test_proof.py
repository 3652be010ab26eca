"""From a live incident to a verdict, with real children: a planted factor is found, another is not."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from from_log import case as case_of

from replay.__main__ import main
from replay.casefile import load_case
from replay.children import Children
from replay.engines.transformers import plan_facts, request_ids
from replay.engines.transformers_linear import forced
from replay.factors import Setup, gemm_k_split
from replay.prove import prove

ROOT = Path(__file__).parents[2]
TOKENS, SPLITS, TRIES = 32, "6", 60


def continue_one(model, ids, name):
    with request_ids([name]):
        return model.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False)[0, len(ids) :].tolist()


@pytest.fixture
def planted(model, recording):
    """Return the case of a request whose token really flipped under a K-split that was in force in one run only."""
    from random import Random

    draw = Random(1)
    for number in range(TRIES):
        ids = [0, *(draw.randrange(2, 1024) for _ in range(24))]
        plain = continue_one(model, ids, f"plain-{number}")
        setup = Setup(load=lambda _dtype: model, model=model)
        with plan_facts({"gemm.k_split": SPLITS}), gemm_k_split.pin(SPLITS, setup), forced(setup):
            split = continue_one(model, ids, f"split-{number}")
        if plain != split and plain[: len(split)] != split and split[: len(plain)] != plain:
            return case_of(recording(), f"split-{number}", f"plain-{number}")
    raise AssertionError(f"{TRIES} prompts and no flip: the K-split has no effect here")


def test_a_planted_factor_is_proven_and_an_innocent_one_is_not(planted, model_path):
    with Children(model_path) as children:
        verdict = prove(planted, [], children.run)
        innocent = prove(planted, ["cpu.threads=2"], children.run)
    assert verdict.outcome == "proven", verdict.claim
    assert [(f.factor, f.incident, f.reference) for f in verdict.factors] == [("gemm.k_split", SPLITS, None)]
    assert verdict.minimal
    assert verdict.flip["token_index"] == planted.flip_index
    assert innocent.outcome == "refuted"


def test_the_command_writes_the_verdict_and_answers_like_diff(planted, model_path, tmp_path):
    path, out = tmp_path / "case.json", tmp_path / "verdict.json"
    path.write_text(planted.to_json())
    assert load_case(path) == planted
    done = subprocess.run(
        [sys.executable, "-m", "replay", str(path), "-o", str(out), "--pin-algo", f"gemm.k_split={SPLITS}",
         "--model", str(model_path)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "at most" in done.stderr.splitlines()[0]
    assert "trial 3: control: incident again" in done.stderr
    document = json.loads(out.read_text())
    assert document["outcome"] == "proven"
    assert document["host"]["torch"]["device_type"] in ("cpu", "cuda")
    assert "--pin-algo" in document["command"]
    assert len({trial["execution"] for trial in document["trials"]}) <= 64
    assert {path.name for path in tmp_path.iterdir()} == {"log", "case.json", "verdict.json"}, "the journal is gone"


def test_other_weights_are_noticed_before_anything_runs(planted, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    path = tmp_path / "case.json"
    path.write_text(planted.to_json())
    assert main([str(path), "-o", str(tmp_path / "verdict.json"), "--model", str(tmp_path)]) == 4
    assert json.loads((tmp_path / "verdict.json").read_text())["outcome"] == "weights_differ"


def test_a_natural_batch_gives_controls_that_hold_and_rows_that_were_forced(model, prompts, recording, model_path):
    """What a batch does to the tokens depends on the CPU; that its plan can be put in force again does not."""
    width = max(map(len, prompts))
    ids = torch.tensor([[1] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    continue_one(model, prompts[4], "alone")
    with request_ids([f"batch-{row}" for row in range(len(prompts))]):
        model.generate(ids, attention_mask=mask, max_new_tokens=TOKENS, do_sample=False)
    case = case_of(recording(), "batch-4", "alone")
    with Children(model_path) as children:
        verdict = prove(case, ["batch.rows=1", "batch.left_pad=0", "batch.mask_path=implicit"], children.run)
    assert verdict.outcome in ("proven", "no_divergence"), verdict.claim
    passed = {control.name: control.passed for control in verdict.controls}
    assert passed["incident twice"]
    assert passed["incident reproduced"]
    assert passed["reference reproduced"]
    for trial in verdict.trials:
        assert trial.observed == trial.plan
        assert trial.details["rows"] == int(trial.plan["batch.rows"])


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["case.json", "-o", "v.json", "--pin-algo", "batch.row=x"], 2, "an integer, 0 or more"),
        (["case.json", "-o", "v.json", "--pin-algo", "batch.rws=1"], 2, "did you mean batch.row"),
        (["missing.json", "-o", "v.json"], 3, "no such file"),
        (["broken.json", "-o", "v.json"], 3, "not a readable JSON case"),
    ],
)
def test_mistakes_are_answered_with_a_code_and_a_way_on(arguments, code, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.json").write_text("{")
    assert main(arguments) == code
    assert says in capsys.readouterr().err


@pytest.mark.parametrize(("engine", "says"), [("sglang", "'sglang'"), ("vllm", "holds no window of its run")])
def test_a_case_that_no_engine_here_can_run_is_inconclusive_with_the_reason(planted, tmp_path, engine, says):
    document = json.loads(planted.to_json())
    document["engine"]["engine"] = engine
    (tmp_path / "case.json").write_text(json.dumps(document))
    assert main([str(tmp_path / "case.json"), "-o", str(tmp_path / "v.json")]) == 4
    verdict = json.loads((tmp_path / "v.json").read_text())
    assert verdict["outcome"] == "inconclusive"
    assert says in verdict["claim"]


@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_keeps_what_ran_and_the_next_run_goes_on(planted, model_path, tmp_path, jobs):
    path, out = tmp_path / "case.json", tmp_path / "verdict.json"
    path.write_text(planted.to_json())
    command = [sys.executable, "-m", "replay", str(path), "-o", str(out), "--model", str(model_path)]
    command += ["--jobs", str(jobs)]

    def heed_interrupts():  # a shell that runs tests in the background has them ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=heed_interrupts) as process:
        for line in process.stderr:
            if "trial 4" in line:
                process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    assert not out.exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 1, again.stderr
    assert "2 trials were taken over" in again.stderr  # both arms; a repeat runs each time
    assert json.loads(out.read_text())["outcome"] == "proven"
