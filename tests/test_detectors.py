"""Each detector fires on its incident, is silent on the look-alike, and says so where it could not look."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from forensics.causes import BESIDE, CAUSES
from forensics.detectors.arrival_burst import binomial_tail
from forensics.explain import explain
from tests.story import GREEDY, A, B, Story, codes, gaps, grades, loaded, quiet, says, told, without

if TYPE_CHECKING:
    from pathlib import Path

LONG = tuple(range(10, 20))
PARTED = (*LONG[:8], 77, 78)


def alone(**load: Any) -> Story:
    """Two idle runs and one that ran in the same launches, with other logits from the last token before the flip on."""
    story = Story().engine().request("idle-1", A).request("idle-2", A)
    return story.request("load", B, drift=0.25, at=1, **load)


def test_a_plain_batch_fires_no_detector_of_this_file(tmp_path: Path) -> None:
    found = told(tmp_path, loaded())
    assert codes(found) == {"batch_recomposition", "shape_class_change", "logit_drift", "thin_margin", "token_flip"}
    assert gaps(found) == {
        "algorithm_change", "kernel_fallback", "kv_residency_divergence", "memory_evaporation", "precision_path_change",
        "regime_mismatch", "state_collapse",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("idle", "load"),
    [
        ({"isolation_mode": "shared"}, {"isolation_mode": "strict"}),
        ({"cross_tenant_batching": True}, {"cross_tenant_batching": False}),
    ],
)
def test_isolation_of_the_request(tmp_path: Path, idle: dict[str, Any], load: dict[str, Any]) -> None:
    story = Story().engine().request("idle", A, **idle).request("load", B, rows=4, drift=0.25, **load)
    found = told(tmp_path, story)
    assert next(iter(idle)) in says(found, "isolation_posture")
    assert found.root_cause == "isolation_posture"
    assert grades(found)["isolation_posture", "batch_recomposition"] == "supported"
    same = Story().engine().request("idle", A, **load).request("load", B, rows=4, drift=0.25, **load)
    assert quiet(told(tmp_path / "same", same), "isolation_posture")


def test_isolation_of_the_engine_and_of_a_launch(tmp_path: Path) -> None:
    def run(name: str, shared: bool, output: tuple[int, ...], rows: int) -> Story:
        return Story(name).engine(isolation={"shared_batching": shared}).request(name, output, rows=rows)

    found = told(tmp_path, run("idle", shared=False, output=A, rows=1), run("load", shared=True, output=B, rows=2))
    assert "shared_batching" in says(found, "isolation_posture")
    changed = loaded().amend("idle-1", "batch", isolation_mode="strict").amend("load", "batch", isolation_mode="strict")
    changed.amend("load", "batch", (1, 2), isolation_mode="shared")
    finding = told(tmp_path / "launch", changed, against="idle-1").finding("isolation_posture")
    assert finding is not None
    assert (finding.onset, finding.steps) == (1, (1, 2))


def test_isolation_that_nobody_states_is_a_gap(tmp_path: Path) -> None:
    assert "isolation_posture" in gaps(told(tmp_path, without(loaded(), "isolation")))


def bursting(*, mates: int = 8, steady: bool = False, strangers: bool = False) -> Story:
    """The load arrives with the target, after ten seconds in which little (or, steady, just as much) came."""
    story = Story().engine().request("idle-1", A).request("idle-2", A)
    for number in range(100):
        story.pause(0.1)
        if steady or number in (20, 60):
            story.add("request", req_id=f"before-{number}", arrival_ts=story.now())
            story.records[-1]["seq"] = len(story.records) - 1
    for mate in range(1, mates):
        name = f"stranger{mate}" if strangers else f"load-mate{mate}"
        story.add("request", req_id=name, arrival_ts=story.now())
    return story.request("load", B, rows=mates, drift=0.25)


def test_arrival_burst(tmp_path: Path) -> None:
    found = told(tmp_path, bursting())
    assert says(found, "arrival_burst").startswith("7 other requests arrived")
    assert found.root_cause == "arrival_burst"
    assert grades(found)["arrival_burst", "batch_recomposition"] == "supported"
    assert found.chain_grade == "supported"


@pytest.mark.parametrize("look_alike", [{"mates": 4}, {"steady": True}, {"strangers": True}])
def test_no_arrival_burst(tmp_path: Path, look_alike: dict[str, Any]) -> None:
    """Few arrivals; as many in the rest of the run; a burst that shared no launch with the request."""
    found = told(tmp_path, bursting(**look_alike))
    assert quiet(found, "arrival_burst")
    assert found.root_cause == "batch_recomposition"


def test_a_burst_cannot_be_told_without_arrivals(tmp_path: Path) -> None:
    found = told(tmp_path, without(bursting(), "arrival_ts"))
    assert "arrival_burst" in gaps(found)


def test_a_burst_cannot_be_told_from_a_run_that_is_no_longer(tmp_path: Path) -> None:
    story = Story("run-2").engine()
    for mate in range(1, 8):
        story.add("request", req_id=f"load-mate{mate}", arrival_ts=1000.0)
    story.request("load", B, rows=8, drift=0.25, arrival_ts=1000.0)
    assert "arrival_burst" in gaps(told(tmp_path, Story().engine().request("idle", A), story))


def test_the_chance_of_a_burst() -> None:
    assert binomial_tail(0, 10, 0.5) == pytest.approx(1.0)
    assert binomial_tail(2, 2, 0.25) == pytest.approx(1 / 16)
    assert binomial_tail(1, 3, 0.5) == pytest.approx(7 / 8)
    assert binomial_tail(900, 1_000_000, 1e-4) == pytest.approx(0.0, abs=1e-12)


def test_queue_pressure(tmp_path: Path) -> None:
    found = told(tmp_path, loaded().amend("load", "step", (0,), queue_ms=200.0))
    assert "waited 200 ms before its first step, the reference 0.5 ms" in says(found, "queue_pressure")
    assert found.root_cause == "queue_pressure"
    assert grades(found)["queue_pressure", "batch_recomposition"] == "consistent", "a wait alone names no neighbour"


@pytest.mark.parametrize(("idle", "load"), [(0.5, 40.0), (60.0, 90.0)])
def test_no_queue_pressure(tmp_path: Path, idle: float, load: float) -> None:
    """A wait below the border of the regime; waits above it in both arms."""
    story = loaded().amend("load", "step", (0,), queue_ms=load)
    story.amend("idle-1", "step", (0,), queue_ms=idle).amend("idle-2", "step", (0,), queue_ms=idle)
    assert quiet(told(tmp_path, story), "queue_pressure")


@pytest.mark.parametrize(("waiting", "fires"), [((0, 1, 2, 3, 4), True), ((0, 1, 2), False)])
def test_queue_depth_stands_in_for_a_time(tmp_path: Path, waiting: tuple[int, ...], fires: bool) -> None:
    story = Story().engine().request("idle", LONG).request("load", PARTED, rows=4, drift=0.25)
    for name in ("idle", "load"):
        story.amend(name, "batch", tuple(range(10)), queue_depth=0)
    without(story.amend("load", "batch", waiting, queue_depth=3), "queue_ms")
    found = told(tmp_path, story)
    assert ("queue_pressure" in codes(found), "queue_pressure" in found.ruled_out) == (fires, not fires)
    assert "queue_pressure" in gaps(told(tmp_path / "gap", without(story, "queue_depth")))


def short(story: Story, name: str, steps: tuple[int, ...] = (0, 1, 2, 3), free: int = 2) -> Story:
    return story.amend(name, "batch", steps, kv_blocks_free=free, kv_blocks_total=100)


def pools(story: Story) -> Story:
    for name in ("idle-1", "idle-2", "load"):
        short(story, name, free=90)
    return story


def left_alone() -> Story:
    """Two runs that shared their launches, and one that ran alone."""
    story = Story().engine().request("idle-1", A, rows=4).request("idle-2", A, rows=4)
    return story.request("load", B, drift=0.25)


def test_memory_pressure(tmp_path: Path) -> None:
    found = told(tmp_path, short(pools(left_alone()), "load"))
    assert "at the least 2 of 100 KV blocks free, in the reference 90 of 100" in says(found, "memory_pressure")
    assert found.root_cause == "memory_pressure"
    assert grades(found)["memory_pressure", "batch_recomposition"] == "supported"


def test_short_memory_brings_no_company(tmp_path: Path) -> None:
    found = told(tmp_path, short(pools(loaded()), "load"))
    assert grades(found)["memory_pressure", "batch_recomposition"] == "refuted", "it takes requests out of a batch"
    assert found.root_cause == "batch_recomposition"
    other = short(short(pools(loaded()), "idle-1"), "idle-2")
    assert told(tmp_path / "other", other).root_cause == "memory_pressure", "the reference was left alone by it"


def test_a_small_pool_is_no_memory_pressure(tmp_path: Path) -> None:
    story = pools(loaded())
    for name in ("idle-1", "idle-2", "load"):
        story.amend(name, "batch", headroom_mb=50.0)
    found = told(tmp_path, story)
    assert {lane.regime[0] for lane in found.lanes} == {"memory_pressured"}, "by the article's absolute border"
    assert quiet(found, "memory_pressure")
    both = short(short(short(pools(loaded()), "load"), "idle-1"), "idle-2")
    assert quiet(told(tmp_path / "both", both), "memory_pressure"), "short in both arms is no difference"
    later = short(pools(loaded()), "load", (3,))
    assert quiet(told(tmp_path / "later", later), "memory_pressure"), "after the flip is too late"


def test_memory_without_a_pool(tmp_path: Path) -> None:
    found = told(tmp_path, loaded().amend("load", "batch", (1, 2), headroom_mb=500.0))
    finding = found.finding("memory_pressure")
    assert finding is not None
    assert (finding.target, finding.steps) == (500.0, (1, 2))
    assert "memory_pressure" in gaps(told(tmp_path / "gap", without(loaded(), "headroom_mb")))


def test_paging(tmp_path: Path) -> None:
    found = told(tmp_path, left_alone().amend("load", "batch", paging_on=True))
    assert "in 3 launches up to the flip, in the reference in 0" in says(found, "paging")
    assert found.root_cause == "paging"
    found = told(tmp_path / "company", loaded().amend("load", "batch", paging_on=True))
    assert grades(found)["paging", "batch_recomposition"] == "refuted"


def test_no_paging(tmp_path: Path) -> None:
    both = loaded()
    for name in ("idle-1", "idle-2", "load"):
        both.amend(name, "batch", (1,), paging_on=True)
    assert quiet(told(tmp_path, both), "paging")
    assert quiet(told(tmp_path / "later", loaded().amend("load", "batch", (3,), paging_on=True)), "paging")


def test_paging_in_a_step_that_the_reference_did_not_make(tmp_path: Path) -> None:
    story = loaded().amend("load", "step", (0,), token_index=None, token_id=None)
    for step, token in enumerate(B[:3], start=1):
        story.amend("load", "step", (step,), token_index=step - 1, token_id=token)
    finding = told(tmp_path, story.amend("load", "batch", (1,), paging_on=True)).finding("paging")
    assert finding is not None
    assert (finding.onset, finding.steps, finding.target, finding.reference) == (1, (1,), 1, 0)


def test_paging_that_nobody_observes_is_a_gap(tmp_path: Path) -> None:
    story = without(loaded(), "paging_on")
    assert "paging" in gaps(told(tmp_path, story))
    story.records[0]["observes"]["batch"] = ["paging_on"]
    assert quiet(told(tmp_path / "observed", story), "paging"), "whoever observes it and wrote nothing saw none"


def test_short_memory_pages_out_and_preempts(tmp_path: Path) -> None:
    story = pools(Story().engine().request("idle-1", A).request("idle-2", A).request("load", B, drift=0.25, at=1))
    short(story, "load", (0, 1)).amend("load", "batch", (1,), paging_on=True, batch_tokens=5, padded_tokens=5)
    story.amend("load", "step", (1,), resumed=True, num_scheduled_tokens=5, num_computed_tokens=0)
    found = told(tmp_path, story)
    assert found.root_cause == "memory_pressure"
    assert [link.cause for link in found.chain] == [
        "memory_pressure", "preemption_recompute", "shape_class_change", "logit_drift",
    ]  # fmt: skip
    assert found.chain_grade == "supported"
    assert quiet(found, "paging"), "KV that the request computes again itself is what preemption_recompute says"
    before = told(tmp_path / "before", short(story, "load", (1,), free=90))
    assert grades(before)["memory_pressure", "preemption_recompute"] == "supported", "short in the step before it"


def test_algorithm_change_at_the_same_shape(tmp_path: Path) -> None:
    story = alone()
    for name in ("idle-1", "idle-2", "load"):
        story.amend(name, "batch", algo_id=7)
    assert quiet(told(tmp_path / "same", story), "algorithm_change")
    found = told(tmp_path, story.amend("load", "batch", (1, 2), algo_id=8))
    assert "in 2 of 3 compared steps up to the flip, in 2 of them at the same launch shape" in says(
        found, "algorithm_change"
    )
    assert found.root_cause == "algorithm_change"
    assert grades(found)["algorithm_change", "logit_drift"] == "consistent", "the precision path is not on record"
    for name in ("idle-1", "idle-2", "load"):
        story.amend(name, "batch", precision_path="bf16")
    sure = told(tmp_path / "sure", story)
    assert grades(sure)["algorithm_change", "logit_drift"] == "supported"


def test_algorithm_change_after_the_flip(tmp_path: Path) -> None:
    story = alone()
    for name in ("idle-1", "idle-2", "load"):
        story.amend(name, "batch", kernel_variant="small")
    assert quiet(told(tmp_path, story.amend("load", "batch", (3,), kernel_variant="large")), "algorithm_change")


def test_an_attention_backend_alone_does_not_tell_the_kernels(tmp_path: Path) -> None:
    story = alone().amend("load", "batch", plan={"attention.backend": "flash"})
    for name in ("idle-1", "idle-2"):
        story.amend(name, "batch", plan={"attention.backend": "flash"})
    assert "algorithm_change" in gaps(told(tmp_path, story))
    story.amend("load", "batch", plan={"attention.backend": "math"})
    assert "attention.backend" in says(told(tmp_path / "other", story), "algorithm_change")


def test_an_algorithm_that_follows_the_shape_is_no_competitor_of_it(tmp_path: Path) -> None:
    story = loaded()
    for name, algorithm in (("idle-1", 7), ("idle-2", 7), ("load", 8)):
        story.amend(name, "batch", algo_id=algorithm, precision_path="bf16")
    found = told(tmp_path, story)
    assert grades(found)["shape_class_change", "algorithm_change"] == "supported"
    assert grades(found)["shape_class_change", "logit_drift"] == "supported"
    (link,) = [one for one in found.links if (one.cause, one.effect) == ("shape_class_change", "logit_drift")]
    assert "lies between: algorithm_change" in link.why


def test_an_algorithm_that_changed_before_the_shape_competes_with_it(tmp_path: Path) -> None:
    story = Story().engine().request("idle-1", A).request("idle-2", A).request("load", B, drift=0.25, at=2)
    for name, algorithm in (("idle-1", 7), ("idle-2", 7), ("load", 8)):
        story.amend(name, "batch", algo_id=algorithm, precision_path="bf16")
    story.amend("load", "batch", (2,), batch_tokens=4, padded_tokens=4, batch_size=4)
    found = told(tmp_path, story)
    assert grades(found)["shape_class_change", "algorithm_change"] == "refuted"
    assert grades(found)["shape_class_change", "logit_drift"] == "consistent"


def test_what_may_lie_between_and_is_not_on_record_lowers_nothing(tmp_path: Path) -> None:
    found = told(tmp_path, loaded())
    assert "algorithm_change" in gaps(found)
    (link,) = [one for one in found.links if (one.cause, one.effect) == ("shape_class_change", "logit_drift")]
    assert link.grade == "supported"
    assert "may lie between, not on record: algorithm_change, kernel_fallback, precision_path_change" in link.why
    missing = told(tmp_path / "gap", without(loaded(), "isolation"))
    assert missing.chain_grade == "supported", "nothing in the chain competes with isolation"
    burst = told(tmp_path / "burst", without(bursting(), "isolation"))
    assert grades(burst)["arrival_burst", "batch_recomposition"] == "consistent", "a competitor that nobody recorded"


@pytest.mark.parametrize(
    "fields",
    [{"precision_path": "fp8"}, {"plan": {"dtype.lm_head": "float32"}}],
)
def test_precision_path_change(tmp_path: Path, fields: dict[str, Any]) -> None:
    story = loaded()
    base = {"precision_path": "bf16", "plan": {"dtype.lm_head": "bfloat16"}}
    for name in ("idle-1", "idle-2", "load"):
        story.amend(name, "batch", **base)
    assert quiet(told(tmp_path / "same", story), "precision_path_change")
    found = told(tmp_path, story.amend("load", "batch", **fields))
    assert "in 3 of 3 compared steps" in says(found, "precision_path_change")


def test_a_path_that_the_configuration_does_not_promise(tmp_path: Path) -> None:
    story = loaded()
    story.records[0]["expected_precision_path"] = "fp8"
    story.amend("load", "batch", precision_path="bf16")
    text = says(told(tmp_path, story), "precision_path_change")
    assert "is not 'fp8' as the configuration promises: first 'bf16'" in text
    for name in ("idle-1", "idle-2"):
        story.amend(name, "batch", precision_path="bf16")
    assert quiet(told(tmp_path / "both", story), "precision_path_change"), "it does not tell the arms apart"


def test_graph_mode_change(tmp_path: Path) -> None:
    found = told(tmp_path, alone().amend("load", "batch", graph_mode="cuda_graph:4"))
    assert "first 'cuda_graph:4', in the reference 'eager'" in says(found, "graph_mode_change")
    assert grades(found)["shape_class_change", "graph_mode_change"] == "refuted", "the graph alone differs"
    assert found.root_cause == "graph_mode_change"
    batch = told(tmp_path / "batch", loaded().amend("load", "batch", graph_mode="cuda_graph:4"))
    assert grades(batch)["shape_class_change", "graph_mode_change"] == "supported"
    assert batch.root_cause == "batch_recomposition"


def test_no_graph_mode_change(tmp_path: Path) -> None:
    assert quiet(told(tmp_path, loaded().amend("load", "batch", (3,), graph_mode="cuda_graph:4")), "graph_mode_change")
    assert "graph_mode_change" in gaps(told(tmp_path / "gap", without(loaded(), "graph_mode")))


def tied(rule: str | None = "argmax", **load: Any) -> Story:
    """Both arms hold the same exact tie of 3 and 9 at the flip, and choose differently."""
    story = Story().engine().request("idle", A, token_rule=rule).request("load", B, **({"token_rule": rule} | load))
    for name in ("idle", "load"):
        story.amend(name, "step", (2,), top_token_ids=[3, 9], top_logits=[20.0, 20.0], margin=0.0)
    return story


def test_a_tie_broken_the_other_way(tmp_path: Path) -> None:
    found = told(tmp_path, tied())
    assert "chose different members of it" in says(found, "tie_rule_change")
    assert grades(found)["tie_rule_change", "token_flip"] == "supported"
    assert found.root_cause == "tie_rule_change"


def test_another_seed_is_no_other_tie_rule(tmp_path: Path) -> None:
    """Equal logits and no tie: what chose the other token is the sampler's seed, under one and the same rule."""
    story = Story().engine()
    for name, output, seed in (("idle", A, 1), ("load", B, 2)):
        story.request(name, output, cfg={"temperature": 0.7, "seed": seed}, token_rule="sample")
        story.amend(name, "step", (2,), top_token_ids=[3, 9])
    found = told(tmp_path, story, against="idle")
    assert quiet(found, "tie_rule_change")
    assert grades(found)["decode_config_drift", "token_flip"] == "supported"
    assert found.root_cause == "decode_config_drift"


