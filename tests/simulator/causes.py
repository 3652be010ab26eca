"""The catalogue: for every cause code what is planted, and how strongly.

Strengths are magnitudes of the world (a factor on compute, MiB, requests, seconds), chosen so that `weak` is something
that a healthy fleet shows, `moderate` and `strong` what an incident shows. Zero is the same world with nothing planted.
token_flip, logit_drift and thin_margin are no causes: they are in the truth of every incident as links or conditions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.simulator.conditions import Disturbance
from tests.simulator.traffic import Ask

if TYPE_CHECKING:
    from collections.abc import Callable

ASKED, ONSET, LIFE = 1.5, 1.8, 2.9
"""s after the run began: the request that is asked about arrives; a cause sets in; the last request arrives."""
HEAVY, LIGHT = 21.0, 12.0  # rows on average, about: calm replicas stay in one class, 17 to 32 or 9 to 16


@dataclass(frozen=True)
class Plant:
    """What is done to one run. ask: members of the request that is asked about; arithmetic: another library's bits."""

    disturbances: tuple[Disturbance, ...] = ()
    ask: dict[str, Any] = field(default_factory=dict)
    extra: tuple[Ask, ...] = ()
    engine: dict[str, Any] = field(default_factory=dict)
    arithmetic: str = ""
    weights_drift: float = 0.0
    token_rule: str | None = None
    rate: float | None = None
    tenants: int | None = None
    race: bool = False


@dataclass(frozen=True)
class Cause:
    """One cause: what it plants at a strength, which answers are right, and where the log can show it.

    roots: more than one where two names of the catalogue say the same event. where: backgrounds. blind: fields without
    which the log cannot tell, by construction.
    """

    roots: tuple[str, ...]
    levels: dict[str, float]
    plant: Callable[[float], Plant]
    where: tuple[str, ...] = ("paired", "mirrored", "live")
    rate: float = HEAVY
    ranks: int = 2
    blind: frozenset[str] = frozenset()


def during(seconds: float = float("inf"), **change: Any) -> Plant:
    """Return conditions that begin at the onset."""
    return Plant((Disturbance(change, ONSET, ONSET + seconds),))


def _arrivals(begin: float, count: float) -> tuple[Ask, ...]:
    times = [(number, begin + 0.008 * number) for number in range(int(count))]
    return tuple(Ask(f"burst-{i}", when, f"burst-{i}", 64, 40, tenant=f"t{i % 4}") for i, when in times)


def _tightened(count: float) -> Plant:
    """Return a burst just before the request, and a gateway that shortens prompts while its queue is long."""
    return Plant(extra=_arrivals(ASKED - 0.12, count), ask={"truncate_to": 120} if count > 8 else {})


def _prefix(tokens: float) -> Plant:
    earlier = Ask("chat-turn-1", 0.5, "chat-turn-1", 170, 20, prefix="chat", prefix_tokens=int(tokens))
    return Plant(extra=(earlier,), ask={"prefix": "chat", "prefix_tokens": int(tokens)})


def _collapse(value: float) -> Plant:
    return during(
        all_slow=value, link_bandwidth=1.0 / value**2, retransmits=int(4 * (value - 1)), fragmented=0.2 * value
    )


def _congestion(value: float) -> Plant:
    slower = 0.9 + 0.7 * value
    return during(link_bandwidth=1.0 / slower, link_latency_us=1200 * (slower - 1), retransmits=int(value))


def _shaped(**ask: Any) -> Cause:
    return Cause(("effective_request_drift",), ONE, lambda _: Plant(ask=ask))


def _levels(weak: float, moderate: float, strong: float) -> dict[str, float]:
    return {"weak": weak, "moderate": moderate, "strong": strong}


def _fields(kind: str, names: str) -> frozenset[str]:
    return frozenset(f"{kind}.{name}" for name in names.split())


ONE = {"moderate": 1.0}
APART = ("paired", "mirrored")  # what holds for the whole life of a run needs another run beside it
OTHER_LIBRARY = {"engine_version": "1.1", "versions": {"cublasLt": "13.1.0"}, "driver": "590.2"}
MEMORY = _fields("event", "offload restore checkpoint_begin replication_begin") | {"device.vram_free_mb"} | _fields(
    "batch", "vram_free_mb headroom_mb headroom_source isr_pinned_mb ckpt_pinned_mb kv_blocks_free paging_on"
    " largest_free_block_mb workspace_free_mb workspace_required_mb fallback_reason")  # fmt: skip
TIME = _fields("batch", "gpu_ms step_ms") | _fields("collective", "comm_ms compute_ms start_ts end_ts retransmits")
PLAN = _fields("batch", "algo_id kernel_variant fallback_reason precision_path requant_cycles")
RESIDENCY = TIME | _fields("batch", "block_map_sha256") | _fields("kernel", "dur_us l2_hit_rate stall_long_scoreboard")

