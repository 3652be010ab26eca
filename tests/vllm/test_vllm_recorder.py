"""The vLLM recorder against a real vLLM on a CPU: it records what ran, and changes nothing."""

import asyncio
import collections
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

# A folder of that name on the path is not vLLM.
if getattr(importlib.util.find_spec("vllm"), "origin", None) is None:
    pytest.skip("vLLM is not in this environment (make test-vllm)", allow_module_level=True)

import torch
from arms import DRIVER, MODEL, SMALL_POOL, contract_faults, drive, merged_requests
from serving import QUIET, lines_of, of, server

from replay.engines.vllm_worker import RIDES_ON, TOP, attach, ranked
from replay.host import tokenizer_sha256, weights_sha256
from replay.record import batch_fingerprint, token_ids_sha256

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

LONG = 1000
"""Tokens of a stream that is left: seconds of work, so that a busy server hears of it in time."""


# --- arms -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model() -> str:
    return MODEL


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
        raw = result["raw"][names[step["req_id"]]][step["token_index"]]
        assert step["top_logits"] == raw[: len(step["top_logits"])]
        assert step["margin"] == step["top_logits"][0] - step["top_logits"][1] >= 0
        assert step["logit_dtype"] == "bfloat16"
        assert len(step["logits_sha256"]) == 64
    lengths = collections.Counter(len(step["top_logits"]) for step in chosen)
    assert lengths[TOP] > 0.8 * len(chosen), "only ties with what lies below are left out"


def test_prefix_cache_hits_are_told(model, tmp_path):
    _, lines, _ = drive(model, "--prefix-caching", record=tmp_path)
    first, second = (step for step in of(lines, "step") if step["step"] == 0)
    assert (first["num_cached_tokens"], second["num_cached_tokens"]) == (0, 64)
    assert second["plan"]["prefill.cached_prefix"] == 64
    one, two = merged_requests(lines).values()
    assert (one["prefix_cache_used"], two["prefix_cache_used"]) == (False, True)
    assert one["block_hashes"] == two["block_hashes"]


def test_preemptions_are_counted_per_request(recorded):
    _, lines, _ = recorded
    counted = collections.Counter(event["req_id"] for event in of(lines, "event", "preemption"))
    told = {req_id: request["num_preemptions"] for req_id, request in merged_requests(lines).items()}
    assert told == {req_id: counted[req_id] for req_id in told}
    assert all(batch["queue_deferred"] <= batch["queue_depth"] for batch in of(lines, "batch"))


def test_without_a_prefix_cache_no_count_claims_zero(recorded):
    assert not [batch for batch in of(recorded[1], "batch") if {"kv_blocks_stored", "kv_blocks_evicted"} & batch.keys()]
    assert not [batch for batch in of(recorded[1], "batch") if "block_map_sha256" in batch], "opt-in"


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
        assert seen["top_logits"] == [[3.0, number, 0.0], [5.0, 5.0, number]]
        assert seen["top_token_ids"] == [[2, 1, 0], [0, 1, 2]], "equal logits: argmax's token goes first"
        assert seen["padded_tokens"] == 8 * number
        assert (seen["graph"], seen["logit_dtype"]) == ("FULL", "bfloat16")
    assert "fault" not in seen


@pytest.mark.parametrize(
    ("values", "ids", "best", "expected"),
    [
        ([9.0, 8.0, 7.0, 6.0], [50, 40, 30, 20], -1, ([9.0, 8.0, 7.0], [50, 40, 30])),
        ([9.0, 8.0, 8.0, 6.0], [50, 40, 30, 20], -1, ([9.0, 8.0, 8.0], [50, 30, 40])),
        ([9.0, 9.0, 7.0, 6.0], [50, 40, 30, 20], 50, ([9.0, 9.0, 7.0], [50, 40, 30])),
        ([9.0, 9.0, 7.0, 6.0], [50, 40, 30, 20], -1, ([9.0, 9.0, 7.0], [40, 50, 30])),
        ([9.0, 8.0, 7.0, 7.0], [50, 40, 30, 20], -1, ([9.0, 8.0], [50, 40])),
        ([9.0, 9.0, 9.0, 9.0], [50, 40, 30, 20], 5, ([9.0], [5])),
    ],
)
def test_top_logits_do_not_depend_on_how_topk_breaks_ties(values, ids, best, expected):
    assert ranked(values, ids, best) == expected


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
    with server(model, tmp_path, record=tmp_path / "log") as port:
        texts = asyncio.run(ask(port))
    everything = lines_of(tmp_path / "log")
    assert contract_faults(everything) == []
    written = collections.defaultdict(list)
    for line in everything:
        written[line["writer"]].append(line["seq"])
    assert len(written) == 2, "the engine core's process and the API process"
    assert all(seqs == list(range(len(seqs))) for seqs in written.values())
    lines = lines_of(tmp_path / "log", "vllm-1")
    engine = of(lines, "engine")
    assert engine[1]["weights_sha256"] == weights_sha256(Path(model))
    assert engine[1]["tokenizer_sha256"] == tokenizer_sha256(Path(model)) is not None
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
    assert not [line for line in everything if secret & line.keys()], "ids are opt-in"


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
