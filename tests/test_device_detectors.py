"""Detectors that read what few engines write: each fires on its incident, and not on the look-alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from forensics.churn import fisher
from tests.story import GREEDY, A, B, Story, codes, gaps, grades, loaded, quiet, says, told, without

if TYPE_CHECKING:
    from pathlib import Path

LONG = tuple(range(10, 20))
PARTED = (*LONG[:8], 77, 78)
WIDE = tuple(range(100, 140))


def alone(**load: Any) -> Story:
    """Two idle runs and one that ran in the same launches, with other logits from the last token before the flip on."""
    story = Story().engine().request("idle-1", A).request("idle-2", A)
    return story.request("load", B, drift=0.25, at=1, **load)


def short(story: Story, name: str, free: int) -> Story:
    return story.amend(name, "batch", kv_blocks_free=free, kv_blocks_total=100)


def ranked(story: Story, name: str, fields: dict[int, dict[str, Any]], steps: tuple[int, ...] = (0, 1, 2, 3)) -> Story:
    """Give the launches of a request a batch record a rank; the one that is there becomes rank 0."""
    story.amend(name, "batch", steps, **fields.get(0, {}))
    own = {one["engine_step"] for one in story.records if one["kind"] == "step" and one["req_id"] == name}
    first = [one for one in story.records if one["kind"] == "batch" and one["engine_step"] in own and one["rank"] == 0]
    for record in [first[step] for step in steps]:
        for rank, more in fields.items():
            if rank:
                story.records.append(record | more | {"rank": rank, "seq": len(story.records)})
    return story


GPU = {"device": "H100", "device_type": "cuda"}


def on_gpu(story: Story) -> Story:
    story.records[0] |= GPU
    return story


def everywhere(story: Story, **fields: Any) -> Story:
    for name in ("idle-1", "idle-2", "load"):
        story.amend(name, "batch", **fields)
    return story


FITS = {"largest_free_block_mb": 512.0, "workspace_required_mb": 32.0, "vram_free_mb": 2048.0}


@pytest.mark.parametrize(
    ("load", "why", "root"),
    [
        ({}, "fragmentation, as 2048 MiB were free in all", "workspace_infeasible"),
        ({"vram_free_mb": 20.0}, "shortage, as only 20 MiB were free in all", "memory_pressure"),
        ({"vram_free_mb": None}, "how much was free in all is not on record", "workspace_infeasible"),
    ],
)
def test_workspace_infeasible(tmp_path: Path, load: dict[str, Any], why: str, root: str) -> None:
    story = everywhere(on_gpu(alone()), algo_id=7, precision_path="bf16", **FITS)
    story.amend("load", "batch", (1, 2), algo_id=8, largest_free_block_mb=16.0, **load)
    found = told(tmp_path, story)
    assert why in says(found, "workspace_infeasible")
    assert "32 MiB were needed on rank 0 and the largest free block had 16 MiB" in says(found, "workspace_infeasible")
    assert grades(found)["workspace_infeasible", "algorithm_change"] == "supported"
    assert found.root_cause == root


def test_no_workspace_infeasible(tmp_path: Path) -> None:
    """Little memory in which the workspace still fits; none that fits in both arms; too late; on a CPU."""
    tight = everywhere(on_gpu(alone()), **FITS).amend("load", "batch", largest_free_block_mb=32.0, vram_free_mb=40.0)
    assert quiet(told(tmp_path, tight), "workspace_infeasible")
    both = everywhere(on_gpu(alone()), **FITS | {"largest_free_block_mb": 16.0})
    assert quiet(told(tmp_path / "both", both), "workspace_infeasible")
    late = everywhere(on_gpu(alone()), **FITS).amend("load", "batch", (3,), largest_free_block_mb=1.0)
    assert quiet(told(tmp_path / "late", late), "workspace_infeasible")
    assert quiet(told(tmp_path / "cpu", alone()), "workspace_infeasible")
    assert "workspace_infeasible" in gaps(told(tmp_path / "gap", on_gpu(alone())))


def test_a_workspace_that_fits_on_no_one_rank_alone(tmp_path: Path) -> None:
    story = everywhere(on_gpu(alone()), **FITS)
    for name in ("idle-1", "idle-2"):
        ranked(story, name, {1: {}})
    ranked(story, "load", {1: {"largest_free_block_mb": 8.0}})
    assert "needed on rank 1" in says(told(tmp_path, story), "workspace_infeasible")


POOL = {"vram_free_mb": 4000.0, "kv_pool_total_mb": 10000.0, "isr_pinned_mb": 0.0, "ckpt_pinned_mb": 0.0}


def pinned(load: dict[str, Any], *, idle: dict[str, Any] | None = None, steps: tuple[int, ...] = (1, 2, 3)) -> Story:
    """Ten launches of others, two idle runs that shared their launches, and one that was left alone with pins."""
    story = Story().engine().request("others", tuple(range(10, 20)), prompt=(1, 2))
    story.request("idle-1", A, rows=4).request("idle-2", A, rows=4).request("load", B, drift=0.25)
    for name in ("idle-1", "idle-2", "load"):
        story.amend(name, "batch", **(POOL | (idle or {})))
    story.amend("others", "batch", tuple(range(10)), **POOL)
    return story.amend("load", "batch", steps, **load)


def test_memory_evaporation_takes_both_pins(tmp_path: Path) -> None:
    found = told(tmp_path, pinned({"isr_pinned_mb": 1900.0, "ckpt_pinned_mb": 1900.0}, steps=(0, 1, 2)))
    text = says(found, "memory_evaporation")
    assert "2.0% of the KV pool left; without the first 21.0% would be left, without the second 21.0%" in text
    assert "it took both" in text
    assert grades(found)["memory_evaporation", "memory_pressure"] == "supported"
    assert grades(found)["memory_pressure", "batch_recomposition"] == "supported"
    assert found.root_cause == "memory_evaporation"
    assert [link.cause for link in found.chain][:2] == ["memory_evaporation", "memory_pressure"]


def test_memory_evaporation_begins_with_the_first_pin(tmp_path: Path) -> None:
    story = pinned({"isr_pinned_mb": 3500.0}, steps=(1,))
    story.amend("load", "batch", (2,), isr_pinned_mb=3500.0, ckpt_pinned_mb=3500.0, vram_free_mb=7100.0)
    finding = told(tmp_path, story).finding("memory_evaporation")
    assert finding is not None
    assert (finding.onset, finding.steps) == (1, (1, 2))


def test_redundant_pins_are_both_named(tmp_path: Path) -> None:
    found = told(tmp_path, pinned({"isr_pinned_mb": 3900.0, "ckpt_pinned_mb": 3900.0}, steps=(0, 1, 2)))
    assert "each alone would do it, so both must go" in says(found, "memory_evaporation")


@pytest.mark.parametrize(
    ("load", "idle"),
    [
        ({"ckpt_pinned_mb": 3900.0}, {}),  # one pin only
        ({"isr_pinned_mb": 100.0, "ckpt_pinned_mb": 3900.0}, {}),  # the other one does nothing
        ({"isr_pinned_mb": 500.0, "ckpt_pinned_mb": 500.0}, {}),  # enough is left
        ({}, {"isr_pinned_mb": 1900.0, "ckpt_pinned_mb": 1900.0}),  # in both arms
    ],
)
def test_no_memory_evaporation(tmp_path: Path, load: dict[str, Any], idle: dict[str, Any]) -> None:
    assert quiet(told(tmp_path, pinned(load, idle=idle, steps=(0, 1, 2))), "memory_evaporation")


def test_memory_that_was_always_gone_has_not_evaporated(tmp_path: Path) -> None:
    story = pinned({"isr_pinned_mb": 1900.0, "ckpt_pinned_mb": 1900.0}, steps=(0, 1, 2))
    story.amend("others", "batch", tuple(range(10)), isr_pinned_mb=1950.0, ckpt_pinned_mb=1950.0)
    assert "memory_evaporation" not in codes(told(tmp_path, story))


def test_a_pin_that_took_the_memory_alone_is_memory_pressure(tmp_path: Path) -> None:
    found = told(tmp_path, pinned({"ckpt_pinned_mb": 3900.0}, steps=(0, 1, 2)))
    assert "1.0% of the KV pool (pins counted out) free" in says(found, "memory_pressure")
    assert found.root_cause == "memory_pressure"


def test_memory_that_was_short_before_it_came(tmp_path: Path) -> None:
    story = (
        Story().engine().request("idle-1", A, rows=4).request("idle-2", A, rows=4).request("others", A, prompt=(1, 2))
    )
    story.request("load", B, drift=0.25)
    for name, free in (("idle-1", 90), ("idle-2", 90), ("others", 2), ("load", 2)):
        short(story, name, free)
    finding = told(tmp_path, story).finding("memory_pressure")
    assert finding is not None
    assert finding.onset == -1
    later = told(tmp_path / "later", short(story, "others", 90)).finding("memory_pressure")
    assert later is not None
    assert later.onset == 0


@pytest.mark.parametrize(
    ("idle", "load", "said"),
    [
        ({"kernel_variant": "fast"}, {"fallback_reason": "no workspace"}, "rank 0: fallback 'no workspace'"),
        ({}, {"fallback_reason": "no workspace"}, "rank 0: fallback 'no workspace', in the reference none"),
        ({"kernel_variant": "fast"}, {"kernel_variant": "slow"}, "rank 0: 'slow' ran, 'fast' is promised"),
    ],
)
def test_kernel_fallback(tmp_path: Path, idle: dict[str, Any], load: dict[str, Any], said: str) -> None:
    story = everywhere(alone(), precision_path="bf16", **idle)
    story.records[0]["expected_kernel_variant"] = "fast"
    found = told(tmp_path, story.amend("load", "batch", (1, 2), **load))
    assert said in says(found, "kernel_fallback")
    assert found.root_cause == "kernel_fallback"
    assert found.links
    assert grades(found)["kernel_fallback", "logit_drift"] in ("supported", "consistent")


def test_no_kernel_fallback(tmp_path: Path) -> None:
    """The same fallback in both arms; one after the flip; kernels on record and no reason."""
    assert quiet(told(tmp_path, everywhere(alone(), fallback_reason="old driver")), "kernel_fallback")
    late = everywhere(alone(), kernel_variant="fast").amend("load", "batch", (3,), fallback_reason="no workspace")
    assert quiet(told(tmp_path / "late", late), "kernel_fallback")
    other = everywhere(alone(), algo_id=7).amend("load", "batch", (1, 2), algo_id=8)
    assert quiet(told(tmp_path / "other", other), "kernel_fallback")
    assert "kernel_fallback" in gaps(told(tmp_path / "gap", alone()))


def test_one_rank_on_another_tactic(tmp_path: Path) -> None:
    story = everywhere(alone(), algo_id=7)
    peers: dict[int, dict[str, Any]] = {rank: {} for rank in range(4)}
    for name in ("idle-1", "idle-2"):
        ranked(story, name, peers)
    found = told(tmp_path, ranked(story, "load", peers | {2: {"algo_id": 8}}, (1, 2)))
    assert "rank 2 ran algo_id '8', most of its peers '7'" in says(found, "kernel_fallback")
    assert found.root_cause == "kernel_fallback", "the lowest rank, which speaks for the group, ran as before"


def test_two_ranks_that_differ_single_out_nobody(tmp_path: Path) -> None:
    story = everywhere(alone(), algo_id=7)
    for name in ("idle-1", "idle-2"):
        ranked(story, name, {0: {}, 1: {}})
    assert quiet(told(tmp_path, ranked(story, "load", {0: {}, 1: {"algo_id": 8}}, (1, 2))), "kernel_fallback")


def test_requantization(tmp_path: Path) -> None:
    story = everywhere(alone(), requant_cycles=2, precision_path="fp8")
    story.records[0] |= {"quantization": "fp8", "expected_precision_path": "fp8"}
    assert quiet(told(tmp_path / "same", story), "requantization")
    found = told(tmp_path, story.amend("load", "batch", (1, 2), requant_cycles=9))
    assert "first 9 cycles, in the reference 2 cycles; promised is 'fp8'" in says(found, "requantization")
    assert quiet(found, "precision_path_change"), "the cycles are said once"
    assert found.root_cause == "requantization"
    assert grades(found)["requantization", "logit_drift"] == "consistent", "no kernel is on record"


def test_one_rank_on_another_precision_path(tmp_path: Path) -> None:
    story = everywhere(alone(), precision_path="fp8", requant_cycles=0)
    story.records[0]["quantization"] = "fp8"
    peers: dict[int, dict[str, Any]] = {rank: {} for rank in range(4)}
    for name in ("idle-1", "idle-2"):
        ranked(story, name, peers)
    found = told(tmp_path, ranked(story, "load", peers | {3: {"precision_path": "dequant_bf16"}}, (1, 2)))
    assert "rank 3 with precision_path 'dequant_bf16', most of its peers 'fp8'" in says(found, "requantization")
    assert quiet(found, "precision_path_change")


def test_no_requantization(tmp_path: Path) -> None:
    assert quiet(told(tmp_path, alone()), "requantization"), "the engine has nothing quantised"
    story = alone()
    story.records[0]["quantization"] = "fp8"
    assert "requantization" in gaps(told(tmp_path / "gap", story))
    assert quiet(told(tmp_path / "path", everywhere(story, precision_path="bf16")), "requantization")


MAPS = {"idle-1": "a" * 64, "idle-2": "a" * 64, "load": "b" * 64}


def moved(slow: float, **load: Any) -> Story:
    """Launches of one shape take 10 ms, a little more or less; those of the load, with other blocks, another time."""
    story = Story().engine(num_kv_heads=8, head_size=128, num_layers=32, memory_bandwidth_gb_s=3000.0)
    story.request("others", tuple(range(10, 20)), prompt=(4, 3, 2, 1)).request("idle-1", A).request("idle-2", A)
    story.request("load", B, drift=0.25, at=1)
    for name, steps in (("others", range(10)), ("idle-1", range(4)), ("idle-2", range(4))):
        for step in steps:
            story.amend(name, "batch", (step,), step_ms=10.0 + 0.1 * (step % 3), block_map_sha256="a" * 64)
    return story.amend("load", "batch", step_ms=slow, **({"block_map_sha256": "b" * 64} | load))


def counted(story: Story, name: str, stall: float, hits: float) -> Story:
    for step in [one for one in story.records if one["kind"] == "step" and one["req_id"] == name]:
        story.add(
            "kernel", engine_step=step["engine_step"], rank=0, name="attention", stall_long_scoreboard=stall,
            l2_hit_rate=hits,
        )  # fmt: skip
    return story


def test_kv_residency_divergence(tmp_path: Path) -> None:
    found = told(tmp_path, moved(15.0))
    text = says(found, "kv_residency_divergence")
    assert "the launch took longer than its run's spread allows: first 15 ms, the reference 10 ms" in text
    assert "it reads about 0.5 MiB of KV, 0.000175 ms at 3000 GB/s" in text
    assert "no counters of a re-run are on record" in text
    finding = found.finding("kv_residency_divergence")
    assert finding is not None
    assert finding.how == "inferred"
    assert found.root_cause != "kv_residency_divergence", "it changes no bit by itself"


def test_counters_of_a_re_run_speak_for_residency_or_rule_it_out(tmp_path: Path) -> None:
    for_it = counted(counted(moved(15.0), "idle-1", 0.2, 0.7), "load", 0.5, 0.4)
    finding = told(tmp_path, for_it).finding("kv_residency_divergence")
    assert finding is not None
    assert finding.how == "reproduced"
    assert "50% of stalls are on long scoreboard, 20% in the reference" in finding.says
    assert "address translation would look the same" in finding.says
    against = counted(counted(moved(15.0), "idle-1", 0.2, 0.7), "load", 0.5, 0.8)
    assert quiet(told(tmp_path / "against", against), "kv_residency_divergence")


@pytest.mark.parametrize(
    ("slow", "load"),
    [(10.3, {}), (15.0, {"block_map_sha256": "a" * 64})],
)
def test_no_kv_residency_divergence(tmp_path: Path, slow: float, load: dict[str, Any]) -> None:
    """Within the spread of the run; the same blocks."""
    assert quiet(told(tmp_path, moved(slow, **load)), "kv_residency_divergence")


def test_residency_needs_the_block_map(tmp_path: Path) -> None:
    assert "kv_residency_divergence" in gaps(told(tmp_path, without(moved(15.0), "block_map_sha256")))


def test_slow_steps_make_others_wait(tmp_path: Path) -> None:
    story = moved(15.0).amend("load", "step", (1,), queue_ms=200.0)
    assert grades(told(tmp_path, story))["kv_residency_divergence", "queue_pressure"] == "supported"


@pytest.mark.parametrize(
    ("tokens", "fires"),
    [(17, "M=17 in 2 fragments with 47% padding"), (40, "M=40 in 3 fragments with 17% padding"), (16, ""), (32, "")],
)
def test_fragment_misalignment(tmp_path: Path, tokens: int, fires: str) -> None:
    story = everywhere(on_gpu(alone()), algo_id=7, precision_path="bf16", **FITS)
    story.amend("load", "batch", (1, 2), batch_tokens=tokens, padded_tokens=tokens, algo_id=8)
    found = told(tmp_path, story)
    if fires:
        assert fires in says(found, "fragment_misalignment")
        assert grades(found)["shape_class_change", "fragment_misalignment"] == "supported"
        assert found.root_cause == "shape_class_change"
    else:
        assert quiet(found, "fragment_misalignment")


def test_fragments_are_those_of_tensor_cores(tmp_path: Path) -> None:
    story = alone().amend("load", "batch", (1, 2), batch_tokens=17, padded_tokens=17)
    assert quiet(told(tmp_path, story), "fragment_misalignment")
    story.records[0].pop("device_type")
    assert "fragment_misalignment" in gaps(told(tmp_path / "gap", story))


def busy(*, usual: int = 100, load: tuple[int, ...] = (42, 7, 7, 7, 7, 42, 42, 7)) -> Story:
    """A run that chose algorithm 42 in nearly all launches, until the target's own."""
    story = Story("run-2").engine()
    for number in range(usual // 10):
        story.request(f"before-{number}", LONG, prompt=(1, number))
        story.amend(f"before-{number}", "batch", tuple(range(10)), algo_id=42)
    story.amend("before-0", "batch", (0,), algo_id=7)
    story.request("load", PARTED, rows=4, drift=0.25)
    for step, algorithm in enumerate(load):
        story.amend("load", "batch", (step,), algo_id=algorithm)
    return story


def test_churn_against_the_runs_own_baseline(tmp_path: Path) -> None:
    found = told(tmp_path, Story().engine().request("idle", LONG), busy(), against="idle")
    text = says(found, "algorithm_change")
    assert "algo 42: 99% of 100 launches before it → 38% of 8" in text
    assert "that of the reference is not on record" in text
    finding = found.finding("algorithm_change")
    assert finding is not None
    assert (finding.how, finding.onset) == ("inferred", 1)


@pytest.mark.parametrize("story", [busy(usual=10), busy(load=(42,) * 8), busy(load=(42, 42, 42, 7, 42, 42, 42, 42))])
def test_no_churn(tmp_path: Path, story: Story) -> None:
    """Too short a baseline; the same share; a share that chance explains."""
    found = told(tmp_path, Story().engine().request("idle", LONG), story, against="idle")
    assert "algorithm_change" in gaps(found)


def test_fishers_exact_test() -> None:
    assert fisher((3, 4), (1, 4)) == pytest.approx(17 / 70), "the lady tasting tea, the other way round"
    assert fisher((10, 10), (0, 5)) == pytest.approx(1 / 3003)
    assert fisher((5, 10), (5, 5)) == pytest.approx(1.0)


def test_execution_race(tmp_path: Path) -> None:
    story = everywhere(
        Story().engine().request("idle-1", A).request("idle-2", A).request("load", B, drift=0.25, at=1), algo_id=7
    )
    found = told(tmp_path, story)
    assert "2 pair(s) of runs of this request had the same plan on record" in says(found, "execution_race")
    finding = found.finding("execution_race")
    assert finding is not None
    assert (finding.onset, finding.how) == (1, "inferred")
    assert found.root_cause == "execution_race"
    assert grades(found)["execution_race", "logit_drift"] == "consistent", "the precision path is not on record"


def test_no_execution_race(tmp_path: Path) -> None:
    """Kernels that are not on record may differ; others may; plans that differ are no race."""
    assert "execution_race" in gaps(told(tmp_path, alone()))
    other = everywhere(alone(), algo_id=7).amend("load", "batch", (1, 2), algo_id=8)
    assert quiet(told(tmp_path / "other", other), "execution_race")
    assert quiet(told(tmp_path / "batch", everywhere(loaded(), algo_id=7)), "execution_race")
    once = Story().engine().request("idle", A).request("load", B, rows=4, drift=0.25)
    assert "execution_race" in gaps(told(tmp_path / "once", once))


def unsound(**step: Any) -> Story:
    story = Story().engine().request("idle-1", A).request("idle-2", A).request("load", B, rows=4, drift=0.25)
    return story.amend("load", "step", (2,), **step)


NAN: dict[str, Any] = {"top_logits": None, "margin": None, "nonfinite_logits": 3}
FAR: dict[str, Any] = {"top_logits": [90.0, 19.0], "margin": 71.0}


@pytest.mark.parametrize(("step", "said"), [(NAN, "NaN or infinite"), (FAR, "a logit is 90, in the reference 19.88")])
def test_corruption(tmp_path: Path, step: dict[str, Any], said: str) -> None:
    found = told(tmp_path, unsound(**step))
    assert said in says(found, "corruption")
    assert found.root_cause == "corruption", "company does not move a logit that far"
    assert grades(found)["shape_class_change", "logit_drift"] == "refuted"
    assert grades(found)["corruption", "logit_drift"] == "consistent", "never more from a log"


@pytest.mark.parametrize(
    ("step", "load"),
    [
        ({"top_logits": [20.5, 19.875], "margin": 0.625}, {}),  # a clear margin alone is no corruption
        (FAR, {"prompt": (5, 6, 7, 9)}),  # other tokens went in
        (FAR, {"cfg": GREEDY | {"lora": "tuned"}}),  # an adapter
    ],
)
def test_no_corruption(tmp_path: Path, step: dict[str, Any], load: dict[str, Any]) -> None:
    story = Story().engine().request("idle-1", A).request("idle-2", A).request("load", B, rows=4, drift=0.25, **load)
    found = told(tmp_path, story.amend("load", "step", (2,), **step), against="idle-1")
    assert quiet(found, "corruption")


def test_other_weights_and_precision_are_no_corruption(tmp_path: Path) -> None:
    idle = Story().engine().request("idle", A)
    for name, engine in (("weights", {"weights_sha256": "b" * 64}), ("dtype", {"dtype": "float16"})):
        other = Story("run-2").engine(**engine).request("load", B, drift=0.25).amend("load", "step", (2,), **FAR)
        assert quiet(told(tmp_path / name, idle, other, against="idle"), "corruption")
    unknown = Story("run-2").engine(weights_sha256=None).request("load", B, drift=0.25)
    unknown.amend("load", "step", (2,), **FAR)
    assert "corruption" in gaps(told(tmp_path / "unknown", idle, unknown, against="idle"))


def test_the_margins_of_early_tokens_are_a_budget(tmp_path: Path) -> None:
    text = says(told(tmp_path, loaded()), "thin_margin")
    assert "of the reference's first 4 tokens 4 had a margin of at most 4 ulp, the smallest 1 ulp at token 0" in text
    assert "the drift came nearest to a margin at token 0: 200% of it" in text


WORDS = {"raw_prompt_sha256": "c" * 64, "decode_cfg_requested": GREEDY, "effective_text_sha256": "d" * 64}


@pytest.mark.parametrize(
    ("shaped", "said"),
    [
        ({"effective_text_sha256": "e" * 64}, "rewrite (the same prompt, another text"),
        ({"prefix_cache_used": True}, "reconstruction (the same text became other tokens; prefix_cache_used true"),
        ({"chat_template_sha256": "2"}, "template (chat_template_sha256 2 against 1)"),
        ({"tool_schemas_sha256": "4", "tokens_before_truncation": 900, "context_limit": 28}, "load had 900 tokens"),
    ],
)
def test_further_shades_of_effective_request_drift(tmp_path: Path, shaped: dict[str, Any], said: str) -> None:
    same = WORDS | {"chat_template_sha256": "1", "tool_schemas_sha256": "3"}
    story = Story().engine().request("idle", A, prompt=WIDE, **same)
    story.request("load", B, prompt=WIDE[:28], drift=0.25, **(same | shaped))
    assert said in says(told(tmp_path, story, against="idle"), "effective_request_drift")


def test_a_text_that_was_rewritten_by_another_template_is_no_rewrite(tmp_path: Path) -> None:
    same = WORDS | {"chat_template_sha256": "1"}
    other = same | {"chat_template_sha256": "2", "effective_text_sha256": "e" * 64}
    story = Story().engine().request("idle", A, prompt=WIDE, **same)
    text = says(
        told(tmp_path, story.request("load", B, prompt=WIDE[:28], **other), against="idle"), "effective_request_drift"
    )
    assert "rewrite" not in text
    assert "reconstruction" not in text


def tightening(reason: str | None, *, told_of: bool = True, configured: int | None = None) -> Story:
    """A prompt that was cut to a lower limit after the request had waited; an event may say who lowered it."""
    config = {} if configured is None else {"config": {"model_config": {"max_model_len": configured}}}
    story = Story().engine(**config).request("idle", A, prompt=WIDE, context_limit=40, truncated=False)
    if told_of:
        detail = {"limit": "context_limit", "before": 40, "after": 28} | ({"reason": reason} if reason else {})
        story.add("event", what="limit_change", detail=detail)
    story.request("load", B, prompt=WIDE[12:], drift=0.25, context_limit=28, truncated=True)
    return story.amend("load", "step", (0,), queue_ms=200.0)


@pytest.mark.parametrize(
    ("story", "grade", "root"),
    [
        (tightening("queue over 50 ms"), "supported", "queue_pressure"),
        (tightening(None), "consistent", "queue_pressure"),
        (tightening(None, told_of=False, configured=40), "consistent", "queue_pressure"),
        (tightening("KV memory short"), "refuted", "effective_request_drift"),
        (tightening(None, told_of=False), "refuted", "effective_request_drift"),
        (tightening(None, told_of=False, configured=28), "refuted", "effective_request_drift"),
    ],
)
def test_a_limit_that_load_tightened(tmp_path: Path, story: Story, grade: str, root: str) -> None:
    found = told(tmp_path, story, against="idle")
    assert grades(found)["queue_pressure", "effective_request_drift"] == grade
    assert found.root_cause == root


def test_an_output_limit_that_load_tightened(tmp_path: Path) -> None:
    asked = GREEDY | {"max_tokens": 8}
    story = Story().engine().request("idle", A, decode_cfg_requested=asked)
    story.add("event", what="limit_change", detail={"limit": "max_tokens", "after": 2, "reason": "queue backlog"})
    cfg = GREEDY | {"max_tokens": 2}
    story.request("load", A[:2], decode_cfg_requested=asked, cfg=cfg, finish_reason="stop")
    found = told(tmp_path, story.amend("load", "step", (0,), queue_ms=200.0), against="idle")
    assert "changed by the server of the target" in says(found, "decode_config_drift")
    assert grades(found)["queue_pressure", "decode_config_drift"] == "supported"
