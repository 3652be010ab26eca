"""What is claimed from trials. The trials are made up here: a world is a rule from plan to bits and token."""

import copy
import itertools
import json
import threading
from pathlib import Path

import jsonschema
import pytest
from replay_worlds import INCIDENT, REFERENCE, World, both_needed, by, flaky, make_case

from replay.case import Arm, TokenStep
from replay.casefile import case_from
from replay.catalogue import PinError
from replay.prove import OUTCOMES, prove
from replay.record import token_ids_sha256
from replay.trial import Trace, TrialError

SCHEMAS = Path(__file__).parents[2] / "schemas"

CASES = {
    "proven": (make_case(), ["gemm.k_split=1"], World(by("gemm.k_split"))),
    "sufficient": (make_case(), ["gemm.k_split=1"], both_needed(lambda plan: plan["gemm.k_split"] == "4")),
    "necessary": (make_case(), ["gemm.k_split=1"], both_needed(lambda plan: plan == INCIDENT)),
    "interaction": (make_case(), ["gemm.k_split=1"], World(by("gemm.k_split", "cpu.threads"))),
    "refuted": (make_case(), ["gemm.k_split=1"], World(by("cpu.threads"))),
    "race": (make_case(), [], flaky()),
    "input_differs": (
        make_case(incident=Arm("run-i", "i", INCIDENT, effective_token_ids_sha256=token_ids_sha256((3, 1, 5)))), [],
        World(by("gemm.k_split")),
    ),
    "weights_differ": (make_case(), [], World(by("gemm.k_split"))),
    "environment_differs": (
        make_case(), [], World(lambda plan: "x", host={"torch": {"device": "cpu B", "num_threads": 1}}),
    ),
    "no_divergence": (
        make_case(flip_index=None, reference=Arm("s", "alone", REFERENCE, synthetic=True)), [],
        World(lambda plan: "i"),
    ),
    "not_reproduced": (make_case(), [], World(lambda plan: "x")),
    "not_pinned": (
        make_case(), ["gemm.k_split=1"],
        World(by("gemm.k_split"), refuse=lambda plan: "cannot" if plan not in (INCIDENT, REFERENCE) else None),
    ),
    "inconclusive": (make_case(engine={"engine": "vllm"}), [], World(by("gemm.k_split"))),
}  # fmt: skip


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_every_outcome_is_reached_and_the_document_satisfies_its_schema(outcome):
    case, pins, world = CASES[outcome]
    verdict = prove(case, pins, world, weights_sha256="other" if outcome == "weights_differ" else "w")
    assert verdict.outcome == outcome, verdict.claim
    document = json.loads(verdict.to_json())
    jsonschema.validate(document, json.loads((SCHEMAS / "verdict.v1.json").read_text()))
    assert set(document) == set(json.loads((SCHEMAS / "verdict.v1.json").read_text())["properties"])


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_trials_side_by_side_give_the_verdict_of_trials_one_by_one(outcome):
    case, pins, world = CASES[outcome]
    weights = "other" if outcome == "weights_differ" else "w"
    one, two = (prove(case, pins, copy.deepcopy(world), weights_sha256=weights, jobs=jobs) for jobs in (1, 2))
    assert [trial.name for trial in one.trials] == [trial.name for trial in two.trials]
    assert (one.outcome, one.claim, one.factors, one.repeats) == (two.outcome, two.claim, two.factors, two.repeats)


def test_two_jobs_run_two_trials_at_once_and_never_three():
    world, meeting, inside, most = World(by("gemm.k_split")), threading.Barrier(2), [], []

    def run(case, treatment):
        inside.append(treatment)
        most.append(len(inside))
        if treatment.history is None and treatment.plan in (INCIDENT, REFERENCE) and not treatment.repeat:
            meeting.wait(10)  # a trial that runs by itself is never met
        trace = world(case, treatment)
        inside.remove(treatment)
        return trace

    assert prove(make_case(), [], run, weights_sha256="w", jobs=2).outcome == "proven"
    assert max(most) == 2


def test_a_fault_of_one_of_two_trials_ends_the_proof():
    def run(case, treatment):
        if treatment.plan == REFERENCE:
            raise TrialError("no such file", 3)
        return World(by("gemm.k_split"))(case, treatment)

    with pytest.raises(TrialError, match="no such file"):
        prove(make_case(), [], run, weights_sha256="w", jobs=2)


