"""Requests of transformers' continuous batching, recorded as they ran and run again by their schedule, bit for bit.

Which tokens flip depends on the CPU; that every launch can be put in force again does not.
"""

import json
from dataclasses import replace
from itertools import pairwise
from random import Random
from types import SimpleNamespace

import pytest
import torch
from from_log import case as case_of
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import offloading_manager

from forensics.schedules import with_schedules
from replay.case import Arm
from replay.children import Children
from replay.doctor import doctor_case
from replay.engines.transformers import Engine, request_ids
from replay.exchange import pin_not_taken
from replay.prove import prove
from replay.trial import Treatment, shared_start

TOKENS = 12
ROOMY = {"max_batch_tokens": 64, "num_blocks": 64, "page_size": 16}
CHUNKED = ROOMY | {"max_batch_tokens": 24}
CROWDED = {"max_batch_tokens": 256, "num_blocks": 7, "page_size": 32}
ONE_BY_ONE = ROOMY | {"max_requests_per_batch": 1}

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def recorded(model, recording):
    """Return a function that runs prompts alone and by continuous batching; it gives a case for each of them."""

    def run(prompts, **config):
        greedy = GenerationConfig(max_new_tokens=TOKENS, do_sample=False, eos_token_id=-1, pad_token_id=0)
        for row, ids in enumerate(prompts):
            with request_ids([f"alone-{row}"]):
                alone = torch.tensor([ids])
                model.generate(alone, attention_mask=torch.ones_like(alone), generation_config=greedy)
        try:
            model.generate_batch(
                prompts, generation_config=greedy, continuous_batching_config=ContinuousBatchingConfig(**config)
            )
        finally:
            model.set_attn_implementation("sdpa")
        records = recording()
        applied = {json.dumps(r["decode_cfg_applied"], sort_keys=True) for r in records if "decode_cfg_applied" in r}
        assert len(applied) == 1, "one request is one request, however it is batched"
        cases = [case_of(records, f"req_{row}", f"alone-{row}") for row in range(len(prompts))]
        arms = [with_schedules(one.incident, one.reference, len(one.token_ids), one.flip_index) for one in cases]
        return [replace(one, incident=i, reference=r) for one, (i, r) in zip(cases, arms, strict=True)]

    return run


@pytest.fixture
def run(model_path):
    """Return what gives the trace of a treatment whose pins have all taken. Starts once recording is over."""
    engines = []

    def trial(case, treatment):
        if not engines:
            engines.append(Engine(None, str(model_path)))
        engines[0].case = case
        trace = engines[0].run(treatment)
        assert trace.missing is None, trace.missing
        assert pin_not_taken(trace) is None
        return trace

    yield trial
    if engines:
        engines[0].stop()


def assert_as_recorded(run, case):
    for arm in (case.incident, case.reference):
        trace = run(case, arm.plan)
        assert len(trace.tokens) == case.horizon()
        assert list(trace.logits_sha256) == [step.logits_sha256 for step in arm.steps]


@pytest.mark.parametrize("config", [ROOMY, CHUNKED], ids=["whole prompts", "prompts in pieces"])
def test_every_request_comes_out_as_recorded(prompts, recorded, run, config):
    cases = recorded(prompts, **config)
    for case in cases:
        assert_as_recorded(run, case)
        assert case.incident.plan["batch.schedule"] == "incident"
    assert any("," in case.incident.plan.get("prefill.chunks", "") for case in cases)


def test_a_request_that_was_put_out_and_computed_again_comes_out_as_recorded(prompts, recorded, run):
    cases = recorded([(prompt * 4)[:30] for prompt in prompts[:6]], **CROWDED)
    lost = [case for case in cases if sum(row[2] == 0 for _, rows in case.incident.schedule for row in rows
                                          if row[0] == case.incident.req_id) > 1]  # fmt: skip
    assert lost
    for case in lost:
        assert_as_recorded(run, case)


def test_a_request_whose_cache_went_to_host_memory_and_came_back_comes_out_as_recorded(
    prompts, recorded, run, monkeypatch
):
    empty = torch.empty  # a CPU build of torch has no pinned memory
    stand_in = vars(torch) | {"empty": lambda *sizes, pin_memory=None, **options: empty(*sizes, **options)}
    monkeypatch.setattr(offloading_manager, "torch", SimpleNamespace(**stand_in))
    cases = recorded([(prompt * 4)[:30] for prompt in prompts[:6]], cpu_offload_space=0.01, **CROWDED)
    monkeypatch.undo()
    away = [
        case for case in cases if any(late - early > 1 for (early, _), (late, _) in pairwise(case.incident.schedule))
    ]
    assert away
    for case in away:
        assert_as_recorded(run, case)


def test_a_cached_prefix_is_computed_first_and_read_back(prompts, recorded, run):
    shared, other = (prompts[2] * 2)[:40], prompts[5][:8]
    cases = recorded([shared + other, shared + other[::-1], prompts[0]], **ONE_BY_ONE)
    (cached,) = [case for case in cases if "prefill.cached_prefix" in case.incident.plan]
    assert cached.incident.plan["prefill.cached_prefix"] == "32"
    for case in cases:
        assert_as_recorded(run, case)
    whole = run(cached, cached.incident.plan | {"prefill.cached_prefix": "0"})
    assert whole.observed["prefill.cached_prefix"] == "0"


