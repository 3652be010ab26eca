"""Which of the others carry the difference: searched in worlds where it is known."""

import dataclasses

import pytest
from replay_worlds import make_case

from replay.case import Arm, Asked, Window
from replay.prove import prove
from replay.trial import Trace

OTHERS = 6
ENGINE = {"engine": "vllm", "weights_sha256": "w", "config": {"scheduler_config": {"async_scheduling": False}}}
CFG = {"temperature": 0, "max_tokens": 2}


def window(others):
    requests = [Asked(f"n{at}", 0, 4, CFG, (1, 2, 3, 4)) for at in range(others)] + [Asked("i", 0, 3, CFG, (3, 1, 4))]
    rows = tuple((one.req_id, one.tokens, 0) for one in requests)
    return Window(0, "engine_start", tuple(requests), schedule=((0, rows),))


def case_of(contents=None):
    extra = {"company.contents": contents} if contents else {}
    plan = {"company.requests": "incident"} | extra
    incident = Arm("run-i", "i", plan, output_token_ids=(7, 9), window=window(OTHERS))
    plan = {"company.requests": "alone"} | extra
    reference = Arm("run-r", "i", plan, output_token_ids=(7, 8), window=window(0))
    return make_case(engine=ENGINE, incident=incident, reference=reference)


def present(value):
    """Return which of the others a value of company.requests lets in."""
    name, _, kept = value.partition("/")
    if kept:
        return frozenset(map(int, kept.split(",")))
    return frozenset(range(OTHERS)) if name == "incident" else frozenset()


class Crowd:
    """Gives bits and a token by who is there; `says`: how much the others' contents matter."""

    def __init__(self, bits, token, says=lambda contents: contents, departs=None):
        self.bits, self.token, self.says, self.departs, self.ran = bits, token, says, departs, []

    def __call__(self, _case, treatment):
        if treatment.history is not None:
            return Trace(treatment.plan, refused="no")
        value = treatment.plan["company.requests"]
        who = present(value)
        self.ran.append(who)
        if self.departs == value:
            return Trace(
                treatment.plan, observed=dict(treatment.plan), departure="engine step 3 was composed otherwise"
            )
        bits = (self.bits(who), self.says(treatment.plan.get("company.contents")), treatment.plan.get("dtype.weights"))
        return Trace(
            treatment.plan, (7, self.token(who)), ("prefix", str(bits)), observed=dict(treatment.plan),
            details={"rows": len(who) + 1, "launch_tokens": len(who) + 1},
        )  # fmt: skip


def two_and_four(who):
    return {2, 4} <= who


def test_the_pair_that_carries_the_bits_is_found_and_without_it_the_reference_comes_back():
    world = Crowd(two_and_four, lambda who: 9 if two_and_four(who) else 8)
    verdict = prove(case_of(), [], world, weights_sha256="w")
    assert (verdict.outcome, [one.factor for one in verdict.factors]) == ("proven", ["company.requests"])
    found = verdict.neighbours
    assert found is not None
    assert found.fewest == ("n2", "n4")
    assert (found.of, found.carry, found.minimal, found.removed) == (OTHERS, "bits", True, "reference")
    assert "all: 7 and 7, only 2: 3 and 3" in found.detail


def test_one_that_others_could_replace_is_no_culprit():
    world = Crowd(bool, lambda who: 9 if who else 8)
    found = prove(case_of(), [], world, weights_sha256="w").neighbours
    assert found is not None
    assert len(found.fewest) == 1
    assert found.removed == "incident", "somebody else carries it as well"


def test_where_the_bits_need_all_the_token_may_need_fewer():
    world = Crowd(len, lambda who: 9 if 3 in who else 8)
    found = prove(case_of(), [], world, weights_sha256="w").neighbours
    assert found is not None
    assert (found.fewest, found.carry, found.removed) == (("n3",), "token", "neither")


@pytest.mark.parametrize("matters", [True, False])
def test_whether_it_matters_what_they_say_is_tried(matters):
    says = (lambda contents: contents) if matters else (lambda _contents: None)
    found = prove(case_of(), [], Crowd(bool, lambda who: 9 if who else 8, says), weights_sha256="w").neighbours
    assert found is not None
    assert (found.contents, found.contents_matter) == ("recorded", matters)


def test_withheld_ids_are_said_to_be_random():
    found = prove(case_of("random"), [], Crowd(bool, lambda who: 9 if who else 8), weights_sha256="w").neighbours
    assert found is not None
    assert (found.contents, found.contents_matter) == ("random", None)


def test_a_schedule_that_was_left_is_not_reproduced_and_names_the_step():
    verdict = prove(case_of(), [], Crowd(bool, lambda who: 9 if who else 8, departs="incident"), weights_sha256="w")
    assert verdict.outcome == "not_reproduced"
    assert "engine step 3 was composed otherwise" in verdict.claim
    assert verdict.neighbours is None


def test_a_mixture_of_experts_is_warned_of():
    case = case_of()
    config = {"parallel_config": {"is_moe_model": True}} | ENGINE["config"]
    world = Crowd(bool, lambda who: 9 if who else 8)
    verdict = prove(dataclasses.replace(case, engine=ENGINE | {"config": config}), [], world, weights_sha256="w")
    assert any("mixture of experts" in limit for limit in verdict.limits)
    assert not any("mixture of experts" in limit for limit in prove(case, [], world, weights_sha256="w").limits)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"scheduler_config": {"async_scheduling": True}}, "async scheduling"),
        ({"speculative_config": {"method": "ngram"}}, "speculative decoding"),
        ({"lora_config": {"max_loras": 1}}, "LoRA"),
        ({"kv_transfer_config": {"kv_connector": "x"}}, "KV connector"),
        ({"parallel_config": {"tensor_parallel_size": 2}}, "tensor_parallel_size=2"),
        ({}, "no resolved configuration"),
    ],
)
def test_what_is_not_covered_is_refused_before_anything_runs(config, says):
    world = Crowd(bool, lambda who: 9)
    verdict = prove(dataclasses.replace(case_of(), engine=ENGINE | {"config": config}), [], world, weights_sha256="w")
    assert verdict.outcome == "inconclusive"
    assert says in verdict.claim
    assert world.ran == []


def test_structured_output_and_the_second_runner_are_refused():
    world = Crowd(bool, lambda who: 9)
    shaped = dataclasses.replace(case_of(), decode_cfg=CFG | {"structured_outputs": {"json": "{}"}})
    assert "structured_outputs" in prove(shaped, [], world, weights_sha256="w").claim
    second = dataclasses.replace(case_of(), engine=ENGINE | {"environment": {"VLLM_USE_V2_MODEL_RUNNER": "1"}})
    assert "V2 model runner" in prove(second, [], world, weights_sha256="w").claim
