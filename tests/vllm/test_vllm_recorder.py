"""The vLLM recorder against a real vLLM on a CPU: it records what ran, and changes nothing."""

import asyncio
import collections
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

# A folder of that name on the path is not vLLM.
if getattr(importlib.util.find_spec("vllm"), "origin", None) is None:
    pytest.skip("vLLM is not in this environment (make test-vllm)", allow_module_level=True)

import jsonschema
import torch

from replay.engines.vllm_worker import RIDES_ON, attach
from replay.host import weights_sha256
from replay.record import batch_fingerprint, token_ids_sha256

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

ROOT = Path(__file__).parents[2]
DRIVER = Path(__file__).with_name("drive_engine.py")
QUIET = {
    "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1",
    "FORENSICS_RECORD_COMPRESS": "none",
}  # fmt: skip
LONG = 1000
"""Tokens of a stream that is left: seconds of work, so that a busy server hears of it in time."""
SMALL_POOL = ("--blocks", "12")
"""11 usable blocks of 32 tokens for six requests of up to 105: some must be preempted."""


# --- arms -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> str:
    return str(ROOT / "fixtures/models/tiny-llama")


def drive(model, *flags, record=None, **environment):
    """Run one arm in a process of its own; return its result, its log lines and what it said."""
    assert any(
        found.value == "replay.engines.vllm:install" for found in metadata.entry_points(group="vllm.general_plugins")
    ), "the plugin is not installed here: pip install --no-deps -e ."
    env = {name: value for name, value in os.environ.items() if not name.startswith("FORENSICS_")} | QUIET | environment
    if record is not None:
        env["FORENSICS_RECORD"] = str(record)
    done = subprocess.run(
        [sys.executable, str(DRIVER), model, *flags], env=env, capture_output=True, text=True, timeout=180, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT ")), lines_of(record), done.stderr


def lines_of(directory):
    if directory is None or not Path(directory).is_dir():
        return []
    logs = sorted(Path(directory).glob("*.jsonl"))
    return [json.loads(line) for log in logs for line in log.read_text().splitlines()]


def of(lines, kind, what=None):
    return [line for line in lines if line["kind"] == kind and (what is None or line["what"] == what)]


def merged_requests(lines):
    requests = collections.defaultdict(dict)
    for line in of(lines, "request"):
        requests[line["req_id"]] |= line
    return requests


@pytest.fixture(scope="module")
def recorded(model, tmp_path_factory):
    """Six requests in chunks, with preemptions, ids on."""
    flags = {"FORENSICS_RECORD_IDS": "1", "FORENSICS_RECORD_LOGITS_SHA256": "1"}
    return drive(model, *SMALL_POOL, record=tmp_path_factory.mktemp("on"), **flags)


@pytest.fixture(scope="module")
def unrecorded(model):
    """The same six requests, recorder off."""
    return drive(model, *SMALL_POOL)


# --- what is on record ----------------------------------------------------------------------------------------------


def contract_faults(lines):
    """Return how lines break schemas/, unknown fields included."""
    faults = []
    schemas = {
        kind: json.loads((ROOT / f"schemas/{kind}.v1.json").read_text()) for kind in {one["kind"] for one in lines}
    }
    validators = {kind: jsonschema.Draft202012Validator(schema) for kind, schema in schemas.items()}
    factors = {factor["name"] for factor in json.loads((ROOT / "schemas/factors.v1.json").read_text())["factors"]}
    for line in lines:
        kind = line["kind"]
        faults += [f"{kind}: {error.message}" for error in validators[kind].iter_errors(line)]
        faults += [f"{kind}: unknown field {name}" for name in line.keys() - schemas[kind]["properties"].keys()]
        faults += [f"{kind}: unknown factor {name}" for name in line.get("plan", {}).keys() - factors]
    return faults


def test_every_line_satisfies_the_contract(recorded):
    assert contract_faults(recorded[1]) == []
    assert [line["seq"] for line in recorded[1]] == list(range(len(recorded[1])))


def test_composition_is_what_ran_row_by_row(recorded):
    result, lines, _ = recorded
    steps = collections.defaultdict(list)
    for step in of(lines, "step"):
        steps[step["engine_step"]].append(step)
    ran = []
    for batch in of(lines, "batch"):
        rows = sorted(steps[batch["engine_step"]], key=lambda step: step["row"])
        assert [step["row"] for step in rows] == list(range(batch["batch_size"]))
        assert batch["batch_tokens"] == batch["padded_tokens"] == sum(step["num_scheduled_tokens"] for step in rows)
        triples = [(step["req_id"], step["num_scheduled_tokens"], step["num_computed_tokens"]) for step in rows]
        assert batch["batch_fp"] == batch_fingerprint(triples)
        ran.append([[req_id, tokens] for req_id, tokens, _ in triples])
    assert ran == result["launches"]
    assert [batch["engine_step"] for batch in of(lines, "batch")] == list(range(len(ran)))


def test_tokens_scheduled_add_up_and_recomputation_is_told(recorded):
    _, lines, _ = recorded
    lost = collections.Counter()
    for event in of(lines, "event", "preemption"):
        lost[event["req_id"]] += event["detail"]["num_computed_tokens"]
    for req_id, request in merged_requests(lines).items():
        mine = [step for step in of(lines, "step") if step["req_id"] == req_id]
        assert [step["step"] for step in mine] == list(range(len(mine)))
        needed = request["effective_tokens"] + request["output_tokens"] - 1
        assert sum(step["num_scheduled_tokens"] for step in mine) == needed + lost[req_id]
        chosen = [step["token_index"] for step in mine if "token_index" in step]
        assert chosen == list(range(request["output_tokens"]))


def test_preemption_is_on_record(recorded):
    _, lines, _ = recorded
    preempted = of(lines, "event", "preemption")
    assert preempted, "the pool was large enough for all: the test tests nothing"
    batches = {batch["engine_step"]: batch for batch in of(lines, "batch")}
    assert sum(batch["num_preempted"] for batch in batches.values()) == len(preempted)
    for event in preempted:
        assert batches[event["engine_step"]]["paging_on"]
        later = [
            s for s in of(lines, "step") if s["req_id"] == event["req_id"] and s["engine_step"] > event["engine_step"]
        ]
        assert later[0]["preempted"]
        assert later[0]["resumed"]
        assert later[0]["num_computed_tokens"] == 0
        assert batches[later[0]["engine_step"]]["paging_on"]
    assert any(not batch["paging_on"] for batch in batches.values())


def test_chunks_are_told_by_the_step_that_ends_the_prompt(recorded):
    _, lines, _ = recorded
    chunked = [step for step in of(lines, "step") if "," in str(step["plan"].get("prefill.chunks", ""))]
    assert chunked, "no prompt was chunked: the test tests nothing"
    for step in chunked:
        chunks = [int(chunk) for chunk in step["plan"]["prefill.chunks"].split(",")]
        assert sum(chunks) == step["num_computed_tokens"] + step["num_scheduled_tokens"]
        assert "token_index" in step


def test_sampled_tokens_equal_the_outputs(recorded):
    result, lines, _ = recorded
    for req_id, request in merged_requests(lines).items():
        output = result["outputs"][request["external_req_id"]]
        told = [step["token_id"] for step in of(lines, "step") if step["req_id"] == req_id and "token_id" in step]
        assert told == request["output_token_ids"] == output
        assert request["output_token_ids_sha256"] == token_ids_sha256(output)
        assert request["finish_reason"] == "length"
        assert request["token_rule"] == "argmax"


def test_top_logits_are_the_raw_ones_and_lead_to_the_token(recorded):
    result, lines, _ = recorded
    names = {req_id: request["external_req_id"] for req_id, request in merged_requests(lines).items()}
    chosen = [step for step in of(lines, "step") if "token_index" in step]
    assert chosen
    for step in chosen:
        assert step["top_token_ids"][0] == step["token_id"]
        assert step["top_token_tags"][0] == step["token_tag"]
        assert step["top_logits"] == result["raw"][names[step["req_id"]]][step["token_index"]]
        assert step["margin"] == step["top_logits"][0] - step["top_logits"][1] >= 0
        assert step["logit_dtype"] == "bfloat16"
        assert len(step["logits_sha256"]) == 64


def test_prefix_cache_hits_are_told(model, tmp_path):
    _, lines, _ = drive(model, "--prefix-caching", record=tmp_path)
    first, second = (step for step in of(lines, "step") if step["step"] == 0)
    assert (first["num_cached_tokens"], second["num_cached_tokens"]) == (0, 64)
    assert second["plan"]["prefill.cached_prefix"] == 64
    one, two = merged_requests(lines).values()
    assert (one["prefix_cache_used"], two["prefix_cache_used"]) == (False, True)
    assert one["block_hashes"] == two["block_hashes"]


class OverlappingRunner:
    """Stands in for what no CPU build runs: the V2 model runner's methods, and outputs collected a launch later."""

    def __init__(self):
        self.model = SimpleNamespace(compute_logits=lambda hidden: hidden)

    def execute_model(self, scheduler_output):
        dispatched = SimpleNamespace(cg_mode=SimpleNamespace(name="FULL"))
        self.prepare_inputs(scheduler_output, None, dispatched, 0)
        self.hidden = scheduler_output.hidden

    def prepare_inputs(self, scheduler_output, batch_req_state, batch_desc, num_active_loras):
        return SimpleNamespace(num_tokens_after_padding=8 * scheduler_output.total_num_scheduled_tokens)

    def sample_tokens(self, grammar_output):
        self.model.compute_logits(self.hidden)
        output = SimpleNamespace(req_ids=["a", "b"])
        self.model.compute_logits(self.hidden + 1)  # scores something else; not what the tokens are chosen from
        return SimpleNamespace(get_output=lambda: output)


def test_overlapping_launches_are_kept_apart():
    runner = OverlappingRunner()
    took = attach(SimpleNamespace(model_runner=runner))
    assert took["top_logits"]
    assert took["padding"]
    collected = []
    for number in (1, 2):
        hidden = torch.tensor([[0.0, number, 3.0], [5.0, 5.0, number]], dtype=torch.bfloat16)
        runner.execute_model(SimpleNamespace(total_num_scheduled_tokens=number, hidden=hidden))
        collected.append(runner.sample_tokens(None))
    for number, later in enumerate(collected, start=1):
        seen = getattr(later.get_output(), RIDES_ON)
        assert seen["top_logits"] == [[3.0, number], [5.0, 5.0]]
        assert seen["top_token_ids"] == [[2, 1], [0, 1]], "among equal logits the token that argmax takes goes first"
        assert seen["padded_tokens"] == 8 * number
        assert (seen["graph"], seen["logit_dtype"]) == ("FULL", "bfloat16")
    assert "fault" not in seen


# --- what it must not do --------------------------------------------------------------------------------------------


def test_recorder_changes_no_output(recorded, unrecorded):
    assert recorded[0]["outputs"] == unrecorded[0]["outputs"]
    assert recorded[0]["raw"] == unrecorded[0]["raw"]
    assert unrecorded[1] == []
    assert "forensics" not in unrecorded[2]


@pytest.mark.parametrize("broken", ["observer", "worker"])
def test_a_faulty_hook_fails_no_request_and_is_on_record(model, unrecorded, tmp_path, broken):
    result, lines, _ = drive(model, *SMALL_POOL, "--break-hook", broken, record=tmp_path)
    assert result["outputs"] == unrecorded[0]["outputs"]
    faults = of(lines, "event", "recorder_fault")
    assert faults
    assert all("broken on purpose" in event["detail"]["fault"] for event in faults)
    assert contract_faults(lines) == []


def test_a_recorder_that_cannot_start_stops_no_server(model, unrecorded, tmp_path):
    result, _, said = drive(model, *SMALL_POOL, "--break-hook", "attach", record=tmp_path / "one")
    assert result["outputs"] == unrecorded[0]["outputs"]
    assert "forensics: not recording" in said
    (tmp_path / "file").write_text("a file where the folder should be")
    result, _, said = drive(model, *SMALL_POOL, record=tmp_path / "file")
    assert result["outputs"] == unrecorded[0]["outputs"]
    assert "forensics: not recording" in said


# --- ends -----------------------------------------------------------------------------------------------------------


def test_a_forked_engine_writes_its_tail(model, recorded, tmp_path):
    result, lines, _ = drive(model, *SMALL_POOL, "--fork", record=tmp_path)
    assert result["outputs"] == recorded[0]["outputs"]
    assert len(of(lines, "step")) == len(of(recorded[1], "step"))


def test_kill_9_leaves_at_most_a_torn_last_line(model, tmp_path):
    env = os.environ | QUIET | {"FORENSICS_RECORD": str(tmp_path)}
    command = [sys.executable, str(DRIVER), model, "--max-tokens", "120"]
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as engine:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and sum(log.stat().st_size for log in tmp_path.glob("*.jsonl")) < 30_000:
            time.sleep(0.01)
        engine.kill()
    assert engine.returncode == -signal.SIGKILL, "the engine was done before the kill: the test tests nothing"
    (log,) = tmp_path.glob("*.jsonl")
    whole = log.read_bytes().split(b"\n")[:-1]
    lines = [json.loads(line) for line in whole]
    assert [line["seq"] for line in lines] == list(range(len(lines)))
    assert 0 < len(of(lines, "step")) < 600, "120 tokens for each of six: the log came only when all was done"
    assert contract_faults(lines) == []


def test_real_server_with_the_engine_in_its_own_process(model, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "tiny",
        "--dtype", "bfloat16", "--enforce-eager", "--max-model-len", "1024", "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    env = os.environ | QUIET | {"FORENSICS_RECORD": str(tmp_path / "log")}
    with (tmp_path / "server.txt").open("wb") as said:
        server = subprocess.Popen(command, env=env, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        wait_until_ready(server, port, tmp_path / "server.txt")
        texts = asyncio.run(ask(port))
        server.send_signal(signal.SIGTERM)
        server.wait(60)
    finally:
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
    lines = lines_of(tmp_path / "log")
    assert contract_faults(lines) == []
    assert [line["seq"] for line in lines] == list(range(len(lines))), (
        "one writer: only the engine core's process writes"
    )
    engine = of(lines, "engine")
    assert engine[1]["weights_sha256"] == weights_sha256(Path(model))
    assert "top_logits" in engine[0]["observes"]["step"]
    assert engine[0]["num_threads"] == 1
    requests = {request["external_req_id"]: request for request in merged_requests(lines).values()}
    assert sum("whole" in name for name in requests) == len(texts) == 4
    assert {r["finish_reason"] for name, r in requests.items() if "whole" in name} == {"length"}
    aborted = {r["req_id"] for name, r in requests.items() if "left" in name and r["finish_reason"] == "abort"}
    assert aborted, "every stream was done before the server heard that its client had left"
    assert {event["req_id"] for event in of(lines, "event", "abort")} == aborted
    assert all(r["output_tokens"] < LONG for r in requests.values() if r["req_id"] in aborted)
    by_whole = collections.Counter(
        step["req_id"] for step in of(lines, "step") if "token_index" in step and "margin" in step
    )
    assert all(by_whole[r["req_id"]] == r["output_tokens"] for r in requests.values())
    assert lines[-1]["what"] == "shutdown"
    assert lines[-1]["detail"] == {"engine_steps": len(of(lines, "batch")), "unfinished_requests": 0}
    secret = {"effective_token_ids", "output_token_ids", "token_id", "top_token_ids"}
    assert not [line for line in lines if secret & line.keys()], "ids are opt-in"


def wait_until_ready(server, port, said):
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.3)
    pytest.fail("the server did not come up: " + said.read_text(errors="replace")[-3000:])


async def ask(port):
    """Four whole completions at once, then six streams whose clients leave in the middle."""
    from openai import AsyncOpenAI

    async with AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="unused") as client:
        common = {"model": "tiny", "temperature": 0, "extra_body": {"ignore_eos": True}}
        whole = [
            client.completions.create(
                prompt=f"def number_{n}(value):", max_tokens=24, extra_headers={"X-Request-Id": f"whole{n}"}, **common
            )
            for n in range(4)
        ]
        done = await asyncio.gather(*whole)
        await asyncio.gather(*(leave(client, f"left{n}", common) for n in range(6)))
    await asyncio.sleep(1)  # the server hears of it, the engine is told
    return [answer.choices[0].text for answer in done]


async def leave(client, name, common):
    stream = await client.completions.create(
        prompt=f"class {name}:", max_tokens=LONG, stream=True, extra_headers={"X-Request-Id": name}, **common
    )
    await anext(aiter(stream))
    await stream.close()