@pytest.mark.parametrize(("here", "said"), [("other", True), ("t", False), (None, False)])
def test_another_tokenizer_is_said_and_stops_nothing(here, said):
    case = make_case(engine=make_case().engine | {"tokenizer_sha256": "t"})
    verdict = prove(case, [], CASES["proven"][2], weights_sha256="w", tokenizer_sha256=here)
    assert verdict.outcome == "proven"
    assert any("tokenizer" in limit for limit in verdict.limits) == said


def test_a_case_survives_its_document_form_and_satisfies_its_schema():
    case = make_case(notes=("n",))
    document = json.loads(case.to_json())
    jsonschema.validate(document, json.loads((SCHEMAS / "case.v1.json").read_text()))
    assert set(document) == set(json.loads((SCHEMAS / "case.v1.json").read_text())["properties"])
    assert case_from(document, "here") == case


def test_tokens_without_bits_are_never_proven_and_come_with_their_null():
    case, pins, world = CASES["sufficient"]
    verdict = prove(case, pins, world)
    assert verdict.null is not None
    assert verdict.null.tried == len(verdict.null.pins) == 0 or verdict.null.pins
    assert "irrelevant pins" in verdict.claim


def test_the_null_counts_irrelevant_pins_that_turn_the_token():
    arms = {
        "incident": INCIDENT | {"attention.backend": "flash"},
        "reference": REFERENCE | {"attention.backend": "flash"},
    }
    case = make_case(incident=Arm("a", "i", arms["incident"], output_token_ids=(7, 9)),
                     reference=Arm("b", "r", arms["reference"], output_token_ids=(7, 8)))  # fmt: skip

    def token(plan):
        turned = plan["attention.backend"] == "math"
        return 9 if (plan["gemm.k_split"] == "4") != turned else 8

    verdict = prove(case, ["gemm.k_split=1"], World(by("gemm.k_split", "cpu.threads"), token))
    assert verdict.outcome == "sufficient"
    assert (verdict.null.tried, verdict.null.restored, verdict.null.induced) == (1, 1, 1)


def test_search_finds_the_smallest_set_and_tries_every_smaller_one():
    incident = {"gemm.k_split": "4", "cpu.threads": "2", "attention.backend": "math"}
    reference = {"gemm.k_split": "1", "cpu.threads": "1", "attention.backend": "flash"}
    case = make_case(incident=Arm("a", "i", incident, output_token_ids=(7, 9)),
                     reference=Arm("b", "r", reference, output_token_ids=(7, 8)))  # fmt: skip
    world = World(by("gemm.k_split", "cpu.threads"))
    verdict = prove(case, [], world)
    assert verdict.outcome == "proven"
    assert [factor.factor for factor in verdict.factors] == ["cpu.threads", "gemm.k_split"]
    assert verdict.minimal
    for name in incident:
        assert incident | {name: reference[name]} in world.kept
        assert reference | {name: incident[name]} in world.kept


def test_above_four_factors_the_set_is_found_by_delta_debugging():
    extra = {f"gemm.{role}.rows": ("8", "1") for role in "qkvo"}
    incident = INCIDENT | {name: pair[0] for name, pair in extra.items()}
    reference = REFERENCE | {name: pair[1] for name, pair in extra.items()}
    case = make_case(incident=Arm("a", "i", incident, output_token_ids=(7, 9)),
                     reference=Arm("b", "r", reference, output_token_ids=(7, 8)))  # fmt: skip
    verdict = prove(case, [], World(by("gemm.k_split")))
    assert [factor.factor for factor in verdict.factors] == ["gemm.k_split"]
    assert verdict.minimal
    assert any("delta debugging" in limit for limit in verdict.limits)


def test_a_pin_that_did_not_take_is_not_proof():
    world = World(by("gemm.k_split"), observed=lambda plan: plan | {"gemm.k_split": "4"})
    verdict = prove(make_case(), ["gemm.k_split=1"], world)
    assert verdict.outcome == "not_pinned"
    assert "1 was asked for, 4 was read back" in verdict.claim


def test_a_pin_that_nobody_read_back_is_not_proof():
    def unseen(plan):
        return {name: value for name, value in plan.items() if plan in (INCIDENT, REFERENCE) or name != "gemm.k_split"}

    assert prove(make_case(), ["gemm.k_split=1"], World(by("gemm.k_split"), observed=unseen)).outcome == "not_pinned"