def test_another_token_rule(tmp_path: Path) -> None:
    found = told(tmp_path, tied(rule="argmax", token_rule="topk0"))
    assert "'topk0', in the reference 'argmax'" in says(found, "tie_rule_change")
    assert found.root_cause == "tie_rule_change"
    strict = told(tmp_path / "strict", loaded(token_rule="topk0"))
    assert grades(strict)["tie_rule_change", "token_flip"] == "refuted", "no tie: the rule had no say"
    drifted = tied(token_rule="topk0").amend("load", "step", (2,), top_logits=[20.25, 20.25])
    assert grades(told(tmp_path / "drifted", drifted))["tie_rule_change", "token_flip"] == "consistent", "a tie is left"
    assert strict.root_cause == "batch_recomposition"
    assert strict.chain_grade == "supported", "a refuted competitor is ruled out"


def test_no_rule_is_needed_where_nothing_is_tied(tmp_path: Path) -> None:
    assert quiet(told(tmp_path, without(loaded(), "token_rule")), "tie_rule_change")
    found = told(tmp_path / "blind", without(loaded(), "token_rule", "top_logits"))
    assert "tie_rule_change" in gaps(found)


def test_regime_mismatch_stands_beside_the_chain(tmp_path: Path) -> None:
    found = told(tmp_path, loaded().amend("load", "batch", kv_regime="pressured"))
    assert "first 'pressured' against 'normal' at step 0 of the target" in says(found, "regime_mismatch")
    assert not [link for link in found.links if "regime_mismatch" in (link.cause, link.effect)]
    assert found.root_cause == "batch_recomposition"


