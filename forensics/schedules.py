"""Plans of arms whose launches were composed anew at every step: their schedule takes the place of their first launch.

Who shares a launch changes from step to step there, so rows and tokens of the first one say little. The factor
batch.schedule names the arm whose launches are in force, all of them, or 'alone'.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl

from forensics.errors import not_replayable
from forensics.windows import RECORD_ALL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from forensics.evidence import Evidence
    from replay.case import Arm, Plan

FACTOR, ALONE = "batch.schedule", "alone"
PREFIX, CHUNKS, GRAPH = "prefill.cached_prefix", "prefill.chunks", "graph.mode"
PADDING = ("batch.left_pad", "batch.right_pad")
SETTLED = {"batch.rows", "batch.row", "batch.launch_tokens", "batch.mask_path", PREFIX, GRAPH, *PADDING}
"""Factors that a schedule settles, or that only say what is usual; these are put back where they are not."""

Lengths = tuple[tuple[int, int], ...]


def by_step(evidence: Evidence | None) -> bool:
    """Return whether the run of a request composed its launches anew at every step."""
    config = json.loads(((evidence and evidence.engine) or {}).get("config") or "{}")
    return bool(config.get("batching") == "continuous")


def with_schedules(incident: Arm, reference: Arm, prompt: int, flip: int | None) -> tuple[Arm, Arm]:
    """Return both arms with their plans in terms of schedules.

    prompt: tokens of the request; flip: output position up to which launches matter, None for all. An arm that ran in
    a padded batch keeps its plan: its launches are no schedule that could be exchanged.
    """
    arms = {"incident": incident, "reference": reference}
    seen = {name: list(_launches(arm, prompt, flip)) for name, arm in arms.items()}
    values = {name: name if any(others for others, _ in seen[name]) else ALONE for name in arms}
    if seen["incident"] == seen["reference"]:
        values["reference"] = values["incident"]
    chunks = {name: _chunks(arm, prompt) for name, arm in arms.items()}
    prefixes = {name: arm.plan.get(PREFIX, "0") for name, arm in arms.items()}
    for name, arm in arms.items():
        if arm.synthetic or _padded(arm.plan, values[name]):
            continue
        plan = {factor: value for factor, value in arm.plan.items() if factor not in SETTLED} | {FACTOR: values[name]}
        if arm.plan.get(GRAPH, "eager") != "eager":
            plan[GRAPH] = arm.plan[GRAPH]
        if any("," in lengths for lengths in chunks.values()):
            plan[CHUNKS] = chunks[name]
        if set(prefixes.values()) != {"0"}:
            plan[PREFIX] = prefixes[name]
        arms[name] = replace(arm, plan=plan)
    if reference.synthetic:
        arms["reference"] = replace(reference, plan=arms["incident"].plan | {FACTOR: ALONE})
    return arms["incident"], arms["reference"]


def graph_modes(evidence: Evidence) -> Plan:
    """Return the factor graph.mode of all steps of a request: one that is not eager, if there is any."""
    modes = evidence.steps["graph_mode"].drop_nulls().unique().sort().to_list()
    return {GRAPH: next((mode for mode in modes if mode != "eager"), modes[0])} if modes else {}


def check_whole(evidence: Evidence, arm: Arm) -> None:
    """Raise ForensicsError (exit 4) where not all rows of a launch are on record."""
    sizes = dict(evidence.steps.filter(pl.col("batch_size").is_not_null()).select("engine_step", "batch_size").rows())
    for step, rows in arm.schedule:
        if len(rows) != sizes.get(step, len(rows)):
            why = f"of engine step {step} {len(rows)} of {sizes[step]} rows are on record"
            raise not_replayable(evidence.name, why, RECORD_ALL)


def _padded(plan: Plan, launches: str) -> bool:
    """Return whether an arm ran in a padded batch that is more than the request by itself."""
    if "batch.left_pad" not in plan and "batch.mask_path" not in plan:
        return False
    return launches != ALONE or any(plan.get(name, "0") != "0" for name in PADDING)


def _launches(arm: Arm, prompt: int, flip: int | None) -> Iterator[tuple[Lengths, int]]:
    """Yield each launch up to the flip's: the neighbours' (tokens, computed before), and the request's place."""
    length = prompt
    for _, rows in arm.schedule:
        place = next((at for at, (name, _, _) in enumerate(rows) if name == arm.req_id), -1)
        yield tuple((tokens, computed) for at, (_, tokens, computed) in enumerate(rows) if at != place), place
        length += place >= 0 and rows[place][1] + rows[place][2] == length
        if flip is not None and length > prompt + flip:
            return


def _chunks(arm: Arm, prompt: int) -> str:
    """Return the lengths of the passes over the prompt, since it was last begun."""
    lengths: list[int] = []
    reached = 0
    for tokens, computed in ((row[1], row[2]) for _, rows in arm.schedule for row in rows if row[0] == arm.req_id):
        lengths = [*lengths, tokens] if computed == reached else [tokens]
        reached = computed + tokens
        if reached >= prompt:
            break
    return ",".join(map(str, lengths))