def test_a_factor_that_both_arms_share_is_refuted_in_plain_words():
    shared = make_case(incident=Arm("a", "i", INCIDENT | {"cpu.threads": "1"}, output_token_ids=(7, 9)))
    verdict = prove(shared, ["cpu.threads=1"], World(by("gemm.k_split")))
    assert verdict.outcome == "refuted"
    assert "same value in both arms" in verdict.claim


def test_a_value_of_neither_arm_runs_as_an_observation_and_proves_nothing_by_itself():
    world = World(by("gemm.k_split"))
    verdict = prove(make_case(), ["gemm.k_split=2"], world)
    assert verdict.outcome == "proven"
    assert INCIDENT | {"gemm.k_split": "2"} in world.kept
    assert any("the value of neither arm" in limit for limit in verdict.limits)
    assert any(limit.startswith("with ") and "gives neither arm's tokens" in limit for limit in verdict.limits)


@pytest.mark.parametrize("pin", ["incident", "reference"])
def test_an_arm_as_pin_means_every_differing_factor(pin):
    verdict = prove(make_case(), [pin], World(by("gemm.k_split")))
    assert verdict.outcome == "proven"
    assert {factor.factor for factor in verdict.factors} == set(INCIDENT)
    assert not verdict.minimal


def test_no_recorded_difference_is_a_missing_field_and_not_a_cause():
    same = make_case(reference=Arm("b", "r", INCIDENT, synthetic=True), flip_index=None)
    tokens = itertools.cycle([9, 8])
    verdict = prove(same, [], World(lambda plan: "b", lambda plan: next(tokens)))
    assert verdict.outcome in ("race", "inconclusive")


@pytest.mark.parametrize(
    ("step", "found"),
    [
        (TokenStep(1, 9, (), (2.0, 1.0)), "proven"),
        (TokenStep(1, 9, (), (2.5, 1.0)), "not_reproduced"),
        (TokenStep(1, 9, (), (), "i"), "proven"),
        (TokenStep(1, 9, (), (), "another"), "not_reproduced"),
    ],
)
def test_the_incident_must_come_out_in_logits_too_where_they_are_on_record(step, found):
    case = make_case(incident=Arm("a", "i", INCIDENT, steps=(step,)))
    assert prove(case, ["gemm.k_split=1"], World(by("gemm.k_split"))).outcome == found


def test_without_tokens_and_logits_on_record_nothing_is_claimed():
    case = make_case(incident=Arm("a", "i", INCIDENT))
    verdict = prove(case, ["gemm.k_split=1"], World(by("gemm.k_split")))
    assert verdict.outcome == "inconclusive"
    assert "neither tokens nor logits" in verdict.claim


def test_the_changed_fact_of_the_machine_is_named():
    case, pins, world = CASES["environment_differs"]
    claim = prove(case, pins, world).claim
    assert "device cpu A then, cpu B here" in claim
    assert "recorded (token 1 is " in claim, "the first difference is named too"


def test_another_machine_that_gives_the_recorded_output_is_a_limit():
    _, _, elsewhere = CASES["environment_differs"]
    verdict = prove(make_case(), ["gemm.k_split=1"], World(by("gemm.k_split"), host=elsewhere.host))
    assert verdict.outcome == "proven"
    assert [one for one in verdict.limits if "the recorded output came out: device cpu A then, cpu B here" in one]
    here = prove(make_case(), ["gemm.k_split=1"], World(by("gemm.k_split")))
    assert not [one for one in here.limits if "not as on record" in one]


def test_a_synthetic_reference_is_labelled():
    case = make_case(flip_index=None, reference=Arm("s", "alone", REFERENCE, synthetic=True))
    verdict = prove(case, [], World(by("gemm.k_split")))
    assert verdict.outcome == "proven"
    assert verdict.reference["synthetic"]
    assert any("synthetic" in limit for limit in verdict.limits)
    assert verdict.flip == {"token_index": 1, "incident_token": 9, "reference_token": 8}


def test_a_smaller_launch_takes_the_request_to_its_last_row():
    big = {"batch.rows": "8", "batch.row": "3"}
    small = {"batch.rows": "1", "batch.row": "0"}
    case = make_case(incident=Arm("a", "i", big, output_token_ids=(7, 9)),
                     reference=Arm("b", "r", small, output_token_ids=(7, 8)))  # fmt: skip
    world = World(lambda plan: "i" if plan["batch.rows"] == "8" else "r")
    assert prove(case, ["batch.rows=1"], world).outcome == "proven"
    assert {"batch.rows": "1", "batch.row": "0"} in world.kept[3:]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gemm.ksplit=2", "did you mean gemm.k_split"),
        ("gemm.k_split=0", "an integer, 1 or more"),
        ("batch.mask_path=maybe", "implicit, explicit"),
        ("nonsense", "FACTOR=VALUE"),
    ],
)
def test_a_wrong_pin_is_answered_with_what_would_be_right(text, says):
    with pytest.raises(PinError, match=says):
        prove(make_case(), [text], World(by("gemm.k_split")))