def test_no_regime_mismatch(tmp_path: Path) -> None:
    """The names differ and mean the same; a queue is no matter of the KV regime."""
    story = loaded().amend("load", "batch", kv_regime="normal").amend("load", "step", (0,), queue_ms=500.0)
    story.amend("load", "batch", (1,), kv_regime="paged", paging_on=True)
    for name in ("idle-1", "idle-2"):
        story.amend(name, "batch", kv_regime="normal")
    assert quiet(told(tmp_path, story), "regime_mismatch")


ASKED = GREEDY | {"max_tokens": 64}


@pytest.mark.parametrize(
    ("idle", "load", "shade"),
    [
        ({}, {}, "what was asked for is not on record"),
        ({"decode_cfg_requested": ASKED}, {"decode_cfg_requested": ASKED}, "nobody asked for it: a default"),
        (
            {"decode_cfg_requested": ASKED | {"repetition_penalty": 1.0}},
            {"decode_cfg_requested": ASKED | {"repetition_penalty": 1.1}},
            "asked for differently",
        ),
        (
            {"decode_cfg_requested": ASKED | {"repetition_penalty": 1.0}},
            {"decode_cfg_requested": ASKED | {"repetition_penalty": 1.0}},
            "both asked for 1; changed by the server of the target",
        ),
    ],
)
def test_shades_of_decode_config_drift(tmp_path: Path, idle: dict[str, Any], load: dict[str, Any], shade: str) -> None:
    story = Story().engine().request("idle", A, cfg=GREEDY | {"repetition_penalty": 1.0}, **idle)
    story.request("load", B, cfg=GREEDY | {"repetition_penalty": 1.1}, **load)
    assert shade in says(told(tmp_path, story, against="idle"), "decode_config_drift")


