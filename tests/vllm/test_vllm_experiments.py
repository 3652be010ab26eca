"""Drill and map against a real vLLM on a CPU: what was asked for is what ran."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

# A folder of that name on the path is not vLLM.
if getattr(importlib.util.find_spec("vllm"), "origin", None) is None:
    pytest.skip("vLLM is not in this environment (make test-vllm)", allow_module_level=True)

from arms import MODEL
from serving import QUIET, lines_of, of

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

TEXTS = {f"p-{size}": "word " * size for size in (4, 8, 12, 16)}


def run(*command, folder=None):
    env = {name: value for name, value in os.environ.items() if not name.startswith("FORENSICS_")} | QUIET
    if folder is not None:
        env |= {"FORENSICS_RECORD": str(folder), "FORENSICS_RECORD_IDS": "1", "FORENSICS_RECORD_LOGITS_SHA256": "1"}
    return subprocess.run([sys.executable, "-m", *command], env=env, capture_output=True, text=True, check=False)


def workload(path, *, small=False, alone=False, model=MODEL):
    phases = [{"name": name, "in_flight": flight, "kv_pool": "small" if small else "ample", "one_at_a_time": alone,
               "requests": [[f"{name}.{prompt}", prompt] for prompt in TEXTS]}
              for name, flight in (("idle", 1), ("busy", 4))]  # fmt: skip
    knobs = {"engine": "vllm", "dtype": "auto", "max_tokens": 40, "concurrency": 4, "seconds": None}
    path.write_text(json.dumps({"model": str(model), "prompts": TEXTS, "phases": phases} | knobs))
    return str(path)


@pytest.mark.parametrize("knobs", [{}, {"small": True}, {"alone": True}])
def test_a_drill_serves_every_request_and_sets_its_regime(tmp_path, knobs):
    log = tmp_path / "log"
    done = run("replay.engines.drill", "replay.engines.drill_vllm", workload(tmp_path / "w.json", **knobs), folder=log)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = lines_of(log)
    assert not of(lines, "event", what="recorder_fault")
    ended = {one["req_id"].rpartition("-")[0] for one in of(lines, "request") if one.get("finish_reason")}
    assert ended == {f"{phase}.{prompt}" for phase in ("idle", "busy") for prompt in TEXTS}
    most = max(batch["batch_size"] for batch in of(lines, "batch"))
    assert most == (1 if knobs.get("alone") else 4)
    resumed = [step for step in of(lines, "step") if step.get("resumed")]
    assert bool(resumed) is bool(knobs.get("small"))


def test_a_drill_of_no_model_says_so_in_one_line(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    done = run("replay.engines.drill", "replay.engines.drill_vllm", workload(tmp_path / "w.json", model=tmp_path))
    assert done.returncode == 3
    assert "drill: error: vLLM cannot serve" in done.stderr


def test_a_map_reads_back_every_launch():
    done = run("replay.plan_map", MODEL, "--engine", "vllm", "--rows", "4", "--tokens", "32", "--prompt-tokens", "12")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["repeats"]
    assert [cell for cell in found["cells"] if cell["bits"] is None] == []
    assert {cell["rows"] for cell in found["cells"]} == {1, 2, 4}
    assert {cell["tokens"] for cell in found["cells"] if cell["rows"] == 1} == {1, 12}, "more need a neighbour"
    alone = [cell for cell in found["cells"] if cell["rows"] == 1]
    assert {cell["phase"] for cell in alone} == {"prefill", "decode"}


def test_a_map_needs_room_for_its_launches():
    done = run("replay.plan_map", MODEL, "--engine", "vllm", "--rows", "4", "--tokens", "8", "--prompt-tokens", "8")
    assert done.returncode == 2
    assert "raise --tokens or lower --rows" in done.stderr