def test_exit_codes_are_those_of_diff():
    codes = {outcome: prove(*CASES[outcome][:2], CASES[outcome][2], weights_sha256="w").exit_code()
             for outcome in ("proven", "refuted", "no_divergence", "not_reproduced")}  # fmt: skip
    assert codes == {"proven": 1, "refuted": 1, "no_divergence": 0, "not_reproduced": 4}


BATCH = {"batch.rows": "8", "batch.row": "3", "batch.left_pad": "5", "batch.mask_path": "explicit"}
ALONE = {"batch.rows": "1", "batch.row": "0", "batch.left_pad": "0", "batch.mask_path": "implicit"}


def batch_case():
    return make_case(incident=Arm("a", "i", BATCH, output_token_ids=(7, 9)),
                     reference=Arm("b", "r", ALONE, output_token_ids=(7, 8)))  # fmt: skip


def impossible(plan):
    if int(plan["batch.row"]) >= int(plan["batch.rows"]):
        return "no such row"
    return "needs a mask" if plan["batch.mask_path"] == "implicit" and plan["batch.left_pad"] != "0" else None


def test_rows_are_refuted_where_padding_does_it_without_them():
    world = World(lambda plan: "i" if plan["batch.left_pad"] == "5" else "r", refuse=impossible)
    assert prove(batch_case(), ["batch.rows=1"], world).outcome == "refuted"


def test_a_trial_that_could_not_run_is_no_evidence_for_an_interaction():
    def refuse(plan):
        return impossible(plan) or ("no" if plan["batch.left_pad"] == "0" and plan["batch.row"] == "3" else None)

    refused_rest = World(lambda plan: {str(BATCH): "i", str(ALONE): "r"}.get(str(plan), str(plan)), refuse=refuse)
    verdict = prove(batch_case(), ["batch.rows=1"], refused_rest)
    assert verdict.outcome == "not_pinned"
    assert "could not be exchanged between the arms: no" in verdict.claim


def test_the_rest_that_could_not_be_tried_is_no_interaction():
    """The reference names no position, so the rest alone is another plan than the exchange of the named factor."""
    batch = {"batch.rows": "8", "batch.row": "3", "batch.left_pad": "5"}
    alone = {"batch.rows": "1", "batch.left_pad": "0"}

    def key(plan):
        return frozenset(plan.items())

    results = {key(batch): "i", key(alone): "r", key(batch | {"batch.left_pad": "0"}): "r"}

    def bits(plan):
        return results.get(key(plan), str(plan))

    def refuse(plan):
        return "no" if plan == {"batch.rows": "1", "batch.left_pad": "5"} else None

    case = make_case(incident=Arm("a", "i", batch, output_token_ids=(7, 9)),
                     reference=Arm("b", "r", alone, output_token_ids=(7, 8)))  # fmt: skip
    verdict = prove(case, ["batch.rows=1"], World(bits, refuse=refuse))
    assert verdict.outcome == "inconclusive"
    assert "batch.left_pad do without batch.rows could not be tried: no" in verdict.claim


def test_a_proven_set_names_the_factors_that_it_does_not_need():
    world = World(lambda plan: "i" if plan["batch.left_pad"] == "5" else "r", refuse=impossible)
    verdict = prove(batch_case(), ["batch.rows=1", "batch.left_pad=0", "batch.mask_path=implicit"], world)
    assert verdict.outcome == "proven"
    assert not verdict.minimal
    assert any("batch.rows is not needed" in limit for limit in verdict.limits)


def test_a_factor_on_record_in_neither_arm_is_a_gap():
    verdict = prove(make_case(), ["gemm.backend=cublas"], World(by("gemm.k_split")))
    assert verdict.outcome == "inconclusive"
    assert "not on record for either arm" in verdict.claim


@pytest.mark.parametrize("arm", ["i", "r"])
def test_bits_in_one_direction_only_are_not_proof(arm):
    mixed = {"i": REFERENCE | {"gemm.k_split": "4"}, "r": INCIDENT | {"gemm.k_split": "1"}}

    def bits(plan):
        return "i" if plan == INCIDENT else "r" if plan == REFERENCE else arm if plan == mixed[arm] else str(plan)

    verdict = prove(make_case(), ["gemm.k_split=1"], World(bits))
    assert verdict.outcome == {"i": "sufficient", "r": "necessary"}[arm]


