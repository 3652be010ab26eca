"""What the vLLM recorder tells of the scheduler's limits and the KV pool, on a real engine that uses both."""

import hashlib
import importlib.util

import pytest

# A folder of that name on the path is not vLLM.
if getattr(importlib.util.find_spec("vllm"), "origin", None) is None:
    pytest.skip("vLLM is not in this environment (make test-vllm)", allow_module_level=True)

from arms import MODEL, SMALL_POOL, contract_faults, drive, merged_requests
from serving import of

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def exercised(tmp_path_factory):
    """What `exercise` of the driver does: 11 usable blocks of 32 tokens with prefix caching, block maps on."""
    flags = ("--exercise", "--prefix-caching", *SMALL_POOL)
    return drive(MODEL, *flags, record=tmp_path_factory.mktemp("exercised"), FORENSICS_RECORD_BLOCK_MAP="1")


def test_exercise_satisfies_the_contract(exercised):
    assert contract_faults(exercised[1]) == []
    assert of(exercised[1], "event", "recorder_fault") == []


def test_limits_in_force_and_their_change(exercised):
    engine = of(exercised[1], "engine")[0]
    assert engine["scheduler_limits"] == {
        "max_num_batched_tokens": 64, "max_num_seqs": 8, "max_num_active_seqs": 8, "enable_chunked_prefill": True,
        "long_prefill_token_threshold": 0, "policy": "fcfs",
    }  # fmt: skip
    (change,) = of(exercised[1], "event", "batch_limit_change")
    assert change["detail"] == {"changed": {"max_num_batched_tokens": [64, 48]}}
    at = change["engine_step"]
    tokens = {batch["engine_step"]: batch["batch_tokens"] for batch in of(exercised[1], "batch")}
    assert max(count for step, count in tokens.items() if step < at) == 64
    assert max(count for step, count in tokens.items() if step >= at) == 48


def test_what_the_prefix_cache_took_in_and_gave_up(exercised):
    result, lines, _ = exercised
    (reset,) = of(lines, "event", "prefix_cache_reset")
    assert reset["detail"] == {"done": True, "reset_running_requests": False}
    batches = of(lines, "batch")
    evicted = {batch["engine_step"]: batch["kv_blocks_evicted"] for batch in batches}
    events = {event["engine_step"]: event["detail"]["blocks"] for event in of(lines, "event", "eviction")}
    assert events == {step: count for step, count in evicted.items() if count}
    assert events, "the pool was large enough for all: the test tests nothing"
    assert sum(batch["kv_blocks_stored"] for batch in batches) > sum(evicted.values())
    last = [batch for batch in batches if batch["engine_step"] >= reset["engine_step"]]
    assert sum(batch["kv_blocks_stored"] - batch["kv_blocks_evicted"] for batch in last) == result["cached"] > 0
    assert {"kv_blocks_stored", "kv_blocks_evicted", "block_map_sha256"} <= set(
        of(lines, "engine")[0]["observes"]["batch"]
    )


def test_the_block_map_is_that_of_the_launch(exercised):
    result, lines, _ = exercised
    batches = of(lines, "batch")
    assert len(batches) == len(result["blocks"])
    for batch, rows in zip(batches, result["blocks"], strict=True):
        text = "\n".join("|".join(",".join(map(str, group)) for group in groups) for groups in rows)
        assert batch["block_map_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert len({batch["block_map_sha256"] for batch in batches}) > 5


def test_salts_stops_and_versions(exercised):
    _, lines, _ = exercised
    requests = list(merged_requests(lines).values())
    salts = [request.get("cache_salt_tag") for request in requests]
    assert salts[:5] == [None] * 5
    assert salts[5] == salts[6] != salts[7] is not None
    cached = [step["num_cached_tokens"] for step in of(lines, "step") if step["step"] == 0]
    assert (cached[5], cached[6], cached[7], cached[8]) == (0, 64, 0, 0), "equal salts share, others do not"
    assert [request.get("stop_reason") for request in requests] == [None] * 4 + ["stop_token"] + [None] * 4
    assert requests[4]["finish_reason"] == "stop"
    assert all(request["priority"] == 0 for request in requests)
    assert of(lines, "engine")[0]["weights_version"] == "default"
    (update,) = of(lines, "event", "weights_update")
    assert update["detail"] == {"weights_version": "second"}