@pytest.mark.parametrize(
    "changed",
    [{"max_tokens": 9}, {"stop": ["\n"]}, {"top_p": 0.5, "seed": 3}, {"logprobs": 5, "stream": True}],
)
def test_settings_that_cannot_have_changed_the_token(tmp_path: Path, changed: dict[str, Any]) -> None:
    story = Story().engine().request("idle", A).request("load", B, rows=4, drift=0.25, cfg=GREEDY | changed)
    found = told(tmp_path, story, against="idle")
    assert found.standing == "divergence"
    assert quiet(found, "decode_config_drift")


def test_a_stop_list_explains_an_output_that_stopped(tmp_path: Path) -> None:
    cfg = GREEDY | {"stop": ["x"]}
    story = Story().engine().request("idle", A).request("load", A[:2], cfg=cfg, finish_reason="stop")
    assert "stop" in says(told(tmp_path, story, against="idle"), "decode_config_drift")


def test_settings_behind_the_logits_are_refuted_where_the_logits_decide(tmp_path: Path) -> None:
    story = Story().engine().request("idle", A)
    found = told(tmp_path, story.request("load", B, rows=4, cfg=GREEDY | {"repetition_penalty": 1.1}), against="idle")
    assert grades(found)["decode_config_drift", "token_flip"] == "refuted"
    assert grades(found)["decode_config_drift", "logit_drift"] == "refuted"