def test_a_smaller_set_that_could_not_run_is_not_ruled_out():
    """Left padding decides, but cannot be induced without the mask: the pair is proven, minimality is not claimed."""

    def impossible(plan):
        return "needs a mask" if plan["batch.left_pad"] != "0" and plan["batch.mask_path"] == "implicit" else None

    padded = {"batch.left_pad": "5", "batch.mask_path": "explicit"}
    plain = {"batch.left_pad": "0", "batch.mask_path": "implicit"}
    case = make_case(
        incident=Arm("a", "i", padded, output_token_ids=(7, 9)), reference=Arm("b", "r", plain, output_token_ids=(7, 8))
    )
    world = World(lambda plan: "i" if plan["batch.left_pad"] == "5" else "r", refuse=impossible)
    verdict = prove(case, [], world)
    assert verdict.outcome == "proven"
    assert {factor.factor for factor in verdict.factors} == set(padded)
    assert not verdict.minimal
    assert "not ruled out: batch.left_pad" in verdict.claim


def test_a_smaller_set_that_ran_and_failed_is_ruled_out():
    verdict = prove(make_case(), [], both_needed(lambda plan: plan == INCIDENT))
    assert verdict.outcome == "proven"
    assert verdict.minimal
    assert "no smaller set does" in verdict.claim
    assert any("every factor that differs on record" in limit for limit in verdict.limits)


def test_a_factor_that_differs_and_does_nothing_is_named_as_refuted():
    verdict = prove(make_case(), [], World(by("gemm.k_split")))
    assert [factor.factor for factor in verdict.factors] == ["gemm.k_split"]
    assert verdict.refuted == ("cpu.threads",)


def test_a_set_that_could_not_be_exchanged_is_never_guessed():
    """Bits depend on both; one of the mixed plans cannot run, so nothing smaller is claimed or ruled out."""
    world = World(
        by("gemm.k_split", "cpu.threads"), refuse=lambda plan: None if plan in (INCIDENT, REFERENCE) else "no"
    )
    verdict = prove(make_case(), [], world)
    assert verdict.outcome == "proven"
    assert not verdict.minimal
    assert sum("could not be exchanged both ways: no" in limit for limit in verdict.limits) == 2


def test_a_trial_that_fails_keeps_the_rest_of_the_verdict():
    class Frail(World):
        def _trace(self, plan):
            mixed = plan == REFERENCE | {"cpu.threads": "2"}
            return Trace(plan=plan, failed="out of memory") if mixed else super()._trace(plan)

    verdict = prove(make_case(), [], Frail(by("gemm.k_split")))
    assert verdict.outcome == "proven"
    assert {factor.factor for factor in verdict.factors} == set(INCIDENT), "one exchange of each smaller set is missing"
    assert not verdict.minimal
    assert any(trial.failed == "out of memory" for trial in verdict.trials)


def test_an_arm_that_gives_no_result_is_inconclusive():
    class Dead(World):
        def _trace(self, plan):
            return Trace(plan=plan, failed="no answer within 600 s")

    verdict = prove(make_case(), [], Dead(by("gemm.k_split")))
    assert verdict.outcome == "inconclusive"
    assert "no answer within 600 s" in verdict.claim


def rows_of_k(plan):
    """Return M of the k GEMM: forced, or rows times width."""
    return plan.get("gemm.k.rows") or str(int(plan["batch.rows"]) * (3 + int(plan["batch.left_pad"])))


def test_padding_and_m_are_told_apart():
    """Bits follow padding and the row count of one GEMM, and the launch is 8 rows: it is not the rows themselves."""

    def bits(plan):
        padded, tall = plan["batch.left_pad"] == "5", rows_of_k(plan) == "64"
        return {(True, True): "i", (False, False): "r"}.get((padded, tall), f"{padded}{tall}")

    verdict = prove(batch_case(), [], World(bits, refuse=impossible))
    names = {factor.factor: (factor.incident, factor.reference) for factor in verdict.factors}
    assert verdict.outcome == "proven", verdict.claim
    assert names["gemm.k.rows"] == ("64", "3")
    assert set(names) - {"batch.mask_path"} == {"batch.left_pad", "gemm.k.rows"}
    assert "batch.rows" in verdict.refuted
    assert {trial.execution for trial in verdict.trials if "M of every GEMM held" in trial.name}


