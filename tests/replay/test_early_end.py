"""A trial that can no longer give what its exchange must ends there, and nothing is claimed of what it did not run."""

import json
from pathlib import Path

import jsonschema
import pytest
import torch
from replay_worlds import INCIDENT, REFERENCE, make_case

from replay.case import Arm
from replay.engines.transformers import Engine
from replay.prove import prove
from replay.trial import Trace, Treatment
from replay.workbench import Bench

SCHEMA = Path(__file__).parents[2] / "schemas" / "verdict.v1.json"
ALONE = {"batch.rows": "1", "batch.row": "0", "batch.left_pad": "0", "batch.mask_path": "implicit"}
TOKENS = 6


@pytest.fixture(scope="module")
def engine(model_path):
    case = make_case(
        token_ids=tuple(range(5, 30)), flip_index=TOKENS - 1, engine={"engine": "transformers", "dtype": "bfloat16"},
        incident=Arm("i", "i", ALONE), reference=Arm("r", "r", ALONE),
    )  # fmt: skip
    made = Engine(case, str(model_path))
    yield made
    made.stop()


@pytest.mark.parametrize(("other", "last"), [(0, 1), (1, 1), (3, 3), (TOKENS - 1, TOKENS - 1)])
def test_it_ends_at_other_logits_once_the_profiled_passes_have_run(engine, other, last):
    plan = ALONE | {"gemm.down.rows.decode": "4"}
    whole = engine.run(plan)
    wanted = [*whole.logits_sha256[:other], "other", *whole.logits_sha256[other + 1 :]]
    trace = engine.run(Treatment(plan, must_give=tuple(wanted)))
    assert trace.stopped == last
    assert trace.logits_sha256 == whole.logits_sha256[: last + 1]
    assert trace.observed == whole.observed == plan, "read back in full all the same"


def test_it_runs_to_its_end_where_it_gives_what_it_must(engine):
    whole = engine.run(ALONE)
    trace = engine.run(Treatment(ALONE, must_give=whole.logits_sha256))
    assert (trace.stopped, trace.logits_sha256) == (None, whole.logits_sha256)


@pytest.mark.parametrize("must_give", [(), ("other",)], ids=["whole", "ended"])
def test_the_profiler_leaves_nothing_behind(engine, must_give):
    before = torch.nn.functional.softmax, torch.nn.functional.scaled_dot_product_attention
    engine.run(Treatment(ALONE, must_give=must_give))
    assert before == (torch.nn.functional.softmax, torch.nn.functional.scaled_dot_product_attention)
    with torch.profiler.profile() as profiler:
        torch.ones(2).softmax(0)
    assert "aten::softmax" in {event.name for event in profiler.events()}


def world(_case, treatment):
    """Two of five factors make the bits of every token; a trial stops where its treatment says."""
    key = treatment.plan["gemm.k_split"], treatment.plan["cpu.threads"]
    bits = tuple(f"{key}{index}" for index in range(3))
    tokens = (7, 7, 9 if key == ("4", "2") else 8)
    wrong = treatment.must_give and treatment.must_give != bits
    end = 2 if wrong else 3
    return Trace(treatment.plan, tokens[:end], bits[:end], observed=dict(treatment.plan), stopped=1 if wrong else None)


def bench():
    extra = {"token.rule": "argmax", "decode.mode": "kv_cache", "gemm.route": "mm"}
    other = {"token.rule": "topk0", "decode.mode": "recompute", "gemm.route": "bmm"}
    arms = {
        "incident": Arm("i", "i", INCIDENT | extra, output_token_ids=(7, 7, 9)),
        "reference": Arm("r", "r", REFERENCE | other, output_token_ids=(7, 7, 8)),
    }
    return make_case(flip_index=2, **arms), world


def test_what_ended_early_is_filed_without_a_claim_whose_bits_it_has():
    case, run = bench()
    verdict = prove(case, [], run)
    assert (verdict.outcome, [one.factor for one in verdict.factors]) == ("proven", ["cpu.threads", "gemm.k_split"])
    ended = [trial for trial in verdict.trials if trial.stopped is not None]
    assert ended, "five factors: delta debugging, whose failing trials end early"
    assert {(trial.tokens_equal, trial.bits_equal) for trial in ended} == {(None, None)}
    jsonschema.validate(json.loads(verdict.to_json()), json.loads(SCHEMA.read_text()))


def test_what_ended_early_is_not_taken_for_the_whole_and_the_whole_serves_for_both():
    case, run = bench()
    tried = Bench(case, run)
    incident, reference = tried.plans()
    assert tried.settle(tried.trial("i", incident), tried.trial("r", reference))
    ended = Treatment(incident | {"cpu.threads": "3"}, must_give=("x", "y", "z"))
    assert tried.trial("ended", ended).stopped == 1
    assert tried.trial("whole", ended.plan).stopped is None
    assert tried.trial("again", ended).stopped is None
    assert tried.executed == 4


def test_an_exchange_goes_on_until_it_is_asked_no_more():
    case, run = bench()
    tried = Bench(case, run)
    assert tried.settle(*(tried.trial(name, plan) for name, plan in zip("ir", tried.plans(), strict=True)))
    assert tried.swap(["cpu.threads"], until="failed").status == "failed"
    assert tried.executed == 3, "one direction has settled it"
    assert tried.swap(["cpu.threads"]).status == "failed"
    assert tried.executed == 5, "both, to the flip"