def test_an_adapter_acts_before_the_logits(tmp_path: Path) -> None:
    story = Story().engine().request("idle", A).request("load", B, drift=0.25, cfg=GREEDY | {"lora": "tuned"})
    found = told(tmp_path, story, against="idle")
    assert grades(found)["decode_config_drift", "logit_drift"] == "consistent"
    assert found.root_cause == "decode_config_drift"


WIDE = tuple(range(100, 140))


@pytest.mark.parametrize(
    ("prompt", "shaped", "expected"),
    [
        (WIDE[12:], {"truncated": True, "context_limit": 28}, "12 tokens removed from the front"),
        (WIDE[:30], {"truncated": True, "trunc_reason": "context"}, "10 tokens removed from the end"),
        ((*WIDE[:5], 1, 2, *WIDE[5:]), {"policy_gates": [{"gate": "safety"}]}, "2 tokens inserted at position 5"),
        ((*WIDE[:5], 1, *WIDE[6:]), {"routing_template_version": "7"}, "1 tokens at position 5 replaced by 1 others"),
    ],
)
def test_shades_of_effective_request_drift(
    tmp_path: Path, prompt: tuple[int, ...], shaped: dict[str, Any], expected: str
) -> None:
    asked = {"raw_prompt_sha256": "c" * 64, "decode_cfg_requested": GREEDY, "routing_template_version": "6"}
    story = Story().engine().request("idle", A, prompt=WIDE, **asked)
    story.request("load", B, prompt=prompt, drift=0.25, **(asked | shaped))
    shade = {"truncated": "truncation", "policy_gates": "policy", "routing_template_version": "template"}
    text = says(told(tmp_path, story), "effective_request_drift")
    assert expected in text
    assert shade[next(iter(shaped))] in text
    for record in story.records:
        record.pop("effective_token_ids", None)
    blind = says(told(tmp_path / "blind", story), "effective_request_drift")
    assert expected not in blind
    assert shade[next(iter(shaped))] in blind, "where no ids are on record the shaping facts still tell"


