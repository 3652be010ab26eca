"""Which code can cause which, and what else could have caused an effect. The only place that knows.

Competitors of a cause are what stands beside it in CAUSES; what lies between cause and effect is none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from forensics.findings import Link

if TYPE_CHECKING:
    from collections.abc import Sequence

    from forensics.findings import Finding, Gap

CAUSES: dict[str, tuple[str, ...]] = {
    "token_flip": ("logit_drift", "thin_margin", "decode_config_drift", "tie_rule_change"),
    "tie_rule_change": ("decode_config_drift", "environment_change"),
    "logit_drift": (
        "shape_class_change", "algorithm_change", "precision_path_change", "graph_mode_change",
        "kernel_fallback", "requantization", "execution_race", "corruption",
        "effective_request_drift", "decode_config_drift", "weights_drift", "environment_change",
    ),
    "algorithm_change": (
        "shape_class_change", "fragment_misalignment", "kernel_fallback", "workspace_infeasible", "environment_change",
    ),
    "fragment_misalignment": ("shape_class_change",),
    "precision_path_change": ("shape_class_change", "requantization", "kernel_fallback", "environment_change"),
    "graph_mode_change": ("shape_class_change", "environment_change"),
    "requantization": ("shape_class_change", "kernel_fallback", "environment_change"),
    "kernel_fallback": ("shape_class_change", "workspace_infeasible", "environment_change"),
    "workspace_infeasible": (
        "memory_evaporation", "memory_pressure", "paging", "shape_class_change", "environment_change",
    ),
    "shape_class_change": (
        "batch_recomposition", "preemption_recompute", "prefix_cache_hit", "effective_request_drift",
        "environment_change",
    ),
    "batch_recomposition": (
        "arrival_burst", "queue_pressure", "paging", "memory_pressure", "rank_straggler", "fabric_congestion",
        "isolation_posture", "environment_change",
    ),
    "effective_request_drift": ("arrival_burst", "queue_pressure", "memory_pressure", "environment_change"),
    "decode_config_drift": ("arrival_burst", "queue_pressure", "memory_pressure"),
    "queue_pressure": (
        "arrival_burst", "kv_residency_divergence", "memory_pressure", "rank_straggler", "fabric_congestion",
        "environment_change",
    ),
    "rank_straggler": ("paging", "environment_change"),
    "fabric_congestion": ("environment_change",),
    "kv_residency_divergence": ("paging", "memory_pressure", "preemption_recompute", "prefix_cache_hit"),
    "preemption_recompute": ("paging", "memory_pressure", "environment_change"),
    "prefix_cache_hit": ("paging", "memory_pressure", "environment_change"),
    "paging": ("memory_pressure", "environment_change"),
    "memory_pressure": ("arrival_burst", "memory_evaporation", "environment_change"),
}  # fmt: skip
"""Effect → the causes that can bring it about; an effect stands above the rows of its causes. What stands beside a
cause is its competitor, unless the cause can bring it about: then it lies on the way from the cause to the effect."""

CONDITIONS = ("thin_margin",)
"""Codes that make an effect possible but never bring it about: not competitors, and no root cause."""
BESIDE = ("regime_mismatch", "state_collapse")
"""Codes that are worth saying and cause nothing."""
POSSIBLE = [Link(cause, effect, "possible", ()) for effect, causes in CAUSES.items() for cause in causes]


class Competitors(NamedTuple):
    """What could have brought about an effect instead of its cause. between, unseen: what lies on the way."""

    present: tuple[str, ...]
    untested: tuple[Gap, ...]
    ruled_out: tuple[str, ...]
    between: tuple[str, ...]
    unseen: tuple[str, ...]

    def why(self) -> list[str]:
        """Return the reasons that they give for a grade, one a line."""
        why = [f"ruled out: {', '.join(self.ruled_out)}"] if self.ruled_out else []
        why += [f"also present: {', '.join(self.present)}"] if self.present else []
        why += [f"could not be tested: {gap.code} ({gap.field} is not on record)" for gap in self.untested]
        why += [f"lies between: {', '.join(self.between)}"] if self.between else []
        return why + ([f"may lie between, not on record: {', '.join(self.unseen)}"] if self.unseen else [])


def competitors(
    cause: Finding, effect: Finding, stand: Sequence[Finding], gaps: Sequence[Gap], below: Sequence[Link]
) -> Competitors:
    """Sort the other causes of an effect. A finding lies between if accepted links lead from the cause to it.

    What is not on record lies between if the cause can bring it about: its absence hides a step of the way, not another
    way. stand: the findings that could have caused the effect and that nothing contradicts. below: the accepted links
    between findings on lower rungs.
    """
    rivals = [code for code in CAUSES[effect.code] if code not in (cause.code, *CONDITIONS)]
    there = [finding.code for finding in stand if finding.code in rivals]
    between = [code for code in there if cause.code in upstream(code, below)]
    missing = [gap for gap in gaps if gap.code in rivals and gap.code not in there]
    unseen = [gap.code for gap in missing if cause.code in upstream(gap.code, POSSIBLE)]
    seen = {*there, *(gap.code for gap in missing)}
    return Competitors(
        present=tuple(code for code in there if code not in between),
        untested=tuple(gap for gap in missing if gap.code not in unseen),
        ruled_out=tuple(code for code in rivals if code not in seen),
        between=tuple(between),
        unseen=tuple(unseen),
    )


def upstream(effect: str, links: Sequence[Link]) -> set[str]:
    """Return every code from which links lead to the effect."""
    found: set[str] = set()
    for one in links:
        if one.effect == effect and one.cause not in found:
            found |= {one.cause} | upstream(one.cause, links)
    return found
