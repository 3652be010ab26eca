"""What can be done, what must not be said, who does what next, and how to see it all again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from forensics.markup import bullets, fenced, table
from forensics.text import code, command, markdown, shell

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.explanation import Explanation

CURES: dict[str, tuple[str, ...]] = {
    "batch_recomposition": (
        "Batch-invariant kernels: the result of a row no longer depends on who shares its launch",
        "Isolation: run requests that must repeat alone, or only with each other",
    ),
    "shape_class_change": (
        "Pad every launch to one fixed shape, so that one kernel runs",
        "Pin the tactic: one GEMM and attention algorithm for all shapes",
    ),
    "arrival_burst": ("Admission control: spread bursts before they reach the engine",),
    "queue_pressure": ("A fixed chunk budget, and a limit on running requests",),
    "memory_pressure": ("More memory headroom: a lower limit on running requests or on context",),
    "paging": ("More KV memory, or fewer running requests, so that nothing is evicted or offloaded",),
    "workspace_infeasible": ("Reserve the workspace when the engine starts, so that no tactic depends on free memory",),
    "memory_evaporation": (
        "Give replication and checkpoints memory of their own, and never both at once from one pool",
    ),
    "kernel_fallback": ("Fail instead of falling back, and compare the tactic of all ranks at start",),
    "requantization": ("One quantised path for all shapes and ranks; fail instead of dequantising first",),
    "corruption": ("Take the device out of service until a replay on another one shows which answer is right",),
    "preemption_recompute": ("More KV memory, or fewer running requests, so that nothing is preempted",),
    "prefix_cache_hit": ("No prefix cache for requests that must repeat, or the same chunk borders on hit and miss",),
    "effective_request_drift": (
        "Refuse a request instead of cutting it; one context limit and one template everywhere",
    ),
    "decode_config_drift": ("Set the decode configuration at the gateway, in full, for every replica",),
    "weights_drift": ("One checkpoint on all replicas; compare weights_sha256 before a replica takes traffic",),
    "environment_change": ("One image and one kind of device for replicas that must agree",),
    "isolation_posture": ("One isolation posture for all replicas of a tenant",),
    "algorithm_change": ("Pin the tactic, and switch off autotuning at run time",),
    "precision_path_change": ("Pin the precision path, and fail instead of falling back",),
    "graph_mode_change": ("One graph mode for every batch size, or eager everywhere",),
    "tie_rule_change": ("One tie rule, such as the lowest token id, in every sampler",),
    "thin_margin": (
        "Compute the last layer (lm_head) in fp32: fewer exact ties, though not fewer differences before it",
    ),
}
"""Cause code → candidate mitigations. None comes with a number: cost and effect are what a verdict measures."""
UNTRIED, UNKNOWN = "not tried here", "cost unknown: not measured"


def mitigation(explanation: Explanation) -> Iterator[str]:
    """Candidates that follow from the chain; a figure only where a verdict on file has measured it."""
    if explanation.standing != "divergence":
        return
    yield "## Mitigation"
    on_chain = {name for one in explanation.chain for name in (one.cause, one.effect)}
    codes = [one.code for one in explanation.findings if one.code in on_chain or one.code == "thin_margin"]
    rows = [[what, code(name), UNTRIED, UNKNOWN] for name in codes for what in CURES.get(name, ())]
    proven = explanation.proof
    if proven is not None:
        names = ", ".join(code(factor) for factor in proven.factors)
        effect = f"measured here: gave the reference's bits up to the flip, see {code(proven.source_path)}"
        rows.insert(0, [f"Pin to the reference's value: {names}", "verdict", effect, UNKNOWN])
    yield (
        table(["candidate", "follows from", "effect", "cost"], rows)
        if rows
        else "None follows: the cause is not known."
    )


def reservations(explanation: Explanation) -> Iterator[str]:
    """What this review does not show."""
    yield "## What we cannot claim"
    yield bullets(markdown(claim, 600) for claim in explanation.cannot_claim) or "No reservation applies."


def follow_ups(explanation: Explanation) -> Iterator[str]:
    """What is left to do; owner and date are for the meeting to fill in."""
    yield "## Follow-ups"
    rows = []
    if explanation.standing == "divergence" and explanation.proof is None:
        rows.append(["Prove or refute the chain by replay", "nothing here is proven"])
    weakest = explanation.weakest
    if weakest is not None and weakest.raise_by and weakest.grade not in ("proven", "supported"):
        rows.append([f"Get {markdown(weakest.raise_by)}", f"raises {code(weakest.cause)} → {code(weakest.effect)}"])
    stops = {one.field: one.stops for one in explanation.coverage}
    rows += [[f"Record {code(name)}", f"without it: {stops[name]}"] for name in explanation.record_first]
    if explanation.standing == "divergence":
        rows.append(["Choose a mitigation and measure its effect and its cost", "no cost is known"])
    if explanation.spread is not None and explanation.spread.others:
        rows.append(["Explain the other divergent requests", "whether they share the cause is not known"])
    yield table(["what", "why", "owner", "due"], [[*row, "", ""] for row in rows]) if rows else "None."


def commands(explanation: Explanation) -> Iterator[str]:
    """What to paste to see the same. Names come from a log that nobody trusts: each is one quoted word."""
    yield "## Commands to reproduce"
    against = [f"--against={explanation.reference.req_id}"] if explanation.reference else []
    paths = {arm.citation.path for arm in (explanation.target, explanation.reference) if arm}
    paths |= {verdict.source_path for verdict in explanation.verdicts}
    lines = [f"forensics ingest {shell(path)}" for path in sorted(paths)]
    again = command("explain", *against, request=explanation.target.req_id)
    yield fenced([*lines, again, *explanation.next_commands], "sh")