def test_a_limit_that_one_arm_alone_states_is_no_truncation(tmp_path: Path) -> None:
    story = Story().engine().request("idle", A, prompt=WIDE, truncated=False)
    found = told(tmp_path, story.request("load", B, prompt=WIDE[1:], drift=0.25, context_limit=99), against="idle")
    assert says(found, "effective_request_drift").endswith("no shaping fact on record says why")


def test_the_table_of_causes_is_read_from_the_effect_down() -> None:
    """Rows are graded from the last to the first: a cause must have its own row, if any, below."""
    order = list(CAUSES)
    for effect, causes in CAUSES.items():
        assert all(order.index(cause) > order.index(effect) for cause in causes if cause in order), effect
        assert not set(causes) & set(BESIDE)


@pytest.mark.parametrize(
    ("engine", "root"),
    [
        ({"environment": {"GREETING": "hello"}}, "batch_recomposition"),
        ({"config": {"scheduler_config": {"max_num_seqs": 4}}}, "environment_change"),
    ],
)
def test_only_what_composes_launches_is_blamed_for_them(tmp_path: Path, engine: dict[str, Any], root: str) -> None:
    idle = {"environment": {"GREETING": "hi"}, "config": {"scheduler_config": {"max_num_seqs": 1}}}
    story = Story().engine(**idle).request("idle-1", A).request("idle-2", A)
    with story.tell(tmp_path, Story("run-2").engine(**(idle | engine)).request("load", B, rows=4, drift=0.25)) as store:
        found = explain(store, "load")
    assert "environment_change" in codes(found)
    assert found.root_cause == root


