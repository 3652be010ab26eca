"""Public rules over the raw log: what a person with a trace viewer, or another tool, would say.

* first change: the first thing in the run that is not as it was at its beginning (a change log read from the top).
* first difference: the first field of the launch that differs between the two executions, step by step.
* last arriver: the rank that most often comes last to a collective is the cause; the rule has no null (HTA, TraceLens).
* 3 × the mean: a collective that took three times the mean of its kind is the cause (nsys-ai).

Each says 'none' where the answers are equal, and 'undetermined' where its records are not in the log.
"""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.accuracy.rawlog import Log

    Record = dict[str, Any]

FIELDS = {
    "num_cached_tokens": "prefix_cache_hit", "resumed": "preemption_recompute", "paging_on": "paging",
    "batch_size": "batch_recomposition", "batch_tokens": "batch_recomposition", "padded_tokens": "shape_class_change",
    "graph_mode": "graph_mode_change", "precision_path": "precision_path_change", "requant_cycles": "requantization",
    "algo_id": "algorithm_change", "kernel_variant": "algorithm_change",
}  # fmt: skip
EVENTS = {
    "preemption": "preemption_recompute", "offload": "paging", "eviction": "paging",
    "batch_limit_change": "queue_pressure",
    "checkpoint_begin": "memory_evaporation", "replication_begin": "memory_evaporation",
    "config_change": "environment_change", "weights_update": "weights_drift",
}  # fmt: skip


def answers(log: Log, request: str, reference: str | None) -> dict[str, str]:
    """Return what each rule says of a request, against a reference that it was given."""
    if reference is None:
        return dict.fromkeys(RULES, "none")
    pair = log.request(request), log.request(reference)
    if _output(log, pair[0]) == _output(log, pair[1]):
        return dict.fromkeys(RULES, "none")
    return {name: rule(log, *pair) for name, rule in RULES.items()}


def first_change(log: Log, target: Record, reference: Record) -> str:
    """Return the first thing that is not as it was when the run began."""
    events = [one for one in log.kinds["event"] if one.get("run_id") == target.get("run_id") and one["what"] in EVENTS]
    launches = sorted(
        (one for one in log.kinds["batch"] if one["run_id"] == target.get("run_id")), key=lambda one: one["engine_step"]
    )
    for one in launches:
        if event := next((it for it in events if it.get("engine_step", 0) <= one["engine_step"]), None):
            return EVENTS[event["what"]]
        for name, code in FIELDS.items():
            if name in one and name in launches[0] and one[name] != launches[0][name]:
                return code
    return EVENTS[events[0]["what"]] if events else "undetermined"


def first_difference(log: Log, target: Record, reference: Record) -> str:
    """Return the first thing that differs between the two executions: configuration, input, then launch by launch."""
    one, other = log.engine(target.get("run_id", "")), log.engine(reference.get("run_id", ""))
    for names, code in (
        (("weights_sha256",), "weights_drift"),
        (("engine_version", "versions", "driver", "config", "device"), "environment_change"),
    ):
        if any(name in one and name in other and one[name] != other[name] for name in names):
            return code
    for name, code in (("effective_token_ids_sha256", "effective_request_drift"),
                       ("decode_cfg_applied", "decode_config_drift"), ("token_rule", "tie_rule_change")):  # fmt: skip
        if name in target and name in reference and target[name] != reference[name]:
            return code
    for ours, theirs in zip(log.steps(target), log.steps(reference), strict=False):
        for name, code in FIELDS.items():
            if name in ours and name in theirs and ours[name] != theirs[name]:
                return code
    return "undetermined"


def last_arriver(log: Log, target: Record, reference: Record) -> str:
    """Return the cause that a rule without a null names wherever there are collectives."""
    own = [one for one in log.kinds["collective"] if one["run_id"] == target.get("run_id") and "start_ts" in one]
    return "rank_straggler" if len({one["rank"] for one in own}) > 1 else "undetermined"


def three_times_the_mean(log: Log, target: Record, reference: Record) -> str:
    """Return congestion if any collective of the run took three times the mean of its operation."""
    took: dict[str, list[float]] = {}
    for one in log.kinds["collective"]:
        if one["run_id"] == target.get("run_id") and "comm_ms" in one:
            took.setdefault(one["op"], []).append(one["comm_ms"])
    slow = any(max(ms) > 3 * mean(ms) for ms in took.values())
    return "fabric_congestion" if slow else "undetermined"


def _output(log: Log, request: Record) -> Any:
    if "output_token_ids_sha256" in request:
        return request["output_token_ids_sha256"]
    return [one.get("token_id", one.get("token_tag")) for one in log.steps(request) if "token_index" in one]


RULES: dict[str, Callable[[Log, Record, Record], str]] = {
    "first change": first_change,
    "first difference": first_difference,
    "last arriver": last_arriver,
    "3 × the mean": three_times_the_mean,
}
