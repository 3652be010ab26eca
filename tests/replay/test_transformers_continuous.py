"""The recorder inside transformers' continuous batching: what its scheduler did, as it did it, and nothing changed.

On a CPU there are no graphs, no asynchronous batching and no pinned memory for offloading. Where a test needs one of
the first and the last, that one call is replaced, and all the classes that decide are transformers' own.
"""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import pytest
import torch
from from_log import merged, read_log
from transformers import CompileConfig, ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import initialization, model_runner, offloading_manager, scheduler

from replay.engines.transformers import install
from replay.engines.transformers_hooks import row_sha256
from replay.engines.transformers_record import Recorders, Run

ROOT = Path(__file__).parents[2]
SCHEMAS = {kind: json.loads((ROOT / "schemas" / f"{kind}.v1.json").read_text())
           for kind in ("engine", "request", "step", "batch", "event", "device")}  # fmt: skip
SMALL = {"max_batch_tokens": 256, "num_blocks": 7, "page_size": 32}
"""Too few blocks for six requests of 30 tokens and what they say."""

pytestmark = pytest.mark.filterwarnings("ignore")


def of(records, kind, **where):
    return [r for r in records if r["kind"] == kind and all(r.get(name) == value for name, value in where.items())]


def settings(**options):
    return GenerationConfig(**{"max_new_tokens": 12, "do_sample": False, "eos_token_id": 0} | options)


def continuous(model, prompts, generation=None, **config):
    try:
        result = model.generate_batch(prompts, generation_config=generation or settings(),
                                      continuous_batching_config=ContinuousBatchingConfig(**config))  # fmt: skip
    finally:
        model.set_attn_implementation("sdpa")
    return {name: output.generated_tokens for name, output in result.items()}


def read(finish):
    """Stop recording; return what holds of every log: no faults, all lines by the contract, a token a sampling step."""
    records = finish()
    assert not of(records, "event", what="recorder_fault")
    for record in records:
        jsonschema.validate(record, SCHEMAS[record["kind"]])
        assert record.keys() <= SCHEMAS[record["kind"]]["properties"].keys()
    return records


def tokens_of(records, name):
    steps = [s for s in of(records, "step", req_id=name) if "token_id" in s]
    assert [s["token_index"] for s in steps] == list(range(len(steps)))
    return [s["token_id"] for s in steps]


def crowd(prompts):
    """Return requests that all need a second block at the same time."""
    return [(prompt * 4)[:30] for prompt in prompts[:6]]


def test_continuous_batching_is_recorded_as_it_ran(model, prompts, recording):
    outputs = continuous(model, prompts, max_batch_tokens=64, num_blocks=32, page_size=32)
    records = recording()
    assert not of(records, "event", what="recorder_fault")
    assert continuous(model, prompts, max_batch_tokens=64, num_blocks=32, page_size=32) == outputs
    for name, tokens in outputs.items():
        steps = sorted(of(records, "step", req_id=name), key=lambda r: r["step"])
        assert [s["token_id"] for s in steps if "token_id" in s] == tokens
        assert [s["top_token_ids"][0] for s in steps if "token_id" in s] == tokens
        computed = 0
        for step in steps:
            assert step["num_computed_tokens"] == computed
            computed += step["num_scheduled_tokens"]
        assert merged(records, "request", req_id=name)["output_token_ids"] == tokens
    for batch in of(records, "batch"):
        rows = of(records, "step", engine_step=batch["engine_step"])
        assert batch["batch_tokens"] == sum(r["num_scheduled_tokens"] for r in rows) <= 64
        assert batch["batch_size"] == len(rows)
    assert any(len([s for s in of(records, "step", req_id=n) if "token_id" not in s]) for n in outputs)  # split prompts
    for record in records:
        jsonschema.validate(record, SCHEMAS[record["kind"]])


def test_stopping_waits_for_the_file_of_a_loop_that_is_gone(model, tmp_path, monkeypatch):
    close = Run.close
    monkeypatch.setattr(Run, "close", lambda run: (time.sleep(0.5), close(run)))
    recorders, loop = Recorders(tmp_path), type("Loop", (), {})()
    recorders.run(loop, model, {"batching": "continuous"}, {})
    del loop
    recorders.close()
    assert of(read_log(tmp_path), "event", what="shutdown")


