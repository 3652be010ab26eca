"""The engine side of a drill: phases as they were asked for, and a kernel that depends on rows is found."""

import json
import subprocess
import sys
import time

import pytest
import torch

from forensics.drill.prompts import built_in
from forensics.drill.rates import measure
from forensics.drill.run import _workload, plan
from forensics.load import load
from forensics.store import Store
from replay.engines import drill_transformers
from replay.workload import Phase, Workload, WorkloadError, in_tokens

pytestmark = pytest.mark.filterwarnings("ignore")
REGIMES = {
    "transformers": ["concurrency", "isolation_strict"],
    "transformers-continuous": ["concurrency", "small_kv_pool", "isolation_strict"],
}


def of(records, kind, **where):
    return [r for r in records if r["kind"] == kind and all(r.get(name) == value for name, value in where.items())]


def planned(engine, max_tokens=6):
    short = [one for one in built_in() if one.family != "long_context"]
    return plan(short, REGIMES[engine], engine, 3, max_tokens, 6)


def workload(tmp_path, drill, model_path, seconds=None):
    path = tmp_path / "workload.json"
    path.write_text(json.dumps(_workload(drill, list(drill.phases), model_path, seconds)))
    return Workload.read(path)


def figures(tmp_path, drill):
    with Store.in_memory() as store:
        load([tmp_path / "log"], store)
        return measure(store, drill)


@pytest.fixture
def rows_matter(monkeypatch):
    """A product whose sign depends on whether more than one request is in it: no machine's kernels can hide that."""
    linear = torch.nn.functional.linear

    def broken(x, weight, bias=None):
        last = x.shape[-2] if x.shape[0] == 1 else x.shape[0]
        alone = x.shape[0] == 1 and (last == 1 or x.shape[-2] > 12)
        return linear(x if alone else -x, weight, bias)

    monkeypatch.setattr(torch.nn.functional, "linear", broken)


@pytest.mark.parametrize("engine", REGIMES)
def test_every_request_is_served_once_and_the_regimes_occur(engine, tmp_path, model_path, recording):
    drill = planned(engine, max_tokens=40)
    service = drill_transformers.drive(workload(tmp_path, drill, model_path))
    records = recording()
    assert service.workload.engine == engine
    assert not of(records, "event", what="recorder_fault")
    asked = {one.req_id for phase in drill.phases for one in phase.requests}
    assert {record["req_id"] for record in of(records, "request")} == asked
    found = figures(tmp_path, drill)
    assert [rate.complaint for rate in found.regimes] == [None] * len(found.regimes)
    assert [rate.unfinished for rate in found.regimes] == [0] * len(found.regimes)
    assert found.steady.other_bits.hits == 0
    strict = next(rate for rate in found.regimes if rate.phase.name == "isolation_strict")
    assert strict.requests.hits == 0


def test_a_kernel_that_depends_on_rows_flips_every_answer_but_the_isolated(
    tmp_path, model_path, recording, rows_matter
):
    drill = planned("transformers")
    service = drill_transformers.drive(workload(tmp_path, drill, model_path))
    recording()
    del service
    found = figures(tmp_path, drill)
    rates = {rate.phase.name: rate.requests for rate in found.regimes}
    assert rates["concurrency"].hits == rates["concurrency"].of == 6
    assert rates["isolation_strict"].hits == 0


def test_without_time_nothing_more_is_asked(tmp_path, model_path, recording):
    drill = planned("transformers")
    drill_transformers.drive(workload(tmp_path, drill, model_path, seconds=1e-9))
    assert of(recording(), "request") == []


def timed(seconds, phases):
    return Workload("m", "transformers", "auto", 4, 2, seconds, {}, tuple(phases))


def test_time_is_shared_out_among_the_phases_by_how_long_they_can_take(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    asked = tuple((f"r{n}", f"p{n}") for n in range(4))
    turns = timed(10.0, [Phase("idle", 1, "ample", False, asked), Phase("busy", 4, "ample", False, asked)]).turns()
    idle = next(turns)
    now[0] = 107.9
    assert len(idle.take(4)) == 4, "4 one by one, and 4 at once: four fifths of 10 s"
    busy = next(turns)
    now[0] = 110.1
    assert busy.take(4) == []


def test_what_has_no_reference_is_not_asked(monkeypatch):
    asked = tuple((f"r{n}", f"p{n}") for n in range(4))
    turns = timed(
        None, [Phase("idle", 1, "ample", False, asked), Phase("busy", 4, "ample", False, asked[::-1])]
    ).turns()
    next(turns).take(2)
    assert next(turns).take(4) == [("r1", "p1"), ("r0", "p0")]
    turns = timed(None, [Phase("small", 4, "small", False, asked), Phase("other", 4, "small", False, asked)]).turns()
    next(turns).take(2)
    assert len(next(turns).take(4)) == 4, "another process has the reference"


class Letters:
    """A tokenizer: a token a letter."""

    chat_template = None

    def __call__(self, text):
        return {"input_ids": [ord(letter) for letter in text]}


class Chats(Letters):
    chat_template = "{{ messages }}"

    def apply_chat_template(self, messages, **_):
        return [1, *self(messages[0]["content"])["input_ids"], 2]


def test_a_long_prompt_keeps_its_end(capsys):
    told = Workload("m", "vllm", "auto", 4, 2, None, {"a": "abc", "b": "d"}, ())
    assert in_tokens(told, Letters(), 6) == {"a": [98, 99], "b": [100]}
    assert "cut to the 2 tokens" in capsys.readouterr().err
    assert in_tokens(told, Chats(), 9)["b"] == [1, 100, 2]
    with pytest.raises(WorkloadError, match="lower --max-tokens"):
        in_tokens(told, Letters(), 4)


def test_a_small_pool_holds_half_of_what_is_usual_and_always_the_longest():
    told = Workload("m", "vllm", "auto", 10, 4, None, {}, ())
    ample, small = (Phase("x", 4, pool, False, ()) for pool in ("ample", "small"))
    prompts = {"a": [1] * 30, "b": [1] * 40, "c": [1] * 50}
    assert (told.room(ample, prompts), told.room(small, prompts)) == (240, 100)
    assert told.room(small, prompts | {"d": [1] * 500}) == 510


def test_a_folder_without_weights_is_an_error_of_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(WorkloadError, match="no model can be loaded"):
        drill_transformers._load(str(tmp_path), "auto")


def test_an_interpreter_without_the_engine_is_a_usage_error(tmp_path, model_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    workload(tmp_path, planned("transformers"), model_path)
    command = [bare, "-m", "replay.engines.drill", "replay.engines.drill_transformers", tmp_path / "workload.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "has no torch" in done.stderr


def test_what_is_wrong_with_the_model_is_one_line_too(tmp_path):
    workload(tmp_path, planned("transformers"), tmp_path)
    command = [sys.executable, "-m", "replay.engines.drill", "replay.engines.drill_transformers"]
    done = subprocess.run([*command, tmp_path / "workload.json"], capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (3, False)
    assert "drill: error: no model can be loaded" in done.stderr