def test_where_m_has_no_part_that_is_said():
    world = World(lambda plan: "i" if plan["batch.left_pad"] == "5" else "r", refuse=impossible)
    verdict = prove(batch_case(), [], world)
    assert {factor.factor for factor in verdict.factors} == {"batch.left_pad", "batch.mask_path"}
    assert any("M has no part in it" in limit for limit in verdict.limits)
    assert "gemm.k.rows" in verdict.refuted


@pytest.mark.parametrize("count", [1, 3])
def test_no_proof_takes_more_than_its_budget(count):
    roles = ("q", "k", "v", "o", "gate", "up", "down")
    plans = [{f"gemm.{role}.rows{end}": value for role in roles for end in ("", ".decode")} for value in ("8", "1")]
    case = make_case(incident=Arm("a", "i", plans[0], output_token_ids=(7, 9)),
                     reference=Arm("b", "r", plans[1], output_token_ids=(7, 8)))  # fmt: skip
    names = sorted(plans[0])[:: len(plans[0]) // count][:count]

    def bits(plan):
        values = {plan[name] for name in names}
        return {"8": "i", "1": "r"}[values.pop()] if len(values) == 1 else str(sorted(plan.items()))

    verdict = prove(case, [], World(bits))
    assert verdict.outcome == "proven"
    assert [factor.factor for factor in verdict.factors] == names
    assert verdict.minimal
    assert len({trial.execution for trial in verdict.trials}) <= 64


def test_a_race_is_weighed_with_repeats_of_both_arms():
    verdict = prove(make_case(), [], flaky())
    assert verdict.outcome == "race"
    assert verdict.repeats.changed > 0
    assert verdict.repeats.excludes_rate_above is None
    assert verdict.repeats.p_value == pytest.approx(0.0079, abs=1e-4)
    assert "Fisher's exact test" in verdict.claim


def test_repeats_say_which_rate_they_exclude():
    verdict = prove(make_case(), [], World(by("gemm.k_split")), repeats=20)
    assert verdict.repeats.runs == 20
    assert verdict.repeats.excludes_rate_above == pytest.approx(1 - 0.05 ** (1 / 20))


@pytest.mark.parametrize("config", [{"num_hidden_layers": 30}, {"text_config": {"num_hidden_layers": 30}}])
def test_a_model_of_another_architecture_is_refused_with_what_differs(config):
    engine = {"engine": "transformers", "num_layers": 2}
    world = World(by("gemm.k_split"))
    verdict = prove(make_case(engine=engine), [], world, config=config)
    assert verdict.outcome == "weights_differ"
    assert "num_layers 2 then, 30 here" in verdict.claim
    assert world.kept == []
    assert prove(make_case(engine=engine), [], world, config={"num_hidden_layers": 2}).outcome == "proven"


def test_a_verdict_from_before_still_reads():
    folder = Path(__file__).parents[2] / "fixtures" / "incidents" / "transformers-tiny-batch"
    for name, schema in (("verdict", "verdict.v1.json"), ("case", "case.v1.json")):
        document = json.loads((folder / f"{name}.json").read_text())
        jsonschema.validate(document, json.loads((SCHEMAS / schema).read_text()))


def test_bits_under_a_pin_that_did_not_take_prove_nothing_smaller():
    """Every mixed plan gives the right bits and reads back the wrong value: only the recorded plans stand."""

    def observed(plan):
        return plan if plan in (INCIDENT, REFERENCE) else plan | {"gemm.k_split": "7"}

    verdict = prove(make_case(), [], World(by("gemm.k_split"), observed=observed))
    assert {factor.factor for factor in verdict.factors} == set(INCIDENT)
    assert not verdict.minimal
    assert any("7 was read back" in limit for limit in verdict.limits)


def test_m_of_one_gemm_can_be_named_although_it_is_on_no_record():
    world = World(lambda plan: "i" if rows_of_k(plan) == "64" else "r", refuse=impossible)
    verdict = prove(batch_case(), ["gemm.k.rows=3"], world)
    assert verdict.outcome == "proven", verdict.claim
    assert [(one.factor, one.incident, one.reference) for one in verdict.factors] == [("gemm.k.rows", "64", "3")]
    other = World(lambda plan: "i" if plan["batch.left_pad"] == "5" else "r", refuse=impossible)
    assert prove(batch_case(), ["gemm.k.rows=3"], other).outcome == "refuted"