def test_a_full_cache_shows_as_preemption_and_recomputation(model, prompts, recording):
    outputs = continuous(model, crowd(prompts), **SMALL)
    records = read(recording)
    preempted = {event["req_id"] for event in of(records, "event", what="preemption")}
    assert preempted
    assert {r["req_id"] for r in of(records, "step", resumed=True)} == preempted
    assert any(r["paging_on"] for r in of(records, "batch"))
    for name, tokens in outputs.items():
        steps = [s for s in of(records, "step", req_id=name) if "token_id" in s]
        assert [s["token_index"] for s in steps] == list(range(len(tokens)))
        assert [s["token_id"] for s in steps] == tokens


def test_a_soft_reset_says_what_was_lost_and_when(model, prompts, recording):
    continuous(model, crowd(prompts), **SMALL)
    records = read(recording)
    batches = of(records, "batch")
    events = of(records, "event", what="preemption")
    assert sum(b["num_preempted"] for b in batches) == len(events) > 0
    assert sum(b["num_starved"] for b in batches) >= len(events)
    assert any(b["num_starved"] == b["num_preempted"] == 0 for b in batches)
    for event in events:
        lost, step = event["detail"], event["engine_step"]
        before = [s for s in of(records, "step", req_id=event["req_id"]) if s["engine_step"] < step]
        back = next(s for s in of(records, "step", req_id=event["req_id"]) if s["engine_step"] >= step)
        assert lost["num_computed_tokens"] == sum(s["num_scheduled_tokens"] for s in before)
        assert lost["num_output_tokens"] == sum("token_id" in s for s in before)
        assert lost["kv_blocks"] == -(-lost["num_computed_tokens"] // 32)
        assert (back["preempted"], back["resumed"]) == (True, True)
        assert back["num_computed_tokens"] == back["num_cached_tokens"]
        assert "queue_ms" not in back
        assert of(records, "batch", engine_step=back["engine_step"])[0]["paging_on"]
    quiet = [s for s in of(records, "step") if "resumed" not in s]
    assert len(quiet) == len(of(records, "step")) - len(events)


@pytest.fixture
def host_memory(monkeypatch):
    """Let the offloading manager have its host memory: a CPU build of torch has none that is pinned."""
    empty = torch.empty
    monkeypatch.setattr(
        offloading_manager,
        "torch",
        SimpleNamespace(**vars(torch) | {"empty": lambda *a, pin_memory=None, **k: empty(*a, **k)}),
    )


def test_offloaded_blocks_come_back_and_nothing_is_computed_again(model, prompts, recording, host_memory):
    outputs = continuous(model, crowd(prompts), cpu_offload_space=0.01, **SMALL)
    records = read(recording)
    away, back = of(records, "event", what="offload"), of(records, "event", what="restore")
    assert len(away) == len(back) > 0
    assert not of(records, "event", what="preemption")
    assert sum(b["num_preempted"] for b in of(records, "batch")) == len(away)
    for gone in away:
        name = gone["req_id"]
        returned = next(e for e in back if e["req_id"] == name and e["engine_step"] >= gone["engine_step"])
        step = returned["engine_step"]
        first = next(s for s in of(records, "step", req_id=name) if s["engine_step"] >= gone["engine_step"])
        assert (first["engine_step"], first["preempted"]) == (step, True)
        assert "resumed" not in first
        assert first["num_computed_tokens"] == returned["detail"]["num_computed_tokens"] > 0
        assert gone["detail"]["kv_blocks"] > 0 < returned["detail"]["kv_blocks"]
        assert of(records, "batch", engine_step=step)[0]["paging_on"]
    for name, tokens in outputs.items():
        steps = of(records, "step", req_id=name)
        assert tokens_of(records, name) == tokens
        assert sum(s["num_scheduled_tokens"] for s in steps) == 30 + len(tokens) - 1


def test_a_cached_prefix_shows_in_steps_requests_and_block_hashes(model, prompts, recording):
    shared, other = (prompts[2] * 2)[:40], prompts[5][:8]
    asked = [shared + other, shared + other[::-1], prompts[0]]
    continuous(model, asked, max_batch_tokens=64, num_blocks=64, page_size=16, max_requests_per_batch=1)
    records = read(recording)
    first = {s["req_id"]: s for s in of(records, "step", step=0)}
    served = sorted(first, key=lambda name: first[name]["engine_step"])  # transformers chooses the order
    requests = [merged(records, "request", req_id=name) for name in served]
    three = requests.pop(next(at for at, r in enumerate(requests) if r["effective_token_ids"] == prompts[0]))
    one, two = requests
    assert (one["prefix_cache_used"], two["prefix_cache_used"], three["prefix_cache_used"]) == (False, True, False)
    assert one["block_hashes"][:2] == two["block_hashes"][:2]
    assert one["block_hashes"][2:] != two["block_hashes"][2:]
    assert not set(three["block_hashes"]) & set(one["block_hashes"])
    cached = [first[r["req_id"]]["num_cached_tokens"] for r in (one, two, three)]
    assert cached == [0, 32, 0]
    assert all(s["num_computed_tokens"] == s["num_cached_tokens"] for s in first.values())
    assert all(s["plan"]["prefill.cached_prefix"] == str(s["num_cached_tokens"]) for s in first.values())


def test_without_prefix_sharing_no_block_hashes_are_claimed(model, prompts, recording):
    continuous(model, prompts[:2], max_batch_tokens=64, num_blocks=64, page_size=16, allow_block_sharing=False)
    records = read(recording)
    assert of(records, "request")
    assert not [r for r in of(records, "request") if "block_hashes" in r]


def test_children_of_a_fork_are_requests_of_their_own(model, prompts, recording):
    torch.manual_seed(1)
    continuous(model, prompts[:1], settings(do_sample=True, num_return_sequences=3, max_new_tokens=4),
               max_batch_tokens=64, num_blocks=64, page_size=16)  # fmt: skip
    records = read(recording)
    (fork,) = of(records, "event", what="fork")
    children, computed = fork["detail"]["children"], len(prompts[0]) - 1
    assert len(children) == 2
    assert fork["detail"]["num_computed_tokens"] == computed
    parent = merged(records, "request", req_id=fork["req_id"])
    for name in children:
        child, first = merged(records, "request", req_id=name), of(records, "step", req_id=name, step=0)[0]
        assert child["effective_token_ids"] == parent["effective_token_ids"] == prompts[0]
        assert (first["num_cached_tokens"], first["num_computed_tokens"]) == (computed, computed)
        assert child["output_tokens"] == 4 == len(tokens_of(records, name))


def test_times_of_a_request_are_in_order_and_waiting_is_counted(model, prompts, recording):
    outputs = continuous(model, prompts, max_batch_tokens=64, num_blocks=64, page_size=16, max_requests_per_batch=2)
    records = read(recording)
    batches = {b["engine_step"]: b for b in of(records, "batch")}
    waits = {}
    for name in outputs:
        request, first = merged(records, "request", req_id=name), of(records, "step", req_id=name, step=0)[0]
        assert request["arrival_ts"] <= request["admission_ts"] <= first["ts"] <= request["finish_ts"]
        assert first["queue_ms"] / 1e3 <= first["ts"] - request["admission_ts"] + 1e-3
        assert request["finish_reason"] == ("stop" if outputs[name][-1] == 0 else "length")
        waits[name] = first["queue_ms"]
    assert max(waits.values()) > min(waits.values()) >= 0
    assert batches[0]["queue_depth"] == len(prompts) - batches[0]["batch_size"]
    assert batches[max(batches)]["queue_depth"] == 0
    assert all(0 <= b["kv_blocks_free"] <= b["kv_blocks_total"] for b in batches.values())
    assert {b["headroom_source"] for b in batches.values()} == {"kv_pool"}
    assert min(b["headroom_mb"] for b in batches.values()) < max(b["headroom_mb"] for b in batches.values())


def test_an_eager_loop_says_so_in_every_batch(model, prompts, recording):
    continuous(model, prompts[:2], max_batch_tokens=64, num_blocks=64, page_size=16)
    records = read(recording)
    assert merged(records, "engine")["graph_mode"] == "eager"
    for batch in of(records, "batch"):
        assert batch["graph_mode"] == batch["plan"]["graph.mode"] == "eager"
        assert batch["shape"] == f"tokens={batch['batch_tokens']},rows={batch['batch_size']}"


def test_a_compiled_loop_is_padded_compiled_and_left_alone(model, prompts, recording, monkeypatch):
    ran = []

    def compiled(function, **_):
        def run(*arguments):
            ran.append("_sample" in vars(function.__self__))
            return function(*arguments)

        return run

    monkeypatch.setattr(model_runner, "torch", SimpleNamespace(**vars(torch) | {"compile": compiled}))
    outputs = continuous(model, prompts[:2], max_batch_tokens=64, num_blocks=64, page_size=16,
                         q_padding_interval_size=32, varlen_compile_config=CompileConfig())  # fmt: skip
    records = read(recording)
    assert merged(records, "engine")["graph_mode"] == "compiled"
    assert len(ran) > len(of(records, "batch")) > 0  # the warm-up is no batch
    assert not any(ran), "our code would be compiled too"
    for batch in of(records, "batch"):
        assert batch["graph_mode"] == "compiled"
        assert batch["padded_tokens"] % 32 == 0
        assert f",padded={batch['padded_tokens']}" in batch["shape"]
    assert [tokens_of(records, name) for name in outputs] == list(outputs.values())
    assert not [s for s in of(records, "step") if "logits_sha256" in s]


@pytest.fixture
def graphs(monkeypatch):
    """Give the model runner graphs on a CPU: what is captured is the call, and a replay is the call again."""
    counts = {"captured": 0, "replayed": 0}

    def capture(runner, forward, _stream, *arguments):
        def replay():
            counts["replayed"] += 1
            forward(*arguments)

        counts["captured"] += 1
        forward(*arguments)
        runner.inputs_and_outputs.set_graph(SimpleNamespace(replay=replay, reset=lambda: None))

    monkeypatch.setattr(initialization, "get_accelerator_graph_name", lambda: "a stand-in")
    monkeypatch.setattr(model_runner, "get_memory_pools", lambda: (None, None))
    monkeypatch.setattr(model_runner.ModelRunner, "_capture_graph", capture)
    return counts


def test_a_replayed_graph_is_named_with_its_key(model, prompts, recording, graphs):
    config = {"max_batch_tokens": 64, "num_blocks": 64, "page_size": 16, "use_cuda_graph": True,
              "use_async_batching": False, "q_padding_interval_size": 32}  # fmt: skip
    outputs = continuous(model, prompts[:3], **config)
    records = read(recording)
    assert merged(records, "engine")["graph_mode"] == "cpu_graph_full"
    keys = {b["shape"].partition("graph=")[2] for b in of(records, "batch")}
    assert all(key.split("x")[0] in ("32", "64") for key in keys)
    modes = [b["graph_mode"] for b in of(records, "batch")]
    assert modes.count("cpu_graph_full") == graphs["replayed"] > 0
    assert modes.count("eager") == len(modes) - graphs["replayed"] <= graphs["captured"]  # some in the warm-up
    assert [tokens_of(records, name) for name in outputs] == list(outputs.values())
    assert not [s for s in of(records, "step") if "logits_sha256" in s]


def run_by_hand(model, prompts, meanwhile, **generation):
    """Serve until `meanwhile(manager, ids)` returns; results are dropped."""
    config = ContinuousBatchingConfig(max_batch_tokens=64, num_blocks=64, page_size=16)
    manager = model.init_continuous_batching(
        generation_config=settings(eos_token_id=-1, **generation), continuous_batching_config=config
    )
    try:
        manager.start()
        meanwhile(manager, [manager.add_request(prompt, streaming=True) for prompt in prompts])
    finally:
        manager.stop(block=True)
        model.set_attn_implementation("sdpa")
    return manager


def test_a_cancelled_request_is_aborted_once(model, prompts, recording):
    def cancel_the_first(manager, ids):
        next(iter(manager.request_id_iter(ids[0])))
        manager.cancel_request(ids[0])
        end = time.monotonic() + 30
        while ids[0] in manager.batch_processor.scheduler.active_requests:
            assert time.monotonic() < end, "never cancelled"
            time.sleep(0.01)

    manager = run_by_hand(model, prompts[:1], cancel_the_first, max_new_tokens=900)
    records = read(recording)
    name = of(records, "request")[0]["req_id"]
    ends = [r for r in of(records, "request", req_id=name) if "finish_reason" in r]
    assert [r["finish_reason"] for r in ends] == ["abort"]
    assert ends[0]["output_tokens"] == len(tokens_of(records, name)) < 900
    assert [e["detail"]["num_output_tokens"] for e in of(records, "event", what="abort")] == [ends[0]["output_tokens"]]
    assert manager is not None


def test_requests_of_a_loop_that_fails_end_with_an_error(model, prompts, recording, monkeypatch):
    calls = []

    def fails_later(runner, *arguments, forward=model_runner.ModelRunner._forward_process_and_sample):
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("broken on purpose")
        return forward(runner, *arguments)

    monkeypatch.setattr(model_runner.ModelRunner, "_forward_process_and_sample", fails_later)
    run_by_hand(model, prompts[:2], lambda manager, ids: manager._generation_thread.join(30))
    records = read(recording)
    ends = [r for r in of(records, "request") if "finish_reason" in r]
    assert [r["finish_reason"] for r in ends] == ["error", "error"]
    assert [r["output_tokens"] for r in ends] == [len(tokens_of(records, r["req_id"])) for r in ends]


def test_a_loop_that_starts_again_goes_on_in_the_same_run(model, prompts, recording):
    config = ContinuousBatchingConfig(max_batch_tokens=64, num_blocks=64, page_size=16)
    try:
        for asked in (prompts[:2], prompts[2:3]):
            model.generate_batch(asked, generation_config=settings(max_new_tokens=3, eos_token_id=-1),
                                 continuous_batching_config=config, persistent_manager=True)  # fmt: skip
    finally:
        model.destroy_cached_continuous_batching_manager()
        model.set_attn_implementation("sdpa")
    records = read(recording)
    assert len({r["run_id"] for r in of(records, "batch")}) == 1
    assert [b["engine_step"] for b in of(records, "batch")] == list(range(len(of(records, "batch"))))
    assert [r["output_tokens"] for r in of(records, "request") if "output_tokens" in r] == [3, 3, 3]


def test_tokens_and_logits_are_those_of_an_unrecorded_loop(model, prompts, recording, monkeypatch):
    seen, sample = [], model_runner.ModelRunner._sample

    def keep(runner, scores, output_ids):
        seen.append(scores[0].clone())
        return sample(runner, scores, output_ids)

    monkeypatch.setattr(model_runner.ModelRunner, "_sample", keep)
    recorded = continuous(model, crowd(prompts), **SMALL)
    records, logits = read(recording), seen[:]
    seen.clear()
    assert continuous(model, crowd(prompts), **SMALL) == recorded
    assert len(seen) == len(logits) > 0
    assert all(torch.equal(one, other) for one, other in zip(seen, logits, strict=True))
    hashes = [s["logits_sha256"] for s in of(records, "step") if "logits_sha256" in s]
    assert hashes == [row_sha256(row.bfloat16()) for batch in logits for row in batch]


def test_a_hook_that_no_longer_fits_never_fails_the_program(model, prompts, tmp_path, monkeypatch):
    plain = scheduler.Scheduler.clear_cancelled_requests
    monkeypatch.setattr(scheduler.Scheduler, "clear_cancelled_requests", lambda self, *_: plain(self))
    stop = install(tmp_path)
    watched = scheduler.Scheduler.clear_cancelled_requests
    monkeypatch.setattr(scheduler.Scheduler, "clear_cancelled_requests", lambda self: watched(self, "a new argument"))
    try:
        recorded = continuous(model, prompts[:2], max_batch_tokens=64, num_blocks=64, page_size=16)
    finally:
        monkeypatch.undo()
        stop()
    assert all(len(tokens) for tokens in recorded.values())
    assert "recorder_fault" in "".join(path.read_text() for path in tmp_path.glob("*.jsonl"))