CAUSES: dict[str, Cause] = {
    "environment_change": Cause(("environment_change",), ONE, lambda _: Plant(
        engine=OTHER_LIBRARY, arithmetic="other"), APART),
    "weights_drift": Cause(("weights_drift",), _levels(0.01, 0.05, 0.3), lambda v: Plant(weights_drift=v), APART),
    "isolation_posture": Cause(("isolation_posture",), ONE, lambda _: Plant(
        (Disturbance({"isolation": "strict"}),), engine={"isolation": {"shared_batching": False, "mig": True}},
        rate=HEAVY / 4, tenants=1), APART),
    "truncation": Cause(("effective_request_drift",), _levels(4, 24, 96), lambda v: Plant(ask={"cut": int(v)})),
    "template": _shaped(template="v8"),
    "policy_injection": _shaped(policy="pii v3"),
    "tool_schemas": _shaped(tools="search v2"),
    "safety_rewrite": _shaped(rewrite="s1"),
    "decode_config_drift": Cause(("decode_config_drift",), _levels(1.02, 1.1, 1.3), lambda v: Plant(
        ask={"decode": {"repetition_penalty": v}})),
    "arrival_burst": Cause(("arrival_burst",), _levels(3, 14, 20), lambda v: Plant(extra=_arrivals(ONSET, v)),
                           rate=LIGHT),
    "limits_under_load": Cause(("arrival_burst",), _levels(3, 14, 20), _tightened, rate=LIGHT),
    "memory_pressure": Cause(("memory_pressure",), _levels(6000, 18200, 19000), lambda v: during(cotenant_mb=v),
                             blind=MEMORY),
    "workspace_infeasible": Cause(("workspace_infeasible",), _levels(0.5, 0.98, 0.995), lambda v: during(fragmented=v),
                                  blind=MEMORY | PLAN),
    "paging": Cause(("paging",), _levels(2, 10, 16), lambda v: during(0.8, tiered_rows=int(v)), blind=MEMORY),
    "memory_evaporation": Cause(("memory_evaporation",), _levels(4000, 18200, 19000), lambda v: during(
        isr_pinned_mb=v * 0.55, ckpt_pinned_mb=v * 0.45), blind=MEMORY),
    "kernel_fallback": Cause(("kernel_fallback",), _levels(1, 2, 4), lambda v: during(
        fallback_ranks=tuple(range(2, 2 + int(v)))), ranks=8, blind=PLAN),
    "requantization": Cause(("requantization",), _levels(1, 3, 8), lambda v: during(
        requant_ranks=(5,), requant_cycles=int(v)), ranks=8, blind=PLAN),
    "kv_residency_divergence": Cause(("kv_residency_divergence",), _levels(0.05, 0.5, 0.9), lambda v: during(
        block_scatter=v), ranks=8, blind=RESIDENCY),
    "rank_straggler": Cause(("rank_straggler",), _levels(1.08, 1.5, 2.2), lambda v: during(rank_slow=((5, v),)),
                            ranks=8, blind=TIME),
    "fabric_congestion": Cause(("fabric_congestion",), _levels(1, 4, 8), _congestion, ranks=8, blind=TIME),
    "queue_pressure": Cause(("queue_pressure",), _levels(0.06, 0.8, 1.2), lambda v: during(v, admission_paused=True)),
    "batch_recomposition": Cause(("batch_recomposition",), _levels(12.5, 20.0, 22.0), lambda v: Plant(rate=v), APART,
                                 rate=LIGHT),
    "preemption_recompute": Cause(("preemption_recompute",), ONE, lambda _: during(preempt_target=True)),
    "prefix_cache_hit": Cause(("prefix_cache_hit",), _levels(16, 64, 128), _prefix),
    "state_collapse": Cause(("state_collapse",), _levels(1.05, 1.4, 1.8), _collapse, ranks=8, blind=TIME),
    "shape_class_change": Cause(("shape_class_change",), ONE, lambda _: during(padding="double")),
    "fragment_misalignment": Cause(("shape_class_change", "fragment_misalignment"), ONE, lambda _: during(
        padding="none")),
    "algorithm_change": Cause(("algorithm_change",), _levels(0.1, 0.39, 0.9), lambda v: during(retuned_share=v),
                              blind=PLAN),
    "precision_path_change": Cause(("precision_path_change",), ONE, lambda _: during(precision_path="bf16"),
                                   blind=PLAN),
    "graph_mode_change": Cause(("graph_mode_change",), ONE, lambda _: during(graph="eager")),
    "tie_rule_change": Cause(("tie_rule_change",), ONE, lambda _: Plant(token_rule="argmax_highest"), APART),
    "execution_race": Cause(("execution_race",), ONE, lambda _: Plant(race=True), ("idle",)),
    "corruption": Cause(("corruption",), _levels(2.0, 20.0, 200.0), lambda v: during(0.05, jump=v), ("paired",)),
}  # fmt: skip

DECOYS: dict[str, Plant] = {
    "checkpoint": during(ckpt_pinned_mb=600.0),
    "replication": during(isr_pinned_mb=400.0),
    "cotenant": during(cotenant_mb=1200.0),
    "warm_rank": during(rank_slow=((1, 1.03),)),
    "some_retransmits": during(retransmits=1),
    "fragments": during(fragmented=0.3),
    "prefill_churn": during(churn_elsewhere=True),
    "log_level": Plant(engine={"environment": {"NCCL_ALGO": "Ring", "NCCL_DEBUG": "WARN"}}),
    "more_room": Plant(engine={"config": {"max_model_len": 8192, "max_num_seqs": 32}}),
}
"""Differences that a healthy fleet has all the time; that they change no token is checked by intervention."""