def turning(name: str, output: tuple[int, ...], *, worse: bool) -> Story:
    """A long answer whose launches get slow, full and queued from step 90 on if `worse`, and whose work stays equal."""
    chance = random.Random(7)
    story = Story(f"run-{name}").engine().request(name, output, rows=2, drift=0.25 if name == "load" else 0.0, at=1)
    for record in story.records:
        if record["kind"] == "step":
            record["num_computed_tokens"] = 64
        if record["kind"] == "batch":
            later = worse and record["engine_step"] >= 90
            record |= {
                "batch_tokens": 2, "padded_tokens": 2, "queue_depth": chance.randint(0, 1) + 3 * later,
                "kv_blocks_total": 100, "kv_blocks_free": chance.randint(60, 65) - 30 * later,
                "step_ms": (10 + chance.random()) * (1.5 if later else 1.0),
            }  # fmt: skip
    return story


def test_state_collapse(tmp_path: Path) -> None:
    answer = tuple(range(100, 260))
    flipped = (*answer[:120], 7, *answer[121:])
    collapsed, calm = turning("load", flipped, worse=True), turning("idle", answer, worse=False)
    found = told(tmp_path, collapsed, calm)
    finding = found.finding("state_collapse")
    assert finding is not None
    assert abs(finding.onset - 90) <= 3
    assert says(found, "state_collapse").count("x 1.5") == 1
    assert "3 degrees of freedom changed together" in says(found, "state_collapse")
    assert found.root_cause != "state_collapse", "it stands beside the chain"
    assert quiet(told(tmp_path / "steady", turning("load", flipped, worse=False), calm), "state_collapse")
    both = told(tmp_path / "both", collapsed, turning("idle", answer, worse=True))
    assert quiet(both, "state_collapse"), "the reference collapsed as well"


@pytest.mark.parametrize(("used", "told_by"), [(None, {"prefix_cache_hit"}), (False, set())])
def test_a_first_step_that_is_lost_is_no_cached_prompt(tmp_path: Path, used: bool | None, told_by: set[str]) -> None:
    story = alone(prefix_cache_used=used)
    first = next(one for one in story.records if one.get("req_id") == "load" and one.get("step") == 0)
    story.records.remove(first)
    found = told(tmp_path, story)
    assert found.standing == "divergence"
    assert "prefix_cache_hit" not in codes(found)
    assert gaps(found) & {"prefix_cache_hit"} == told_by