@pytest.mark.parametrize("config", [ROOMY, CHUNKED], ids=["whole prompts", "prompts in pieces"])
def test_the_requests_own_attention_in_company_is_that_of_the_request_alone(prompts, recorded, run, config):
    """Where no product depends on how many rows it has, company acts through packed attention and chunks only."""
    case = recorded(prompts, **config)[0]
    company = case.incident.plan | {"attention.backend": "math"}
    traces = [run(case, plan) for plan in (company, company | {"batch.schedule": "alone"})]
    assert [trace.observed["attention.backend"] for trace in traces] == ["math", "math"]
    assert len(traces[0].details["attention_operators"]) > len(traces[1].details["attention_operators"])
    layer = torch.nn.Linear(64, 64, dtype=torch.bfloat16)
    x = torch.randn(64, 64, dtype=torch.bfloat16)
    if all(torch.equal(layer(x[:rows])[:1], layer(x[:1])) for rows in range(2, 65)):
        assert traces[0].logits_sha256 == traces[1].logits_sha256


def test_an_arm_with_a_known_cause_is_proven_and_its_company_is_refuted(prompts, recorded, run, model_path):
    """Split products are the cause by construction; company is innocent where it alone changes no bit, as checked."""
    draw, source = Random(3), recorded(prompts, **ROOMY)[5]
    company = {"batch.schedule": "incident", "attention.backend": "flash", "cpu.threads": "1"}
    alone = company | {"batch.schedule": "alone"}
    plans = [company | {"gemm.k_split": "3"}, alone | {"gemm.k_split": "1"}]
    for _ in range(40):
        ids = (0, *(draw.randrange(2, 1024) for _ in source.token_ids[1:]))
        case = replace(source, token_ids=ids, flip_index=None)
        pair = [run(case, plan) for plan in plans]
        flip = shared_start(pair[0].tokens, pair[1].tokens)
        if flip < TOKENS:
            break
    else:
        pytest.fail("40 prompts and no flip by split products")
    swapped = [run(case, alone | {"gemm.k_split": "3"}), run(case, company | {"gemm.k_split": "1"})]
    innocent = all(one.same_bits(other, flip + 1) for one, other in zip(pair, swapped, strict=True))
    arms = [Arm(name, source.incident.req_id, plan, output_token_ids=trace.tokens, schedule=source.incident.schedule)
            for name, plan, trace in zip("ir", plans, pair, strict=True)]  # fmt: skip
    with Children(model_path) as children:
        verdict = prove(replace(case, incident=arms[0], reference=arms[1], flip_index=flip), [], children.run)
    assert verdict.outcome == "proven", verdict.claim
    assert verdict.minimal
    found = [one.factor for one in verdict.factors]
    assert found == ["gemm.k_split"] if innocent else "gemm.k_split" in found
    assert verdict.refuted == (("batch.schedule",) if innocent else ())


def test_keys_and_values_go_between_pages_and_a_cache_of_one_request(prompts, recorded, run):
    case = recorded(prompts, **CHUNKED)[0]
    packed = case.incident.plan
    assert "," in packed["prefill.chunks"]
    alone = case.reference.plan | {"prefill.chunks": packed["prefill.chunks"]}
    for plan in (packed, alone):
        own = run(case, Treatment(plan, history=plan, switch=4))
        assert own.logits_sha256 == run(case, plan).logits_sha256
    crossed = run(case, Treatment(alone, history=packed, switch=4))
    again = run(case, Treatment(packed, history=alone, switch=4))
    assert crossed.logits_sha256[:4] == run(case, alone).logits_sha256[:4]
    assert again.logits_sha256[:4] == run(case, packed).logits_sha256[:4]


def test_in_fp32_company_changes_no_token(prompts, recorded, run):
    for case in recorded(prompts[:4], **ROOMY):
        pair = [run(case, arm.plan | {"dtype.weights": "float32"}) for arm in (case.incident, case.reference)]
        assert pair[0].tokens == pair[1].tokens


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch.rows": "4"}, "batch.rows: batch.schedule=incident settles the launches"),
        ({"batch.left_pad": "4", "batch.mask_path": "explicit"}, "settles the launches"),
        ({"batch.neighbours": "recorded"}, "batch.neighbours"),
        ({"decode.mode": "recompute"}, "decode.mode"),
        ({"gemm.q.rows": "64"}, "gemm.<role>.rows"),
        ({"token.rule": "topk0"}, "topk0"),
        ({"attention.backend": "eager"}, "no eager attention"),
        ({"graph.mode": "cuda_graph_full"}, "not on transformers"),
        ({"batch.schedule": "reference"}, "no launches of that arm"),
    ],
)
def test_what_a_schedule_does_not_have_is_refused(changes, says, model_path):
    engine = Engine(doctor_case(), str(model_path))
    try:
        trace = engine.run({"batch.schedule": "incident", "attention.backend": "paged"} | changes)
    finally:
        engine.stop()
    assert says in (trace.refused or "")


def test_a_decode_configuration_that_is_not_applied_is_refused(model_path):
    engine = Engine(replace(doctor_case(), decode_cfg={"repetition_penalty": 1.3}), str(model_path))
    try:
        trace = engine.run({"batch.schedule": "incident", "attention.backend": "paged"})
    finally:
        engine.stop()
    assert "repetition_penalty" in (trace.refused or "")


def test_a_schedule_of_a_whole_fleet_is_refused_before_it_takes_memory(model_path):
    case = doctor_case()
    crowd = tuple((step, (*rows, ("huge", 1, 1 << 20))) for step, rows in case.incident.schedule)
    engine = Engine(replace(case, incident=replace(case.incident, schedule=crowd)), str(model_path))
    try:
        trace = engine.run({"batch.schedule": "incident", "attention.backend": "paged"})
    finally:
        engine.stop()
    assert "keys and values of 1048" in (trace.refused or "")
